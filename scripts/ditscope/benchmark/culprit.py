"""`ditscope culprit`: the fewest layers to keep in full precision so that a scheme's quality passes.

Layers are ordered by what each does when it alone is quantized; so many of the first are kept that quality passes; then
layers are taken out of that set again as long as it still passes. Every set is judged by sampling the same held-out
prompts from the same noise. The certificate says what was tried: each layer taken out of the set, and smaller sets.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ditscope.benchmark.culprit_report import markdown
from ditscope.benchmark.tables import CULPRIT_LAYERS, CULPRIT_SETS
from ditscope.benchmark.took_effect import effect_of, watch_inputs
from ditscope.calibrate.files import CalibrationSet
from ditscope.calibrate.load import calibration_of_scheme, measure_on
from ditscope.core.errors import InputError
from ditscope.core.intervals import LEAST_UNITS, MeanInterval, mean_interval
from ditscope.core.metrics import PSNR_CAP_DB, psnr_of_floats
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.settings import setting
from ditscope.core.tables import write_table
from ditscope.models.loading import Generator, load_generator
from ditscope.models.prepare import prepare
from ditscope.models.quantize import coverage, runs_on_mlx
from ditscope.models.requests import requests
from ditscope.models.sampling import pictures, sample
from ditscope.models.settings import Model, Scheme
from ditscope.prompts.files import read_runs

log = logging.getLogger(__name__)

SMALL = 2  # sets of at most so many layers are all tried


@dataclass(frozen=True)
class Culprit:
    """What quality is, and how long to look."""

    metric: str = setting(
        "psnr_db",
        "psnr_db: of pictures against the unquantized model's, at least the threshold; latent_error: relative change "
        "of the latents, at most the threshold",
        choices=("psnr_db", "latent_error"),
    )
    threshold: float = setting(
        30.0, "What the mean over the prompts must reach with its whole 95 % interval", positive=True
    )
    order_prompts: int = setting(
        4, "First prompts, by which the layers are ordered and no set is judged", positive=True
    )
    num_prompts: int = setting(16, "Further prompts, by which sets are judged", positive=True)
    batch_size: int = setting(4, "Pictures that are sampled together", positive=True)
    max_layers: int = setting(32, "Most layers to keep", positive=True)
    max_sets: int = setting(0, "Most smaller sets to try for the certificate; 0: all of at most two layers")


@dataclass(frozen=True)
class Trial:
    """What a set of kept layers gave."""

    kept: frozenset[str]
    quality: MeanInterval
    passes: bool
    why: str  # it was tried


@dataclass
class Search:
    """Sets of layers that were tried, and how a set is judged."""

    judge: Callable[[frozenset[str]], tuple[np.ndarray, bool]]  # quality by prompt as far as needed, and the verdict
    trials: dict[frozenset[str], Trial] = field(default_factory=dict)

    def passes(self, kept: Iterable[str], why: str) -> bool:
        """Whether quality passes with these layers in full precision; each set is sampled once."""
        key = frozenset(kept)
        if key not in self.trials:
            values, passes = self.judge(key)
            self.trials[key] = Trial(key, mean_interval(values), passes, why)
            log.info("%s: %d kept, mean %.4g of %d: %s", why, len(key), values.mean(), len(values), passes)
        return self.trials[key].passes

    def smallest(self, order: Sequence[str], settings: Culprit) -> frozenset[str] | None:
        """The set that is found, of layers in order of their sensitivity; None where `max_layers` do not suffice."""
        if self.passes((), "the scheme as it is"):
            return frozenset()
        most = min(settings.max_layers, len(order))
        grown = 1
        while not self.passes(order[:grown], "grown"):
            if grown == most:
                return None
            grown = min(2 * grown, most)
        failing = grown // 2
        while grown - failing > 1:
            middle = (grown + failing) // 2
            failing, grown = (failing, middle) if self.passes(order[:middle], "grown") else (middle, grown)
        kept = self.shrunk(list(order[:grown]))
        return self.smaller(order, kept, settings.max_sets) or frozenset(kept)

    def shrunk(self, kept: list[str]) -> list[str]:
        """A set that passes without those of its layers that it passes without, the least sensitive first."""
        for layer in reversed(kept):
            if self.passes(rest := [k for k in kept if k != layer], "taken out"):
                return self.shrunk(rest)
        return kept

    def smaller(self, order: Sequence[str], kept: Sequence[str], most: int) -> frozenset[str] | None:
        """The first smaller set, of at most two layers, that passes; None where none of those that are tried does."""
        sets = (s for size in range(1, min(SMALL + 1, len(kept))) for s in combinations(order, size))
        wanted = [s for number, s in enumerate(sets) if not most or number < most]
        for chosen in tqdm(wanted, desc="smaller sets", unit="set", disable=None):
            if self.passes(chosen, "smaller"):
                return frozenset(chosen)
        return None

    def tried(self, size: int) -> int:
        """How many sets of so many layers were tried."""
        return sum(len(key) == size for key in self.trials)


def culprit(
    name: str,
    model: Model,
    scheme: Scheme,
    prompts: list[InputFile],
    out: OutputFolder,
    plan: InputFile | None = None,
    settings: Culprit = Culprit(),
) -> None:
    """Find the fewest layers that must stay in full precision for a scheme to pass, and prove that it took effect.

    Leaves the tables `benchmark.culprit` (layers.parquet: a row per linear layer) and `benchmark.culprit.sets`
    (sets.parquet: every set that was tried) in `out`, and prints both as Markdown. The exit status is 1 where no set of
    at most `max_layers` passes, or a layer was not quantized that the scheme covers.
    """
    runs = judged_runs(prompts, settings)
    if scheme.kind == "base":
        raise InputError("schemes: `base` quantizes nothing; name another scheme")
    if scheme.fuse_qkv or scheme.cache:
        raise InputError("schemes: `culprit` swaps single layers: set fuse_qkv to false, and name no `cache`")
    calibrated = calibration_of_scheme(scheme, name, model)
    loaded = load_generator(name, model)
    if runs_on_mlx(loaded.pipe.transformer):
        raise InputError(f"models.{name}: `culprit` needs `backend: torch`")
    found = find(loaded, scheme, runs, settings, plan, calibrated)
    write_table(found.layers, Path(out) / "layers.parquet", CULPRIT_LAYERS)
    write_table(found.sets, Path(out) / "sets.parquet", CULPRIT_SETS)
    print(markdown(name, settings, found.layers, found.sets, found.kept, found.certificate))
    if found.kept is None or (found.layers["finding"] != "").any():
        raise SystemExit(1)


@dataclass(frozen=True)
class Found:
    """The outcome: two tables, the set (None where there is none), and what was tried of smaller ones."""

    layers: pl.DataFrame
    sets: pl.DataFrame
    kept: frozenset[str] | None
    certificate: list[tuple[int, int, int]]  # size of sets, tried, of so many


def judged_runs(prompts: Sequence[Path], settings: Culprit) -> list[dict]:
    """The runs that order layers and those that judge sets, of each prompt its first seed: the prompt is the unit.

    Raises InputError where they are too few.
    """
    if settings.num_prompts < LEAST_UNITS:
        raise InputError(f"num_prompts: {settings.num_prompts} is too few for an interval; take at least {LEAST_UNITS}")
    if settings.metric == "psnr_db" and settings.threshold >= PSNR_CAP_DB:
        raise InputError(
            f"threshold: {settings.threshold:g} dB; equal pictures count as {PSNR_CAP_DB:g} dB, ask for less"
        )
    first: dict[str, dict] = {}
    for run in read_runs(*prompts):
        first.setdefault(run["prompt"], run)
    runs, needed = list(first.values()), settings.order_prompts + settings.num_prompts
    if len(runs) < needed:
        where, split = ", ".join(map(str, prompts)), (settings.order_prompts, settings.num_prompts)
        raise InputError(
            f"{where}: {len(runs)} prompts; {split[0]} to order and {split[1]} to judge are {needed}: add prompts, or "
            "ask for fewer"
        )
    return runs[:needed]


def find(
    model: Generator,
    scheme: Scheme,
    runs: Sequence[dict],
    settings: Culprit,
    plan: Path | None = None,
    calibrated: CalibrationSet | None = None,
) -> Found:
    """Order, search and prove for a loaded model; its transformer is left in full precision."""
    own = {n: m for n, m in model.pipe.transformer.named_modules() if isinstance(m, nn.Linear)}
    meant, left = coverage(model.pipe.transformer, scheme, plan)
    order_runs, judging = runs[: settings.order_prompts], runs[settings.order_prompts :]
    inputs: dict[str, Tensor] = {}
    handles = watch_inputs(own, inputs)
    first = latents_of(model, order_runs, settings.batch_size)
    for handle in handles:
        handle.remove()
    reference = latents_of(model, judging, settings.batch_size)
    drawn = decoded(model, reference, settings)
    quantized = quantized_modules(model, scheme, plan, own, calibrated)
    layers = {n: effect_of(own[n], quantized[n], inputs.get(n), n in meant, left.get(n, "")) for n in own}
    changeable = [n for n in own if n in meant]
    put(model, {n: quantized[n] for n in changeable})
    ordered: list[tuple[float, str]] = []
    for layer in tqdm(changeable, desc="layers", unit="layer", disable=None):
        put(model, {n: quantized[n] if n == layer else own[n] for n in changeable})
        changed = latents_of(model, order_runs, settings.batch_size)
        ordered.append((float(relative_change(torch.cat(first), torch.cat(changed)).mean()), layer))

    def judge(kept: frozenset[str]) -> tuple[np.ndarray, bool]:
        put(model, {n: own[n] if n in kept else quantized[n] for n in changeable})
        return judged(model, judging, reference, drawn, settings)

    search = Search(judge)
    kept = search.smallest([layer for _, layer in sorted(ordered, reverse=True)], settings)
    put(model, own)
    sensitivity = {layer: value for value, layer in ordered}
    rows = [
        {"layer": n, "kept": n in (kept or ()), "alone": sensitivity.get(n)}
        | without(search, kept, n)
        | {"metric": settings.metric}
        | layers[n]
        for n in own
    ]
    certificate = [
        (size, search.tried(size), comb(len(changeable), size)) for size in range(1, min(SMALL + 1, len(kept or ())))
    ]
    frame = pl.DataFrame(rows, CULPRIT_LAYERS.schema()).sort(
        "alone", descending=True, nulls_last=True, maintain_order=True
    )
    return Found(frame, table_of(search, settings), kept, certificate)


def without(search: Search, kept: frozenset[str] | None, layer: str) -> dict[str, Any]:
    """Quality where a layer is taken out of the set: columns of the table; null where it is not in it."""
    trial = search.trials.get(kept - {layer}) if kept and layer in kept else None
    if trial is None:
        return dict.fromkeys(("without", "without_low", "without_high", "passes_without"))
    q = trial.quality
    return {"without": q.mean, "without_low": q.low, "without_high": q.high, "passes_without": trial.passes}


def table_of(search: Search, settings: Culprit) -> pl.DataFrame:
    """Every set that was tried, in order."""
    rows = [
        {
            "kept": sorted(trial.kept), "size": len(trial.kept), "why": trial.why, "metric": settings.metric,
            "threshold": settings.threshold, "quality": trial.quality.mean, "quality_low": trial.quality.low,
            "quality_high": trial.quality.high, "n_prompts": trial.quality.units, "passes": trial.passes,
        }
        for trial in search.trials.values()
    ]  # fmt: skip
    return pl.DataFrame(rows, CULPRIT_SETS.schema())


def quantized_modules(
    model: Generator, scheme: Scheme, plan: Path | None, own: dict[str, nn.Linear], calibrated: CalibrationSet | None
) -> dict[str, nn.Module]:
    """Every linear layer as the scheme makes it, from a quantized copy of the transformer."""
    transformer = model.pipe.transformer
    model.pipe.transformer = deepcopy(transformer)
    try:
        if reason := prepare(model, scheme, "eager", plan, measure_on(model, calibrated)):
            raise InputError(f"models.{model.name}: {reason}")
        return {n: model.pipe.transformer.get_submodule(n) for n in own}
    finally:
        model.pipe.transformer = transformer


def put(model: Generator, modules: dict[str, Any]) -> None:
    """Set submodules of the transformer."""
    for layer, module in modules.items():
        model.pipe.transformer.set_submodule(layer, module)


def slices(runs: Sequence[dict], size: int) -> list[Sequence[dict]]:
    """Runs that are sampled together: alike for the reference and for every set, so that last digits are too."""
    return [runs[i : i + size] for i in range(0, len(runs), size)]


def latents_of(model: Generator, runs: Sequence[dict], size: int) -> list[Tensor]:
    """The latents of each slice."""
    return [sample(model, *requests(list(some))) for some in slices(runs, size)]


@torch.no_grad()
def decoded(model: Generator, latents: Sequence[Tensor], settings: Culprit) -> list[Tensor]:
    """The pictures of each slice in [0, 1], where the metric is of pictures."""
    return [pictures(model, some) for some in latents] if settings.metric == "psnr_db" else []


def relative_change(reference: Tensor, other: Tensor) -> np.ndarray:
    """Norm of the change of each picture's latents over their norm."""
    reference, other = reference.double().flatten(1), other.double().flatten(1)
    found: np.ndarray = ((other - reference).norm(dim=1) / reference.norm(dim=1)).cpu().numpy()
    return found


