"""The doctor on what `family: dit` leaves: images, films and captures, falsified column by column."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import workflow
from any_pipelines import PIPELINES, save_tiny
from ditscope.capture.settings import Capture, CaptureSet
from ditscope.capture.stage import capture
from ditscope.config import Config
from ditscope.core.settings import plain
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.families.dit import film
from ditscope.models.settings import Model
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.workflow.doctor import examine
from ditscope.workflow.progress import write_plan
from loose_tables import write_loosely
from mutations import column_mutants, empty, row_mutants, truncate

pytestmark = [pytest.mark.system, pytest.mark.long]

MEASURED = {("images.timing", "seconds")}  # a measured time: only that it is above 0 can be checked


def entry_of(name: str, folder: Path) -> Model:
    about = PIPELINES[name]
    return Model(
        "dit", str(save_tiny(name, folder / name)), width=about.size, height=about.size, frames=about.frames, steps=2,
        guidance=about.guidance, max_sequence_length=about.length, call=about.call,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The results of a study of two models, made by the stages' functions."""
    folder = workflow.workdir(tmp_path_factory.mktemp("any"))
    (folder / "own.csv").write_text("prompt,prompt_id\na red ring,a\na blue star,b\n")
    models = {"film": entry_of("wan", folder), "picture": entry_of("z-image", folder)}
    config = Config(
        experiment="any", models=models, prompts=Prompts(csv="own.csv", seeds=[3]), generate=Generate(list(models)),
        capture=Capture(["film"], sets={"all": CaptureSet(generations=1), "few": CaptureSet(
            generations=1, store="statistics", blocks="0", should_decode_intermediates=False)}),
    )  # fmt: skip
    prompts = "prompts/shard-00000.parquet"
    targets = {
        "prompts": [prompts], "generate": [f"images/{name}/shard-00000.tar" for name in models],
        "capture": ["captures/film/all", "captures/film/few"],
    }  # fmt: skip
    out = folder / "results/any"
    out.mkdir(parents=True)
    write_plan(out, {s: [f"results/any/{f}" for f in files] for s, files in targets.items()}, {}, plain(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        csv = Path("own.csv")
        write_shard(csv, 0, out / prompts, config.prompts, "any")
        for name, entry in models.items():
            (out / "images" / name).mkdir(parents=True)
            generate(name, entry, out / prompts, out / f"images/{name}/shard-00000.tar")
        for name, settings in config.capture.sets.items():
            (out / "captures/film" / name).mkdir(parents=True)
            capture("film", models["film"], out / "captures/film" / name, prompts=[out / prompts], settings=settings)
        yield out


def problems(results: Path, *checks: str) -> list[str]:
    return [f"{finding.file}: {finding.problem}" for finding in examine(results, list(checks)).findings]


def test_a_study_of_any_models_is_sound(results):
    assert problems(results, "prompts", "generate", "capture") == []


def test_every_falsified_column_of_captures_and_images_is_found(results):
    unseen, seen = set(), set()
    for path in sorted([*results.glob("captures/*/*/*/*.parquet"), *results.glob("images/*/*.parquet")]):
        name, check = pl.read_parquet_metadata(path)["table"], {"captures": "capture", "images": "generate"}
        check_of = check[path.relative_to(results).parts[0]]
        table, whole = pl.read_parquet(path), path.read_bytes()
        kept = "few" in path.parts  # its tensors are not there to tell: cosines are only bounded
        mutants = [(column, *mutant) for column in table.columns for mutant in column_mutants(table, column)]
        for column, _, mutant in [*mutants, *(("", *mutant) for mutant in row_mutants(table))]:
            write_loosely(mutant, path, name)
            found = problems(results, check_of)
            assert all("\n" not in problem for problem in found)
            seen.add((name, column))
            if not found and not (kept and column in ("cosine_to_previous", "mean", "std", "rms", "absmax")):
                unseen.add((name, column))
        path.write_bytes(whole)
    assert unseen == MEASURED and ("capture_frames", "cosine_to_previous") in seen


@pytest.mark.parametrize("glob", ["img_0.mp4", "intermediates/decoded/*/*.mp4", "frames.parquet"])
@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_damaged_film_or_table_of_frames_is_found(results, glob, damage):
    (generation,) = results.glob("captures/film/all/*/")
    path = next(generation.glob(glob))
    whole = path.read_bytes()
    damage(path)
    try:
        assert any(path.name in problem for problem in problems(results, "capture"))
    finally:
        path.write_bytes(whole)


def test_a_film_of_other_length_is_found(results):

    (generation,) = results.glob("captures/film/all/*/")
    path = generation / "img_0.mp4"
    whole = path.read_bytes()
    path.write_bytes(film(np.zeros((3, 32, 32, 3), np.uint8)))
    try:
        assert any(
            "a film of 3 frames, and of 5 in the metadata" in problem for problem in problems(results, "capture")
        )
    finally:
        path.write_bytes(whole)
