"""Hooks on a generator's blocks: streams what they put out to files, with pooled statistics and read-outs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from ditscope.capture.files import step_file
from ditscope.capture.load import step_layout
from ditscope.capture.settings import CaptureSet
from ditscope.capture.statistics import Arrays, Pooled, Stream, arrays, pool_streams, statistics_table
from ditscope.capture.writer import Background, StepFile, flush, join, layout_bytes, to_host
from ditscope.core.patterns import block_type
from ditscope.models.families.common import DTYPES, Conditioning, combine
from ditscope.models.registry import Generator
from ditscope.models.sampling import Observer, Step

CHUNK_BYTES = 8_000_000  # less is handed over together, small steps too: waking a thread costs more than writing it
Chunk = dict[int, dict[str, tuple[Tensor, Any]]]  # tensors of each step, each with the event of its copy
FLUSH_BYTES = 64_000_000  # small files are flushed together: each flush waits for the disk


class Recorder(Observer):
    """Hooks a model's blocks and hands what they put out to a thread that writes it while the model computes on.

    At most one step waits for it, or CHUNK_BYTES where steps are smaller. What is left when sampling ends is written at
    once: nothing is computed then that a thread would leave time for.
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
        self.admit = admit
        self.intermediates, self.blocks, self.steps = intermediates, blocks, frozenset(steps)
        self.store_tensors = settings.store == "tensors"
        self.predict = settings.should_decode_intermediates
        self.record = record
        self.handles: list[Any] = []
        self.chunk: Chunk = {}
        self.ended: list[int] = []
        self.streams: list[Stream] = []
        self.waiting = 0  # bytes that chunk and streams keep alive
        self.pooled: list[Arrays] = []
        self.begun: dict[int, StepFile] = {}
        self.unflushed: list[Path] = []
        self.files: dict[str, dict] = {}
        self.txt_seq_len = 0
        self.active = self.complete = False
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.writer: Background | None = None

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
        self.model, self.cond, self.guidance = model, cond, guidance
        _, self.pooled_text = cond.stacked()
        self.sigmas = sigmas.tolist()
        self.txt_seq_len = cond.embeds.shape[1]
        self.stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        transformer = model.pipe.transformer
        every = model.family.blocks(transformer)
        self.depth = {name: depth for depth, name in enumerate(every)}
        self.handles = [transformer.time_text_embed.register_forward_hook(self.keep_temb)]
        first = next(iter(every))
        if self.store_tensors and first in self.blocks:
            self.handles.append(every[first].register_forward_pre_hook(self.keep_embedding, with_kwargs=True))
        for name, block in every.items():
            if name in self.blocks:
                self.handles.append(block.register_forward_hook(self.block_hook(name)))

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step: `x` are the latents that the model is about to see."""
        self.active, self.index, self.latents = index in self.steps, index, x
        if not self.shapes:
            self.shapes, self.dtype = self.layout(self.model, x.shape, self.cond), DTYPES[self.model.entry.dtype]
            self.admit(layout_bytes(self.shapes, self.dtype))

    def cond_first(self, t: Tensor) -> Tensor:
        """What the transformer computed, its halves as captures have them: diffusers puts the negative one first."""
        return t if self.cond.negative_embeds is None else torch.cat(t.chunk(2)[::-1])

    def keep_temb(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the modulation vector of this step."""
        self.temb = self.cond_first(output)

    def keep_embedding(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Keep the tokens that the first block is given."""
        if self.active:
            self.write("embedding.img", self.cond_first(named["hidden_states"]))
            self.write("embedding.txt", self.cond_first(named["encoder_hidden_states"]))

    def block_hook(self, name: str) -> Any:
        """A forward hook that keeps the output of the block `name`."""
        single = block_type(name) == "single"

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.active:
                return
            image, text = self.model.family.block_streams(output)
            image = self.cond_first(image)
            text = text if text is None else self.cond_first(text)
            if self.store_tensors and single and text is not None:
                joined, length = join(text, image), text.shape[1]
                self.write(name, joined)
                streams = {"img": joined[:, length:], "txt": joined[:, :length]}  # views: the originals can go
            else:
                streams = {stream: t for stream, t in (("img", image), ("txt", text)) if t is not None}
            for stream, tokens in streams.items():
                if self.store_tensors and not single:
                    self.write(f"{name}.{stream}", tokens)
                elif not self.store_tensors:
                    self.waiting += tokens.nbytes
                self.streams.append((self.index, name, stream, tokens))
            if self.predict:
                self.write(f"{name}.prediction", self.prediction(image))
            self.hand_over()

        return hook

    def write(self, name: str, tensor: Tensor) -> None:
        """Take a tensor of this step into the chunk that is handed over next."""
        self.chunk.setdefault(self.index, {})[name] = to_host(tensor, self.stream)
        self.waiting += tensor.nbytes

    def hand_over(self) -> None:
        """Hand what has come to the thread that writes, once it is CHUNK_BYTES; waits while it has a whole step.

        Statistics are made here, on the thread that samples, where OpenMP has its threads.
        """
        if self.waiting < CHUNK_BYTES:
            return
        self.writer = self.writer or Background(limit=max(CHUNK_BYTES, layout_bytes(self.shapes, self.dtype)))
        self.writer.submit(self.waiting, self.store, self.chunk, self.ended, pool_streams(self.streams, self.stream))
        self.chunk, self.ended, self.streams, self.waiting = {}, [], [], 0

    def prediction(self, image: Tensor) -> Tensor:
        """The velocity that the model would predict from these image tokens, after guidance, in the latents' shape."""
        out = self.model.family.project(self.model.pipe.transformer, image, self.temb, self.latents)
        return combine(out, self.latents.shape[0], self.guidance)

    def after(self, step: Step) -> None:
        """End the step's file."""
        if not self.active:
            return
        self.write("context.latents", step.x)
        self.write("context.velocity", step.velocity)
        self.write("context.pooled", self.pooled_text)
        self.write("context.temb", self.temb)
        self.ended.append(step.index)
        self.complete = step.index == max(self.steps)
        if not self.complete:
            self.hand_over()

    def store(self, chunk: Chunk, ended: Sequence[int], pooled: Sequence[Pooled]) -> None:
        """Write a chunk, name the files that it ends, take down its statistics."""
        self.pooled += [arrays(found, self.model.name) for found in pooled]
        for step, tensors in chunk.items():
            if step not in self.begun:
                self.begun[step] = StepFile(self.intermediates / step_file(step), self.shapes, self.dtype)
            self.begun[step].write(tensors)
        for step in ended:
            file = self.begun[step]
            self.files[file.path.name] = file.finish()
            self.unflushed.append(file.path)
        if sum(self.files[path.name]["bytes"] for path in self.unflushed) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put what is written on the disk."""
        while self.unflushed:
            flush(self.unflushed.pop())

    def stop(self) -> None:
        """Remove the hooks and put every step on the disk; raises what went wrong in writing it."""
        for handle in self.handles:
            handle.remove()
        try:
            if self.writer is not None:
                self.writer.close()
            if self.complete:
                self.store(self.chunk, self.ended, pool_streams(self.streams, self.stream))
                self.flush()
        finally:
            for file in self.begun.values():  # left where sampling or writing failed
                file.abandon()

    def table(self) -> pl.DataFrame:
        """The pooled statistics of every captured block and step."""
        return statistics_table(self.pooled, self.record, self.sigmas, self.depth)

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
            "txt_seq_len": self.txt_seq_len,
            "files": self.files,
        }
