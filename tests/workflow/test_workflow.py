"""The workflow for real, on the tiny study: it completes, then is idle, then re-runs just what is stale."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import workflow
from ditscope.workflow.estimate import parse_job_stats

TINY = ("--configfile", "experiments/tiny.yaml")


def snakemake(folder: Path, *arguments: str) -> str:
    """Run Snakemake in a checkout; its output, or a failure that shows the end of it."""
    done = workflow.snakemake(folder, "--cores", "2", *arguments, root=folder, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Jobs of each rule that a dry run would run; `all` left out."""
    output = snakemake(folder, "--dry-run", *TINY, *arguments)
    if "Nothing to be done" in output:
        return {}
    return {rule: count for rule, count in parse_job_stats(output).items() if rule != "all"}


@pytest.fixture
def edited(study, tmp_path) -> Callable[[str, Callable[[str], str]], Path]:
    """Edit one file of a fresh clone that has the study's results, and give the clone."""

    def edit(name: str, change: Callable[[str], str]) -> Path:
        clone = workflow.reclone(study, tmp_path / "clone")
        path = clone / name
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
        return clone

    return edit


def test_second_run_is_idle(study):
    assert planned(study) == {}


def test_every_result_is_complete(study):
    assert "## Overall progress: 100 %" in (study / "results/tiny/progress.md").read_text()


def test_results_are_as_readable_as_the_umask_allows(study):
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in (study / "results").rglob("*") if path.is_file()]
    assert files and [p for p in files if p.stat().st_mode & 0o666 != 0o666 & ~umask] == []


def test_touched_and_recloned_sources_make_nothing_stale(study, tmp_path):
    assert planned(workflow.reclone(study, tmp_path / "clone")) == {}


def test_edited_prompt_reruns_its_shard_and_the_aggregates(edited):
    clone = edited("prompts/tiny.csv", lambda text: text.replace("large green cross", "large pink cross"))
    jobs = planned(clone)
    assert jobs["prompt_shard"] == 1 and jobs["image_shard"] == 2, "one shard, both models"


def test_appended_prompts_rerun_the_unfilled_shard_and_add_new_ones(edited):
    added = "purple-square,a small purple square at the right on a black background\n"
    more = "pink-circle,a small pink circle at the center on a black background\n"
    jobs = planned(edited("prompts/tiny.csv", lambda text: text + added + more))
    assert jobs["prompt_shard"] == 2 and jobs["image_shard"] == 4


@pytest.mark.parametrize(
    "module, stale",
    [
        ("topology", {"topology", "figures", "answers", "captions", "catalog", "explorer"}),
        ("video", {"capture_video", "explorer"}),
    ],
)
def test_edited_stage_code_reruns_that_stage_and_its_downstream_only(edited, module, stale):
    jobs = planned(edited(f"scripts/ditscope/{module}/stage.py", lambda text: text + "\nEDITED = True\n"))
    assert set(jobs) == stale


def test_other_seeds_rerun_all_that_samples_at_once(study, tmp_path):
    """Also what reads the first runs only: Snakemake looks at no parameter of a job whose inputs will be made anew."""
    clone = workflow.reclone(study, tmp_path / "clone")
    overlay = clone / "seeds.yaml"
    overlay.write_text("prompts: {seeds: [7]}\n")
    jobs = planned(clone, str(overlay))
    assert {"image_shard", "capture_set", "trajectory_shard", "refine_train", "figures"} <= set(jobs)


def test_staleness_release_ignores_edited_code(study, tmp_path):
    clone = workflow.reclone(study, tmp_path / "clone")
    overlay = clone / "release.yaml"
    overlay.write_text("staleness: release\n")
    first = planned(clone, str(overlay))
    path = clone / "scripts/ditscope/topology/stage.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")
    assert planned(clone, str(overlay)) == first


def test_edited_config_key_reruns_its_stage_and_downstream(study, tmp_path):
    clone = workflow.reclone(study, tmp_path / "clone")
    overlay = clone / "edit.yaml"
    overlay.write_text("topology: {max_dimension: 1}\n")
    stale = {"topology", "figures", "answers", "captions", "catalog", "explorer"}
    assert set(planned(clone, str(overlay))) == stale
