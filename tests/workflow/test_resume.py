"""`ditscope resume`: only what Snakemake left of this folder is cancelled, and nothing starts before it is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditscope import cli
from ditscope.core.errors import InputError
from ditscope.workflow import resume

SCRIPTS = Path(resume.__file__).resolve().parents[2]
RUN = "ditscope_0a1b2c3d-0000-4111-8222-0123456789ab"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for squeue, which shows one file's lines, and scancel, which records its arguments and empties it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"squeue": 'cat "$0.lines"', "scancel": f'echo "$@" >> "$0.calls"; : > {folder}/squeue.lines'}
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def show(cluster: Path, *rows: str) -> None:
    (cluster / "squeue.lines").write_text("".join(f"{row}\n" for row in rows))


def test_only_snakemake_s_jobs_of_this_folder_are_found(cluster, tmp_path):
    other = tmp_path / "other"
    show(
        cluster,
        f"1|{RUN}|{tmp_path}",
        f"2|{RUN}|{other}",
        f"3|jupyter|{tmp_path}",
        f"4|{RUN.removeprefix('ditscope_')}|{tmp_path}",
        f"1|{RUN}|{tmp_path}",
    )
    assert resume.queued(tmp_path) == ["1", "4"]


def test_folder_is_found_through_a_link(cluster, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    show(cluster, f"1|{RUN}|{tmp_path / 'link'}")
    assert resume.queued(tmp_path / "real") == ["1"]


def test_queue_is_cleared_before_anything_starts(cluster, tmp_path, monkeypatch):
    show(cluster, f"1|{RUN}|{tmp_path}", f"12|{RUN}|{tmp_path}")
    monkeypatch.chdir(tmp_path)
    started = []

    def run(command, **options):
        assert not resume.queued(tmp_path)
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    real = subprocess.run
    monkeypatch.setattr(
        resume.subprocess, "run", lambda c, **o: run(c, **o) if c[0] == sys.executable else real(c, **o)
    )
    resume.resume([Path("a.yaml")], options="--sdm env-modules --config 'x={y: 1}' -- generate")
    assert (cluster / "scancel.calls").read_text() == "1 12\n"
    common = ["--configfile", "a.yaml", "--profile", "slurm"]
    options = ["--sdm", "env-modules", "--config", "x={y: 1}", "--", "generate"]
    assert [c[3:] for c in started] == [[*common, "--unlock", *options], [*common, *options]]


def test_jobs_that_do_not_end_stop_it(cluster, tmp_path):
    show(cluster, f"7|{RUN}|{tmp_path}")
    (cluster / "scancel").write_text("#!/bin/sh\n")
    with pytest.raises(InputError, match="jobs 7 are still there after 0 s"):
        resume.clear_queue(tmp_path, 0)


def test_jobs_that_ended_as_the_time_was_up_do_not_stop_it(cluster, tmp_path):
    show(cluster)
    resume.clear_queue(tmp_path, 0)


@pytest.mark.parametrize(
    "text, problem", [(None, "--configfile: a.yaml: no such file"), ("generate: {modls: []}", "did you mean")]
)
def test_bad_config_is_refused_before_a_job_is_cancelled(cluster, tmp_path, monkeypatch, capsys, text, problem):
    show(cluster, f"1|{RUN}|{tmp_path}")
    monkeypatch.chdir(tmp_path)
    if text:
        Path("a.yaml").write_text(text)
    assert cli.main(["resume", "--configfile", "a.yaml", "--wait-s", "0"]) == 2
    assert problem in capsys.readouterr().err
    assert not (cluster / "scancel.calls").exists()


def test_living_main_process_stops_it(cluster, tmp_path, monkeypatch):
    show(cluster)
    code = "import time; print(1, flush=True); time.sleep(60)"
    for mode, stops in ([], True), (["--mode", "remote"], False):
        program = tmp_path / "snakemake"
        program.write_text(code)
        with subprocess.Popen([sys.executable, str(program), *mode], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert resume.main_processes(tmp_path) == ([process.pid] if stops else [])
            if stops:
                monkeypatch.chdir(tmp_path)
                with pytest.raises(InputError, match=f"a run is alive \\(process {process.pid}\\)"):
                    resume.resume([])
            process.kill()


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="squeue: not found"):
        resume.queued(tmp_path)


def test_failing_squeue_is_not_an_empty_queue(cluster, tmp_path):
    (cluster / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(InputError, match="squeue: no controller"):
        resume.clear_queue(tmp_path, 5)


def test_on_one_machine_only_the_lock_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").symlink_to(SCRIPTS.parent / "profiles")
    for submitting in ("slurm", "profiles/slurm", "of-our-site"):
        with pytest.raises(InputError, match="squeue: not found"):
            resume.resume([], profile=submitting)
    started = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(resume.subprocess, "run", lambda command, **_: started.append(command[3:]) or done)
    resume.resume([Path("a.yaml")], profile="local")
    common = ["--configfile", "a.yaml", "--profile", "local"]
    assert started == [[*common, "--unlock"], common]
