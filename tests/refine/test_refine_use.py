"""Using a refiner: storyboards, pictures and mazes, and one line for each thing that cannot be."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ditscope import cli
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.shards import png_bytes, write_tar
from ditscope.generate.tables import IMAGES
from ditscope.refine import use
from ditscope.refine.adapters.pixels import decode, encode
from ditscope.refine.maze_file import read_maze
from ditscope.refine.settings import Storyboard
from ditscope.refine.storyboard import complete_storyboard
from ditscope.shapes.moving import all_moves, render_move
from ditscope.workflow.sources import check_sources
from refine_refiners import CLIPS, FILMS, MAZES, PATHS, PICTURES, RENDERS, small_refiner
from workflow import ROOT

MAZE = """#######
#S....#
###.#.#
#...#.#
#.###.#
#....G#
#######
"""


@pytest.fixture(scope="module")
def refiners(tmp_path_factory) -> dict[str, Path]:
    """Refiners of random weights over films, pictures and paths."""
    folder = tmp_path_factory.mktemp("refiners")
    kinds = {"films": (CLIPS, FILMS), "pictures": (RENDERS, PICTURES), "paths": (MAZES, PATHS)}
    return {name: small_refiner(folder / name, *made) for name, made in kinds.items()}


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A folder with the frames of a film as PNG, more than ten so that names need sorting by number."""
    folder = tmp_path_factory.mktemp("film")
    frames = render_move(all_moves()[3], 11, np.random.default_rng(0))
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder, frames


def run(*arguments: object) -> int:
    return cli.main(["refine-apply", *map(str, arguments)])


def test_a_storyboard_becomes_a_film_whose_keys_are_those_given(refiners, film, tmp_path):
    folder, frames = film
    keys = [folder / f"{n}.png" for n in (0, 4, 10)]
    given = ("--refiner", refiners["films"], "--storyboard", *keys)
    assert run(*given, "--frames", 7, "--positions", 0, 2, 6, "--out", tmp_path / "out") == 0
    values = np.load(tmp_path / "out" / "refined.npy")
    assert values.shape == (3, 7, 64, 64)
    np.testing.assert_array_equal(decode(values[None])[0][[0, 2, 6]], frames[[0, 4, 10]])
    made = [Image.open(tmp_path / "out" / "refined" / f"{n:04d}.png") for n in range(7)]
    np.testing.assert_array_equal(np.asarray(made[2]), frames[4])
    with Image.open(tmp_path / "out" / "compared.gif") as gif:
        assert gif.n_frames >= 2
    told = json.loads((tmp_path / "out" / "applied.json").read_text())
    assert told["known"] == [0, 2, 6] and told["nodes"] == [7]


def test_positions_are_even_and_a_film_with_all_frames_is_its_own_truth(refiners, film, tmp_path):
    folder, frames = film
    keys = [folder / f"{n}.png" for n in (0, 4, 10)]
    assert run("--refiner", refiners["films"], "--storyboard", *keys, "--frames", 9, "--out", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "applied.json").read_text())["known"] == [0, 4, 8]
    whole = ("--storyboard", folder, "--frames", 11, "--positions", 0, 10, "--film-format", "mp4")
    assert run("--refiner", refiners["films"], *whole, "--out", tmp_path / "b") == 0
    assert (tmp_path / "b" / "compared.mp4").stat().st_size > 500
    rows = [np.asarray(Image.open(tmp_path / name / "compared.png")).shape[0] for name in "ab"]
    assert rows[1] == rows[0] * 3 // 2  # interpolated, refined, and here the truth too
    values = np.load(tmp_path / "b" / "refined.npy")
    np.testing.assert_array_equal(decode(values[None])[0][[0, 10]], frames[[0, 10]])
    assert np.abs(decode(values[None])[0][5].astype(int) - frames[5]).max() > 0  # of the others nothing was looked at


