"""Recording any transformer: its blocks and their streams are found, and its own tail and guidance read them out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditscope.capture.recorder import Captured, Recorder
from ditscope.core.errors import InputError
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator
from ditscope.models.readout import Answered, BlockWatch, aside, cond_first, guide, read_outs
from ditscope.models.sampling import Call, Step, keeps_variance, transformers_of

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
    watch: BlockWatch | None = None

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Hook every block of the transformer."""
        self.handles: list[Any] = []
        check_one_transformer(model)
        self.begin(model, sigmas, guidance)
        self.aside = aside(model)
        self.parameterization = parameterization(model.pipe.scheduler)
        if self.predict and not self.parameterization:
            raise InputError(
                f"{model.name}: the clean estimate of {type(model.pipe.scheduler).__name__} is not known; capture with "
                "`should_decode_intermediates: false`, or take a scheduler of flow matching, Euler or DDIM"
            )
        self.watch = BlockWatch(model.name, model.pipe.transformer)
        self.calls: list[Watched] = []
        self.timesteps: list[float] = []
        self.text_tokens = 0

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step."""
        self.step = Captured(index, x) if index in self.steps else None
        self.calls = []

    def called(self, call: Call) -> None:
        """Watch the blocks of a captured step's call."""
        if self.step and self.watch:
            self.watch.begin(call)

    def answered(self, call: Call, output: Any) -> None:
        """Part what the blocks put out, and read each of them out while the call is at hand."""
        if not (self.step and self.watch):
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
        for half, tokens in parts.items():
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
        if self.watch:
            self.watch.stop()
        if hasattr(self, "writer"):
            super().stop()

    def metadata(self) -> dict[str, Any]:
        """What metadata.json says."""
        own = {"timesteps": self.timesteps, "parameterization": self.parameterization}
        return super().metadata() | own

    def text_length(self) -> int:
        """Tokens of the text stream of the first half; 0 where no block has one."""
        return self.text_tokens


def check_one_transformer(model: Generator) -> None:
    """Refuse a pipeline that denoises with two transformers."""
    if len(transformers_of(model.pipe)) > 1:
        raise InputError(
            f"{model.name}: {type(model.pipe).__name__} denoises with two transformers (`transformer`, "
            "`transformer_2`); it can be generated with, but captures, calibration and sensitivity take one"
        )


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
