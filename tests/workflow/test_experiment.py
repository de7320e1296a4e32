"""`ditscope experiment`: deletion leaves no orphan and touches nothing else; what it refuses; what it lists."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from ditscope import cli
from ditscope.config_files import read_config
from ditscope.core.digests import cached, source_digest
from ditscope.core.errors import InputError
from ditscope.core.settings import plain
from ditscope.workflow import experiment as module
from ditscope.workflow.experiment import experiment, human, records_of
from ditscope.workflow.resume import main_processes
from workflow import ROOT

LONG = "x" * 300  # a file name whose record is cut into pieces
CONFIG = read_config([ROOT / "experiments/tiny.yaml"])


def alone(monkeypatch) -> None:
    """No run works in the folder, and none has jobs in a queue."""
    monkeypatch.setattr(module, "main_processes", lambda folder: [])
    monkeypatch.setattr(module, "queued", lambda folder: [])
    monkeypatch.setattr(module.shutil, "which", lambda program: program)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with the experiments `one` and `one-more`, and everything that is kept of each anywhere."""
    monkeypatch.chdir(tmp_path)
    alone(monkeypatch)
    for name in ("one", "one-more"):
        fill(tmp_path, name)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/one.yaml").write_text("experiment: one\n")
    (tmp_path / "results/training").mkdir()
    (tmp_path / "results/training/notes.txt").write_text("results/one/ is good\n")
    both = tmp_path / ".snakemake/log/both.snakemake.log"
    both.write_text("output: results/one/prompts/shard-00000.parquet, results/one-more/catalog.duckdb\n")
    return tmp_path


