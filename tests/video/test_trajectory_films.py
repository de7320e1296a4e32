"""Films and sheets of trajectories: who stands where, colours, labels, pages, limits, refusals."""

import io
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.core.shards import write_tar
from ditscope.video import mosaic
from ditscope.video.frames import COLOURS, MARK, RESOLUTIONS, evenly, tint
from ditscope.video.grid import Jumps, TarImages, grid_of, read_jumps, read_trajectories
from ditscope.video.mosaic import Shot, draw_frame, film_of, layout_of, mosaic_of, pages_of, trajectory_video
from ditscope.video.settings import Video
from ditscope.video.timeline import timeline, timelines
from loose_tables import write_loosely


def fake_trajectories(
    folder: Path,
    network: str,
    length: dict[str, int],
    base: int = 0,
    seeds: tuple[int, ...] = (0,),
    size: tuple[int, int] = (64, 64),
) -> tuple[Path, Path]:
    """A shard of a network of one generator and one captioner; image k of run r is of one grey (base + 10 k + 50 r).

    Seeds below 0 are derived ones.
    """
    rows, samples = [], []
    for r, ((prompt, count), seed) in enumerate(itertools.product(length.items(), seeds)):
        for number in range(-1, count):
            kind = "IMAGE" if number % 2 == 0 else "TEXT"
            key = f"{network}-{prompt}-{seed}-{number}"
            if kind == "IMAGE":
                buffer = io.BytesIO()
                Image.new("RGB", size, ((base + 10 * number + 50 * r) % 256,) * 3).save(buffer, "PNG")
                samples.append({"__key__": key, "png": buffer.getvalue()})
            entry = None if number < 0 else "painter" if kind == "IMAGE" else f"teller-{network}"
            rows.append(
                {
                    "network": network,
                    "run_id": f"{network}-{prompt}-{seed}",
                    "prompt_id": prompt,
                    "prompt": f"prompt of {prompt}",
                    "seed": abs(seed),
                    "derived_seed": seed < 0,
                    "sequence_number": number,
                    "entry": entry,
                    "type": kind,
                    "output_key": key,
                    "output_text": f"text {number} of {prompt}" if kind == "TEXT" else None,
                    "stop_reason": "repeat" if count < 4 else "length",
                }
            )
    table, tar = folder / f"{network}.parquet", folder / f"{network}.tar"
    schema = {"entry": pl.String, "output_text": pl.String, "sequence_number": pl.Int32}
    write_loosely(pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None), table, "trajectories")
    write_tar(samples, tar)
    return table, tar


@pytest.fixture
def shards(tmp_path):
    pairs = [
        fake_trajectories(tmp_path, "north", {"p10": 4, "p2": 2}),
        fake_trajectories(tmp_path, "south", {"p10": 4, "p2": 4}, base=120),
    ]
    return [table for table, _ in pairs], [tar for _, tar in pairs]


def mosaic_from(shards, **settings) -> mosaic.Mosaic:
    """The mosaic of shards, of tiles of 100 pixels unless other ones are asked for."""
    chosen = Video(**{"tile_size": 100} | settings)
    return mosaic_of(grid_of(read_trajectories(shards[0]), chosen.prompt_order), TarImages(shards[1]), chosen)


def whole(drawn: mosaic.Mosaic, number: int) -> Shot:
    """The first page once an invocation is done."""
    return Shot(*pages_of(drawn.grid, drawn.layout)[0], number)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


# Grids ----------------------------------------------------------------------------------------------------------------


def test_grid_of_prompts_and_networks(shards):
    rows = read_trajectories(shards[0])
    grid = grid_of(rows)
    assert [text for _, text, _ in grid.prompts] == ["prompt of p10", "prompt of p2"]  # as in the table, not by name
    assert grid.columns == [("north", "seed 0"), ("south", "seed 0")] and grid.length == 3
    assert grid.cycles == {"north": ["painter", "teller-north"], "south": ["painter", "teller-south"]}
    assert [name for name, *_ in grid_of(rows, ["p2"]).prompts] == ["p2", "p10"]
    with pytest.raises(InputError, match="prompt_order: no trajectory starts from `p3`; there are p10, p2"):
        grid_of(rows, ["p3"])
    with pytest.raises(InputError, match="prompt_order: names `p2` twice"):
        grid_of(rows, ["p2", "p10", "p2"])


