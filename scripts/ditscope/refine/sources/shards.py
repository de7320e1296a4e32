"""WebDataset shards where they are, as those of Wan latents: nothing is copied, only where samples lie is noted."""

from pathlib import Path

from ditscope.core.errors import InputError
from ditscope.refine.data_settings import Source

HELD_OUT_BY = "prompt"


def shards(source: Source) -> tuple[Path, list[Path]]:
    """The folder, and its shards in the order of their names."""
    folder = Path(source.folder)
    found = sorted(folder.rglob("*.tar"))
    if not found:
        raise InputError(f"{folder}: holds no shards (*.tar)")
    return folder, found
