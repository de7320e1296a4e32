"""Unfinished work of an expensive job: kept outside its declared outputs, found again by a digest of its inputs."""

import shutil
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ditscope.identity import digest


def unfinished(root: Path | None, output: Path | str, key: dict[str, Any]) -> Path:
    """The folder of finished slices of the job that makes `output` from `key`; a fresh temporary one without `root`.

    Snakemake deletes declared outputs before a job starts and after it fails; this folder survives both.
    """
    if root is None:
        return Path(tempfile.mkdtemp(prefix="ditscope-"))
    plain = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in key.items()}
    folder = Path(root) / digest({"output": str(output), **plain})
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(folder: Path) -> None:
    """Remove a folder of slices once the job's outputs are complete."""
    shutil.rmtree(folder, ignore_errors=True)
