"""The tiny study, run once for all tests that look at what a study leaves."""

import os
from pathlib import Path

import pytest

import workflow


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """A checkout in which the tiny study has been run; one that is there already in `DITSCOPE_STUDY`."""
    if "DITSCOPE_STUDY" in os.environ:
        return Path(os.environ["DITSCOPE_STUDY"])
    folder = workflow.checkout(tmp_path_factory.mktemp("study"))
    (folder / ".traced").mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DITSCOPE_TRACE", str(folder / ".traced"))
        environment.setenv("PYTHONPATH", str(workflow.ROOT / "tests" / "traced"), prepend=os.pathsep)
        done = workflow.snakemake(
            folder, "--cores", "2", "--configfile", "experiments/tiny.yaml", root=folder, timeout=1200
        )
    assert done.returncode == 0, done.stdout[-6000:]
    return folder
