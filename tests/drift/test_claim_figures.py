"""Figures of claims: curves with their nulls where there is something to show, and the reason where there is not."""

import numpy as np
import polars as pl
import pytest

from ditscope.drift.figures import lifetimes_table
from ditscope.drift.stage import drift
from ditscope.publish.draw import function_of
from ditscope.publish.figures import FIGURES
from loose_tables import write_loosely
from state_tables import MODALITY, autoregressive, write_states
from workflow import ROOT

NAMES = ("drift_memory", "drift_displacement", "drift_divergence", "drift_jumps", "attribute_survival",
         "quantized_survival", "quantized_difference")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tables of eight prompts with fixed and with derived seeds, a network beside its int4; and of a single run."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 6))
    runs = {
        (embedder, network, f"p{p}/{seed}"): centres[p] + 0.5 * autoregressive(rng, 12, 6)
        for embedder in ("text-a", "image") for network in ("flux", "flux:int4") for p in range(8)
        for seed in ((0, 1, 1000, 1001) if network == "flux" else (0, 1))
    }  # fmt: skip
    paths = []
    for name, vectors in (("rich", runs), ("poor", {("text-a", "flux", "p0/0"): centres[:4]})):
        folder = tmp_path_factory.mktemp(name)
        drift(*write_states(folder, vectors, MODALITY), folder / "drift")
        paths.append({"drift": sorted((folder / "drift").glob("*.parquet"))})
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_claims_are_drawn_with_their_nulls(files, name):
    figure, table = function_of(name.replace("_", "-"))(files[0])
    figure.draw_without_rendering()
    axes = [axis for axis in figure.axes if axis.lines or axis.collections]
    assert axes and len(table)
    labels = {text.get_text() for page in figure.subfigs for legend in page.legends for text in legend.get_texts()}
    assert name not in ("drift_memory", "drift_displacement") or {"fixed seeds", "derived seeds"} <= labels
    if name in ("drift_memory", "drift_displacement"):
        assert any("p = " in axis.get_title() for axis in axes)


@pytest.mark.parametrize("name", NAMES)
def test_where_there_is_nothing_to_show_the_reason_is_said(files, name):
    figure, _ = function_of(name.replace("_", "-"))(files[1])
    (text,) = figure.texts
    assert not figure.axes and len(text.get_text()) > 20


def test_the_title_of_jumps_counts_the_runs_that_are_not_tested(tmp_path):
    step = {"embedder": "e", "network": "n", "sequence_number": 9, "size": 2.0, "threshold": 1.0, "jump": True}
    rows = [
        step | {"run_id": "a", "p_walk": 0.01},
        step | {"run_id": "b", "p_walk": 0.4},
        {"embedder": "e", "network": "n", "run_id": "c", "jump": False, "reason": "states are missing"},
    ]
    write_loosely(pl.DataFrame(rows, infer_schema_length=None), tmp_path / "jumps.parquet", "drift.jumps")
    figure, _ = function_of("drift-jumps")({"drift": [tmp_path / "jumps.parquet"]})
    (axis,) = (axis for page in figure.subfigs for axis in page.axes)
    title = " ".join(axis.get_title().split())
    assert title.endswith("more than a walk: 1 of 2 runs (up to 5 % by chance), 1 not tested")


def test_the_table_of_lifetimes_has_a_row_for_each_network_and_reader(files):
    table = lifetimes_table(files[0])
    assert table.select("network", "seeds", "what", "base").rows() == [
        (network, kind, what, "flux" if network == "flux:int4" else None)
        for network, kinds in (("flux", ("derived", "fixed")), ("flux:int4", ("fixed",)))
        for kind in kinds
        for what in ("image", "text-a")
    ]
    for row in table.iter_rows(named=True):
        assert row["low"] is None or row["low"] <= row["survival"] <= row["high"]
        assert (row["difference"] is None) == (row["base"] is None)
    assert lifetimes_table(files[1]).is_empty()


def test_claims_are_in_the_report():
    for name in NAMES:
        entry = FIGURES[name.replace("_", "-")]
        assert entry.stages == ("drift",) and (ROOT / f"report/{entry.caption}.rst").exists()
