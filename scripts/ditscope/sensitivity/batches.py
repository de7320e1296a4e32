"""Calibration samples as batches that a generator takes: one step of several images each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditscope.calibrate.files import CalibrationSet, Reference, check_fits, guidance_of, read_sample
from ditscope.core.errors import InputError
from ditscope.models.families.common import DTYPES, Conditioning
from ditscope.models.loading import Generator
from ditscope.models.sampling import predict


@dataclass(frozen=True)
class Batch:
    """Calibration samples of one step, ready for the model."""

    references: tuple[Reference, ...]
    bucket: str
    x: Tensor  # (batch, channels, height, width)
    sigma: Tensor  # scalar
    cond: Conditioning
    guidance: float

    def repeated(self, copies: int) -> "Batch":
        """`copies` copies of the batch as one: (copies * batch) samples."""
        tensors = {key: t.repeat(copies, *[1] * (t.ndim - 1)) for key, t in vars(self.cond).items() if t is not None}
        x = self.x.repeat(copies, 1, 1, 1)
        return replace(self, references=self.references * copies, x=x, cond=Conditioning(**tensors))

    def at(self, x: Tensor) -> "Batch":
        """The same step from other latents `x`."""
        return replace(self, x=x)

    def velocity(self, model: Generator, copies: int = 1) -> Tensor:
        """The guided velocity of `copies` copies of the batch, (copies * batch, channels, height, width)."""
        if copies > 1:
            return self.repeated(copies).velocity(model)
        return predict(model, self.x, self.sigma, self.cond, self.guidance)


def batches(
    model: Generator,
    calibration: CalibrationSet,
    buckets: dict[Reference, str],
    size: int,
    chosen: Sequence[Reference] | None = None,
) -> Iterator[Batch]:
    """The samples of a set, or the `chosen` ones, step by step, in batches of at most `size` images."""
    kept = calibration.samples if chosen is None else chosen
    for step in sorted({s.step_index for s in kept}):
        same = sorted((s for s in kept if s.step_index == step), key=lambda s: s.image)
        for rows in (same[i : i + size] for i in range(0, len(same), size)):
            samples = [read_sample(s) for s in rows]
            check_shapes(model, rows[0].file, samples)
            embedded = bool(getattr(model.pipe.transformer.config, "guidance_embeds", False))
            guidance = guidance_of(calibration, samples[0], rows[0].file, embedded)
            yield make_batch(model, samples, rows, buckets[rows[0]], guidance)


def make_batch(
    model: Generator, samples: list[dict[str, Any]], references: Sequence[Reference], bucket: str, guidance: float
) -> Batch:
    """Samples of one step as the tensors that `predict` takes."""

    def tensor(key: str) -> Tensor:
        stacked = torch.stack([torch.from_numpy(s[key]) for s in samples], dim=1)
        return stacked.to(model.device, DTYPES[model.entry.dtype])

    embeds, pooled = tensor("conditioning"), tensor("pooled_conditioning")  # (1 or 2 halves, batch, ...)
    negative = (embeds[1], pooled[1]) if len(embeds) == 2 else ()
    return Batch(
        tuple(references),
        bucket,
        tensor("x")[0].permute(0, 3, 1, 2).contiguous(),
        torch.tensor(samples[0]["sigma"], dtype=torch.float32, device=model.device),
        Conditioning(embeds[0], pooled[0], *negative),
        guidance,
    )


def check_shapes(model: Generator, file: Path, samples: list[dict[str, Any]]) -> None:
    """Refuse samples that the model cannot take, or of unlike conditioning, noise level or guidance."""
    check_fits(samples[0], file, model.name, dict(model.pipe.transformer.config))
    for key in ("x", "conditioning", "pooled_conditioning"):
        if len({s[key].shape for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` has another shape than in the same step of other images")
    for key in ("sigma", "guidance"):
        if len({s[key] for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` differs from the same step of other images; calibrate again")