def test_every_column_and_row_has_a_label_with_its_seed(tmp_path):
    table, _ = fake_trajectories(tmp_path, "net", {"a": 2, "b": 2}, seeds=(7, 0, -1, -2))
    grid = grid_of(read_trajectories([table]))
    assert grid.columns == [("net", name) for name in ("seed 7", "seed 0", "run 3", "run 4")]
    assert grid.prompts == [("a", "prompt of a", ""), ("b", "prompt of b", "")]
    own = pl.read_parquet(table).filter(seed=7)  # a CSV with a seed per prompt
    own = own.with_columns(seed=pl.when(pl.col("prompt_id") == "a").then(11).otherwise(12))
    grid = grid_of(own)
    assert grid.columns == [("net", "run 1")] and [seed for *_, seed in grid.prompts] == ["seed 11", "seed 12"]


def test_empty_tables_are_refused(shards, tmp_path):
    empty = tmp_path / "empty.parquet"
    write_loosely(pl.read_parquet(shards[0][0]).clear(), empty, "trajectories")
    for draw in (trajectory_video, timeline):
        with pytest.raises(InputError, match=r"empty\.parquet: no trajectory, so there is nothing to draw"):
            draw([empty], shards[1], tmp_path / "out.png")
        with pytest.raises(InputError, match="tables: none is given"):
            draw([], shards[1], tmp_path / "out.png")
        with pytest.raises(InputError, match=r"no image north-p10-0-0\.png in the shards of `images`"):
            draw(shards[0][:1], shards[1][1:], tmp_path / ("out.gif" if draw is trajectory_video else "out.png"))


# Films ----------------------------------------------------------------------------------------------------------------


def test_every_place_has_a_frame_and_ended_runs_stay(shards, tmp_path):
    trajectory_video(*shards, tmp_path / "out.gif", settings=Video(tile_size=100))
    with Image.open(tmp_path / "out.gif") as film:
        assert film.n_frames == 5
        durations = [(film.seek(i), film.info["duration"])[1] for i in range(5)]
    assert durations == [1500, 500, 500, 500, 1500], "the first and the last are held"
    drawn = mosaic_from(shards)
    layout = drawn.layout
    greys = {0: (0, 120, 50, 170), 1: (0, 120, 50, 170), 2: (20, 140, 50, 190), 3: (20, 140, 50, 190)}
    for number, expected in greys.items():
        image = np.asarray(draw_frame(drawn, whole(drawn, number)), int)
        for cell, grey in enumerate(expected):
            x = layout.label + 20 + cell % 2 * layout.cell[0] + layout.cell[0] // 2
            y = layout.head + cell // 2 * layout.cell[1] + 53
            assert tuple(image[y, x]) == (grey,) * 3, (number, cell)


def test_colours_say_which_model_made_what_and_what_is_new(shards):
    """Borders of pictures and bars beside texts; in full where it was just made, in a tint where it was before."""
    drawn = mosaic_from(shards)
    painter, north, south = (rgb(colour) for colour in COLOURS[:3])
    old_painter, old_north, old_south = (rgb(tint(colour)) for colour in COLOURS[:3])
    frames = (np.asarray(draw_frame(drawn, whole(drawn, n)))[drawn.layout.head :] for n in (-1, 0, 1, 2))
    before, image, text, last = ({tuple(pixel) for pixel in rows.reshape(-1, 3)} for rows in frames)
    new, old = {painter, north, south}, {old_painter, old_north, old_south}
    assert not before & (new | old)
    assert image & new == {painter} and not image & old
    assert text & new == {north, south} and text & old == {old_painter}
    assert last & new == {painter} and last & old == {old_north, old_south}


def test_a_jump_is_marked_while_its_state_is_the_newest(shards, tmp_path):
    drawn = mosaic_from(shards)
    rows = [("clip", "south-p2-0", 1, True, 0.01), ("minilm", "north-p10-0", 1, True, 0.05),
            ("minilm", "south-p2-0", 1, False, 0.01), ("minilm", "south-p2-0", 3, True, 0.06)]  # fmt: skip
    table = pl.DataFrame(rows, ["embedder", "run_id", "sequence_number", "jump", "p_walk"], orient="row")
    write_loosely(table, tmp_path / "jumps.parquet", "drift.jumps")
    jumps = read_jumps(tmp_path / "jumps.parquet", "minilm")
    assert jumps == Jumps("minilm", frozenset({("north-p10-0", 1)})), "not one that a walk makes as well"
    assert read_jumps(tmp_path / "jumps.parquet").embedder == "clip", "the first one"
    with pytest.raises(InputError, match=r"jump_embedder: no jumps of `x` in .*jumps\.parquet; it has clip, minilm"):
        read_jumps(tmp_path / "jumps.parquet", "x")
    jump = mosaic_of(drawn.grid, TarImages(shards[1]), Video(tile_size=100), jumps)
    layout = jump.layout
    frames = [np.asarray(draw_frame(jump, whole(jump, n))) for n in (0, 1, 2, 3)]
    marked = [(frame == rgb(MARK)).all(-1) for frame in frames]
    assert all(pixels[: layout.head].any() for pixels in marked), "the key says by which embedder"
    assert [bool(pixels[layout.head :].any()) for pixels in marked] == [False, True, True, False]
    y, x = (places.mean() for places in np.nonzero(marked[1][layout.head :]))
    y += layout.head
    assert layout.head < y < layout.head + layout.cell[1] and x < layout.label + 20 + layout.cell[0], "the first cell"


