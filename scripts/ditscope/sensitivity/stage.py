"""Sensitivity: quantize one layer at a time and measure how far the velocity, after guidance, moves.

Two modes with one table: exact (ditscope.sensitivity.exact) and fast (gradients of random probes,
ditscope.sensitivity.fast). In both the effect on the finished image is estimated as well (ditscope.sensitivity.image).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from ditscope.calibrate.files import (
    CalibrationSet,
    Reference,
    check_made_with,
    load_calibration,
    records_calls,
)
from ditscope.calibrate.load import Batch, batches, check_samples
from ditscope.core.counts import check_complete
from ditscope.core.determinism import deterministic
from ditscope.core.errors import InputError
from ditscope.core.identity import file_digest
from ditscope.core.paths import InputFolder, OutputFile, OutputFolder
from ditscope.core.scratch import discard, unfinished
from ditscope.core.tables import concat_tables, write_table
from ditscope.models.families.common import DTYPES
from ditscope.models.loading import Generator, load_generator
from ditscope.models.packed import packed_bytes
from ditscope.models.registry import require_blocks
from ditscope.models.settings import Model
from ditscope.sensitivity.back_ends import back_end
from ditscope.sensitivity.exact import Layer, Network
from ditscope.sensitivity.fast import estimate_layers
from ditscope.sensitivity.gradient_memory import gradient_batch
from ditscope.sensitivity.image import image_effects
from ditscope.sensitivity.scores import assign_buckets, tabulate
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import IMAGE_METRIC, METRICS, SAMPLES, SENSITIVITY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a job measures: a network on the samples of a calibration set, and where its finished parts lie."""

    network: Network
    depths: list[int]  # of this job's layers
    calibration: CalibrationSet
    buckets: dict[Reference, str]
    settings: Sensitivity
    parts: Path
    dtype: str = "float32"  # of the model, which its packed size depends on; scores are taken in float32

    def part(self, name: str, measure: Callable[[], list[dict[str, Any]]]) -> Path:
        """The file of one part of the work, measured now unless it is there already."""
        path = self.parts / f"{name}.parquet"
        if not path.exists():
            write_table(pl.DataFrame(measure()), path, SAMPLES)
        log.info("%s: %s done", self.network.model.name, name)
        return path


def sensitivity(
    name: str,
    model: Model,
    calibration: InputFolder,
    out: OutputFile,
    settings: Sensitivity = Sensitivity(),
    group: int = 0,
    groups: int = 1,
    fast: OutputFile | None = None,
    partial: OutputFolder | None = None,
) -> None:
    """Score every layer of a model, or every `groups`-th block's from `group` on, at every bit width.

    Leaves the table `sensitivity`, and in `fast` the same layers in fast mode. Finished parts in `partial` are reused.
    The effect on images is estimated over every step, whatever `step_stride` says. Everything is computed in float32
    whatever the model's dtype: half precision would measure its own rounding, not that of 6 bits or more.
    Raises InputError for a set of another model, a broken sample, or a bucket without samples, before the model loads.
    """
    require_blocks("sensitivity", name, model, ("torch", "mlx"))
    dtype, model = model.dtype, replace(model, dtype="float32")
    calibrated = load_calibration(calibration, settings.max_images, settings.step_stride)
    check_made_with(calibration, calibrated, name)
    buckets = assign_buckets(calibrated, settings.buckets, calibration)
    if not 0 <= group < groups:
        raise InputError(f"group: {group} is not one of the {groups} groups, which count from 0")
    key = {k: v for k, v in asdict(settings).items() if k not in ("models", "layer_groups")}
    key |= {"model": model, "dtype": dtype, "manifest": calibrated.manifest, "group": group, "groups": groups}
    whole = load_calibration(calibration, settings.max_images)
    check_samples(whole, name, model)
    key["samples"] = [file_digest(file) for file in dict.fromkeys(s.file for s in whole.samples)]
    parts = unfinished(partial, out, key)
    with deterministic():
        loaded = load_generator(name, model)
        work = start(loaded, calibrated, buckets, settings, parts, group, groups, dtype)
        scored = finished(work, MODES[settings.mode](work), settings.mode)
        tables = [scored]
        reason = back_end(loaded).no_image_effects(loaded) if records_calls(model) else ""
        if reason:
            log.warning("%s: no effect on images is estimated: %s", name, reason)
        else:
            parts_of_image = image(work, whole, assign_buckets(whole, settings.buckets, calibration))
            tables.append(finished(work, parts_of_image, "fast", [IMAGE_METRIC]))
        write_table(pl.concat(tables), out, SENSITIVITY)
        if fast is not None:
            write_table(finished(work, MODES["fast"](work), "fast"), fast, SENSITIVITY)
    discard(parts)


