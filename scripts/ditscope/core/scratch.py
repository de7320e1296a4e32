"""Unfinished work of an expensive job: kept outside its declared outputs, found again by a digest of its inputs."""

import json
import shutil
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ditscope.core.atomic import make_folder, write_text
from ditscope.core.errors import InputError
from ditscope.core.identity import digest

MARK = "output.json"  # in every folder of slices: the output that they are for


def unfinished(root: Path | None, output: Path | str, key: dict[str, Any]) -> Path:
    """The folder of finished slices of the job that makes `output` from `key`; a fresh temporary one without `root`.

    Snakemake deletes declared outputs before a job starts and after it fails; this folder survives both.
    """
    require_writable(Path(output))
    if root is None:
        return Path(tempfile.mkdtemp(prefix="ditscope-"))
    plain = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in key.items()}
    folder = Path(root) / digest({"output": str(output), **plain})
    make_folder(folder)
    write_text(folder / MARK, json.dumps({"output": str(output)}) + "\n")
    return folder


def require_writable(path: Path) -> None:
    """Refuse a place that nothing can be written to, before any work is done for it; makes its folder."""
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place, or free it") from None


def discard(folder: Path) -> None:
    """Remove a folder of slices once the job's outputs are complete."""
    shutil.rmtree(folder, ignore_errors=True)
