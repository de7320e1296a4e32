"""Films of captures: what each block's output would draw, block by block and step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ditscope.capture_layout import captures_in, decoded_file, picture_file, read_metadata
from ditscope.errors import InputError
from ditscope.frames import (
    BACKGROUND,
    COLOURS,
    INK,
    PANEL,
    draw_lines,
    font,
    line_height,
    text_width,
    tile,
    wrap,
    write_film,
)
from ditscope.patterns import block_index, block_type
from ditscope.settings import Video

GAP = 8
CAPTION_LINES = 3
READ_OUTS = {"x0": "clean estimate x0", "x_prev": "next state x_prev"}


@dataclass(frozen=True)
class Shot:
    """One frame: a picture of each generation, and what is said above them."""

    images: list[Path]
    label: str
    detail: str


def create_visualization(generation_id: str, output_dir: Path = Path("output"), settings: Video = Video()) -> None:
    """Draw the decoded blocks of one captured generation as visualization_<id>.gif or .mp4 in its folder."""
    folder = output_dir / generation_id
    if not folder.is_dir():
        there = ", ".join(path.name for path in captures_in(output_dir)) or "none"
        raise InputError(f"{folder}: no such generation; in {output_dir}: {there}")
    film([folder], folder / f"visualization_{generation_id}.{settings.output_format}", settings)


def capture_video(captures: Path, out: Path, settings: Video = Video()) -> None:
    """Draw the first generations of a capture set side by side in one film."""
    folders = captures_in(captures)
    if not folders:
        raise InputError(f"{captures}: holds no finished capture; run the stage `capture` first")
    film(folders[: settings.max_generations], out, settings)


def film(folders: Sequence[Path], out: Path, settings: Video) -> None:
    """One frame a block and step, a tile a generation; the generated pictures come last."""
    metadata = [read_metadata(folder) for folder in folders]
    order = order_of(metadata[0], settings, folders[0])
    for folder, data in zip(folders, metadata, strict=True):
        if order_of(data, settings, folder) != order:
            raise InputError(f"{folder}: captured other blocks or steps than {folders[0]}; draw them apart")
        for step, block in order:
            if not (file := decoded_file(folder, settings.decode, step, block)).exists():
                mend = f"capture it with should_decode_intermediates and decode {settings.decode}"
                raise InputError(f"{file}: no such picture; {mend}")
    data, prompts = metadata[0], [about["prompt"] for about in metadata]
    shots = [
        Shot(
            [decoded_file(folder, settings.decode, step, block) for folder in folders],
            f"step {step} | {block_type(block)} | block {block_index(block)}",
            f"{data['model']}: {READ_OUTS[settings.decode]}, sigma {data['sigmas'][step]:.2f}",
        )
        for step, block in order
    ]
    final = f"{data['model']}: the generated picture"
    shots.append(Shot([picture_file(folder) for folder in folders], f"after {data['num_steps']} steps", final))
    write_film(frames(shots, prompts, settings), out, settings.fps)


def order_of(metadata: dict, settings: Video, folder: Path) -> list[tuple[int, str]]:
    """(step, block) of each frame in the order of the network: by number, never by name."""
    captured = metadata["captured_blocks"]
    blocks = [b for b in captured if not settings.block_type or block_type(b) == settings.block_type]
    if not blocks:
        kinds = ", ".join(dict.fromkeys(block_type(b) for b in captured))
        raise InputError(f"{folder}: holds no block of type `{settings.block_type}`; it has {kinds}")
    return [(step, block) for step in metadata["captured_steps"] for block in blocks[: settings.max_blocks or None]]


def frames(shots: Sequence[Shot], prompts: Sequence[str], settings: Video) -> Iterator[Image.Image]:
    """Draw the shots: tiles below a bar that says where in network and schedule we are, the prompts below them."""
    size = settings.font_size
    small = max(10, size * 5 // 8)
    with Image.open(shots[0].images[0]) as first:
        side = max(settings.tile_size, *first.size) if len(prompts) == 1 else settings.tile_size
    texts = [max(text_width(shot.label, size), text_width(shot.detail, small)) for shot in shots]
    width = max(len(prompts) * (side + GAP) + GAP, max(texts) + 2 * GAP)
    left = (width - len(prompts) * (side + GAP) + GAP) // 2
    bar = line_height(size) + line_height(small) + 2 * GAP
    height = bar + side + CAPTION_LINES * line_height(small) + 3 * GAP
    for number, shot in enumerate(shots, start=1):
        canvas = Image.new("RGB", (width, height), BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, width, bar - 1), fill=INK)
        draw.rectangle((0, bar - 4, round(number / len(shots) * width), bar - 1), fill=COLOURS[1])
        draw.text((GAP, GAP // 2), shot.label, font=font(size), fill=BACKGROUND)
        draw.text((GAP, GAP // 2 + line_height(size)), shot.detail, font=font(small), fill=PANEL)
        for column, (path, prompt) in enumerate(zip(shot.images, prompts, strict=True)):
            with Image.open(path) as image:
                picture = tile(image, side)
            x = left + column * (side + GAP)
            canvas.paste(picture, (x + (side - picture.width) // 2, bar + GAP + (side - picture.height) // 2))
            draw_lines(draw, (x, bar + side + 2 * GAP), wrap(prompt, small, side, CAPTION_LINES), small)
        yield canvas
