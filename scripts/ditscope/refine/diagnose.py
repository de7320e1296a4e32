"""Judge a trained refiner: the diagnostics that every encoder, quantizer and refiner must come with, and the record."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ditscope.core.atomic import write_text
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import read_table, write_table
from ditscope.models.loading import default_device
from ditscope.refine import diagnostics as metrics
from ditscope.refine.adapter import load_adapter
from ditscope.refine.apply import apply
from ditscope.refine.batches import Batch, Samples, conditions_of, corrupted_input, draw_batch, samples_of, to_device
from ditscope.refine.codebook import load_codebook
from ditscope.refine.dataset import Dataset, open_dataset, read_values
from ditscope.refine.drifting import kernel_of, kernel_statistics
from ditscope.refine.encoder import Encoder, encoder_of
from ditscope.refine.features import check_features, features_of
from ditscope.refine.gallery import draw_grid
from ditscope.refine.keys import draw_orders
from ditscope.refine.latents import expand
from ditscope.refine.networks import load_network
from ditscope.refine.objectives import by_class
from ditscope.refine.patches import patchify, unpatchify
from ditscope.refine.record import experiment_record
from ditscope.refine.refiner import Refiner, RefinerInput
from ditscope.refine.refiner_file import load_refiner
from ditscope.refine.representation import Row, as_rows, judged_split, represent
from ditscope.refine.settings import Refine as Settings
from ditscope.refine.tables import DIAGNOSTICS, NEIGHBOURS, TSNE
from ditscope.refine.train import read_codes, real_targets

log = logging.getLogger(__name__)
EXEMPLARS = 8  # images drawn of each pseudo-class


def diagnose(
    name: str,
    samples: InputFile,
    about: InputFile,
    codebook: InputFile,
    assignments: InputFile,
    latent_mae: InputFile,
    refiner: InputFile,
    training: InputFile,
    diagnostics: OutputFile,
    neighbours: OutputFile,
    tsne: OutputFile,
    record: OutputFile,
    gallery: OutputFile,
    exemplars: OutputFile,
    settings: Settings = Settings(),
) -> None:
    """Measure codebook, encoder and refiner, and draw what the refiner does.

    Leaves the tables `refine.diagnostics` (group, metric, value), `refine.neighbours` and `refine.tsne`, the
    experiment's `record` (json) and two picture grids: `gallery` (clean, interpolated, refined) and `exemplars` (the
    images nearest to each centroid).
    """
    check_features(settings.features)
    data = open_dataset(samples, about)
    codes = read_codes(assignments, data)
    measured = measure(data, codes, codebook, latent_mae, refiner, settings)
    write_table(measured.diagnostics, diagnostics, DIAGNOSTICS)
    write_table(measured.neighbours, neighbours, NEIGHBOURS)
    write_table(measured.points, tsne, TSNE)

    rows = measured.diagnostics.rows()
    summary = experiment_record(name, data, settings, rows, read_table(training, "refine.training"))
    write_text(record, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    draw_grid(decode_pictures(measured.pictures, data), gallery)
    draw_exemplars(data, read_table(assignments, "refine.assignments"), exemplars)
    log.info("refine: %s, decision %s", name, summary["results"]["decision"])


@dataclass(frozen=True)
class Measured:
    """What codebook, encoder and refiner are worth on a set of latents."""

    diagnostics: pl.DataFrame  # the table `refine.diagnostics`
    neighbours: pl.DataFrame  # the table `refine.neighbours`
    points: pl.DataFrame  # the table `refine.tsne`
    pictures: list[tuple[str, Tensor]]  # latents to draw, by label


def measure(
    data: Dataset, codes: np.ndarray, codebook: Path, latent_mae: Path, refiner: Path, settings: Settings
) -> Measured:
    """Every diagnostic of a data set with its pseudo-classes `codes` (samples,), on what is held out of training."""
    device = torch.device(default_device())
    encoder = load_network(latent_mae, "latent_mae")[0].to(device).requires_grad_(False)
    network = load_refiner(refiner).network.to(device)
    found = represent(data, codes, load_codebook(codebook), Encoder(encoder), settings, device)
    samples = samples_of(data, judged_split(data), codes, settings)
    errors, pictures = evaluate_levels(samples, network, settings, device)
    kernel = kernel_rows(samples, encoder_of(settings, data, encoder, device), network, settings, device)
    diagnostics = pl.DataFrame(found.rows + errors + kernel, schema=DIAGNOSTICS.schema(), orient="row")
    return Measured(diagnostics, found.neighbours, found.points, pictures)


@torch.no_grad()
def evaluate_levels(
    samples: Samples, network: Refiner, settings: Settings, device: torch.device
) -> tuple[list[Row], list[tuple[str, Tensor]]]:
    """Errors of interpolated and of refined tokens at every level (alpha = 1), and values to draw."""
    rows: list[Row] = []
    count = len(samples.rows)
    clean = patchify(read_values(samples.data, samples.rows), settings.patch)
    shown = np.linspace(0, count - 1, min(settings.gallery, count)).astype(int)
    pictures = [("clean", unpatchify(torch.from_numpy(clean[shown]), samples.grid, settings.patch))]
    rng = np.random.default_rng(settings.seed)
    orders = draw_orders(rng, count, samples.nodes, samples.protected)
    conditions = conditions_of(samples, samples.rows, np.ones(count, np.float32), settings)
    for level, keys in enumerate(samples.counts, start=1):
        levels = np.full(count, level)
        inputs = corrupted_input(samples, clean, levels, orders, conditions, settings, rng, samples.rows)
        parts = [to_device(slice_input(inputs, i, i + 64), device) for i in range(0, count, 64)]
        refined = torch.cat([apply(network, part, samples.grid, settings.clamp_anchors).cpu() for part in parts])
        for kind, tokens in (("corrupted", inputs.tokens), ("refined", refined)):
            everywhere, missing = metrics.squared_errors(tokens.numpy(), clean, inputs.keys.numpy())
            rows += as_rows(f"level {level}", {f"mse_{kind}": everywhere, f"mse_{kind}_missing": missing})
            label = f"level {level}, {kind}\n{keys} of {samples.nodes} kept"
            pictures.append((label, unpatchify(tokens[shown], samples.grid, settings.patch)))
        rows.append((f"level {level}", "anchors", float(keys)))
    return rows, pictures


def slice_input(inputs: RefinerInput, start: int, stop: int) -> RefinerInput:
    """Some samples of a batch."""
    return RefinerInput(**{name: tensor[start:stop] for name, tensor in vars(inputs).items()})


@torch.no_grad()
def kernel_rows(
    samples: Samples, encoder: Encoder, network: Refiner, settings: Settings, device: torch.device
) -> list[Row]:
    """What the drifting kernel sees of the trained refiner in one batch, for each feature and radius."""
    drawn = draw_batch(samples, replace(settings, objective="drifting"), settings.steps, 0)
    batch: Batch = to_device(drawn, device)
    refined = apply(network, batch.inputs, samples.grid, settings.clamp_anchors)
    generated = features_of(encoder, unpatchify(refined, samples.grid, settings.patch), settings)
    targets = real_targets(encoder, batch, settings)
    rows: list[Row] = []
    for feature, values in generated.items():
        x = by_class(values, settings.classes_per_step)
        for radius in settings.radii:
            statistics = kernel_statistics(x, targets[feature], radius, kernel_of(settings))
            rows += as_rows(f"kernel {feature} R={radius:g}", statistics)
    return rows


def decode_pictures(pictures: list[tuple[str, Tensor]], data: Dataset) -> list[tuple[str, list[np.ndarray]]]:
    """The same rows as pictures; of films, frames along the first one. Nothing where values have no decoder."""
    decode = load_adapter(data.adapter).decode
    if decode is None:
        return []
    drawn = []
    for label, values in pictures:
        columns = len(values)
        values = values if values.ndim == 4 else values[:1]
        images = decode(values.numpy() * expand(data.std, values.ndim) + expand(data.mean, values.ndim))
        if images.ndim == 5:
            images = images[0, np.linspace(0, images.shape[1] - 1, columns).astype(int)]
        drawn.append((label, list(images)))
    return drawn


def draw_exemplars(data: Dataset, assignments: pl.DataFrame, path: Path) -> None:
    """Draw the samples nearest to the centroid of each pseudo-class, nearest first."""
    numbered = assignments.with_row_index("row").sort("code", "distance", "key")
    nearest = numbered.group_by("code", maintain_order=True).head(EXEMPLARS)
    groups = []
    for (code,), group in nearest.group_by("code", maintain_order=True):
        total = int((assignments["code"] == code).sum())
        values = torch.from_numpy(read_values(data, group["row"].to_numpy()))
        values = values if values.ndim == 4 else values[:, :, 0]
        groups.append((f"class {code}\n{total} samples", values))
    draw_grid(decode_pictures(groups, data), path)
