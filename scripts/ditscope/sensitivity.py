"""Sensitivity: quantize one layer at a time and measure how far the velocity, after guidance, moves.

Exact mode runs only what follows the changed layer (ditscope.replay) and takes the bit widths as a batch.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ditscope.calibration_set import CalibrationSet, Reference, check_made_with, load_calibration, read_sample
from ditscope.errors import InputError
from ditscope.families.common import DTYPES, Conditioning
from ditscope.identity import file_digest
from ditscope.models import Generator, load_generator, require_blocks
from ditscope.partial import publish, unfinished
from ditscope.quantizers import QUANTIZERS, quantizable, shared_weights
from ditscope.replay import record, replaced, variants
from ditscope.sensitivity_table import assign_buckets, layer_kind, tabulate
from ditscope.settings import Model, Sensitivity
from ditscope.tables import concat_tables, write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One quantizable layer and its place in the network."""

    name: str
    module: nn.Module
    kind: str
    depth: int  # of its block; -1 before the first, their number after the last


@dataclass(frozen=True)
class Batch:
    """Calibration samples of one step, ready for the model."""

    bucket: str
    x: Tensor  # (batch, channels, height, width)
    sigma: Tensor  # scalar
    cond: Conditioning
    guidance: float

    def velocity(self, model: Generator, copies: int = 1) -> Tensor:
        """The guided velocity of `copies` copies of the batch, (copies * batch, channels, height, width)."""
        tensors = {key: t.repeat(copies, *[1] * (t.ndim - 1)) for key, t in vars(self.cond).items() if t is not None}
        x = self.x.repeat(copies, 1, 1, 1)
        return model.family.velocity(model.pipe, x, self.sigma, Conditioning(**tensors), self.guidance)


