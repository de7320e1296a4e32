"""What `ditscope doctor` checks of the stage `sensitivity`."""

from pathlib import Path

import polars as pl

from ditscope.core.intervals import LEAST_UNITS
from ditscope.core.study import Study
from ditscope.models.packed import INTX_BITS, intx_bytes
from ditscope.sensitivity.files import PARTS, part_files
from ditscope.sensitivity.tables import AGREEMENT, SENSITIVITY

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
