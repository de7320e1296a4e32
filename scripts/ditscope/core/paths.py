"""What a path that a command takes must be: part of the parameter's type, said by `--help`, checked before any work."""

import os
import stat
from collections.abc import Iterable
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Annotated

from ditscope.core.errors import InputError


class PathKind(Enum):
    """What a path leads to; the value is how `--help` says it."""

    INPUT_FILE = "an existing file"
    INPUT_FOLDER = "an existing folder"
    OUTPUT_FILE = "the file to write"
    OUTPUT_FOLDER = "the folder to write into"


InputFile = Annotated[Path, PathKind.INPUT_FILE]
InputFolder = Annotated[Path, PathKind.INPUT_FOLDER]
OutputFile = Annotated[Path, PathKind.OUTPUT_FILE]
OutputFolder = Annotated[Path, PathKind.OUTPUT_FOLDER]


def check_path(path: Path, kind: PathKind, where: str) -> None:
    """Refuse a path that is not of its kind, or cannot be read or written; `where` names the option. Makes nothing."""
    if reason := complaint(path, kind):
        raise InputError(f"{where}: {path}: {reason}")


def check_apart(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse a file to write that is one of the files to read, or is to be written twice; links are followed."""
    read, written = {os.path.realpath(path) for path in inputs}, set()
    for path in outputs:
        place = os.path.realpath(path)
        if place in read:
            raise InputError(f"{path}: is read, so nothing is written over it; name another file to write")
        if place in written:
            raise InputError(f"{path}: would be written twice; name another file for one of the outputs")
        written.add(place)


def complaint(path: Path, kind: PathKind) -> str:
    """What is wrong with a path of this kind, and what to do; empty where nothing is."""
    try:
        if kind is PathKind.INPUT_FILE:
            return input_file(path)
        if kind is PathKind.INPUT_FOLDER:
            with os.scandir(path):
                return ""
        return output(path, kind)
    except FileNotFoundError:
        return "no such file" if kind is PathKind.INPUT_FILE else "no such folder"
    except NotADirectoryError:
        return f"{first_file(path)} is a file; name {kind.value}"
    except OSError as error:
        return f"cannot be read ({error.strerror}); name another, or change its mode"


def input_file(path: Path) -> str:
    """What is wrong with a file to read. Pipes pass: their bytes are for the command."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a folder; name a file"
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            return "" if file.read(1) else "the file is empty; make it again"
    return ""


def output(path: Path, kind: PathKind) -> str:
    """What is wrong with a place to write to, which need not be there yet."""
    if kind is PathKind.OUTPUT_FILE and path.is_dir():
        return "a folder; name a file"
    if kind is PathKind.OUTPUT_FILE and path.exists() and not path.is_file():
        return "no plain file, and would be replaced by one; name another"
    folder = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p) and (p != path or path.is_dir()))
    if kind is PathKind.OUTPUT_FOLDER and os.path.lexists(path) and not path.is_dir():
        return "a file; name a folder"
    if not folder.is_dir():
        return f"{folder} is a file, so nothing can be below it; name another place"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be written into {folder}; name another place, or change its mode"
    return ""


def first_file(path: Path) -> Path:
    """The first part of a path that is no folder."""
    return next((p for p in (*reversed(path.parents), path) if p.exists() and not p.is_dir()), path)


def is_inside(name: object) -> bool:
    """Whether a name that a file gives can be that of a plain file below a folder: relative, and fit for a disk."""
    return fits_a_disk(name) and not (path := PurePosixPath(str(name))).is_absolute() and ".." not in path.parts


def fits_a_disk(name: object) -> bool:
    """Whether a name that a file gives can be a path at all."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in PurePosixPath(name).parts]
    return max(sizes, default=256) < 256 and len(name) < 2048  # a disk's limit of one name; half of a path's