def test_a_picture_keeps_the_patches_that_are_known(refiners, film, tmp_path):
    picture = film[0] / "3.png"
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ("--refiner", refiners["pictures"], "--image", picture)
    assert run(*given, "--keep", tmp_path / "mask.png", "--out", tmp_path / "half") == 0
    made = decode(np.load(tmp_path / "half" / "refined.npy")[None])[0]
    truth = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(made[:, :32], truth[:, :32])
    assert (made[:, 32:] != truth[:, 32:]).any()
    assert run(*given, "--keep", 5, "--out", tmp_path / "some") == 0
    assert len(json.loads((tmp_path / "some" / "applied.json").read_text())["known"]) == 5
    assert {f.name for f in (tmp_path / "some").iterdir()} == {
        "applied.json", "compared.png", "interpolated.png", "refined.npy", "refined.png",
    }  # fmt: skip


def test_a_maze_as_text_gets_a_path_through_its_stops(refiners, tmp_path):
    (tmp_path / "maze.txt").write_text(MAZE.replace("#....G", "#a...G"))
    given = ("--refiner", refiners["paths"], "--path", tmp_path / "maze.txt", "--frames", 15)
    assert run(*given, "--out", tmp_path / "out") == 0
    values = np.load(tmp_path / "out" / "refined.npy")
    known = json.loads((tmp_path / "out" / "applied.json").read_text())["known"]
    assert values.shape == (2, 15) and known[0] == 0 and known[-1] == 14 and len(known) == 3
    np.testing.assert_allclose(values[:, known].T, [(1, 1), (5, 1), (5, 5)], atol=1e-4)
    with Image.open(tmp_path / "out" / "compared.png") as sheet:
        assert sheet.width > 4 * 100


BAD_MAZES = {
    "not square": ("#####\n#S G#\n#####", "row 0 has 5 cells, of 3 rows"),
    "no start": (MAZE.replace("S", "."), "no start; mark its cell by S"),
    "two goals": (MAZE.replace("#...#", "#G..#"), "`G` is there twice"),
    "another letter": (MAZE.replace("S", "X"), "row 1, column 1: `X`"),
    "open border": (MAZE.replace("#.###", "..###"), "its border is open"),
    "no way": (MAZE.replace("#....G", "#...#G").replace("#.###.#", "#.#####"), "no way from"),
}


