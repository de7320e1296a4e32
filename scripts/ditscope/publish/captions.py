"""Captions of the report: how to read a figure, and what this study's numbers say of what went into it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from ditscope.core.answer import counted, cut, listed
from ditscope.core.atomic import write_text
from ditscope.core.intervals import LEAST_UNITS
from ditscope.core.schema import STAGE_OF, tables_with
from ditscope.core.tables import Files
from ditscope.publish.figures import INDEX, Figure

# Columns that say what numbers are about, and what is counted of others; in the order in which they are told.
ABOUT = {"model": "model", "network": "network", "embedder": "embedder", "scheme": "scheme", "hardware": "machine"}
COUNTED = {"prompt_id": "prompt", "run_id": "run", "generation_id": "generation"}
SAMPLES = {
    "prompts": "prompt",
    "n_prompts": "prompt",
    "runs": "run",
    "n_images": "image",
    "n": "sample",
    "units": "unit",
}
LOW = "(value_|quality_loss_|gain_)?low"  # names of the lower bounds of intervals
LONGEST = 4000  # characters of a paragraph
WORKFLOW = "workflow"  # the caption of the whole report
MENU = "Figures, films and pages stand in the menu by stage; statistics of all jobs under *Statistics*.\n"


def write_captions(
    texts: Mapping[str, str], figures: list[Figure], files: Files, drawn: Path, answers: pl.DataFrame, out: Path
) -> None:
    """Write a caption for each figure, and that of the report, into the folder `out`.

    `texts` say how a figure is read, by the name of its caption; they are templates of Snakemake and stay as they are.
    What is added comes from the numbers that `drawn`, the folder of figures, has of each, and, where these name no
    units, from the tables `files` of its stages.
    """
    commands = dict(pl.read_csv(drawn / INDEX).select("figure", "command").iter_rows())
    for figure in figures:
        numbers = pl.read_csv(drawn / f"{figure.name}.csv", infer_schema_length=None)
        said = facts(numbers, [path for stage in figure.stages for path in tables_left(stage, files.get(stage, []))])
        again = f"Data: figures/{figure.name}.csv. Made again by: {commands[figure.name]}"
        read = texts[figure.caption].rstrip()
        write_text(out / f"{figure.name}.rst", "\n\n".join([read, *map(rst, [*said, again])]) + "\n")
    write_text(out / f"{WORKFLOW}.rst", "\n\n\n".join([front_text(answers), texts[WORKFLOW], MENU]))


def front_text(answers: pl.DataFrame) -> str:
    """The answers as reStructuredText, below links to the pages beside the report."""
    links = "`Front page with pictures <answers.html>`__ and `explorer <explorer.html>`__ lie beside this report."
    said = [
        f"**{rst(row['question'])}** {rst(row['answer'])}" + (f" *{rst(row['caveats'])}*" if row["caveats"] else "")
        for row in answers.iter_rows(named=True)
    ]
    return "\n\n".join([links, *said])


def rst(text: str) -> str:
    """Text as reStructuredText inside a template of Jinja: no character of it is markup of either.

    Of more than LONGEST characters the middle is left out: docutils refuses lines of 10,000.
    """
    line = cut("".join(c if c.isprintable() else " " for c in text), LONGEST)
    return re.sub(r"([^A-Za-z0-9\s])", r"\\\1", line)


def tables_left(stage: str, paths: Iterable[Path]) -> list[str]:
    """The Parquet files of a stage, less what jobs measured of themselves."""
    known = stage in STAGE_OF.values()
    files = [file for path in paths for file in [str(path), *(tables_with(stage, str(path)) if known else ())]]
    return [f for f in dict.fromkeys(files) if f.endswith(".parquet") and ".timing" not in f and Path(f).exists()]


def facts(numbers: pl.DataFrame, tables: Sequence[str] = ()) -> Iterator[str]:
    """Sentences on numbers: of what and how many they are, with what uncertainty, and what is to be known of them."""
    yield from samples(numbers, tables)
    yield from uncertainty(numbers)
    yield from caveats(numbers)


def samples(numbers: pl.DataFrame, tables: Sequence[str]) -> Iterator[str]:
    """What was run, and on how many: as the numbers say, and where they name no units, as the tables behind them do."""
    about = []
    for column, word in ABOUT.items():
        if names := sorted({str(name) for name in values(numbers, column)}):
            about.append(f"{word if len(names) == 1 else f'{word}s'} {listed(names, 6, '; ')}")
    units = [counted(len(found), word) for column, word in COUNTED.items() if (found := set(values(numbers, column)))]
    for column, word in SAMPLES.items():
        sizes = [int(n) for n in values(numbers, column) if n]
        if sizes and not any(word in unit for unit in units):
            span = f"{min(sizes):,} to {max(sizes):,} {word}s" if min(sizes) < max(sizes) else counted(sizes[0], word)
            units.append(f"{span} per number")
    if not units:
        for column, word in COUNTED.items():
            if here := [file for file in tables if column in pl.read_parquet_schema(file)]:
                keys = pl.concat(pl.read_parquet(file, columns=[column]) for file in here)
                units.append(counted(keys[column].n_unique(), word))
    if about or units:
        yield ". ".join(f"{part[0].upper()}{part[1:]}" for part in [*about, listed(units, 6)] if part) + "."


def values(numbers: pl.DataFrame, column: str) -> list:
    """The values of a column, nothing where it is not there."""
    return numbers[column].drop_nulls().to_list() if column in numbers.columns else []


def uncertainty(numbers: pl.DataFrame) -> Iterator[str]:
    """How many of the numbers have an interval, and how many claims were tested."""
    bounds = [(name, f"{name.removesuffix('low')}high") for name in numbers.columns if re.fullmatch(LOW, name)]
    if "observed" in numbers.columns:
        yield "Bands are of what the null gives."
    elif bounds:
        # Where there is no interval, a figure may stand the number itself in its place.
        known = sum(int((numbers[high] > numbers[low]).sum()) for low, high in bounds)
        rows = len(numbers) * len(bounds)
        less = "" if known == rows else f"; the others rest on fewer than {LEAST_UNITS} units, or have none"
        yield f"{known:,} of {rows:,} numbers have an interval{less}."
    else:
        yield "No intervals."
    for name in (name for name in numbers.columns if name.endswith("p_holm")):
        tests = numbers[name].drop_nulls()
        what = name.removesuffix("p_holm").replace("_", " ").strip()
        kind = f" of {what}" if what else ""
        yield f"In {int((tests < 0.05).sum())} of {counted(len(tests), 'test')}{kind} p < 0.05, corrected by Holm."


def caveats(numbers: pl.DataFrame) -> Iterator[str]:
    """What a reader must not overlook: degenerate networks, noisy timings, simulated bit widths, what could not run."""
    has = set(numbers.columns)
    if {"degenerate", "network"} <= has and len(poor := numbers.drop_nulls("degenerate")):
        keys = [key for key in ("network", "embedder") if key in has]
        cells = sorted(poor.select(keys).drop_nulls().unique().rows())
        yield f"Degenerate, so that they show nothing: {listed([' under '.join(cell) for cell in cells], 6, '; ')}."
    if {"noisy_because", "verdict"} <= has:
        timed = numbers.drop_nulls("verdict")
        noisy = timed.filter(pl.col("verdict") == "noisy")
        yield f"Noisy: {len(noisy)} of {counted(len(timed), 'timing')}; no verdict rests on these."
    if {"simulated", "scheme"} <= has and len(rows := numbers.filter(pl.col("simulated"))):
        yield f"Simulated, stored or computed in more bits here: {listed(rows['scheme'].unique().sort().to_list(), 6)}."
    if {"mode", "value"} <= has and len(rows := numbers.filter(pl.col("mode") == "fast")):
        yield f"Estimated from gradients, not measured: {len(rows):,} of {len(numbers):,} numbers."
    if "reason" in has and len(rows := numbers.filter(pl.col("reason").cast(pl.String).fill_null("") != "")):
        yield f"Without a number: {counted(len(rows), 'row')}, as {rows['reason'][0]}."
