"""Digests of source files, and values remembered by their key, cheap enough for every parse."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError


def source_digest(path: Path | str, cache_dir: Path | None = None) -> str:
    """Digest of a file, or of all files under a folder (names and bytes); cached by size and mtime.

    Of a folder hidden files and Markdown are left out: nothing reads a model's README.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(filter(counts, path.rglob("*"))) if path.is_dir() else [path]
    stats = [(str(f), s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()]]

    def compute() -> str:
        hashed = hashlib.sha256()
        for file in files:
            hashed.update(str(file.relative_to(path)).encode() + b"\0")
            with open(file, "rb") as opened:
                hashed.update(hashlib.file_digest(opened, "sha256").digest())
        return hashed.hexdigest()[:16]

    return cached(f"digest {path}", stats, compute, cache_dir)


def folder_stamp(path: Path | str) -> str:
    """Digest of the names, sizes and times of all files under a folder, for one that is too large to be read."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    stats = [(f.relative_to(path).as_posix(), f.stat()) for f in sorted(filter(counts, path.rglob("*")))]
    return hashlib.sha256(json.dumps([(n, s.st_size, s.st_mtime_ns) for n, s in stats]).encode()).hexdigest()[:16]


def counts(path: Path) -> bool:
    """Whether a file of a folder can matter to what is made from it."""
    return path.is_file() and path.suffix != ".md" and not path.name.startswith(".")


def cached(name: str, key: Any, compute: Any, cache_dir: Path | None) -> Any:
    """`compute()`, remembered as JSON in `cache_dir` for as long as `key` stays the same."""
    if cache_dir is None:
        return compute()
    file = cache_dir / (hashlib.sha256(name.encode()).hexdigest()[:16] + ".json")
    key = json.loads(json.dumps(key))
    try:
        stored = json.loads(file.read_text())
        if stored["key"] == key:
            return stored["value"]
    except (OSError, ValueError, KeyError):
        pass
    value = compute()
    with suppress(OSError):  # a read-only checkout only loses the cache
        write_text(file, json.dumps({"key": key, "value": value}), shared=True)
    return value
