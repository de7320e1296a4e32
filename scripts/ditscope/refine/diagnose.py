"""Judge a trained refiner: the diagnostics that every encoder, quantizer and refiner must come with, and the record."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ditscope.core.atomic import write_text
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table, write_table
from ditscope.models.folders import resolve_source
from ditscope.models.loading import default_device
from ditscope.models.registry import family_of
from ditscope.models.settings import Model
from ditscope.refine import diagnostics as metrics
from ditscope.refine.batches import RefinerInput, TrainingSet, draw_batch, refiner_input, training_set
from ditscope.refine.codebook import anchor_means, embed_set, embed_text, load_codebook
from ditscope.refine.drifting import kernel_of, kernel_statistics
from ditscope.refine.features import check_features, extract, pooled_embedding
from ditscope.refine.gallery import draw_grid
from ditscope.refine.keys import draw_orders
from ditscope.refine.latents import LatentSet, expand, read_latents
from ditscope.refine.networks import LatentMAE, Refiner, load_network
from ditscope.refine.objectives import by_class
from ditscope.refine.patches import unpatchify
from ditscope.refine.record import experiment_record
from ditscope.refine.settings import Refine as Settings
from ditscope.refine.tables import DIAGNOSTICS, NEIGHBOURS, TSNE
from ditscope.refine.train import read_codes, real_targets, refine, to_device

log = logging.getLogger(__name__)
EXEMPLARS = 8  # images drawn of each pseudo-class

Row = tuple[str, str, float | None]  # group, metric, value


def diagnose(
    name: str,
    model: Model,
    images: list[InputFile],
    codebook: InputFile,
    assignments: InputFile,
    latent_mae: InputFile,
    refiner: InputFile,
    training: InputFile,
    diagnostics: OutputFile,
    neighbours: OutputFile,
    tsne: OutputFile,
    record: OutputFile,
    samples: OutputFile,
    exemplars: OutputFile,
    settings: Settings = Settings(),
) -> None:
    """Measure codebook, encoder and refiner, and draw what the refiner does.

    Leaves the tables `refine.diagnostics` (group, metric, value), `refine.neighbours` and `refine.tsne`, the
    experiment's `record` (json) and two picture grids: `samples` (clean, interpolated, refined) and `exemplars` (the
    images nearest to each centroid).
    """
    check_features(settings.features)
    source = resolve_source(name, model)
    latents = read_latents(images, settings.patch)
    codes = read_codes(assignments, latents)
    measured = measure(latents, codes, codebook, latent_mae, refiner, settings)
    write_table(measured.diagnostics, diagnostics, DIAGNOSTICS)
    write_table(measured.neighbours, neighbours, NEIGHBOURS)
    points = metrics.tsne(measured.pooled, settings.seed)
    who = pl.DataFrame({column: [r[column] for r in latents.records] for column in ("key", "prompt_id")})
    write_table(who.with_columns(code=codes, x=points[:, 0], y=points[:, 1]), tsne, TSNE)

    rows, device = measured.diagnostics.rows(), torch.device(default_device())
    summary = experiment_record(name, images, latents, settings, rows, read_table(training, "refine.training"))
    write_text(record, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    draw_grid(decode_pictures(measured.pictures, latents, source, name, model, device), samples)
    draw_exemplars(images, read_table(assignments, "refine.assignments"), exemplars)
    log.info("refine: %s, decision %s", name, summary["results"]["decision"])


@dataclass(frozen=True)
class Measured:
    """What codebook, encoder and refiner are worth on a set of latents."""

    diagnostics: pl.DataFrame  # the table `refine.diagnostics`
    neighbours: pl.DataFrame  # the table `refine.neighbours`
    pooled: np.ndarray  # (samples, dimensions), the encoder's embedding
    pictures: list[tuple[str, Tensor]]  # latents to draw, by label


def measure(
    latents: LatentSet, codes: np.ndarray, codebook: Path, latent_mae: Path, refiner: Path, settings: Settings
) -> Measured:
    """Every diagnostic of latents with their pseudo-classes `codes` (samples,)."""
    encoder, *_ = load_network(latent_mae, "latent_mae")
    network, *_ = load_network(refiner, "refiner")
    device = torch.device(default_device())
    encoder, network = encoder.to(device).requires_grad_(False), network.to(device).requires_grad_(False)
    data = training_set(latents, codes, settings)
    book = load_codebook(codebook)

    pooled = pooled_embedding(encoder, torch.from_numpy(latents.values).to(device)).numpy()
    spaces = {
        "condition": embed_set(book, latents, settings),
        "latent_mae": pooled,
        "latents": latents.values.reshape(len(latents), -1).astype(np.float64),
    }
    text = embed_text(book, [r["prompt"] for r in latents.records])
    keyframes = anchor_means(latents.values, book.arrays["anchors"], settings.patch)
    keys = [r["key"] for r in latents.records]
    table = metrics.neighbour_table(keys, *metrics.nearest(pooled, settings.top_k), codes, text, keyframes)

    rows: list[Row] = []
    for space, embedding in spaces.items():
        rows += as_rows(f"separation {space}", metrics.separation(embedding, codes))
    rows += as_rows("retrieval latent_mae", metrics.retrieval(table, codes, text, keyframes))
    rows += as_rows("occupancy", metrics.occupancy(codes, settings.codes))
    counts = np.bincount(codes, minlength=settings.codes)
    rows += [(f"code {code}", "samples", float(count)) for code, count in enumerate(counts)]
    errors, pictures = evaluate_levels(data, network, settings, device)
    rows += errors + kernel_rows(data, encoder, network, settings, device)
    diagnostics = pl.DataFrame(rows, schema=DIAGNOSTICS.schema(), orient="row")
    return Measured(diagnostics, table, pooled, pictures)


def as_rows(group: str, values: dict[str, Any]) -> list[Row]:
    """Metrics of one group as rows of the long table."""
    return [(group, metric, value) for metric, value in values.items()]


@torch.no_grad()
def evaluate_levels(
    data: TrainingSet, network: Refiner, settings: Settings, device: torch.device
) -> tuple[list[Row], list[tuple[str, Tensor]]]:
    """Errors of interpolated and of refined tokens at every level over all samples (alpha = 1), and latents to draw."""
    rows: list[Row] = []
    shown = np.linspace(0, len(data.latents) - 1, min(settings.gallery, len(data.latents))).astype(int)
    pictures = [("clean", torch.from_numpy(data.latents[shown]))]
    rng = np.random.default_rng(settings.seed)
    orders = draw_orders(rng, len(data.latents), data.nodes, data.protected)
    for level, count in enumerate(data.counts, start=1):
        inputs = level_input(data, level, orders, settings, rng)
        parts = [to_device(slice_input(inputs, i, i + 64), device) for i in range(0, len(data.latents), 64)]
        refined = torch.cat([refine(network, part).cpu() for part in parts])
        anchors, clean = inputs.anchors.numpy(), inputs.clean.numpy()
        for kind, tokens in (("corrupted", inputs.corrupted), ("refined", refined)):
            everywhere, missing = metrics.squared_errors(tokens.numpy(), clean, anchors)
            rows += as_rows(f"level {level}", {f"mse_{kind}": everywhere, f"mse_{kind}_missing": missing})
            label = f"level {level}, {kind}\n{count} of {data.nodes} kept"
            pictures.append((label, unpatchify(tokens[shown], data.grid, settings.patch)))
        rows.append((f"level {level}", "anchors", float(count)))
    return rows, pictures


def level_input(
    data: TrainingSet, level: int, orders: np.ndarray, settings: Settings, rng: np.random.Generator
) -> RefinerInput:
    """All samples, corrupted to one level of their nested keys, without guidance."""
    rows = np.arange(len(data.latents))
    return refiner_input(data, rows, np.full(len(rows), level), torch.ones(len(rows)), settings, rng, orders)


def slice_input(inputs: RefinerInput, start: int, stop: int) -> RefinerInput:
    """Some samples of a batch."""
    return RefinerInput(**{name: tensor[start:stop] for name, tensor in vars(inputs).items()})


@torch.no_grad()
def kernel_rows(
    data: TrainingSet, encoder: LatentMAE, network: Refiner, settings: Settings, device: torch.device
) -> list[Row]:
    """What the drifting kernel sees of the trained refiner in one batch, for each feature and radius."""
    batch = draw_batch(data, settings, np.random.default_rng([settings.seed, settings.steps, 0]))
    refined = refine(network, to_device(batch.inputs, device))
    generated = extract(encoder, unpatchify(refined, data.grid, settings.patch), settings.features)
    targets = real_targets(data, encoder, batch, settings, device)
    rows: list[Row] = []
    for feature, values in generated.items():
        x = by_class(values, settings.classes_per_step)
        for radius in settings.radii:
            statistics = kernel_statistics(x, targets[feature], radius, kernel_of(settings))
            rows += as_rows(f"kernel {feature} R={radius:g}", statistics)
    return rows


@torch.no_grad()
def decode_pictures(
    pictures: list[tuple[str, Tensor]],
    latents: LatentSet,
    source: Path,
    name: str,
    model: Model,
    device: torch.device,
) -> list[tuple[str, list[np.ndarray]]]:
    """The same rows as images, decoded by the model's VAE alone; of videos, frames along the first one."""
    from diffusers import AutoModel

    family = family_of(name, model)
    vae = AutoModel.from_pretrained(str(source), subfolder="vae", dtype=torch.float32).to(device)
    drawn = []
    for label, values in pictures:
        columns = len(values)
        values = values if values.ndim == 4 else values[:1]
        stored = values.numpy() * expand(latents.std, values.ndim) + expand(latents.mean, values.ndim)
        tensor = torch.from_numpy(stored).to(device)
        decoded = family.decode(SimpleNamespace(vae=vae), tensor)
        images = (decoded * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        if images.ndim == 5:
            images = images[0, np.linspace(0, images.shape[1] - 1, columns).astype(int)]
        drawn.append((label, list(images)))
    return drawn


def draw_exemplars(images: list[Path], assignments: pl.DataFrame, path: Path) -> None:
    """Draw the images nearest to the centroid of each pseudo-class, nearest first."""
    nearest = assignments.sort("code", "distance", "key").group_by("code", maintain_order=True).head(EXEMPLARS)
    wanted = set(nearest["key"])
    pictures = {s["__key__"]: s["png"] for path in images for s in read_tar(path) if s["__key__"] in wanted}
    rows = []
    for (code,), group in nearest.group_by("code", maintain_order=True):
        total = int((assignments["code"] == code).sum())
        samples = [pixels(pictures[key]) for key in group["key"]]
        rows.append((f"class {code}\n{total} samples", samples))
    draw_grid(rows, path)
