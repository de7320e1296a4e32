"""Films of trajectories: prompts as rows, networks and seeds as columns, one frame for each place in the sequence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from math import ceil

from PIL import Image, ImageDraw

from ditscope.core.errors import InputError
from ditscope.core.films import Film
from ditscope.core.paths import InputFile, OutputFile
from ditscope.video.frames import (
    BACKGROUND,
    COLOURS,
    FAINT,
    INK,
    MARK,
    PANEL,
    RESOLUTIONS,
    chips,
    colours_of,
    draw_chip,
    draw_lines,
    font,
    held,
    line_height,
    paste_in,
    text_width,
    tile,
    tint,
    wrap,
)
from ditscope.video.grid import Grid, Jumps, Run, TarImages, grid_of, read_jumps, read_trajectories
from ditscope.video.page import write_films
from ditscope.video.settings import Video

GAP = 10
BORDER = 4
CAPTION_LINES = 3
MIN_TEXT = 10
LABEL = 12  # width of the labels of rows at least, in heights of their text


@dataclass(frozen=True)
class Layout:
    """Sizes of a frame in pixels, and how many of the grid's rows and columns it shows."""

    side: int  # of a picture
    title: int  # font of the title bar
    text: int  # font of everything else
    caption: int  # height of the text below a picture
    label: int  # width of the labels of the rows
    bar: int  # height of the title bar
    head: int  # where the rows begin
    cell: tuple[int, int]  # a picture with border, caption and gap
    rows: int  # below each other
    columns: int
    stripes: int  # of rows, side by side, each with its labels
    size: tuple[int, int]  # of the frame


@dataclass(frozen=True)
class Mosaic:
    """What frames of a film are drawn from."""

    grid: Grid
    layout: Layout
    colours: Mapping[str, str]  # of each entry
    picture: Callable[[str], Image.Image]  # by key, as a tile
    jumps: Jumps


@dataclass(frozen=True)
class Shot:
    """One frame: a page of the grid once an invocation is done; -1: the prompts alone."""

    rows: range
    columns: range
    number: int


def trajectory_video(
    tables: list[InputFile],
    images: list[InputFile],
    out: OutputFile,
    page: OutputFile | None = None,
    jumps: InputFile | None = None,
    settings: Video = Video(),
) -> None:
    """Draw trajectories side by side in one film: prompts down, networks and seeds across, a frame per invocation.

    `tables` are the tables `trajectories` of the networks, in the order of the columns, `images` the tars beside them.
    A run that ended early stays on its last picture. What does not fit into a frame plays on further pages. `page` is
    an HTML page that plays the film in H.264; `jumps` the table `drift.jumps`, of which one embedder's are marked.
    """
    grid = grid_of(read_trajectories(tables), settings.prompt_order)
    marked = read_jumps(jumps, settings.jump_embedder) if jumps is not None else Jumps()
    film = film_of(mosaic_of(grid, TarImages(images), settings, marked), settings)
    write_films(film, out, page, settings, "Trajectories")


def mosaic_of(grid: Grid, pictures: Mapping[str, Image.Image], settings: Video, jumps: Jumps = Jumps()) -> Mosaic:
    """The mosaic of a grid; tiles of two frames are kept in memory."""
    layout = layout_of(grid, settings, jumps)
    kept = lru_cache(maxsize=2 * layout.rows * layout.stripes * layout.columns)
    return Mosaic(grid, layout, colours_of(entries_of(grid)), kept(lambda k: tile(pictures[k], layout.side)), jumps)


def film_of(mosaic: Mosaic, settings: Video) -> Film:
    """All invocations of each page of the grid."""
    pages = pages_of(mosaic.grid, mosaic.layout)
    places = range(-1, mosaic.grid.length + 1)
    shots = [shot for page in pages for shot in held([Shot(*page, number) for number in places], settings)]
    return Film(shots, lambda shot: draw_frame(mosaic, shot))


def entries_of(grid: Grid) -> list[str]:
    """Every entry of the networks once, generators and captioners, in order of appearance: a colour for each."""
    return list(dict.fromkeys(entry for cycle in grid.cycles.values() for entry in cycle))


def key_of(grid: Grid, jumps: Jumps) -> list[str]:
    """What the key names: every model, and the mark of jumps, where they were looked for."""
    return [*entries_of(grid), *([f"jump ({jumps.embedder})"] if jumps.embedder else [])]


# Layout ---------------------------------------------------------------------------------------------------------------


def layout_of(grid: Grid, settings: Video, jumps: Jumps = Jumps()) -> Layout:
    """The layout with the fewest pages, then the largest tiles up to the size that is asked for."""
    smallest = min(settings.min_tile_size, settings.tile_size)
    layouts = [layout_at(side, grid, settings, jumps) for side in range(settings.tile_size, smallest - 1, -1)]
    fitting = [layout for layout in layouts if min(layout.rows, layout.columns) > 0]
    if not fitting:
        raise InputError(
            f"video: a frame of resolution {settings.resolution} has no room for a tile of {smallest} pixels below a "
            f"title of {settings.font_size}; lower min_tile_size or font_size"
        )
    return min(fitting, key=lambda layout: len(pages_of(grid, layout)))


