"""Studies that are sound and unusual: many seeds, videos, runs that share a picture; and machines that refuse."""

import errno
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import workflow
from ditscope.config import Config
from ditscope.core.checksums import record_checksums
from ditscope.core.settings import plain
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.study import Study, alike, unlike_rows
from ditscope.core.tables import read_table
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.settings import Model
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.workflow.doctor import CHECKS, examine, fixes, open_study
from ditscope.workflow.progress import write_plan
from loose_tables import write_loosely
from tiny_pipelines import save_tiny_wan

WAN = {"width": 32, "height": 32, "frames": 5, "steps": 2, "guidance": 4.0, "max_sequence_length": 16}


def planned(folder: Path, config: Config, **targets: list[str]) -> Path:
    """The results folder of a study whose plan names `targets` (below it), by stage."""
    results = workflow.workdir(folder) / "results" / config.experiment
    results.mkdir(parents=True)
    named = {stage: [f"results/{config.experiment}/{file}" for file in files] for stage, files in targets.items()}
    write_plan(results, named, {}, plain(config))
    return results


def problems(results: Path, *checks: str) -> list[str]:
    return [f"{finding.file}: {finding.problem}" for finding in examine(results, list(checks)).findings]


def test_a_study_of_numbered_seeds_is_sound(tmp_path, monkeypatch):
    csv = tmp_path / "own.csv"
    csv.write_text("prompt,prompt_id,seed\na red ring,a,\na blue star,b,7\n")
    config = Config(experiment="seeds", prompts=Prompts(csv=str(csv), num_seeds=3, shard_size=2))
    results = planned(tmp_path, config, prompts=["prompts/shard-00000.parquet"])
    monkeypatch.chdir(tmp_path)
    table = results / "prompts/shard-00000.parquet"
    write_shard(csv, 0, table, config.prompts, "seeds")
    assert len(pl.read_parquet(table)) == 4 and problems(results, "files", "prompts") == []
    write_loosely(pl.read_parquet(table).head(3), table, "prompts")
    (problem, *_) = problems(results, "prompts")
    assert "lacks 1 of 4 runs of the CSV" in problem


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """The results of a study of videos in which two prompts ask for the same one."""
    folder = tmp_path_factory.mktemp("films")
    csv = folder / "own.csv"
    csv.write_text("prompt,prompt_id\na red ring,a\na blue star,b\na red ring,c\n")
    entry = Model("wan", str(save_tiny_wan(folder / "wan")), **WAN)
    config = Config(experiment="films", models={"wan": entry}, prompts=Prompts(csv=str(csv), seeds=[3]))
    files = {"prompts": ["prompts/shard-00000.parquet"], "generate": ["images/wan/shard-00000.tar"]}
    results = planned(folder, replace(config, generate=Generate(slice_size=2)), **files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_shard(csv, 0, results / files["prompts"][0], config.prompts, "films")
        generate("wan", entry, results / files["prompts"][0], results / files["generate"][0])
        made = [results / files["prompts"][0], *sorted((results / "images/wan").iterdir())]
        record_checksums(results, "image_shard", made)
        yield results


def test_videos_and_runs_that_share_one_are_sound(films):
    manifest = pl.read_parquet(films / "images/wan/shard-00000.parquet")
    assert manifest["prompt_id"].to_list() == ["a", "b", "c"] and manifest["key"].n_unique() == 2
    assert problems(films, "files", "tables", "prompts", "generate", "checksums") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sample: sample | {"mp4": sample["mp4"][: len(sample["mp4"]) // 2]}, "video"),
        (lambda sample: {k: v for k, v in sample.items() if k != "mp4"}, "lacks its mp4"),
        (lambda sample: sample | {"json": sample["json"] | {"frames": 9}}, "differs from its row"),
        (
            lambda sample: sample | {"json": sample["json"] | {"runs": sample["json"]["runs"][:1]}},
            "differs from its row",
        ),
        (lambda sample: sample | {"png": sample["png"][:-20]}, "not a PNG"),
    ],
)
def test_a_damaged_video_is_found(films, change, words):
    tar = films / "images/wan/shard-00000.tar"
    samples, whole = list(read_tar(tar)), tar.read_bytes()
    write_tar([change(samples[0]), *samples[1:]], tar)
    try:
        assert any(words in problem for problem in problems(films, "generate"))
    finally:
        tar.write_bytes(whole)


def test_an_error_of_the_machine_is_no_damage_and_nothing_is_to_be_made_again(films):
    def refusing(path: Path, name: str) -> pl.DataFrame:
        if path.name == "shard-00000.parquet" and "images" in path.parts:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_table(path, name)

    sound = open_study(films)
    study = Study(films, sound.plan, sound.config, read=refusing)
    CHECKS["generate"](study)
    (finding,) = study.findings
    assert finding.problem.startswith("cannot be read: ") and not finding.rerun and not finding.remove
    assert fixes(study) == []


def test_an_output_without_a_record_and_a_falsified_plan_are_found(films):
    plan = films / "plan.json"
    whole = plan.read_text()
    plan.write_text(whole.replace('"slice_size": 2', '"slice_size": 3'))
    try:
        study = examine(films, ["checksums"])
        assert ("plan.json", "its bytes changed since its job left it (sha256)") in [
            (finding.file, finding.problem) for finding in study.findings
        ]
        assert fixes(study)[0].startswith("snakemake ") and "plan.json" not in fixes(study)[0]
    finally:
        plan.write_text(whole)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1.0, 1.0 + 1e-9, True),
        (1.0, 1.01, False),
        (1, 1.0, True),
        (True, 1, False),
        (None, 0.0, False),
        ({"x": [1.0, None]}, {"x": [1.0, None]}, True),
        ({"x": [1.0, None]}, {"x": [1.0, 2.0]}, False),
        ("a", "b", False),
    ],
)
def test_values_are_alike_to_within_rounding(a, b, same):
    assert alike(a, b) is same


@pytest.mark.parametrize(
    ("a", "b", "rows"),
    [
        ([1.0, None, 3.0], [1.0, None, 3.0 + 1e-9], []),
        ([1.0, None, 3.0], [1.0, 2.0, 3.5], [1, 2]),
        ([[1.0], [2.0, 3.0], None], [[1.0], [2.0, 4.0], None], [1]),
        ([[1.0], [2.0, 3.0], None], [[1.0], [2.0], None], [1]),
        ([[1.0], None], [[1.0], []], [1]),
        (["a", None, "c"], ["a", "b", None], [1, 2]),
        ([True, None], [True, False], [1]),
    ],
)
def test_rows_that_differ_are_those_of_a_plain_comparison(a, b, rows):
    assert unlike_rows(pl.Series(a), pl.Series(b), 1e-5, 1e-7) == rows
    assert [i for i, pair in enumerate(zip(a, b, strict=True)) if not alike(*pair)] == rows