@pytest.mark.parametrize("case", BAD_MAZES)
def test_bad_mazes_are_named(tmp_path, case):
    text, said = BAD_MAZES[case]
    (tmp_path / "maze.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        read_maze(tmp_path / "maze.txt")


def test_positions_of_stops_are_in_step_with_the_way(tmp_path):
    (tmp_path / "maze.txt").write_text(MAZE)
    maze = read_maze(tmp_path / "maze.txt")
    assert maze.positions(9) == [0, 8]
    np.testing.assert_array_equal(maze.way(len(maze.legs()[0])).T, maze.legs()[0])


def other_size(folder: Path) -> list[object]:
    Image.new("RGB", (32, 32)).save(folder / "small.png")
    return ["--storyboard", "FILM/0.png", folder / "small.png", "--frames", 5]


def nan_values(folder: Path) -> list[object]:
    values = encode(np.zeros((2, 64, 64, 3), np.uint8))
    np.save(folder / "0.npy", values[0])
    values[1, 0, 3, 3] = np.nan
    np.save(folder / "1.npy", values[1])
    return ["--storyboard", folder / "0.npy", folder / "1.npy", "--frames", 5]


def damaged(folder: Path) -> list[object]:
    (folder / "bad.png").write_bytes(b"no picture")
    return ["--storyboard", folder / "bad.png", "--frames", 5]


def odd_size(folder: Path) -> list[object]:
    Image.new("RGB", (40, 40)).save(folder / "odd.png")
    return ["--storyboard", folder / "odd.png", "--frames", 5]


def mask_of_another_size(folder: Path) -> list[object]:
    Image.new("RGB", (32, 32), "white").save(folder / "mask.png")
    return ["--image", "FILM/0.png", "--keep", folder / "mask.png"]


def empty_folder(folder: Path) -> list[object]:
    return ["--storyboard", folder, "--frames", 5]


KEYS = ["--storyboard", "FILM/0.png", "FILM/1.png"]
BAD = {
    "key outside the clip": (
        "films",
        [*KEYS, "--frames", 5, "--positions", 0, 5],
        r"position 5 is outside the 5 frames",
    ),
    "fewer frames than keys": ("films", [*KEYS, "FILM/2.png", "--frames", 2], r"3 given, but there are only 2 frames"),
    "unordered keys": ("films", [*KEYS, "--frames", 5, "--positions", 3, 1], r"position 1 comes after 3"),
    "a key twice": ("films", [*KEYS, "--frames", 5, "--positions", 3, 3], r"position 3 is there twice"),
    "positions of other number": ("films", [*KEYS, "--frames", 5, "--positions", 3], r"--positions: 1 for 2 pictures"),
    "no frames": ("films", KEYS, r"--frames: say how many frames"),
    "nothing missing": ("films", [*KEYS, "--frames", 2], r"nothing is left to refine"),
    "frames of different size": ("films", other_size, r"small.png: is 32 x 32 pixels, and .*0.png 64 x 64"),
    "NaN": ("films", nan_values, r"1.npy: has NaN or Inf"),
    "damaged picture": ("films", damaged, r"bad.png: not a readable picture"),
    "missing picture": ("films", ["--storyboard", "none.png", "--frames", 5], r"none.png: no such file"),
    "empty folder": ("films", empty_folder, r"no pictures in it"),
    "size that patches leave a rest of": ("films", odd_size, r"patches of 16 leave a rest"),
    "two requests": ("films", [*KEYS, "--image", "FILM/0.png"], r"give one of --storyboard, --image and --path"),
    "no request": ("films", [], r"give one of --storyboard, --image and --path"),
    "a storyboard for pictures": ("pictures", [*KEYS, "--frames", 5], r"trained on pictures; give --image"),
    "a picture for films": ("films", ["--image", "FILM/0.png", "--keep", 3], r"trained on films; give --storyboard"),
    "another film format": ("films", [*KEYS, "--frames", 5, "--film-format", "avi"], r"films are gif or mp4"),
    "nothing kept": ("pictures", ["--image", "FILM/0.png"], r"--keep: say how many of the 16 patches"),
    "all kept": ("pictures", ["--image", "FILM/0.png", "--keep", 16], r"--keep: 16 of 16 patches"),
    "mask of another size": ("pictures", mask_of_another_size, r"mask.png: is 32 x 32 pixels, the picture 64 x 64"),
    "more stops than points": ("paths", ["--path", "MAZE", "--frames", 1], r"2 given, but there are only 1 points"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line_and_leave_nothing(refiners, film, tmp_path, capsys, case):
    kind, given, said = BAD[case]
    (tmp_path / "in").mkdir()
    arguments = given(tmp_path / "in") if callable(given) else given
    (tmp_path / "maze.txt").write_text(MAZE)
    named = [str(a).replace("FILM", str(film[0])).replace("MAZE", str(tmp_path / "maze.txt")) for a in arguments]
    assert run("--refiner", refiners[kind], *named, "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err.strip()
    assert re.search(said, line), line
    assert line.count("\n") == 0 and line.startswith("ditscope refine-apply: ")
    assert not (tmp_path / "out").exists()


def test_values_are_accepted_where_pictures_are(refiners, film, tmp_path):
    for number in (0, 4):
        np.save(tmp_path / f"{number}.npy", encode(film[1][number][None])[0])
    given = ("--refiner", refiners["films"], "--storyboard", tmp_path / "0.npy", tmp_path / "4.npy", "--frames", 5)
    assert run(*given, "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(decode(np.load(tmp_path / "out" / "refined.npy")[None])[0][0], film[1][0])


def shard(folder: Path, frames: np.ndarray) -> tuple[Path, Path]:
    """What `generate` leaves of three prompts."""
    rows = [{"prompt_id": f"p{n}", "prompt": f"frame {n}", "key": f"k{n}"} for n in range(3)]
    write_tar(({"__key__": f"k{n}", "png": png_bytes(frames[4 * n]), "json": {}} for n in range(3)), folder / "s.tar")
    table = pl.DataFrame(rows)
    for name, dtype in IMAGES.schema().items():
        if name not in table.columns:
            value = {pl.String: "x", pl.Boolean: False}.get(dtype, 1)
            table = table.with_columns(pl.lit(value).cast(dtype).alias(name))
    table.select(list(IMAGES.schema())).write_parquet(folder / "s.parquet", metadata={"table": "images"})
    return folder / "s.tar", folder / "s.parquet"


def test_pictures_of_prompts_are_the_keys_of_a_film_and_of_pictures(refiners, film, tmp_path, monkeypatch):
    tar, table = shard(tmp_path, film[1])
    monkeypatch.setattr("ditscope.refine.storyboard.read_table", lambda path, name: pl.read_parquet(path))
    board = Storyboard(model="m", prompts=["p0", "p1", "p2"], frames=9, prompt="a film")
    complete_storyboard(refiners["films"], [tar], [table], tmp_path / "film", tmp_path / "film.html", board)
    values = np.load(tmp_path / "film" / "film" / "refined.npy")
    np.testing.assert_array_equal(decode(values[None])[0][[0, 4, 8]], film[1][[0, 4, 8]])
    page = (tmp_path / "film.html").read_text()
    assert "data:image/gif;base64," in page and "data:image/png;base64," in page  # the film, and frame by frame
    assert page.rstrip().endswith("</html>")
    board = Storyboard(model="m", prompts=["p1"], keep=6)
    complete_storyboard(refiners["pictures"], [tar], [table], tmp_path / "pictures", tmp_path / "p.html", board)
    assert (tmp_path / "pictures" / "p1" / "compared.png").exists()
    named = Storyboard(pictures=[str(film[0] / f"{n}.png") for n in (0, 8)], frames=9, prompt="a film")
    complete_storyboard(refiners["films"], [], [], tmp_path / "given", tmp_path / "given.html", named)
    values = np.load(tmp_path / "given" / "film" / "refined.npy")
    np.testing.assert_array_equal(decode(values[None])[0][[0, 8]], film[1][[0, 8]])
    with pytest.raises(InputError, match="no picture of the prompt `p9`"):
        complete_storyboard(
            refiners["films"], [tar], [table], tmp_path / "x", tmp_path / "x.html", Storyboard("m", ["p9"], frames=3)
        )


UNFIT = {
    "unknown": ({"prompts": ["red-circle-lef"]}, "prompts: `red-circle-lef` is not .*; did you mean `red-circle-left`"),
    "too many": ({"frames": 2}, "3 given, but there are only 2 frames"),
    "outside": ({"positions": [0, 4, 9]}, r"position 9 is outside the 9 frames"),
    "uneven": ({"positions": [0, 8]}, "positions: 2 for 3 pictures"),
    "both": ({"pictures": ["a.png"]}, "name `prompts` of a model or files of `pictures`, one of the two"),
    "neither": ({"prompts": []}, "name `prompts` of a model or files of `pictures`, one of the two"),
    "no file": ({"prompts": [], "pictures": ["a.png"]}, "no such file: a.png"),
    "no refiner": ({"refiner": "b.safetensors"}, "no such file: b.safetensors"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_storyboard_that_cannot_be_is_refused_before_work_starts(case):
    change, message = UNFIT[case]
    config = read_config([ROOT / "experiments/refiner-storyboard.yaml"])
    config = replace(config, prompts=replace(config.prompts, csv=str(ROOT / "prompts/storyboard.csv")))
    check_sources(config)
    entry = config.refiners["whole"]
    boards = {"x": replace(entry.storyboards["to-the-right"], **change)}
    with pytest.raises(InputError, match=r"refiners.whole.storyboards.x.*" + message):
        check_sources(replace(config, refiners=config.refiners | {"whole": replace(entry, storyboards=boards)}))


def test_weights_of_an_encoder_that_are_not_there_are_refused_before_work_starts():
    config = read_config([ROOT / "experiments/refiner-levels.yaml"])
    entry = replace(config.refiners["keys"], settings={"encoder_weights": "no/such.pth"})
    with pytest.raises(InputError, match=r"refiners.keys: no such file or folder: no/such.pth \(encoder_weights\)"):
        check_sources(replace(config, refiners=config.refiners | {"keys": entry}))


def test_names_go_by_their_numbers():
    names = [Path(n) for n in ("10.png", "9.png", "a2.png", "a10.png", "a1b3.png")]
    assert [p.name for p in sorted(names, key=use.by_number)] == ["9.png", "10.png", "a1b3.png", "a2.png", "a10.png"]