def layout_at(side: int, grid: Grid, settings: Video, jumps: Jumps) -> Layout:
    """The layout whose pictures have a side; its rows are spread evenly over pages."""
    limit = RESOLUTIONS[settings.resolution]
    text = max(MIN_TEXT, side // 14)
    caption, label = CAPTION_LINES * line_height(text) + 8, max(side, LABEL * text)
    cell = side + 2 * BORDER + GAP, side + 2 * BORDER + caption + GAP
    columns = min(len(grid.columns), (limit[0] - label - 2 * GAP) // cell[0])
    stripe = label + 2 * GAP + columns * cell[0]
    key = chips(key_of(grid, jumps), text, min(limit[0], stripe) - 2 * GAP)
    title = line_height(settings.font_size) + 2 * GAP
    head = title + (key[-1][1] + 1 if key else 0) * (line_height(text) + 4) + 4 * line_height(text) + GAP
    rows, stripes = (limit[1] - head) // cell[1], 1
    if min(rows, columns) > 0:
        rows, stripes = spread(len(grid.prompts), rows, limit[0] // stripe if columns == len(grid.columns) else 1)
    size = max(stripes * stripe, min(limit[0], 24 * settings.font_size)), head + rows * cell[1]
    return Layout(side, settings.font_size, text, caption, label, title, head, cell, rows, columns, stripes, size)


def spread(count: int, rows: int, stripes: int) -> tuple[int, int]:
    """Rows and stripes of each page, where at most that many fit, so that all pages are about equally full."""
    pages = ceil(count / (rows * stripes))
    stripes = ceil(ceil(count / pages) / rows)
    return ceil(ceil(count / pages) / stripes), stripes


def pages_of(grid: Grid, layout: Layout) -> list[tuple[range, range]]:
    """The rows and columns of each page."""
    rows = parts_of(len(grid.prompts), layout.rows * layout.stripes)
    return list(product(rows, parts_of(len(grid.columns), layout.columns)))


def parts_of(count: int, size: int) -> list[range]:
    """The numbers below `count` in parts of a size; the last may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


# Drawing --------------------------------------------------------------------------------------------------------------


def draw_frame(mosaic: Mosaic, shot: Shot) -> Image.Image:
    """All runs of a page as they are once an invocation is done."""
    grid, layout = mosaic.grid, mosaic.layout
    canvas = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw_title(draw, mosaic, shot)
    draw_key(draw, mosaic)
    wide = layout.label + 2 * GAP + layout.columns * layout.cell[0]
    for place, row in enumerate(shot.rows):
        stripe, down = divmod(place, layout.rows)
        x, y = GAP + stripe * wide, layout.head + down * layout.cell[1]
        if down == 0:
            draw_heads(draw, x + layout.label + GAP, mosaic, shot)
        draw_prompt(draw, (x, y), grid.prompts[row], layout)
        for across, column in enumerate(shot.columns):
            if run := grid.runs[row][column]:
                draw_cell(canvas, (x + layout.label + GAP + across * layout.cell[0], y), run, shot.number, mosaic)
    return canvas


def draw_title(draw: ImageDraw.ImageDraw, mosaic: Mosaic, shot: Shot) -> None:
    """Which invocation it is, how far the film is, and what of the grid is seen."""
    grid, layout, width = mosaic.grid, mosaic.layout, mosaic.layout.size[0]
    draw.rectangle((0, 0, width, layout.bar - 1), fill=INK)
    done = round(width * (shot.number + 1) / max(1, grid.length + 1))
    if done:
        draw.rectangle((0, layout.bar - 5, done, layout.bar - 1), fill=COLOURS[1])
    title = f"invocation {shot.number + 1} of {grid.length + 1}" if shot.number >= 0 else "prompts"
    for what, seen, all_of in (("prompts", shot.rows, grid.prompts), ("columns", shot.columns, grid.columns)):
        if len(seen) < len(all_of):
            title += f" | {what} {seen[0] + 1}-{seen[-1] + 1} of {len(all_of)}"
    (shown,) = wrap(title, layout.title, width - 2 * GAP, 1)
    draw.text((GAP, GAP // 2), shown, font=font(layout.title), fill=BACKGROUND)


def draw_key(draw: ImageDraw.ImageDraw, mosaic: Mosaic) -> None:
    """The names of all models on their colours, and the mark of jumps."""
    layout, names = mosaic.layout, key_of(mosaic.grid, mosaic.jumps)
    for entry, (x, line, name) in zip(names, chips(names, layout.text, layout.size[0] - 2 * GAP), strict=True):
        place = GAP + x, layout.bar + GAP // 2 + line * (line_height(layout.text) + 4)
        if entry in mosaic.colours:
            draw_chip(draw, place, name, mosaic.colours[entry], layout.text)
        else:
            draw_mark(draw, place, name, layout.text)


def draw_heads(draw: ImageDraw.ImageDraw, left: int, mosaic: Mosaic, shot: Shot) -> None:
    """A label for each column: the network and the colours of its models over its columns, below it each one's seed."""
    grid, layout = mosaic.grid, mosaic.layout
    step, across = line_height(layout.text), 0
    for network, group in groupby(shot.columns, lambda column: grid.columns[column][0]):
        columns = list(group)
        x, y = left + across * layout.cell[0], layout.head - 4 * step
        draw_lines(draw, (x, y), wrap(network, layout.text, len(columns) * layout.cell[0] - GAP, 2), layout.text)
        for place, entry in enumerate(grid.cycles[network]):
            square = x + place * step, y + 2 * step + 3
            draw.rectangle((*square, square[0] + step - 4, square[1] + step - 6), fill=mosaic.colours[entry])
        for place, column in enumerate(columns):
            (seed,) = wrap(grid.columns[column][1], layout.text, layout.cell[0] - GAP, 1)
            draw.text((x + place * layout.cell[0], y + 3 * step), seed, font=font(layout.text), fill=INK)
        across += len(columns)


def draw_prompt(draw: ImageDraw.ImageDraw, xy: tuple[int, int], prompt: tuple[str, str, str], layout: Layout) -> None:
    """The label of a row: the prompt, above it its id and the seed that the whole row has."""
    (x, y), (name, text, seed) = xy, prompt
    height = layout.cell[1] - GAP
    draw.rectangle((x, y, x + layout.label - 1, y + height - 1), fill=PANEL)
    room = layout.label - 12
    above = wrap(f"{name} {seed}".strip(), layout.text, room, 1)
    draw_lines(draw, (x + 6, y + 6), above, layout.text, FAINT)
    lines = (height - 12) // line_height(layout.text) - 1
    draw_lines(draw, (x + 6, y + 6 + line_height(layout.text)), wrap(text, layout.text, room, lines), layout.text)


def draw_cell(canvas: Image.Image, xy: tuple[int, int], run: Run, number: int, mosaic: Mosaic) -> None:
    """One run at one place: its newest picture above its newest text, in the colours of the models that made them.

    What was just made has the full colour, what was there before its tint; a run that ended has none.
    """
    draw, layout = ImageDraw.Draw(canvas), mosaic.layout
    (x, y), side, size = xy, layout.side, layout.text
    outer, ended = side + 2 * BORDER, run.last < number
    image, text = run.until(number, "IMAGE"), run.until(number, "TEXT")
    draw.rectangle((x, y, x + outer - 1, y + outer - 1), fill=ground(image, run, number, mosaic.colours))
    draw.rectangle((x + BORDER, y + BORDER, x + BORDER + side - 1, y + BORDER + side - 1), fill=PANEL)
    if image:
        paste_in(canvas, mosaic.picture(image["output_key"]), (x + BORDER, y + BORDER), side)
    fresh = text is not None and text["sequence_number"] == number and text["entry"] is not None
    right, bottom = x + (outer if fresh else BORDER) - 1, y + outer + layout.caption - 1
    draw.rectangle((x, y + outer, right, bottom), fill=ground(text, run, number, mosaic.colours))
    left, top, room = x + BORDER + 4, y + outer + 3, outer - BORDER - 8
    if text:
        lines = wrap(text["output_text"], size, room, CAPTION_LINES - ended)
        draw_lines(draw, (left, top), lines, size, BACKGROUND if fresh else FAINT if ended else INK)
    if ended:
        last = top + (CAPTION_LINES - 1) * line_height(size)
        draw_lines(draw, (left, last), wrap(run.ending, size, room, 1), size)
    elif any(state and (run.run_id, state["sequence_number"]) in mosaic.jumps.places for state in (image, text)):
        draw_mark(draw, (x + outer - text_width("jump", size) - 8, y), "jump", size)


def ground(state: dict | None, run: Run, number: int, colours: Mapping[str, str]) -> str:
    """The colour of a state's model once an invocation is done; grey for a prompt, and where the run has ended."""
    if state is None or state["entry"] is None or run.last < number:
        return PANEL
    colour = colours[state["entry"]]
    return colour if state["sequence_number"] == number else tint(colour)


def draw_mark(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, size: int) -> None:
    """The mark of a semantic jump, its top left at `xy`."""
    (x, y), right = xy, xy[0] + text_width(text, size) + 7
    draw.rectangle((x, y, right, y + line_height(size)), fill=MARK, outline=INK)
    draw.text((x + 4, y), text, font=font(size), fill=INK)
