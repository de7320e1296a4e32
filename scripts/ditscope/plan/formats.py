"""Plans over formats: which scheme each layer has, in all steps or in each part of the schedule, by an integer program.

What is chosen for a layer is one combination: a format for each part of the schedule. The predicted cost of a
combination is the mean square change of the image, a sum of the second moments of `sensitivity.formats`; costs of
layers add. A budget limits one size: the bytes that are stored (every variant that is kept counts), the mean bits of
the weights in use, averaged over the steps, or the measured time of the layers in a step, averaged over the steps.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import concat_tables
from ditscope.models.bit_plan import FORMATS_VERSION
from ditscope.models.schedule_parts import DIVISIONS
from ditscope.models.settings import Scheme
from ditscope.plan.program import cheapest
from ditscope.plan.settings import Budget
from ditscope.sensitivity.tables import FORMATS, FORMATS_TIMING

log = logging.getLogger(__name__)

FRONTIER_POINTS = 12
TICK_MS = 1e-4  # times are whole numbers of it in the program
FREE = ("layers", "assignment")  # of a plan: equally good assignments may differ in them
LIMITS = ("mean_bits", "bytes", "latency_ms")
Effects = dict[tuple[str, str, str, str], float]  # of one layer: moment by format, piece, other format, other piece


@dataclass(frozen=True)
class Menu:
    """What a plan over formats chooses from: for each layer one combination, a format for each part."""

    layers: list[str]
    parts: list[str]
    combinations: list[tuple[str, ...]]  # formats, one for each part
    permitted: np.ndarray  # (layers, combinations) bool
    cost: np.ndarray  # (layers, combinations), summed over the chosen cells
    stored: np.ndarray  # (layers, combinations) int64 bytes, of every variant
    in_use: np.ndarray  # (layers, combinations) int64 bytes, summed over the steps
    ticks: np.ndarray | None  # (layers, combinations) int64 time in TICK_MS, summed over the steps
    parameters: np.ndarray  # (layers,) int64
    steps: int

    def size(self, kind: str) -> np.ndarray:
        """The size (layers, combinations) that a budget of `LIMITS` is about."""
        sizes = {"mean_bits": self.in_use, "bytes": self.stored, "latency_ms": self.ticks}
        chosen = sizes[kind]
        assert chosen is not None
        return chosen

    def totals(self, chosen: np.ndarray) -> dict[str, Any]:
        """Sizes and predicted error of one combination's number for each layer."""
        rows = np.arange(len(self.layers))
        in_use = int(self.in_use[rows, chosen].sum()) / self.steps
        found = {
            "nominal_bytes": int(self.stored[rows, chosen].sum()),
            "mean_bits": 8 * in_use / int(self.parameters.sum()),
            "predicted": float(self.cost[rows, chosen].sum()),
        }
        if self.ticks is not None:
            found["latency_ms"] = int(self.ticks[rows, chosen].sum()) * TICK_MS / self.steps
        return found

    def uniform(self, name: str) -> np.ndarray | None:
        """One format everywhere; `base`, where that is a format, in layers that cannot have it. None where it fails."""
        columns = {combination: i for i, combination in enumerate(self.combinations)}
        wanted = [columns.get((other,) * len(self.parts)) for other in (name, "base")]
        chosen = []
        for layer in range(len(self.layers)):
            column = next((c for c in wanted if c is not None and self.permitted[layer, c]), None)
            if column is None:
                return None
            chosen.append(column)
        return np.array(chosen)


def plan_formats(
    model: str,
    sensitivity: list[InputFile],
    out: OutputFile,
    budget: Budget,
    budget_name: str,
    schemes: dict[str, Scheme],
    timing: Sequence[InputFile] = (),
) -> None:
    """Choose a format for every layer, in each part of the schedule, under one budget; write the plan as JSON.

    `sensitivity` are tables `sensitivity.formats`, `timing` tables `sensitivity.formats.timing`. Raises InputError
    where a format was not measured, or no assignment meets the budget.
    """
    table = measured(sensitivity, model, budget.formats)
    times = times_of(timing, model, budget, table["layer"].unique(maintain_order=True).to_list())
    menu = menu_of(table, budget, times)
    kind, limit = limit_of(menu, budget, f"plan.budgets.{budget_name}")
    chosen = solve(menu, kind, limit)
    document = {
        "schema_version": FORMATS_VERSION,
        "model": model,
        "backend": "torch",
        "budget": budget_name,
        "limited": kind,
        "budget_bytes": limit if kind == "bytes" else None,
        "budget_size": budget_size(menu, kind, limit),
        "quantizer": "formats",
        "metric": table["metric"][0],
        "formats": {name: asdict(schemes[name]) for name in budget.formats},
        "steps": budget.steps,
        "layers": bits_in_use(menu, chosen),
        "assignment": assignment(menu, chosen),
        "full_precision": [],
        **menu.totals(chosen),
        "uniform": best_uniform(menu, budget.formats, kind, limit),
        "frontier": frontier(menu, kind),
    }
    write_text(out, json.dumps(document, indent=1) + "\n")
    log.info("%s: %s", out, in_short(document))


