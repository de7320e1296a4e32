"""Digests of what each job left, in <results>/.checksums/<rule>/: what `ditscope doctor` holds the files against."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError, again, read_json
from ditscope.core.identity import digest, file_digest
from ditscope.core.paths import is_inside

FOLDER = ".checksums"
SCHEMA_VERSION = "1"


def record_checksums(results: Path, rule: str, outputs: Iterable[Path | str]) -> None:
    """Write sha256 and size of a job's output files (of directories: of every file in them) that lie below `results`.

    One JSON a job, named by a digest of its outputs, so that a job that is run again replaces its own.
    """
    paths = [Path(output) for output in outputs if Path(output).is_relative_to(results)]
    files = {
        file.relative_to(results).as_posix(): {"sha256": file_digest(file, 256), "bytes": file.stat().st_size}
        for path in paths
        for file in files_of(path)
    }
    if not files:
        return
    record = results / FOLDER / rule / f"{digest(sorted(map(str, paths)), 64)}.json"
    write_text(record, json.dumps({"schema_version": SCHEMA_VERSION, "rule": rule, "files": files}, indent=1) + "\n")


def files_of(path: Path) -> list[Path]:
    """`path` itself, or the files below it; less the marks that Snakemake puts into directories."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in paths if file.is_file() and file.name != ".snakemake_timestamp"]


def read_record(file: Path) -> dict[str, Any]:
    """One job's record. Raises InputError where it is damaged, or names files outside the study."""
    remedy = again(file, "run the jobs again")
    record = read_json(file, f"not a record of checksums; {remedy}")
    if not isinstance(files := record.get("files"), dict):
        raise InputError(f"{file}: not a record of checksums; {remedy}")
    for name, entry in files.items():
        if not is_inside(name):
            raise InputError(f"{file}: `{name}` is not inside the study; {remedy}")
        whole = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int
        if not whole:
            raise InputError(f"{file}: `{name}` has no sha256 and size; {remedy}")
    return record
