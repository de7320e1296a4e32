"""Films of trajectories: prompts as rows, networks as columns, one frame for each place in the sequence."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from PIL import Image, ImageDraw

from ditscope.core.errors import InputError, again, parsing
from ditscope.core.films import write_film
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import concat_tables
from ditscope.video.frames import (
    BACKGROUND,
    COLOURS,
    FAINT,
    INK,
    PANEL,
    draw_lines,
    font,
    line_height,
    text_width,
    tile,
    wrap,
)
from ditscope.video.settings import Video

GAP = 10
BORDER = 3
CAPTION_LINES = 3
MIN_TILE = 32
MAX_SIDE = 3840  # longest side of a frame in pixels; tiles of large studies shrink to it


class TarImages(Mapping):
    """Pictures of WebDataset shards by key, read from their place in the tar when they are asked for."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.places: dict[str, tuple[Path, int, int]] = {}
        for shard in shards:
            damaged = f"not a readable tar shard ({{}}); {again(shard, ending='.tar')}"
            with parsing(shard, damaged, (tarfile.TarError,)), tarfile.open(shard, "r:") as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith(".png"):
                        self.places[member.name.removesuffix(".png")] = shard, member.offset_data, member.size

    def __getitem__(self, key: str) -> Image.Image:
        if key not in self.places:
            raise InputError(f"no image {key}.png in the shards of `images`, which the trajectories name; give all")
        shard, offset, size = self.places[key]
        with open(shard, "rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(size)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Grid:
    """Who stands where: runs[row][column] is the states of one run, by sequence number; None where there is none."""

    prompts: list[str]
    columns: list[tuple[str, int]]  # (network, seed's place among the network's seeds)
    runs: list[list[list[dict] | None]]
    cycles: dict[str, list[str]]  # entries of each network, in the order of their first turn
    length: int  # last sequence number of any run


def trajectory_video(
    tables: list[InputFile], images: list[InputFile], out: OutputFile, settings: Video = Video()
) -> None:
    """Draw trajectories side by side in one film: prompts down, networks (and seeds) across, a frame a place.

    `tables` are the tables `trajectories` of the networks, in the order of the columns, `images` the tars beside them.
    A run that ended early stays on its last picture.
    """
    grid = grid_of(
        concat_tables(tables, "trajectories", ("network", "run_id", "sequence_number")), settings.prompt_order
    )
    pictures, layout = TarImages(images), layout_of(grid, settings)
    write_film((frame(grid, pictures, number, layout) for number in range(-1, grid.length + 1)), out, settings.fps)


def grid_of(rows: pl.DataFrame, prompt_order: Sequence[str] = ()) -> Grid:
    """Sort runs into a grid; prompts come in `prompt_order` first, then in the table's order, and so do networks."""
    prompts = dict(rows.select("prompt_id", "prompt").unique(maintain_order=True).rows())
    if unknown := [p for p in prompt_order if p not in prompts]:
        raise InputError(
            f"video.prompt_order: no trajectory starts from `{unknown[0]}`; there are {', '.join(prompts)}"
        )
    order = [*prompt_order, *(p for p in prompts if p not in prompt_order)]
    runs: dict[tuple[str, str], list[list[dict]]] = {}
    for (network, prompt, _), run in rows.group_by("network", "prompt_id", "run_id", maintain_order=True):
        runs.setdefault((str(network), str(prompt)), []).append(run.sort("sequence_number").to_dicts())
    networks = rows["network"].unique(maintain_order=True).to_list()
    columns = [(n, i) for n in networks for i in range(max(len(runs.get((n, p), [])) for p in order))]
    cells = [[dict(enumerate(runs.get((network, p), []))).get(i) for network, i in columns] for p in order]
    cycles = {
        network: rows.filter(network=network)
        .filter(pl.col("sequence_number") >= 0)
        .sort("sequence_number")["entry"]
        .unique(maintain_order=True)
        .to_list()
        for network in networks
    }
    return Grid([prompts[p] for p in order], columns, cells, cycles, rows["sequence_number"].max() or 0)


@dataclass(frozen=True)
class Layout:
    """Sizes of a frame in pixels."""

    side: int  # of a picture
    title: int  # font of the title bar
    text: int  # font of everything else
    caption: int  # height of the text below a picture
    bar: int  # height of the title bar
    head: int  # where the rows begin
    cell: tuple[int, int]  # a picture with border, caption and gap
    size: tuple[int, int]  # of the frame


def layout_of(grid: Grid, settings: Video) -> Layout:
    """The layout with the largest tiles, up to the size that is asked for, that keeps a frame within MAX_SIDE."""
    longest = max(len(cycle) for cycle in grid.cycles.values())
    for side in range(max(settings.tile_size, MIN_TILE), MIN_TILE - 1, -1):
        text = max(9, side // 14)
        caption = CAPTION_LINES * line_height(text) + 8
        bar = line_height(settings.font_size) + 2 * GAP
        head = bar + (1 + longest) * (line_height(text) + 4) + GAP
        cell = side + 2 * BORDER + GAP, side + 2 * BORDER + caption + GAP
        size = side + 2 * GAP + len(grid.columns) * cell[0], head + len(grid.prompts) * cell[1]
        layout = Layout(side, settings.font_size, text, caption, bar, head, cell, size)
        if max(size) <= MAX_SIDE:
            break
    return layout


def frame(grid: Grid, pictures: Mapping[str, Image.Image], number: int, layout: Layout) -> Image.Image:
    """All runs as they are once the invocation with sequence number `number` is done; -1: the prompts alone."""
    colours = {entry: COLOURS[i % len(COLOURS)] for i, entry in enumerate(entries_of(grid))}
    side, text, (width, _) = layout.side, layout.text, layout.size
    canvas = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, width, layout.bar - 1), fill=INK)
    done = round(width * (number + 1) / (grid.length + 1))
    draw.rectangle((0, layout.bar - 5, done, layout.bar - 1), fill=COLOURS[1])
    title = f"invocation {number + 1} of {grid.length + 1}" if number >= 0 else "prompts"
    draw.text((GAP, GAP // 2), title, font=font(layout.title), fill=BACKGROUND)
    for column, (network, seed) in enumerate(grid.columns):
        if seed == 0:
            x, y = side + 2 * GAP + column * layout.cell[0], layout.bar + 4
            draw.text((x, y), network, font=font(text), fill=INK)
            for place, entry in enumerate(grid.cycles[network], start=1):
                chip = (x, y + place * (line_height(text) + 4))
                draw_chip(draw, chip, entry, colours[entry], text, side)
    for row, prompt in enumerate(grid.prompts):
        y = layout.head + row * layout.cell[1]
        draw.rectangle((GAP, y, GAP + side - 1, y + layout.cell[1] - GAP - 1), fill=PANEL)
        lines = (layout.cell[1] - GAP - 12) // line_height(text)
        draw_lines(draw, (GAP + 6, y + 6), wrap(prompt, text, side - 12, lines), text)
        for column, run in enumerate(grid.runs[row]):
            if run is not None:
                x = side + 2 * GAP + column * layout.cell[0]
                draw_cell(canvas, (x, y), run, number, pictures, colours, layout)
    return canvas


def entries_of(grid: Grid) -> list[str]:
    """Every entry of the networks once, generators and captioners, in order of appearance: a colour for each."""
    return list(dict.fromkeys(entry for cycle in grid.cycles.values() for entry in cycle))


def draw_chip(draw: ImageDraw.ImageDraw, xy: tuple[int, int], name: str, colour: str, size: int, width: int) -> None:
    """The name of a model on its colour."""
    (name,) = wrap(name, size, width - 8, 1)
    draw.rectangle((*xy, xy[0] + text_width(name, size) + 8, xy[1] + line_height(size)), fill=colour)
    draw.text((xy[0] + 4, xy[1]), name, font=font(size), fill=BACKGROUND)


def draw_cell(
    canvas: Image.Image,
    xy: tuple[int, int],
    run: Sequence[dict],
    number: int,
    pictures: Mapping[str, Image.Image],
    colours: Mapping[str, str],
    layout: Layout,
) -> None:
    """One run at one place: its newest picture above its newest text; what was just made has its model's colour."""
    draw = ImageDraw.Draw(canvas)
    (x, y), side, size = xy, layout.side, layout.text
    past = [state for state in run if state["sequence_number"] <= number]
    image = next((s for s in reversed(past) if s["type"] == "IMAGE"), None)
    text = next(s for s in reversed(past) if s["type"] == "TEXT")
    ended = run[-1]["sequence_number"] < number
    newest = None if ended else past[-1]
    made = colours.get(newest["entry"]) if newest else None  # nothing made the prompt
    outer = side + 2 * BORDER
    draw.rectangle((x, y, x + outer - 1, y + outer - 1), fill=(made if newest is image else None) or PANEL)
    draw.rectangle((x + BORDER, y + BORDER, x + BORDER + side - 1, y + BORDER + side - 1), fill=PANEL)
    if image:
        picture = tile(pictures[image["output_key"]], side)
        canvas.paste(picture, (x + BORDER + (side - picture.width) // 2, y + BORDER + (side - picture.height) // 2))
    fresh = made if newest is text else None
    if fresh:
        draw.rectangle((x, y + outer, x + outer - 1, y + outer + layout.caption - 1), fill=fresh)
    lines = wrap(text["output_text"], size, outer - 8, CAPTION_LINES - ended)
    draw_lines(draw, (x + 4, y + outer + 3), lines, size, BACKGROUND if fresh else FAINT if ended else INK)
    if ended:
        stopped = f"ended after {run[-1]['sequence_number'] + 1}: {run[-1]['stop_reason']}"
        place = x + 4, y + outer + 3 + (CAPTION_LINES - 1) * line_height(size)
        draw_lines(draw, place, wrap(stopped, size, outer - 8, 1), size)
