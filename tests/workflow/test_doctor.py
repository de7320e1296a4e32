"""The doctor: a finished study is sound; every kind of damage is found, named and fixed by the command it gives."""

import io
import json
import shlex
import shutil
import tarfile
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

import workflow
from ditscope import cli
from ditscope.core.checksums import FOLDER, read_record, record_checksums
from ditscope.core.errors import InputError
from ditscope.core.scratch import unfinished
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.study import Finding
from ditscope.workflow.doctor import CHECKS, doctor, examine, fixes
from ditscope.workflow.estimate import parse_job_stats
from loose_tables import write_loosely
from mutations import replaced

CONTENTS = [name for name in CHECKS if name != "checksums"]  # what is found without recorded digests
MODEL = "shapes-flux"


@pytest.fixture
def results(study, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny study's results, where the workflow's relative paths hold."""
    monkeypatch.chdir(study)
    return Path(shutil.copytree(study / "results/tiny", tmp_path / "tiny"))


def findings_of(results: Path, checks: list[str] = CONTENTS) -> list[Finding]:
    return examine(results, checks).findings


def one(folder: Path, glob: str) -> Path:
    """The first file of a kind."""
    return sorted(folder.glob(glob))[0]


# Ways to damage a file ------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


def rewrite(path: Path, change) -> None:
    """Write a table again, under its own name, with other rows."""
    write_loosely(change(pl.read_parquet(path)), path, pl.read_parquet_metadata(path)["table"])


def without_row(number: int):
    return lambda table: table.filter(pl.int_range(pl.len()) != number)


def with_value(column: str, value):
    """Replace a column's first value."""

    def change(table):
        values = table[column].to_list()
        return table.with_columns(pl.Series(column, [value, *values[1:]], table.schema[column]))

    return change


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def of_version(path: Path, version: str) -> None:
    name = pl.read_parquet_metadata(path)["table"]
    pl.read_parquet(path).write_parquet(path, metadata={"table": name, "schema_version": version})


def exchange_pictures(path: Path) -> None:
    first, second, *others = read_tar(path)
    first["png"], second["png"] = second["png"], first["png"]
    write_tar([first, second, *others], path)


def member_offset(path: Path, suffix: str) -> int:
    """Where the data of a tar's first member of a kind begins."""
    with tarfile.open(path) as tar:
        return next(member.offset_data for member in tar if member.name.endswith(suffix))


def npz_with_nan(path: Path) -> None:
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["x"][0, 0, 0, 0] = np.nan
    np.savez(path, **arrays)


def npz_without(path: Path, key: str) -> None:
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist() if name != f"{key}.npy"}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)


def empty_catalog(path: Path) -> None:
    path.unlink()
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE TABLE prompts (prompt VARCHAR)")


