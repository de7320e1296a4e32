"""Figures of the benchmark: quality against size, memory and speed, scaling with the batch, pictures side by side."""

from pathlib import Path
from textwrap import wrap

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.benchmark.run_tables import CASE_KEY
from ditscope.core.picture_file import pixels
from ditscope.core.shards import samples_of_runs
from ditscope.core.tables import concat_tables, read_table
from ditscope.style import (
    COLOURS,
    NARROW,
    SMALL,
    Files,
    across,
    chunks,
    draw_tiles,
    empty,
    grid,
    named,
    note,
    page_width,
    plain,
    short,
    sized,
    tell,
)

# Marker, colour and line of each compile state.
STATES = {
    "eager": ("o", COLOURS[0], "-"),
    "regional": ("s", COLOURS[2], "--"),
    "full": ("^", COLOURS[1], ":"),
    "reduce-overhead": ("v", COLOURS[3], "-."),
    "max-autotune": ("D", COLOURS[4], (0, (5, 1, 1, 1, 1, 1))),
}
STRIP_IMAGES = 3  # pictures of each scheme, each with its difference from the base
GAIN = 8  # differences are drawn this many times brighter
SLANT, NAME_SIZE, NAME_HEIGHT = 35, 6, 8.5  # of names on a front: degrees, points, points with the space between
LEAST_LOSS = 1e-5  # where a loss of zero stands on a logarithmic axis


CASE = list(CASE_KEY)


def benchmark_quality(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Each quality metric of each scheme, a point with its interval."""
    table = concat_tables(named(files, "benchmark", "quality.parquet"), "benchmark.quality")
    drawn = table.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        return note("No quality metric could be computed: see the reasons in the table."), table
    metrics = drawn["metric"].unique(maintain_order=True).to_list()
    cases = drawn.select(CASE).unique(maintain_order=True).rows()
    columns = across(1.75, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = grid(rows, columns, height=rows * (0.75 + 0.13 * len(cases)), sharey=True)
    for axis in axes.flat[len(metrics) :]:
        axis.set_axis_off()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        of_metric = drawn.filter(metric=metric)
        few = " (few images)" if of_metric["small_n"].any() else ""
        tell(axis, f"{metric}{few}", f"n = {of_metric['n'].max()}, {of_metric['n_prompts'].max()} prompts")
        axis.set_yticks(range(len(cases)), labels_of(cases), fontsize=SMALL)
        axis.set_ylim(len(cases) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(axis="x", labelsize=6)
        for y, case in enumerate(cases):
            for row in drawn.filter(metric=metric, **dict(zip(CASE, case, strict=True))).to_dicts():
                if row["low"] is not None and row["high"] is not None:
                    axis.plot([row["low"], row["high"]], [y, y], color=COLOURS[7], linewidth=1.5)
                axis.plot(row["value"], y, "o", color=COLOURS[0], markersize=3.5)
    return figure, table


def labels_of(cases: list[tuple[str, str, str, str]]) -> list[str]:
    """Names of runs for an axis: scheme, the compile state unless eager, model and host where there are several."""
    models, hosts = ({case[i] for case in cases} for i in (0, 1))
    told = [
        [name for name, several in ((model, len(models) > 1), (host, len(hosts) > 1)) if several]
        for model, host, _, _ in cases
    ]
    return [
        scheme + (f", {state}" if state != "eager" else "") + (f" ({', '.join(names)})" if names else "")
        for (_, _, scheme, state), names in zip(cases, told, strict=True)
    ]


def benchmark_pareto(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Quality loss against nominal size, stored size, peak memory and latency, each with its front; a row per model.

    What is only simulated stands on the nominal axis alone: in memory it is not smaller. Noisy timings are left
    out of the latency panel, which says how many.
    """
    points = pareto_points(files)
    if points.is_empty():
        return note("No scheme has both a size and a quality loss."), points
    axes_of = [
        ("nominal_mb", "nominal size / MB", True), ("stored_mb", "size in memory / MB", False),
        ("peak_mb", "steady peak memory / MB", False), ("latency_ms", "latency at the smallest batch / ms", False),
    ]  # fmt: skip
    models = points.select("model", "hardware").unique(maintain_order=True).rows()
    beside = across(3.4, 2)
    rows = 4 // beside  # of panels of a model
    figure, axes = grid(rows * len(models), beside, height=2.6 * rows * len(models), sharey=True)
    fronts: list[tuple[Axes, str, list[dict]]] = []
    for number, (model, hardware) in enumerate(models):
        schemes = points.filter(model=model, hardware=hardware)
        panels = axes[rows * number : rows * (number + 1)].flat
        for axis, (column, title, simulated) in zip(panels, axes_of, strict=True):
            shown = schemes.drop_nulls(column)
            front = scatter(axis, shown if simulated else shown.filter(~pl.col("simulated")), column)
            fronts.append((axis, column, front))
            axis.set_xlabel(f"{title} ({covered(schemes)})" if column == "peak_mb" else title)
            left_out = noisy_text(schemes.filter(~pl.col("simulated"))) if column == "latency_ms" else ""
            tell(axis, f"{model}, {hardware}", left_out or f"n = {schemes['n'].max()} images")
            if shown.is_empty():
                empty(axis, "nothing to show")
        for row in axes[rows * number : rows * (number + 1)]:
            row[0].set_ylabel("quality loss")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3 * beside)
    for axis, _, _ in fronts:
        plain(axis.yaxis)
    figure.draw_without_rendering()  # places the panels: names are placed by distances on paper
    for axis, column, front in fronts:
        name_front(axis, [(row[column], row["loss"]) for row in front], [row["scheme"] for row in front])
    return figure, points


