"""Films: order and number of frames, what stands where, containers that players read, equal bytes, refusals."""

import io
import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import polars as pl
import pytest
from PIL import Image

from ditscope.capture.files import decoded_file, write_metadata
from ditscope.core.errors import InputError
from ditscope.core.films import write_film
from ditscope.core.shards import write_tar
from ditscope.video import mosaic
from ditscope.video.capture_sheet import contact_sheet
from ditscope.video.frames import COLOURS, text_width, tile, wrap
from ditscope.video.mosaic import TarImages, grid_of, layout_of, trajectory_video
from ditscope.video.settings import Video
from ditscope.video.stage import capture_video, create_visualization, order_of
from loose_tables import write_loosely

BLOCKS = ["double_block_0", *(f"single_block_{i}" for i in range(11))]


def shade(step: int, block: str, position: int) -> tuple[int, int, int]:
    """A colour that tells step, block and generation."""
    return 40 + 100 * step, 10 + 20 * BLOCKS.index(block), 200 * position


def fake_capture(root: Path, position: int = 0, prompt: str = "a ring", size: tuple[int, int] = (64, 64)) -> Path:
    """A capture's folder, with pictures of one colour each."""
    folder = root / f"genera{position}"
    for step in (0, 2):
        for block in BLOCKS:
            file = decoded_file(folder, "x0", step, block)
            (folder / "intermediates").mkdir(parents=True, exist_ok=True)
            file = decoded_file(folder, "x0", step, block)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, shade(step, block, position)).save(file, quality=95, subsampling=0)
    Image.new("RGB", size, (255, 255, 0)).save(folder / "img_0.jpg")
    metadata = {"captured_steps": [0, 2], "captured_blocks": BLOCKS, "sigmas": [1.0, 0.7, 0.3, 0.0], "num_steps": 3}
    write_metadata(metadata | {"model": "tiny", "prompt": prompt, "position": position}, folder / "intermediates")
    return folder


def gif_frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.asarray((film.seek(i), film.convert("RGB"))[1], int) for i in range(film.n_frames)]


def centre(frame: np.ndarray) -> np.ndarray:
    """The colour in the middle of the first tile of a film of 256 px tiles."""
    return frame[200, 100]


def test_frames_come_in_the_order_of_the_network(tmp_path):
    fake_capture(tmp_path)
    create_visualization("genera0", tmp_path)
    frames = gif_frames(tmp_path / "genera0" / "visualization_genera0.gif")
    expected = [shade(step, block, 0) for step in (0, 2) for block in BLOCKS] + [(255, 255, 0)]
    assert len(frames) == len(expected)
    for frame, colour in zip(frames, expected, strict=True):
        np.testing.assert_allclose(centre(frame), colour, atol=6)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"block_type": "single"}, BLOCKS[1:]),
        ({"max_blocks": 3}, BLOCKS[:3]),
        ({"block_type": "single", "max_blocks": 11}, BLOCKS[1:]),
        ({"block_type": "double"}, BLOCKS[:1]),
    ],
)
def test_block_type_and_max_blocks(options, blocks, tmp_path):
    metadata = {"captured_steps": [0, 2], "captured_blocks": BLOCKS}
    assert order_of(metadata, Video(**options), tmp_path) == [(step, block) for step in (0, 2) for block in blocks]


def test_mp4_has_every_frame_and_the_asked_rate(tmp_path):
    fake_capture(tmp_path, size=(65, 33))
    settings = Video(output_format="mp4", fps=4.0, max_blocks=4, tile_size=99, font_size=15)
    create_visualization("genera0", tmp_path, settings)
    path = tmp_path / "genera0" / "visualization_genera0.mp4"
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    assert width % 2 == 0 and height % 2 == 0 and about["fps"] == 4.0 and about["pix_fmt"].startswith("yuv420p")
    assert about["codec"] == "h264" and len(list(reader)) == 2 * 4 + 1
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first, so that playing starts at once


@pytest.mark.parametrize("kind", ("gif", "mp4"))
def test_equal_frames_give_equal_bytes(kind, tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(4)]
    for name in "ab":
        write_film(frames, tmp_path / f"{name}.{kind}", 2.0)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {f"a.{kind}", f"b.{kind}"}


def test_gif_lasts_as_long_as_asked(tmp_path):
    fake_capture(tmp_path)
    create_visualization("genera0", tmp_path, Video(fps=5.0, max_blocks=2))
    with Image.open(tmp_path / "genera0" / "visualization_genera0.gif") as film:
        durations = [(film.seek(i), film.info["duration"])[1] for i in range(film.n_frames)]
        assert durations == [200] * 5 and film.info["loop"] == 0


