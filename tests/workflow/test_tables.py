"""Tables of a finished study and of the pages are as the stages declare them."""

import re

import polars as pl
import pytest

from ditscope.core.schema import STAGE_OF, table_named, tables_of
from ditscope.workflow.doctor import open_study
from ditscope.workflow.reference import TABLE, page_with_tables
from workflow import ROOT

DECLARED = [table for stage in dict.fromkeys(STAGE_OF.values()) for table in tables_of(stage)]
PAGES = sorted((ROOT / "docs" / "outputs").glob("*.md"))
# Tables that a later job joins to another one, that no finished job leaves, or whose columns are the user's own.
NOT_SHOWN = {
    "benchmark.run", "benchmark.run.timing", "benchmark.run.flat", "calibration.activations.part",
    "sensitivity.samples", "analysis.*",
}  # fmt: skip


def matches(pattern: str, file: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), file) is not None


def test_every_table_of_a_study_is_as_it_is_declared(study):
    results = study / "results/tiny"
    seen = set()
    for path in sorted(results.rglob("*.parquet")):
        table = table_named(pl.read_parquet_metadata(path)["table"])
        file = path.relative_to(results).as_posix()
        assert matches(table.file, file) or matches(table.parts, file), f"{file}: not where {table.name} lies"
        assert not list(table.faults(pl.read_parquet(path))), file
        seen.add(table.name)
    others = {"capture_frames", "sensitivity.formats", "sensitivity.formats.timing"}  # of videos; of budgets of formats
    assert {table.name for table in DECLARED if table.file} - seen == {"analysis.*"} | others


def test_rules_leave_tables_where_they_are_declared(study):
    rules = open_study(study / "results/tiny").plan["rules"].values()
    left = [output for rule in rules for output in rule["outputs"]]
    for table in DECLARED:
        for pattern in filter(None, (table.file, table.parts)):
            made = [output for output in left if matches(pattern, output) or pattern.startswith(f"{output}/")]
            assert made, f"no rule leaves {pattern}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_show_tables_as_they_are_declared(page):
    assert page.read_text() == page_with_tables(page.read_text()), "run `make docs`"


def test_every_table_is_shown_once_in_a_page():
    shown = [name for page in PAGES for name in TABLE.findall(page.read_text())]
    assert sorted(shown) == sorted({table.name for table in DECLARED} - NOT_SHOWN)
