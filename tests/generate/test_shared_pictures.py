"""Runs that ask for the same picture share it, and every table keeps a row for each of them."""

import hashlib
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import workflow
from ditscope.ablate.settings import Ablate
from ditscope.ablate.stage import ablate
from ditscope.benchmark.images import read_images
from ditscope.benchmark.run import generate_images
from ditscope.blocks.stage import blocks
from ditscope.capture.check import check_capture
from ditscope.capture.files import captures_in, read_metadata
from ditscope.capture.settings import Capture, CaptureSet
from ditscope.capture.stage import capture
from ditscope.config import Config
from ditscope.core.counts import check_complete
from ditscope.core.errors import IncompleteError
from ditscope.core.shards import read_tar, samples_of_runs, write_tar
from ditscope.core.study import Study
from ditscope.core.tables import read_table, write_table
from ditscope.generate.check import check_generate
from ditscope.generate.figures import image_grid
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.loading import load_generator
from ditscope.models.settings import Model
from ditscope.prompts.check import check_prompts
from ditscope.prompts.files import read_runs
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.refine.data_settings import Source
from ditscope.refine.samples import Damage
from ditscope.refine.sources.generated import samples

NAME, ENTRY = "shapes-flux", Model(family="flux", source="models/shapes-flux", width=32, height=32, steps=1)
RUNS = [("a", 0), ("b", 0), ("c", 0), ("d", 1)]  # a and c ask for the same picture; b for another, d for another seed


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "p.csv"
    ring, star = "a small red ring at the left", "a large blue star at the top"
    path.write_text(f"prompt_id,prompt,seed\na,{ring},0\nb,{star},0\nc,{ring},0\nd,{ring},1\n")
    return path


def runs_in(table: pl.DataFrame) -> list[tuple[str, int]]:
    return table.select("prompt_id", "seed").rows()


@pytest.mark.parametrize("slice_size", [1, 16])
def test_images_are_made_once_and_listed_for_every_run(prompts, tmp_path, slice_size):
    tar = tmp_path / "i.tar"
    generate(NAME, ENTRY, prompts, tar, settings=Generate(slice_size=slice_size))
    manifest, made = read_table(tmp_path / "i.parquet", "images"), list(read_tar(tar))
    assert runs_in(manifest) == RUNS
    assert len(made) == 3 and len({s["__key__"] for s in made}) == 3
    keys = manifest["key"].to_list()
    assert keys[0] == keys[2] and len(set(keys)) == 3
    digests = {s["__key__"]: hashlib.sha256(s["png"]).hexdigest() for s in made}
    assert manifest["png_sha256"].to_list() == [digests[key] for key in keys]
    assert manifest["prompt"].to_list() == [run["prompt"] for run in read_runs(prompts)]
    assert sum(read_table(tmp_path / "i.timing.parquet", "images.timing")["images"]) == 3, "pictures that were sampled"
    listed = [(s["json"]["prompt_id"], s["json"]["seed"]) for s in samples_of_runs(tar)]
    assert sorted(listed) == RUNS
    records = samples(Source(model=NAME), [tar], Damage("refuse"))
    assert sorted((r.prompt_id, r.seed) for r in records) == RUNS, "the refiner's data"
    _, drawn = image_grid({"generate": [tar]})
    assert sorted(runs_in(drawn)) == RUNS


def test_captures_are_made_once_and_their_tables_list_every_run(prompts, tmp_path):
    settings = CaptureSet(generations=3, blocks="double:0", decode=[])
    capture(NAME, ENTRY, tmp_path / "out", prompts=[prompts], settings=settings)
    folders = captures_in(tmp_path / "out")
    assert len(folders) == 2
    named = [[(run["prompt_id"], run["seed"]) for run in read_metadata(f)["runs"]] for f in folders]
    assert sorted(map(sorted, named)) == [[("a", 0), ("c", 0)], [("b", 0)]]
    for folder, runs in zip(folders, named, strict=True):
        counts = Counter(read_table(folder / "statistics.parquet", "capture_statistics")["prompt_id"])
        assert counts.keys() == {prompt_id for prompt_id, _ in runs} and len(set(counts.values())) == 1
    blocks(tmp_path / "out", tmp_path / "tables", {})
    for name in ("similarity", "residual"):
        counts = Counter(read_table(tmp_path / f"tables/{name}.parquet", f"blocks.{name}")["prompt_id"])
        assert counts.keys() == {"a", "b", "c"} and len(set(counts.values())) == 1


