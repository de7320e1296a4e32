"""Films of captures: what each block's output would draw, block by block and step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ditscope.capture.files import captures_in, decoded_file, picture_file, read_metadata
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.films import write_film
from ditscope.core.paths import InputFolder
from ditscope.core.patterns import block_index, block_type
from ditscope.video.capture_sheet import contact_sheet, write_sheet
from ditscope.video.frames import BACKGROUND, COLOURS, INK, PANEL, draw_lines, font, line_height, text_width, tile, wrap
from ditscope.video.settings import Video

GAP = 8
CAPTION_LINES = 3
READ_OUTS = {"x0": "clean estimate x0", "x_prev": "next state x_prev"}


@dataclass(frozen=True)
class Shot:
    """One frame: a picture of each generation, and what is said above them."""

    images: list[Path]
    label: str
    detail: str


def create_visualization(
    generation_id: str, output_dir: InputFolder = Path("output"), settings: Video = Video()
) -> None:
    """Draw the decoded blocks of one captured generation: a film of blocks, one of steps, and a contact sheet.

    They are visualization_<id>.gif (or .mp4), denoising_<id>.gif (or .mp4) and contact_sheet_<id>.png in its folder.
    """
    folder = output_dir / generation_id
    if not folder.is_dir():
        there = ", ".join(path.name for path in captures_in(output_dir)) or "none"
        raise InputError(f"{folder}: no such generation; in {output_dir}: {there}")
    film([folder], folder / f"visualization_{generation_id}.{settings.output_format}", settings)
    denoising_film([folder], folder / f"denoising_{generation_id}.{settings.output_format}", settings)
    draw_sheet(folder, folder / f"contact_sheet_{generation_id}.png", settings)


def capture_video(captures: Path, out: Path, denoising: Path, sheets: Path, settings: Video = Video()) -> None:
    """Draw the first generations of a capture set side by side in two films, and a contact sheet of every generation.

    `out` shows every block of every step, `denoising` the model's own estimate at every step; `sheets` is a folder of
    <generation id>.png.
    """
    folders = captures_in(captures)
    if not folders:
        raise InputError(f"{captures}: holds no finished capture; run the stage `capture` first")
    film(folders[: settings.max_generations], out, settings)
    denoising_film(folders[: settings.max_generations], denoising, settings)
    for folder in folders:
        draw_sheet(folder, sheets / f"{folder.name}.png", settings)
    drawn = (folder.name for folder in folders if (sheets / f"{folder.name}.png").exists())
    check_complete(sheets, "contact sheets", (folder.name for folder in folders), drawn)


def film(folders: Sequence[Path], out: Path, settings: Video) -> None:
    """One frame per block and step, one tile per generation; the generated pictures come last."""
    metadata = [read_metadata(folder) for folder in folders]
    order = order_of(metadata[0], settings, folders[0])
    for folder, data in zip(folders, metadata, strict=True):
        if order_of(data, settings, folder) != order:
            raise InputError(f"{folder}: captured other blocks or steps than {folders[0]}; draw them apart")
    name = metadata[0]["model"]
    shots = [
        Shot(
            [decoded_picture(folder, settings, step, block) for folder in folders],
            f"step {step} | {block_type(block)} | block {block_index(block)}",
            f"{name}: {READ_OUTS[settings.decode]}, sigma {metadata[0]['sigmas'][step]:.2f}",
        )
        for step, block in order
    ]
    write_shots(shots, folders, metadata, out, settings)


def denoising_film(folders: Sequence[Path], out: Path, settings: Video) -> None:
    """One frame a captured step: the read-out of the last captured block (of a whole capture: the model's own)."""
    metadata = [read_metadata(folder) for folder in folders]
    data = metadata[0]
    last = data["captured_blocks"][-1]
    shots = [
        Shot(
            [decoded_picture(folder, settings, step, last) for folder in folders],
            f"step {step + 1} of {data['num_steps']}",
            f"{data['model']}: {READ_OUTS[settings.decode]}, sigma {data['sigmas'][step]:.2f}",
        )
        for step in data["captured_steps"]
    ]
    write_shots(shots, folders, metadata, out, settings)


def write_shots(
    shots: list[Shot], folders: Sequence[Path], metadata: Sequence[dict], out: Path, settings: Video
) -> None:
    """Write a film of shots; the generated pictures come last."""
    final = f"{metadata[0]['model']}: the generated picture"
    pictures = [picture_file(folder) for folder in folders]
    shots = [*shots, Shot(pictures, f"after {metadata[0]['num_steps']} steps", final)]
    write_film(frames(shots, [about["prompt"] for about in metadata], settings), out, settings.fps)


def draw_sheet(folder: Path, out: Path, settings: Video) -> None:
    """Draw a generation's contact sheet: captured steps down, blocks across."""
    metadata = read_metadata(folder)
    order = order_of(metadata, settings, folder)
    blocks = list(dict.fromkeys(block for _, block in order))
    steps = metadata["captured_steps"]
    cells = [[decoded_picture(folder, settings, step, block) for block in blocks] for step in steps]
    write_sheet(contact_sheet(folder, metadata, cells, blocks, settings.tile_size), out)


def decoded_picture(folder: Path, settings: Video, step: int, block: str) -> Path:
    """The picture of a block's read-out; refused where it was not decoded."""
    if not (file := decoded_file(folder, settings.decode, step, block)).exists():
        fix = f"capture it with should_decode_intermediates and decode {settings.decode}"
        raise InputError(f"{file}: no such picture; {fix}")
    return file


def order_of(metadata: dict, settings: Video, folder: Path) -> list[tuple[int, str]]:
    """(step, block) of each frame in the order of the network: by number, never by name."""
    captured = metadata["captured_blocks"]
    every = settings.block_type in ("", "None")
    blocks = [b for b in captured if every or block_type(b) == settings.block_type]
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