def start(
    model: Generator,
    calibrated: CalibrationSet,
    buckets: dict[Reference, str],
    settings: Sensitivity,
    parts: Path,
    group: int = 0,
    groups: int = 1,
    dtype: str = "float32",
) -> Work:
    """Look at the network and choose the depths of one job."""
    sample = next(samples_of(model, calibrated, buckets, 1))
    network: Network = back_end(model).network_of(model, sample)
    depths = network.depths()[group::groups]
    if not depths:
        raise InputError(
            f"sensitivity.layer_groups: {groups} groups are more than the blocks of {model.name}; use fewer"
        )
    size = settings.gradient_batch or gradient_batch(model, sample)
    return Work(network, depths, calibrated, buckets, replace(settings, gradient_batch=size), parts, dtype)


def samples_of(
    model: Generator, calibration: CalibrationSet, buckets: dict[Reference, str], size: int
) -> Iterator[Batch]:
    """The samples of a set as batches that the model's back end takes, of at most `size` images."""
    if records_calls(model.entry):
        calls: Iterator[Batch] = back_end(model).call_batches(model, calibration, buckets)
        return calls
    return batches(model, calibration, buckets, size)


def score(work: Work, depth: int, samples: Iterable[Batch]) -> list[dict[str, Any]]:
    """Scores of the layers at one depth, on the model's back end."""
    score_layers = back_end(work.network.model).score_layers
    rows: list[dict[str, Any]] = score_layers(work.network, depth, samples, work.settings)
    return rows


def finished(work: Work, parts: list[Path], mode: str, metrics: Sequence[str] = METRICS) -> pl.DataFrame:
    """Rows of the table `sensitivity` from the parts of a job."""
    settings = work.settings
    of_job = [layer for depth in work.depths for layer in work.network.at(depth)]
    sizes = [
        {"layer": layer.name, "bits": bits, "packed_bytes": packed_size(work, layer, bits)}
        for layer in of_job
        for bits in settings.bits
    ]
    layers = [layer.described(settings) for layer in of_job]
    constants = {
        "model": work.network.model.name,
        "backend": work.network.model.entry.backend,
        "quantizer": settings.quantizer,
        "group_size": settings.group_size,
        "mode": mode,
    }
    table = tabulate(concat_tables(parts, SAMPLES.name), layers, constants, metrics, sizes)
    asked = product((layer["layer"] for layer in layers), settings.bits)
    left = table.select("layer", "bits").unique(maintain_order=True).rows()
    check_complete(f"sensitivity of {work.network.model.name}", "layers and bits", asked, left)
    return table


def packed_size(work: Work, layer: Layer, bits: int) -> int | None:
    """Bytes of a layer at a bit width as the model's back end stores them; None where it cannot (convolutions)."""
    if layer.module.weight.ndim != 2:
        return None
    rows, columns = layer.module.weight.shape
    backend, itemsize = work.network.model.entry.backend, DTYPES[work.dtype].itemsize
    return packed_bytes(backend, layer.name, rows, columns, bits, work.settings.group_size, itemsize)


def exact(work: Work) -> list[Path]:
    """Measure every layer on every sample, block by block."""

    def measure(depth: int) -> list[dict[str, Any]]:
        model, settings = work.network.model, work.settings
        samples = samples_of(model, work.calibration, work.buckets, settings.batch_size)
        return score(work, depth, samples)

    name = work.network.model.name
    return [
        work.part(f"depth {depth}", lambda: measure(depth))  # noqa: B023
        for depth in tqdm(work.depths, desc=f"{name} blocks", unit="block", disable=None)
    ]


def fast(work: Work) -> list[Path]:
    """Estimate every layer from the gradients of random probes of the velocity."""
    model, settings = work.network.model, work.settings
    layers = [layer for depth in work.depths for layer in work.network.at(depth)]

    def measure() -> list[dict[str, Any]]:
        samples = samples_of(model, work.calibration, work.buckets, settings.gradient_batch)
        return estimate_layers(model, layers, samples, work.buckets, settings)

    return [work.part("fast", measure)]


def image(work: Work, whole: CalibrationSet, buckets: dict[Reference, str]) -> list[Path]:
    """Estimate what every layer does to the finished images, from the whole trajectories of a set."""
    layers = [layer for depth in work.depths for layer in work.network.at(depth)]
    return [work.part("image", lambda: image_effects(work.network.model, layers, whole, buckets, work.settings))]


MODES: dict[str, Callable[[Work], list[Path]]] = {"exact": exact, "fast": fast}
