"""Tables for a paper: small summaries of the study's long tables, as CSV, Markdown and LaTeX."""

import unicodedata
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import polars as pl

from ditscope.core.atomic import write_text
from ditscope.publish.figures import PAPER_TABLES
from ditscope.style import Files

LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)  # fmt: skip
MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", "|": r"\|"})


def function_of(name: str) -> Callable[[Files], pl.DataFrame]:
    """The function of a table: `bit_plans_table` of its stage's `figures.py` for `bit-plans`."""
    return getattr(import_module(f"ditscope.{PAPER_TABLES[name]}.figures"), f"{name.replace('-', '_')}_table")


def write_paper_tables(files: Files, out: Path) -> None:
    """Write every table whose stage is in `files` into the folder `out`."""
    for name, stage in PAPER_TABLES.items():
        if stage in files:
            for file, text in texts_of(name, files).items():
                write_text(out / file, text)


def texts_of(name: str, files: Files) -> dict[str, str]:
    """A table in every format, by the names of its files."""
    table = function_of(name)(files)
    return {f"{name}.csv": table.write_csv(), f"{name}.md": markdown(table), f"{name}.tex": latex(table)}


def cell(value: object) -> str:
    """A value as text on one line: four significant digits, nothing for null."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def markdown(table: pl.DataFrame) -> str:
    """The table in Markdown; markup in its values is shown, not followed."""
    rows = [[cell(v).translate(MARKDOWN) for v in row] for row in table.rows()]
    lines = [table.columns, ["---"] * table.width, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: pl.DataFrame) -> str:
    """The table as a LaTeX tabular (booktabs), every special character escaped."""
    align = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    rows = [" & ".join(escaped(cell(v)) for v in row) + r" \\" for row in table.rows()]
    header = " & ".join(map(escaped, table.columns)) + r" \\"
    body = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*body, ""])


def escaped(text: str) -> str:
    """Text for LaTeX, for any of its engines: signs of markup escaped, letters beyond Latin-1 as `?`."""
    latin = unicodedata.normalize("NFKC", text.translate(LATEX))  # subscript digits become digits
    return "".join(letter if ord(letter) < 0x100 else "?" for letter in latin)
