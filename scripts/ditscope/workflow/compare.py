"""Two experiments side by side: settings, tables and figures that differ, as text and as one HTML page."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import polars as pl

from ditscope.config import Config
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError, parsing
from ditscope.core.names import unknown
from ditscope.core.paths import OutputFile
from ditscope.core.settings import decode
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.core.tables import POLARS
from ditscope.publish.catalog import table_files

SIDES = ("A", "B")
PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}  # what a page can show, the first that is there
ORDER = "row in order"  # joins rows that no columns tell apart
UNKNOWN = "file "
ABSENT = object()


@dataclass(frozen=True)
class Side:
    """One of the two experiments: its folder, and what its last run planned."""

    label: str
    folder: Path
    plan: dict[str, Any]

    @property
    def experiment(self) -> str:
        """The name in its config; the folder may have been copied under another."""
        return str(self.plan["config"].get("experiment", self.folder.name))

    def targets(self) -> dict[str, list[Path]]:
        """What each stage is to leave, below this folder wherever it was made."""
        prefix = f"results/{self.experiment}/"
        planned = self.plan["targets"].items()
        return {stage: [self.folder / file.removeprefix(prefix) for file in files] for stage, files in planned}

    def missing(self) -> dict[str, str]:
        """Stages that are not finished, with how much of them is missing."""
        lacking = {stage: sum(not path.exists() for path in paths) for stage, paths in self.targets().items()}
        return {s: f"{n} of {len(self.targets()[s])} results are missing" for s, n in lacking.items() if n}


@dataclass(frozen=True)
class ColumnDifference:
    """How a column differs over the rows that both tables have.

    `largest` and `median` are of |B - A|, in the column's own unit, None where it is not of numbers; `at` is the row
    (its keys) of the largest, with both values there; `unlike` counts rows that differ.
    """

    column: str
    unlike: int
    largest: float | None = None
    median: float | None = None
    at: str = ""
    values: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class TableDifference:
    """How a table differs; `note` says why it was not compared."""

    name: str
    rows: tuple[int, int] = (0, 0)
    keys: tuple[str, ...] = ()
    only: tuple[int, int] = (0, 0)  # rows, by their keys
    columns_only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    columns: tuple[ColumnDifference, ...] = ()
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.note or any(self.only) or any(self.columns_only) or self.columns)


@dataclass(frozen=True)
class Figure:
    """A figure by its name, with its file on each side, None where there is none."""

    name: str
    files: tuple[Path | None, Path | None]

    @property
    def same(self) -> bool:
        """Whether both files are there, and equal byte for byte."""
        a, b = self.files
        return a is not None and b is not None and a.read_bytes() == b.read_bytes()


@dataclass(frozen=True)
class Comparison:
    """All that was found; a setting that one side has not is None there."""

    sides: tuple[Side, Side]
    settings: list[tuple[str, str | None, str | None]]
    tables: list[TableDifference]
    figures: list[Figure]

    @property
    def same(self) -> bool:
        """Whether nothing differs, durations apart."""
        tables = all(table.same for table in self.tables if not is_timing(table))
        return not self.settings and tables and all(figure.same for figure in self.figures)


def compare(
    a: Annotated[str, "an experiment: its results folder, or its name below results/"],
    b: Annotated[str, "the experiment to compare it with"],
    /,
    html: OutputFile | None = None,
) -> None:
    """Print how two experiments differ: their settings, their tables row by row, their figures.

    Rows of a table are matched by the columns that tell them apart in both; of columns of numbers the largest and the
    median difference are said. Durations are said apart. `html` takes the same as one page that shows the figures
    next to each other and needs no other file. Raises InputError where one of them has never run.
    """
    found = comparison(study_folder(a), study_folder(b))
    print(as_text(found), end="")
    if html:
        write_text(html, as_html(found))


def study_folder(name: str) -> Path:
    """The results of an experiment that is named, or whose folder is. Raises InputError where there are none."""
    for folder in (Path(name).expanduser(), Path("results") / name):
        if (folder / PLAN).is_file():
            return folder
    known = [plan.parent.name for plan in Path("results").glob(f"*/{PLAN}")]
    raise InputError(unknown("compare", name, known, "a results folder, nor the name of one below results/"))


def comparison(a: Path, b: Path) -> Comparison:
    """Compare the results folders of two experiments."""
    plans = [read_plan(folder) for folder in (a, b)]
    for folder, plan in zip((a, b), plans, strict=True):
        if not isinstance(plan.get("config"), dict):
            raise InputError(f"{folder / PLAN}: has no config; run the study again, which writes it anew")
    left, right = (Side(*args) for args in zip(SIDES, (a, b), plans, strict=True))
    files = [tables_by_name(side) for side in (left, right)]
    tables = [compare_files(name, *(f.get(name, []) for f in files)) for name in sorted({*files[0], *files[1]})]
    return Comparison((left, right), compare_settings(left, right), tables, compare_figures(left, right))


def is_timing(table: TableDifference) -> bool:
    """Whether a table holds durations, which differ from run to run."""
    return table.name.endswith(".timing")


# Settings -------------------------------------------------------------------------------------------------------------


def compare_settings(a: Side, b: Side) -> list[tuple[str, str | None, str | None]]:
    """Settings that differ, as (key, A, B), but for the experiments' names."""
    values = [dict(flat(settings_of(side))) for side in (a, b)]
    keys = dict.fromkeys([*values[0], *values[1]])
    pairs = [(key, values[0].get(key, ABSENT), values[1].get(key, ABSENT)) for key in keys if key != "experiment"]
    return [(key, said(left), said(right)) for key, left, right in pairs if left != right]