def covered(table: pl.DataFrame) -> str:
    """What the peaks of a comparison cover."""
    return ", ".join(table["peak_covers"].drop_nulls().unique(maintain_order=True)) or "not measured"


def noisy_text(table: pl.DataFrame) -> str:
    """How many timings of a comparison are left out as noisy; nothing where none is."""
    timed = table.drop_nulls("verdict")
    noisy = timed.filter(verdict="noisy")
    if noisy.is_empty():
        return ""
    if len(noisy) == len(timed):
        return "every timing is noisy: no verdict"
    return f"{len(noisy)} of {len(timed)} timings are noisy and left out"


def scatter(axis: Axes, table: pl.DataFrame, column: str) -> list[dict]:
    """Points of one panel with intervals, and the front that no other point is left of and below, which is returned."""
    axis.set_yscale("log")
    axis.axhline(
        table["quality_bound"][0] if len(table) else 0.05,
        color=COLOURS[7],
        linewidth=0.8,
        linestyle="--",
        label="bound",
    )
    for state, (marker, colour, _) in STATES.items():
        rows = table.filter(compile=state)
        if len(rows):
            axis.scatter([], [], marker=marker, color=colour, label=state)
        for row in rows.iter_rows(named=True):
            fill = "none" if row["simulated"] else colour
            axis.plot([row[column]] * 2, [row["low"], row["high"]], color=COLOURS[7], linewidth=0.8, zorder=1)
            axis.scatter(row[column], row["loss"], marker=marker, edgecolors=colour, facecolors=fill, s=22, zorder=2)
    if table["simulated"].any():
        axis.scatter([], [], marker="o", edgecolors=COLOURS[0], facecolors="none", label="only simulated")
    front: list[dict] = []
    for row in table.sort(column, "loss").iter_rows(named=True):
        if not front or row["loss"] < front[-1]["loss"]:
            front.append(row)
    axis.plot(
        [r[column] for r in front], [r["loss"] for r in front], color=COLOURS[6], linewidth=0.8, zorder=0, label="front"
    )
    axis.margins(x=0.4, y=0.2)
    if column.endswith("_mb") and column != "peak_mb" and len(table):  # sizes spread over powers of two
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    return front


def name_front(axis: Axes, points: list[tuple[float, float]], names: list[str]) -> None:
    """Name the points of a front from left to right; left of and below it there is nothing to hide.

    A name that would overlap the one before it moves on, across the direction of writing, and a line leads to it.
    """
    if not points:
        return
    cos, sin = np.cos(np.radians(SLANT)), np.sin(np.radians(SLANT))
    on_paper = axis.transData.transform(points) * 72 / axis.get_figure().dpi
    across = on_paper @ (-sin, cos)  # falls along a front, so that only neighbours can overlap
    lowest = float("inf")
    for name, point, place in zip(names, points, across, strict=True):
        lowest = min(place, lowest - NAME_HEIGHT)
        moved = place - lowest
        axis.annotate(
            name, point, xytext=(-3 + moved * sin, -3 - moved * cos), textcoords="offset points", fontsize=NAME_SIZE,
            rotation=SLANT, rotation_mode="anchor", ha="right", va="top", in_layout=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 1} if moved > 1 else None,
        )  # fmt: skip


