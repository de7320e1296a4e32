"""The catalog: keys, comments, views, and the queries of docs/catalog.md, on tables as declared and on a real study."""

import re
from pathlib import Path

import duckdb
import polars as pl
import pytest

from ditscope.core.errors import InputError
from ditscope.core.schema import STAGE_OF, Table, tables_of
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import write_table
from ditscope.prompts.tables import PROMPTS
from ditscope.publish.catalog import in_catalog, key_of, table_files, write_catalog
from ditscope.publish.views import VIEWS
from ditscope.refine.tables import TRAINING
from loose_tables import write_loosely
from workflow import ROOT

PAGE = (ROOT / "docs/catalog.md").read_text()
QUERIES = re.findall(r"^```sql\n(.*?)^```", PAGE, re.M | re.S)
# Tables that a later job joins to another, that no finished job leaves, or whose columns are the user's own.
NOT_THERE = {
    "benchmark.run", "benchmark.run.timing", "benchmark.run.flat", "calibration.activations.part",
    "sensitivity.samples", "analysis.*",
}  # fmt: skip
OF_STUDIES = [t for stage in dict.fromkeys(STAGE_OF.values()) for t in tables_of(stage) if t.file]
DECLARED = [t for t in OF_STUDIES if t.name not in NOT_THERE]


def made_up(table: Table, rows: int = 3) -> pl.DataFrame:
    """Rows of a table as it is declared; texts and numbers are the same in all tables, so that they can be joined."""

    def value(dtype: pl.DataType, row: int):
        if isinstance(dtype, pl.Enum):
            return dtype.categories[row % len(dtype.categories)]
        if isinstance(dtype, pl.List):
            return [value(dtype.inner, row)]
        return {"String": f"x{row}", "Boolean": row == 0}.get(str(dtype), row)

    columns = {name: [value(dtype, row) for row in range(rows)] for name, dtype in table.schema().items()}
    return pl.DataFrame(columns, schema=table.schema(), strict=False)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """The catalog of a study in which every table has three rows."""
    folder = tmp_path_factory.mktemp("catalog")
    for table in DECLARED:
        write_table(made_up(table), folder / table.file.replace("*", "x"), table)
    write_catalog([folder], folder / "catalog.duckdb")
    with duckdb.connect(folder / "catalog.duckdb", read_only=True) as database:
        yield database


@pytest.fixture(scope="module")
def of_study(study, tmp_path_factory):
    """The catalog of the tiny study, made anew."""
    left = {
        stage: [study / file for file in files] for stage, files in read_plan(study / "results/tiny")["targets"].items()
    }
    out = tmp_path_factory.mktemp("study") / "catalog.duckdb"
    write_catalog(table_files(left), out)
    with duckdb.connect(out, read_only=True) as database:
        yield database


def test_every_table_has_its_primary_key(catalog):
    keys = dict(
        catalog.execute(
            "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
        ).fetchall()
    )
    assert keys == {in_catalog(table.name): list(key_of(table)) for table in DECLARED}


def test_comments_say_what_rows_and_columns_mean(catalog):
    tables = catalog.execute("SELECT comment FROM duckdb_tables()").fetchall()
    columns = catalog.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL AND NOT internal AND table_name IN "
        "(SELECT table_name FROM duckdb_tables())"
    ).fetchall()
    assert all(comment.startswith("One row per ") for (comment,) in tables)
    places = {(in_catalog(table.name), place) for table in DECLARED for place in table.places if place}
    assert set(columns) - places == {(in_catalog(t.name), "row") for t in DECLARED if not t.key}


def test_every_view_is_there_with_its_question(catalog):
    comments = dict(catalog.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall())
    assert comments == {view.name: view.question for view in VIEWS}
    assert all(f"`{view.name}`" in PAGE for view in VIEWS)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.split("\n")[0][:60])
def test_queries_of_the_page_run(catalog, query):
    assert catalog.execute(query).description


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_views_have_the_rows_of_a_study(of_study, view):
    (count,) = of_study.execute(f'SELECT count(*) FROM "{view.name}"').fetchone()
    assert count > 0


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.split("\n")[0][:60])
def test_queries_of_the_page_run_on_a_study(of_study, query):
    rows = of_study.execute(query).fetchall()
    nowhere = "ANTI JOIN" in query
    few = "HAVING" in query or "WHERE" in query  # what the tiny study may have none of
    assert not rows if nowhere else rows or few


def test_views_say_what_their_tables_do(of_study, study):
    """Against polars: the last observed state of each run, and the number of its different captions."""
    drift = pl.read_parquet(study / "results/tiny/drift/drift.parquet").filter(
        pl.col("control").cast(pl.String) == "observed"
    )
    run = ["embedder", "network", "run_id"]
    last = drift.sort("sequence_number").group_by(run).last().select(*run, "sequence_number", "cosine_distance")
    rows = of_study.execute(
        "SELECT embedder, network, run_id, sequence_number, cosine_distance FROM final_drift"
    ).fetchall()
    assert sorted(rows) == sorted(last.rows())
    steps = pl.concat(
        pl.read_parquet(p) for p in sorted((study / "results/tiny/trajectories").glob("*/shard-?????.parquet"))
    )
    texts = steps.filter(pl.col("type") == "TEXT", pl.col("sequence_number") >= 0).group_by("run_id").agg(
        pl.col("output_key").n_unique())  # fmt: skip
    assert sorted(of_study.execute("SELECT run_id, distinct_captions FROM distinct_captions").fetchall()) == sorted(
        texts.rows()
    )


def test_what_tells_files_apart_is_a_column_of_the_key(tmp_path):
    for model in ("a", "b"):
        write_table(made_up(TRAINING), tmp_path / f"results/x/refine/{model}/training.parquet", TRAINING)
    write_catalog([tmp_path], tmp_path / "c.duckdb")
    with duckdb.connect(tmp_path / "c.duckdb", read_only=True) as database:
        counts = database.execute("SELECT model, count(*) FROM refine_training GROUP BY model ORDER BY model")
        assert counts.fetchall() == [("a", 3), ("b", 3)]


def test_rows_of_one_key_are_refused_by_name(tmp_path):
    for shard in range(2):
        write_table(made_up(PROMPTS), tmp_path / f"prompts/shard-0000{shard}.parquet", PROMPTS)
    with pytest.raises(InputError, match="rows of the table `prompts` have one key") as refused:
        write_catalog([tmp_path / "prompts"], tmp_path / "c.duckdb")
    assert "\n" not in str(refused.value) and not (tmp_path / "c.duckdb").exists()


def test_tables_of_one_s_own_are_keyed_by_their_rows(tmp_path):
    write_loosely(pl.DataFrame({"b": ["x", "x", "y"]}), tmp_path / "analysis/mine.parquet", "analysis.mine")
    write_catalog([tmp_path / "analysis/mine.parquet"], tmp_path / "c.duckdb")
    with duckdb.connect(tmp_path / "c.duckdb", read_only=True) as database:
        assert database.execute("SELECT row, b FROM analysis_mine ORDER BY row").fetchall() == [
            (0, "x"),
            (1, "x"),
            (2, "y"),
        ]


def test_a_catalog_is_made_anew_over_an_older_one(tmp_path):
    write_table(made_up(PROMPTS), tmp_path / "shard.parquet", PROMPTS)
    for _ in range(2):
        write_catalog([tmp_path / "shard.parquet"], tmp_path / "c.duckdb")
    assert sorted(Path(tmp_path).glob("c.duckdb*")) == [tmp_path / "c.duckdb"]