def said(value: Any) -> str | None:
    """A setting as text; None where it is not there."""
    return None if value is ABSENT else str(value)


def settings_of(side: Side) -> dict[str, Any]:
    """A study's config with the defaults of what it does not name; as it stands, where another ditscope wrote it."""
    try:
        return asdict(decode(Config, side.plan["config"]))
    except InputError:
        return dict(side.plan["config"])


def flat(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{where}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{where}{key}", value


# Tables ---------------------------------------------------------------------------------------------------------------


def tables_by_name(side: Side) -> dict[str, list[Path]]:
    """The files of each table of an experiment that are there, by the table's name; without one by their path."""
    paths = map(Path, table_files(side.targets()))
    files = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    found: dict[str, list[Path]] = {}
    for file in files:
        if file.is_file():
            found.setdefault(
                metadata_of(file).get("table", f"{UNKNOWN}{file.relative_to(side.folder)} of {side.label}"), []
            ).append(file)
    return found


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata of a Parquet file; empty where it cannot be read."""
    try:
        with parsing(file, "not a readable Parquet file ({})", POLARS):
            return pl.read_parquet_metadata(file)
    except InputError:
        return {}


def compare_files(name: str, a: Sequence[Path], b: Sequence[Path]) -> TableDifference:
    """Compare a table that lies in some files on each side, if both can be read and are of one schema version."""
    if name.startswith(UNKNOWN):
        return TableDifference(name, note="cannot be read, or is no table of ditscope")
    for label, files in zip(SIDES, (b, a), strict=True):
        if not files:
            return TableDifference(name, note=f"only in {label}")
    versions = [sorted({metadata_of(file).get("schema_version", "none") for file in files}) for files in (a, b)]
    if versions[0] != versions[1]:
        both = " and ".join(f"{', '.join(v)} in {label}" for label, v in zip(SIDES, versions, strict=True))
        return TableDifference(name, note=f"not compared: schema version {both}")
    try:
        tables = [read(files) for files in (a, b)]
        with parsing(a[0], "cannot be matched with B's ({})", POLARS):
            return compare_tables(name, *tables)
    except InputError as error:
        return TableDifference(name, note=f"not compared: {error}")


def read(files: Sequence[Path]) -> pl.DataFrame:
    """The rows of files of one table, texts of fixed sets as plain text. Raises InputError for what cannot be read."""
    parts = []
    for file in files:
        with parsing(file, "damaged Parquet file ({})", POLARS):
            part = pl.read_parquet(file)
            sets = [name for name, dtype in part.schema.items() if isinstance(dtype, pl.Enum | pl.Categorical)]
            parts.append(part.with_columns(pl.col(sets).cast(pl.String)))
    with parsing(files[0], "its columns are not those of its other parts ({})", POLARS):
        return pl.concat(parts, how="diagonal_relaxed")


def compare_tables(name: str, a: pl.DataFrame, b: pl.DataFrame) -> TableDifference:
    """Match the rows of two tables by their keys, and compare every other column that both have."""
    both = [column for column in a.columns if column in b.columns]
    extra = tuple(c for c in a.columns if c not in both), tuple(c for c in b.columns if c not in both)
    keys = keys_of(a, b)
    rows = [numbered(table, keys) for table in (a, b)]
    on = [*keys, ORDER]
    joined = rows[0].join(rows[1], on=on, how="inner", nulls_equal=True, suffix=" of B", maintain_order="left")
    columns = [found for c in both if c not in keys and (found := compare_columns(joined, c, keys))]
    only = len(a) - len(joined), len(b) - len(joined)
    shown = tuple(keys) if max(row[ORDER].max() or 0 for row in rows) == 0 else (*keys, ORDER)
    return TableDifference(name, (len(a), len(b)), shown, only, extra, tuple(columns))


def keys_of(a: pl.DataFrame, b: pl.DataFrame) -> list[str]:
    """The fewest columns of text or integers that tell rows apart in both tables as well as all of them do.

    Columns whose values have nothing in common (names of other models, hashes of other weights) cannot match rows.
    Those that have little in common are left out first, then the last ones, where results stand.
    """
    kinds = (pl.String, pl.Boolean)
    shared: dict[str, float] = {}
    for column in a.columns:
        if column in b.columns and all(t[column].dtype in kinds or t[column].dtype.is_integer() for t in (a, b)):
            if (a[column].dtype in kinds or b[column].dtype in kinds) and a[column].dtype != b[column].dtype:
                continue
            values = [set(t[column].unique().to_list()) for t in (a, b)]
            if common := len(values[0] & values[1]):
                shared[column] = common / len(values[0] | values[1])
    keys = list(shared)
    distinct = [len(t.select(keys).unique()) if keys else 0 for t in (a, b)]
    for column in sorted(shared, key=lambda c: (shared[c], -a.columns.index(c))):
        rest = [key for key in keys if key != column]
        if rest and [len(t.select(rest).unique()) for t in (a, b)] == distinct:
            keys = rest
    return keys


def numbered(table: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The table with a number for each of the rows that `keys` do not tell apart, 0 for the first."""
    number = pl.int_range(pl.len(), dtype=pl.Int64)
    return table.with_columns((number.over(keys) if keys else number).alias(ORDER))


def compare_columns(joined: pl.DataFrame, column: str, keys: Sequence[str]) -> ColumnDifference | None:
    """Compare a column of matched rows with its counterpart of B; None where no value differs."""
    a, b = joined[column], joined[f"{column} of B"]
    numbers = all(series.dtype.is_numeric() for series in (a, b))
    if a.dtype != b.dtype and not numbers:
        return ColumnDifference(column, len(joined), values=(str(a.dtype), str(b.dtype)), at="the types")
    unlike = a.ne_missing(b).fill_null(True)
    count = int(unlike.sum())
    if not count:
        return None
    largest = median = None
    row = int(unlike.arg_max() or 0)
    if numbers:
        size = pl.when(unlike).then((b.cast(pl.Float64) - a.cast(pl.Float64)).abs()).otherwise(0.0)
        sizes = joined.select(size.alias("size"))["size"].fill_nan(None)  # of a value against none there is no size
        if sizes.drop_nulls().len() and (sizes.max() or 0.0):
            row, largest, median = int(sizes.arg_max() or 0), float(sizes.max()), float(sizes.median())
    place = ", ".join(f"{key} {shown(joined[key][row])}" for key in keys)
    return ColumnDifference(column, count, largest, median, place, (shown(a[row]), shown(b[row])))


def shown(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "none" if value is None else str(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Figures --------------------------------------------------------------------------------------------------------------


def compare_figures(a: Side, b: Side) -> list[Figure]:
    """The figures of both, in the order in which A, then B, draws them."""
    found = [pictures(side) for side in (a, b)]
    return [Figure(name, (found[0].get(name), found[1].get(name))) for name in dict.fromkeys([*found[0], *found[1]])]


def pictures(side: Side) -> dict[str, Path]:
    """The figures of an experiment by name, each in a format that a page can show."""
    found: dict[str, Path] = {}
    for kind in PICTURES:
        for file in side.targets().get("publish", []):
            if file.suffix == kind and file.parent.name == "figures" and file.is_file():
                found.setdefault(file.stem, file)
    return found


# What is said ---------------------------------------------------------------------------------------------------------


def summary(found: Comparison) -> list[str]:
    """What each side is and lacks, and how much differs, in lines."""
    lines = []
    for side in found.sides:
        lines.append(f"{side.label}: {side.folder} (experiment {side.experiment})")
        lines += [f"{side.label} is not finished: {stage}: {what}" for stage, what in side.missing().items()]
    tables = [table for table in found.tables if not is_timing(table)]
    counts = (
        f"{len(found.settings)} settings",
        f"{sum(not table.same for table in tables)} of {len(tables)} tables",
        f"{sum(not figure.same for figure in found.figures)} of {len(found.figures)} figures",
    )
    return [*lines, "Nothing differs, durations apart." if found.same else f"{', '.join(counts)} differ."]


def about(table: TableDifference) -> str:
    """What is to be said of a table beside its columns."""
    if table.note:
        return table.note
    parts = [f"{table.rows[0]} rows in A, {table.rows[1]} in B, matched by {', '.join(table.keys) or 'nothing'}"]
    parts += [f"{n} rows only in {label}" for label, n in zip(SIDES, table.only, strict=True) if n]
    parts += [f"columns only in {s}: {', '.join(c)}" for s, c in zip(SIDES, table.columns_only, strict=True) if c]
    return "; ".join(parts)


HEADER = ("column", "rows that differ", "largest difference", "median", "A there", "B there", "where")


def cells(column: ColumnDifference) -> tuple[str, ...]:
    """The cells of a column's line under HEADER."""
    sizes = ("" if size is None else f"{size:.4g}" for size in (column.largest, column.median))
    return (column.column, str(column.unlike), *sizes, *column.values, column.at)


def printable(text: str) -> str:
    """Text without characters that a terminal takes as commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Lines of cells in columns; the last column is not padded."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    return [indent + "  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines]


def as_text(found: Comparison) -> str:
    """A comparison for the terminal."""
    lines = [printable(line) for line in summary(found)]
    if found.settings:
        rows = [tuple("not there" if cell is None else cell for cell in row) for row in found.settings]
        lines += ["", "Settings that differ", *grid(("setting", *SIDES), rows, "  ")]
    for title, wanted in (("Tables that differ", False), ("Durations that differ", True)):
        tables = [table for table in found.tables if is_timing(table) == wanted and not table.same]
        lines += ["", title] if tables else []
        for table in tables:
            lines.append(f"  {printable(table.name)}: {printable(about(table))}")
            lines += grid(HEADER, [cells(column) for column in table.columns], "    ") if table.columns else []
    figures = [figure for figure in found.figures if not figure.same]
    lines += ["", "Figures that differ"] if figures else []
    lines += [f"  {printable(figure.name)}{only_in(figure)}" for figure in figures]
    return "\n".join([*lines, ""])


def only_in(figure: Figure) -> str:
    """Which side alone has a figure; empty where both have it."""
    return "".join(f": only in {s}" for s, other in zip(SIDES, reversed(figure.files), strict=True) if other is None)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1a1a1a; }}
h1 {{ font-size: 1.5rem; }} h2 {{ margin-top: 2.5rem; font-size: 1.2rem; }} h3 {{ margin: 1.5rem 0 .3rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; }}
td {{ overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }} th {{ white-space: nowrap; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }}
figure {{ margin: 0; min-width: 0; }} figure img {{ width: 100%; background: #fff; }}
figcaption, .note {{ color: #555; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_html(found: Comparison) -> str:
    """A comparison as one page that needs no other file and runs no script; every text is escaped."""
    a, b = found.sides
    title = safe(f"{a.experiment} and {b.experiment}")
    body = [f"<h1>{title}</h1>", *(f"<p>{safe(line)}</p>" for line in summary(found))]
    if found.settings:
        rows = [tuple("not there" if cell is None else cell for cell in row) for row in found.settings]
        body += ["<h2>Settings that differ</h2>", html_table(("setting", *SIDES), rows)]
    for heading, wanted in (("Tables that differ", False), ("Durations that differ", True)):
        tables = [table for table in found.tables if is_timing(table) == wanted and not table.same]
        body += [f"<h2>{heading}</h2>"] if tables else []
        for table in tables:
            body += [f"<h3>{safe(table.name)}</h3>", f'<p class="note">{safe(about(table))}</p>']
            body += [html_table(HEADER, [cells(column) for column in table.columns])] if table.columns else []
    body += ["<h2>Figures</h2>"] if found.figures else []
    for figure in found.figures:
        body.append(f"<h3>{safe(figure.name)}{', the same in both' if figure.same else ''}</h3>")
        pairs = [("A and B", figure.files[0])] if figure.same else zip(SIDES, figure.files, strict=True)
        body.append(f'<div class="pair">{"".join(picture(*pair) for pair in pairs)}</div>')
    return PAGE.format(title=title, body="\n".join(body))


def safe(text: str) -> str:
    """Text within a page: no markup, no control characters."""
    return escape(printable(text))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML, every cell escaped."""

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{safe(cell)}</{tag}>" for cell in row) + "</tr>"

    return f'<div class="scroll"><table>{line("th", header)}{"".join(line("td", row) for row in rows)}</table></div>'


def picture(label: str, file: Path | None) -> str:
    """A figure of one side within the page: as an image, in which an SVG runs no script."""
    if file is None:
        return f"<figure><figcaption>{label}: none</figcaption></figure>"
    data = base64.b64encode(file.read_bytes()).decode()
    image = f'<img alt="{label}: {safe(file.stem)}" src="data:{PICTURES[file.suffix]};base64,{data}">'
    return f"<figure><figcaption>{label}</figcaption>{image}</figure>"
