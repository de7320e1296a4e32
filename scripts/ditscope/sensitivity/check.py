"""What `ditscope doctor` checks of the stage `sensitivity`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.intervals import LEAST_UNITS
from ditscope.core.study import Study
from ditscope.models.packed import INTX_BITS, intx_bytes
from ditscope.sensitivity.files import PARTS, part_files
from ditscope.sensitivity.tables import AGREEMENT, IMAGE_METRIC, SENSITIVITY

CELL = list(SENSITIVITY.key)
# What is said of a layer, whatever its scores.
LAYER = [
    "model", "backend", "layer", "kind", "depth", "module", "quantizer", "group_size", "shared_weights", "parameters",
]  # fmt: skip


def parts_of(study: Study, name: str) -> list[str]:
    """The parts of the sensitivity tables, `layers` or `fast`, of every model, also of those that only a plan needs."""
    settings = study.config.sensitivity
    parts = [file for model in settings.models for file in part_files(model, name, settings)]
    others = [file for file in study.targets("sensitivity") if Path(file).match(f"sensitivity/*/{name}-*.parquet")]
    return list(dict.fromkeys([*parts, *others]))


def check_sensitivity(study: Study) -> None:
    """Every layer has every bit width, bucket and metric; the table and its agreement are what their parts give."""
    from ditscope.sensitivity.scores import rank_agreement

    settings = study.config.sensitivity
    if not study.targets("sensitivity"):
        return
    parts = {
        name: {file: study.table("sensitivity", file, "sensitivity") for file in parts_of(study, name)}
        for name in PARTS
    }
    for name, tables in parts.items():
        for file, part in tables.items():
            if part is not None:
                beside_it = parts["fast" if name == "layers" else "layers"]
                check_part(study, file, part, beside_it.get(other_part(file)), name)
    check_formats(study)
    if not study.asked("sensitivity"):
        return
    file, agreement = SENSITIVITY.file, AGREEMENT.file
    table = study.table("sensitivity", file, "sensitivity")
    compared = study.table("sensitivity", agreement, "sensitivity.agreement")
    if table is not None:
        study.same_rows("sensitivity", file, sorted(table["model"].unique()), sorted(settings.models), "models")
        study.same_rows("sensitivity", file, sorted(table["bits"].unique()), sorted(settings.bits), "bit widths")
        if wrong := set(table["quantizer"]) - {settings.quantizer}:
            study.note("sensitivity", file, f"quantizer {wrong.pop()}; the config says {settings.quantizer}")
        for model, rows in table.partition_by("model", as_dict=True).items():
            expected = rows["layer"].n_unique() * rows["bits"].n_unique() * rows.select("bucket", "metric").n_unique()
            if len(rows) != expected:
                study.note("sensitivity", file, f"{model[0]}: {len(rows)} cells of {expected}")
    gathered = {
        name: [part for file, part in tables.items() if file.split("/")[1] in settings.models]
        for name, tables in parts.items()
    }
    whole = {
        name: pl.concat([part for part in tables if part is not None])
        for name, tables in gathered.items()
        if tables and all(part is not None for part in tables)
    }
    if table is not None and "layers" in whole:
        order = ["model", "depth", "layer", "bits", "bucket", "metric"]
        if not table.select([*CELL, "value"]).sort(CELL).equals(whole["layers"].select([*CELL, "value"]).sort(CELL)):
            study.note("sensitivity", file, "differs from the layers-*.parquet that it gathers")
        study.agree("sensitivity", file, table, whole["layers"].sort(order))
    if compared is not None and len(whole) == 2:
        study.agree("sensitivity", agreement, compared, rank_agreement(whole["layers"], whole["fast"]))


def check_formats(study: Study) -> None:
    """Tables by format hold each pair of cells once, as moments may be, and a time for each of their formats."""
    budgets = study.config.plan.budgets.values()
    asked = {name for budget in budgets for name in budget.formats}
    for file in [f for f in study.targets("sensitivity") if Path(f).match("sensitivity/*/formats-*.parquet")]:
        if file.endswith(".timing.parquet"):
            continue
        table = study.table("sensitivity", file, "sensitivity.formats")
        timing = study.table("sensitivity", file.replace(".parquet", ".timing.parquet"), "sensitivity.formats.timing")
        if table is not None:
            for problem in format_faults(table, file.split("/")[1], asked):
                study.note("sensitivity", file, problem)
        if table is not None and timing is not None:
            for problem in timing_faults(timing, table):
                study.note("sensitivity", file.replace(".parquet", ".timing.parquet"), problem)


def format_faults(table: pl.DataFrame, model: str, asked: set[str]) -> Iterator[str]:
    """What of a table `sensitivity.formats` cannot be."""
    from ditscope.sensitivity.tables import layer_kind

    if set(table["model"]) != {model}:
        yield f"is not of model `{model}` alone"
    if set(table["format"]) != asked or set(table["other_format"]) != asked:
        yield f"is not of the formats that the budgets name: {', '.join(sorted(asked))}"
    for column in ("metric", "n_probes", "n_images"):
        if table[column].n_unique() != 1:
            yield f"column `{column}` is not the same in all rows"
    if set(table["metric"]) - {IMAGE_METRIC, "relative_l2"} or (table["n_probes"] < table["n_images"]).any():
        yield "has fewer probes than images, or a metric that is none"
    if wrong := [layer for layer, kind in table.select("layer", "kind").unique().rows() if kind != layer_kind(layer)]:
        yield f"layer {wrong[0]}: not the kind that its name says"
    same = {"layer": ["depth", "parameters", "full_bytes"], "piece": ["piece_steps"], "format": []}
    for key, columns in same.items():
        for column in columns:
            if table.select(key, column).n_unique() != table[key].n_unique():
                yield f"column `{column}` differs within one {key}"
    if table.select("layer", "format", "format_bytes").n_unique() != table.select("layer", "format").n_unique():
        yield "column `format_bytes` differs within one layer and format"
    widths = table.select(pl.col("full_bytes") / pl.col("parameters")).to_series()
    if widths.n_unique() != 1 or widths[0] not in (2.0, 4.0):
        yield "column `full_bytes` is not 2 or 4 bytes per weight"
    if not table["depth"].is_sorted() and table["depth"].min() is not None:
        yield "layers are not in network order"
    yield from pair_faults(table)


def pair_faults(table: pl.DataFrame) -> Iterator[str]:
    """What of the pairs of cells cannot be: one that lacks, or moments that are of no vectors."""
    for (layer,), rows in table.group_by("layer", maintain_order=True):
        cells = list(dict.fromkeys(rows.select("format", pl.col("piece").cast(pl.String)).rows()))
        pairs = rows.select(
            "format", pl.col("piece").cast(pl.String), "other_format", pl.col("other_piece").cast(pl.String)
        ).rows()
        expected = [(*a, *b) for i, a in enumerate(cells) for b in cells[i:]]
        if pairs != expected:
            yield f"layer {layer}: its rows are not each pair of {len(cells)} cells once, in order"
            continue
        moments = np.zeros((len(cells),) * 2)
        moments[np.triu_indices(len(cells))] = rows["moment"].to_numpy()
        whole = moments + np.triu(moments, 1).T
        least, most = np.linalg.eigvalsh(whole)[[0, -1]]
        if least < -1e-6 * max(most, 1e-300):
            yield f"layer {layer}: its moments are of no effects (an eigenvalue is below 0)"


def timing_faults(timing: pl.DataFrame, table: pl.DataFrame) -> Iterator[str]:
    """What of a table `sensitivity.formats.timing` cannot be."""
    wanted = table.select("model", "layer", "format").unique().rows()
    wanted += [(model, layer, "full") for model, layer in table.select("model", "layer").unique().rows()]
    if sorted(timing.select("model", "layer", "format").rows()) != sorted(wanted):
        yield "is not of the layers and formats of the table `sensitivity.formats`, and of each layer as it is"
    low, median, high = (timing[f"latency_{name}_ms"] for name in ("p10", "median", "p90"))
    if not ((low > 0) & (low <= median) & (median <= high)).all():
        yield "has times that are not above 0 in order of their percentiles"
    for column in ("repeats", "hardware"):
        if timing[column].n_unique() != 1:
            yield f"column `{column}` is not the same in all rows"
    if timing.select("layer", "rows").n_unique() != timing["layer"].n_unique() or (timing["rows"] < 1).any():
        yield "column `rows` differs within one layer, or is below 1"


def other_part(file: str) -> str:
    """The part with the same layers in the other mode."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/{name.replace('layers', 'fast') if name.startswith('layers') else name.replace('fast', 'layers')}"


