"""`stages:` of a config: what `all` asks for, what is made on the way, and what tools expect of such a study."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ditscope.config import STAGES, WORKS_ON, load_config, of_stages
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.workflow.doctor import CHECKS, examine
from ditscope.workflow.estimate import parse_job_stats
from ditscope.workflow.progress import markdown, read_plan
from workflow import ROOT, snakemake, workdir

DEMO = read_config([])


def selected(*stages):
    return of_stages(replace(DEMO, stages=list(stages)))


def test_every_stage_says_what_it_works_on():
    assert set(WORKS_ON) == set(STAGES) - {"prompts", "video", "publish"}


def test_a_study_without_stages_is_as_it_was():
    assert of_stages(DEMO) is DEMO and DEMO.asked() == STAGES


def test_models_of_other_stages_are_left_out():
    config = selected("prompts", "drift")
    assert config.asked() == ("prompts", "drift")
    assert config.trajectories == DEMO.trajectories and config.embed == DEMO.embed
    lists = [config.generate.models, config.capture.models, config.sensitivity.models, config.benchmark.models]
    assert lists == [[], [], [], []] and config.capture.sets == DEMO.capture.sets
    assert config.selected_models() == ["shapes-flux", "shapes-blip", "shapes-scene"]
    assert selected("refine").selected_models() == ["shapes-flux"]
    assert of_stages(config) == config


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ({"stages": ["capture"]}, "stages: `capture` has nothing to work on; set `capture.models` and `capture.sets`"),
        ({"stages": ["plan"]}, "stages: `plan` has nothing to work on; set `sensitivity.models` and `plan.budgets`"),
        ({"stages": ["refine"]}, "stages: `refine` has nothing to work on; set `refine.refiners`"),
        ({"stages": ["drift"]}, "stages: `drift` has nothing .* set `trajectories.networks` and `embed.embedders`"),
        ({"stages": ["prompts", "video"]}, "`video` draws captures and trajectories; name `capture` or `trajectories`"),
        ({"stages": ["publish"]}, "`publish` draws what other stages leave; name these as well"),
        ({"stages": ["catpure"]}, "stages: `catpure` is not one of .*; did you mean `capture`"),
        ({"stages": "capture"}, "stages: expected a list"),
        ({"stages": ["prompts", "prompts"]}, "stages: prompts is named twice"),
    ],
)
def test_stages_that_cannot_be_are_refused_in_one_line(config, refusal):
    with pytest.raises(InputError, match=refusal) as refused:
        load_config(config)
    assert "\n" not in str(refused.value)


def test_what_other_stages_would_refuse_does_not_matter():
    """The demo's captures cannot run on MLX; a study that asks for none may move their model there."""
    entry = replace(DEMO.models["shapes-flux"], backend="mlx")
    config = {"models": {"shapes-flux": vars(entry)}, "capture": {"models": ["shapes-flux"], "sets": {"all": {}}}}
    with pytest.raises(InputError, match="runs on MLX"):
        load_config(config)
    assert load_config(config | {"stages": ["prompts"]}).capture.models == []


PLANNED = {
    "prompts": {"prompt_shard": 2},
    "sensitivity": {
        "calibration_shard": 4,
        "calibration_manifest": 2,
        "sensitivity_layers": 4,
        "sensitivity_table": 1,
    },
    "blocks,publish": {
        "prompt_slice": 1,
        "capture_set": 2,
        "block_analysis": 2,
        "figures": 1,
        "answers": 1,
        "captions": 1,
        "catalog": 1,
        "explorer": 1,
    },
    "capture,video": {"prompt_slice": 1, "capture_set": 2, "capture_video": 2},
    "refine": {
        "prompt_shard": 2,
        "image_shard": 2,
        "refine_data": 1,
        "refine_codebook": 1,
        "refine_train": 1,
        "refine_diagnose": 1,
    },
}


@pytest.mark.parametrize("stages", PLANNED)
def test_all_asks_for_the_stages_and_what_they_need(stages, tmp_path):
    tiny = ("--configfile", str(ROOT / "experiments/tiny.yaml"), "--config", f"stages=[{stages}]", "--dry-run")
    done = snakemake(workdir(tmp_path), *tiny)
    jobs = parse_job_stats(done.stdout)
    assert {rule: count for rule, count in jobs.items() if rule != "all"} == PLANNED[stages], done.stdout


def test_the_target_of_another_stage_says_how_to_ask_for_it(tmp_path):
    tiny = ("--configfile", str(ROOT / "experiments/tiny.yaml"), "--dry-run")
    done = snakemake(workdir(tmp_path), "capture", *tiny, "--config", "stages=[prompts]")
    assert done.returncode
    assert "`capture` is not among this study's `stages`; --config 'stages=[capture]' asks for it alone" in done.stdout
    done = snakemake(tmp_path, "capture", *tiny, "--config", "stages=[capture]")
    assert parse_job_stats(done.stdout)["capture_set"] == 2


@pytest.fixture
def selection(study, tmp_path):
    """A function that plans the tiny study under a selection of stages, beside its finished results."""
    folder = workdir(tmp_path)
    shutil.copytree(study / "results/tiny", folder / "results/tiny")

    def select(stages):
        tiny = ("--configfile", str(ROOT / "experiments/tiny.yaml"), "--config", f"stages=[{stages}]")
        done = snakemake(folder, *tiny, "--cores", "1", "--forceall", "--touch")  # plans, and runs nothing
        assert done.returncode == 0, done.stdout
        return folder / "results/tiny"

    return select


@pytest.mark.parametrize(
    ("stages", "upstream"),
    [
        pytest.param("topology", {"embed", "trajectories"}, marks=pytest.mark.system),
        ("plan,ablate", {"calibrate", "sensitivity"}),
        pytest.param("prompts,blocks,video", {"capture"}, marks=pytest.mark.system),
        pytest.param("benchmark", {"prompts", "calibrate", "sensitivity", "plan"}, marks=pytest.mark.system),
        pytest.param("trajectories,refine", {"prompts", "generate"}, marks=pytest.mark.system),
    ],
)
def test_tools_expect_the_stages_and_what_they_need(selection, monkeypatch, stages, upstream):
    """Doctor reads what is upstream as well, and calls nothing left over that other stages made before."""
    results = selection(stages)
    monkeypatch.chdir(results.parents[1])
    plan = read_plan(results)
    asked = {stage for stage, files in plan["targets"].items() if files}
    assert asked == set(stages.split(",")) and set(plan["upstream"]) == upstream
    shown = {line.split()[2].rstrip(":") for line in markdown(results).splitlines() if line.startswith("- [x] ")}
    assert shown == asked | upstream
    assert examine(results, list(CHECKS)).findings == []
    first = Path(next(iter(plan["upstream"].values()))[0])
    first.rename("elsewhere")
    assert [finding.file for finding in examine(results, ["files"]).findings] == [
        str(first.relative_to("results/tiny"))
    ]
