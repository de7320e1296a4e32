"""Hooks on a generator's blocks: streams what they put out to files, with pooled statistics and read-outs."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ditscope.capture_files import estimate_step_bytes, write_step
from ditscope.capture_layout import step_file
from ditscope.families.common import Conditioning, combine
from ditscope.models import Generator
from ditscope.patterns import block_index, block_type
from ditscope.sampling import Observer, Step
from ditscope.settings import CaptureSet

STATISTICS = ("mean", "std", "rms", "absmax", "mean_token_norm")


class Recorder(Observer):
    """Hooks a model's blocks and writes each captured step as the step ends, so that memory holds one step."""

    def __init__(
        self, intermediates: Path, blocks: Sequence[str], steps: Sequence[int], settings: CaptureSet, record: dict
    ) -> None:
        self.intermediates, self.blocks, self.steps = intermediates, blocks, frozenset(steps)
        self.store_tensors = settings.store == "tensors"
        self.predict = settings.should_decode_intermediates
        self.record = record
        self.handles: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self.pooled: list[tuple[dict, Tensor]] = []
        self.rows: list[dict] = []
        self.files: dict[str, dict] = {}
        self.txt_seq_len = 0
        self.bar: tqdm | None = None

    def step_bytes(self, model: Generator, noise: Tensor, cond: Conditioning) -> int:
        """Bytes of one captured step."""
        transformer = model.pipe.transformer
        chosen = {name: block for name, block in model.family.blocks(transformer).items() if name in self.blocks}
        return estimate_step_bytes(
            transformer,
            chosen,
            noise.shape,
            cond.embeds.shape[1],
            branches=1 if cond.negative_embeds is None else 2,
            store_tensors=self.store_tensors,
            predictions=self.predict,
        )

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Register the hooks: the blocks, and the embedding of time and text that the last norm needs."""
        self.model, self.cond, self.guidance = model, cond, guidance
        self.sigmas = sigmas.tolist()
        self.txt_seq_len = cond.embeds.shape[1]
        transformer = model.pipe.transformer
        self.depth = {name: depth for depth, name in enumerate(model.family.blocks(transformer))}
        self.handles = [transformer.time_text_embed.register_forward_hook(self.keep_temb)]
        for name, block in model.family.blocks(transformer).items():
            if name in self.blocks:
                self.handles.append(block.register_forward_hook(self.block_hook(name)))
        self.bar = tqdm(total=len(self.sigmas) - 1, desc="denoising", unit="step", disable=None)

    def before(self, index: int, x: Tensor) -> None:
        """Begin a step: `x` are the latents that the model is about to see."""
        self.active, self.latents = index in self.steps, x

    def keep_temb(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the modulation vector of this step."""
        self.temb = output

    def block_hook(self, name: str) -> Any:
        """A forward hook that keeps the output of the block `name`."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.active:
                return
            image, text = self.model.family.block_streams(output)
            for stream, tokens in (("img", image), ("txt", text)):
                if tokens is not None:
                    self.pooled.append(({"block": name, "stream": stream, "tokens": tokens.shape[1]}, pool(tokens)))
            if self.store_tensors and block_type(name) == "single":
                self.tensors[name] = torch.cat([text, image], dim=1).cpu()
            elif self.store_tensors:
                self.tensors |= {f"{name}.{s}": t.cpu() for s, t in (("img", image), ("txt", text)) if t is not None}
            if self.predict:
                self.tensors[f"{name}.prediction"] = self.prediction(image).cpu()

        return hook

    def prediction(self, image: Tensor) -> Tensor:
        """The velocity that the model would predict from these image tokens, after guidance, in the latents' shape."""
        out = self.model.family.project(self.model.pipe.transformer, image, self.temb, self.latents)
        return combine(out, self.latents.shape[0], self.guidance)

    def after(self, step: Step) -> None:
        """Write the step's file and turn its pooled statistics into rows."""
        if self.bar is not None:
            self.bar.update()
        if not self.active:
            return
        self.tensors |= {
            "context.latents": step.x.cpu(),
            "context.velocity": step.velocity.cpu(),
            "context.pooled": self.cond.stacked()[1].cpu(),
            "context.temb": self.temb.cpu(),
        }
        for where, values in self.pooled:
            self.rows += list(self.statistics_rows(step, where, values.tolist()))
        name = step_file(step.index)
        self.files[name] = write_step(self.tensors, self.intermediates / name)
        self.tensors, self.pooled = {}, []

    def statistics_rows(self, step: Step, where: dict, values: list[list[float]]) -> Iterator[dict]:
        """One row for each half of the batch; stops the run where a block put out NaN or Inf."""
        for half, numbers in zip(("cond", "uncond"), values, strict=False):
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
            } | row

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        if self.bar is not None:
            self.bar.close()

    def table(self) -> pl.DataFrame:
        """The pooled statistics of every captured block and step."""
        return pl.DataFrame(self.rows).sort("step", "depth", "stream", "half")

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


def pool(tokens: Tensor) -> Tensor:
    """STATISTICS of tokens (batch, tokens, width) for each batch entry, in float32: (batch, 5)."""
    tokens = tokens.float()
    flat = tokens.flatten(1)
    rms = flat.square().mean(1).sqrt()
    norm = tokens.norm(dim=2).mean(1)
    return torch.stack([flat.mean(1), flat.std(1, correction=0), rms, flat.abs().amax(1), norm], dim=1)
