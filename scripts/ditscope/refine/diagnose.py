"""Judge a trained refiner: on held-out samples level by level, and its codebook and encoder by the diagnostics."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

from ditscope.core.atomic import make_folder, write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile, OutputFolder
from ditscope.core.tables import read_table, write_table
from ditscope.models.embedders.registry import embedder_named, load_embedder
from ditscope.models.loading import default_device, load_generator
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import Embedder, Model
from ditscope.refine import diagnostics as metrics
from ditscope.refine.adapter import Adapter, load_adapter
from ditscope.refine.apply import apply
from ditscope.refine.batches import draw_batch, samples_of, to_device
from ditscope.refine.codebook import embed_conditions, embed_text
from ditscope.refine.dataset import HELD_OUT, TRAIN, Dataset, open_dataset, read_about, read_values
from ditscope.refine.drifting import kernel_of, kernel_statistics
from ditscope.refine.evaluate import Features, Generate, Judge, Shown, evaluate, pooled_by, stored
from ditscope.refine.features import extract, pooled_embedding
from ditscope.refine.gallery import draw_exemplars, draw_overview, write_gallery
from ditscope.refine.keys import key_grid
from ditscope.refine.networks import LatentMAE, load_network
from ditscope.refine.objectives import by_class
from ditscope.refine.patches import patchify, token_grid, unpatchify
from ditscope.refine.record import experiment_record, timing_record
from ditscope.refine.record_page import record_page
from ditscope.refine.refiner_file import Trained, load_refiner
from ditscope.refine.settings import Refine
from ditscope.refine.tables import DIAGNOSTICS, EVALUATION, GALLERY, NEIGHBOURS, TSNE
from ditscope.refine.train import read_codes, real_targets

log = logging.getLogger(__name__)
LOOKED_AT = 2000  # held-out samples of the diagnostics of codebook and encoder, evenly over all
EXEMPLARS = 8  # samples drawn of each pseudo-class
EMBEDDED = 64  # pictures that an embedder takes at once

Row = tuple[str, str, float | None]  # group, metric, value


def diagnose(
    name: str,
    samples: InputFile,
    about: InputFile,
    assignments: InputFile,
    latent_mae: InputFile,
    refiner: InputFile,
    training: InputFile,
    timing: InputFile,
    diagnostics: OutputFile,
    neighbours: OutputFile,
    tsne: OutputFile,
    evaluation: OutputFile,
    gallery: OutputFile,
    pictures: OutputFolder,
    overview: OutputFile,
    exemplars: OutputFile,
    record: OutputFile,
    record_timing: OutputFile,
    page: OutputFile,
    models: dict[str, Model],
    embedders: dict[str, Embedder],
    settings: Refine = Refine(),
) -> None:
    """Measure a refiner `name`, its codebook and its encoder on what was held out of training, and draw what it does.

    Leaves the tables `refine.evaluation` (level, method, metric), `refine.diagnostics`, `refine.neighbours`,
    `refine.tsne` and `refine.gallery` (one row per file in `pictures`), two picture grids, and the experiment's
    `record` (json) with its decision, as a `page` too; what changes from run to run is in `record_timing`. Of the
    settings those of the diagnostics count: what the refiner was trained with is in its own file.
    """
    trained, data = load_refiner(refiner), open_dataset(samples, about)
    encoder, *_ = load_network(latent_mae, "latent_mae")
    encoder = encoder.to(default_device()).requires_grad_(False)
    codes = read_codes(assignments, data)
    judge = judge_of(trained, encoder, models, embedders, settings)
    judged, shown = evaluate(trained, data, judge, settings.evaluated, settings.gallery, settings.seed)
    write_table(judged, evaluation, EVALUATION)
    looked = looked_at(trained, data, codes, encoder, settings)
    write_table(looked.diagnostics, diagnostics, DIAGNOSTICS)
    write_table(looked.neighbours, neighbours, NEIGHBOURS)
    write_table(looked.points, tsne, TSNE)
    make_folder(pictures)
    drawn = write_gallery(shown, data, nodes_of(trained, data), pictures)
    write_table(drawn, gallery, GALLERY)
    draw_overview(shown, nodes_of(trained, data), overview)
    draw_exemplars(*exemplar_pictures(trained, data, codes, assignments, judge.adapter), exemplars)

    clock, curves = read_table(timing, "refine.training.timing"), read_table(training, "refine.training")
    processes = int(clock["world_size"][0])
    summary = experiment_record(
        name, read_about(about), data.samples["shard"].n_unique(), trained.settings, looked.diagnostics, judged, curves,
        processes,
    )  # fmt: skip
    write_text(record, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    when = timing_record(name, clock, summary["runtime"]["batch"])
    write_text(record_timing, json.dumps(when, indent=2, sort_keys=True) + "\n")
    write_text(page, record_page(summary, judged, drawn, page.parent))
    log.info("refine: %s, decision %s", name, summary["results"]["decision"])


def nodes_of(trained: Trained, data: Dataset) -> tuple[int, ...]:
    """The grid of what is kept or missing as a whole."""
    return key_grid(token_grid(data.space, trained.settings.patch), trained.settings.keys)


# What evaluation looks with -------------------------------------------------------------------------------------------


def judge_of(
    trained: Trained,
    encoder: LatentMAE,
    models: Mapping[str, Model],
    embedders: Mapping[str, Embedder],
    settings: Refine,
) -> Judge:
    """How values become pictures and features, and the generator of a control where the settings name one."""
    adapter = load_adapter(trained.adapter)
    features = pooled_by(encoder)
    if settings.judge:
        if adapter.decode is None:
            raise InputError("refine.judge: these values have no decoder, so no pictures to embed; leave it empty")
        entry = embedder_named(settings.judge, embedders, "refine.judge")
        if entry.modality != "image":
            raise InputError(f"refine.judge: `{settings.judge}` embeds texts; name an embedder of images")
        features = embedded_by(load_embedder(settings.judge, entry))
    return Judge(adapter, features, generator_of(trained, adapter, models, settings) if settings.generator else None)


def embedded_by(embed: Any) -> Features:
    """Features of pictures by an embedder: unit vectors times the root of their dimension, a frame each."""

    def features(values: np.ndarray, pictures: np.ndarray | None) -> np.ndarray:
        assert pictures is not None
        films = pictures if pictures.ndim == 5 else pictures[:, None]
        flat = [Image.fromarray(frame) for frame in films.reshape(-1, *films.shape[2:])]
        parts = [np.asarray(embed(flat[i : i + EMBEDDED])) for i in range(0, len(flat), EMBEDDED)]
        vectors = np.concatenate(parts).astype(np.float64)
        return vectors.reshape(*films.shape[:2], -1) * np.sqrt(vectors.shape[-1])

    return features


def generator_of(trained: Trained, adapter: Adapter, models: Mapping[str, Model], settings: Refine) -> Generate:
    """Pictures of prompts by the model `settings.generator`, of the size that the refiner's values decode to."""
    name = settings.generator
    if name not in models:
        raise InputError(f"refine.generator: `{name}` is not in the config's `models`")
    if trained.network.config.axes != 2 or adapter.encode is None:
        raise InputError("refine.generator: only pictures that an adapter encodes have such a control; leave it empty")
    model = load_generator(name, models[name])

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        return decode(model, sample(model, list(prompts), [""] * len(prompts), list(seeds))).numpy()

    return generate