def test_pictures_of_mixed_and_odd_sizes_keep_their_shape(tmp_path):
    sizes = [(64, 40), (33, 65), (256, 256), (1000, 1)]
    pairs = [fake_trajectories(tmp_path, f"n{i}", {"p": 2}, 100, size=size) for i, size in enumerate(sizes)]
    shards = [[pair[i] for pair in pairs] for i in (0, 1)]
    drawn = mosaic_from(shards)
    frame = np.asarray(draw_frame(drawn, whole(drawn, 0)), int)
    for column, (width, height) in enumerate(sizes):
        left = drawn.layout.label + 20 + column * drawn.layout.cell[0]
        cell = frame[drawn.layout.head :, left : left + drawn.layout.cell[0]]
        scale = 100 / max(width, height)
        bright = (cell == 100).all(-1).sum()
        expected = max(1, round(width * scale)) * max(1, round(height * scale))
        assert 0 <= bright - expected < 20, "and a few pixels of text"
    trajectory_video(*shards, tmp_path / "odd.mp4", settings=Video(tile_size=101))
    timeline(*shards, tmp_path / "sheet.png", tmp_path / "strip.png")


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("least", [16, 64])
@pytest.mark.parametrize(
    ("prompts", "networks", "seeds"),
    [(1, 1, 1), (4, 2, 1), (16, 4, 1), (200, 1, 1), (200, 2, 1), (3, 5, 30), (30, 6, 8)],
)
def test_frames_keep_their_limit_and_show_every_run_once(resolution, least, prompts, networks, seeds, tmp_path):
    length = {f"p{i}": 1 for i in range(prompts)}
    pairs = [fake_trajectories(tmp_path, f"net{n}", length, seeds=tuple(range(seeds))) for n in range(networks)]
    drawn = mosaic_from([[pair[i] for pair in pairs] for i in (0, 1)], resolution=resolution, min_tile_size=least)
    width, height = RESOLUTIONS[resolution]
    assert drawn.layout.size[0] <= width and drawn.layout.size[1] <= height and least <= drawn.layout.side <= 100
    pages = pages_of(drawn.grid, drawn.layout)
    shown = [(row, column) for rows, columns in pages for row in rows for column in columns]
    assert sorted(shown) == [(r, c) for r in range(prompts) for c in range(networks * seeds)]
    frames = [draw_frame(drawn, Shot(*page, 0)) for page in (pages[0], pages[-1])]
    assert {frame.size for frame in frames} == {drawn.layout.size}
    rows, columns = pages[-1]
    border = (np.asarray(frames[-1])[drawn.layout.head :] == rgb(COLOURS[0])).all(-1).sum()
    side, edge = drawn.layout.side, mosaic.BORDER
    assert border == len(rows) * len(columns) * ((side + 2 * edge) ** 2 - side**2)


def test_two_hundred_prompts_in_one_film(tmp_path):
    shards = fake_trajectories(tmp_path, "tall", {f"p{i}": 1 for i in range(200)})
    chosen = Video(resolution="hd", hold_seconds=0)
    trajectory_video([shards[0]], [shards[1]], tmp_path / "out.mp4", settings=chosen)
    drawn = mosaic_from([[shards[0]], [shards[1]]], resolution="hd")
    pages = pages_of(drawn.grid, drawn.layout)
    assert len(film_of(drawn, chosen)) == 2 * len(pages) and len(pages) > 1
    titles = {draw_frame(drawn, Shot(*page, 0)).crop((0, 0, drawn.layout.size[0], 40)).tobytes() for page in pages}
    assert len(titles) == len(pages), "the title says which prompts are seen"


def test_tiles_that_cannot_fit_are_refused(shards):
    grid = grid_of(read_trajectories(shards[0]))
    for wrong in ({"tile_size": 4000, "min_tile_size": 4000}, {"font_size": 2500}):
        with pytest.raises(InputError, match=r"has no room for a tile of .* lower min_tile_size or font_size"):
            layout_of(grid, Video(**wrong))