def in_catalog(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as database:
        for statement in statements:
            database.execute(statement)


def catalog_without_key(path: Path) -> None:
    in_catalog(
        path,
        "CREATE TABLE others AS SELECT * FROM prompts",
        "DROP TABLE prompts",
        "ALTER TABLE others RENAME TO prompts",
    )


def tar_without_last(path: Path) -> None:
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    last = members[-1][0].name.partition(".")[0]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            if not member.name.startswith(last):
                tar.addfile(member, io.BytesIO(data))


SHARD = f"images/{MODEL}/shard-00000"
STEP = f"captures/{MODEL}/all/*/intermediates/step_000.safetensors"
NPZ = f"calibration/{MODEL}/shards/00000/00000_001.npz"
WALK = "trajectories/flux-blip/shard-00000.parquet"
# name: (file, damage, stage and words of the finding)
DAMAGE = {
    "image shard truncated": (f"{SHARD}.tar", truncate, "generate", "not a readable tar shard (cut before its end)"),
    "image shard without an image": (
        f"{SHARD}.tar",
        tar_without_last,
        "generate",
        "lacks 1 of 2 images of the manifest",
    ),
    "a picture's byte flipped": (
        f"{SHARD}.tar",
        lambda p: flip(p, member_offset(p, ".png") + 99),
        "generate",
        "is not the one of the manifest (sha256)",
    ),
    "a record's byte flipped": (
        f"{SHARD}.tar",
        lambda p: flip(p, member_offset(p, ".json") + 13),  # `torch` becomes `dorch`
        "generate",
        "differs from its row of the manifest",
    ),
    "image shard missing": (f"{SHARD}.tar", Path.unlink, "generate", "missing"),
    "image shard empty": (f"{SHARD}.tar", lambda p: p.write_bytes(b""), "generate", "empty"),
    "manifest without a row": (
        f"{SHARD}.parquet",
        lambda p: rewrite(p, without_row(1)),
        "generate",
        "lacks 1 of 2 runs of the prompt shard",
    ),
    "manifest of another schema": (f"{SHARD}.parquet", lambda p: of_version(p, "0"), "generate", "schema version 0"),
    "manifest truncated": (f"{SHARD}.parquet", truncate, "generate", "not a readable Parquet file"),
    "manifest without a column": (
        f"{SHARD}.parquet",
        lambda p: rewrite(p, lambda t: t.drop("png_sha256")),
        "generate",
        "lacks the column `png_sha256`",
    ),
    "manifest of another revision": (
        f"{SHARD}.parquet",
        lambda p: rewrite(p, with_value("revision", "abc")),
        "generate",
        "made with revision 'abc'; the config says ''",
    ),
    "manifest with an edited seed": (
        f"{SHARD}.parquet",
        lambda p: rewrite(p, with_value("seed", 77)),
        "generate",
        "the request hash is not that of its row",
    ),
    "timing of fewer images": (
        f"{SHARD}.timing.parquet",
        lambda p: rewrite(p, with_value("images", 1)),
        "generate",
        "times 1 images of 2",
    ),
    "prompt shard without a row": (
        "prompts/shard-00000.parquet",
        lambda p: rewrite(p, without_row(0)),
        "prompts",
        "lacks 1 of 2 runs of the CSV",
    ),
    "column of another type": (
        "drift/drift.parquet",
        lambda p: rewrite(p, lambda t: t.with_columns(pl.col("shuffle").cast(pl.Int32))),
        "drift",
        "column `shuffle` is Int32, not Int64",
    ),
    "column that its stage does not declare": (
        "clusters/returns.parquet",
        lambda p: rewrite(p, lambda t: t.with_columns(mine=1)),
        "cluster",
        "has a column `mine` that the table `clusters.returns` does not declare",
    ),
    "rows of one key": (
        "topology/entropy.parquet",
        lambda p: rewrite(p, lambda t: pl.concat([t, t.head(1)])),
        "topology",
        "has rows of one key (embedder, network, run_id, dimension) twice",
    ),
    "another table in its place": (
        "prompts/shard-00000.parquet",
        lambda p: write_loosely(pl.DataFrame({"a": [1]}), p, "images"),
        "prompts",
        "holds the table `images`, not `prompts`",
    ),
    "captured tensors truncated": (STEP, truncate, "capture", "truncated safetensors"),
    "captured tensors flipped": (STEP, flip, "capture", "not the file that was captured (sha256)"),
    "captured tensors missing": (STEP, Path.unlink, "capture", "missing from the capture"),
    "capture's metadata cut": (f"captures/{MODEL}/all/*/intermediates/metadata.json", truncate, "capture", "not JSON"),
    "capture of another revision": (
        f"captures/{MODEL}/all/*/intermediates/metadata.json",
        lambda p: edit(p, revision="abc"),
        "capture",
        "made with revision 'abc'",
    ),
    "captured statistics without a block": (
        f"captures/{MODEL}/all/*/statistics.parquet",
        lambda p: rewrite(p, lambda t: t.filter(pl.col("block") != t["block"][0])),
        "capture",
        "steps and blocks",
    ),
    "decoded picture truncated": (
        f"captures/{MODEL}/all/*/intermediates/decoded/*/*.jpg",
        truncate,
        "capture",
        "not a readable picture",
    ),
    "captured generation missing": (
        f"captures/{MODEL}/all/*/img_0.jpg",
        lambda p: shutil.rmtree(p.parent),
        "capture",
        "holds 0 generations of 1",
    ),
    "calibration sample truncated": (NPZ, truncate, "calibrate", "truncated or damaged NPZ"),
    "calibration sample flipped": (NPZ, flip, "calibrate", "00000_001.npz"),
    "calibration sample missing": (NPZ, Path.unlink, "calibrate", "no such calibration sample"),
    "calibration sample with NaN": (NPZ, npz_with_nan, "calibrate", "has NaN or infinite values"),
    "calibration sample without a key": (
        NPZ,
        lambda p: npz_without(p, "conditioning"),
        "calibrate",
        "key `conditioning` is missing",
    ),
    "calibration image truncated": (
        f"calibration/{MODEL}/shards/00000/images/00000.png",
        truncate,
        "calibrate",
        "not a readable picture",
    ),
    "calibration of other steps": (
        f"calibration/{MODEL}/manifest.json",
        lambda p: edit(p, num_steps=9),
        "calibrate",
        "made with num_steps 9, the config says 4",
    ),
    "calibration manifest of another schema": (
        f"calibration/{MODEL}/manifest.json",
        lambda p: edit(p, schema_version="9"),
        "calibrate",
        "schema version 9",
    ),
    "activations without a step": (
        f"calibration/{MODEL}/activations.parquet",
        lambda p: rewrite(p, without_row(3)),
        "calibrate",
        "layers and steps, as (",
    ),
    "activations of fewer channels": (
        f"calibration/{MODEL}/activations.parquet",
        lambda p: rewrite(p, lambda t: t.with_columns(pl.col("channel_max").list.head(2))),
        "calibrate",
        "column `channel_max` has not one value per channel",
    ),
    "fast sensitivity missing": (f"sensitivity/{MODEL}/fast-000.parquet", Path.unlink, "sensitivity", "missing"),
    "sensitivity with NaN": (
        "sensitivity/sensitivity.parquet",
        lambda p: rewrite(p, with_value("value", float("nan"))),
        "sensitivity",
        "column `value` has NaN",
    ),
    "sensitivity without a cell": (
        "sensitivity/sensitivity.parquet",
        lambda p: rewrite(p, without_row(5)),
        "sensitivity",
        "cells of",
    ),
    "sensitivity other than its parts": (
        "sensitivity/sensitivity.parquet",
        lambda p: rewrite(p, with_value("value", 1.5)),
        "sensitivity",
        "differs from the layers-*.parquet that it gathers",
    ),
    "plan of unmeasured bits": (
        f"plans/{MODEL}/4bit.json",
        lambda p: edit(p, layers=dict.fromkeys(json.loads(p.read_text())["layers"], 7)),
        "plan",
        "chooses 7 bits, which were not measured",
    ),
    "plan without layers": (f"plans/{MODEL}/4bit.json", lambda p: edit(p, layers={}), "plan", "measured layers"),
    "plan of another group size": (
        f"plans/{MODEL}/4bit.json",
        lambda p: edit(p, group_size=64),
        "plan",
        "sensitivity was measured with",
    ),
    "benchmark images of another run": (
        f"benchmarks/{MODEL}/*/base-eager.tar",
        exchange_pictures,
        "benchmark",
        "its images are not those of its table (sha256)",
    ),
    "benchmark of other steps": (
        f"benchmarks/{MODEL}/*/base-eager.parquet",
        lambda p: rewrite(p, with_value("steps", 9)),
        "benchmark",
        "made with steps 9, the config says 4",
    ),
    "benchmark without a run": (
        "benchmarks/benchmark.parquet",
        lambda p: rewrite(p, without_row(0)),
        "benchmark",
        "lacks 1 of 3 runs",
    ),
    "benchmark run missing": (f"benchmarks/{MODEL}/*/base-eager.parquet", Path.unlink, "benchmark", "missing"),
    "trajectory with a gap": (WALK, lambda p: rewrite(p, without_row(1)), "trajectories", "has gaps or doubled states"),
    "trajectory without a run": (
        WALK,
        lambda p: rewrite(p, lambda t: t.filter(pl.col("run_id") == t["run_id"][0])),
        "trajectories",
        "lacks 1 of 2 prompts",
    ),
    "trajectory images truncated": (WALK.replace("parquet", "tar"), truncate, "trajectories", "not a readable tar"),
    "embeddings without a state": (
        "embeddings/random-walk/flux-blip-00000.parquet",
        lambda p: rewrite(p, without_row(0)),
        "embed",
        "states of the trajectories",
    ),
    "embeddings with NaN": (
        "embeddings/random-walk/flux-blip-00000.parquet",
        lambda p: rewrite(p, with_value("vector", [float("nan")] * 64)),
        "embed",
        "column `vector` has NaN",
    ),
    "a vector of zeros": (
        "embeddings/minilm/flux-blip-00000.parquet",
        lambda p: rewrite(p, lambda t: replaced(t, "vector", {1: [0.0] * 384})),
        "embed",
        "vectors are zero",
    ),
    "no vector": (
        "embeddings/minilm/flux-blip-00000.parquet",
        lambda p: rewrite(p, lambda t: replaced(t, "vector", {1: None})),
        "embed",
        "column `vector` holds nothing in 1 rows, as row 2",
    ),
    "a vector with an empty place": (
        "embeddings/minilm/flux-blip-00000.parquet",
        lambda p: rewrite(p, lambda t: replaced(t, "vector", {1: [None] * 384})),
        "embed",
        "column `vector` has empty values in its lists",
    ),
    "embeddings of another modality": (
        "embeddings/minilm/flux-blip-00000.parquet",
        lambda p: rewrite(p, lambda t: t.with_columns(modality=pl.lit("image"))),
        "embed",
        "column `modality`",
    ),
    "equal states with other vectors": (
        "embeddings/minilm/flux-blip-00000.parquet",
        lambda p: rewrite(p, lambda t: replaced(t, "vector", {1: t["vector"][1].to_list()[::-1]})),
        "embed",
        "are one state with two vectors",
    ),
    "a chain of inputs that is broken": (
        WALK,
        lambda p: rewrite(p, lambda t: replaced(t, "input_key", {2: "0" * 32})),
        "trajectories",
        "column `input_key`",
    ),
    "a reason to stop that is none": (
        WALK,
        lambda p: rewrite(
            p, lambda t: replaced(t, "stop_reason", {0: {"length": "repeat"}.get(t["stop_reason"][0], "length")})
        ),
        "trajectories",
        "column `stop_reason`",
    ),
    "a loop of another length": (
        WALK,
        lambda p: rewrite(p, lambda t: replaced(t, "loop_length", {0: 77})),
        "trajectories",
        "column `loop_length`",
    ),
    "diagrams without those of a run": (
        "topology/diagrams.parquet",
        lambda p: rewrite(p, lambda t: t.filter(pl.col("run_id") != t["run_id"][0])),
        "topology",
        "its inputs give",
    ),
    "clusters without a state": (
        "clusters/clusters.parquet",
        lambda p: rewrite(p, without_row(0)),
        "cluster",
        "lacks 1 of",
    ),
    "topology without a run": (
        "topology/entropy.parquet",
        lambda p: rewrite(p, lambda t: t.filter(pl.col("run_id") != t["run_id"][0])),
        "topology",
        "its inputs give",
    ),
    "refiner truncated": (f"refine/{MODEL}/refiner.safetensors", truncate, "refine", "truncated safetensors"),
    "refiner of other settings": (
        f"refine/{MODEL}/record.json",
        lambda p: edit(p, settings=json.loads(p.read_text())["settings"] | {"width": 7}),
        "refine",
        "made with width 7, the config says 96",
    ),
    "training without a step": (
        f"refine/{MODEL}/training.parquet",
        lambda p: rewrite(p, lambda t: t.filter(pl.col("step") != 2)),
        "refine",
        "networks with all their logged steps",
    ),
    "video truncated": ("videos/trajectories.gif", truncate, "video", "trajectories.gif"),
    "page of a video truncated": ("videos/trajectories.html", truncate, "video", "does not end with </html>"),
    "timeline truncated": ("videos/timelines/*.png", truncate, "video", "not a readable picture"),
    "figure truncated": ("figures/drift-curves.svg", truncate, "publish", "not well-formed XML"),
    "figure's data ragged": (
        "figures/drift-curves.csv",
        lambda p: p.write_text(p.read_text() + "a\n"),
        "publish",
        "different numbers of fields",
    ),
    "explorer truncated": ("explorer.html", truncate, "publish", "does not end with </html>"),
    "catalog without a key": (
        "catalog.duckdb",
        catalog_without_key,
        "publish",
        "has not the primary key (prompt_id, seed)",
    ),
    "catalog with other rows": (
        "catalog.duckdb",
        lambda p: in_catalog(
            p, "UPDATE prompts SET prompt = 'x' WHERE prompt_id = (SELECT min(prompt_id) FROM prompts)"
        ),
        "publish",
        "table prompts differs in 1 rows",
    ),
    "catalog without a view": (
        "catalog.duckdb",
        lambda p: in_catalog(p, "DROP VIEW runs"),
        "publish",
        "view runs is missing",
    ),
    "catalog with another view": (
        "catalog.duckdb",
        lambda p: in_catalog(p, "CREATE OR REPLACE VIEW runs AS SELECT prompt_id, seed FROM prompts"),
        "publish",
        "view runs does not give what its tables do",
    ),
    "catalog without tables": ("catalog.duckdb", empty_catalog, "publish", "rows of"),
    "a file that nobody made": (
        f"{SHARD}.tar",
        lambda p: p.with_name("notes.txt").write_text("x"),
        "leftovers",
        "no job of the workflow makes this file",
    ),
    "a shard of an earlier config": (
        f"{SHARD}.tar",
        lambda p: shutil.copyfile(p, p.with_name("shard-00077.tar")),
        "leftovers",
        "this config asks for no such output",
    ),
    "a half-written file": (
        f"{SHARD}.tar",
        lambda p: shutil.copyfile(p, p.with_name("shard-00000.tar.partial")),
        "leftovers",
        "half-written",
    ),
    "unfinished work of a finished job": (
        f"{SHARD}.tar",
        lambda p: unfinished(p.parents[2] / ".partial" / "image_shard-0", f"results/tiny/{SHARD}.tar", {}),
        "leftovers",
        "which is finished",
    ),
}


def test_finished_study_is_sound(results, tmp_path, capsys):
    doctor(results, tmp_path / "report.json")
    assert capsys.readouterr().out == f"{results}: sound ({len(CHECKS)} checks)\n"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"] == [] and report["fix"] == []


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_by_contents_alone(results, case):
    glob, damage, stage, words = DAMAGE[case]
    damage(one(results, glob))
    checks = {"files", "leftovers", stage}
    hits = [f for f in findings_of(results, sorted(checks)) if f.stage == stage and words in f"{f.file}: {f.problem}"]
    assert hits, f"not found, but {findings_of(results)}"
    assert all("\n" not in finding.problem for finding in hits)


@pytest.mark.parametrize(
    "glob",
    [
        f"{SHARD}.tar",
        f"{SHARD}.timing.parquet",
        NPZ,
        STEP,
        "tables/drift.tex",
        "catalog.duckdb",
        "videos/trajectories.gif",
    ],
)
@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_one_flipped_bit_anywhere_is_found_by_its_digest(results, glob, place):
    path = one(results, glob)
    flip(path, int(path.stat().st_size * place))
    (finding,) = findings_of(results, ["checksums"])
    assert finding.file == path.relative_to(results).as_posix() and "(sha256)" in finding.problem


def test_every_output_of_every_job_has_a_recorded_digest(results):
    records = [read_record(path) for path in (results / FOLDER).rglob("*.json")]
    recorded = {file for record in records for file in record["files"]}
    own = ("logs/", ".benchmarks/", ".checksums/", ".partial/", "plan.json", "progress.md")
    names = {p.relative_to(results).as_posix() for p in results.rglob("*") if p.is_file()}
    names = {n for n in names if not n.startswith(own) and not n.endswith(".snakemake_timestamp")}
    assert names == recorded - {"plan.json"}


def test_a_file_added_to_a_directory_is_found_by_the_record(results):
    extra = one(results, f"captures/{MODEL}/all/*/") / "extra.jpg"
    extra.write_bytes(b"x")
    (finding,) = findings_of(results, ["checksums"])
    assert finding.problem == "no job left this file" and finding.remove.endswith("/extra.jpg")


def test_of_two_jobs_that_left_a_file_the_later_one_counts(results):
    """A job of other outputs has a record of its own: the figures, once their formats change."""
    table = one(results, "tables/drift.md")
    table.write_text(table.read_text() + " ")
    record_checksums(results, "paper_tables", [table])
    assert [finding.problem for finding in findings_of(results, ["checksums"])] == []


def test_a_damaged_record_is_a_finding(results):
    one(results / FOLDER, "*/*.json").write_text('{"files": {"../../etc/passwd": {}}}')
    record, *outputs = findings_of(results, ["checksums"])
    assert "not inside the study" in record.problem
    assert outputs and all("no digest of it is recorded" in finding.problem for finding in outputs)


def test_records_replace_those_of_an_earlier_run(tmp_path):
    (tmp_path / "a").write_text("1")
    record_checksums(tmp_path, "rule", [tmp_path / "a", "elsewhere"])
    (tmp_path / "a").write_text("22")
    record_checksums(tmp_path, "rule", [tmp_path / "a", "elsewhere"])
    (record,) = (tmp_path / FOLDER / "rule").iterdir()
    assert read_record(record)["files"]["a"]["bytes"] == 2


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": "1", "targets": {}, "rules": {}, "config": 3}'])
def test_a_broken_plan_is_one_line(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: ") as refused:
        doctor(tmp_path)
    assert "\n" not in str(refused.value)


def test_unknown_check_is_refused(tmp_path):
    with pytest.raises(InputError, match="checks: `x` is not a check; valid: files"):
        doctor(tmp_path, checks=["x"])


def test_command_ends_with_status_and_says_what_to_do(results, capsys):
    (results / "topology/entropy.parquet").unlink()
    (results / "notes.txt").write_text("x")
    assert cli.main(["doctor", "--results", str(results), "--checks", "files", "leftovers"]) == 2
    out, err = capsys.readouterr()
    assert "topology: topology/entropy.parquet: missing\n" in out
    assert "  rm -r results/tiny/notes.txt\n  snakemake --profile local " in out
    assert "2 findings" in err


def test_the_command_it_gives_fixes_the_study(study, tmp_path, monkeypatch):
    clone = workflow.checkout(tmp_path / "clone")
    for name in ("results", ".snakemake"):
        shutil.copytree(study / name, clone / name, symlinks=True)
    monkeypatch.chdir(clone)
    results = Path("results/tiny")
    flip(results / "topology/entropy.parquet")
    truncate(results / "explorer.html")
    (results / "notes.txt").write_text("x")
    checks = ["files", "drift", "cluster", "topology", "publish", "leftovers", "checksums"]
    remove, again = (shlex.split(command) for command in fixes(examine(results, checks)))
    assert remove == ["rm", "-r", "results/tiny/notes.txt"]
    Path(remove[2]).unlink()
    assert again[:5] == ["snakemake", "--profile", "local", "--configfile", "experiments/tiny.yaml"]
    done = workflow.snakemake(clone, *again[1:], root=clone, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    ran = {rule: count for rule, count in parse_job_stats(done.stdout).items() if rule != "all"}
    assert ran == dict.fromkeys(("topology", "figures", "answers", "captions", "catalog", "explorer"), 1)
    assert findings_of(results, checks) == []
