"""What the docs tell to add, to ditscope and of one's own: added to a checkout, and run on the tiny study."""

import re
from pathlib import Path

import polars as pl
import pytest
from safetensors import safe_open

from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table
from ditscope.workflow.estimate import parse_job_stats
from tiny_pipelines import save_tiny_auraflow
from workflow import ROOT, reclone, snakemake

PAGES = ("add-an-analysis", "add-a-scheme", "add-a-model")
# A paragraph that ends in a colon and says where the code below it goes.
BLOCK = re.compile(r"^(?P<lead>[^\n]+:)\n\n```\w+\n(?P<code>.*?)```$", re.M | re.S)
NEW = re.compile(r"`([\w./-]+\.(?:py|yaml|rst))`[^`]*:$")
APPENDED = re.compile(r"At the end of `([\w./-]+)`:$")
INSERTED = re.compile(r"In `([\w./-]+)`, below `(.+)`:$")


def edits(page: str) -> list[tuple[str, str | None, str]]:
    """File, the line that the code goes below (None: a new file; empty: its end), and code, of each block of a page."""
    blocks = []
    for block in BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text()):
        lead, code = block["lead"], block["code"]
        if inserted := INSERTED.search(lead):
            blocks.append((inserted[1], inserted[2], code))
        elif appended := APPENDED.search(lead):
            blocks.append((appended[1], "", code))
        elif new := NEW.search(lead):
            blocks.append((new[1], None, code))
    return blocks


@pytest.fixture
def added(study, tmp_path):
    """A function that gives the tiny study in a checkout of its own, with all that a page tells to add."""

    def add(page: str) -> Path:
        clone = reclone(study, tmp_path / "clone")
        for name, below, code in edits(page):
            file = clone / name
            file.parent.mkdir(exist_ok=True)
            if below is None:
                assert not file.exists(), f"{name} is there already"
                file.write_text(code)
            elif below:
                text = file.read_text()
                assert text.count(f"{below}\n") == 1, f"{name}: `{below}`"
                file.write_text(text.replace(f"{below}\n", f"{below}\n{code}"))
            else:
                file.write_text(f"{file.read_text()}\n\n{code}")
        return clone

    return add


def run(clone: Path, *arguments: str) -> str:
    """Run Snakemake on a checkout's tiny study; what is there and was not made again by the page's doing stays."""
    done = snakemake(clone, *arguments, "--cores", "2", "--rerun-triggers", "mtime", root=clone)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def overlays(name: str) -> tuple[str, ...]:
    return "--configfile", "experiments/tiny.yaml", f"experiments/{name}.yaml"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_added_to_ditscope_is_at_most_three_files(page):
    files = {name for name, _, _ in edits(page)}
    ours = {name for name in files if name.startswith(("scripts/", "rules/", "report/"))}
    assert 1 <= len(ours) <= 3 and any(name.startswith("my_package/") for name in files)


@pytest.mark.system
def test_an_analysis(added):
    clone = added("add-an-analysis")
    run(clone, *overlays("half-drift"), "--config", "stages=[drift,analyse,publish]")
    results = clone / "results/tiny"
    table = read_table(results / "analysis/half-drift.parquet", "analysis.half-drift")
    drift = read_table(results / "drift/drift.parquet", "drift").filter(pl.col("control").cast(pl.String) == "observed")
    for row in table.iter_rows(named=True):  # against a plain loop
        run_of = drift.filter(*(pl.col(key) == row[key] for key in ("embedder", "network", "run_id")))
        steps = run_of.drop_nulls("cosine_distance").sort("sequence_number")
        most = max(steps["cosine_distance"])
        far = [n for n, d in steps.select("sequence_number", "cosine_distance").rows() if d >= 0.8 * most]
        assert row["sequence_number"] == far[0]
    assert len(table) == drift.select("embedder", "network", "run_id").n_unique()
    figures = {path.name for path in (results / "figures").glob("*.svg")}
    assert {"half-drift.svg", "drift-ends.svg"} <= figures
    import duckdb

    with duckdb.connect(str(results / "catalog.duckdb"), read_only=True) as database:
        assert database.execute('SELECT count(*) FROM "analysis_half-drift"').fetchone() == (len(table),)
    only = ("results/tiny/analysis/half-drift.parquet", *overlays("half-drift"))
    only += ("--allowed-rules", "analysis", "--dry-run")
    assert "analysis" not in parse_job_stats(snakemake(clone, *only, root=clone).stdout)
    module = clone / "my_package/half_drift.py"
    module.write_text(module.read_text().replace("far.group_by", "far.lazy().collect().group_by"))
    assert parse_job_stats(snakemake(clone, *only, root=clone).stdout)["analysis"] == 1


@pytest.mark.system
def test_a_scheme(added):
    clone = added("add-a-scheme")
    overlay = clone / "experiments/symmetric.yaml"
    lines = "schemes:\n  asymmetric: {kind: int8-asymmetric, group_size: 32}\n"
    overlay.write_text(overlay.read_text().replace("schemes:\n", lines, 1))
    names = ("symmetric-4", "asymmetric")
    weights = [f"results/tiny/checkpoints/shapes-flux/{name}.safetensors" for name in names]
    run(clone, *weights, *overlays("symmetric"))
    for name, path in zip(names, weights, strict=True):
        with safe_open(clone / path, "pt") as file:
            assert name.partition("-")[0] in str(file.metadata()) and len(list(file.keys())) > 10


@pytest.mark.system
def test_models_of_every_kind(added):
    clone = added("add-a-model")
    save_tiny_auraflow(clone / "models/my-aura")
    overlay = clone / "experiments/own-models.yaml"
    builtin = "  aura: {family: dit, source: models/my-aura, width: 32, height: 32, steps: 2}\n"
    text = overlay.read_text().replace("models:\n", f"models:\n{builtin}", 1)
    overlay.write_text(text.replace("generate: {models: [my-aura]}", "generate: {models: [aura, my-aura]}"))
    images = [f"results/tiny/images/{name}/shard-00000.tar" for name in ("aura", "my-aura")]
    vectors = "results/tiny/embeddings/my-colours/flux-mine-00000.parquet"
    run(clone, *images, vectors, *overlays("own-models"))
    one, two = (list(read_tar(clone / path)) for path in images)
    assert [made["png"] for made in one] == [made["png"] for made in two] and len(one) == 2
    states = read_table(clone / "results/tiny/trajectories/flux-mine/shard-00000.parquet", "trajectories")
    said = states.filter(pl.col("type") == "TEXT", pl.col("sequence_number") >= 0)["output_text"].unique().to_list()
    assert said and set(said) <= {"a red circle", "a blue square", "a green star"}
    assert set(read_table(clone / vectors, "embeddings")["vector"].list.len()) == {12}