def measured(tables: Sequence[InputFile], model: str, formats: Sequence[str]) -> pl.DataFrame:
    """The rows of tables `sensitivity.formats` about a model and these formats, in network order.

    Raises InputError where there are none of the model, or of one of the formats.
    """
    where = ", ".join(map(str, tables))
    table = concat_tables(tables, FORMATS.name, FORMATS.key).filter(pl.col("model") == model)
    if table.is_empty():
        raise InputError(f"{where}: no rows of model `{model}`; run `ditscope sensitivity-formats` for it")
    known = sorted(table["format"].unique())
    for name in formats:
        if name not in known:
            raise InputError(f"{where}: the format `{name}` was not measured; there are {', '.join(known)}")
    both = pl.col("format").is_in(formats) & pl.col("other_format").is_in(formats)
    return table.filter(both).sort("depth", maintain_order=True)


def times_of(
    timing: Sequence[InputFile], model: str, budget: Budget, layers: Sequence[str]
) -> dict[tuple[str, str], float] | None:
    """Median milliseconds of each layer in each format; None where no time was measured.

    Raises InputError where the budget is in milliseconds and they were not.
    """
    where = ", ".join(map(str, timing))
    if not timing:
        if budget.latency_ms:
            raise InputError("latency_ms: give the table `sensitivity.formats.timing`, by --timing")
        return None
    table = concat_tables(timing, FORMATS_TIMING.name, FORMATS_TIMING.key).filter(pl.col("model") == model)
    found = {(row["layer"], row["format"]): row["latency_median_ms"] for row in table.iter_rows(named=True)}
    if missing := next((layer for layer in layers if (layer, "full") not in found), None):
        raise InputError(f"{where}: layer `{missing}` of `{model}` was not timed; measure its formats again")
    return found


def menu_of(table: pl.DataFrame, budget: Budget, times: dict[tuple[str, str], float] | None) -> Menu:
    """The combinations of a model's layers from its rows of the table `sensitivity.formats`."""
    pieces = {row["piece"]: row["piece_steps"] for row in table.select("piece", "piece_steps").unique().to_dicts()}
    division = {
        part: [piece for piece in members if piece in pieces] for part, members in DIVISIONS[budget.steps].items()
    }
    steps = {part: sum(pieces[piece] for piece in members) for part, members in division.items()}
    combinations = list(product(budget.formats, repeat=len(division)))
    layers = table["layer"].unique(maintain_order=True).to_list()
    shape = (len(layers), len(combinations))
    cost, permitted = np.zeros(shape), np.zeros(shape, bool)
    stored, in_use, ticks = (np.zeros(shape, np.int64) for _ in range(3))
    parameters = np.zeros(len(layers), np.int64)
    for row, (_, cells) in enumerate(table.group_by("layer", maintain_order=True)):
        effects, size = effects_of(cells), dict(cells.select("format", "format_bytes").unique().rows())
        parameters[row], layer = cells["parameters"][0], layers[row]
        together = moments_by_part(effects, division, list(size))
        for column, chosen in enumerate(combinations):
            if not size.keys() >= set(chosen):
                continue
            permitted[row, column] = True
            pairs = product(zip(division, chosen, strict=True), repeat=2)
            cost[row, column] = sum(together[a, p, b, q] for (p, a), (q, b) in pairs)
            stored[row, column] = sum(size[name] for name in set(chosen))
            in_use[row, column] = sum(steps[part] * size[name] for part, name in zip(division, chosen, strict=True))
            if times is not None:
                spent = sum(steps[part] * times[layer, name] for part, name in zip(division, chosen, strict=True))
                ticks[row, column] = math.ceil(spent / TICK_MS)
    return Menu(
        layers, list(division), combinations, permitted, cost, stored, in_use, None if times is None else ticks,
        parameters, sum(steps.values()),
    )  # fmt: skip


def effects_of(cells: pl.DataFrame) -> Effects:
    """The moments of one layer, both ways round."""
    rows = cells.select(
        "format", pl.col("piece").cast(pl.String), "other_format", pl.col("other_piece").cast(pl.String), "moment"
    ).rows()
    return {key: m for a, p, b, q, m in rows for key in ((a, p, b, q), (b, q, a, p))}


def moments_by_part(effects: Effects, division: dict[str, list[str]], formats: Sequence[str]) -> Effects:
    """The moments of one layer by parts: to first order the effect of a part is the sum of those of its pieces.

    Effects of two formats in two parts may add, but are not counted on to cancel: of very many combinations some cancel
    in the calibration's probes, and do not in other pictures.
    """
    found = {
        (a, p, b, q): sum(effects[a, i, b, j] for i in division[p] for j in division[q])
        for a, b in product(formats, repeat=2)
        for p, q in product(division, repeat=2)
    }
    return {(a, p, b, q): max(m, 0.0) if a != b and p != q else m for (a, p, b, q), m in found.items()}


