"""Tables for a paper: small summaries of the study's long tables, as CSV, Markdown and LaTeX."""

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
    """The function of a table in its stage's `figures.py`: `paper_table` of its first one, `<name>_table` of others."""
    stage = PAPER_TABLES[name]
    first = next(table for table, other in PAPER_TABLES.items() if other == stage)
    return getattr(import_module(f"ditscope.{stage}.figures"), "paper_table" if name == first else f"{name}_table")


def write_paper_tables(files: Files, out: Path) -> None:
    """Write every table whose stages are in `files` into the folder `out`."""
    for name, stage in PAPER_TABLES.items():
        if stage in files:
            table = function_of(name)(files)
            for kind, text in (("csv", table.write_csv()), ("md", markdown(table)), ("tex", latex(table))):
                write_text(out / f"{name}.{kind}", text)


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
    rows = [" & ".join(cell(v).translate(LATEX) for v in row) + r" \\" for row in table.rows()]
    header = " & ".join(name.translate(LATEX) for name in table.columns) + r" \\"
    body = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*body, ""])
