"""Schemas of tables: a frame that fits is written, every kind of fault is refused before anything is written."""

import re
from dataclasses import replace

import polars as pl
import pytest

from ditscope.benchmark.tables import BENCHMARK
from ditscope.config import STAGES
from ditscope.core.errors import InputError, SchemaError
from ditscope.core.schema import STAGE_OF, Column, Table, polars_type, table_named, tables_of, tables_with
from ditscope.core.tables import read_table, write_table
from ditscope.drift.tables import SIMILARITY
from ditscope.trajectories.tables import TIMING, TRAJECTORIES

DECLARED = [table for stage in dict.fromkeys(STAGE_OF.values()) for table in tables_of(stage)]
ROWS = {
    "network": ["n", "n"], "run_id": ["r", "r"], "sequence_number": [0, 1], "entry": ["m", "c"], "model": ["m", "c"],
    "scheme": ["base", "base"], "type": ["IMAGE", "TEXT"], "seconds": [0.5, 0.25], "batch_size": [1, 1],
    "shared": [False, False],
}  # fmt: skip
FITS = pl.DataFrame(ROWS)
# Each kind of fault: a frame that has it, and what is said of it.
FAULTS = {
    "column missing": (FITS.drop("seconds"), "lacks the column `seconds`"),
    "column that is not declared": (FITS.with_columns(mine=1), "has a column `mine` that the table"),
    "another type": (
        FITS.with_columns(pl.col("batch_size").cast(pl.Int32)),
        "column `batch_size` is Int32, not Int64",
    ),
    "nothing where something must be": (
        FITS.with_columns(seconds=pl.Series([0.5, None])),
        "column `seconds` holds nothing in 1 rows, as row 2",
    ),
    "rows of one key": (
        FITS.with_columns(sequence_number=pl.lit(0, pl.Int64)),
        "rows of one key (run_id, sequence_number) twice, as row 1: r, 0",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_frame_that_does_not_fit_is_refused_before_anything_is_written(kind, tmp_path):
    frame, says = FAULTS[kind]
    with pytest.raises(SchemaError, match=re.escape(says)) as raised:
        write_table(frame, tmp_path / "t.parquet", TIMING.name)
    assert "a fault of ditscope" in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_frame_that_fits_is_written(tmp_path):
    write_table(FITS, tmp_path / "t.parquet", TIMING.name)
    assert read_table(tmp_path / "t.parquet", TIMING.name).equals(FITS)


def test_every_fault_of_a_frame_is_said_at_once():
    frame = FITS.drop("seconds").with_columns(mine=1, shared=pl.lit(None, pl.Boolean))
    assert len(list(TIMING.faults(frame))) == 3


def test_columns_may_be_in_any_order():
    assert not list(TIMING.faults(FITS.select(sorted(FITS.columns))))


def test_a_pattern_stands_for_columns_whose_names_the_config_gives():
    frame = pl.DataFrame(schema=BENCHMARK.schema())
    assert not list(BENCHMARK.faults(frame.with_columns(cosine_dino=pl.lit(None, pl.Float64))))
    assert list(BENCHMARK.faults(frame.with_columns(cosine_dino=pl.lit(None, pl.Int64))))
    assert list(BENCHMARK.faults(frame.with_columns(sine_dino=pl.lit(None, pl.Float64))))


@pytest.mark.parametrize("table", DECLARED, ids=lambda table: table.name)
def test_declarations_hold_together(table):
    assert table_named(table.name) is table
    assert set(table.key) <= table.schema().keys()
    assert not any(table.columns[name].nullable for name in table.key)
    assert not list(table.faults(pl.DataFrame(schema=table.schema())))
    for column in table.columns.values():
        assert column.meaning and "\n" not in column.meaning


def test_every_table_has_a_name_of_its_own():
    names = [table.name for table in DECLARED]
    assert len(set(names)) == len(names)
    assert set(STAGE_OF.values()) <= set(STAGES)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Int64", pl.Int64),
        ("List(Float32)", pl.List(pl.Float32)),
        ("List(List(String))", pl.List(pl.List(pl.String))),
        ("Enum(a, b c)", pl.Enum(["a", "b c"])),
    ],
)
def test_types_are_polars_own(text, dtype):
    assert polars_type(text) == dtype


@pytest.mark.parametrize("name", ["drift.unknown", "nothing_here", "nothing_here.at_all"])
def test_a_name_that_nothing_declares_is_refused_by_name(name, tmp_path):
    with pytest.raises(InputError, match=re.escape(name)):
        write_table(FITS, tmp_path / "t.parquet", name)


def test_tables_of_one_s_own_hold_whatever_they_hold(tmp_path):
    write_table(pl.DataFrame({"x": [1, None], "y": ["a", "b"]}), tmp_path / "t.parquet", "analysis.half-drift")
    assert read_table(tmp_path / "t.parquet", "analysis.half-drift").height == 2


def test_optional_columns_may_be_absent_and_have_their_type_where_they_are_there():
    table = Table("t", "", "row", (), {"a": Column("Int64", "x"), "b": Column("Int64", "y", optional=True)})
    assert not list(table.faults(pl.DataFrame({"a": [1]})))
    assert not list(table.faults(pl.DataFrame({"a": [1], "b": [1]})))
    assert list(table.faults(pl.DataFrame({"a": [1], "b": ["1"]})))


def test_a_table_without_a_key_may_repeat_rows():
    frame = pl.concat([FITS, FITS])
    assert not list(replace(TIMING, key=()).faults(frame))
    assert SIMILARITY.stem == "similarity" and TRAJECTORIES.parts == ""


@pytest.mark.parametrize(
    "results", ["", "results/x/", "results/refine/", "/images/trajectories/refine/results/images/"]
)
@pytest.mark.parametrize(
    ("stage", "file", "tables"),
    [
        ("generate", "images/m/shard-0.tar", ["images/m/shard-0.parquet", "images/m/shard-0.timing.parquet"]),
        (
            "trajectories",
            "trajectories/n/shard-1.parquet",
            [f"trajectories/n/shard-1{e}.parquet" for e in ("", ".timing")],
        ),
        ("calibrate", "calibration/m-1.0/manifest.json", ["calibration/m-1.0/activations.parquet"]),
        ("ablate", "ablation/flux.1.tar", ["ablation/flux.1.parquet"]),
        ("benchmark", "benchmarks/m/h/base-eager.tar", []),
        ("benchmark", "benchmarks/benchmark.parquet", []),
        ("sensitivity", "sensitivity/agreement.parquet", []),
        ("plan", "plans/m/4bit.json", []),
        (
            "refine",
            "refine/m/record.json",
            [
                f"refine/m/{name}.parquet"
                for name in (
                    "assignments",
                    "training",
                    "training.timing",
                    "diagnostics",
                    "neighbours",
                    "tsne",
                    "samples",
                    "evaluation",
                    "gallery",
                )
            ],
        ),
    ],
)
def test_tables_that_a_job_leaves_with_a_file(results, stage, file, tables):
    assert tables_with(stage, f"{results}{file}", joined=False) == [f"{results}{table}" for table in tables]


def test_tables_that_are_joined_later_are_left_all_the_same():
    stem = "benchmarks/m/h/base-eager"
    left = tables_with("benchmark", f"{stem}.tar")
    assert set(left) == {f"{stem}{kind}" for kind in (".parquet", ".flat.parquet", ".timing.parquet")}