# Codebook and encoder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What codebook and encoder are worth on held-out samples."""

    diagnostics: pl.DataFrame
    neighbours: pl.DataFrame
    points: pl.DataFrame


def looked_at(trained: Trained, data: Dataset, codes: np.ndarray, encoder: LatentMAE, settings: Refine) -> Looked:
    """The tables `refine.diagnostics`, `refine.neighbours` and `refine.tsne`; `codes` (rows of the data,)."""
    rows = data.rows(HELD_OUT)
    if len(rows) < 2:
        raise InputError(f"refine: {len(rows)} held-out samples have no neighbours; hold out at least 2")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(int)]
    values, own = read_values(data, rows), codes[rows]
    told = data.samples[rows.tolist()]
    pooled = pooled_embedding(encoder, torch.from_numpy(values).to(default_device())).numpy()
    text = embed_text(trained.codebook, told["prompt"].to_list())
    anchors = trained.codebook.arrays["anchors"]
    keyframes = patchify(values, trained.settings.patch)[:, anchors].mean(1, dtype=np.float64)
    spaces = {
        "condition": embed_conditions(trained.codebook, text, keyframes),
        "latent_mae": pooled,
        "values": values.reshape(len(values), -1).astype(np.float64),
    }
    found = metrics.nearest(pooled, settings.top_k)
    table = metrics.neighbour_table(told["key"].to_list(), *found, own, text, keyframes)
    classes = trained.settings.codes
    out: list[Row] = []
    for space, embedding in spaces.items():
        out += as_rows(f"separation {space}", metrics.separation(embedding, own))
    out += as_rows("retrieval latent_mae", metrics.retrieval(table, own, text, keyframes))
    for split in (TRAIN, HELD_OUT):
        out += as_rows(f"occupancy {split}", metrics.occupancy(codes[data.rows(split)], classes))
    counts = np.bincount(codes[data.rows(TRAIN)], minlength=classes)
    out += [(f"code {code}", "samples", float(count)) for code, count in enumerate(counts)]
    out += kernel_rows(trained, data, codes, encoder, settings.seed)
    xy = metrics.tsne(pooled, settings.seed)
    points = told.select("key", "prompt_id").with_columns(code=own, x=xy[:, 0], y=xy[:, 1])
    return Looked(pl.DataFrame(out, schema=DIAGNOSTICS.schema(), orient="row"), table, points)


