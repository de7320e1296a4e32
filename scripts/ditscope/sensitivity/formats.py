"""Sensitivity by format: what each scheme does to the finished image when it has one layer, by part of the schedule.

A format is an entry of the config's `schemes`, with activations or without: a layer's change is what its quantized copy
makes of the layer's input, less what the layer makes of it. Effects are estimated as `ditscope.sensitivity.image` does,
from gradients of random probes. To first order the change of an image is linear in what the layer does in each part of
the schedule, so its mean square under any choice of a format for each part is a sum of second moments: of the effects
of (format, piece of the schedule) with those of every other (format, piece). These are what the table holds.
"""

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torchao.quantization import FqnToConfig, quantize_

from ditscope.calibrate.files import CalibrationSet, Reference, check_made_with, load_calibration, records_calls
from ditscope.core.determinism import deterministic
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.paths import InputFolder, OutputFile
from ditscope.core.tables import write_table
from ditscope.models.families.common import DTYPES
from ditscope.models.hardware import hardware_id
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantize import coverage, kind_of, unsupported, weight_bytes
from ditscope.models.registry import require_blocks
from ditscope.models.schedule_parts import PIECES, piece_of_step
from ditscope.models.settings import Model, Scheme, calibration_of
from ditscope.sensitivity.back_ends import back_end
from ditscope.sensitivity.exact import Layer
from ditscope.sensitivity.fast import Change, Changes, probe
from ditscope.sensitivity.gradient_memory import gradient_batch
from ditscope.sensitivity.image import image_probes
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import samples_of
from ditscope.sensitivity.tables import FORMATS, FORMATS_TIMING, IMAGE_METRIC

SAME = 1e-5  # relative difference of two ways to compute a layer in float32
log = logging.getLogger(__name__)

TIMED = 20  # turns of each layer in each format
Moments = dict[nn.Module, np.ndarray]  # of a layer, (formats x pieces, formats x pieces)


def sensitivity_formats(
    name: str,
    model: Model,
    calibration: InputFolder,
    out: OutputFile,
    schemes: dict[str, Scheme],
    formats: list[str],
    settings: Sensitivity = Sensitivity(),
    timing: OutputFile | None = None,
) -> None:
    """Measure every linear layer of a model in every format: entries of `schemes` that this machine can run.

    Leaves the table `sensitivity.formats` and, in `timing`, the measured time of each layer in each format. A layer
    that a format cannot take, or that its filters leave, has no rows of it. Raises InputError, before the model loads,
    for a set of another model and formats that are none.
    """
    require_blocks("sensitivity", name, model, ("torch",))
    chosen = known_formats(formats, schemes)
    calibrated = load_calibration(calibration, settings.max_images)
    check_made_with(calibration, calibrated, name)
    pieces = {r: piece_of_step(r.step_index, calibrated.num_steps) for r in calibrated.samples}
    dtype, model = model.dtype, replace(model, dtype="float32")
    with deterministic():
        loaded = load_generator(name, model)
        for key, scheme in chosen.items():
            if reason := unsupported(scheme, loaded.computes_on, working_dtype(scheme, dtype)):
                raise InputError(f"formats: `{key}`: {reason}; leave it out here")
        sample = next(samples_of(loaded, calibrated, pieces, 1))
        layers = linear_layers(loaded, sample)
        configs = format_configs(loaded, layers, chosen)
        changes = format_changes(layers, chosen, configs, dtype)
        size = settings.gradient_batch or gradient_batch(loaded, sample)
        settings = replace(settings, gradient_batch=size)
        reason = back_end(loaded).no_image_effects(loaded) if records_calls(model) else ""
        if reason:
            log.warning("%s: no effects on images, those on the velocity instead: %s", name, reason)
        measure = moments_of_calls if reason else moments_of_images
        moments, probes = measure(loaded, layers, calibrated, pieces, changes, settings, len(chosen))
        constants = {
            "metric": "relative_l2" if reason else IMAGE_METRIC,
            "n_probes": probes, "n_images": len(calibrated.images()),
        }  # fmt: skip
        steps = steps_of_pieces(calibrated.num_steps)
        rows = [
            row | constants
            for layer in layers
            for row in rows_of_layer(name, layer, moments[layer.module], chosen, configs, steps, dtype)
        ]
        write_table(pl.DataFrame(rows, FORMATS.schema()), out, FORMATS)
        if timing is not None:
            times = timed_layers(loaded, layers, sample, chosen, configs, dtype)
            frame = pl.DataFrame([{"model": name} | row for row in times], FORMATS_TIMING.schema())
            write_table(frame, timing, FORMATS_TIMING)


