"""Atomic writes: a file is written beside its name and renamed, so that what has the name is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path | str, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` where the block ends, removed where it raises.

    Makes the folder. A file that several processes may write at once is `shared`: each writes to a name of its own.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path | str, text: str, shared: bool = False) -> None:
    """Write UTF-8 text by `replacing`."""
    with replacing(path, shared) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, also while another job removes a parent that it found empty."""
    for _ in range(9):
        with suppress(FileNotFoundError):
            return folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of a new one: safetensors lets only the owner read what it writes, groups share results."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
