"""Bit plans: a bit width for every layer that costs least under a size budget, and its export to torchao and MLX."""

import json
import logging
import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import concat_tables
from ditscope.models.bit_plan import SCHEMA_VERSION
from ditscope.models.mlx.names import MLX_BITS, MLX_GROUPS
from ditscope.models.settings import Scheme
from ditscope.plan.formats import plan_formats
from ditscope.plan.program import cheapest
from ditscope.plan.settings import Budget, Plan
from ditscope.sensitivity.tables import IMAGE_METRIC, LAYER_KINDS, SENSITIVITY, WHOLE

log = logging.getLogger(__name__)

RANDOM_PLANS = 100  # that a plan is compared with
FRONTIER_POINTS = 4  # steps between the sizes of two neighbouring uniform bit widths


@dataclass(frozen=True)
class Choices:
    """What the integer program chooses from: one bit width for each layer."""

    layers: list[str]
    bits: list[int]
    cost: np.ndarray  # (layers, bits), summed over the chosen cells
    bytes: np.ndarray  # (layers, bits) int64, packed as the model's back end stores them
    parameters: np.ndarray  # (layers,) int64
    floors: np.ndarray | None = None  # (layers,) least column that each layer may have; None: any

    def permitted(self) -> np.ndarray:
        """Which cells a plan may choose, (layers, bits)."""
        floors = np.zeros(len(self.layers), int) if self.floors is None else self.floors
        return np.arange(len(self.bits)) >= floors[:, None]

    def least_bytes(self) -> int:
        """The smallest possible size of a plan."""
        return int(np.where(self.permitted(), self.bytes, np.iinfo(np.int64).max).min(axis=1).sum())

    def totals(self, chosen: np.ndarray) -> dict[str, Any]:
        """Size and predicted error of one column index per layer."""
        rows = np.arange(len(self.layers))
        size = int(self.bytes[rows, chosen].sum())
        return {
            "nominal_bytes": size,
            "mean_bits": 8 * size / int(self.parameters.sum()),
            "predicted": float(self.cost[rows, chosen].sum()),
        }


def plan(
    model: str,
    sensitivity: list[InputFile],
    out: OutputFile,
    budget: Budget,
    settings: Plan = Plan(),
    budget_name: str = "budget",
    schemes: dict[str, Scheme] = {},  # noqa: B006 read only
    timing: list[InputFile] = [],  # noqa: B006 read only
) -> None:
    """Choose bits for every linear layer of a model under one budget and write the plan as JSON.

    A budget with `formats` chooses among those, by `ditscope.plan.formats`: then `sensitivity` are tables
    `sensitivity.formats`, and `timing` those of measured times, which a budget in milliseconds needs.

    `sensitivity` are tables `sensitivity`; their convolutions stay in full precision, because no back end quantizes
    them, and so do layers that the model's back end cannot store in groups of this size: `full_precision` names these.
    Sizes are those of the back end (`ditscope.models.packed`). Raises InputError where the budget is below the smallest
    size.
    """
    if budget.formats:
        plan_formats(model, sensitivity, out, budget, budget_name, schemes, timing)
        return
    if budget.latency_ms or budget.steps != "all":
        raise InputError(f"plan.budgets.{budget_name}: latency_ms and steps are of budgets with `formats`; name some")
    table = rows_of_model(sensitivity, model, settings)
    storable = can_be_stored(table)
    choices = choices_of(storable, settings)
    left_out = table.join(storable, on="layer", how="anti")["layer"].unique(maintain_order=True).to_list()
    if left_out:
        log.warning("%s: %d layers stay in full precision: %s", model, len(left_out), ", ".join(left_out))
    limit = budget_bytes(choices, budget, f"plan.budgets.{budget_name}")
    chosen = solve(choices, limit)
    uniform = [np.full(len(choices.layers), i) for i in range(len(choices.bits))]
    fitting = max((i for i, u in enumerate(uniform) if choices.totals(u)["nominal_bytes"] <= limit), default=None)
    first = table.row(0, named=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "backend": first["backend"],
        "budget": budget_name,
        "budget_bytes": limit,
        "quantizer": first["quantizer"],
        "group_size": first["group_size"],
        "metric": chosen_metric(table, settings.metric),
        "layers": {layer: choices.bits[i] for layer, i in zip(choices.layers, chosen, strict=True)},
        "full_precision": left_out,
        **choices.totals(chosen),
        "uniform": None if fitting is None else {"bits": choices.bits[fitting], **choices.totals(uniform[fitting])},
        "random": random_plans(choices, limit),
        "frontier": frontier(choices),
    }
    write_text(out, json.dumps(document, indent=1) + "\n")
    log.info("%s: %s", out, in_short(document))


