"""Run the workflow from tests: the checkout's own Snakefile in a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake"]
STUDIES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


def workdir(folder: Path) -> Path:
    """Make `folder` look like the checkout to a study's relative paths, with results of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("models", "prompts", "config.yaml", "profiles", "local", "slurm", "apple"):
        if (ROOT / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def checkout(folder: Path) -> Path:
    """Copy every file that git tracks or would track into `folder`, links as links, with fresh modification times."""
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in filter(None, files.split("\0")):
        source, copy = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy, follow_symlinks=False)
    return folder


def reclone(study: Path, clone: Path) -> Path:
    """A fresh checkout beside the study, with its results and Snakemake's records."""
    checkout(clone)
    for name in ("results", ".snakemake"):
        shutil.copytree(study / name, clone / name, symlinks=True)
    return clone


def fake_conda(folder: Path) -> Path:
    """A folder with a `conda` that answers what a dry run asks it: enough for `--sdm conda` where there is no conda."""
    program = folder / "bin" / "conda"
    program.parent.mkdir(parents=True, exist_ok=True)
    info = json.dumps({"conda_prefix": str(folder), "platform": "linux-64", "conda_version": "25.1.0"})
    program.write_text(
        f"""#!/bin/sh
case "$*" in
    --version) echo conda 25.1.0 ;;
    "info --json") echo '{info}' ;;
    "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    *) echo "unexpected: conda $*" >&2; exit 1 ;;
esac
"""
    )
    program.chmod(0o755)
    return program.parent


def snakemake(
    folder: Path, *arguments: str, root: Path = ROOT, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in `folder` on the Snakefile of `root`; standard error is appended to standard output."""
    return subprocess.run(
        [*SNAKEMAKE, "--snakefile", str(root / "Snakefile"), *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200", "HOME": str(folder)},  # no profile of the user's
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
