"""Seeded mutation of files, and a watch on what a reader does meanwhile: what test_fuzz.py is made of."""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditscope.core.errors import InputError

TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\n", b"\r", b'"', b"'", b",", b"{", b"}", b"[", b"]", b":", b"-1", b"0", b"1e999",
    b"NaN", b"null", b"true", b"../", b"/etc/passwd", b"..\\", b"!!python/object/apply:os.system [id]", b"&a [*a]",
    b"*a", b"<<: ", b"\x93NUMPY", b"PK\x03\x04", b"\x80\x04", b"O8", b"9" * 40, b"[" * 2000,
    b"{\"a\":" * 2000, b"A" * 140_000,
    b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 512, "é".encode(), b"schema_version", b"__metadata__",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
FORBIDDEN += (
    "os.system",
    "os.exec",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
    "shutil.move",
)


@dataclass
class Outcome:
    """How a reader took its inputs."""

    executions: int = 0
    read: int = 0
    refused: int = 0


watch: dict[str, list[str] | None] = {"seen": None}


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Take down what a reader must not do, while one runs."""
    seen = watch["seen"]
    if seen is None:
        return
    if event in FORBIDDEN or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
        seen.append(f"{event} {arguments[:2]}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """What happens inside that a reader must not do: writes, removals, processes, connections, unpickling."""
    if "hooked" not in watch:  # a hook cannot be taken away again
        sys.addaudithook(audit)
        watch["hooked"] = []
    watch["seen"] = seen = []
    try:
        yield seen
    finally:
        watch["seen"] = None


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """`data` after one to six changes: bits, bytes, blocks taken away, doubled, moved in from another seed, tokens."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 32, 512))
        kind = rng.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            token = rng.choice(TOKENS)
            changed[at : at + (len(token) if rng.random() < 0.5 else 0)] = token
        elif kind == 6:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            changed[at:at] = other[begin : begin + size]
        elif at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(changed)


def fuzz(
    read: Callable[[Path], Any], file: Path, seeds: list[bytes], seconds: float, seed: int, named: str = ""
) -> Outcome:
    """Feed mutations of `seeds` to a reader by way of `file` for some seconds.

    Fails on every exception but an InputError of one line that has `named` in it, and on every forbidden deed; the
    input that did it is kept beside the folder.
    """
    rng, outcome = random.Random(seed), Outcome()
    for data in seeds:
        file.write_bytes(data)
        read(file)
    before = {p: p.stat().st_mtime_ns for p in file.parent.rglob("*")}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng.choice(seeds), rng, seeds)
        file.write_bytes(data)
        outcome.executions += 1
        with watched() as seen:
            try:
                read(file)
                outcome.read += 1
            except InputError as error:
                outcome.refused += 1
                good = len(str(error).splitlines()) == 1 and named in str(error)
                complaint = "" if good else f"not one line that names the file: {error!r}"
            except BaseException as error:
                keep(file, data)
                raise AssertionError(f"input {outcome.executions} of seed {seed}: {type(error).__name__}") from error
            else:
                complaint = ""
        if seen or complaint:
            keep(file, data)
            raise AssertionError(f"input {outcome.executions} of seed {seed}: {complaint or seen}")
    after = {p: p.stat().st_mtime_ns for p in file.parent.rglob("*")}
    assert {p for p in before if p != file} | {file} == set(after), "a reader left files"
    assert all(after[p] == before[p] for p in before if p != file), "a reader changed files"
    return outcome


def keep(file: Path, data: bytes) -> None:
    """Keep an input that a reader did not stand, beside the folder of the others."""
    (file.parent.parent / f"broken-{file.name}").write_bytes(data)
