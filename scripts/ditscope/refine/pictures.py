"""Pictures of refined samples: what was given, interpolated, refined and true, side by side, with keys marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditscope.core.atomic import replacing
from ditscope.core.films import write_film
from ditscope.refine.grids import Grid

GREY = 205  # what stands for a missing patch or frame
KEY_COLOUR, OTHER_COLOUR = (0, 114, 178), (235, 235, 235)  # of the bar below a frame
BAR, MARGIN, CAPTION = 5, 4, 18
SHORTEST = 128  # pixels of a side, up to which small pictures are enlarged by a whole number


def given_only(truth: np.ndarray, keys: np.ndarray, nodes: Grid) -> np.ndarray:
    """A picture or film ([frames,] height, width, 3) with grey in place of what is missing; keys (nodes,) bool.

    Of a film `nodes` are its frames or its patches. Raises ValueError where they do not fit.
    """
    space = truth.shape[:-1]
    if len(nodes) == 1 and len(space) == 3:
        nodes = (nodes[0], 1, 1)
    mask = keys.reshape(nodes)
    for axis, (many, few) in enumerate(zip(space, nodes, strict=True)):
        time = len(space) == 3 and axis == 0
        mask = mask.take(node_of_frame(many, few) if time else np.arange(many) * few // many, axis)
    return np.where(mask[..., None], truth, np.uint8(GREY))


def enlarged(picture: np.ndarray) -> Image.Image:
    """A picture (height, width, 3) as an image, small ones enlarged by a whole number."""
    factor = max(1, SHORTEST // max(picture.shape[:2]))
    return Image.fromarray(picture.repeat(factor, 0).repeat(factor, 1))


def barred(picture: np.ndarray, key: bool) -> Image.Image:
    """A frame with a bar below it that tells whether it is a key."""
    image = enlarged(picture)
    framed = Image.new("RGB", (image.width, image.height + BAR), KEY_COLOUR if key else OTHER_COLOUR)
    framed.paste(image)
    return framed


def strip(film: np.ndarray, key_frames: np.ndarray) -> Image.Image:
    """The frames of a film (frames, height, width, 3) from left to right, key frames (frames,) with a bar."""
    frames = [barred(frame, bool(key)) for frame, key in zip(film, key_frames, strict=True)]
    width, height = frames[0].size
    sheet = Image.new("RGB", (len(frames) * (width + MARGIN) - MARGIN, height), "white")
    for number, frame in enumerate(frames):
        sheet.paste(frame, (number * (width + MARGIN), 0))
    return sheet


def still_of(picture: np.ndarray, key_frames: np.ndarray | None) -> Image.Image:
    """A picture as it is, a film as a strip."""
    if picture.ndim == 3:
        return enlarged(picture)
    return strip(picture, np.zeros(len(picture), bool) if key_frames is None else key_frames)


def key_frames_of(keys: np.ndarray, nodes: Grid, frames: int) -> np.ndarray:
    """Which of the frames of a film that values decode to are wholly known, (frames,) bool."""
    whole = np.asarray(keys.reshape(nodes[0], -1).all(1))
    return whole[node_of_frame(frames, nodes[0])]


def node_of_frame(frames: int, nodes: int) -> np.ndarray:
    """Of each frame of a film the frame of values that it is decoded from, (frames,).

    Of causal VAEs, as Wan's, the first is one frame of the film, and each other one as many as the rest share out.
    """
    return np.ceil(np.arange(frames) * (nodes - 1) / max(frames - 1, 1) - 1e-9).astype(int)


def beside(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one size in a row, each below its name."""
    font = ImageFont.load_default(12)
    images = list(pictures.values())
    width, height = max(i.width for i in images), max(i.height for i in images)
    sheet = Image.new("RGB", (len(images) * (width + MARGIN) + MARGIN, height + CAPTION + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, image) in enumerate(pictures.items()):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, CAPTION // 2), name, fill="black", font=font, anchor="lm")
        sheet.paste(image, (left, CAPTION))
    return sheet


def compared(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """Pictures (height, width, 3) by name, in a row."""
    return beside({name: enlarged(picture) for name, picture in pictures.items()})


def compared_film(films: Mapping[str, np.ndarray], key_frames: Sequence[bool] | np.ndarray) -> list[Image.Image]:
    """Films (frames, height, width, 3) by name as the frames of one, in a row, with a bar below key frames."""
    return [
        beside({name: barred(film[t], bool(key)) for name, film in films.items()}) for t, key in enumerate(key_frames)
    ]


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as PNG."""
    with replacing(path) as partial:
        image.save(partial, "PNG", compress_level=6)


def save_film(films: Mapping[str, np.ndarray], key_frames: np.ndarray, path: Path, fps: float) -> None:
    """Write films side by side as a GIF or MP4, by the ending of `path`."""
    write_film(compared_film(films, key_frames), path, fps)
