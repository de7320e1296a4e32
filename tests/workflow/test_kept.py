"""Commands that write into a folder of the user's: what they did not write stays, and nothing finished is made anew."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from ditscope.calibrate import stage as calibration
from ditscope.calibrate.files import validate_calibration
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.capture import stage
from ditscope.capture.files import captures_in, generation_name, read_metadata
from ditscope.capture.settings import CaptureSet
from ditscope.capture.stage import capture
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from tiny_models import ENTRIES, tiny_generator

FLUX = replace(ENTRIES["flux"], steps=2)
SETTINGS = Calibrate(num_images=3, num_steps=2, cfg_weight=2.5, shard_size=2, slice_size=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Captures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function that captures with the tiny FLUX into `tmp_path`/output and returns the ids that are there."""
    loaded = []

    def load(name, entry, **_):
        loaded.append(name)
        return replace(tiny_generator("flux", name), entry=entry)

    monkeypatch.setattr(stage, "load_placed", load)
    blocks = [f"{kind}_block_{i}" for kind in ("double", "single") for i in (0, 1)]
    monkeypatch.setattr(stage, "block_names", lambda *_: blocks)
    monkeypatch.setattr("ditscope.models.requests.prompt_tokens", lambda model, prompt: (3, False))

    def make(prompt="a ring", **more) -> set[str]:
        capture("tiny", FLUX, tmp_path / "output", prompt=prompt, seed=1, **more)
        return {folder.name for folder in captures_in(tmp_path / "output")}

    return make