# Sheets ---------------------------------------------------------------------------------------------------------------


def test_evenly_spaced():
    assert evenly(3, 8) == [0, 1, 2] and evenly(9, 3) == [0, 4, 8] and evenly(5, 1) == [4] and evenly(0, 4) == []
    for count, most in itertools.product(range(2, 60), range(2, 20)):
        numbers = evenly(count, most)
        assert numbers[0] == 0 and numbers[-1] == count - 1 and len(numbers) == min(count, most)
        assert len({*numbers}) == len(numbers) and np.ptp(np.diff(numbers)) <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_timeline_has_runs_down_and_time_across(shards, suffix, tmp_path):
    tables, tars = fake_trajectories(tmp_path, "long", {"a": 12, "b": 6}, base=40)
    timeline([tables], [tars], tmp_path / f"t.{suffix}", settings=Video(tile_size=90, timeline_images=3))
    sheet = np.asarray(Image.open(tmp_path / f"t.{suffix}").convert("RGB"), int)
    runs = [[40, 80, 140], [90, 110, 130]]  # of `a` invocations 1, 5, 11 (0, 4, 10); of `b` 1, 3, 5
    for grey in itertools.chain(*runs):
        blank = (np.abs(sheet - grey) <= (0 if suffix == "png" else 1)).all(-1)
        assert abs(blank.sum() - 90 * 90) < 400, grey
    centres = [[np.argwhere((np.abs(sheet - grey) <= 1).all(-1)).mean(0) for grey in run] for run in runs]
    assert all(np.ptp([y for y, _ in run]) < 3 and np.all(np.diff([x for _, x in run]) > 90) for run in centres)
    assert centres[1][0][0] > centres[0][0][0] + 90


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("runs", [1, 200, 1500])
def test_timelines_keep_their_limit_and_show_every_run(resolution, runs, tmp_path):
    table, tar = fake_trajectories(tmp_path, "net", {f"p{i}": 4 for i in range(runs)})
    timeline([table], [tar], tmp_path / "t.png", settings=Video(resolution=resolution))
    with Image.open(tmp_path / "t.png") as sheet:
        assert sheet.width <= RESOLUTIONS[resolution][0] and sheet.height <= RESOLUTIONS[resolution][1]
        bars = (np.asarray(sheet) == rgb(COLOURS[0])).all(-1)
    key = bars[:30].sum()
    assert (bars.sum() - key) % (3 * 2 * runs) == 0 and bars.sum() > key, "a bar per picture, all of one length"


def test_strip_has_every_picture_of_the_run_and_its_texts(shards, tmp_path):
    settings = Video(tile_size=80)
    timeline(*shards, tmp_path / "t.png", tmp_path / "s.png", run_id="south-p2-0", settings=settings)
    strip = np.asarray(Image.open(tmp_path / "s.png"), int)
    for grey in (170, 190):
        assert (strip == grey).all(-1).sum() >= 80 * 80
    assert (strip == rgb(COLOURS[1])).all(-1).any(), "texts in the colour of the model that wrote them"
    with pytest.raises(InputError, match=r"run_id: no run `zzz` in .*north\.parquet"):
        timeline(*shards, tmp_path / "t.png", tmp_path / "s.png", run_id="zzz")
    with pytest.raises(InputError, match=r"sheets are \.png or \.jpg"):
        timeline(*shards, tmp_path / "t.tiff")


def test_a_sheet_per_network(shards, tmp_path):
    timelines(*shards, tmp_path / "sheets", tmp_path / "strips", Video(sheet_format="jpg"))
    for folder in ("sheets", "strips"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"north.jpg", "south.jpg"}


def test_a_strip_of_a_long_run_says_what_it_leaves_out(tmp_path):
    table, tar = fake_trajectories(tmp_path, "net", {"p": 901})
    timeline([table], [tar], tmp_path / "t.png", tmp_path / "s.jpg", settings=Video(resolution="hd"))
    with Image.open(tmp_path / "s.jpg") as strip:
        assert strip.width <= 1920 and strip.height <= 1080


def test_a_prompt_alone_has_sheets(tmp_path):
    """A run that ended before its first picture."""
    table, tar = fake_trajectories(tmp_path, "net", {"p": 0})
    timeline([table], [tar], tmp_path / "t.png", tmp_path / "s.png")
    trajectory_video([table], [tar], tmp_path / "out.gif")
