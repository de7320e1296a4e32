"""Films of the user's own: .gif, .webp or .mp4 files, or folders of a film's frames; in folders of classes or not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from ditscope.core.errors import InputError, parsing
from ditscope.core.picture_file import BROKEN
from ditscope.refine.data_settings import Source
from ditscope.refine.endings import FILMS, PICTURES
from ditscope.refine.samples import Damage, Sample

HELD_OUT_BY = "sample"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """A sample for each film below `folder`: `frames` of its frames, evenly from first to last, of `size` pixels.

    A folder of pictures is one film, in the order of their names. The label is the folder that a film lies in, the
    prompt what a .txt of its name says, or else that folder's name.
    """
    folder = Path(source.folder)
    paths = films_in(folder)
    if not paths:
        raise InputError(f"{folder}: holds no films ({', '.join(FILMS)}, or folders of pictures)")
    for path in paths:
        try:
            pictures = film_of(path, source.frames, source.size)
        except InputError as error:
            damage.note(path, str(error).removeprefix(f"{path}: "))
            continue
        label = "" if path.parent == folder else path.parent.relative_to(folder).as_posix()
        caption = path.with_name(f"{path.stem if path.is_file() else path.name}.txt")
        prompt = caption.read_text(encoding="utf-8").strip() if caption.exists() else label.replace("_", " ")
        key = path.relative_to(folder)
        yield Sample(key=(key.with_suffix("") if path.is_file() else key).as_posix(), prompt=prompt, label=label,
                     pictures=pictures)  # fmt: skip


def films_in(folder: Path) -> list[Path]:
    """Files of films, and folders that pictures lie in, below a folder, by name."""
    files = [p for p in folder.rglob("*") if p.suffix.lower() in FILMS and p.is_file()]
    frames = {p.parent for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.suffix.lower() not in FILMS}
    return sorted({*files, *(frames - {folder})})


def film_of(path: Path, frames: int, size: int) -> np.ndarray:
    """Frames (frames, size, size, 3) uint8 of a film, cropped in their middle.

    Raises InputError where it cannot be read, has fewer frames, or some of another size.
    """
    with parsing(path if path.is_file() else first_frame(path), "not a readable film ({})", BROKEN):
        pictures = list(read_frames(path))
    if len(pictures) < frames:
        raise InputError(f"{path}: {len(pictures)} frames, where `frames` asks for {frames}")
    if other := next((n for n, picture in enumerate(pictures) if picture.size != pictures[0].size), None):
        sizes = " and the first ".join("{} x {}".format(*pictures[n].size) for n in (other, 0))
        raise InputError(f"{path}: frame {other} has {sizes} pixels")
    chosen = np.linspace(0, len(pictures) - 1, frames).round().astype(int)
    return np.stack([np.asarray(ImageOps.fit(pictures[n], (size, size))) for n in chosen])


def first_frame(folder: Path) -> Path:
    """The first picture of a folder of frames."""
    return min(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)


def read_frames(path: Path) -> Iterator[Image.Image]:
    """The frames of a film, as RGB images."""
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES):
            with Image.open(file) as opened:
                yield ImageOps.exif_transpose(opened).convert("RGB")
    elif path.suffix.lower() == ".mp4":
        import imageio_ffmpeg

        reader = imageio_ffmpeg.read_frames(str(path))
        width, height = next(reader)["size"]
        for frame in reader:
            yield Image.frombytes("RGB", (width, height), frame)
    else:
        with Image.open(path) as opened:
            for frame in ImageSequence.Iterator(opened):
                yield frame.convert("RGB")