def test_generations_stand_side_by_side_in_prompt_order(tmp_path):
    for position in (1, 0):
        fake_capture(tmp_path / "set", position)
    others = {"denoising": tmp_path / "denoising.gif", "sheets": tmp_path / "sheets"}
    capture_video(tmp_path / "set", tmp_path / "out.gif", settings=Video(max_blocks=2, tile_size=200), **others)
    frame = gif_frames(tmp_path / "out.gif")[0]
    np.testing.assert_allclose(frame[150, 100], shade(0, BLOCKS[0], 0), atol=6)
    np.testing.assert_allclose(frame[150, 320], shade(0, BLOCKS[0], 1), atol=6)
    alone = Video(max_blocks=2, tile_size=200, max_generations=1)
    capture_video(tmp_path / "set", tmp_path / "one.gif", settings=alone, **others)
    assert gif_frames(tmp_path / "one.gif")[0].shape[1] < frame.shape[1]
    assert {p.name for p in (tmp_path / "sheets").iterdir()} == {"genera0.png", "genera1.png"}, "one a generation"


def test_denoising_film_shows_the_last_block_of_every_step(tmp_path):
    fake_capture(tmp_path)
    create_visualization("genera0", tmp_path)
    frames = gif_frames(tmp_path / "genera0" / "denoising_genera0.gif")
    expected = [shade(0, BLOCKS[-1], 0), shade(2, BLOCKS[-1], 0), (255, 255, 0)]
    assert len(frames) == len(expected)
    for frame, colour in zip(frames, expected, strict=True):
        np.testing.assert_allclose(centre(frame), colour, atol=6)


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_contact_sheet_has_steps_down_and_blocks_across(size, tmp_path):
    fake_capture(tmp_path, size=size, prompt="a ring " * 40)
    create_visualization("genera0", tmp_path, Video(tile_size=48))
    sheet = np.asarray(Image.open(tmp_path / "genera0" / "contact_sheet_genera0.png"), int)
    height = round(48 * size[1] / size[0])
    right = sheet.shape[1] - 4 - 48 // 2  # centre of the last column: the generated picture
    low = sheet.shape[0] - 4 - height // 2 - 4
    np.testing.assert_allclose(sheet[low, right], (255, 255, 0), atol=6)
    assert (sheet[low - height - 4, right] == 255).all(), "it stands in the last row only"
    for row, step in enumerate((0, 2)):
        for column, block in enumerate(BLOCKS):
            y, x = low - (1 - row) * (height + 4), right - (len(BLOCKS) - column) * 52
            np.testing.assert_allclose(sheet[y, x], shade(step, block, 0), atol=6)


def test_sheet_of_a_deep_network_stays_within_what_viewers_take(tmp_path):
    folder = fake_capture(tmp_path)
    blocks = [f"double_block_{i}" for i in range(19)] + [f"single_block_{i}" for i in range(38)]
    metadata = {"model": "m", "prompt": "p", "captured_steps": list(range(50)), "sigmas": [0.5] * 51}
    cells = [[folder / "img_0.jpg"] * len(blocks)] * 50
    sheet = contact_sheet(folder, metadata, cells, blocks, 256)
    assert max(sheet.size) <= 3840 and min(sheet.size) > 1500


def test_the_overlay_changes_with_block_and_step_only_where_it_should(tmp_path):
    """The bar above the tiles differs from frame to frame; the prompt below them does not."""
    fake_capture(tmp_path)
    create_visualization("genera0", tmp_path, Video(max_blocks=2))
    frames = gif_frames(tmp_path / "genera0" / "visualization_genera0.gif")
    assert len({frame[:40].tobytes() for frame in frames}) == len(frames)
    prompts = [frame[-3 * 20 :] for frame in frames]  # three lines of 15 px type
    assert prompts[0].min() < 60 and all(np.abs(p - prompts[0]).max() < 60 for p in prompts)


def test_refusals_name_the_mend(tmp_path):
    fake_capture(tmp_path)
    with pytest.raises(InputError, match=r"no such generation; in .*: genera0"):
        create_visualization("zzzzzzzz", tmp_path)
    with pytest.raises(InputError, match="no block of type `joint`; it has double, single"):
        create_visualization("genera0", tmp_path, Video(block_type="joint"))
    with pytest.raises(InputError, match=r"double_block_0\.jpg: no such picture; capture it with .* decode x_prev"):
        create_visualization("genera0", tmp_path, Video(decode="x_prev"))
    with pytest.raises(InputError, match="no finished capture"):
        capture_video(tmp_path / "genera0", tmp_path / "out.gif", tmp_path / "d.gif", tmp_path / "sheets")
    assert not (tmp_path / "out.gif").exists()