CHANGES = {
    "steps": {"num_steps": 3}, "guidance": {"guidance": 2.0}, "size": {"width": 64},
    "blocks": {"settings": CaptureSet(blocks="double:*")}, "captured steps": {"settings": CaptureSet(steps="0")},
    "decodes": {"settings": CaptureSet(decode=["x_prev"])},
    "no decodes": {"settings": CaptureSet(should_decode_intermediates=False)},
    "image format": {"settings": CaptureSet(image_format="png")}, "one file": {"settings": CaptureSet(format="pt")},
    "statistics": {"settings": CaptureSet(store="statistics", should_decode_intermediates=False)},
    "no prompt in the picture": {"settings": CaptureSet(add_sampling_metadata=False)},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_capture_with_other_options_stands_beside_the_first(change, made, tmp_path):
    (first,) = made()
    folder = tmp_path / "output" / first
    (folder / "notes.md").write_text("my own")
    (folder / f"visualization_{first}.gif").write_bytes(b"GIF")
    before = contents(folder)
    both = made(**CHANGES[change])
    assert len(both) == 2 and first in both
    assert contents(folder) == before


def test_the_same_capture_again_is_not_made_anew(made, tmp_path, monkeypatch):
    (first,) = made()
    (tmp_path / "output" / first / "notes.md").write_text("my own")
    before = contents(tmp_path / "output")
    monkeypatch.setattr(stage, "capture_run", lambda *_: pytest.fail("sampled again"))
    elsewhere = CaptureSet(generations=7, max_bytes=10**12)  # placement and limits leave the files as they are
    assert made() == made(settings=elsewhere) == {first}
    assert made(negative_prompt="x") == {first}  # which this model does not read
    assert contents(tmp_path / "output") == before


@pytest.mark.parametrize("kind", ["folder of something else", "file", "unfinished", "another request"])
def test_what_is_in_the_way_of_a_capture_is_kept_and_named(kind, made, tmp_path, monkeypatch):
    (first,) = made()
    way = tmp_path / "output" / first
    if kind in ("unfinished", "another request"):
        file = way / "intermediates/metadata.json"
        changed = json.loads(file.read_text()) | {"request_hash": "0" * 32}
        file.write_text(json.dumps(changed) if kind == "another request" else "")
    else:
        way.rename(tmp_path / "elsewhere")
        way.write_text("mine") if kind == "file" else way.mkdir()
    before = contents(tmp_path)
    monkeypatch.setattr(stage, "capture_run", lambda *_: pytest.fail("sampled"))
    with pytest.raises(
        InputError, match=f"^{way}: is there and holds no finished capture of this request; move it away"
    ):
        made()
    assert contents(tmp_path) == before


def test_a_new_prompt_among_captured_ones(made, tmp_path):
    csv = tmp_path / "p.csv"
    csv.write_text("prompt,seed\na ring,1\na star,2\n")
    (first,) = made()
    request = read_metadata(tmp_path / "output" / first)["request_hash"]
    assert first == generation_name(request, CaptureSet())
    capture("tiny", FLUX, tmp_path / "output", prompts=[csv], settings=CaptureSet())
    assert len(captures_in(tmp_path / "output")) == 2


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_run_whose_picture_is_captured_is_named_there(form, made, tmp_path):
    """The earlier capture stays, and the new run is not lost: metadata and statistics list both."""
    settings = CaptureSet(format=form)
    (first,) = made(settings=settings)
    folder = tmp_path / "output" / first
    before, table = contents(folder), read_table(folder / "statistics.parquet", "capture_statistics")
    csv = tmp_path / "p.csv"
    csv.write_text("prompt_id,prompt,seed\nb,a ring,1\nc,a ring,1\n")
    for _ in range(2):  # the second time nothing is new
        capture("tiny", FLUX, tmp_path / "output", prompts=[csv], settings=settings)
        runs = read_metadata(folder)["runs"]
        assert [(run["prompt_id"], run["seed"]) for run in runs] == [("prompt", 1), ("b", 1), ("c", 1)]
        statistics = read_table(folder / "statistics.parquet", "capture_statistics")
        for number, run in enumerate(runs):
            part = statistics.slice(number * len(table), len(table))
            assert part.equals(table.with_columns(prompt_id=pl.lit(run["prompt_id"])))
        assert len(statistics) == 3 * len(table)
    changed = {name for name, data in contents(folder).items() if data != before[name]}
    assert {Path(name).suffix for name in changed} == {".json", ".parquet"} and len(changed) == 2


# Calibration sets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """A function that calibrates the tiny SD3 into `tmp_path`/set and returns that folder."""
    monkeypatch.setattr(calibration, "load_generator", lambda name, entry: tiny_generator("sd3", name))
    csv = tmp_path / "p.csv"
    csv.write_text("prompt_id,prompt\na,a red ring\nb,a blue star\n")

    def make(prompts=csv, folder="set", **changes) -> Path:
        calibrate("tiny", ENTRIES["sd3"], prompts, tmp_path / folder, replace(SETTINGS, **changes))
        return tmp_path / folder

    return make


def test_samples_and_images_are_links_to_the_shards_files(calibrated):
    folder = calibrated()
    assert len(list(folder.glob("samples/*.npz"))) == 6 and len(list(folder.glob("images/*.png"))) == 3
    for name in ("samples/00000_000.npz", "images/00000.png"):
        assert (folder / name).samefile(folder / f"shards/00000/{name.removeprefix('samples/')}")
    whole = contents(folder)
    assert calibrated() == folder and contents(folder) == whole
    assert not list(folder.rglob("*.partial"))


def test_a_set_that_grows_keeps_what_is_in_its_folders(calibrated):
    folder = calibrated()
    notes = [folder / "notes.md", folder / "samples/notes.md", folder / "shards/00001/notes.md"]
    for note in notes:
        note.write_text("mine")
    calibrated(num_images=4)
    assert all(note.read_text() == "mine" for note in notes)
    assert len(validate_calibration(folder).images()) == 4 and (folder / "images/00003.png").exists()
    for name in ("shards/00001/00003_000.npz", "shards/00001/00002_000.npz"):
        assert (folder / name).samefile(folder / f"samples/{Path(name).name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 1}, "more images"), ({"num_images": 2}, "more images"),
        ({"seed": 5}, "made with other settings"),
        ({"cfg_weight": 4.0}, "made with other settings"), ({"format": "packed"}, "made with other settings"),
    ],
)  # fmt: skip
def test_another_set_is_refused_and_keeps_the_first(changes, message, calibrated, monkeypatch):
    folder = calibrated()
    before = contents(folder)
    monkeypatch.setattr(calibration, "record_slice", lambda *_: pytest.fail("sampled"))
    with pytest.raises(InputError, match=rf"{message}.*; choose another --calib-dir"):
        calibrated(**changes)
    assert contents(folder) == before


def test_other_prompts_are_refused_and_keep_the_first(calibrated, tmp_path):
    folder = calibrated()
    before = contents(folder)
    other = tmp_path / "other.csv"
    other.write_text("prompt_id,prompt\na,a green ring\nb,a blue star\n")
    with pytest.raises(InputError, match=r"shards/00000: holds other prompts or seeds, or more images"):
        calibrated(other)
    assert contents(folder) == before


@pytest.mark.parametrize("file", ["manifest.json", "samples/0.npz", "0.npz", "shards/00000/notes.md"])
def test_a_set_of_another_program_is_refused_and_kept(file, calibrated, tmp_path):
    (tmp_path / "set" / file).parent.mkdir(parents=True)
    (tmp_path / "set" / file).write_text("theirs")
    with pytest.raises(InputError, match=r"another program|no shard of a calibration set"):
        calibrated()
    assert contents(tmp_path / "set") == {file: b"theirs"}