def fill(project: Path, name: str) -> None:
    """What a run of an experiment leaves in its results, in .snakemake and in the project's cache."""
    results = project / "results" / name
    files = [
        "prompts/shard-00000.parquet",
        "catalog.duckdb",
        f"videos/{LONG[:200]}.gif",
        f"figures/{LONG[:200]}/{LONG[:100]}",
    ]
    files += [
        ".partial/0a1b/slice.pt",
        "logs/catalog.log",
        ".benchmarks/catalog.tsv",
        ".checksums/catalog/1.json",
        "progress.md",
    ]
    for file in files:
        (results / file).parent.mkdir(parents=True, exist_ok=True)
        (results / file).write_text(f"{name} {file}")
    config = plain(replace(CONFIG, experiment=name))
    targets = {
        "prompts": [f"results/{name}/{files[0]}"],
        "publish": [f"results/{name}/catalog.duckdb", f"results/{name}/missing"],
    }
    plan = {"schema_version": "1", "targets": targets, "upstream": {}, "rules": {}, "config": config, "configfiles": []}
    (results / "plan.json").write_text(json.dumps(plan))
    state = project / ".snakemake"
    for file in [*files[:4], ""]:
        path = f"results/{name}/{file}".rstrip("/")
        record(state / "metadata", path)
        record(state / "incomplete", path)
    (state / "locks").mkdir(exist_ok=True)
    for kind, text in (
        ("log", f"rule catalog: output: results/{name}/catalog.duckdb"),
        ("slurm_logs/rule_catalog", f"results/{name}/x"),
    ):
        (state / kind).mkdir(parents=True, exist_ok=True)
        (state / kind / f"{name}.log").write_text(text)
    (state / "iocache").mkdir(exist_ok=True)
    (state / "iocache/latest.pkl").write_bytes(b"\x80\x04\xff" + f"results/{name}/catalog.duckdb".encode())
    (state / "scripts").mkdir(exist_ok=True)
    (state / f"scripts/tmp{name}.catalog.py").write_text(f"snakemake = 'results/{name}/catalog.duckdb'")
    cache = project / "resources/.cache"
    cache.mkdir(parents=True, exist_ok=True)
    for what in ("shards", "capture all"):
        cached(f"{name} {what}", ["csv", "code", {"csv": "prompts.csv"}, name], lambda: [1], cache)
    source_digest(f"results/{name}/catalog.duckdb", cache)
    (cache / "features").mkdir(exist_ok=True)
    (cache / "features" / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors").write_text("by content")


def record(folder: Path, path: str) -> None:
    """A record as Snakemake keeps it: its name is base64 of the path, cut where a name would be too long."""
    text = urlsafe_b64encode(path.encode()).decode()
    pieces = [text[i : i + 254] for i in range(0, len(text), 254)]
    file = folder.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links as what they lead to."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(p.relative_to(folder)): os.readlink(p).encode() if p.is_symlink() else p.read_bytes() for p in files}


def test_deletion_is_as_if_the_experiment_had_never_been(tmp_path, project, capsys):
    """The project is then that in which only the other experiment was run, but for what two share, which is named."""
    experiment("delete", "one", yes=True)
    said = capsys.readouterr().out
    after = contents(project)
    shutil.rmtree(project / "results")
    for folder in (".snakemake", "resources"):
        shutil.rmtree(project / folder)
    fill(project, "one-more")
    never = contents(project)
    kept = {name for name in after.keys() - never.keys() if "features" not in name}
    assert kept == {".snakemake/log/both.snakemake.log", "results/training/notes.txt"}
    assert {name: after[name] for name in never if not name.startswith("resources/.cache/")} == {
        name: value for name, value in never.items() if not name.startswith("resources/.cache/")
    }
    assert set(never) <= after.keys()
    assert not [path for path in project.rglob("@*") if not any(path.iterdir())], "no empty folders of records"
    assert "stays: " in said and "both.snakemake.log: also of a run of one-more" in said and "resources/.cache" in said
    assert said.endswith("deleted one\n")


def test_records_of_long_names_are_found(project):
    names = sorted(records_of(project / ".snakemake/metadata", "one"))
    assert len(names) == 5 and any(part.startswith("@") for file in names for part in file.parts)


def test_links_in_results_are_removed_and_what_they_lead_to_stays(project):
    (project / "mine").mkdir()
    (project / "mine/notes.txt").write_text("mine")
    (project / "results/one/images").symlink_to(project / "mine")
    (project / "results/one/note.txt").symlink_to(project / "mine/notes.txt")
    experiment("delete", "one", yes=True)
    assert not (project / "results/one").exists() and (project / "mine/notes.txt").read_text() == "mine"


def test_an_interrupted_deletion_can_be_repeated(project, monkeypatch):
    removed = []

    def rmtree(path):
        removed.append(path)
        if len(removed) == 3:
            raise KeyboardInterrupt
        return real(path)

    real = shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt):
        experiment("delete", "one", yes=True)
    assert (project / "results/one/plan.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(project)
    alone(monkeypatch)
    experiment("delete", "one", yes=True)
    assert not (project / "results/one").exists()


@pytest.mark.parametrize("typed", ["", "y", "one-more"])
def test_it_asks_and_does_nothing_for_another_answer(project, monkeypatch, typed):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: typed)
    before = contents(project)
    with pytest.raises(InputError, match="nothing was deleted"):
        experiment("delete", "one")
    assert contents(project) == before


def test_without_a_terminal_it_does_nothing_unless_told(project, capsys):
    before = contents(project)
    assert cli.main(["experiment", "delete", "one"]) == 2
    assert "give --yes" in capsys.readouterr().err and contents(project) == before
    assert cli.main(["experiment", "delete", "one", "--yes"]) == 0
    assert not (project / "results/one").exists()


