"""The doctor's check of a refiner: a sound one has no findings, and each falsified value of its own tables has one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from ditscope.config_files import read_config
from ditscope.core.study import Study
from ditscope.refine.check import check_refine
from ditscope.refine.codebook import build_codebook
from ditscope.refine.data_settings import Source
from ditscope.refine.diagnose import diagnose
from ditscope.refine.prepare import prepare
from ditscope.refine.settings import Refine, Refiner
from ditscope.refine.train import train
from loose_tables import write_loosely
from mutations import column_mutants, row_mutants
from workflow import ROOT

SOURCE = Source(kind="mazes", count=60, rooms=3, path_steps=9, held_out=0.3, held_out_by="sample")
SETTINGS = replace(
    Refine(), refiners=["paths"], patch=1, interpolation="linear", endpoints=True, levels=2, min_keys=2, codes=2,
    mae_steps=3, mae_batch=4, mae_width=8, mae_scales=2, steps=3, width=16, depth=1, heads=2, classes_per_step=2,
    generated_per_class=2, gallery=1, top_k=2, evaluated=9,
)  # fmt: skip
FILES = {
    "diagnostics": "diagnostics.parquet", "neighbours": "neighbours.parquet", "tsne": "tsne.parquet",
    "evaluation": "evaluation.parquet", "gallery": "gallery.parquet", "pictures": "gallery", "overview": "overview.png",
    "exemplars": "exemplars.png", "record": "record.json", "record_timing": "record.timing.json", "page": "record.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """A study of one refiner of paths: nothing of it needs a picture model."""
    results = tmp_path_factory.mktemp("study") / "results" / "tiny"
    place = results / "refine" / "paths"
    data = place / "samples.parquet", place / "data.json"
    prepare({}, *data, place / "data", source=SOURCE)
    codes = place / "codebook.safetensors", place / "assignments.parquet"
    build_codebook(*data, *codes, SETTINGS)
    names = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
    trained = [place / name for name in names]
    own = replace(SETTINGS, refiners=[])
    train(*data, *codes, *trained, settings=own)
    diagnose("paths", *data, codes[1], *trained, **{k: place / v for k, v in FILES.items()}, models={}, embedders={},
             settings=own)  # fmt: skip
    config = replace(
        read_config([ROOT / "experiments/tiny.yaml"]), refine=SETTINGS, refiners={"paths": Refiner(SOURCE)}
    )
    files = [
        *names,
        "codebook.safetensors",
        "assignments.parquet",
        "samples.parquet",
        "data.json",
        "data",
        *FILES.values(),
    ]
    targets = [f"results/{config.experiment}/refine/paths/{name}" for name in files]
    return Study(results, {"targets": {"refine": targets}, "upstream": {}}, config)


def findings(study: Study) -> list[str]:
    """What the check says of the study as it lies there."""
    fresh = Study(study.results, study.plan, study.config, computed=study.computed)
    check_refine(fresh)
    return [f"{finding.file}: {finding.problem}" for finding in fresh.findings]


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was."""
    whole = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_a_sound_refiner_has_no_findings(study):
    assert findings(study) == []


@pytest.mark.parametrize("name", ["evaluation", "gallery", "diagnostics", "training.timing"])
def test_every_falsified_column_is_found(study, name):
    path = study.results / "refine" / "paths" / f"{name}.parquet"
    table, unseen = pl.read_parquet(path), set()
    kind = pl.read_parquet_metadata(path)["table"]
    with kept(path):
        mutants = [(column, *mutant) for column in table.columns for mutant in column_mutants(table, column)]
        mutants += [("a row", *mutant) for mutant in row_mutants(table)]
        for column, what, mutant in mutants:
            write_loosely(mutant, path, kind)
            if not findings(study):
                unseen.add((column, what.split(" in ")[0]))
    assert {column for column, _ in unseen} <= {"seconds"}, unseen


def test_numbers_of_what_is_not_computed_again_must_agree_among_themselves(study):
    """As of the oracle: here a metric is renamed to one that the check does not compute."""
    path = study.results / "refine" / "paths" / "evaluation.parquet"
    table = pl.read_parquet(path)
    kind = pl.read_parquet_metadata(path)["table"]
    renamed = table.with_columns(
        metric=pl.when(pl.col("metric") == "off_walls").then(pl.lit("oracle_all")).otherwise(pl.col("metric"))
    )
    with kept(path):
        write_loosely(pl.concat([table, renamed.filter(metric="oracle_all")]), path, kind)
        assert [f for f in findings(study) if "evaluation" in f] == []
        for column in ("value", "gain", "low"):
            wrong = renamed.filter(metric="oracle_all").with_columns(pl.col(column) + 2)
            write_loosely(pl.concat([table, wrong]), path, kind)
            assert any("evaluation" in f for f in findings(study)), column


def test_records_pages_and_pictures_are_seen(study):
    place = study.results / "refine" / "paths"
    for file, change in (
        ("record.json", lambda text: text.replace('"decision": "drop"', '"decision": "keep"')),
        ("record.timing.json", lambda text: text.replace('"refiner": "paths"', '"refiner": "other"')),
        ("record.html", lambda text: text[: len(text) // 2]),
    ):
        with kept(place / file):
            told = (place / file).read_text()
            (place / file).write_text(change(told))
            assert told != (place / file).read_text()
            assert any(file in finding for finding in findings(study)), file
    assert json.loads((place / "record.json").read_text())["header"]["refiner"] == "paths"
    picture = next((place / "gallery").iterdir())
    with kept(picture):
        picture.write_bytes(picture.read_bytes()[:-20])
        assert any("gallery" in finding for finding in findings(study))
    shutil.move(picture, place / "away.png")
    assert any("gallery" in finding for finding in findings(study))
    shutil.move(place / "away.png", picture)
    assert findings(study) == []
