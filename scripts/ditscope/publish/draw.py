"""Draw the registered figures: each function takes the files of its stages and gives the figure with its data."""

import inspect
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.core.tables import read_table
from ditscope.publish.figures import FIGURES, INDEX
from ditscope.publish.settings import Publish
from ditscope.style import Files, columns, named, save

log = logging.getLogger(__name__)

NO_ANALYSES: Mapping[str, str] = MappingProxyType({})
# What a figure's data are counted by: things, by the columns that tell them apart, and numbers that rows carry.
THINGS = {
    "prompts": "prompt_id", "runs": "run_id", "generations": "generation_id", "models": "model", "layers": "layer",
    "networks": "network", "embedders": "embedder", "schemes": "scheme",
}  # fmt: skip
NUMBERS = {"prompts": "prompts", "runs": "runs", "generations": "generations", "n_images": "images",
           "n_prompts": "prompts", "repeats": "repeats", "pairs": "pairs", "states": "states"}  # fmt: skip
LISTED = {
    "figure": pl.String, "category": pl.String, "columns": pl.Int64, "width_inches": pl.Float64,
    "height_inches": pl.Float64, "pages": pl.Int64, "rows": pl.Int64, "n": pl.String, "caption": pl.String,
    "command": pl.String,
}  # fmt: skip


def function_of(name: str) -> Callable[[Files], tuple[Canvas, pl.DataFrame]]:
    """The function of a figure: `block_grid` in `capture/figures.py` for `block-grid`, whose first stage is capture."""
    return getattr(import_module(f"ditscope.{FIGURES[name].source}"), name.replace("-", "_"))


def draw_figures(
    names: list[str],
    files: Files,
    out: Path,
    settings: Publish = Publish(),
    own: Mapping[str, str] = NO_ANALYSES,
    processes: int = 1,
) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV; and list them in `index.csv`.

    `own` are modules of analyses of the user's own, by name: `figure` draws the table that the analysis left. Figures
    are shared out among `processes`; what is drawn does not depend on it.
    """
    draw = partial(draw_figure, files=files, out=out, settings=settings, own=dict(own))
    with ExitStack() as stack:
        share_out: Callable = map
        if processes > 1 and len(names) > 1:
            share_out = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn"))).map
        listed = []
        for row in share_out(draw, names):
            log.info("drew %s (%d rows)", row["figure"], row["rows"])
            listed.append(row)
    index = out / INDEX
    rows = {row["figure"]: row for row in (pl.read_csv(index).to_dicts() if index.exists() else [])}
    rows |= {row["figure"]: row for row in listed}
    write_text(index, pl.DataFrame(list(rows.values()), schema=LISTED).write_csv())


def draw_figure(name: str, files: Files, out: Path, settings: Publish, own: Mapping[str, str]) -> dict:
    """Draw one figure, and give its row of the index: what it shows, of how many, and the command that makes it."""
    with columns(settings.columns):
        if name in own:
            figure, data = draw_own(name, own[name], files)
            caption, category = f"The analysis {name} of this study's own.", "Analyses"
        else:
            figure, data = function_of(name)({stage: files[stage] for stage in FIGURES[name].stages})
            caption, category = inspect.getdoc(function_of(name)) or "", FIGURES[name].category
        row = {
            "figure": name,
            "category": category,
            "columns": settings.columns,
            "width_inches": round(float(figure.get_figwidth()), 2),
            "height_inches": round(float(figure.get_figheight()), 2),
            "pages": max(1, len(figure.subfigs)),
            "rows": len(data),
            "n": size_of(data),
            "caption": " ".join(caption.split()),
            "command": command_of(name, out, settings),
        }
        about = {"title": name, "description": f"{row['caption']} {row['n']}.", "source": f"{row['command']}"}
        save(figure, data, out / name, settings.formats, settings.dpi, about)
    return row


def size_of(data: pl.DataFrame) -> str:
    """Of how many things the drawn data are: `n = 4 prompts, 16 runs; 320 rows`."""
    found: dict[str, int] = {}
    for column, what in NUMBERS.items():
        if column in data.columns and data[column].dtype.is_numeric() and (most := data[column].max()) is not None:
            found[what] = max(found.get(what, 0), int(most))
    for what, column in THINGS.items():
        if column in data.columns:
            within = {"run_id": "network", "layer": "model"}.get(column)  # names that others may have too
            told = [name for name in (within, column) if name in data.columns]
            found[what] = max(found.get(what, 0), data.select(pl.struct(told).n_unique()).item())
    things = ", ".join(f"{count} {what if count != 1 else what.removesuffix('s')}" for what, count in found.items())
    rows = f"{len(data)} row{'s' * (len(data) != 1)}"
    return f"n = {things}; {rows}" if things else f"n = {rows}"


def command_of(name: str, out: Path, settings: Publish) -> str:
    """The command that draws a figure again, in the project's folder."""
    narrow = " --columns 1" if settings.columns == 1 else ""
    return f"ditscope figures results/{out.parent.name} --only {name}{narrow}"


def draw_own(name: str, module: str, files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The figure of an analysis of the user's own, and the table that it draws."""
    (path,) = named(files, "analyse", f"{name}.parquet")
    table = read_table(path, f"analysis.{name}")
    figure = load_plugin(module, {}, f"analyse.analyses.{name}.module", "an analysis").figure(table)
    if not isinstance(figure, Canvas):
        raise InputError(
            f"analyse.analyses.{name}: `figure` of `{module}` returns a {type(figure).__name__}, no Figure"
        )
    return figure, table
