"""Judge a refiner on held-out samples, level by level, beside interpolation and what keys and text alone give."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from ditscope.core.errors import InputError
from ditscope.core.metrics import FID_LEAST_IMAGES, fid
from ditscope.models.loading import default_device
from ditscope.refine import measures
from ditscope.refine.adapter import Adapter
from ditscope.refine.dataset import Dataset, read_text, read_values
from ditscope.refine.grids import Grid
from ditscope.refine.inference import conditions_of, interpolate, level_counts, refined
from ditscope.refine.interpolations.flow import optical_flow
from ditscope.refine.keys import draw_orders, end_nodes, key_grid, key_masks
from ditscope.refine.mazes import draw as draw_maze
from ditscope.refine.patches import patchify, token_grid, unpatchify
from ditscope.refine.refiner_file import Trained
from ditscope.refine.representation import judged_split
from ditscope.refine.settings import Refine
from ditscope.refine.tables import EVALUATION

log = logging.getLogger(__name__)

CHUNK = 32  # samples that are refined, decoded and measured together
INTERPOLATED, REFINED = "interpolated", "refined"
NO_TEXT, OTHER_TEXT, PASTED = "no text", "another text", "generator, keys pasted in"
# The same refiner used in the other way than it was trained to be, by the setting `refinement` of that way.
OTHER_WAYS = {"one-step": "one step", "coarse-to-fine": "coarse to fine"}

Features = Callable[[np.ndarray, np.ndarray | None], np.ndarray]  # (standardised values, pictures) -> features
Generate = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts and seeds -> pictures of a generator


@dataclass(frozen=True)
class Judge:
    """What evaluation looks with: how values become pictures and features, and a generator for a control."""

    adapter: Adapter
    features: Features | None  # None: without
    generate: Generate | None = None
    oracle: bool = True  # whether the oracle of the shapes world is asked, where labels are of it


@dataclass(frozen=True)
class Chunk:
    """Some held-out samples."""

    rows: np.ndarray
    prompts: list[str]
    clean: np.ndarray  # (samples, tokens, size) standardised
    text: np.ndarray  # (samples, words, width)
    words: np.ndarray  # (samples, words) bool
    others: tuple[list[str], np.ndarray, np.ndarray]  # prompts, text and words of other samples, label by label
    pasted: np.ndarray | None  # like `clean`: what a generator makes of the prompts
    orders: np.ndarray  # (samples, nodes)


@dataclass
class Collected:
    """Numbers per sample by (level, method, metric), and features by (level, method); level 0 is the truth."""

    numbers: dict[tuple[int, str, str], list[np.ndarray]] = field(default_factory=dict)
    features: dict[tuple[int, str], list[np.ndarray]] = field(default_factory=dict)

    def add(self, level: int, method: str, metrics: dict[str, np.ndarray], features: np.ndarray | None) -> None:
        """Join what was measured of a chunk."""
        for metric, values in metrics.items():
            self.numbers.setdefault((level, method, metric), []).append(values)
        if features is not None:
            self.features.setdefault((level, method), []).append(features)


@dataclass(frozen=True)
class Shown:
    """A sample at a level, as pictures to look at."""

    row: int
    level: int
    keys: np.ndarray  # (nodes,) bool
    pictures: dict[str, np.ndarray]  # by method, `truth` among them: ([frames,] height, width, 3) uint8
    given: np.ndarray | None = None  # what is known, where that is no part of the picture: the points of a path


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples that are looked at, and the keys that each keeps."""

    data: Dataset
    rows: np.ndarray
    grid: Grid
    nodes: Grid
    counts: list[int]
    units: np.ndarray  # (samples,) number of the combination, prompt or sample that each was drawn as

    @cached_property
    def other(self) -> np.ndarray:
        """For each sample the row of another one, of another unit where there are several."""
        turns = [np.flatnonzero(self.units != unit) for unit in self.units]
        places = [t[(t > i).argmax()] if len(t) else i for i, t in enumerate(turns)]
        return self.rows[places]


