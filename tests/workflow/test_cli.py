"""The command line: every command helps, both spellings, one-line refusals."""

import argparse
import hashlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ditscope import cli
from ditscope.cluster.settings import Cluster
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.identity import derived_seed, generation_id, request_hash, scheme_id, weights_id
from ditscope.core.settings import decode, plain
from ditscope.models.settings import Model
from ditscope.workflow.estimate import estimate_table, parse_job_stats, unmeasured_models
from ditscope.workflow.progress import markdown, write_plan
from workflow import ROOT


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_helps(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "--configfile" in capsys.readouterr().out


def test_prompts_runs_without_snakemake(tmp_path):
    csv = tmp_path / "p.csv"
    csv.write_text("prompt\na red ring\n")
    options = ["--csv", str(csv), "--shard", "0", "--out", str(tmp_path / "s.parquet"), "--experiment", "x"]
    assert cli.main(["prompts", *options, "--seeds", "3", "4"]) == 0
    from ditscope.core.tables import read_table

    assert read_table(tmp_path / "s.parquet", "prompts")["seed"].to_list() == [3, 4]


def test_bad_input_is_one_line(capsys, tmp_path):
    (csv := tmp_path / "p.csv").write_text("prompt\na ring\n")
    options = ["--model", "shapes-flx", "--prompts", str(csv), "--images", str(tmp_path / "y")]
    assert cli.main(["generate", *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "`shapes-flx`" in message and "did you mean `shapes-flux`?" in message


def test_a_reader_that_goes_away_is_no_fault():
    command = f"{sys.executable} -m ditscope.cli reference | true"
    done = subprocess.run(command, shell=True, cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.stderr == ""


def test_number_out_of_its_range_is_refused_before_any_work(capsys, tmp_path):
    options = ["--model", "shapes-sd3", "--calibration", str(tmp_path), "--out", str(tmp_path / "nothing.parquet")]
    for option, value, reason in (("--bits", "0", "0 is not above 0"), ("--step_stride", "-2", "-2 is not above 0")):
        assert cli.main(["sensitivity", *options, option, value]) == 2
        assert f"{option.replace('_', '-')}: {reason}" in capsys.readouterr().err


def test_the_model_may_be_left_out_where_the_stage_lists_models(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = []

    def capture(name: str, model: Model, prompt: str = "") -> None:
        seen.append((name, model.family, prompt))

    monkeypatch.setattr(cli, "function_of", lambda target: capture)
    overlay = tmp_path / "other.yaml"
    overlay.write_text("capture: {models: [shapes-sd3]}\n")
    assert cli.main(["capture", "--prompt", "a ring", "--configfile", "config.yaml"]) == 0
    assert cli.main(["capture", "--prompt", "a ring", "--configfile", str(overlay)]) == 0
    assert cli.main(["capture", "--prompt", "a ring", "--model", "shapes-sd3"]) == 0
    assert seen == [(name, name[7:], "a ring") for name in ("shapes-flux", "shapes-sd3", "shapes-sd3")]
    overlay.write_text("capture: {models: []}\n")
    assert cli.main(["capture", "--prompt", "a ring", "--configfile", str(overlay)]) == 2
    assert "stage `capture` lists no models; give one of shapes-flux" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["quantize", "--prompt", "a ring"])  # no stage of the config
    assert "required: --model" in capsys.readouterr().err


def test_both_spellings_and_booleans():
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_option(parser, cli.Option("num_steps", int, 4))
    cli.add_option(parser, cli.Option("multi_gpu", bool, False))
    assert parser.parse_args(["--num_steps", "7", "--multi_gpu", "True"]).multi_gpu is True
    assert parser.parse_args(["--num-steps", "7", "--multi_gpu"]).num_steps == 7
    assert parser.parse_args(["--multi-gpu=False"]).multi_gpu is False


def test_job_stats_are_read_from_a_dry_run():
    rows = ["Job stats:", "job             count", "------------  -------", "all  1", "image_shard  12", "total  13"]
    text = "\n".join(rows)
    assert parse_job_stats(text) == {"all": 1, "image_shard": 12}


def test_estimate_names_the_models_that_were_not_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    demo = read_config([])
    assert unmeasured_models(demo, plain(demo)) == []
    flux = read_config([Path("experiments/flux-schnell.yaml")])
    assert unmeasured_models(flux, plain(demo)) == flux.selected_models()
    longer = replace(demo, models=demo.models | {"shapes-sd3": replace(demo.models["shapes-sd3"], steps=50)})
    assert unmeasured_models(longer, plain(demo)) == ["shapes-sd3"]


def test_estimate_multiplies_jobs_by_unit_costs():
    costs = {"image_shard": {"seconds": 1800.0, "bytes": 10, "memory": 5.0, "gpu": True}}
    rows = estimate_table({"image_shard": 4, "video": 1}, costs).to_dicts()
    assert rows[0] | {} == {
        "rule": "image_shard",
        "jobs": 4,
        "gpu": True,
        "hours": 2.0,
        "bytes": 40,
        "peak_memory_mib": 5.0,
    }
    assert rows[1]["hours"] is None, "what was never measured is not estimated"


def test_progress_counts_files(tmp_path):
    done, todo = tmp_path / "a", tmp_path / "b"
    done.touch()
    write_plan(tmp_path / "study", {"prompts": [str(done), str(todo)], "generate": [str(done)]}, {}, {})
    text = markdown(tmp_path / "study")
    assert "## Overall progress: 67 %" in text
    assert "- [ ] prompts: 1 of 2 (50 %)" in text and "- [x] generate: 1 of 1 (100 %)" in text


REQUEST = dict(
    model="m", revision="", weights="w", scheme="base", backend="torch", dtype="float32", use_t5=True,
    max_sequence_length=0, prompt="p", negative_prompt="", seed=0, steps=4, guidance=0.0, width=64, height=64,
)  # fmt: skip


def test_request_hash_is_sha256_of_the_named_fields_in_order():
    text = (
        '{"backend":"torch","dtype":"float32","guidance":0.0,"height":64,"max_sequence_length":0,"model":"m",'
        '"negative_prompt":"","prompt":"p","revision":"","scheme":"base","seed":0,"steps":4,"use_t5":true,'
        '"weights":"w","width":64}'
    )
    assert request_hash(**REQUEST) == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert request_hash(**REQUEST, frames=1) == request_hash(**REQUEST), "an image is a video of one frame"


@pytest.mark.parametrize("key", inspect.signature(request_hash).parameters)
def test_request_hash_depends_on_every_field(key):
    value = REQUEST.get(key, 1)
    other = not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 4
    if key == "call":
        other = {"true_cfg_scale": 4.0}
    assert request_hash(**REQUEST) != request_hash(**REQUEST | {key: other})


def test_a_scheme_is_known_by_its_settings_and_its_plan_and_not_by_its_name(tmp_path):
    plan, other = tmp_path / "a.json", tmp_path / "b.json"
    plan.write_text("{}")
    other.write_text("{} ")
    settings = {"kind": "plan", "bits": 8, "plan": "4bit"}
    assert scheme_id(None) == scheme_id({"kind": "base", "bits": 8}) == "base"
    ids = [
        scheme_id(settings, plan),
        scheme_id(settings, other),
        scheme_id(settings | {"group_size": 32}, plan),
        scheme_id(settings, plan, "full"),
        scheme_id({"kind": "base", "bits": 8}, None, "full"),
        "base",
    ]
    assert len(set(ids)) == len(ids)
    assert scheme_id(settings | {"plan": "renamed"}, plan) == ids[0]


def test_weights_are_known_by_their_bytes_or_their_revision(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(content)
    a, b, c = (weights_id(str(tmp_path / name), "") for name in "abc")
    assert a == c != b and weights_id(str(tmp_path / "a"), "0f1e") == "0f1e"


def test_generation_id_is_base32_of_40_bits_of_request_and_settings():
    import base64
    import hashlib

    text = '{"blocks":"*","request":"ab"}'
    expected = base64.b32encode(hashlib.sha256(text.encode()).digest()[:5]).decode().lower()
    assert generation_id("ab", {"blocks": "*"}) == expected and len(expected) == 8
    assert generation_id("ab", {"blocks": "double:*"}) != expected != generation_id("ac", {"blocks": "*"})


def test_derived_seeds_are_stable_and_32_bit():
    assert derived_seed("a", 1) == derived_seed("a", 1) != derived_seed("a", 2)
    assert 0 <= derived_seed("x") < 2**32


@pytest.mark.parametrize("command", ["drift", "cluster"])
def test_loops_are_continued_to_the_length_of_the_trajectories_of_the_config(command):
    """What is typed wins, then the config; without one a run is followed as far as the longest goes."""
    function = cli.function_of(cli.COMMANDS[command][0])
    config = read_config([])
    config = replace(config, trajectories=replace(config.trajectories, max_length=77))
    assert cli.values_of(function, command, config, {})["max_length"] == 77
    (option,) = (o for o in cli.options_of(function, command) if o.name == "max_length")
    assert option.default == 0
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    cli.add_function(parser, function, command, config)
    assert "(default: 77)" in " ".join(parser.format_help().split())


def test_a_negative_epsilon_is_refused_before_any_work(capsys, tmp_path):
    here = tmp_path / "t.parquet"
    here.write_bytes(b"PAR1")
    files = ["--embeddings", str(here), "--trajectories", str(here), "--folder", str(tmp_path / "out")]
    assert cli.main(["cluster", *files, "--epsilon=-0.1"]) == 2
    assert capsys.readouterr().err == "ditscope cluster: --epsilon: -0.1 is below 0\n"
    with pytest.raises(InputError, match=r"cluster.epsilon: -0.1 is below 0"):
        decode(Cluster, {"epsilon": -0.1}, "cluster")