def known_formats(formats: Sequence[str], schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """The schemes that formats name. Raises InputError for a name that is none, and for schemes of several formats."""
    if not formats:
        raise InputError("formats: name at least one entry of the config's `schemes`")
    for key in formats:
        if key not in schemes:
            raise InputError(unknown("formats", key, schemes, "in the config's `schemes`"))
        scheme = schemes[key]
        if scheme.kind == "plan" or scheme.fuse_qkv or scheme.cache or kind_of(scheme).sparse or calibration_of(scheme):
            raise InputError(
                f"formats: `{key}` is no format of a single layer: plans, fused projections, step caches, 2:4 sparsity "
                "and kinds that are solved from a calibration set are none"
            )
    return {key: schemes[key] for key in formats}


def working_dtype(scheme: Scheme, dtype: str) -> str:
    """The type that a format's copy of a layer is made in: float32, or the model's where the format takes only that."""
    return "float32" if "float32" in (kind_of(scheme).dtypes or ("float32",)) else dtype


def steps_of_pieces(steps: int) -> dict[str, int]:
    """How many of `steps` steps each piece of the schedule has; pieces that have none are left out."""
    counts = dict.fromkeys(PIECES, 0)
    for step in range(steps):
        counts[piece_of_step(step, steps)] += 1
    return {piece: count for piece, count in counts.items() if count}


def linear_layers(model: Generator, sample: Any) -> list[Layer]:
    """The linear layers of a model in network order."""
    layers: list[Layer] = back_end(model).network_of(model, sample).layers
    return [layer for layer in layers if isinstance(layer.module, nn.Linear)]


def format_configs(
    model: Generator, layers: Sequence[Layer], formats: Mapping[str, Scheme]
) -> dict[str, dict[str, Any]]:
    """The config of each layer that a format takes; None in `base`, which takes all."""
    return {
        key: coverage(model.pipe.transformer, scheme)[0]
        if scheme.kind != "base"
        else dict.fromkeys([layer.name for layer in layers])
        for key, scheme in formats.items()
    }


def quantized_copy(layer: nn.Linear, config: Any, dtype: torch.dtype) -> nn.Module:
    """A copy of a linear layer in `dtype` under a config of torchao; the layer stays as it is."""
    holder = nn.ModuleDict({"layer": copy.deepcopy(layer).to(dtype)})
    if config is not None:
        quantize_(holder, FqnToConfig({"layer": config}), filter_fn=None)
    return holder["layer"]


def format_changes(
    layers: Sequence[Layer], formats: Mapping[str, Scheme], configs: Mapping[str, Mapping[str, Any]], dtype: str
) -> Changes:
    """What each format adds to a layer's output; nothing where it cannot take the layer."""

    def change(layer: nn.Linear, config: Any, scheme: Scheme) -> Change:
        working = DTYPES[working_dtype(scheme, dtype)]
        quantized = quantized_copy(layer, config, working)
        if (weight := weight_alone(quantized, layer)) is not None:
            return weight - layer.weight.data

        @torch.no_grad()
        def of(x: Tensor) -> Tensor:
            return quantized(x.to(working)).to(x.dtype) - nn.functional.linear(x, layer.weight, layer.bias)

        return of

    def nothing(x: Tensor) -> Tensor:
        return x.new_zeros(1)

    made = {
        layer.module: [
            change(layer.module, configs[key][layer.name], scheme) if layer.name in configs[key] else nothing
            for key, scheme in formats.items()
        ]
        for layer in layers
    }
    return made.__getitem__


@torch.no_grad()
def weight_alone(quantized: nn.Module, layer: nn.Linear) -> Tensor | None:
    """The weight of a quantized layer in full precision, where it does no more than multiply by it; else None."""
    held = quantized.weight
    weight = (held.dequantize() if hasattr(held, "__tensor_flatten__") else held).to(layer.weight)
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0)).to(held.device, held.dtype)
    found = quantized(x).to(weight)
    plain = nn.functional.linear(x.to(weight), weight, layer.bias)
    return weight if (found - plain).norm() <= SAME * plain.norm() else None


def moments_of_images(
    model: Generator, layers: Sequence[Layer], calibrated: CalibrationSet, pieces: dict[Reference, str],
    changes: Changes, settings: Sensitivity, formats: int,
) -> tuple[Moments, int]:  # fmt: skip
    """Second moments of each layer's effects on images, and of how many probes they are means."""
    modules = [layer.module for layer in layers]
    sums: Moments = {module: np.zeros((formats * len(PIECES),) * 2) for module in modules}
    there, count = set(pieces.values()), 0
    for drawn, effects in image_probes(model, modules, calibrated, pieces, changes, settings):
        count += len(drawn)
        for module in modules:
            none = torch.zeros(len(drawn), formats, dtype=torch.float64)
            seen = [effects[piece, module].double() if piece in there else none for piece in PIECES]
            together = torch.stack(seen, 2).flatten(1).numpy()  # (probes, formats x pieces)
            sums[module] += together.T @ together
    return {module: total / count for module, total in sums.items()}, count