REFUSED = {
    "no name": ("", "say which one"),
    "not there": ("two", "no such experiment"),
    "a path": ("one/../one", "no name of an experiment"),
    "a way out": ("..", "no name of an experiment"),
    "the folder itself": (".", "no name of an experiment"),
    "absolute": ("/etc", "no name of an experiment"),
    "not ours": ("training", "has not been run yet"),
    "a link": ("linked", "a link to"),
    "a copy under another name": ("copied", "is not the plan of an experiment `copied`"),
    "a plan that is none": ("broken", "not a plan in JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_experiment_is_refused(project, case):
    name, says = REFUSED[case]
    (project / "results/linked").symlink_to(project / "results/one")
    shutil.copytree(project / "results/one", project / "results/copied")
    (project / "results/broken").mkdir()
    (project / "results/broken/plan.json").write_text("{")
    before = contents(project)
    with pytest.raises(InputError, match=says) as refused:
        experiment("delete", name, yes=True)
    assert "\n" not in str(refused.value) and contents(project) == before


def test_a_run_that_holds_the_lock_stops_it(project, monkeypatch):
    (project / ".snakemake/locks/0.output.lock").write_text("results/one-more/x\nresults/one/catalog.duckdb\n")
    before = contents(project)
    with pytest.raises(InputError, match="a run that was killed left its lock"):
        experiment("delete", "one", yes=True)
    monkeypatch.setattr(module, "main_processes", lambda folder: [77])
    with pytest.raises(InputError, match="a run is at work on it \\(process 77\\)"):
        experiment("delete", "one", yes=True)
    assert contents(project) == before


def test_a_run_of_another_experiment_does_not(project, monkeypatch):
    (project / ".snakemake/locks/0.output.lock").write_text("results/one-more/x\n")
    monkeypatch.setattr(module, "main_processes", lambda folder: [77])
    experiment("delete", "one", yes=True)
    assert not (project / "results/one").exists() and (project / ".snakemake/locks/0.output.lock").exists()


def test_a_run_that_is_starting_and_has_no_lock_yet_stops_it(project, monkeypatch):
    code = "import time; print(1, flush=True); time.sleep(60)"
    (project / "snakemake").write_text(code)
    monkeypatch.setattr(module, "main_processes", main_processes)
    with subprocess.Popen([sys.executable, "snakemake"], cwd=project, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match=f"a run is starting .* \\(process {process.pid}\\)"):
            experiment("delete", "one", yes=True)
        process.kill()
    assert (project / "results/one/plan.json").exists()


def test_jobs_in_the_queue_of_slurm_stop_it(project, monkeypatch):
    monkeypatch.setattr(module, "queued", lambda folder: ["12", "13"])
    with pytest.raises(InputError, match="jobs 12 13 of a run are in SLURM's queue"):
        experiment("delete", "one", yes=True)


def test_those_that_read_from_it_and_models_of_the_hub_are_named(project, capsys):
    plan = json.loads((project / "results/one-more/plan.json").read_text())
    plan["config"]["calibrate"]["sources"] = {"shapes-flux": "results/one/calibration/shapes-flux"}
    (project / "results/one-more/plan.json").write_text(json.dumps(plan))
    for name, revision in (("one", "a" * 40), ("one-more", "b" * 40)):
        plan = json.loads((project / f"results/{name}/plan.json").read_text())
        plan["config"]["models"]["shapes-flux"] |= {"source": "org/model", "revision": revision}
        (project / f"results/{name}/plan.json").write_text(json.dumps(plan))
        (project / f"resources/models/org--model@{revision}").mkdir(parents=True)
    experiment("delete", "one", yes=True)
    said = capsys.readouterr().out
    assert f"resources/models/org--model@{'a' * 40}: a downloaded model; no other experiment uses it" in said
    assert "b" * 40 not in said and "cannot be made again without it: results/one-more/plan.json" in said
    assert (project / f"resources/models/org--model@{'a' * 40}").is_dir()


def test_the_list_has_size_completion_and_stages(project, capsys):
    experiment("list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["experiment", "one", "one-more"]
    assert "67 %" in lines[1] and lines[1].endswith("prompts, publish")
    assert lines[3] == "no experiments: training/"
    assert [human(n) for n in (0, 999, 1000, 37_400_000, 2e15)] == ["0 B", "999 B", "1 kB", "37 MB", "2000.0 TB"]


def test_status_is_the_progress_of_one_or_of_all(project, capsys):
    experiment("status", "one")
    one = capsys.readouterr().out
    assert one.startswith("# Progress: one\n") and "67 %" in one
    experiment("status")
    assert capsys.readouterr().out.count("# Progress: ") == 2


def test_an_unknown_action_is_refused(project):
    with pytest.raises(InputError, match="did you mean `delete`"):
        experiment("delet", "one")


def test_deleting_a_real_study_leaves_nothing_of_it(study, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    for part in (".snakemake", "results", "resources"):
        shutil.copytree(study / part, copy / part, symlinks=True)
    monkeypatch.chdir(copy)
    alone(monkeypatch)
    experiment("delete", "tiny", yes=True)
    assert not (copy / "results/tiny").exists()
    assert not list(records_of(copy / ".snakemake/metadata", "tiny"))
    mentions = [name for name, data in contents(copy).items() if b"results/tiny/" in data]
    assert not mentions
