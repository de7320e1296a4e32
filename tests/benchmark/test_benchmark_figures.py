"""Figures of the benchmark: what is only simulated stays off the memory fronts, strips show true differences."""

import io

import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

from ditscope.benchmark import figures
from ditscope.core.shards import png_bytes, write_tar
from ditscope.style import draw_tiles, grid
from loose_tables import write_loosely

SCHEMES = ("base", "int8", "int3")


@pytest.fixture
def files(tmp_path):
    """Tables and pictures of three schemes, `int3` simulated, `base` compiled as well."""
    runs, times, quality, flat, tars = [], [], [], [], []
    for scheme, state in (*((s, "eager") for s in SCHEMES), ("base", "full")):
        case = {"model": "m", "hardware": "h", "scheme": scheme, "kind": scheme, "compile": state}
        number = SCHEMES.index(scheme)
        sizes = {"nominal_bytes": (9 - 3 * number) * 10**6, "stored_bytes": (9 - 4 * min(number, 1)) * 10**6}
        runs.append(case | sizes | {"simulated": number == 2, "quality_bound": 0.05, "quality_verdict": "within"})
        quality += [
            case | {"metric": "quality_loss", "value": 0.02 * number, "low": 0.01 * number, "high": 0.04 * number}
            | {"n": 2, "n_prompts": 1, "small_n": False, "reason": ""},
            case | {"metric": "fid", "value": 1.0 * number, "low": None, "high": None}
            | {"n": 2, "n_prompts": 1, "small_n": True, "reason": ""},
        ]  # fmt: skip
        for batch in (1, 4):
            latency = {f"latency_{part}_ms": 10.0 * batch + number for part in ("median", "p10", "p90")}
            memory = {"steady_peak_bytes": 10**9 + batch, "peak_covers": "process"}
            judged = {"verdict": "quiet", "noisy_because": "", "repeats": 5}
            times.append(case | latency | memory | judged | {"batch": batch, "latency_per_image_ms": 10.0})
        flat += [case | {"steps": steps, "seed": 0, "noise": 1.0 + number * steps} for steps in (1, 4)]
        image = np.full((16, 16, 3), 100 + 10 * number, np.uint8)
        tars.append(tmp_path / "m" / "h" / f"{scheme}-{state}.tar")
        write_tar([{"__key__": "a", "png": png_bytes(image), "json": {"prompt_id": "p", "seed": 0}}], tars[-1])
    target = {"target": "goal", "model": "m", "batch": 4, "latency_ms": 30.0, "source": "elsewhere"}
    for name, table, rows in (
        ("benchmark", "benchmark", runs), ("benchmark.timing", "benchmark.timing", times),
        ("quality", "benchmark.quality", quality), ("flat_field", "benchmark.flat_field", flat),
        ("targets", "benchmark.targets", [target]),
    ):  # fmt: skip
        frame = pl.DataFrame(rows, infer_schema_length=None)
        write_loosely(frame, tmp_path / f"{name}.parquet", table)
    return {"benchmark": [*tmp_path.glob("*.parquet"), *tars]}


def names(axis):
    return {text.get_text() for text in axis.texts}


def test_simulated_schemes_are_on_the_nominal_front_only(files):
    figure, data = figures.benchmark_pareto(files)
    nominal, stored, peak, latency = figure.axes
    assert names(nominal) == {"base", "int8", "int3"}
    for axis in (stored, peak, latency):
        assert "int3" not in names(axis) and "int8" in names(stored)
    assert data.filter(scheme="base", compile="eager")["loss"][0] == figures.LEAST_LOSS, "zero has no logarithm"
    assert data["latency_ms"].to_list() == [10, 11, 12, 10]


def test_the_front_holds_what_nothing_beats(files):
    figure, _ = figures.benchmark_pareto(files)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "front"]
    assert list(line.get_xdata()) == [3, 6, 9] and list(line.get_ydata()) == [0.04, 0.02, figures.LEAST_LOSS]


def test_targets_are_lines_of_their_batch(files):
    figure, _ = figures.benchmark_latency(files)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "goal: 30 ms, batch 4 (elsewhere)" in said and {"eager", "full"} < set(said)
    one, four = figure.axes
    dashed = [[c.get_label() for c in axis.collections if c.get_label().startswith("goal")] for axis in (one, four)]
    assert dashed == [[], ["goal: 30 ms, batch 4 (elsewhere)"]]


def test_strips_draw_each_scheme_beside_its_difference(files):
    figure, data = figures.benchmark_strips(files)
    assert data["run"].to_list() == ["base-eager", "int8-eager", "int3-eager", "base-full"]
    (axis,) = figure.axes
    tiles = np.asarray(axis.images[0].get_array()).reshape(4, 20, 2, 20, 3)[:, 8, :, 8, 0]  # their middles
    assert tiles.tolist() == [[100, 0], [110, 80], [120, 160], [100, 0]], "differences are 8 times as bright"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["base", "int8", "int3", "base-full"]


def test_strips_of_many_large_pictures_are_one_picture_of_bounded_size(tmp_path):
    """Three pictures of each of a hundred runs, an axis each, took minutes and gigabytes."""
    image = np.full((96, 96, 3), 100, np.uint8)
    samples = [{"__key__": p, "png": png_bytes(image), "json": {"prompt_id": p, "seed": 0}} for p in "abc"]
    tars = [tmp_path / "m" / "h" / f"{name}-eager.tar" for name in ("base", *map(str, range(99)))]
    for tar in tars:
        write_tar(samples, tar)
    figure, data = figures.benchmark_strips({"benchmark": tars})
    assert len(data) == 300 and len(figure.axes) == 4, "pages"
    assert all(max(axis.images[0].get_array().shape) <= 4096 for axis in figure.axes)