def as_rows(group: str, values: Mapping[str, Any]) -> list[Row]:
    """Metrics of one group as rows of the long table."""
    return [(group, metric, value) for metric, value in values.items()]


@torch.no_grad()
def kernel_rows(trained: Trained, data: Dataset, codes: np.ndarray, encoder: LatentMAE, seed: int) -> list[Row]:
    """What the drifting kernel sees of the trained refiner in one batch of held-out samples, by feature and radius."""
    settings = replace(trained.settings, objective="drifting", seed=seed, refinement="one-step")
    drawn = samples_of(data, HELD_OUT, codes, settings)
    batch = to_device(draw_batch(drawn, settings, 0, 0), torch.device(default_device()))
    network = trained.network.to(default_device())
    refined = apply(network, batch.inputs, drawn.grid, settings.clamp_anchors)
    generated = extract(encoder, unpatchify(refined, drawn.grid, settings.patch), settings.features)
    targets = real_targets(encoder, batch, settings)
    rows: list[Row] = []
    for feature, values in generated.items():
        x = by_class(values, settings.classes_per_step)
        for radius in settings.radii:
            statistics = kernel_statistics(x, targets[feature], radius, kernel_of(settings))
            rows += as_rows(f"kernel {feature} R={radius:g}", statistics)
    return rows


# Pictures -------------------------------------------------------------------------------------------------------------


def exemplar_pictures(
    trained: Trained, data: Dataset, codes: np.ndarray, assignments: Path, adapter: Adapter
) -> tuple[list[str], list[list[np.ndarray]]]:
    """Of each pseudo-class its label and the pictures of the training samples nearest to its centroid, nearest first.

    Of films the middle frame; none where values have no decoder.
    """
    if adapter.decode is None:
        return [], []
    table = read_table(assignments, "refine.assignments").with_row_index("place")
    table = table.filter(pl.col("place").is_in(data.rows(TRAIN).tolist()))
    nearest = table.sort("code", "distance", "place").group_by("code", maintain_order=True).head(EXEMPLARS)
    labels, rows = [], []
    for (code,), group in nearest.group_by("code", maintain_order=True):
        labels.append(f"class {code}\n{int((table['code'] == code).sum())} samples")
        pictures = adapter.decode(stored(read_values(data, group["place"].to_numpy()), trained))
        rows.append([p if p.ndim == 3 else p[len(p) // 2] for p in pictures])
    return labels, rows
