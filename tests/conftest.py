"""The tiny study, run once for all tests that look at what a study leaves."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

import workflow


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """A checkout in which the tiny study has been run; one that is there already in `DITSCOPE_STUDY`.

    Processes that share out the tests (pytest-xdist) share it: the first to ask runs it, the others wait.
    """
    if "DITSCOPE_STUDY" in os.environ:
        return Path(os.environ["DITSCOPE_STUDY"])
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "study"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            run_tiny_study(folder)
    assert (folder / "finished").exists(), (folder / "log").read_text()[-6000:]
    return folder


def run_tiny_study(folder: Path) -> None:
    """Run the tiny study in a checkout; its jobs note the modules that they load, below `.traced`."""
    workflow.checkout(folder)
    (folder / ".traced").mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DITSCOPE_TRACE", str(folder / ".traced"))
        environment.setenv("PYTHONPATH", str(workflow.ROOT / "tests" / "traced"), prepend=os.pathsep)
        tiny = ("--configfile", "experiments/tiny.yaml")
        done = workflow.snakemake(folder, "--cores", "2", *tiny, root=folder, timeout=1200)
    (folder / "log").write_text(done.stdout)
    if done.returncode == 0:
        (folder / "finished").touch()