def judged(
    model: Generator, runs: Sequence[dict], latents: Sequence[Tensor], drawn: Sequence[Tensor], settings: Culprit
) -> tuple[np.ndarray, bool]:
    """Quality by prompt, slice by slice until it is clear that it fails, and whether it passes.

    It passes where the whole interval over all prompts is on the right side. It fails before the last prompt where the
    rest cannot bring the mean to the threshold, or the interval so far is wholly on the wrong side.
    """
    values = np.zeros(0)
    for number, some in enumerate(slices(runs, settings.batch_size)):
        now = sample(model, *requests(list(some)))
        if settings.metric == "psnr_db":
            of_slice = psnr_of_floats(*(p.cpu().numpy() for p in (drawn[number], decoded(model, [now], settings)[0])))
        else:
            of_slice = relative_change(latents[number], now)
        values = np.concatenate([values, of_slice])
        if hopeless(values, len(runs), settings):
            return values, False
    return values, passed(values, settings)


def hopeless(values: np.ndarray, total: int, settings: Culprit) -> bool:
    """Whether quality of the first prompts rules out that all `total` pass."""
    rest, interval = total - len(values), mean_interval(values)
    if settings.metric == "psnr_db":
        best = (values.sum() + rest * PSNR_CAP_DB) / total
        return bool(best < settings.threshold or (interval.high is not None and interval.high < settings.threshold))
    best = values.sum() / total
    return bool(best > settings.threshold or (interval.low is not None and interval.low > settings.threshold))


def passed(values: np.ndarray, settings: Culprit) -> bool:
    """Whether the whole interval of the mean is on the right side of the threshold."""
    interval = mean_interval(values)
    assert interval.low is not None and interval.high is not None
    if settings.metric == "psnr_db":
        return interval.low >= settings.threshold
    return interval.high <= settings.threshold
