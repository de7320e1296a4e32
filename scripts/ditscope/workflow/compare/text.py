"""A comparison in words, for the terminal."""

from collections.abc import Sequence

from ditscope.workflow.compare.experiments import Comparison, Figure, is_timing
from ditscope.workflow.compare.tables import SIDES, ColumnDifference, TableDifference

HEADER = ("column", "rows that differ", "largest difference", "median", "A there", "B there", "where")


def as_text(comparison: Comparison) -> str:
    """A comparison for the terminal."""
    lines = [printable(line) for line in summary(comparison)]
    if comparison.settings:
        lines += ["", "Settings that differ", *grid(("setting", *SIDES), setting_rows(comparison), "  ")]
    for title, tables in table_sections(comparison):
        lines += ["", title]
        for table in tables:
            lines.append(f"  {printable(table.name)}: {printable(about(table))}")
            lines += grid(HEADER, [cells(column) for column in table.columns], "    ") if table.columns else []
    figures = [figure for figure in comparison.figures if not figure.same]
    lines += ["", "Figures that differ"] if figures else []
    lines += [f"  {printable(figure.name)}{only_in(figure)}" for figure in figures]
    return "\n".join([*lines, ""])


def setting_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Settings that differ, as texts (key, A, B)."""
    return [tuple("not there" if cell is None else cell for cell in row) for row in comparison.settings]


def table_sections(comparison: Comparison) -> list[tuple[str, list[TableDifference]]]:
    """Tables that differ under their headings: results, then durations; headings without tables are left out."""
    differing = [table for table in comparison.tables if not table.same]
    results = [table for table in differing if not is_timing(table)]
    durations = [table for table in differing if is_timing(table)]
    sections = [("Tables that differ", results), ("Durations that differ", durations)]
    return [(title, tables) for title, tables in sections if tables]


def summary(comparison: Comparison) -> list[str]:
    """What each side is and lacks, and how much differs, in lines."""
    lines = []
    for side in comparison.sides:
        lines.append(f"{side.label}: {side.folder} (experiment {side.experiment})")
        lines += [f"{side.label} is not finished: {stage}: {what}" for stage, what in side.missing().items()]
    tables = [table for table in comparison.tables if not is_timing(table)]
    counts = (
        f"{len(comparison.settings)} settings",
        f"{sum(not table.same for table in tables)} of {len(tables)} tables",
        f"{sum(not figure.same for figure in comparison.figures)} of {len(comparison.figures)} figures",
    )
    return [*lines, "Nothing differs, durations apart." if comparison.same else f"{', '.join(counts)} differ."]


def about(table: TableDifference) -> str:
    """What is to be said of a table beside its columns."""
    if table.note:
        return table.note
    parts = [f"{table.rows[0]} rows in A, {table.rows[1]} in B, matched by {', '.join(table.keys) or 'nothing'}"]
    parts += [f"{n} rows only in {label}" for label, n in zip(SIDES, table.only, strict=True) if n]
    parts += [f"columns only in {s}: {', '.join(c)}" for s, c in zip(SIDES, table.columns_only, strict=True) if c]
    return "; ".join(parts)


def cells(column: ColumnDifference) -> tuple[str, ...]:
    """The cells of a column's line under HEADER."""
    sizes = ("" if size is None else f"{size:.4g}" for size in (column.largest, column.median))
    return (column.column, str(column.unlike), *sizes, *column.values, column.at)


def only_in(figure: Figure) -> str:
    """Which side alone has a figure; empty where both have it."""
    return "".join(f": only in {s}" for s, other in zip(SIDES, reversed(figure.files), strict=True) if other is None)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Lines of cells in columns; the last column is not padded."""
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    return [indent + "  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines]


def printable(text: str) -> str:
    """Text without characters that a terminal takes as commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
