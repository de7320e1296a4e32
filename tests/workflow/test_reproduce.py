"""`ditscope reproduce`: published tables as they stand, and beside synthetic measurements of them."""

import polars as pl
import pytest

from ditscope.cli import main
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.models.fit import Machine
from ditscope.workflow.reproduce import command, published
from ditscope.workflow.reproduce.measured import GIB, compared
from ditscope.workflow.reproduce.published import TIMED, names, overlay_of, read_published, without_run
from loose_tables import write_loosely

NAME = "torchao-flux-dev"


def measured(table, change=lambda key, row: row.value):
    """Frames of `benchmark.timing` and `benchmark.quality` that hold `change` of every published row."""
    timing, quality = {}, []
    for key, row in table.rows.items():
        case = {"model": row.model, "hardware": "h100", "scheme": row.scheme, "compile": row.compile}
        value = change(key, row)
        if row.metric not in TIMED:
            quality.append(case | {"metric": row.metric, "value": value, "reason": "" if value else "needs a backbone"})
            continue
        line = timing.setdefault((row.scheme, row.compile, row.batch), case | {"batch": row.batch, "reason": ""})
        line.setdefault("load_peak_allocated_bytes", 1)
        if row.metric == "peak_memory_gib":
            line["steady_peak_allocated_bytes"] = None if value is None else round(value * GIB)
        else:
            line["latency_median_ms"] = value
    schema = {
        "model": pl.String, "hardware": pl.String, "scheme": pl.String, "compile": pl.String, "batch": pl.Int64,
        "reason": pl.String, "latency_median_ms": pl.Float64, "load_peak_allocated_bytes": pl.Int64,
        "steady_peak_allocated_bytes": pl.Int64,
    }  # fmt: skip
    of_quality = {key: schema[key] for key in ("model", "hardware", "scheme", "compile", "reason")}
    of_quality |= {"metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(list(timing.values()), schema=schema), pl.DataFrame(quality, schema=of_quality)


@pytest.fixture
def study(tmp_path):
    """A function that leaves synthetic measurements of a published table as a study's results."""

    def write(table, **more):
        timing, quality = measured(table, **more)
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        write_loosely(timing, tmp_path / "benchmarks/benchmark.timing.parquet", "benchmark.timing")
        write_loosely(quality, tmp_path / "benchmarks/quality.parquet", "benchmark.quality")
        return tmp_path

    return write


@pytest.mark.parametrize("name", names())
def test_every_published_row_has_its_run_or_says_why_not(name):
    table = read_published(name)
    config = read_config([overlay_of(table)])
    assert overlay_of(table).stem == config.experiment == f"published-{name}"
    assert table.source.startswith("https://") and not without_run(table, config)
    known = set(config.benchmark.schemes)
    assert all((row.scheme not in known) == bool(row.without) for row in table.rows.values())
    assert known - {"base"} <= {row.scheme for row in table.rows.values()}  # nothing is run for no row


@pytest.mark.parametrize("name", names())
def test_what_was_published_is_within_its_own_tolerance(name, study):
    table = read_published(name)
    rows = compared(table, study(table))
    assert [row.name for row in rows] == list(table.rows)
    assert all(row.within is (None if table.rows[row.name].without else True) for row in rows)


def test_tolerances_are_shares_of_times_and_absolute_of_pictures(study):
    table = read_published(NAME)
    edge = {"bf16-1": 6573.0 * 1.0999, "bf16-4": 24828.0 * 1.1001, "bf16-peak-1": 33.851 * 0.94, "int8wo-1": None}
    rows = {r.name: r for r in compared(table, study(table, change=lambda key, row: edge.get(key, row.value)))}
    assert [rows[key].within for key in edge] == [True, False, False, None]
    assert rows["int8wo-1"].reason == "not measured" and rows["int8wo-compiled-1"].within
    svdquant = read_published("svdquant")
    off = {"dev-int4-lpips": 0.322 + 0.0499, "dev-int4-psnr": 18.5 - 1.51, "dev-w8a8-lpips": None}
    rows = {r.name: r for r in compared(svdquant, study(svdquant, change=lambda key, row: off.get(key, row.value)))}
    assert [rows[key].within for key in off] == [True, False, None]
    assert rows["dev-w8a8-lpips"].reason == "needs a backbone"
    assert "NF4" in rows["dev-nf4-w4a16-lpips"].reason


def test_a_finished_study_is_set_beside_the_table(study, capsys):
    table = read_published(NAME)
    folder = study(table)
    with pytest.raises(SystemExit) as done:
        main(["reproduce", NAME, "--results", str(folder)])
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"{len(table.rows)} of {len(table.rows)} measured rows are within" in text
    assert "| bf16-compiled-1 (latency_median_ms) | 4209 | 4209 (+0.0%) | ± 421 | yes |" in text
    study(table, change=lambda key, row: row.value * (2 if key == "bf16-1" else 1))
    with pytest.raises(SystemExit) as done:
        main(["reproduce", NAME, "--results", str(folder)])
    assert done.value.code == 1 and "| 6573 | 1.315e+04 (+100.0%) | ± 657 | **no** |" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    for arguments, said in (
        (["torchao-flux"], "`torchao-flux` is not a published table; did you mean `torchao-flux-dev`?"),
        ([NAME, "--results", str(tmp_path)], "benchmark.timing.parquet: not there yet"),
    ):
        assert main(["reproduce", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "this_machine", lambda: Machine((), 8000, 10**6))
    assert main(["reproduce", NAME]) == 2
    assert capsys.readouterr().err.strip() == f"ditscope reproduce: {NAME}: this machine cannot run it: it has no GPU"
    monkeypatch.setattr(command, "this_machine", lambda: Machine((24000,), 8000, 10**6))
    assert main(["reproduce", NAME]) == 2
    assert "flux-dev takes 3" in (error := capsys.readouterr().err) and "GPUs of 24" in error
    monkeypatch.setattr(command, "this_machine", lambda: Machine((80000,), 200000, 10**6))
    assert command.cannot_run(read_config([overlay_of(read_published(NAME))])) == ""


def test_a_table_of_another_form_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    head = "source: https://x\nhardware: h\noverlay: experiments/tiny.yaml\n"
    row = "rows:\n  a: {model: m, scheme: base, metric: ssim, value: 0.9}\n"
    for text, said in (
        (head + row, "the required key `tolerances` is missing"),
        (head + row + "tolerances: {psnr_db: 1}\n", "rows.a: no tolerance above 0 for ssim"),
        (head + row + "tolerances: {ssim: 0}\n", "rows.a: no tolerance above 0 for ssim"),
        (head + row.replace("ssim", "fid") + "tolerances: {fid: 1}\n", "metric"),
        (head + row + "tolerances: {ssim: 1}\nnotes: x\n", "notes"),
    ):
        (tmp_path / "t.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            read_published("t")
    (tmp_path / "t.yaml").write_text(head + row + "tolerances: {ssim: 1}\n")
    lacking = without_run(read_published("t"), read_config([overlay_of(read_published("t"))]))
    assert lacking == {"a": "no model m"}