def check_part(study: Study, file: str, part: pl.DataFrame, other: pl.DataFrame | None, name: str) -> None:
    """A part has whole cells, layers as the other mode tells them, and values within their own intervals."""
    from ditscope.sensitivity.buckets import BUCKETS
    from ditscope.sensitivity.tables import IMAGE_METRIC, METRICS, WHOLE, layer_kind

    settings, model = study.config.sensitivity, file.split("/")[1]
    constant = {"model": model, "quantizer": settings.quantizer, "group_size": settings.group_size}
    for key, value in constant.items():
        if wrong := set(part[key].to_list()) - {value}:
            study.note("sensitivity", file, f"made with {key} {wrong.pop()!r}, the config says {value!r}")
    kinds = {layer: layer_kind(layer) for layer in part["layer"].unique()}
    study.agree("sensitivity", file, part, pl.DataFrame({"kind": [kinds[layer] for layer in part["layer"]]}))
    modes = {"layers": settings.mode, "fast": "fast"}
    wanted = ["fast" if metric == IMAGE_METRIC else modes[name] for metric in part["metric"]]
    study.agree("sensitivity", file, part, pl.DataFrame({"mode": wanted}))
    layers = part["layer"].unique().sort().to_list()
    metrics = [m for m in (*METRICS, IMAGE_METRIC) if m in set(part["metric"])]
    kinds_of_cells = [(bu, m) for m in metrics for bu in ((*BUCKETS, WHOLE) if m == IMAGE_METRIC else BUCKETS)]
    cells = [(layer, bits, *cell) for layer in layers for bits in settings.bits for cell in kinds_of_cells]
    rows = part.select("layer", "bits", pl.col("bucket").cast(pl.String), "metric").rows()
    study.same_rows("sensitivity", file, sorted(rows, key=str), sorted(cells, key=str), "cells")
    described = part.select(LAYER).unique().sort(LAYER)
    if described["layer"].n_unique() != len(described):
        study.note("sensitivity", file, "describes one layer (kind, depth, module, size) in several ways")
    elif other is not None and len(other):
        both = described.join(other.select(LAYER).unique(), on=LAYER, how="anti", nulls_equal=True)
        if len(both):
            problem = f"layer {both['layer'][0]} is not told as in {other_part(file)} (kind, depth, module, size)"
            study.note("sensitivity", file, problem)
    sizes = part.select("layer", "bits", "packed_bytes").unique()
    if len(sizes) != sizes.select("layer", "bits").n_unique():
        study.note("sensitivity", file, "gives several sizes of one layer at one bit width (column `packed_bytes`)")
    linear = part.filter((pl.col("module") == "linear") & (pl.col("backend") != "mlx"))
    if settings.quantizer == "group" and set(settings.bits) <= set(INTX_BITS):
        gives = [intx_bytes(*row) for row in linear.select("parameters", "bits", "shared_weights").iter_rows()]
        study.agree("sensitivity", file, linear, pl.DataFrame({"packed_bytes": gives}, {"packed_bytes": pl.Int64}))
    for name_of_count in ("n_samples", "n_images"):
        counted = pl.col(name_of_count)
        counts = part.group_by("bucket", "metric").agg(counted.n_unique(), counted.min().alias("least"))
        if (counts[name_of_count] > 1).any() or not (counts["least"] > 0).all():
            problem = f"column `{name_of_count}` is not the same for all layers of a bucket and metric"
            study.note("sensitivity", file, problem)
    value, slack = pl.col("value"), pl.col("value").abs() * 1e-6 + 1e-9
    outside = part.filter((value < pl.col("value_low") - slack) | (value > pl.col("value_high") + slack))
    if len(outside):
        study.note("sensitivity", file, f"layer {outside['layer'][0]}: a value outside of its own interval")
    few = {"value_std": 2, "value_low": LEAST_UNITS, "value_high": LEAST_UNITS}
    if uneven := [name for name, least in few.items() if (part[name].is_null() != (part["n_images"] < least)).any()]:
        study.note("sensitivity", file, f"column `{uneven[0]}` is there of too few images, or is not")
    if not (part["value_std"].drop_nulls() >= 0).all():
        study.note("sensitivity", file, "has negative spreads (column `value_std`)")


def sensitivity_quietly(study: Study) -> pl.DataFrame | None:
    """The rows of the parts `layers` that can be read; their defects are noted by `check_sensitivity`."""
    quiet = study.quiet()
    tables = [quiet.table("sensitivity", file, "sensitivity") for file in parts_of(study, "layers")]
    whole = [table for table in tables if table is not None]
    return pl.concat(whole) if whole else None
