"""Hooks on a generator's blocks: streams what they put out to files, with pooled statistics and read-outs."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ditscope.capture_files import step_layout
from ditscope.capture_layout import step_file
from ditscope.capture_writer import Background, StepFile, layout_bytes, to_host
from ditscope.families.common import Conditioning, combine
from ditscope.models import Generator
from ditscope.patterns import block_index, block_type
from ditscope.sampling import Observer, Step
from ditscope.settings import CaptureSet

STATISTICS = ("mean", "std", "rms", "absmax", "mean_token_norm")


class Recorder(Observer):
    """Hooks a model's blocks and hands what they put out to a thread that writes it; at most one step waits for it."""

    def __init__(
        self, intermediates: Path, blocks: Sequence[str], steps: Sequence[int], settings: CaptureSet, record: dict
    ) -> None:
        self.intermediates, self.blocks, self.steps = intermediates, blocks, frozenset(steps)
        self.store_tensors = settings.store == "tensors"
        self.predict = settings.should_decode_intermediates
        self.record = record
        self.handles: list[Any] = []
        self.pooled: list[tuple[dict, Tensor, Tensor]] = []
        self.rows: list[dict] = []
        self.files: dict[str, dict] = {}
        self.txt_seq_len = 0
        self.active = False
        self.file: StepFile | None = None
        self.writer: Background | None = None
        self.bar: tqdm | None = None

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

    def step_bytes(self, model: Generator, noise: Tensor, cond: Conditioning) -> int:
        """Bytes of one captured step."""
        return layout_bytes(self.layout(model, noise.shape, cond), model.pipe.transformer.dtype)

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Register the hooks: the blocks, and the embedding of time and text that the last norm needs."""
        self.model, self.cond, self.guidance = model, cond, guidance
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
        self.bar = tqdm(total=len(self.sigmas) - 1, desc="denoising", unit="step", disable=None)

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step: `x` are the latents that the model is about to see."""
        self.active, self.latents = index in self.steps, x
        if self.active:
            layout, dtype = self.layout(self.model, x.shape, self.cond), self.model.pipe.transformer.dtype
            self.file = StepFile(self.intermediates / step_file(index), layout, dtype)
            self.writer = self.writer or Background(limit=layout_bytes(layout, dtype))

    def keep_temb(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the modulation vector of this step."""
        self.temb = output

    def keep_embedding(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Keep the tokens that the first block is given."""
        if self.active:
            self.write("embedding.img", named["hidden_states"])
            self.write("embedding.txt", named["encoder_hidden_states"])

    def block_hook(self, name: str) -> Any:
        """A forward hook that keeps the output of the block `name`."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.active:
                return
            image, text = self.model.family.block_streams(output)
            streams = {stream: t for stream, t in (("img", image), ("txt", text)) if t is not None}
            for stream, tokens in streams.items():
                self.pooled.append(({"block": name, "stream": stream, "tokens": tokens.shape[1]}, *pool(tokens)))
            if self.store_tensors and block_type(name) == "single":
                self.write(name, torch.cat([text, image], dim=1))
            elif self.store_tensors:
                for stream, tokens in streams.items():
                    self.write(f"{name}.{stream}", tokens)
            if self.predict:
                self.write(f"{name}.prediction", self.prediction(image))

        return hook

    def write(self, name: str, tensor: Tensor) -> None:
        """Hand a tensor of this step to the thread that writes; waits while a whole step waits there."""
        assert self.writer and self.file
        host, copied = to_host(tensor, self.stream)
        self.writer.submit(host.nbytes, self.file.write, name, host, copied)

    def prediction(self, image: Tensor) -> Tensor:
        """The velocity that the model would predict from these image tokens, after guidance, in the latents' shape."""
        out = self.model.family.project(self.model.pipe.transformer, image, self.temb, self.latents)
        return combine(out, self.latents.shape[0], self.guidance)

    def after(self, step: Step) -> None:
        """End the step's file and turn its pooled statistics into rows."""
        if self.bar is not None:
            self.bar.update()
        if not self.active:
            return
        self.write("context.latents", step.x)
        self.write("context.velocity", step.velocity)
        self.write("context.pooled", self.cond.stacked()[1])
        self.write("context.temb", self.temb)
        assert self.writer and self.file
        self.writer.submit(0, self.finish, self.file)
        for where, values, norms in self.pooled:
            self.rows += list(self.statistics_rows(step, where, values.tolist(), norms.cpu()))
        self.pooled = []

    def finish(self, file: StepFile) -> None:
        """Give a step's file its name (on the thread that writes)."""
        self.files[file.path.name] = file.finish()

    def statistics_rows(self, step: Step, where: dict, values: list[list[float]], norms: Tensor) -> Iterator[dict]:
        """One row for each half of the batch; stops the run where a block put out NaN or Inf."""
        for half, numbers, token_norms in zip(("cond", "uncond"), values, norms, strict=False):
            row = dict(zip(STATISTICS, numbers, strict=True))
            if not all(map(math.isfinite, numbers)):
                raise FloatingPointError(f"{self.model.name}: {where['block']} put out NaN or Inf at step {step.index}")
            name = where["block"]
            yield {
                "generation_id": self.record["generation_id"],
                "prompt_id": self.record["prompt_id"],
                "model": self.record["model"],
                "step": step.index,
                "sigma": self.sigmas[step.index],
                "block": name,
                "block_type": block_type(name),
                "block_index": block_index(name),
                "depth": self.depth[name],
                "stream": where["stream"],
                "half": half,
                "tokens": where["tokens"],
                "token_norms": token_norms.numpy(),
            } | row

    def stop(self) -> None:
        """Remove the hooks and wait until every step is on the disk; raises what went wrong in writing it."""
        for handle in self.handles:
            handle.remove()
        if self.bar is not None:
            self.bar.close()
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if self.file is not None:
                self.file.abandon()

    def table(self) -> pl.DataFrame:
        """The pooled statistics of every captured block and step."""
        names = [name for name in self.rows[0] if name != "token_norms"]
        norms = pl.Series("token_norms", [row["token_norms"] for row in self.rows], pl.List(pl.Float32))
        plain = pl.DataFrame([{name: row[name] for name in names} for row in self.rows])
        return plain.with_columns(norms).sort("step", "depth", "stream", "half")

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


def pool(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """STATISTICS of tokens (batch, tokens, width), as (batch, 5), and the norm of each token, as (batch, tokens).

    In float32; std divides by n.
    """
    tokens = tokens.float()
    flat, norms = tokens.flatten(1), torch.linalg.vector_norm(tokens, dim=2)
    rms = torch.linalg.vector_norm(norms, dim=1) / flat.shape[1] ** 0.5
    low, high = flat.aminmax(dim=1)
    columns = [flat.mean(1), flat.std(1, correction=0), rms, torch.maximum(-low, high), norms.mean(1)]
    return torch.stack(columns, dim=1), norms
