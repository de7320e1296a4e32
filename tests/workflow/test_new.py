"""`ditscope new`: an overlay for a user's own model and prompts that the workflow can plan as it is."""

import re
from dataclasses import fields

import pytest
import yaml

from ditscope.cli import main
from ditscope.config import STAGES, Config
from ditscope.config_files import read_config
from ditscope.models.settings import Model
from ditscope.workflow.estimate import parse_job_stats
from workflow import ROOT, snakemake, workdir

COMMIT = "0123456789" * 4
SAID_AS_IT_IS = re.compile(r"^( *)#(\w+: )", flags=re.M)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a prompt CSV of the user's own and a copy of the shipped FLUX under another name."""
    folder = workdir(tmp_path)
    (folder / "mine.csv").write_text("prompt\na red cat\na blue dog\n")
    (folder / "My Flux").symlink_to(ROOT / "models" / "shapes-flux")
    monkeypatch.chdir(folder)
    return folder


def new(*arguments, stages="capture", model="My Flux", prompts="mine.csv"):
    return main(["new", *arguments, "--stages", *stages.split(), "--model", model, "--prompts", prompts])


def overlay(name="mine"):
    return read_config([f"experiments/{name}.yaml"])


def test_overlay_can_be_planned_as_it_is(project):
    assert new("mine", stages="blocks,benchmark ablate") == 0
    done = snakemake(project, "--dry-run", "--configfile", "experiments/mine.yaml")
    assert done.returncode == 0, done.stdout
    jobs = parse_job_stats(done.stdout)
    assert {"capture_set", "block_analysis", "ablation", "benchmark_run", "bit_plan", "figures"} <= set(jobs)
    assert not {"image_shard", "trajectory_shard", "refine_train"} & set(jobs)
    assert "shapes-" not in done.stdout.replace("shapes-flux", "")  # nothing of the demo's models
    assert "results/mine/captures/my-flux/all" in done.stdout


@pytest.mark.parametrize(
    "stages", [*(stage for stage in STAGES if stage != "video"), "capture,video", ",".join(STAGES)]
)
def test_overlay_of_any_stage_is_valid_and_says_what_each_key_does(project, stages):
    assert new("mine", stages=stages) == 0
    config, text = overlay(), (project / "experiments/mine.yaml").read_text()
    assert set(config.stages) == {"prompts", "publish", *stages.split(",")}
    assert config.experiment == "mine" and config.prompts.csv == "mine.csv"
    assert set(config.selected_models()) <= {"my-flux", "blip2"}
    (project / "all.yaml").write_text(SAID_AS_IT_IS.sub(r"\1\2", text))
    assert read_config(["all.yaml"]) == config  # lines that start with #key: say what is so anyway
    said = yaml.safe_load((project / "all.yaml").read_text())
    helps = {stage: {f.name: f.metadata["help"] for f in fields(getattr(Config(), stage))} for stage in STAGES}
    assert set(said["models"]["my-flux"]) == {f.name for f in fields(Model)}
    for stage in config.stages:
        assert set(said[stage]) >= {f.name for f in fields(getattr(config, stage))} - {
            "models",
            "networks",
            "embedders",
        }
    plain = re.sub(r"\s*# ", " ", text).replace("\n", " ")
    assert all(helps[stage][key] in " ".join(plain.split()) for stage in config.stages for key in said[stage])


def test_nothing_of_the_demo_is_left(project):
    assert new("mine", stages=",".join(STAGES)) == 0
    config = overlay()
    assert (config.calibrate.num_steps, config.sensitivity.step_stride, config.benchmark.classes) == (0, 1, [])
    assert "shapes-clip" not in {config.blocks.features, config.ablate.features, config.benchmark.features}
    assert config.trajectories.networks == ["my-flux-blip2"] and config.prompts.seeds == [0]


def test_model_is_found_out_about(project):
    assert new("sd3", model="models/shapes-sd3") == 0  # config.yaml has it
    assert overlay("sd3").models["shapes-sd3"] == read_config([]).models["shapes-sd3"]
    (project / "shapes-sd3").symlink_to(ROOT / "models" / "shapes-sd3")
    assert new("other", model="shapes-sd3/") == 0  # a folder of the name of an entry
    assert new("flux") == 0
    assert overlay("flux").models["my-flux"].family == "flux" and overlay("flux").models["my-flux"].width == 512
    arguments = ("hub", "--family", "flux", "--revision", COMMIT)
    assert new(*arguments, model="someone/Some.Flux_2", stages="capture,refine") == 0
    entry = overlay("hub").models["some-flux_2"]
    assert (entry.source, entry.revision) == ("someone/Some.Flux_2", COMMIT)
    done = snakemake(project, "--dry-run", "--configfile", "experiments/hub.yaml")
    assert done.returncode == 0 and f"someone--Some.Flux_2@{COMMIT}" in done.stdout, done.stdout


def test_a_model_without_blocks_is_benchmarked_without_plans(project):
    assert new("mine", stages="benchmark", model="sdxl-turbo") == 0
    config = overlay()
    assert config.benchmark.schemes and not any("plan" in scheme for scheme in config.benchmark.schemes)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"arguments": ("a/b",)}, "name: `a/b` is not a plain name"),
        ({"arguments": ("..",)}, "name: `..` is not a plain name"),
        ({"stages": "captrue"}, "--stages: `captrue` is not a stage; did you mean `capture`?"),
        ({"stages": "video"}, "stages: `video` draws captures and trajectories"),
        ({"model": "sdxl-turbo"}, "capture.models: `sdxl-turbo` is of the family `sdxl`, whose blocks cannot be read"),
        ({"model": "shapes-blip"}, "--model: `shapes-blip` is a captioner"),
        ({"model": "flux-schnel"}, "--model: `flux-schnel` is not a folder, a hub id or in config.yaml's `models`"),
        ({"model": "some/model"}, "--model: no folder some/model; of a hub id give `--family`, and `--revision`"),
        ({"model": "prompts"}, "--model: prompts: it has no model_index.json"),
        ({"prompts": "none.csv"}, "--prompts: none.csv: no such file"),
        ({"prompts": "config.yaml"}, "config.yaml: row 1 has no `prompt` column"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(project, capsys, given, refusal):
    given = {"arguments": ("mine",)} | given
    assert new(*given.pop("arguments"), **given) == 2
    said = capsys.readouterr().err
    assert refusal in said and said.count("\n") == 1
    assert not (project / "experiments").exists()


def test_an_overlay_is_never_overwritten(project, capsys):
    assert new("mine") == 0
    before = (project / "experiments/mine.yaml").read_text()
    assert new("mine", stages="refine") == 2
    assert "experiments/mine.yaml: is there already" in capsys.readouterr().err
    assert (project / "experiments/mine.yaml").read_text() == before