def rows_of_model(sensitivity: list[Path], model: str, settings: Plan) -> pl.DataFrame:
    """The rows of tables `sensitivity` about the linear layers of a model, in one order.

    Raises InputError where there are none, where they were not all measured alike, or for floors of kinds not there.
    """
    table = concat_tables(sensitivity, SENSITIVITY.name, SENSITIVITY.key)
    table = table.sort("depth", "layer", "bits", "bucket", "metric")
    table = table.filter((pl.col("model") == model) & (pl.col("module") == "linear"))
    if table.is_empty():
        raise InputError(
            f"{', '.join(map(str, sensitivity))}: no rows of model `{model}`; add it to `sensitivity.models`"
        )
    for constant in ("backend", "quantizer", "group_size"):
        if len(values := table[constant].unique().sort()) > 1:
            rest = " and ".join(map(str, values))
            raise InputError(f"{', '.join(map(str, sensitivity))}: measured with {constant} {rest}; give tables of one")
    known = {kind for kind in settings.floors if kind in LAYER_KINDS}
    if none := sorted(known - set(table["kind"])):
        kinds = ", ".join(sorted(set(table["kind"])))
        raise InputError(f"plan.floors: `{model}` has no linear layer of kind `{none[0]}`; it has {kinds}")
    return table


def in_short(document: dict[str, Any]) -> str:
    """A plan in one line: its size and what it is predicted to cost, beside random and uniform plans."""
    size = f"{document['nominal_bytes']:,} bytes, {document['mean_bits']:.3f} mean bits"
    others = {"best of random plans": document["random"]["best"]}
    if document["uniform"]:
        others[f"uniform {document['uniform']['bits']} bit"] = document["uniform"]["predicted"]
    rest = ", ".join(f"{name} {error:.3g}" for name, error in others.items())
    return f"{size}; predicted {document['metric']} {document['predicted']:.3g} ({rest})"


