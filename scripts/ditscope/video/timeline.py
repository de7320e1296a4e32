"""Sheets of trajectories: a row per run with pictures evenly spaced over it, and a single run as a strip."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw

from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile, OutputFolder
from ditscope.video.frames import (
    BACKGROUND,
    FAINT,
    INK,
    PANEL,
    RESOLUTIONS,
    chips,
    colours_of,
    draw_chip,
    draw_lines,
    evenly,
    fitting,
    font,
    line_height,
    paste_in,
    text_width,
    tile,
    wrap,
    write_sheet,
)
from ditscope.video.grid import Run, TarImages, in_order, read_trajectories, runs_of
from ditscope.video.settings import Video

GAP = 6
EDGE = 3  # height of the bar in the colour of the model that made a picture
MIN_TILE = 8
MIN_TEXT, MAX_TEXT = 9, 14
CAPTION_LINES = 4  # of a strip
LABEL = 12  # width of a row's label, in heights of its text


@dataclass(frozen=True)
class Layout:
    """Sizes of a timeline sheet in pixels."""

    side: int  # of a picture
    text: int  # font; 0: too small for text
    label: int  # width of a row's label
    row: int  # height of a row
    block: int  # width of a column of rows
    rows: int  # in a column of rows
    blocks: int  # columns of rows


def timeline(
    tables: list[InputFile],
    images: list[InputFile],
    out: OutputFile,
    strip: OutputFile | None = None,
    run_id: str = "",
    settings: Video = Video(),
) -> None:
    """Draw every run as a row of `timeline_images` pictures, evenly spaced over it: one .png or .jpg.

    `tables` are the tables `trajectories`, `images` the tars beside them. Below a picture stands the number of its
    invocation. Many runs stand in several columns, as small as they must be. `strip` is a sheet of one run, `run_id`
    or the first one, with all its pictures and texts in their order.
    """
    runs = sorted_runs(tables, settings)
    chosen = next((run for run in runs if run.run_id == (run_id or run.run_id)), None)
    if chosen is None:
        raise InputError(f"run_id: no run `{run_id}` in {tables[0]}; its column `run_id` has the names")
    pictures = TarImages(images)
    write_sheet(draw_timeline(runs, pictures, settings), out)
    if strip is not None:
        write_sheet(draw_strip(chosen, pictures, settings), strip)


def timelines(
    tables: list[InputFile],
    images: list[InputFile],
    sheets: OutputFolder,
    strips: OutputFolder,
    settings: Video = Video(),
) -> None:
    """Draw the timeline of each network as <network>.png (or .jpg) in `sheets`, its first run in `strips`."""
    runs, pictures = sorted_runs(tables, settings), TarImages(images)
    networks = dict.fromkeys(run.network for run in runs)
    for network in networks:
        own, name = [run for run in runs if run.network == network], f"{network}.{settings.sheet_format}"
        write_sheet(draw_timeline(own, pictures, settings), sheets / name)
        write_sheet(draw_strip(own[0], pictures, settings), strips / name)
    for folder in (sheets, strips):
        drawn = (network for network in networks if (folder / f"{network}.{settings.sheet_format}").exists())
        check_complete(folder, "sheets", networks, drawn)


def sorted_runs(tables: Sequence[Path], settings: Video) -> list[Run]:
    """Every run of the tables, in the order of the prompts."""
    runs = runs_of(read_trajectories(tables))
    order = in_order({run.prompt_id: run.prompt for run in runs}, settings.prompt_order)
    places = {prompt_id: place for place, prompt_id in enumerate(order)}
    return sorted(runs, key=lambda run: places[run.prompt_id])


def pictures_of(run: Run) -> list[dict]:
    """The states of a run that are pictures."""
    return [state for state in run.states if state["type"] == "IMAGE"]


# Timelines ------------------------------------------------------------------------------------------------------------


def draw_timeline(runs: Sequence[Run], pictures: TarImages, settings: Video) -> Image.Image:
    """A row per run: what it started from, then its pictures."""
    width, height = RESOLUTIONS[settings.resolution]
    entries = [state["entry"] for run in runs for state in pictures_of(run)]
    colours = colours_of(entries)
    key = chips(colours, MAX_TEXT, width - 2 * GAP)
    head = 2 * GAP + (key[-1][1] + 1 if key else 0) * (line_height(MAX_TEXT) + 4)
    most = max(min(settings.timeline_images, len(pictures_of(run))) for run in runs)
    layout = timeline_layout(len(runs), max(1, most), (width - GAP, height - head), settings)
    shown = layout.blocks * layout.block + GAP, head + layout.rows * layout.row
    used = max([x + text_width(name, MAX_TEXT) + 8 for x, _, name in key], default=0) + 2 * GAP
    sheet = Image.new("RGB", (max(shown[0], used), shown[1]), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for entry, (x, line, name) in zip(colours, key, strict=True):
        draw_chip(draw, (GAP + x, GAP + line * (line_height(MAX_TEXT) + 4)), name, colours[entry], MAX_TEXT)
    for number, run in enumerate(runs):
        block, row = divmod(number, layout.rows)
        xy = GAP + block * layout.block, head + row * layout.row
        draw_row(sheet, xy, run, pictures, colours, layout, settings.timeline_images)
    return sheet


def timeline_layout(runs: int, images: int, room: tuple[int, int], settings: Video) -> Layout:
    """The layout with the largest pictures, up to the size that is asked for, that fits all runs into `room`."""
    for side in range(max(settings.tile_size, MIN_TILE), MIN_TILE - 1, -1):
        text = min(MAX_TEXT, side // 3) if side // 3 >= MIN_TEXT else 0
        gap = GAP if text else 1
        label = LABEL * text + GAP if text else 0
        row = side + EDGE + (line_height(text) if text else 0) + gap
        rows = min(runs, room[1] // row)
        blocks = ceil(runs / rows)
        block = label + images * (side + gap) + 2 * gap
        if blocks * block <= room[0]:
            return Layout(side, text, label, row, block, ceil(runs / blocks), blocks)
    raise InputError(
        f"a timeline of {runs} runs with {images} pictures each does not fit into resolution {settings.resolution}; "
        "lower video.timeline_images, or give fewer tables"
    )


def draw_row(
    sheet: Image.Image,
    xy: tuple[int, int],
    run: Run,
    pictures: TarImages,
    colours: dict[str, str],
    layout: Layout,
    most: int,
) -> None:
    """One run: its label, and at most `most` of its pictures."""
    draw, (x, y) = ImageDraw.Draw(sheet), xy
    if layout.text:
        lines = wrap(f"{run.network} {run.seed}: {run.prompt}", layout.text, layout.label - GAP, lines_in(layout))
        draw_lines(draw, xy, lines, layout.text)
    states = pictures_of(run)
    gap = GAP if layout.text else 1
    for place, number in enumerate(evenly(len(states), most)):
        state = states[number]
        left = x + layout.label + place * (layout.side + gap)
        draw.rectangle((left, y, left + layout.side - 1, y + EDGE + layout.side - 1), fill=PANEL)
        draw.rectangle((left, y, left + layout.side - 1, y + EDGE - 1), fill=colours[state["entry"]])
        paste_in(sheet, tile(pictures[state["output_key"]], layout.side), (left, y + EDGE), layout.side)
        if layout.text:
            below = left, y + EDGE + layout.side
            draw.text(below, str(state["sequence_number"] + 1), font=font(layout.text), fill=FAINT)


def lines_in(layout: Layout) -> int:
    """Lines of text beside a picture."""
    return max(1, (layout.row - GAP) // line_height(layout.text))


# Strips ---------------------------------------------------------------------------------------------------------------


def draw_strip(run: Run, pictures: TarImages, settings: Video) -> Image.Image:
    """One run in reading order: each picture, its number and model, and the text that follows it."""
    width, height = RESOLUTIONS[settings.resolution]
    size, states = MAX_TEXT, pictures_of(run)
    colours = colours_of(state["entry"] for state in run.states if state["entry"] is not None)

    def cell(side: int) -> tuple[int, int]:
        return side + 2 * GAP, side + EDGE + (CAPTION_LINES + 1) * line_height(size) + GAP

    head = 3 * line_height(size) + 3 * GAP
    room = width - 2 * GAP, height - head
    smallest = min(settings.tile_size, 6 * size)
    side, columns, fits = fitting(max(1, len(states)), settings.tile_size, smallest, cell, room)
    if not fits:
        raise InputError(f"video.tile_size: {side} pixels do not fit into resolution {settings.resolution}")
    shown = evenly(len(states), fits)
    wide = max(columns * cell(side)[0], 40 * size) + 2 * GAP
    sheet = Image.new("RGB", (min(width, wide), head + ceil(max(1, len(shown)) / columns) * cell(side)[1]), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    part = "" if len(shown) == len(states) else f", {len(shown)} of {len(states)} pictures, evenly spaced"
    title = [f"{run.network}, {run.seed}, {run.ending}{part}", *wrap(run.prompt, size, sheet.width - 2 * GAP, 2)]
    draw_lines(draw, (GAP, GAP), title, size)
    for place, number in enumerate(shown):
        row, column = divmod(place, columns)
        xy = GAP + column * cell(side)[0], head + row * cell(side)[1]
        draw_step(sheet, xy, run, states[number], tile(pictures[states[number]["output_key"]], side), side, colours)
    return sheet


def draw_step(
    sheet: Image.Image,
    xy: tuple[int, int],
    run: Run,
    state: dict,
    picture: Image.Image,
    side: int,
    colours: dict[str, str],
) -> None:
    """A picture below a bar of its model's colour, its number and model, and the text made of it."""
    draw, (x, y), size = ImageDraw.Draw(sheet), xy, MAX_TEXT
    draw.rectangle((x, y, x + side - 1, y + EDGE + side - 1), fill=PANEL)
    draw.rectangle((x, y, x + side - 1, y + EDGE - 1), fill=colours[state["entry"]])
    paste_in(sheet, picture, (x, y + EDGE), side)
    below = y + EDGE + side
    (name,) = wrap(f"{state['sequence_number'] + 1} {state['entry']}", size, side, 1)
    draw.text((x, below), name, font=font(size), fill=colours[state["entry"]])
    text = next((s for s in run.states if s["sequence_number"] == state["sequence_number"] + 1), None)
    if text is not None and text["type"] == "TEXT":
        lines = wrap(text["output_text"], size, side, CAPTION_LINES)
        draw_lines(draw, (x, below + line_height(size)), lines, size, colours.get(text["entry"], INK))
