"""Pictures of the user's own: a folder of them, or of a folder for each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ditscope.core.errors import InputError, parsing
from ditscope.core.picture_file import BROKEN
from ditscope.refine.data_settings import Source
from ditscope.refine.endings import PICTURES
from ditscope.refine.samples import Damage, Sample

HELD_OUT_BY = "sample"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """A sample for each picture below `folder`, cropped in its middle and scaled to `size`, in the order of names.

    Its label is the folder it lies in, its prompt what a .txt of its name says, or else that folder's name.
    """
    folder = Path(source.folder)
    for place in class_folders(folder):
        label = "" if place == folder else place.relative_to(folder).as_posix()
        for path in pictures_in(place):
            try:
                with parsing(path, "not a readable picture ({})", BROKEN), Image.open(path) as opened:
                    picture = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (source.size, source.size))
            except InputError as error:
                damage.note(path, str(error).removeprefix(f"{path}: "))
                continue
            caption = path.with_suffix(".txt")
            prompt = caption.read_text(encoding="utf-8").strip() if caption.exists() else label.replace("_", " ")
            key = path.relative_to(folder).with_suffix("").as_posix()
            yield Sample(key=key, prompt=prompt, label=label, pictures=np.asarray(picture))


def class_folders(folder: Path) -> list[Path]:
    """The folder itself where pictures lie in it, and each one below; one without any is a class without samples."""
    below = sorted(p for p in folder.rglob("*") if p.is_dir() and not p.name.startswith("."))
    leaves = [p for p in below if not any(q.parent == p for q in below)]
    if empty := next((p for p in leaves if not pictures_in(p)), None):
        raise InputError(f"{empty}: a class without pictures ({', '.join(PICTURES)}); fill it, or remove the folder")
    filled = [p for p in (folder, *below) if pictures_in(p)]
    if not filled:
        raise InputError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
    return filled


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
