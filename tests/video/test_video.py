"""Films and sheets of captures: order and number of frames, what stands where, refusals."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from ditscope.capture.files import decoded_file, write_metadata
from ditscope.core.errors import InputError
from ditscope.video.capture_sheet import contact_sheet
from ditscope.video.check import check_page
from ditscope.video.frames import RESOLUTIONS, text_width, tile, wrap
from ditscope.video.settings import Video
from ditscope.video.stage import Shot, capture_video, create_visualization, film_of, layout_of, order_of

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
    capture_video(tmp_path / "set", tmp_path / "one.gif", page=tmp_path / "one.html", settings=alone, **others)
    check_page((tmp_path / "one.html").read_bytes())
    assert gif_frames(tmp_path / "one.gif")[0].shape[1] < frame.shape[1]
    assert {p.name for p in (tmp_path / "sheets").iterdir()} == {"genera0.png", "genera1.png"}, "one per generation"


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
    many = {**metadata, "captured_steps": list(range(300)), "sigmas": [0.5] * 301}
    sheet = contact_sheet(folder, many, [[folder / "img_0.jpg"] * len(blocks)] * 300, blocks, 256)
    assert max(sheet.size) <= 3840, "of more steps than fit, evenly spaced ones"


def test_many_generations_and_large_pictures_stay_within_a_frame(tmp_path):
    folders = [fake_capture(tmp_path, i, "a ring " * 9, size=(300, 700)) for i in range(23)]
    shots = [Shot([folder / "img_0.jpg" for folder in folders], "step 1", "tiny")]
    for resolution, (width, height) in RESOLUTIONS.items():
        for shown in (1, 2, 23):
            few = [Shot(shots[0].images[:shown], "step 1", "tiny")]
            (frame, *_) = film_of(few, ["a ring"] * shown, Video(resolution=resolution))
            assert frame.width <= width and frame.height <= height
            yellow = (np.abs(np.asarray(frame, int) - (255, 255, 0)).max(-1) < 9).sum()
            assert yellow > 0.97 * shown * layout_of(few, shown, Video(resolution=resolution)).side ** 2 * 3 / 7
    with pytest.raises(InputError, match=r"max_generations: 23 .* lower font_size"):
        film_of(shots, ["a ring"] * 23, Video(resolution="hd", font_size=500))


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
    assert tile(Image.new("RGB", (1000, 1)), 100).size == (100, 1)


def test_library_without_torch():
    """Films are drawn in an environment without torch."""
    rooms = "ditscope.video.stage, ditscope.video.mosaic, ditscope.video.timeline"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "scripts")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
