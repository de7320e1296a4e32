"""What goes wrong: the user's input, the bytes of a file, the machine, or this library; each is said for what it is."""

import errno
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What parsers of the standard library, NumPy and PyYAML raise on damaged or hostile bytes. None of the machine's
# errors (OSError, MemoryError), and none that a slip in this library's own code would raise.
UNREADABLE: tuple[type[Exception], ...] = (
    EOFError, ValueError, LookupError, ArithmeticError, RecursionError, NotImplementedError, SyntaxError,
    tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
# The same, and what walking through a document of another structure raises.
MALFORMED: tuple[type[Exception], ...] = (*UNREADABLE, TypeError, AttributeError)
# Of the machine, whatever the file holds: no space, no rights, a broken disk, a file server that is gone.
MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM",
        "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENOTCONN", "EREMOTEIO", "EBUSY",
    )
    if hasattr(errno, name)
)  # fmt: skip


class InputError(ValueError):
    """Bad input: one line that names the file, the row or key, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()) if len(message.splitlines()) > 1 else message)


class IncompleteError(RuntimeError):
    """A stage that would leave other rows than it was asked for: a fault of this library, found before it wrote."""


class SchemaError(IncompleteError):
    """A table that is not as it is declared: a fault of this library, found before it wrote."""


def line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """What went wrong, in one line of at most 300 characters."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


def machine_error(error: BaseException) -> str:
    """What the machine lacked, on one line; empty where the error is not the machine's."""
    if isinstance(error, MemoryError):
        return "out of memory; take smaller batches or a machine with more memory"
    if isinstance(error, OSError) and error.errno in MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; an error of the machine, not of what is in the file"
    return ""


@contextmanager
def parsing(path: Path | str, damaged: str, also: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn what a parser raises on the bytes of a file into an InputError, `<path>: <what> (<why>)<fix>`.

    `damaged` is the message with `{}` for the parser's own words; `also` are further exceptions of this parser. Keep
    to the parser's call inside: errors of the machine and slips of this library pass through as what they are. Some
    parsers hide the machine's errors in their own: the file is read once more before it is called damaged.
    """
    kinds: tuple[type[BaseException], ...] = (*UNREADABLE, *also, OSError)
    try:
        yield
    except InputError:
        raise
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, where a file is meant") from None
    except kinds as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek to nowhere is of the bytes
            raise
        read_through(path)
        reason = damaged.replace("{}", line(error))
        raise InputError(f"{path}: {reason}") from None


def read_through(path: Path | str) -> None:
    """Read a file to its end and keep nothing; raises what the machine has against it."""
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder, where a file is meant")
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def again(path: Path | str, step: str = "run again", ending: str = "") -> str:
    """What to do about a damaged file: one of a study is deleted and made again, any other is its owner's business.

    A study's file of another `ending` than what is read is whole, and the wrong one.
    """
    if ending and Path(path).suffix not in ("", ending):
        return f"name a file *{ending}"
    if any((parent / ".checksums").is_dir() for parent in Path(path).absolute().parents):
        return f"delete it and {step}"
    return "make or copy it again"


def check_version(path: Path | str, version: Any, expected: str, fix: str) -> None:
    """Refuse a file of another schema version than this library reads; `fix` is how to make it anew."""
    if version != expected:
        raise InputError(f"{path}: schema version {version}, this ditscope reads {expected}; {fix}")


def read_json(path: Path | str, damaged: str) -> dict[str, Any]:
    """A JSON file that holds a map. Raises InputError, `damaged` with the reason for `{}`, for anything else."""
    with parsing(path, damaged):
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not a map")
    return document