def sensitivity(
    name: str,
    model: Model,
    calibration: Path,
    out: Path,
    settings: Sensitivity = Sensitivity(),
    group: int = 0,
    groups: int = 1,
    partial: Path | None = None,
) -> None:
    """Score every layer of a model, or every `groups`-th block's from `group` on, at every bit width.

    Leaves the table `sensitivity`. Finished blocks in `partial` are reused. Raises InputError for a set of another
    model, or one that leaves a bucket without samples, before the model loads.
    """
    require_blocks("sensitivity", name, model)
    found = load_calibration(calibration, settings.max_images, settings.step_stride)
    check_made_with(calibration, found, name)
    buckets = assign_buckets(found, settings.buckets, calibration)
    key = {k: v for k, v in asdict(settings).items() if k not in ("models", "layer_groups")}
    key |= {"model": model, "manifest": found.manifest, "group": group, "groups": groups}
    key["samples"] = [file_digest(file) for file in dict.fromkeys(s.file for s in found.samples)]
    parts = unfinished(partial, out, key)
    loaded = load_generator(name, model)
    count = max(1, settings.batch_size // len(settings.bits))
    layers = network_layers(loaded, next(batches(loaded, found, buckets, 1)))
    depths = sorted({layer.depth for layer in layers})[group::groups]
    if not depths:
        raise InputError(f"sensitivity.layer_groups: {groups} groups are more than the blocks of {name}; use fewer")
    for depth in tqdm(depths, desc=f"{name} blocks", unit="block", disable=None):
        part = parts / f"{depth}.parquet"
        if not part.exists():
            samples = batches(loaded, found, buckets, count)
            write_table(score_block(loaded, layers, depth, samples, settings), part, "sensitivity")
        log.info("%s: layers at depth %d done", name, depth)
    write_table(concat_tables([parts / f"{d}.parquet" for d in depths], "sensitivity"), out, "sensitivity")
    publish(parts)


def batches(model: Generator, found: CalibrationSet, buckets: dict[Reference, str], size: int) -> Iterator[Batch]:
    """The samples of a set, step by step, in batches of at most `size` images."""
    for step in sorted({s.step_index for s in found.samples}):
        same = [s for s in found.samples if s.step_index == step]
        for rows in (same[i : i + size] for i in range(0, len(same), size)):
            samples = [read_sample(s) for s in rows]
            check_shapes(model, rows[0].file, samples)
            guidance = samples[0]["guidance"]
            if guidance is None:
                guidance = found.manifest.get("cfg_weight", model.entry.guidance)
            yield make_batch(model, samples, buckets[rows[0]], guidance)


def make_batch(model: Generator, samples: list[dict[str, Any]], bucket: str, guidance: float) -> Batch:
    """Samples of one step as the tensors that the family's `velocity` takes."""

    def tensor(key: str) -> Tensor:
        stacked = torch.stack([torch.from_numpy(s[key]) for s in samples], dim=1)
        return stacked.to(model.device, DTYPES[model.entry.dtype])

    embeds, pooled = tensor("conditioning"), tensor("pooled_conditioning")  # (1 or 2 halves, batch, ...)
    negative = (embeds[1], pooled[1]) if len(embeds) == 2 else ()
    return Batch(
        bucket,
        tensor("x")[0].permute(0, 3, 1, 2).contiguous(),
        torch.tensor(samples[0]["sigma"], dtype=torch.float32, device=model.device),
        Conditioning(embeds[0], pooled[0], *negative),
        guidance,
    )


def check_shapes(model: Generator, file: Path, samples: list[dict[str, Any]]) -> None:
    """Refuse samples whose latents the model cannot take, or of unlike conditioning or guidance."""
    channels = model.family.latent_shape(model.pipe, model.entry.width, model.entry.height)[0]
    if samples[0]["x"].shape[-1] != channels:
        raise InputError(
            f"{file}: latents of {samples[0]['x'].shape[-1]} channels, {model.name} has {channels}; calibrate it"
        )
    for key in ("x", "conditioning", "pooled_conditioning"):
        if len({s[key].shape for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` has another shape than in the same step of other images")
    for key in ("sigma", "guidance"):
        if len({s[key] for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` differs from the same step of other images; calibrate again")


@torch.no_grad()
def network_layers(model: Generator, batch: Batch) -> list[Layer]:
    """Every quantizable layer with its depth; the order of one pass tells what runs before and after the blocks."""
    blocks = list(model.family.blocks(model.pipe.transformer).values())
    layers = quantizable(model.pipe.transformer)
    _, order = record([*blocks, *layers.values()], [], len(batch.x), lambda: batch.velocity(model))
    inside = {module: depth for depth, block in enumerate(blocks) for module in block.modules()}
    found = []
    for name, module in layers.items():
        after = order.began.get(module, -1) > order.ended[blocks[-1]]
        depth = inside.get(module, len(blocks) if after else -1)
        found.append(Layer(name, module, layer_kind(name), depth))
    return sorted(found, key=lambda layer: layer.depth)


@torch.no_grad()
def score_block(
    model: Generator, layers: Sequence[Layer], depth: int, samples: Iterator[Batch], settings: Sensitivity
) -> pl.DataFrame:
    """Rows of the table `sensitivity` for the layers at one depth, every bit width and every bucket."""
    blocks = list(model.family.blocks(model.pipe.transformer).values())
    mine = [layer for layer in layers if layer.depth == depth]
    outside = [layer.module for layer in layers if layer.depth in (-1, len(blocks))]
    inside = [m for m in blocks[depth].modules() if m is not blocks[depth]] if 0 <= depth < len(blocks) else []
    modules = [*blocks, *outside, *inside]
    keep = [*outside, *inside, *blocks[max(depth - 1, 0) : max(depth, 0)]]
    rows = []
    for batch in samples:
        reference, recording = record(modules, keep, len(batch.x), lambda: batch.velocity(model))  # noqa: B023
        for layer in mine:
            for bits in chunks(settings.bits, settings.batch_size):
                copies = [quantized(layer.module, settings, b) for b in bits]
                forwards = recording.replay(layer.module, blocks, len(bits))
                with replaced(forwards | {layer.module: variants(copies, len(batch.x))}):
                    outputs = batch.velocity(model, len(bits)).chunk(len(bits))
                for width, output in zip(bits, outputs, strict=True):
                    rows += [
                        {"layer": layer.name, "bits": width, "bucket": batch.bucket} | s
                        for s in scores(reference, output)
                    ]
    constants = {"model": model.name, "quantizer": settings.quantizer, "group_size": settings.group_size}
    return tabulate(rows, [described(layer, settings) for layer in mine], constants)


def chunks(bits: list[int], size: int) -> list[list[int]]:
    """Bit widths in lists of at most `size`."""
    return [bits[i : i + size] for i in range(0, len(bits), size)]


def quantized(module: nn.Module, settings: Sensitivity, bits: int) -> nn.Module:
    """A copy of a layer whose weight went through the quantizer; the bias stays as it is."""
    changed = copy.deepcopy(module)
    changed.weight.data = QUANTIZERS[settings.quantizer](module.weight, bits, settings.group_size)
    return changed


def described(layer: Layer, settings: Sensitivity) -> dict[str, Any]:
    """What the table says of a layer besides its scores."""
    weight = layer.module.weight
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "depth": layer.depth,
        "module": type(layer.module).__name__.lower(),
        "shared_weights": shared_weights(weight, settings.quantizer, settings.group_size),
        "parameters": weight.numel(),
    }


# Metrics: functions of (batch, values) float64 reference and output, one number a sample -----------------------------


def psnr_db(reference: Tensor, output: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 20 log10((max|ref| + 1e-5) / (RMSE + 1e-10)); finite where they are equal."""
    rmse = (output - reference).square().mean(1).sqrt()
    return 20 * torch.log10((reference.abs().amax(1) + 1e-5) / (rmse + 1e-10))


def sqnr_db(reference: Tensor, output: Tensor) -> Tensor:
    """Signal-to-quantization-noise ratio, 20 log10(RMS(ref) / RMSE), both with 1e-10 added so that it stays finite."""
    rmse = (output - reference).square().mean(1).sqrt()
    return 20 * torch.log10((reference.square().mean(1).sqrt() + 1e-10) / (rmse + 1e-10))


def relative_l2(reference: Tensor, output: Tensor) -> Tensor:
    """Norm of the change over the norm of the reference."""
    return (output - reference).norm(dim=1) / reference.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)


METRICS = {"psnr_db": psnr_db, "sqnr_db": sqnr_db, "relative_l2": relative_l2}


def scores(reference: Tensor, output: Tensor) -> list[dict[str, float]]:
    """Every metric of every sample of a batch, computed in float64."""
    reference, output = reference.double().flatten(1), output.double().flatten(1)
    if not output.isfinite().all():
        raise FloatingPointError("a quantized layer left NaN or Inf in the velocity")
    values = {name: metric(reference, output).tolist() for name, metric in METRICS.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
