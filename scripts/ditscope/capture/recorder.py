"""Hooks on a generator's blocks: streams what they put out to files, with pooled statistics and read-outs."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from ditscope.capture.files import step_file
from ditscope.capture.load import layout_bytes, step_layout
from ditscope.capture.settings import CaptureSet
from ditscope.capture.statistics import (
    TOGETHER_BYTES,
    Arrays,
    Pooled,
    Stream,
    arrays,
    pool_streams,
    statistics_table,
    to_host,
)
from ditscope.core.identity import file_digest
from ditscope.core.patterns import block_type
from ditscope.core.tensor_files import save_tensors
from ditscope.models.families.common import DTYPES, Conditioning, combine
from ditscope.models.loading import Generator
from ditscope.models.sampling import Observer, Step


@dataclass(eq=False)
class Captured:
    """What one step has put out so far; on a GPU the copies to the host may still be under way."""

    index: int
    latents: Tensor  # (batch, channels, height, width), on the model's device
    temb: Tensor = field(init=False)  # (rows, width), on the model's device
    tensors: dict[str, Tensor] = field(default_factory=dict)  # in host memory, by their names in the file
    streams: list[Stream] = field(default_factory=list)  # not yet pooled
    pooled: list[Pooled] = field(default_factory=list)


class Recorder(Observer):
    """Hooks a model's blocks; a thread writes what they put out in one step while the model computes the next.

    At most two steps are in memory, the one that is written and the one that is computed.
    """

    one_pass = True

    def __init__(
        self,
        intermediates: Path,
        blocks: Sequence[str],
        steps: Sequence[int],
        settings: CaptureSet,
        record: dict,
        admit: Callable[[int], None] = lambda step_bytes: None,
    ) -> None:
        """`admit` is told the bytes of a captured step before the first one is written, and may raise."""
        self.intermediates, self.blocks, self.steps = intermediates, blocks, frozenset(steps)
        self.store_tensors = settings.store == "tensors"
        self.predict = settings.should_decode_intermediates
        self.record, self.admit = record, admit
        self.step: Captured | None = None  # none while a step is not captured
        self.writing: Future[None] | None = None
        self.pooled: list[Arrays] = []
        self.files: dict[str, dict] = {}

    def layout(self, model: Generator, latents: Sequence[int], cond: Conditioning) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of one captured step, for latents of that shape."""
        transformer = model.pipe.transformer
        every = model.family.blocks(transformer)
        return step_layout(
            transformer,
            {name: block for name, block in every.items() if name in self.blocks},
            latents,
            cond.embeds.shape[1],
            branches=1 if cond.negative_embeds is None else 2,
            store_tensors=self.store_tensors,
            predictions=self.predict,
            embedding=next(iter(every)) in self.blocks,
        )

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Register the hooks: the blocks, and the embedding of time and text that the last norm needs."""
        self.begin(model, sigmas, guidance)
        self.cond = cond
        transformer = model.pipe.transformer
        every = model.family.blocks(transformer)
        self.handles = [transformer.time_text_embed.register_forward_hook(self.keep_temb)]
        first = next(iter(every))
        if self.store_tensors and first in self.blocks:
            self.handles.append(every[first].register_forward_pre_hook(self.keep_embedding, with_kwargs=True))
        for name, block in every.items():
            if name in self.blocks:
                self.handles.append(block.register_forward_hook(self.block_hook(name)))

    def begin(self, model: Generator, sigmas: Tensor, guidance: float) -> None:
        """Begin a run."""
        self.model, self.guidance, self.sigmas = model, guidance, sigmas.tolist()
        self.copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        self.writer = ThreadPoolExecutor(1, "capture writer")

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step: `x` are the latents that the model is about to see."""
        self.step = Captured(index, x) if index in self.steps else None
        if index == 0:
            self.admit(layout_bytes(self.layout(self.model, x.shape, self.cond), DTYPES[self.model.entry.dtype]))

    def cond_first(self, t: Tensor) -> Tensor:
        """What the transformer computed, its halves as captures have them: diffusers puts the negative one first."""
        return t if self.cond.negative_embeds is None else torch.cat(t.chunk(2)[::-1])

    def keep(self, step: Captured, name: str, tensor: Tensor) -> None:
        """Copy a tensor of a step to the host."""
        step.tensors[name] = to_host(tensor, self.copies)

    def keep_temb(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the modulation vector of this step."""
        if self.step:
            self.step.temb = self.cond_first(output)

    def keep_embedding(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Keep the tokens that the first block is given."""
        if self.step:
            self.keep(self.step, "embedding.img", self.cond_first(named["hidden_states"]))
            self.keep(self.step, "embedding.txt", self.cond_first(named["encoder_hidden_states"]))

    def block_hook(self, name: str) -> Any:
        """A forward hook that keeps the output of the block `name`."""
        single = block_type(name) == "single"

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not (step := self.step):
                return
            image, text = self.model.family.block_streams(output)
            streams = {"img": image} if text is None else {"txt": text, "img": image}
            streams = {stream: self.cond_first(tokens) for stream, tokens in streams.items()}
            if self.store_tensors and single:
                self.keep(step, name, torch.cat([*streams.values()], dim=1))
            elif self.store_tensors:
                for stream, tokens in streams.items():
                    self.keep(step, f"{name}.{stream}", tokens)
            if self.predict:
                self.keep(step, f"{name}.prediction", self.prediction(step, streams["img"]))
            step.streams += [(step.index, name, stream, tokens) for stream, tokens in streams.items()]
            if sum(tokens.nbytes for *_, tokens in step.streams) >= TOGETHER_BYTES:
                self.pool(step)

        return hook

    def prediction(self, step: Captured, image: Tensor) -> Tensor:
        """The velocity that the model would predict from these image tokens, after guidance, in the latents' shape."""
        out = self.model.family.project(self.model.pipe.transformer, image, step.temb, step.latents)
        return combine(out, step.latents.shape[0], self.guidance)

    def pool(self, step: Captured) -> None:
        """Take the statistics of what came, on the thread that samples: it has the device, or OpenMP's threads."""
        step.pooled += pool_streams(step.streams, self.copies)
        step.streams = []

    def after(self, step: Step) -> None:
        """Hand the step to the thread that writes, once it has written the one before."""
        if not (done := self.step):
            return
        self.step = None
        last = {"latents": step.x, "velocity": step.velocity, "pooled": self.cond.stacked()[1], "temb": done.temb}
        for name, tensor in last.items():
            self.keep(done, f"context.{name}", tensor)
        self.hand_over(done)

    def hand_over(self, done: Captured) -> None:
        """Hand a step to the thread that writes, once it has written the one before."""
        self.pool(done)
        copied = self.copies and self.copies.record_event(torch.cuda.Event(blocking=True))  # sleeps, does not spin
        if self.writing:
            self.writing.result()
        self.writing = self.writer.submit(self.store, done, copied)

    def store(self, step: Captured, copied: torch.cuda.Event | None) -> None:
        """Write a step's file and keep its statistics, once the copies have come."""
        if copied:
            copied.synchronize()
        self.pooled += [arrays(pooled, self.model.name) for pooled in step.pooled]
        path = self.intermediates / step_file(step.index)
        save_tensors(step.tensors, path)
        self.files[path.name] = {"sha256": file_digest(path, 256), "bytes": path.stat().st_size}

    def stop(self) -> None:
        """Remove the hooks and wait for the last step's file; raises what went wrong in writing one."""
        for handle in self.handles:
            handle.remove()
        self.writer.shutdown()
        if self.writing:
            self.writing.result()

    def table(self) -> pl.DataFrame:
        """The pooled statistics of every captured block and step."""
        depths = {name: i for i, name in enumerate(self.model.family.blocks(self.model.pipe.transformer))}
        return statistics_table(self.pooled, self.record, self.sigmas, depths)

    def frame_table(self) -> pl.DataFrame | None:
        """The statistics of each frame's image tokens; None of a picture."""
        return None

    def metadata(self) -> dict[str, Any]:
        """What metadata.json says: the request, the schedule, the blocks and the files."""
        return self.record | {
            "num_steps": len(self.sigmas) - 1,
            "guidance": self.guidance,
            "sigmas": self.sigmas,
            "timesteps": [1000 * sigma for sigma in self.sigmas[:-1]],
            "captured_steps": sorted(self.steps),
            "captured_blocks": list(self.blocks),
            "store": "tensors" if self.store_tensors else "statistics",
            "txt_seq_len": self.text_length(),
            "files": self.files,
        }

    def text_length(self) -> int:
        """Tokens of the text."""
        return int(self.cond.embeds.shape[1])