@pytest.mark.parametrize(
    "text", ["short", "a rather long prompt " * 20, "x" * 400, "", "$(rm -rf ~); 'drawtext=:%{n}\\"]
)
def test_wrapped_text_fits(text):
    for width, lines in ((120, 3), (60, 2)):
        wrapped = wrap(text, 14, width, lines)
        assert len(wrapped) <= lines and all(text_width(line, 14) <= width for line in wrapped)
        kept = "".join(wrapped).replace(" ", "")
        assert kept == text.replace(" ", "") or (kept.endswith("…") and text.replace(" ", "").startswith(kept[:-1]))


def test_tiles_keep_shape_and_pixels():
    image = Image.fromarray(np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3))
    grown = np.asarray(tile(image, 16))
    assert grown.shape == (8, 16, 3)
    np.testing.assert_array_equal(grown[::4, ::4], np.asarray(image))


# Trajectories ---------------------------------------------------------------------------------------------------------


def fake_trajectories(folder: Path, network: str, length: dict[str, int], base: int = 0) -> tuple[Path, Path]:
    """A shard of a network of one generator and one captioner; image k of run r is of one grey (base + 10 k + 50 r)."""
    rows, samples = [], []
    for r, (prompt, count) in enumerate(length.items()):
        for number in range(-1, count):
            kind = "IMAGE" if number % 2 == 0 else "TEXT"
            key = f"{network}-{prompt}-{number}"
            if kind == "IMAGE":
                buffer = io.BytesIO()
                Image.new("RGB", (64, 64), (base + 10 * number + 50 * r,) * 3).save(buffer, "PNG")
                samples.append({"__key__": key, "png": buffer.getvalue()})
            entry = None if number < 0 else "painter" if kind == "IMAGE" else f"teller-{network}"
            rows.append(
                {
                    "network": network,
                    "run_id": f"{network}-{prompt}",
                    "prompt_id": prompt,
                    "prompt": f"prompt of {prompt}",
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


def test_grid_of_prompts_and_networks(shards):
    rows = pl.concat([pl.read_parquet(table) for table in shards[0]])
    grid = grid_of(rows)
    assert grid.prompts == ["prompt of p10", "prompt of p2"]  # as in the table, not by name
    assert grid.columns == [("north", 0), ("south", 0)] and grid.length == 3
    assert grid.cycles == {"north": ["painter", "teller-north"], "south": ["painter", "teller-south"]}
    assert grid_of(rows, ["p2"]).prompts == ["prompt of p2", "prompt of p10"]
    with pytest.raises(InputError, match="prompt_order: no trajectory starts from `p3`; there are p10, p2"):
        grid_of(rows, ["p3"])


def test_every_place_has_a_frame_and_ended_runs_stay(shards, tmp_path):
    trajectory_video(*shards, tmp_path / "out.gif", Video(tile_size=100))
    frames = gif_frames(tmp_path / "out.gif")
    assert len(frames) == 5
    grid = grid_of(pl.concat([pl.read_parquet(table) for table in shards[0]]))
    pictures, layout = TarImages(shards[1]), layout_of(grid, Video(tile_size=100))
    greys = {0: (0, 120, 50, 170), 1: (0, 120, 50, 170), 2: (20, 140, 50, 190), 3: (20, 140, 50, 190)}
    for number, expected in greys.items():
        image = np.asarray(mosaic.frame(grid, pictures, number, layout), int)
        for cell, grey in enumerate(expected):
            x = 120 + cell % 2 * layout.cell[0] + layout.cell[0] // 2
            y = layout.head + cell // 2 * layout.cell[1] + 53
            assert tuple(image[y, x]) == (grey,) * 3, (number, cell)


def test_colours_say_which_model_made_what_is_new(shards):
    grid = grid_of(pl.concat([pl.read_parquet(table) for table in shards[0]]))
    painter, north, south = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS[:3])
    pictures, layout = TarImages(shards[1]), layout_of(grid, Video(tile_size=100))
    frames = (np.asarray(mosaic.frame(grid, pictures, number, layout))[layout.head :] for number in (-1, 0, 1))
    before, image, text = ({tuple(pixel) for pixel in rows.reshape(-1, 3)} for rows in frames)
    assert not before & {painter, north, south}
    assert painter in image and not image & {north, south}
    assert {north, south} <= text and painter not in text


def test_large_studies_shrink_to_a_frame_that_players_take(tmp_path):
    table, _ = fake_trajectories(tmp_path, "tall", {f"p{i}": 1 for i in range(30)})
    grid = grid_of(pl.read_parquet(table))
    large, small = layout_of(grid, Video(tile_size=512)), layout_of(grid, Video(tile_size=33))
    assert max(large.size) <= 3840 and 33 < large.side < 512 and small.side == 33


def test_library_without_torch():
    """Films are drawn in an environment without torch."""
    code = "import sys, ditscope.video.stage, ditscope.video.mosaic; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "scripts")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
