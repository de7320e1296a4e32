"""What `ditscope doctor` checks of the stage `publish`."""

import csv
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ditscope.core.errors import InputError
from ditscope.core.schema import Table, table_named
from ditscope.core.study import ROUNDED, Study, alike_text, check_picture
from ditscope.publish.catalog import files_by_name, in_catalog, key_of, rows_query, table_files, views_of
from ditscope.publish.tables import ANSWERS
from ditscope.publish.views import View

if TYPE_CHECKING:
    import duckdb
    import polars as pl


TWO_DIGITS = 0.06  # between two neighbours of two significant digits, of which answers are made


def check_publish(study: Study) -> None:
    """Figures and pages are whole; tables are what the stages left, and the catalog has every table of the study."""
    for file in study.targets("publish"):
        path = study.results / file
        if not path.exists():
            continue
        with study.noting("publish", file):
            if path.suffix in READABLE:
                READABLE[path.suffix](path)
            if file == ANSWERS.file:
                check_answers(study)
            if file.startswith("tables/"):
                check_paper_table(study, file)
            elif path.suffix == ".duckdb":
                check_catalog(study, path)


def stage_files(study: Study) -> dict[str, list[Path]]:
    """What each stage left, as figures and tables are given it; without stages that lack a file."""
    files = {s: [study.results / file for file in study.asked(s)] for s in study.plan["targets"] if s != "publish"}
    return {stage: paths for stage, paths in files.items() if paths and all(path.exists() for path in paths)}


def check_paper_table(study: Study, file: str) -> None:
    """A table for the paper is what its stage's tables give, in every format."""
    from ditscope.publish.figures import PAPER_TABLES
    from ditscope.publish.paper_tables import texts_of

    name, files = Path(file).stem, stage_files(study)
    stage = PAPER_TABLES.get(name)
    if stage not in files:  # or of another ditscope
        return
    wanted = study.once(f"paper table {name}", lambda: texts_of(name, files))[Path(file).name]
    text = (study.results / file).read_text(encoding="utf-8")
    if not alike_text(text, wanted, 1e-6 if file.endswith(".csv") else ROUNDED):
        raise InputError(f"is not what the stage `{stage}` left")


def check_answers(study: Study) -> None:
    """Each answer is what the tables of its stage give."""
    from ditscope.publish.answers import answers_table

    embedders = study.plan["config"]["embedders"]
    controls = [name for name, entry in embedders.items() if entry["family"] == "random-walk"]
    wanted = study.once("answers", lambda: answers_table(stage_files(study), controls))
    found = study.table("publish", ANSWERS.file, ANSWERS.name)
    if found is None:
        return
    check_front_page(study, found)
    if found["stage"].to_list() != wanted["stage"].to_list():
        raise InputError(f"answers for {', '.join(found['stage'])}, and the study has {', '.join(wanted['stage'])}")
    for row, given in zip(found.iter_rows(named=True), wanted.iter_rows(named=True), strict=True):
        unlike = next((name for name in given if not alike_answer(row[name], given[name])), "")
        if unlike:
            raise InputError(f"`{unlike}` of the answer of `{row['stage']}` is not what its tables give")


def check_front_page(study: Study, answers: "pl.DataFrame") -> None:
    """The front page says what the table `answers` says."""
    page = study.results / "answers.html"
    with study.noting("publish", page.name):
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        missing = [row["stage"] for row in answers.iter_rows(named=True) if text and escape(row["answer"]) not in text]
        if missing:
            raise InputError(f"lacks the answer of `{missing[0]}` as the table `{ANSWERS.name}` gives it")


def alike_answer(value: Any, other: Any) -> bool:
    """Whether two cells of an answer are equal; numbers, also those in a text, up to rounding."""
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-12)
    return alike_text(value, other, TWO_DIGITS) if isinstance(value, str) else value == other


def check_svg(path: Path) -> None:
    """An SVG is well-formed XML with the right root."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"not well-formed XML ({error})") from None
    if not root.tag.endswith("svg"):
        raise InputError(f"not an SVG but <{root.tag}>")


def check_csv(path: Path) -> None:
    """A CSV has a header and as many fields in every row."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise InputError("rows have different numbers of fields")


