"""Recording any transformer: its blocks and their streams are found, and its own tail and guidance read them out.

A pipeline with two transformers is recorded by the one that runs at each step, whose blocks have the same names.
"""

import logging
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from ditscope.capture.recorder import Captured, Recorder
from ditscope.capture.statistics import FrameArrays, frames_table, pool_frames, to_host
from ditscope.core.errors import InputError
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator
from ditscope.models.readout import Answered, BlockWatch, aside, cond_first, guide, read_outs
from ditscope.models.sampling import Call, Step, keeps_variance, transformers_of
from ditscope.models.structure import blocks

log = logging.getLogger(__name__)

UNLIKE = 1e-3  # relative: guidance that keeps a state from step to step gives another prediction
PARAMETERIZATIONS = ("flow", "epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Watched:
    """What is kept of one call until its step ends."""

    answered: Answered
    streams: dict[str, dict[str, Tensor]]  # by block
    read_outs: dict[str, Any]  # by block


class AnyRecorder(Recorder):
    """A `Recorder` of a model of any family; each step's tensors are written once its last call has ended."""

    one_pass = False
    watch: BlockWatch  # of the transformer of the call under way

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Hook every block of each transformer."""
        self.handles: list[Any] = []
        check_alike(model)
        self.begin(model, sigmas, guidance)
        self.aside = aside(model) if self.predict else model
        self.parameterization = parameterization(model.pipe.scheduler)
        if self.predict and not self.parameterization:
            raise InputError(
                f"{model.name}: the clean estimate of {type(model.pipe.scheduler).__name__} is not known; capture with "
                "`should_decode_intermediates: false`, or take a scheduler of flow matching, Euler or DDIM"
            )
        self.watches = {one: BlockWatch(model.name, one) for one in transformers_of(model.pipe)}
        self.ran: list[str] = []  # the transformer of each captured step
        self.calls: list[Watched] = []
        self.timesteps: list[float] = []
        self.text_tokens = 0
        self.frames = 0  # that image tokens are of; 0: not known yet
        self.of_frames: list[FrameArrays] = []

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step."""
        self.step = Captured(index, x) if index in self.steps else None
        self.calls = []

    def called(self, call: Call) -> None:
        """Watch the blocks of a captured step's call."""
        if self.step:
            self.watch = self.watches[call.transformer]
            self.watch.begin(call)

    def answered(self, call: Call, output: Any) -> None:
        """Part what the blocks put out, and read each of them out while the call is at hand."""
        if not self.step:
            return
        answered = self.watch.end(output)
        trace = answered.trace
        chosen = [block for block in trace.blocks if block.name in self.blocks]
        streams = {block.name: trace.split(block, answered.outputs[block.name]) for block in chosen}
        read = read_outs(answered, self.watch.modules, [b.name for b in chosen]) if self.predict else {}
        if trace.blocks[0].name in self.blocks and self.store_tensors:
            streams = {"embedding": answered.given} | streams
        answered.outputs.clear()
        self.calls.append(Watched(answered, streams, read))

    def after(self, step: Step) -> None:
        """Order the halves of guidance, and hand the step to the thread that writes."""
        self.timesteps.append(float(step.timestep))
        if not (done := self.step):
            return
        self.step = None
        halves = places(self.calls, step)
        self.ran.append(transformer_names(self.model)[self.calls[0].answered.call.transformer])
        for block in self.calls[0].streams:
            for stream in self.calls[0].streams[block]:
                self.take(done, block, stream, [self.calls[c].streams[block][stream][rows] for c, rows in halves])
        if self.predict:
            self.check_guidance(step)
        for block in self.calls[0].read_outs:
            outputs = [call.read_outs[block] for call in self.calls]
            self.keep(done, f"{block}.prediction", self.guided(outputs, step))
        self.keep(done, "context.latents", step.x)
        self.keep(done, "context.velocity", step.velocity)
        if not self.files and not self.writing:
            self.admit(sum(tensor.nbytes for tensor in done.tensors.values()))
        self.hand_over(done)

    def take(self, done: Captured, block: str, stream: str, halves: list[Tensor]) -> None:
        """Keep a stream of a block: one tensor, or one per half where their lengths differ."""
        alike = len({half.shape for half in halves}) == 1
        parts = {"": torch.cat(halves)} if alike else dict(zip(("", ".uncond"), halves, strict=True))
        if stream == "txt" and not self.text_tokens:
            self.text_tokens = halves[0].shape[1]
        if stream == "img" and not self.frames:
            self.frames = token_frames(self.calls[0].answered.call, halves[0].shape[1])
        for half, tokens in parts.items():
            if stream == "img" and self.frames > 1 and block != "embedding":
                pooled = to_host(pool_frames(tokens, self.frames), self.copies)
                self.of_frames.append(((done.index, block, half.removeprefix(".")), tokens.shape[1], pooled))
            if self.store_tensors:
                self.keep(done, f"{block}.{stream}{half}", tokens.contiguous())
            if block != "embedding":
                done.streams.append((done.index, block, stream + half.replace(".", "@"), tokens))

    def guided(self, outputs: list[Any], step: Step) -> Tensor:
        """What the pipeline's guidance makes of the outputs of a step's calls."""
        return guide(self.aside, outputs, self.calls[0].answered.call.batch, step.timestep, self.guidance)

    def check_guidance(self, step: Step) -> None:
        """Refuse guidance whose prediction depends on more than the outputs of the step's calls."""
        made = self.guided([call.answered.output for call in self.calls], step)
        if (made.float() - step.velocity.float()).norm() > UNLIKE * step.velocity.float().norm():
            raise InputError(
                f"{self.model.name}: its guidance keeps a state from step to step (seen at step {step.index}), so that "
                "blocks cannot be read out under it; capture with `should_decode_intermediates: false`"
            )

    def stop(self) -> None:
        """Remove the hooks and wait for the last step's file."""
        for watch in getattr(self, "watches", {}).values():
            watch.stop()
        if hasattr(self, "writer"):
            super().stop()

    def metadata(self) -> dict[str, Any]:
        """What metadata.json says; of a pipeline with two transformers, which ran at each captured step."""
        own: dict[str, Any] = {"timesteps": self.timesteps, "parameterization": self.parameterization}
        own |= {"transformers": self.ran} if len(self.watches) > 1 else {}
        return super().metadata() | own | ({"latent_frames": self.frames} if self.frames > 1 else {})

    def frame_table(self) -> pl.DataFrame | None:
        """The statistics of each frame's image tokens; None of a picture."""
        names = list(self.model.family.blocks(self.model.pipe.transformer))
        return frames_table(self.of_frames, self.record, self.sigmas, names) if self.of_frames else None

    def text_length(self) -> int:
        """Tokens of the text stream of the first half; 0 where no block has one."""
        return self.text_tokens


def transformer_names(model: Generator) -> dict[nn.Module, str]:
    """The pipeline's name of each of its transformers."""
    return dict(zip(transformers_of(model.pipe), ("transformer", "transformer_2"), strict=False))


def check_alike(model: Generator) -> None:
    """Refuse a pipeline whose two transformers have not the same blocks."""
    if len(transformers := transformers_of(model.pipe)) == 1:
        return
    first, second = (list(blocks(transformer)) for transformer in transformers)
    if first != second:
        raise InputError(
            f"{model.name}: its two transformers have not the same blocks ({len(first)} and {len(second)}), so that "
            "steps of one cannot stand beside steps of the other; it can be generated with, and not captured"
        )


def token_frames(call: Call, tokens: int) -> int:
    """Latent frames that a call's image tokens are of, one frame after the other; 1 for a picture.

    By the axis of frames of the latents, which is the one after the channels (before them in CogVideoX), or by what the
    pipeline says of latents that are tokens already (LTX-Video); a transformer may take several frames as one.
    """
    given, config = call.latents, call.transformer.config
    given = given[0]  # one row of the batch
    if given.ndim == 4:
        frames = given.shape[0 if given.shape[0] != config.get("in_channels") == given.shape[1] else 1]
    else:
        frames = int(call.options.get("num_frames") or 1)
    patch = config.get("patch_size")
    together = config.get("patch_size_t") or (patch[0] if isinstance(patch, (list, tuple)) else 1)
    count = -(-frames // together)
    if tokens % count:
        log.warning("%d image tokens are not of %d frames alike; no statistics of frames", tokens, count)
        return 1
    return count


def places(calls: list[Watched], step: Step) -> list[tuple[int, slice]]:
    """The halves of guidance, conditional first: the call of each, and its rows."""
    batch = calls[0].answered.call.batch
    every = [
        (number, slice(begin, begin + batch))
        for number, call in enumerate(calls)
        for begin in range(0, call.answered.rows, batch)
    ]
    return [every[place] for place in cond_first([call.answered for call in calls], step)]


def parameterization(scheduler: Any) -> str:
    """What a scheduler takes the prediction for, one of PARAMETERIZATIONS; empty where its formula is not known.

    `flow` stands for x0 = x - sigma v, which holds for Euler's schedulers of noise predictions, too.
    """
    name, config = type(scheduler).__name__, scheduler.config
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if "FlowMatch" in name or flow:
        return "flow"
    told = str(config.get("prediction_type", ""))
    if name.startswith("Euler"):
        return "flow" if told == "epsilon" else ""
    known = keeps_variance(scheduler) or not hasattr(scheduler, "sigmas")
    return told if known and told in PARAMETERIZATIONS else ""
