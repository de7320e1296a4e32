"""Atomic writes: a file is written beside its name and renamed, so that what has the name is whole."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UMASK = os.umask(0)  # read once: reading sets it, for other threads too
os.umask(UMASK)


@contextmanager
def replacing(path: Path | str, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` where the block ends, removed where it raises.

    Makes the folder. A file that several processes may write at once is `shared`: each writes to a name of its own.
    Raises OSError where the system refuses to write, also where a library written in Rust (safetensors, polars) has an
    error of its own for that.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused and not isinstance(error, OSError):
            raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(path)) from error
        raise


def write_text(path: Path | str, text: str, shared: bool = False) -> None:
    """Write UTF-8 text by `replacing`."""
    with replacing(path, shared) as partial:
        partial.write_text(text, encoding="utf-8")


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A hard link where the file system allows one, else a copy: results of real models are gigabytes."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, also while another job removes a parent that it found empty."""
    for _ in range(9):
        with suppress(FileNotFoundError):
            return folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of a new one: safetensors lets only the owner read what it writes, groups share results."""
    path.chmod(0o666 & ~UMASK)