def check_text(path: Path) -> None:
    """A Markdown or LaTeX table is UTF-8 and ends with a whole line."""
    if not path.read_text(encoding="utf-8").endswith("\n"):
        raise InputError("does not end with a whole line")


def check_html(path: Path) -> None:
    """A page reaches its end."""
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise InputError("truncated: does not end with </html>")


def check_pdf(path: Path) -> None:
    """A PDF has head and tail."""
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-64:]:
        raise InputError("not a whole PDF")


READABLE = {
    ".svg": check_svg,
    ".csv": check_csv,
    ".md": check_text,
    ".tex": check_text,
    ".rst": check_text,
    ".html": check_html,
    ".pdf": check_pdf,
    ".png": check_picture,
}


def check_catalog(study: Study, path: Path) -> None:
    """The DuckDB file has every table of the study with its key and all its rows, value by value, and its views."""
    import duckdb

    planned = table_files({stage: study.asked(stage) for stage in study.plan["targets"]})
    files = files_by_name(study.results / file for file in planned if (study.results / file).exists())
    tables = {in_catalog(name): table_named(name) for name in files}
    try:
        with duckdb.connect(str(path), read_only=True) as database:
            names = {name for (name,) in database.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            for name, table in tables.items():
                paths = files[table.name]
                if name not in names:
                    raise InputError(f"table {name} has 0 rows of those in {paths[0]}")
                check_rows_of(database, table, paths)
            if unknown := names - tables.keys():
                raise InputError(f"table {unknown.pop()} is none of the study")
            check_views(database, list(views_of(tables)))
    except duckdb.Error as error:
        raise InputError(f"not a readable DuckDB file ({error})") from None


def check_rows_of(database: "duckdb.DuckDBPyConnection", table: Table, paths: list[str]) -> None:
    """A table of the catalog has its primary key and the rows of its files."""
    name, given, values = in_catalog(table.name), rows_query(table), {"paths": paths}
    counts = [
        database.execute(f"SELECT count(*) FROM ({query})", at).fetchone()[0]  # type: ignore[index]
        for query, at in ((f'SELECT * FROM "{name}"', {}), (given, values))
    ]
    if counts[0] != counts[1]:
        raise InputError(f"table {name} has {counts[0]} rows of {counts[1]}")
    other = f'SELECT count(*) FROM ({given} EXCEPT ALL SELECT * FROM "{name}")'
    if count := database.execute(other, values).fetchone()[0]:  # type: ignore[index]
        raise InputError(f"table {name} differs in {count} rows of {counts[1]} from the study's files")
    keys = database.execute(
        "SELECT constraint_column_names FROM duckdb_constraints() WHERE table_name = $name AND "
        "constraint_type = 'PRIMARY KEY'",
        {"name": name},
    ).fetchall()
    if keys != [(list(key_of(table)),)]:
        raise InputError(f"table {name} has not the primary key ({', '.join(key_of(table))})")


def check_views(database: "duckdb.DuckDBPyConnection", wanted: list[View]) -> None:
    """The catalog has the views whose tables are there, and each gives what its query gives."""
    there = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    views = {name for (name,) in database.execute(there).fetchall()}
    if unlike := views ^ {view.name for view in wanted}:
        name = sorted(unlike)[0]
        raise InputError(f"view {name} is {'none of the catalog' if name in views else 'missing'}")
    for view in wanted:
        queries = [view.query, f'SELECT * FROM "{view.name}"']
        columns = [database.execute(f"DESCRIBE {query}").fetchall() for query in queries]
        if columns[0] != columns[1] or any(rows_less(database, *pair) for pair in (queries, queries[::-1])):
            raise InputError(f"view {view.name} does not give what its tables do")


def rows_less(database: "duckdb.DuckDBPyConnection", one: str, other: str) -> int:
    """How many rows of one query the other does not give."""
    count = database.execute(f"SELECT count(*) FROM (({one}) EXCEPT ALL ({other}))").fetchone()
    return count[0] if count else 0