def can_be_stored(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of a table `sensitivity` whose layer and bits the model's back end can store (`packed_bytes`).

    Raises InputError where there are none: a plan of them would quantize nothing.
    """
    storable = table.drop_nulls("packed_bytes")
    if storable.is_empty():
        row = table.row(0, named=True)
        bits = sorted(table["bits"].unique())
        can = f"bits of {MLX_BITS} in groups of {MLX_GROUPS}" if row["backend"] == "mlx" else "1 to 8 bits"
        raise InputError(
            f"sensitivity.bits {bits}, sensitivity.group_size {row['group_size']}: no layer of `{row['model']}` can be "
            f"stored so; {row['backend']} packs {can}, of rows that the group size divides"
        )
    return storable


def chosen_metric(table: pl.DataFrame, metric: str) -> str:
    """The metric that is summed: what was asked for, or with `auto` the effect on images where that was measured."""
    measured = set(table["metric"])
    if metric == "auto":
        return IMAGE_METRIC if IMAGE_METRIC in measured else "relative_l2"
    if metric not in measured:
        raise InputError(f"plan.metric: the table `sensitivity` has no `{metric}`, but {', '.join(sorted(measured))}")
    return metric


def choices_of(table: pl.DataFrame, settings: Plan) -> Choices:
    """Costs and sizes of one model's layers from its rows of the table `sensitivity`.

    The cost of a cell is an error power. Powers may be added where norms may not: to first order the layers' errors add
    as vectors, sum_l J_l dW_l, and for nearly uncorrelated quantization errors the expected square of the sum is the
    sum of squares. For `image_rms` it is the mean square change of the image where the layer is quantized in all steps;
    for the velocity's metrics the noise-to-signal power averaged over the timestep buckets, read back from a decibel
    value where it is one.
    """
    metric = chosen_metric(table, settings.metric)
    value = pl.col("value")
    power = 10 ** (-value / 10) if metric.endswith("_db") else value**2
    bucket = pl.col("bucket").cast(pl.String)
    of_metric = (pl.col("metric") == metric) & (bucket == WHOLE if metric == IMAGE_METRIC else bucket != WHOLE)
    cells = (
        table.filter(of_metric & (pl.col("bits") >= settings.min_bits))
        .group_by("layer", "bits", maintain_order=True)
        .agg(power.mean().alias("cost"), pl.col("parameters").first(), pl.col("packed_bytes").first())
    )
    layers, bits = cells["layer"].unique(maintain_order=True).to_list(), sorted(cells["bits"].unique())
    if len(cells) != len(layers) * len(bits):
        raise InputError("the table `sensitivity` lacks bit widths of some layers; run the sensitivity stage again")
    if not bits:
        raise InputError(f"plan.min_bits: no bit width of `sensitivity.bits` is at least {settings.min_bits}")
    order = {layer: i for i, layer in enumerate(layers)}
    cost, size = np.zeros((len(layers), len(bits))), np.zeros((len(layers), len(bits)), np.int64)
    parameters = np.zeros(len(layers), np.int64)
    for row in cells.iter_rows(named=True):
        cell = order[row["layer"]], bits.index(row["bits"])
        cost[cell] = row["cost"]
        size[cell] = row["packed_bytes"]
        parameters[cell[0]] = row["parameters"]
    kinds = dict(table.select("layer", "kind").rows()) if settings.floors else {}
    return Choices(
        layers, bits, cost, size, parameters, floor_columns([kinds.get(n, "") for n in layers], bits, settings)
    )


def floor_columns(kinds: list[str], bits: list[int], settings: Plan) -> np.ndarray:
    """The least column of `bits` that a layer of each kind may have."""
    for kind, floor in settings.floors.items():
        if kind not in LAYER_KINDS:
            raise InputError(f"plan.floors: `{kind}` is no kind of layer; valid: {', '.join(LAYER_KINDS)}")
        if floor > bits[-1]:
            raise InputError(f"plan.floors.{kind}: {floor} is more than the measured bits {bits}")
    return np.array([bisect_left(bits, settings.floors.get(kind, 0)) for kind in kinds])


def budget_bytes(choices: Choices, budget: Budget, where: str) -> int:
    """The byte limit that a budget means for these layers; refuses an ambiguous or impossible one."""
    given = [key for key in ("mean_bits", "bytes", "uniform_bits") if getattr(budget, key)]
    if len(given) != 1:
        raise InputError(
            f"{where}: set exactly one of mean_bits, bytes and uniform_bits (set: {', '.join(given) or 'none'})"
        )
    weights = int(choices.parameters.sum())
    limit = budget.bytes or math.floor(budget.mean_bits * weights / 8)
    if budget.uniform_bits:
        if budget.uniform_bits not in choices.bits:
            raise InputError(
                f"{where}.uniform_bits: {budget.uniform_bits} is not among those that were measured and can be stored: "
                f"{choices.bits}"
            )
        limit = int(choices.bytes[:, choices.bits.index(budget.uniform_bits)].sum())
    least = choices.least_bytes()
    if limit < least:
        raise InputError(
            f"{where}: {limit} bytes ({8 * limit / weights:.3f} mean bits) is too small; "
            f"the minimum is {least} bytes ({8 * least / weights:.3f} mean bits)"
        )
    return limit


def solve(choices: Choices, limit: int) -> np.ndarray:
    """The cheapest column index of each layer within `limit` bytes, exactly."""
    return cheapest(choices.cost, choices.bytes, choices.permitted(), limit)


def frontier(choices: Choices) -> list[dict[str, Any]]:
    """Size and predicted error of the best plans from the smallest size to the largest, uniform sizes included.

    Raises RuntimeError where a larger plan is predicted to be worse: the program was then not solved.
    """
    sizes, least = choices.bytes.sum(axis=0), choices.least_bytes()
    limits = {int(limit) for pair in pairwise(sizes) for limit in np.linspace(*pair, FRONTIER_POINTS + 1)}
    limits = {limit for limit in limits if limit > least} | {least}
    points = [choices.totals(solve(choices, limit)) for limit in sorted(limits)]
    for smaller, larger in pairwise(points):
        if larger["predicted"] > smaller["predicted"] * (1 + 1e-6):
            raise RuntimeError(f"the frontier rises at {larger['nominal_bytes']} bytes: {larger['predicted']}")
    return points


def random_plans(choices: Choices, limit: int) -> dict[str, Any]:
    """Predicted errors of random plans that fill the same limit: their number, the best, the median and the worst."""
    rng = np.random.default_rng(0)
    errors = [choices.totals(random_plan(choices, limit, rng))["predicted"] for _ in range(RANDOM_PLANS)]
    return {
        "plans": RANDOM_PLANS,
        "best": float(min(errors)),
        "median": float(np.median(errors)),
        "worst": float(max(errors)),
    }


def random_plan(choices: Choices, limit: int, rng: np.random.Generator) -> np.ndarray:
    """A column index of each layer: from the fewest bits, layers drawn at random get the next more until none fits."""
    rows = np.arange(len(choices.layers))
    chosen = choices.permitted().argmax(axis=1)
    size = int(choices.bytes[rows, chosen].sum())
    while True:
        more = np.minimum(chosen + 1, len(choices.bits) - 1)
        extra = choices.bytes[rows, more] - choices.bytes[rows, chosen]
        fitting = np.flatnonzero((extra > 0) & (size + extra <= limit))
        if not len(fitting):
            return chosen
        layer = rng.choice(fitting)
        chosen[layer] += 1
        size += int(extra[layer])
