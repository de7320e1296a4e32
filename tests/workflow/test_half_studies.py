"""One study on two machines: each makes what its models leave, one gets the other's files and makes the rest."""

import shutil

import polars as pl
import polars.selectors as cs
import pytest
from polars.testing import assert_frame_equal

import workflow
from ditscope.core.tables import read_table, write_table
from ditscope.workflow.doctor import examine
from ditscope.workflow.estimate import parse_job_stats

STUDY = ("--configfile", "experiments/tiny.yaml", "study.yaml")


def snakemake(folder, *arguments):
    done = workflow.snakemake(folder, "--cores", "1", *arguments, root=folder, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def machine(folder, models):
    """A checkout with the study's overlay, and one that selects the models of this machine."""
    workflow.checkout(folder)
    (folder / "study.yaml").write_text("prompts: {limit: 2}\n")
    (folder / "half.yaml").write_text(f"generate: {{models: [{models}]}}\n")
    return folder


@pytest.mark.system
def test_halves_of_a_study_join(tmp_path):
    first, second = machine(tmp_path / "first", "shapes-flux"), machine(tmp_path / "second", "shapes-sd3")
    snakemake(first, "prompts", *STUDY)
    shutil.copytree(first / "results", second / "results")
    for folder, other in ((first, "shapes-sd3"), (second, "shapes-flux")):
        snakemake(folder, "generate", *STUDY, "half.yaml")
        assert not (folder / "results/tiny/images" / other).exists()
    shutil.copytree(second / "results/tiny/images", first / "results/tiny/images", dirs_exist_ok=True)
    assert "Nothing to be done" in snakemake(first, "generate", "--dry-run", *STUDY)
    jobs = parse_job_stats(snakemake(first, "--dry-run", *STUDY))
    assert jobs["refine_codebook"] and not {"image_shard", "prompt_shard"} & set(jobs)


def test_runs_of_another_machine_are_joined_and_kept_apart(study, tmp_path):
    """Their rows stand beside this machine's, with ratios of their own; nothing is measured in their name."""
    workflow.reclone(study, tmp_path)
    joined = tmp_path / "results/tiny/benchmarks"
    (here,) = (joined / "shapes-flux").glob("*/")
    before = read_table(joined / "benchmark.timing.parquet", "benchmark.timing")
    for file in shutil.copytree(here, here.parent / "fast-host").glob("*.parquet"):
        table = pl.read_parquet(file).with_columns(hardware=pl.lit("fast-host"))
        if "latency_median_ms" in table.columns:
            times = pl.col("latencies_ms").list.eval(pl.element() / 10)
            table = table.with_columns((cs.ends_with("_ms") & cs.float()) / 10, times)
        kinds = {"quality": "quality", "timing": "run.timing", "flat": "run.flat"}
        write_table(table, file, f"benchmark.{kinds.get(file.stem.rpartition('.')[2], 'run')}")
    tiny = ("--configfile", "experiments/tiny.yaml")
    assert not {"benchmark_run", "benchmark_quality"} & set(parse_job_stats(snakemake(tmp_path, "--dry-run", *tiny)))
    snakemake(tmp_path, "benchmark", *tiny)
    timing = read_table(joined / "benchmark.timing.parquet", "benchmark.timing")
    assert_frame_equal(timing.filter(hardware=here.name), before)
    theirs = timing.filter(hardware="fast-host")
    assert theirs["latency_median_ms"].to_list() == (before["latency_median_ms"] / 10).to_list()
    assert theirs["speedup"].to_list() == pytest.approx(before["speedup"].to_list())
    sizes = read_table(joined / "benchmark.parquet", "benchmark")
    assert sizes["quality_loss"].null_count() == 0 and set(sizes["hardware"]) == {here.name, "fast-host"}
    for host in (here.name, "fast-host"):
        assert f"## shapes-flux on {host}" in (joined / "recommendation.md").read_text()
    assert "Nothing to be done" in snakemake(tmp_path, "benchmark", "--dry-run", *tiny)
    findings = examine(tmp_path / "results/tiny", ["benchmark"]).findings
    assert findings == []


MIXED = """
stages: [prompts, generate, calibrate, sensitivity, plan, benchmark, publish]
prompts: {limit: 2}
models:
  shapes-sd3-mlx: {family: sd3, source: models/shapes-sd3, backend: mlx, width: 64, height: 64, steps: 4, guidance: 3.0}
schemes:
  mlx-4: {kind: mlx-weight-only, bits: 4, group_size: 32}
generate: {models: [shapes-flux, shapes-sd3-mlx]}
calibrate: {models: [shapes-flux, shapes-sd3-mlx], num_images: 1, num_steps: 3, cfg_weight: 1.0}
sensitivity:
  models: [shapes-flux, shapes-sd3-mlx]
  bits: [4]
  max_images: 1
  step_stride: 1
  layer_groups: 1
  probes: 4
benchmark:
  models: [shapes-flux, shapes-sd3-mlx]
  schemes: [base, mlx-4]
  repeats: 1
  warmup: 0
  flat_field_steps: []
"""


def mixed(folder, backends):
    """A checkout with a study of a torch and an MLX model."""
    workflow.checkout(folder)
    (folder / "study.yaml").write_text(f"backends: {backends}\n{MIXED}")
    return folder


def planned(folder, *targets):
    """Number of jobs of each rule, and whether each model has any."""
    shown = snakemake(folder, *targets, "--dry-run", *STUDY)
    return parse_job_stats(shown), {name for name in ("shapes-flux/", "shapes-sd3-mlx/") if name in shown}


def test_back_ends_have_targets_of_their_own(tmp_path):
    """`cuda` and `mlx` ask for what their models leave and for no table that joins models of both."""
    folder = mixed(tmp_path, "[torch]")
    joined = {"sensitivity_table", "benchmark_table", "catalog"}
    for target, own, other in (("cuda", "shapes-flux/", "shapes-sd3-mlx/"), ("mlx", "shapes-sd3-mlx/", "shapes-flux/")):
        jobs, models = planned(folder, target)
        assert own in models and other not in models
        assert {"image_shard", "calibration_shard", "sensitivity_layers", "bit_plan", "benchmark_run"} <= set(jobs)
        assert not joined & set(jobs)
    jobs, models = planned(folder)
    assert models == {"shapes-flux/"} and joined <= set(jobs)
    (folder / "study.yaml").write_text(f"backends: [torch, mlx]\n{MIXED}")
    both, models = planned(folder)
    assert len(models) == 2 and both["image_shard"] == 2 * jobs["image_shard"]


@pytest.mark.system
@pytest.mark.long
@pytest.mark.timeout(1800)  # some twenty jobs, each of which imports torch and MLX
def test_halves_on_torch_and_mlx_join(tmp_path):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    first, second = (mixed(tmp_path / name, "[torch, mlx]") for name in ("first", "second"))
    snakemake(first, "prompts", *STUDY)
    shutil.copytree(first / "results", second / "results")
    snakemake(first, "cuda", *STUDY)
    snakemake(second, "mlx", *STUDY)
    shutil.copytree(second / "results", first / "results", dirs_exist_ok=True)
    for target in ("cuda", "mlx"):
        assert "Nothing to be done" in snakemake(first, target, "--dry-run", *STUDY)
    snakemake(first, "sensitivity", "plan", "benchmark", *STUDY)
    tables = first / "results/tiny"
    scores = read_table(tables / "sensitivity/sensitivity.parquet", "sensitivity")
    assert scores["model"].unique().sort().to_list() == ["shapes-flux", "shapes-sd3-mlx"]
    runs = read_table(tables / "benchmarks/benchmark.parquet", "benchmark")
    reasons = dict(runs.select(pl.concat_str("model", "scheme", separator=" "), "reason").rows())
    assert "needs a model with `backend: mlx`" in reasons.pop("shapes-flux mlx-4")
    assert reasons == dict.fromkeys(["shapes-flux base", "shapes-sd3-mlx base", "shapes-sd3-mlx mlx-4"], "")
    speeds = read_table(tables / "benchmarks/benchmark.timing.parquet", "benchmark.timing")
    used = dict(speeds.filter(reason="").group_by("model").agg(pl.col("steady_peak_mlx_bytes").max()).rows())
    assert used["shapes-flux"] is None and used["shapes-sd3-mlx"] > 10**6