def held_out(data: Dataset, settings: Refine, most: int) -> HeldOut:
    """At most `most` held-out samples, evenly over all (of training ones, where none is held out).

    Raises InputError where the refiner's patches do not fit.
    """
    rows = data.rows(judged_split(data))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    if any(n % settings.patch for n in data.space[-2:]) and len(data.space) > 1:
        raise InputError(f"refine: the refiner has patches of {settings.patch}, which do not fit into {data.space}")
    grid = token_grid(data.space, settings.patch)
    told = data.samples[rows.tolist()]
    names = [label or prompt or key for label, prompt, key in told.select("label", "prompt", "key").rows()]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    units = np.array([number[name] for name in names])
    return HeldOut(data, rows, grid, key_grid(grid, settings.keys), level_counts(grid, settings), units)


def evaluate(
    trained: Trained, data: Dataset, judge: Judge, most: int, gallery: int, seed: int
) -> tuple[pl.DataFrame, list[Shown]]:
    """The table `refine.evaluation` of a refiner on at most `most` held-out samples, and `gallery` of them to look at.

    Keys are drawn from `seed`. Pseudo-classes are those that text and keys of the level give: of missing nodes nothing
    is looked at.
    """
    check_data(trained, data)
    told = held_out(data, trained.settings, most)
    picked = shown_places(told, gallery)
    collected, shown = Collected(), []
    for start, chunk in tqdm(chunks(told, trained, judge, seed), total=-(-len(told.rows) // CHUNK), disable=None):
        own = sorted(n - start for n in picked if start <= n < start + len(chunk.rows))
        shown += measure_chunk(told, trained, judge, chunk, collected, own)
    log.info("refine: judged %d held-out samples of %d units", len(told.rows), told.units.max() + 1)
    return pl.DataFrame(rows_of(told, collected), schema=EVALUATION.schema()), shown


def shown_places(told: HeldOut, gallery: int) -> list[int]:
    """Which of the held-out samples are drawn: as many as the settings ask for, evenly."""
    return np.linspace(0, len(told.rows) - 1, min(gallery, len(told.rows))).astype(int).tolist()


def check_data(trained: Trained, data: Dataset) -> None:
    """Refuse data whose samples are of another shape than the refiner's."""
    config, settings = trained.network.config, trained.settings
    own = (config.channels, config.axes, config.text_width)
    given = (data.channels, len(data.space), data.text_width if data.words else 0)
    for what, a, b in zip(("channels", "axes", "numbers per text token"), own, given, strict=True):
        if a != b:
            raise InputError(f"refine: the refiner was trained on values with {a} {what}, these have {b}; take its own")
    if settings.patch != config.patch:
        raise InputError(f"refine: the refiner's file tells of patches of {settings.patch} and of {config.patch}")


def chunks(told: HeldOut, trained: Trained, judge: Judge, seed: int) -> Iterator[tuple[int, Chunk]]:
    """The samples in parts, each with where it starts."""
    data, settings = told.data, trained.settings
    nodes = int(np.prod(told.nodes))
    protected = end_nodes(told.nodes) if settings.endpoints else None
    orders = draw_orders(np.random.default_rng(seed), len(told.rows), nodes, protected)
    for start in range(0, len(told.rows), CHUNK):
        rows, others = (part[start : start + CHUNK] for part in (told.rows, told.other))
        prompts, seeds = (data.samples[column].gather(rows).to_list() for column in ("prompt", "seed"))
        pasted = None
        if judge.generate is not None and judge.adapter.encode is not None:
            values = judge.adapter.encode(judge.generate(prompts, seeds))
            pasted = patchify(standardised(values, trained), settings.patch)
        clean = patchify(read_values(data, rows), settings.patch)
        other_prompts = data.samples["prompt"].gather(others).to_list()
        told_of_others = (other_prompts, *read_text(data, others))
        text, words = read_text(data, rows)
        part = orders[start : start + CHUNK]
        yield start, Chunk(rows, prompts, clean, text, words, told_of_others, pasted, part)


def standardised(values: np.ndarray, trained: Trained) -> np.ndarray:
    """Values (samples, channels, *space) as the refiner takes them."""
    axes = (-1, *[1] * (values.ndim - 2))
    return ((values - trained.mean.reshape(axes)) / trained.std.reshape(axes)).astype(np.float32)


def stored(values: np.ndarray, trained: Trained) -> np.ndarray:
    """The inverse of `standardised`."""
    axes = (-1, *[1] * (values.ndim - 2))
    return (values * trained.std.reshape(axes) + trained.mean.reshape(axes)).astype(np.float32)


def measure_chunk(
    told: HeldOut, trained: Trained, judge: Judge, chunk: Chunk, collected: Collected, shown: list[int]
) -> list[Shown]:
    """Measure every method at every level; what to look at of the samples `shown`."""
    true = Measurer(told, trained, judge, chunk)
    collected.add(0, "truth", {}, true.features)
    gallery = []
    for level, count in enumerate(told.counts, start=1):
        keys = key_masks(chunk.orders, np.full(len(chunk.orders), count))
        pictures = {}
        for method, tokens in methods(told, trained, chunk, keys, count):
            numbers, features, decoded = true.measure(tokens, keys)
            collected.add(level, method, numbers, features)
            pictures[method] = decoded
        if true.pictures is not None:
            for place in shown:
                drawn = {method: p[place] for method, p in pictures.items() if p is not None}
                pictures_of = drawn | {"truth": true.pictures[place]}
                gallery.append(Shown(int(chunk.rows[place]), level, keys[place], pictures_of, true.given(place, keys)))
    return gallery


def methods(
    told: HeldOut, trained: Trained, chunk: Chunk, keys: np.ndarray, count: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Tokens that each method gives of the keys of a level: interpolation, the refiner, and its controls."""
    settings, grid = trained.settings, told.grid
    each = chunk.clean.shape[1] // keys.shape[1]

    def use(
        prompts: list[str], text: np.ndarray, words: np.ndarray, told: bool = True, by: Trained = trained
    ) -> np.ndarray:
        conditions = conditions_of(by, prompts, text, words, chunk.clean, keys, told)
        return refined(by, chunk.clean, chunk.orders, count, grid, conditions)

    own = chunk.prompts, chunk.text, chunk.words
    yield INTERPOLATED, interpolate(chunk.clean, keys, grid, settings)
    yield REFINED, use(*own)
    if settings.levels > 1:
        (way,) = OTHER_WAYS.keys() - {settings.refinement}
        yield OTHER_WAYS[way], use(*own, by=replace(trained, settings=replace(settings, refinement=way)))
    if trained.network.config.text_width:
        yield NO_TEXT, use(*own, told=False)
        yield OTHER_TEXT, use(*chunk.others)
    if chunk.pasted is not None:
        yield PASTED, np.where(keys.repeat(each, axis=1)[..., None], chunk.clean, chunk.pasted)


class Measurer:
    """Measures what methods give of one chunk beside the truth, of which everything is computed once."""

    def __init__(self, told: HeldOut, trained: Trained, judge: Judge, chunk: Chunk) -> None:
        self.told, self.trained, self.judge, self.chunk = told, trained, judge, chunk
        self.film = len(told.grid) == 3
        self.values, self.pictures, self.features = self.seen(chunk.clean)
        labels = told.data.samples.select(pl.coalesce(pl.col("label").replace("", None), "prompt"))[:, 0]
        wanted = [measures.attributes_of(label, self.film) for label in labels.gather(chunk.rows)]
        self.wanted = wanted if judge.oracle and all(wanted) else None
        self.flows = None
        if self.film and self.pictures is not None:
            self.flows = [measures.true_flow(film, optical_flow) for film in self.pictures]

    def seen(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Values as they are stored, pictures and features of tokens; None where there are none."""
        values = unpatchify(tokens, self.told.grid, self.trained.settings.patch)
        raw = stored(values, self.trained)
        pictures = self.judge.adapter.decode(raw) if self.judge.adapter.decode else None
        if pictures is None and len(self.told.grid) == 1 and self.judge.adapter.metrics:
            pictures = draw_maze(raw, self.chunk.text)
        return raw, pictures, self.judge.features(values, pictures) if self.judge.features else None

    def given(self, place: int, keys: np.ndarray) -> np.ndarray | None:
        """The known points of a path as a picture; None of what is no path."""
        if len(self.told.grid) != 1:
            return None
        known = self.values[place : place + 1, :, keys[place]]
        return draw_maze(known, self.chunk.text[place : place + 1], joined=False)[0]

    def measure(
        self, tokens: np.ndarray, keys: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
        """Numbers per sample by metric, features, and pictures of tokens refined or filled in from `keys`."""
        each = tokens.shape[1] // keys.shape[1]
        known, clean = keys.repeat(each, axis=1), self.chunk.clean
        raw, pictures, features = self.seen(tokens)
        numbers = {
            "missing_error": measures.masked_error(tokens, clean, ~known),
            "key_error": measures.masked_error(tokens, clean, known),
        }
        if features is not None and self.features is not None:
            numbers["feature_distance"] = measures.feature_distance(features, self.features)
        for name, metric in self.judge.adapter.metrics.items():
            numbers[name] = metric(raw, self.values, self.chunk.text)
        if pictures is not None and self.pictures is not None and self.judge.adapter.decode:
            numbers["psnr_db"] = measures.psnr_db(pictures, self.pictures)
            if self.wanted:
                name = "oracle_frames" if self.film else "oracle_all"
                numbers[name] = measures.oracle_share(pictures, self.wanted)
            if self.flows:
                numbers["warp_error"] = measures.warp_error(pictures, self.flows)
                numbers["flicker"] = measures.flicker(pictures, self.pictures)
        return numbers, features, pictures


def rows_of(told: HeldOut, collected: Collected) -> list[dict[str, Any]]:
    """Rows of the table: means over units with intervals, and kernel distances of sets."""
    units = told.units
    shared = {"samples": len(units), "units": int(units.max()) + 1}
    numbers = {place: np.concatenate(parts) for place, parts in collected.numbers.items()}
    rows = []
    for (level, method, metric), values in numbers.items():
        plain = None if method == INTERPOLATED else numbers[level, INTERPOLATED, metric]
        named = {"level": level, "keys": told.counts[level - 1], "method": method, "metric": metric}
        rows.append(named | measures.mean_row(values, plain, units, metric) | shared)
    features = {place: np.concatenate(parts).mean(1) for place, parts in collected.features.items()}
    truth = features.pop((0, "truth"), None)
    if truth is None or shared["units"] < 2:
        return rows
    distances = {place: measures.kernel_distances(truth, f, units) for place, f in features.items()}
    for (level, method), distance in distances.items():
        named = {"level": level, "keys": told.counts[level - 1], "method": method}
        start = None if method == INTERPOLATED else distances[level, INTERPOLATED]
        rows.append(named | {"metric": "kid"} | measures.kernel_row(distance, start) | shared)
        if len(truth) >= FID_LEAST_IMAGES:
            own, other = (fid(truth, features[level, m]) for m in (method, INTERPOLATED))
            gain = None if method == INTERPOLATED else other - own
            empty = dict.fromkeys(("low", "high", "gain_low", "gain_high"))
            rows.append(named | {"metric": "fid", "value": own, "gain": gain} | empty | shared)
    return rows


def pooled_by(encoder: Any) -> Features:
    """Features of values by the pooled maps of the frozen encoder: one vector per sample, as one frame."""
    from ditscope.refine.features import pooled_embedding

    def features(values: np.ndarray, pictures: np.ndarray | None) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(default_device())
        return pooled_embedding(encoder, tensor).numpy()[:, None]

    return features