def moments_of_calls(
    model: Generator, layers: Sequence[Layer], calibrated: CalibrationSet, pieces: dict[Reference, str],
    changes: Changes, settings: Sensitivity, formats: int,
) -> tuple[Moments, int]:  # fmt: skip
    """Second moments of each layer's effects on the velocity, relative to its power, and of how many probes they are.

    Steps count alike and as if their errors were unlike: the way from one recorded call to the next is the pipeline's.
    """
    model.pipe.transformer.requires_grad_(False)
    modules = [layer.module for layer in layers]
    sums: Moments = {module: np.zeros((formats * len(PIECES),) * 2) for module in modules}
    generator, count = torch.Generator().manual_seed(0), 0
    rounds = math.ceil(settings.probes / max(1, len(calibrated.images())))
    for batch in samples_of(model, calibrated, pieces, settings.gradient_batch):
        columns = np.arange(formats) * len(PIECES) + PIECES.index(batch.bucket)
        for _ in range(rounds):
            velocity, products = probe(model, batch, modules, changes, generator)
            power = velocity.cpu().double().flatten(1).square().sum(1)[:, None]
            count += len(batch.references)
            for module in modules:
                effects = (products[module].double() / power.sqrt()).numpy()  # (samples, formats)
                sums[module][np.ix_(columns, columns)] += effects.T @ effects
    return {module: total / count for module, total in sums.items()}, count


def rows_of_layer(
    name: str, layer: Layer, moments: np.ndarray, formats: Mapping[str, Scheme],
    configs: Mapping[str, Mapping[str, Any]], steps: Mapping[str, int], dtype: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the table `sensitivity.formats` about one layer: each pair of cells (format, piece) once."""
    weight = layer.module.weight
    at_rest = torch.empty(weight.shape, dtype=DTYPES[dtype], device="meta")
    numbers = {key: i * len(PIECES) for i, key in enumerate(formats)}
    taking = [key for key in formats if layer.name in configs[key]]
    cells = [(key, piece, numbers[key] + PIECES.index(piece)) for key in taking for piece in steps]
    return [
        {
            "model": name, "layer": layer.name, "kind": layer.kind, "depth": layer.depth, "format": key, "piece": piece,
            "other_format": other, "other_piece": other_piece, "moment": float(moments[row, column]),
            "piece_steps": steps[piece], "parameters": weight.numel(),
            "format_bytes": weight_bytes(at_rest, configs[key][layer.name]),
            "full_bytes": at_rest.numel() * at_rest.itemsize,
        }
        for i, (key, piece, row) in enumerate(cells)
        for other, other_piece, column in cells[i:]
    ]  # fmt: skip


@torch.no_grad()
def timed_layers(
    model: Generator, layers: Sequence[Layer], sample: Any, formats: Mapping[str, Scheme],
    configs: Mapping[str, Mapping[str, Any]], dtype: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The time of each layer in each format on its input in one step of one picture, formats turn by turn.

    In the model's own type; `full` is the layer as it is.
    """
    inputs = inputs_of(model, [layer.module for layer in layers], sample)
    rows = []
    for layer in layers:
        x = inputs[layer.module].to(DTYPES[dtype])
        copies = {"full": quantized_copy(layer.module, None, DTYPES[dtype])}
        copies |= {
            key: quantized_copy(layer.module, configs[key][layer.name], DTYPES[dtype])
            for key in formats
            if layer.name in configs[key]
        }
        for module in copies.values():
            module(x)
        turns = [{key: milliseconds(module, x, model.device) for key, module in copies.items()} for _ in range(TIMED)]
        for key in copies:
            low, median, high = np.quantile([turn[key] for turn in turns], (0.1, 0.5, 0.9))
            rows.append({
                "layer": layer.name, "format": key, "latency_median_ms": median, "latency_p10_ms": low,
                "latency_p90_ms": high, "repeats": TIMED, "rows": x.numel() // x.shape[-1], "hardware": hardware_id(),
            })  # fmt: skip
    return rows


def inputs_of(model: Generator, modules: Sequence[nn.Module], sample: Any) -> dict[nn.Module, Tensor]:
    """What enters each module in one step; of several calls, the last."""
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[module] = given[0].detach().clone()

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        sample.velocity(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def milliseconds(module: nn.Module, x: Tensor, device: torch.device) -> float:
    """The time of one call, until the device is done."""
    wait = torch.get_device_module(device).synchronize if device.type != "cpu" else lambda: None
    wait()
    began = time.perf_counter()
    module(x)
    wait()
    return 1000 * (time.perf_counter() - began)