def test_tiles_keep_the_shape_of_pictures_of_several_sizes():
    _, axes = grid(1, 1)
    wide, small = np.full((10, 40, 3), 9, np.uint8), np.full((10, 10, 3), 7, np.uint8)
    draw_tiles(axes[0, 0], (1, 2), [((0, 0), wide), ((0, 1), small)])
    row = np.asarray(axes[0, 0].images[0].get_array())[7, :, 0]
    assert [int((row == value).sum()) for value in (9, 7)] == [40, 10] and len(row) == 2 * 44


def test_strips_show_several_prompts():
    images = {(prompt, seed): b"" for prompt in "abcdef" for seed in range(4)}
    assert figures.spread(images) == [("a", 0), ("c", 0), ("e", 0)]
    assert figures.spread({("a", 0): b"", ("a", 1): b""}) == [("a", 0), ("a", 1)] and figures.spread({}) == []


def test_memory_of_simulated_schemes_is_no_line_of_the_batch_figure(files):
    figure, _ = figures.benchmark_batches(files)
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["base", "int8", "int3", "base, full"]
    assert [line.get_label() for line in right.lines] == ["base", "int8", "base, full"]
    assert left.lines[0].get_ydata().tolist() == [100, 100]
    assert right.get_ylabel() == "steady peak memory / MB (process)"


def rewrite_timing(files, verdict):
    (path,) = [path for path in files["benchmark"] if path.name == "benchmark.timing.parquet"]
    write_loosely(pl.read_parquet(path).with_columns(verdict=verdict), path, "benchmark.timing")


def test_noisy_timings_are_left_out_and_counted(files):
    rewrite_timing(files, pl.when(scheme="int8").then(pl.lit("noisy")).otherwise(pl.lit("quiet")))
    figure, data = figures.benchmark_pareto(files)
    latency = figure.axes[3]
    assert "1 of 3 timings are noisy and left out" in latency.get_title() and "int8" not in names(latency)
    assert "int8" in names(figure.axes[1]) and data["latency_ms"].to_list() == [10, None, 12, 10]
    assert "noisy" not in figure.axes[2].get_title()
    figure, _ = figures.benchmark_batches(files)
    assert "2 of 8 timings are noisy and left out" in figure.axes[0].get_title()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 0, 2, 2]
    figure, _ = figures.benchmark_latency(files)
    assert "noisy: no verdict from it" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert sum(bar.get_hatch() is not None for bar in figure.axes[1].patches) == 1
    rewrite_timing(files, pl.lit("noisy"))
    figure, _ = figures.benchmark_pareto(files)
    latency = figure.axes[3]
    assert "every timing is noisy: no verdict" in latency.get_title() and names(latency) == {"nothing to show"}


def test_flat_field_and_quality(files):
    figure, _ = figures.benchmark_flat_field(files)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines][2] == [3, 9]
    figure, _ = figures.benchmark_quality(files)
    titles = [axis.get_title().splitlines() for axis in figure.axes]
    assert titles == [["quality_loss", "n = 2, 1 prompts"], ["fid (few images)", "n = 2, 1 prompts"]]


@pytest.mark.parametrize("draw", ["quality", "pareto", "latency", "batches", "strips", "flat_field"])
def test_nothing_measured_is_a_note_and_every_figure_can_be_drawn(files, draw):
    figure, _ = getattr(figures, f"benchmark_{draw}")(files)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    for path in files["benchmark"]:
        if path.suffix == ".parquet" and path.stem != "targets":
            table = pl.read_parquet(path).clear()
            name = pl.read_parquet_metadata(path)["table"]
            write_loosely(table, path, name)
        elif path.suffix == ".tar":
            write_tar([], path)
    figure, data = getattr(figures, f"benchmark_{draw}")(files)
    assert data.is_empty() and len(figure.axes) == 0 and figure.texts
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def slanted_boxes(axis):
    """Left, right, bottom and top of each name in pixels, in a frame turned by its slant."""
    renderer = axis.get_figure().canvas.get_renderer()
    boxes = []
    for text in axis.texts:
        angle = np.radians(text.get_rotation())
        x, y = axis.transData.transform(text.xy) + np.array(text.xyann) * axis.get_figure().dpi / 72
        text.set_rotation(0)
        box = Text.get_window_extent(text, renderer)  # an annotation's own would hold its line as well
        text.set_rotation(np.degrees(angle))
        right, top = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        boxes.append((right - box.width, right, top - box.height, top))
    return boxes


def overlaps(boxes):
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return [(a, b) for a, b in pairs if a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]]


def test_names_on_a_crowded_front_do_not_overlap(monkeypatch):
    sizes = [1.0, 1.4, 1.41, 1.42, 2.0, 2.01, 2.6, 2.7, 2.8, 9.0]
    points = [(size, 0.3 / 2**number) for number, size in enumerate(sizes)]
    points[7:9] = [(2.7, points[6][1] * 0.99), (2.8, points[6][1] * 0.98)]
    overlapping = {}
    for height in (0, figures.NAME_HEIGHT):
        monkeypatch.setattr(figures, "NAME_HEIGHT", height)
        figure = FigureCanvasAgg(Canvas(figsize=(4, 3))).figure
        axis = figure.subplots()
        axis.loglog(*zip(*points, strict=True))
        figure.draw_without_rendering()
        figures.name_front(axis, points, [f"scheme-{size}" for size in sizes])
        overlapping[height] = overlaps(slanted_boxes(axis))
    assert overlapping[0] and not overlapping[figures.NAME_HEIGHT]
