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
from ditscope.refine.adapter import Adapter, load_adapter
from ditscope.refine.apply import apply
from ditscope.refine.batches import draw_batch, samples_of, to_device
from ditscope.refine.dataset import TRAIN, Dataset, open_dataset, read_about, read_values
from ditscope.refine.drifting import kernel_of, kernel_statistics
from ditscope.refine.evaluate import (
    Features,
    Generate,
    Judge,
    Shown,
    evaluate,
    held_out,
    pooled_by,
    shown_places,
    stored,
)
from ditscope.refine.features import features_of
from ditscope.refine.gallery import FILM, draw_exemplars, draw_overview, gallery_table, write_gallery
from ditscope.refine.keys import key_grid
from ditscope.refine.networks import LatentMAE, load_network
from ditscope.refine.objectives import by_class
from ditscope.refine.patches import token_grid, unpatchify
from ditscope.refine.record import experiment_record, timing_record
from ditscope.refine.record_page import record_page
from ditscope.refine.refiner_file import Trained, load_refiner
from ditscope.refine.representation import Row, as_rows, judged_split, represent
from ditscope.refine.settings import Refine
from ditscope.refine.tables import DIAGNOSTICS, EVALUATION, GALLERY, NEIGHBOURS, TSNE
from ditscope.refine.train import encoder_of, read_codes, real_targets

log = logging.getLogger(__name__)
EXEMPLARS = 8  # samples drawn of each pseudo-class
EMBEDDED = 64  # pictures that an embedder takes at once


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
    encoder, codes = read_encoder(latent_mae), read_codes(assignments, data)
    judge = judge_of(trained, encoder, models, embedders, settings)
    measured = measure(trained, data, codes, encoder, judge, settings)
    write_table(measured.evaluation, evaluation, EVALUATION)
    write_table(measured.diagnostics, diagnostics, DIAGNOSTICS)
    write_table(measured.neighbours, neighbours, NEIGHBOURS)
    write_table(measured.points, tsne, TSNE)
    shown, nodes = measured.shown, nodes_of(trained, data)
    make_folder(pictures)
    write_gallery(shown, nodes, pictures)
    drawn = gallery_of(trained, data, measured.evaluation, settings if shown else replace(settings, gallery=0))
    write_table(drawn, gallery, GALLERY)
    draw_overview(shown, nodes, overview)
    draw_exemplars(*exemplar_pictures(trained, data, codes, assignments, judge.adapter), exemplars)

    clock, curves = read_table(timing, "refine.training.timing"), read_table(training, "refine.training")
    processes = int(clock["world_size"][0])
    summary = experiment_record(
        name, read_about(about), data.samples["shard"].n_unique(), trained.settings, measured.diagnostics,
        measured.evaluation, curves, processes,
    )  # fmt: skip
    write_text(record, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    when = timing_record(name, clock, summary["runtime"]["batch"])
    write_text(record_timing, json.dumps(when, indent=2, sort_keys=True) + "\n")
    write_text(page, record_page(summary, measured.evaluation, drawn, page.parent))
    log.info("refine: %s, decision %s", name, summary["results"]["decision"])


@dataclass(frozen=True)
class Measured:
    """What a refiner, its codebook and its encoder are worth."""

    evaluation: pl.DataFrame  # the table `refine.evaluation`
    diagnostics: pl.DataFrame  # the table `refine.diagnostics`
    neighbours: pl.DataFrame  # the table `refine.neighbours`
    points: pl.DataFrame  # the table `refine.tsne`
    shown: list[Shown]


def measure(
    trained: Trained, data: Dataset, codes: np.ndarray, encoder: LatentMAE, judge: Judge, settings: Refine
) -> Measured:
    """All tables of a refiner; `codes` are the pseudo-classes of the whole data set, by which it was trained."""
    judged, shown = evaluate(trained, data, judge, settings.evaluated, settings.gallery, settings.seed)
    looking = replace(trained.settings, top_k=settings.top_k, seed=settings.seed)
    found = represent(data, codes, trained.codebook, encoder, looking, torch.device(default_device()))
    rows = found.rows + kernel_rows(trained, data, codes, encoder, settings.seed)
    diagnosed = pl.DataFrame(rows, schema=DIAGNOSTICS.schema(), orient="row")
    return Measured(judged, diagnosed, found.neighbours, found.points, shown)


def read_encoder(latent_mae: Path) -> LatentMAE:
    """The autoencoder that diagnostics look through, on the device."""
    encoder: LatentMAE = load_network(latent_mae, "latent_mae")[0]
    return encoder.to(default_device()).requires_grad_(False)


def gallery_of(trained: Trained, data: Dataset, evaluation: pl.DataFrame, settings: Refine) -> pl.DataFrame:
    """The table `refine.gallery`, by what was judged: the same samples at each level, each by every method."""
    told = held_out(data, trained.settings, settings.evaluated)
    rows = [int(told.rows[place]) for place in shown_places(told, settings.gallery)]
    methods = ["keys", *evaluation["method"].unique(maintain_order=True), "truth"]
    film = [FILM] if len(told.grid) == 3 else []
    nodes = int(np.prod(told.nodes))
    return gallery_table(data.samples, rows, told.counts, nodes, [*methods, *film])


def nodes_of(trained: Trained, data: Dataset) -> tuple[int, ...]:
    """The grid of what is kept or missing as a whole."""
    return key_grid(token_grid(data.space, trained.settings.patch), trained.settings.keys)


# What evaluation looks with -----------------------------------------------------------------------------------------


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


# The drifting kernel ------------------------------------------------------------------------------------------------


@torch.no_grad()
def kernel_rows(trained: Trained, data: Dataset, codes: np.ndarray, encoder: LatentMAE, seed: int) -> list[Row]:
    """What the drifting kernel sees of the trained refiner in one batch of judged samples, by feature and radius."""
    device = torch.device(default_device())
    settings = replace(trained.settings, objective="drifting", seed=seed)
    drawn = samples_of(data, judged_split(data), codes, settings)
    batch = to_device(draw_batch(drawn, settings, 0, 0), device)
    looked = encoder_of(settings, data, encoder, device)
    refined = apply(trained.network.to(device), batch.inputs, drawn.grid, settings.clamp_keys)
    generated = features_of(looked, unpatchify(refined, drawn.grid, settings.patch), settings)
    targets = real_targets(looked, batch, settings)
    rows: list[Row] = []
    for feature, values in generated.items():
        x = by_class(values, settings.classes_per_step)
        for radius in settings.radii:
            statistics = kernel_statistics(x, targets[feature], radius, kernel_of(settings))
            rows += as_rows(f"kernel {feature} R={radius:g}", statistics)
    return rows


# Pictures -----------------------------------------------------------------------------------------------------------


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