def test_ablation_has_a_row_for_every_run(prompts, tmp_path):
    out = tmp_path / "run.1"
    ablate(NAME, ENTRY, [prompts], out, {}, settings=Ablate(generations=0, blocks="double:0", kinds=["skip"]))
    table = read_table(out, "ablation")
    assert sorted(runs_in(table)) == RUNS
    psnr = dict(table.select("prompt_id", "psnr_db").rows())
    assert psnr["a"] == psnr["c"] != psnr["d"]
    assert len(list(read_tar(tmp_path / "run.1.tar"))) == 2, "the first run's own picture and the ablated one"


def test_benchmark_judges_an_image_for_every_run(prompts, tmp_path):
    samples = generate_images(load_generator(NAME, ENTRY, "cpu"), read_runs(prompts), 2, "base", "base")
    assert len(samples) == 3
    write_tar(samples, tmp_path / "base-eager.tar")
    assert sorted(read_images(tmp_path / "base-eager.parquet")) == RUNS


def test_outputs_that_are_named_after_a_stem_keep_the_whole_stem(prompts, tmp_path):
    for name in ("run.1", "run.2", "run.parquet", "run.tar"):
        generate(NAME, ENTRY, prompts, tmp_path / name)
    names = {path.name for path in tmp_path.iterdir()} - {prompts.name}
    stems = ("run.1", "run.2", "run.parquet", "run")
    wanted = {f"{stem}{suffix}" for stem in stems for suffix in (".parquet", ".timing.parquet")}
    assert names == wanted | {"run.1", "run.2", "run.tar"} and len(list(read_tar(tmp_path / "run.1"))) == 3


def test_rows_that_are_missing_doubled_or_unasked_are_named():
    check_complete("t.parquet", "rows", [1, 2, 2], [2, 1, 2])
    for left, message in (
        ([1, 2], "t.parquet: lacks 1 of 3 rows, as 2; this is a fault of ditscope"),
        ([1, 2, 2, 2], "t.parquet: has more than was asked for: 1 of 3 rows, as 2;"),
        ([1, 2, 2, 9], "t.parquet: has more than was asked for: 1 of 3 rows, as 9;"),
    ):
        with pytest.raises(IncompleteError) as raised:
            check_complete("t.parquet", "rows", [1, 2, 2], left)
        assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_stage_that_lost_a_row_writes_nothing(prompts, tmp_path, monkeypatch):
    import ditscope.generate.stage as module

    real = module.with_runs
    monkeypatch.setattr(module, "with_runs", lambda samples, groups: real(samples, groups)[1:])
    with pytest.raises(IncompleteError, match="lacks 2 of 4 runs"):
        generate(NAME, ENTRY, prompts, tmp_path / "i.tar")
    assert not (tmp_path / "i.tar").exists() and not (tmp_path / "i.parquet").exists()


def test_the_doctor_finds_a_study_with_shared_pictures_sound_and_a_lost_run(prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(workflow.workdir(tmp_path / "work"))
    results = Path("results/x")
    tables = results / "prompts/shard-00000.parquet"
    stage = Prompts(csv=str(prompts))
    write_shard(prompts, 0, tables, stage, "x")
    images = results / f"images/{NAME}/shard-00000"
    generate(NAME, ENTRY, tables, Path(f"{images}.tar"))
    settings = CaptureSet(generations=3, blocks="double:0", decode=[])
    capture(NAME, ENTRY, results / f"captures/{NAME}/all", prompts=[tables], settings=settings)
    config = Config(
        experiment="x", models={NAME: ENTRY}, prompts=stage, generate=Generate(models=[NAME]),
        capture=Capture(models=[NAME], sets={"all": settings}),
    )  # fmt: skip
    targets = {"prompts": tables, "generate": f"{images}.tar", "capture": results / f"captures/{NAME}/all"}
    plan = {"targets": {stage: [str(file)] for stage, file in targets.items()}, "upstream": {}}

    def findings() -> list[str]:
        study = Study(results, plan, config)
        for check in (check_prompts, check_generate, check_capture):
            check(study)
        return [finding.problem for finding in study.findings]

    assert findings() == []
    manifest = read_table(f"{images}.parquet", "images")
    write_table(manifest.filter(pl.col("prompt_id") != "c"), f"{images}.parquet", "images")
    assert any("lacks 1 of 4 runs of the prompt shard" in problem for problem in findings())
    assert any("differs from its row of the manifest" in problem for problem in findings()), "the shard lists run c"