def pareto_points(files: Files) -> pl.DataFrame:
    """Every judged run with its sizes, steady peak and latency at the smallest batch, and the loss kept above zero."""
    points = benchmark_points(files).with_columns(
        nominal_mb=pl.col("nominal_bytes") / 1e6, stored_mb=pl.col("stored_bytes") / 1e6
    )
    timing = concat_tables(named(files, "benchmark", "benchmark.timing.parquet"), "benchmark.timing")
    peak = pl.col("steady_peak_bytes") / 1e6
    quiet = pl.when(verdict="quiet").then(pl.col("latency_median_ms"))
    first = timing.filter(pl.col("batch") == pl.col("batch").min().over(CASE)).select(
        *CASE, "verdict", "noisy_because", "peak_covers", latency_ms=quiet, peak_mb=peak
    )
    floored = [pl.max_horizontal(pl.coalesce(c, "value"), pl.lit(LEAST_LOSS)).alias(c) for c in ("low", "high")]
    loss = pl.max_horizontal("value", pl.lit(LEAST_LOSS)).alias("loss")
    return points.join(first, on=CASE, how="left", maintain_order="left").with_columns(*floored, loss)


def benchmark_latency(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Median latency with the 10th and 90th percentile, by scheme; a panel for each batch size; targets as lines.

    Noisy timings are pale and hatched.
    """
    table = timed(files)
    if table.is_empty():
        return note("Nothing could be timed: see the reasons in the table."), table
    batches = sorted(table["batch"].unique())
    cases = table.select(CASE).unique(maintain_order=True).rows()
    wanted = targets(files)
    beside = across(2.3, len(batches))
    rows = -(-len(batches) // beside)
    figure, axes = grid(
        rows, beside, width=1.2 + 2.3 * beside, height=0.5 + rows * (0.7 + 0.17 * len(cases)), sharey=True
    )
    for axis in axes.flat[len(batches) :]:
        axis.set_axis_off()
    for axis, batch in zip(axes.flat, batches, strict=False):
        tell(axis, f"batch {batch}, n = {table.filter(batch=batch)['repeats'].max()} repeats")
        axis.set_xlabel("ms per batch")
        axis.set_yticks(range(len(cases)), labels_of(cases), fontsize=SMALL)
        axis.set_ylim(len(cases) - 0.5, -0.5)
        for y, case in enumerate(cases):
            for row in table.filter(batch=batch, **dict(zip(CASE, case, strict=True))).to_dicts():
                spread = np.abs(np.array([[row["latency_p10_ms"]], [row["latency_p90_ms"]]]) - row["latency_median_ms"])
                noisy = {"alpha": 0.35, "hatch": "////"} if row["verdict"] == "noisy" else {}
                axis.barh(y, row["latency_median_ms"], color=STATES[row["compile"]][1], **noisy)
                axis.errorbar(row["latency_median_ms"], y, xerr=spread, color="black", capsize=2, linewidth=0.8)
        for number, target in enumerate(wanted.filter(batch=batch).iter_rows(named=True)):
            places = [y for y, (model, *_) in enumerate(cases) if model == target["model"]]
            if places:
                name = f"{target['target']}: {target['latency_ms']:g} ms, batch {batch} ({target['source']})"
                axis.vlines(
                    target["latency_ms"], min(places) - 0.5, max(places) + 0.5, color=COLOURS[3],
                    linestyle=("--", ":", "-.")[number % 3], label=name,
                )  # fmt: skip
    for state in dict.fromkeys(case[3] for case in cases):
        axes[0, 0].barh([0], [0], color=STATES[state][1], label=state)
    if "noisy" in table["verdict"]:
        axes[0, 0].barh([0], [0], color=COLOURS[7], alpha=0.35, hatch="////", label="noisy: no verdict from it")
    handles, names = zip(
        *(pair for a in axes.flat for pair in zip(*a.get_legend_handles_labels(), strict=True)), strict=True
    )
    figure.legend(handles, names, loc="outside lower center", ncols=2 if page_width() > NARROW else 1)
    return figure, table


def benchmark_batches(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Images per second (left) and steady peak memory (right) against the batch size, a line per scheme.

    Schemes that are only simulated have no line in the right panel: in memory they are not smaller. Noisy timings
    are left out of the left one, which says how many.
    """
    table = timed(files)
    if table.is_empty():
        return note("Nothing could be timed: see the reasons in the table."), table
    if table["batch"].n_unique() < 2:
        return note("Only one batch size was timed: benchmark.batches asks for more."), table
    peak = pl.col("steady_peak_bytes") / 1e6
    table = table.with_columns(images_per_second=1000 / pl.col("latency_per_image_ms"), peak_mb=peak)
    models = table.select("model", "hardware").unique(maintain_order=True).rows()
    beside = across(2.8, 2)
    rows = 2 // beside
    figure, axes = grid(rows * len(models), beside, height=0.3 + 2.7 * rows * len(models))
    for row, (model, hardware) in zip(axes.reshape(-1, 2), models, strict=True):
        timings = table.filter(model=model, hardware=hardware)
        schemes = timings["scheme"].unique(maintain_order=True).to_list()
        for axis, column, title in zip(
            row, ("images_per_second", "peak_mb"), ("images per second", "steady peak memory / MB"), strict=True
        ):
            for scheme, state in timings.select("scheme", "compile").unique(maintain_order=True).rows():
                line = timings.filter(scheme=scheme, compile=state).sort("batch")
                if column == "peak_mb" and line["simulated"].any():
                    continue
                if column == "images_per_second":
                    line = line.filter(verdict="quiet")
                number = schemes.index(scheme)
                axis.plot(
                    line["batch"], line[column], color=COLOURS[number % len(COLOURS)], markersize=3.5, linewidth=1,
                    marker="osv^D*Px"[number // len(COLOURS) % 8],
                    linestyle=STATES[state][2],
                    label=labels_of([(model, hardware, scheme, state)])[0],
                )  # fmt: skip
            axis.set_xscale("log", base=2)
            ticks = sorted(timings["batch"].unique())
            axis.set_xticks(ticks, map(str, ticks))
            axis.set_xlabel("batch size")
            axis.set_ylabel(f"{title} ({covered(timings)})" if column == "peak_mb" else title)
            left_out = noisy_text(timings) if column == "images_per_second" else ""
            tell(axis, f"{model}, {hardware}", left_out or f"n = {timings['repeats'].max()} repeats")
        beside_or_below(row[1], row[0].get_legend_handles_labels())
    return figure, table


def beside_or_below(axis: Axes, labels: tuple[list, list[str]]) -> None:
    """A legend to the right of an axis, or below it where the page is narrow."""
    if page_width() > NARROW:
        axis.legend(*labels, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=SMALL)
    else:
        axis.legend(*labels, loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=SMALL, ncols=2)


def benchmark_strips(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The same pictures under every scheme (down), each beside its difference from the eager base."""
    runs = image_runs(files)
    base = {run[:2]: run[3] for run in runs if run[2] == "base-eager"}
    rows = [run for run in runs if run[:2] in base and run[3]]
    records = [
        {"model": model, "hardware": host, "run": name, "prompt_id": prompt_id, "seed": seed}
        for model, host, name, images in rows
        for prompt_id, seed in spread(images)
    ]
    if not rows:
        return note("No run of the benchmark left pictures."), pl.DataFrame(records)
    shown = min(STRIP_IMAGES, max(len(images) for images in base.values()))
    inches = min(0.75, (page_width() - 1.2) / (2 * shown), max(0.25, 8 / len(rows)))
    pages = chunks(list(range(len(rows))), max(1, int(8.2 / inches)))
    heights = [0.55 + inches * len(page) for page in pages]
    figure = sized(1.2 + 2 * shown * inches, sum(heights))
    axes = figure.subplots(len(pages), 1, squeeze=False, height_ratios=heights)[:, 0]
    models, hosts = ({case[i] for case in base} for i in (0, 1))
    titles = [
        title
        for key in spread(base[rows[0][:2]])
        for title in (
            "\n".join([*wrap(short(key[0], 36), int(inches * 18))[:3], *wrap(f"seed {key[1]}", int(inches * 18))]),
            f"{'difference' if inches > 0.55 else 'diff.'}\nx {GAIN}",
        )
    ]
    for axis, page in zip(axes, pages, strict=True):
        cells = (
            ((place, 2 * column + is_difference), strip_cell(images[key], base[model, host][key], is_difference))
            for place, (model, host, _, images) in enumerate(rows[row] for row in page)
            for column, key in enumerate(spread(base[model, host]))
            for is_difference in (False, True)
            if key in images
        )
        draw_tiles(axis, (len(page), 2 * shown), cells)
        names = [
            [name.removesuffix("-eager"), *[model] * (len(models) > 1), *[host] * (len(hosts) > 1)]
            for model, host, name, _ in (rows[row] for row in page)
        ]
        axis.set_yticks(range(len(page)), ["\n".join(lines[: max(1, int(inches / 0.1))]) for lines in names])
        axis.set_xticks(range(len(titles)), titles)
    return figure, pl.DataFrame(records)


def strip_cell(png: bytes, reference: bytes, is_difference: bool) -> np.ndarray:
    """A picture, or GAIN times its absolute difference from the base's: (height, width, 3) uint8."""
    picture = pixels(png)
    if not is_difference:
        return picture
    difference = np.abs(picture.astype(float) - pixels(reference).astype(float))
    return np.clip(difference * GAIN, 0, 255).astype(np.uint8)


def spread(images: dict[tuple[str, int], bytes]) -> list[tuple[str, int]]:
    """STRIP_IMAGES of the pictures, evenly over all of them, so that a strip shows several prompts."""
    keys, count = sorted(images), min(STRIP_IMAGES, len(images))
    return [keys[number * len(keys) // count] for number in range(count)]


def image_runs(files: Files) -> list[tuple[str, str, str, dict[tuple[str, int], bytes]]]:
    """Model, hardware, `scheme-compile` and PNGs by (prompt_id, seed) of every run's tar."""
    runs = []
    for path in files["benchmark"]:
        if path.suffix == ".tar":
            pngs = {(s["json"]["prompt_id"], s["json"]["seed"]): s["png"] for s in samples_of_runs(path)}
            runs.append((path.parent.parent.name, path.parent.name, path.stem, pngs))
    return runs


def benchmark_flat_field(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Noise on a flat field against the number of steps, a line per run: mean and range over seeds."""
    table = concat_tables(named(files, "benchmark", "flat_field.parquet"), "benchmark.flat_field")
    if table.is_empty():
        return note("No noise-growth curve was asked for: see benchmark.flat_field_steps."), table
    models = table.select("model", "hardware").unique(maintain_order=True).rows()
    beside = across(3.5, len(models))
    rows = -(-len(models) // beside)
    figure, axes = grid(rows, beside, height=2.8 * rows)
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    for axis, (model, hardware) in zip(axes.flat, models, strict=False):
        noise = table.filter(model=model, hardware=hardware)
        schemes = noise["scheme"].unique(maintain_order=True).to_list()
        for scheme, state in noise.select("scheme", "compile").unique(maintain_order=True).rows():
            line = noise.filter(scheme=scheme, compile=state)
            mean = line.group_by("steps").agg(pl.col("noise").mean()).sort("steps")
            number = schemes.index(scheme)
            axis.plot(
                mean["steps"], mean["noise"], color=COLOURS[number % len(COLOURS)], markersize=3.5, linewidth=1,
                marker="osv^D*Px"[number // len(COLOURS) % 8],
                linestyle=STATES[state][2],
                label=labels_of([(model, hardware, scheme, state)])[0],
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = sorted(noise["steps"].unique())
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xlabel("steps")
        axis.set_ylabel("noise on a flat field / levels of 255")
        plain(axis.yaxis)
        tell(axis, f"{model}, {hardware}", f"n = {noise['seed'].n_unique()} seeds")
        beside_or_below(axis, axis.get_legend_handles_labels())
    return figure, table


def timed(files: Files) -> pl.DataFrame:
    """Rows of the timing table that have a latency, each with whether its bits are only simulated."""
    table = concat_tables(named(files, "benchmark", "benchmark.timing.parquet"), "benchmark.timing")
    runs = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark").select(*CASE, "simulated")
    table = table.filter(pl.col("latency_median_ms").is_not_null())
    return table.join(runs, on=CASE, how="left", maintain_order="left")


def targets(files: Files) -> pl.DataFrame:
    """Published latencies that the study names."""
    (path,) = named(files, "benchmark", "targets.parquet")
    return read_table(Path(path), "benchmark.targets")


def benchmark_points(files: Files) -> pl.DataFrame:
    """Nominal and stored size beside the quality loss (value, low, high) of every measured case."""
    quality = concat_tables(named(files, "benchmark", "quality.parquet"), "benchmark.quality")
    quality = quality.filter(pl.col("metric") == "quality_loss").select(*CASE, "value", "low", "high", "n")
    sizes = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark")
    sizes = sizes.select(
        *CASE, "nominal_bytes", "stored_bytes", "simulated", "quality_bound", "quality_verdict"
    ).unique(CASE, maintain_order=True)
    return sizes.join(quality, on=CASE, how="inner", maintain_order="left").drop_nulls("value")


def benchmark_table(files: Files) -> pl.DataFrame:
    """Size and quality of each scheme."""
    table = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark")
    metrics = [m for m in ("psnr_db", "ssim", "feature_cosine", "quality_loss", "kid", "fid") if table[m].count()]
    return table.select(*CASE, "nominal_bytes", "stored_bytes", "simulated", *metrics, "reason").sort(CASE)