def limit_of(menu: Menu, budget: Budget, where: str) -> tuple[str, int]:
    """Which size a budget limits and the limit in the program's units; refuses an ambiguous or impossible one."""
    given = [key for key in (*LIMITS, "uniform_bits") if getattr(budget, key)]
    if len(given) != 1 or given[0] not in LIMITS:
        named = ", ".join(given) or "none"
        raise InputError(f"{where}: with `formats` set exactly one of mean_bits, bytes and latency_ms (set: {named})")
    kind = given[0]
    if kind == "mean_bits":
        limit = math.floor(budget.mean_bits * int(menu.parameters.sum()) * menu.steps / 8)
    else:
        limit = budget.bytes if kind == "bytes" else math.floor(budget.latency_ms * menu.steps / TICK_MS)
    least = int(np.where(menu.permitted, menu.size(kind), np.iinfo(np.int64).max).min(axis=1).sum())
    if limit < least:
        told = f"{budget_size(menu, kind, limit):g} {kind.replace('_', ' ')}"
        raise InputError(f"{where}: no assignment of {', '.join(budget.formats)} meets {told}; the least is "
                         f"{budget_size(menu, kind, least):.6g}")  # fmt: skip
    return kind, limit


def budget_size(menu: Menu, kind: str, limit: int) -> float:
    """A limit in the units of its budget."""
    if kind == "mean_bits":
        return 8 * limit / menu.steps / int(menu.parameters.sum())
    return limit if kind == "bytes" else limit * TICK_MS / menu.steps


def solve(menu: Menu, kind: str, limit: int) -> np.ndarray:
    """The cheapest combination of each layer within a limit, exactly."""
    size = menu.size(kind)
    return cheapest(menu.cost, size, undominated(menu.cost, size, menu.permitted), limit)


def undominated(cost: np.ndarray, size: np.ndarray, permitted: np.ndarray) -> np.ndarray:
    """Those permitted cells (layers, columns) that no other of their layer undercuts in both size and cost.

    The optimum is among them, and the program is small.
    """
    kept = np.zeros_like(permitted)
    for layer in range(len(cost)):
        best = np.inf
        for column in np.lexsort((cost[layer], size[layer])):
            if permitted[layer, column] and cost[layer, column] < best:
                best = cost[layer, column]
                kept[layer, column] = True
    return kept


def frontier(menu: Menu, kind: str) -> list[dict[str, Any]]:
    """Sizes and predicted error of the best plans from the smallest size to the largest that gains anything.

    Raises RuntimeError where a larger plan is predicted to be worse: the program was then not solved.
    """
    size, useful = menu.size(kind), undominated(menu.cost, menu.size(kind), menu.permitted)
    least = int(np.where(useful, size, np.iinfo(np.int64).max).min(axis=1).sum())
    most = int(np.where(useful, size, 0).max(axis=1).sum())
    limits = sorted({int(limit) for limit in np.linspace(least, most, FRONTIER_POINTS)})
    points = [menu.totals(cheapest(menu.cost, size, useful, limit)) for limit in limits]
    for smaller, larger in pairwise(points):
        if larger["predicted"] > smaller["predicted"] * (1 + 1e-6):
            raise RuntimeError(f"the frontier rises at {larger['nominal_bytes']} bytes: {larger['predicted']}")
    return points


def best_uniform(menu: Menu, formats: Sequence[str], kind: str, limit: int) -> dict[str, Any] | None:
    """The best of the formats that fits alone within a limit, with its bits and totals; None where none does."""
    found = [(name, chosen) for name in formats if (chosen := menu.uniform(name)) is not None]
    rows = np.arange(len(menu.layers))
    fitting = [(n, menu.totals(c)) for n, c in found if menu.size(kind)[rows, c].sum() <= limit]
    if not fitting:
        return None
    name, totals = min(fitting, key=lambda pair: pair[1]["predicted"])
    return {"bits": round(totals["mean_bits"], 2), "format": name, **totals}


def bits_in_use(menu: Menu, chosen: np.ndarray) -> dict[str, float]:
    """Bits of a weight of each layer, averaged over the steps, scales and zero points included."""
    rows = np.arange(len(menu.layers))
    bits = 8 * menu.in_use[rows, chosen] / menu.steps / menu.parameters
    return dict(zip(menu.layers, (round(float(b), 4) for b in bits), strict=True))


def assignment(menu: Menu, chosen: np.ndarray) -> dict[str, str | dict[str, str]]:
    """The format of each layer, or one for each part where they differ."""
    combinations = [menu.combinations[column] for column in chosen]
    return {
        layer: names[0] if len(set(names)) == 1 else dict(zip(menu.parts, names, strict=True))
        for layer, names in zip(menu.layers, combinations, strict=True)
    }


def in_short(document: dict[str, Any]) -> str:
    """A plan in one line: its sizes and what it is predicted to cost, beside the best single format that fits."""
    size = f"{document['nominal_bytes']:,} bytes, {document['mean_bits']:.3f} mean bits in use"
    switched = sum(isinstance(chosen, dict) for chosen in document["assignment"].values())
    told = f", {switched} layers switch between steps" if document["steps"] != "all" else ""
    uniform = document["uniform"]
    beside = f" ({uniform['format']} alone {uniform['predicted']:.3g})" if uniform else ""
    return f"{size}{told}; predicted {document['metric']} {document['predicted']:.3g}{beside}"
