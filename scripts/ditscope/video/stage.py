"""Films of captures: what each block's output would draw, block by block and step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ditscope.capture.files import captures_in, decoded_file, picture_file, read_metadata
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.films import Film
from ditscope.core.paths import InputFolder
from ditscope.core.patterns import block_index, block_type
from ditscope.video.capture_sheet import contact_sheet
from ditscope.video.frames import (
    BACKGROUND,
    COLOURS,
    INK,
    PANEL,
    RESOLUTIONS,
    draw_lines,
    fitting,
    font,
    line_height,
    paste_in,
    text_width,
    tile,
    wrap,
    write_sheet,
)
from ditscope.video.page import write_films
from ditscope.video.settings import FORMATS, Video

GAP = 8
CAPTION_LINES = 3
MIN_TILE = 16
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
    suffix = FORMATS[settings.output_format]
    film([folder], folder / f"visualization_{generation_id}{suffix}", settings)
    denoising_film([folder], folder / f"denoising_{generation_id}{suffix}", settings)
    draw_sheet(folder, folder / f"contact_sheet_{generation_id}.png", settings)


def capture_video(
    captures: Path, out: Path, denoising: Path, sheets: Path, page: Path | None = None, settings: Video = Video()
) -> None:
    """Draw the first generations of a capture set side by side in two films, and a contact sheet of every generation.

    `out` shows every block of every step, `denoising` the model's own estimate at every step; `sheets` is a folder of
    <generation id>.png. `page` plays `out` in H.264.
    """
    folders = captures_in(captures)
    if not folders:
        raise InputError(f"{captures}: holds no finished capture; run the stage `capture` first")
    film(folders[: settings.max_generations], out, settings, page)
    denoising_film(folders[: settings.max_generations], denoising, settings)
    for folder in folders:
        draw_sheet(folder, sheets / f"{folder.name}.png", settings)
    drawn = (folder.name for folder in folders if (sheets / f"{folder.name}.png").exists())
    check_complete(sheets, "contact sheets", (folder.name for folder in folders), drawn)


def film(folders: Sequence[Path], out: Path, settings: Video, page: Path | None = None) -> None:
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
    write_shots(shots, folders, metadata, out, settings, page)


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
    shots: list[Shot],
    folders: Sequence[Path],
    metadata: Sequence[dict],
    out: Path,
    settings: Video,
    page: Path | None = None,
) -> None:
    """Write a film of shots; the generated pictures come last."""
    final = f"{metadata[0]['model']}: the generated picture"
    pictures = [picture_file(folder) for folder in folders]
    shots = [*shots, Shot(pictures, f"after {metadata[0]['num_steps']} steps", final)]
    write_films(film_of(shots, [about["prompt"] for about in metadata], settings), out, page, settings, shots[0].detail)


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


@dataclass(frozen=True)
class Layout:
    """Sizes of a frame in pixels."""

    side: int  # of a picture's tile
    title: int  # font of the bar's first line
    text: int  # font of everything else
    bar: int  # height of the bar
    cell: tuple[int, int]  # a tile with its prompt and the gaps
    columns: int
    left: int  # where the tiles begin
    size: tuple[int, int]  # of the frame


def film_of(shots: Sequence[Shot], prompts: Sequence[str], settings: Video) -> Film:
    """Tiles below a bar that says where in network and schedule we are, each one's prompt below it."""
    layout = layout_of(shots, len(prompts), settings)
    return Film(range(len(shots)), lambda place: draw_shot(shots[place], prompts, layout, (place + 1) / len(shots)))


def layout_of(shots: Sequence[Shot], count: int, settings: Video) -> Layout:
    """The largest tiles that fit, side by side where they can be; a single one is as large as its picture."""
    size, room = settings.font_size, RESOLUTIONS[settings.resolution]
    small = max(10, size * 5 // 8)
    bar = line_height(size) + line_height(small) + 2 * GAP
    below = CAPTION_LINES * line_height(small) + 2 * GAP
    with Image.open(shots[0].images[0]) as first:
        side = max(settings.tile_size, *first.size) if count == 1 else settings.tile_size

    def cell(side: int) -> tuple[int, int]:
        return side + GAP, side + below

    side, columns, fits = fitting(count, side, min(MIN_TILE, side), cell, (room[0] - GAP, room[1] - bar - GAP))
    if fits < count:
        raise InputError(
            f"video.max_generations: {count} pictures of {side} pixels below a title of {size} do not fit into a frame "
            f"of resolution {settings.resolution}; show fewer, or lower font_size"
        )
    texts = [max(text_width(shot.label, size), text_width(shot.detail, small)) for shot in shots]
    width = min(room[0], max(columns * (side + GAP) + GAP, max(texts) + 2 * GAP))
    left = (width - columns * (side + GAP) + GAP) // 2
    height = bar + -(-count // columns) * cell(side)[1] + GAP
    return Layout(side, size, small, bar, cell(side), columns, left, (width, height))


def draw_shot(shot: Shot, prompts: Sequence[str], layout: Layout, done: float) -> Image.Image:
    """One frame; `done` is how much of the film has been seen."""
    side, text, (width, _) = layout.side, layout.text, layout.size
    canvas = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, width, layout.bar - 1), fill=INK)
    draw.rectangle((0, layout.bar - 4, round(done * width), layout.bar - 1), fill=COLOURS[1])
    draw.text((GAP, GAP // 2), shot.label, font=font(layout.title), fill=BACKGROUND)
    draw.text((GAP, GAP // 2 + line_height(layout.title)), shot.detail, font=font(text), fill=PANEL)
    for number, (path, prompt) in enumerate(zip(shot.images, prompts, strict=True)):
        row, column = divmod(number, layout.columns)
        x, y = layout.left + column * layout.cell[0], layout.bar + GAP + row * layout.cell[1]
        with Image.open(path) as image:
            paste_in(canvas, tile(image, side), (x, y), side)
        draw_lines(draw, (x, y + side + GAP), wrap(prompt, text, side, CAPTION_LINES), text)
    return canvas
