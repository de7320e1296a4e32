"""Benchmark: the protocol on a tiny generator, quality against the base, ratios in a compile state, hardware ids."""

import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from PIL import Image

from ditscope.benchmark import latency, memory, quality, quality_of_sets
from ditscope.benchmark import run as run_module
from ditscope.benchmark.cases import benchmark_cases
from ditscope.benchmark.check import check_sizes
from ditscope.benchmark.features import Extractor
from ditscope.benchmark.images import read_images
from ditscope.benchmark.join import benchmark_table, with_quality, with_size_ratios, with_speed_ratios
from ditscope.benchmark.recommend import recommendation
from ditscope.benchmark.settings import Benchmark, Target
from ditscope.benchmark.stage import benchmark
from ditscope.config import Config, check
from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.core.shards import write_tar
from ditscope.core.tables import read_table
from ditscope.models import hardware, loading, prepare, requests
from ditscope.models.settings import Embedder, Scheme
from ditscope.prompts.files import read_runs, write_runs
from tiny_models import tiny_generator

SCHEMES = {
    "base": Scheme("base"),
    "int8": Scheme("int8-weight-only"),
    "int3": Scheme("intx-weight-only", bits=3, group_size=8),
    "fp8": Scheme("fp8-dynamic-row"),
}
MORE = SCHEMES | {
    "fused": Scheme("base", fuse_qkv=True),
    "partly": Scheme("int8-weight-only", skip_layers=["*norm*", "proj_out"], min_weights=1000),
    "sparse-int8": Scheme("sparse-2-4-int8"),
}
SETTINGS = Benchmark(
    batches=[1, 3], repeats=2, warmup=1, num_images=4, hardware="here", features="colour", classes=["a {red,blue} ring"]
)
EMBEDDERS = {"colour": Embedder("clip", "unused", modality="image")}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Run the benchmark on a tiny FLUX without tokenizers, and judge it by the mean colour of image quarters."""

    def load(name, entry):
        generator = tiny_generator("flux", name)
        return replace(generator, entry=replace(generator.entry, steps=entry.steps, guidance=entry.guidance))

    def colours(images):
        means = [np.asarray(i, np.float32).reshape(2, 16, 2, 16, 3).mean((1, 3)).ravel() for i in images]
        return torch.from_numpy(np.stack(means))

    def letters(texts):
        return torch.stack([torch.rand(12, generator=torch.Generator().manual_seed(len(t))) for t in texts])

    monkeypatch.setattr(run_module, "load_generator", load)
    monkeypatch.setattr(requests, "prompt_tokens", lambda model, prompt: (3, False))
    for module in (quality, quality_of_sets):
        monkeypatch.setattr(module, "feature_extractor", lambda name, entry: Extractor("colours", colours, letters))
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt,seed\na red ring,1\na blue star,2\na cross,3\na green circle,4\na square,5\n")

    def run(config, folder="out", settings=SETTINGS, **more):
        entry = tiny_generator("flux").entry
        benchmark("tiny", entry, MORE, EMBEDDERS, tmp_path / folder, [csv], config, settings=settings, **more)
        return tmp_path / folder / f"{config}-{more.get('compile', 'eager')}.parquet"

    return run


def test_a_run_leaves_sizes_timings_and_images(tiny):
    path = tiny("int8")
    run = read_table(path, "benchmark.run").row(0, named=True)
    assert run["stored_bytes"] < read_table(tiny("base"), "benchmark.run")["stored_bytes"][0]
    assert run["quantized_layers"] > 10 and run["images"] == 4 and run["reason"] == "" and not run["simulated"]
    timing = read_table(path.with_suffix(".timing.parquet"), "benchmark.run.timing")
    assert timing["batch"].to_list() == [1, 3]
    for row in timing.to_dicts():
        assert len(row["latencies_ms"]) == row["repeats"] == 2
        assert row["latency_median_ms"] == pytest.approx(np.median(row["latencies_ms"]))
        assert row["latency_p10_ms"] <= row["latency_median_ms"] <= row["latency_p90_ms"]
        assert row["latency_per_image_ms"] == pytest.approx(row["latency_median_ms"] / row["batch"])
        low, _, high = np.quantile(row["latencies_ms"], (0.25, 0.5, 0.75))
        assert row["latency_relative_iqr"] == pytest.approx((high - low) / row["latency_median_ms"])
        assert row["verdict"] in ("quiet", "noisy") and (row["noisy_because"] == "") == (row["verdict"] == "quiet")
        assert (row["others_share"] is None) == (row["load_reason"] != "") and row["measurements"] == 1
        assert row["steady_peak_bytes"] == row["steady_peak_rss_bytes"]
        assert row["steady_peak_rss_bytes"] > 0 and row["load_peak_rss_bytes"] > 0 and "torch" in row["packages"]
    assert [s["json"]["scheme"] for s in read_images(path).values()] == ["int8"] * 4


def test_the_same_run_again_is_byte_identical_but_for_time(tiny):
    one, two = tiny("int3", "one"), tiny("int3", "two")
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".tar").read_bytes() == two.with_suffix(".tar").read_bytes()


def test_images_do_not_depend_on_the_batch_size(tiny):
    one = read_images(tiny("int8", "one", replace(SETTINGS, batches=[1])))
    many = read_images(tiny("int8", "many", replace(SETTINGS, batches=[3])))
    assert one.keys() == many.keys()
    for pair in one:
        difference = one[pair]["latent.npy"] - many[pair]["latent.npy"]
        assert np.abs(difference).max() <= 1e-4 * np.abs(one[pair]["latent.npy"]).max()


def test_what_cannot_run_is_a_row_with_the_reason(tiny):
    path = tiny("fp8")
    run = read_table(path, "benchmark.run").row(0, named=True)
    assert "8.9" in run["reason"] and run["stored_bytes"] is None and run["images"] == 0
    timing = read_table(path.with_suffix(".timing.parquet"), "benchmark.run.timing")
    assert timing["latency_median_ms"].null_count() == 2 and all("8.9" in reason for reason in timing["reason"])
    assert read_images(path) == {}


def test_a_batch_that_fails_does_not_stop_the_others(tiny, monkeypatch):
    run_once = latency.run_once

    def limited(generator, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 7 GiB\nmore lines")
        return run_once(generator, rows)

    monkeypatch.setattr(latency, "run_once", limited)
    path = tiny("base")
    timing = read_table(path.with_suffix(".timing.parquet"), "benchmark.run.timing")
    assert timing["reason"].to_list() == ["", "OutOfMemoryError: out of memory: tried to allocate 7 GiB"]
    assert read_table(path, "benchmark.run")["images"][0] == 4


def test_compiling_without_a_compiler_is_a_reason(tiny, monkeypatch):
    def no_compiler():
        raise RuntimeError("no g++")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    assert "needs a C++ compiler" in read_table(tiny("base", compile="regional"), "benchmark.run")["reason"][0]


@pytest.mark.system
@pytest.mark.parametrize("compile", ["regional", "full", "max-autotune"])
def test_compiled_images_are_close_to_eager_ones(tiny, compile):
    settings = replace(SETTINGS, batches=[2], num_images=2)
    eager, compiled = read_images(tiny("int8", settings=settings)), tiny("int8", settings=settings, compile=compile)
    assert read_table(compiled, "benchmark.run")["reason"][0] == ""
    for pair, sample in read_images(compiled).items():
        assert np.abs(sample["latent.npy"] - eager[pair]["latent.npy"]).max() < 1e-3


def test_quality_of_the_base_is_perfect_and_fewer_bits_are_worse(tiny, tmp_path):
    runs = [tiny(config) for config in SCHEMES]
    quality.quality(runs, tmp_path / "quality.parquet", EMBEDDERS, SETTINGS)
    table = read_table(tmp_path / "quality.parquet", "benchmark.quality")
    value = {(r["scheme"], r["metric"]): r["value"] for r in table.to_dicts()}
    assert value["base", "psnr_db"] == 100 and value["base", "ssim"] == pytest.approx(1)
    assert value["base", "quality_loss"] == pytest.approx(0, abs=1e-12) and value["base", "fid"] <= 1e-6
    assert value["base", "quality_loss"] < value["int8", "quality_loss"] < value["int3", "quality_loss"]
    assert value["int3", "psnr_db"] < value["int8", "psnr_db"] < 100
    unsupported = table.filter(scheme="fp8")
    assert unsupported["value"].null_count() == len(unsupported) and unsupported["reason"].str.contains("8.9").all()
    measured = table.filter(pl.col("value").is_not_null())
    assert (measured["n"] == 4).all() and measured.filter(metric="fid")["small_n"].all()
    assert measured["low"].is_null().all() and (measured["n_prompts"] < 8).all(), "too few prompts for an interval"


def test_seeds_of_one_prompt_are_one_unit_of_an_interval():
    """8 prompts from 4 seeds each: Student's t over 8 means, not over 32 pictures."""
    rng = np.random.default_rng(0)
    prompts = [f"p{i % 8}" for i in range(32)]
    shared = rng.normal(0, 1, (8, 3))
    features = np.ones((32, 3)) + 0.3 * np.concatenate([shared] * 4) + 0.01 * rng.normal(size=(32, 3))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
    run = {"pngs": [buffer.getvalue()] * 32, "prompts": prompts, "more": {}, "alignment": None, "logits": None}
    rows = {r["metric"]: r for r in quality.compare(run | {"features": np.ones((32, 3))}, run | {"features": features})}
    row = rows["feature_cosine"]
    means = (features.sum(1) / np.linalg.norm(features, axis=1) / np.sqrt(3)).reshape(4, 8).mean(0)
    reference = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((reference.low, reference.high))
    assert (row["value"], row["n"], row["n_prompts"]) == (pytest.approx(means.mean()), 32, 8)
    assert {r["n_prompts"] for r in rows.values()} == {8}


def test_quality_refuses_a_reference_made_with_other_settings(tiny, tmp_path):
    base = tiny("base")
    for key, settings in [
        ("steps 5, but the reference .* has 2", replace(SETTINGS, num_steps=5)),
        ("guidance 3.0, but the reference .* has 0.0", replace(SETTINGS, num_steps=2, cfg_scale=3.0)),
        ("its 2 .* pairs are not the 4", replace(SETTINGS, num_steps=2, num_images=2)),
    ]:
        base = tiny("base", "reference", replace(SETTINGS, num_steps=2))
        other = tiny("int8", "other", settings)
        with pytest.raises(InputError, match=key):
            quality.quality([base, other], tmp_path / "q.parquet", EMBEDDERS, SETTINGS)
    for key, value in (("width", 48), ("height", 16), ("model", "another")):
        base, other = tiny("base", "same"), tiny("int8", "same")
        samples = list(read_images(other).values())
        write_tar([s | {"json": s["json"] | {key: value}} for s in samples], other.with_suffix(".tar"))
        with pytest.raises(InputError, match=f"int8-eager.tar: {key} {value}, but the reference .*base-eager.tar has"):
            quality.quality([base, other], tmp_path / "q.parquet", EMBEDDERS, SETTINGS)
    with pytest.raises(InputError, match="no run of the base scheme in eager mode"):
        quality.quality([tiny("int8")], tmp_path / "q.parquet", EMBEDDERS, SETTINGS)


def test_quality_images_are_sampled_in_one_batch_under_every_scheme(tiny, monkeypatch, tmp_path):
    """Whatever batch sizes ran: else a difference between schemes would be the batch's as well."""
    sizes = []
    make = run_module.generate_slice

    def watched(generator, rows, *made_by):
        sizes.append(len(rows))
        return make(generator, rows, *made_by)

    monkeypatch.setattr(run_module, "generate_slice", watched)
    run_once = latency.run_once

    def limited(generator, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return run_once(generator, rows)

    settings = replace(SETTINGS, quality_batch=2)
    base = read_table(tiny("base", settings=settings), "benchmark.run").row(0, named=True)
    assert sizes == [2, 2, 1, 1, 1, 1] and (base["quality_batch"], base["floor_batch"]) == (2, 1)
    sizes.clear()
    monkeypatch.setattr(latency, "run_once", limited)
    path = tiny("int8", settings=settings)
    run = read_table(path, "benchmark.run").row(0, named=True)
    assert sizes == [2, 2] and (run["quality_batch"], run["floor_batch"], run["images"]) == (2, None, 4)
    assert read_table(tiny("int3"), "benchmark.run")["quality_batch"][0] == 1, "the smallest that is timed"

    monkeypatch.setattr(
        run_module, "generate_slice", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("too much"))
    )
    broken = tiny("fused", settings=settings)
    run = read_table(broken, "benchmark.run").row(0, named=True)
    assert run["reason"] == "" and run["images"] == 0 and run["stored_bytes"] > 0
    assert run["images_reason"] == "no images in batches of 2: OutOfMemoryError: too much"
    out = tmp_path / "q.parquet"
    quality.quality([base_path := path.with_name("base-eager.parquet"), path, broken], out, EMBEDDERS, settings)
    rows = read_table(out, "benchmark.quality").filter(scheme="fused")
    assert rows["value"].null_count() == len(rows) and set(rows["reason"]) == {run["images_reason"]}
    with pytest.raises(InputError, match="sampled in batches of 2, this run's in batches of 1; make both"):
        quality.quality([base_path, tiny_run(tiny, monkeypatch, make)], out, EMBEDDERS, settings)


def tiny_run(tiny, monkeypatch, make):
    monkeypatch.setattr(run_module, "generate_slice", make)
    return tiny("int8", "other")


def test_the_base_in_another_batch_is_the_noise_floor(tiny, tmp_path):
    runs = [tiny(config) for config in ("base", "int8")]
    quality.quality(runs, tmp_path / "q.parquet", EMBEDDERS, SETTINGS)
    table = read_table(tmp_path / "q.parquet", "benchmark.quality")
    floor = table.filter(kind="noise floor")
    assert set(floor["scheme"]) == {"base, batch 2"} and set(floor["n"]) == {4}
    assert sorted(floor["metric"]) == sorted(table.filter(scheme="int8")["metric"])
    value = {row["metric"]: row["value"] for row in floor.to_dicts()}
    psnr = table.filter(scheme="int8", metric="psnr_db")["value"][0]
    assert psnr < value["psnr_db"] and value["quality_loss"] < 1e-3
    text = recommendation(
        with_quality(with_size_ratios(pl.concat(read_table(run, "benchmark.run") for run in runs)), table, 0.05),
        with_speed_ratios(
            pl.concat(read_table(run.with_suffix(".timing.parquet"), "benchmark.run.timing") for run in runs)
        ),
        0.05,
        table,
    )
    assert "Noise floor (`base, batch 2` against the base): quality loss" in text


def test_reference_of_other_settings_is_refused_before_a_model_loads(tiny, tmp_path, monkeypatch):
    reference = tiny("base", "reference", replace(SETTINGS, num_steps=2)).parent
    loaded = []
    load = run_module.load_generator
    monkeypatch.setattr(run_module, "load_generator", lambda *a: loaded.append(a) or load(*a))
    for key, settings in (
        ("steps 2, this run has 5", replace(SETTINGS, num_steps=5)),
        (r"guidance 0\.0, this run has 3\.0", replace(SETTINGS, num_steps=2, cfg_scale=3.0)),
    ):
        with pytest.raises(InputError, match=f"base-eager.parquet: the reference was made with {key}"):
            tiny("int8", "other", settings, reference_dir=reference)
    with pytest.raises(InputError, match="no run of the base scheme in eager mode to compare with"):
        tiny("int8", "other", reference_dir=tmp_path / "nothing")
    assert not loaded
    tiny("int8", "other", replace(SETTINGS, num_steps=5, skip_metrics=True), reference_dir=reference)
    assert loaded


def test_reference_dir_judges_at_once_and_skip_metrics_makes_no_images(tiny, tmp_path):
    tiny("base", "reference")
    tiny("int8", "out", reference_dir=tmp_path / "reference")
    judged = read_table(tmp_path / "out" / "quality.parquet", "benchmark.quality")
    assert judged["scheme"].unique(maintain_order=True).to_list() == ["base", "base, batch 2", "int8"]
    path = tiny("base", "timed", replace(SETTINGS, skip_metrics=True))
    assert read_images(path) == {} and read_table(path, "benchmark.run")["images"][0] == 0


def test_the_joined_tables(tiny, tmp_path):
    runs = [tiny(config) for config in SCHEMES]
    judged = tmp_path / "q.parquet"
    quality.quality(runs, judged, EMBEDDERS, SETTINGS)
    timings, flats = ([r.with_suffix(f".{kind}.parquet") for r in runs] for kind in ("timing", "flat"))
    target = Target("tiny", latency_ms=3.5, source="elsewhere")
    benchmark_table(runs, timings, [judged], flats, tmp_path / "all", replace(SETTINGS, targets={"fast": target}))
    table = read_table(tmp_path / "all/benchmark.parquet", "benchmark")
    assert table["scheme"].to_list() == list(SCHEMES)
    assert table["nominal_ratio"][0] == 1 and table["nominal_ratio"][2] > table["nominal_ratio"][1] > 1
    assert table["quality_loss"][2] > table["quality_loss"][1] and table["quality_loss"][3] is None
    assert len(read_table(tmp_path / "all/benchmark.timing.parquet", "benchmark.timing")) == 8
    assert read_table(tmp_path / "all/flat_field.parquet", "benchmark.flat_field").is_empty()
    (row,) = read_table(tmp_path / "all/targets.parquet", "benchmark.targets").to_dicts()
    assert row == {"target": "fast", "model": "tiny", "batch": 1, "latency_ms": 3.5, "source": "elsewhere"}
    text = (tmp_path / "all/recommendation.md").read_text()
    assert "## tiny on here" in text and "`fp8`, eager: fp8-dynamic-row needs" in text and "4 images are few" in text
    assert "`int3`, eager: " in text and "its bits are only simulated" in text
    benchmark_table(runs, timings, [], flats, tmp_path / "fast")
    assert read_table(tmp_path / "fast/quality.parquet", "benchmark.quality").is_empty()
    assert "Quality was not judged" in (tmp_path / "fast/recommendation.md").read_text()


def test_fused_and_filtered_schemes(tiny):
    """Fusing changes no byte and no picture; filters leave layers as they were; what torchao cannot do is a reason."""
    base, fused = (read_table(tiny(name), "benchmark.run").row(0, named=True) for name in ("base", "fused"))
    assert fused["kind"] == "base+fuse_qkv" and fused["stored_bytes"] == base["stored_bytes"]
    plain, joined = (read_images(tiny(name)) for name in ("base", "fused"))
    assert all(np.abs(plain[p]["latent.npy"] - joined[p]["latent.npy"]).max() < 1e-4 for p in plain)
    whole, partly = (read_table(tiny(name), "benchmark.run").row(0, named=True) for name in ("int8", "partly"))
    assert 0 < partly["quantized_layers"] < whole["quantized_layers"]
    assert whole["stored_bytes"] < partly["stored_bytes"] < base["stored_bytes"]
    assert "no int8 kernel for 2:4" in read_table(tiny("sparse-int8"), "benchmark.run")["reason"][0]
    noted: list[str] = []
    doctor = SimpleNamespace(note=lambda stage, file, problem: noted.append(problem))
    for run in (base, fused, whole, partly):
        check_sizes(doctor, "file", run)
    assert noted == []
    check_sizes(doctor, "file", fused | {"quantized_layers": 3})
    check_sizes(doctor, "file", whole | {"quantized_layers": 0})
    assert ["base says" in problem for problem in noted] == [True, False]


def test_noise_growth_has_a_row_for_each_step_count_and_seed(tiny):
    settings = replace(SETTINGS, flat_field_steps=[1, 3], flat_field_seeds=4, batches=[3])
    path = tiny("base", settings=settings).with_suffix(".flat.parquet")
    flat = read_table(path, "benchmark.run.flat")
    assert flat.select("steps", "seed").rows() == [(steps, seed) for steps in (1, 3) for seed in range(4)]
    assert (flat["noise"] > 0).all() and flat["noise"].n_unique() == 8
    alone = tiny("base", "alone", settings=replace(settings, batches=[1])).with_suffix(".flat.parquet")
    assert read_table(alone, "benchmark.run.flat")["noise"].to_list() == pytest.approx(
        flat["noise"].to_list(), rel=1e-3
    )


def test_prompt_alignment_and_inception_score(tiny, tmp_path):
    runs = [tiny(config) for config in ("base", "int3")]
    quality.quality(runs, tmp_path / "q.parquet", EMBEDDERS, SETTINGS)
    rows = {(r["scheme"], r["metric"]): r for r in read_table(tmp_path / "q.parquet", "benchmark.quality").to_dicts()}
    change = rows["int3", "prompt_alignment"]["value"] - rows["base", "prompt_alignment"]["value"]
    assert rows["int3", "prompt_alignment_change"]["value"] == pytest.approx(change, abs=1e-12) and change != 0
    assert rows["base", "prompt_alignment_change"]["value"] == 0
    assert 1 <= rows["base", "inception_score"]["value"] <= 2 and rows["base", "inception_score"]["small_n"]
    assert rows["base", "precision"]["value"] == rows["base", "recall"]["value"] == 1
    quality.quality(runs, tmp_path / "q.parquet", EMBEDDERS, replace(SETTINGS, classes=[]))
    reasons = read_table(tmp_path / "q.parquet", "benchmark.quality").filter(metric="inception_score")["reason"]
    assert reasons.str.contains("names no classes").all()


def test_further_embedders_have_a_cosine_each(tiny, tmp_path):
    runs, settings = [tiny(config) for config in ("base", "int3", "fp8")], replace(SETTINGS, cosines=["second"])
    quality.quality(runs, tmp_path / "q.parquet", EMBEDDERS | {"second": EMBEDDERS["colour"]}, settings)
    rows = read_table(tmp_path / "q.parquet", "benchmark.quality")
    one, two = (rows.filter(metric=m).select("scheme", "value").rows() for m in ("feature_cosine", "cosine_second"))
    assert one == two, "the fixture's embedder is one and the same"
    assert dict(one)["int3"] < 1 and dict(one)["fp8"] is None
    with pytest.raises(InputError, match="cosines: `third` is not in the config's `embedders`"):
        quality.quality(runs, tmp_path / "q.parquet", EMBEDDERS, replace(SETTINGS, cosines=["third"]))


@pytest.mark.parametrize(("state", "count"), [("eager", 0), ("regional", 4), ("full", 1), ("max-autotune", 1)])
def test_what_is_compiled(state, count, monkeypatch):
    """Blocks, or the whole transformer; the VAE's decoder where the scheme asks for it and anything is compiled."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    generator = tiny_generator("flux")
    assert prepare.prepare(generator, Scheme("base"), state, None) == "" and len(compiled) == count
    compiled.clear()
    prepare.prepare(generator, Scheme("base", compile_vae=True), state, None)
    assert (generator.pipe.vae.decoder in compiled) == (state != "eager") and len(compiled) == count + (count > 0)


def test_modes_of_compilation_are_handed_on_or_a_reason(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: modes.append(options.get("mode")))
    for state, mode in (("full", None), ("max-autotune", "max-autotune")):
        assert prepare.prepare(tiny_generator("flux"), Scheme("base", compile_vae=True), state, None) == ""
        assert modes == [mode, mode], state
        modes.clear()
    reason = prepare.prepare(tiny_generator("flux"), Scheme("base"), "reduce-overhead", None)
    assert reason == "reduce-overhead is CUDA graphs, which cpu has not; take `compile: full`" and not modes
    assert prepare.uncompilable("full", "mlx") == "" != prepare.uncompilable("max-autotune", "mlx")
    small = type("Properties", (), {"multi_processor_count": 46})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: small)
    assert "this GPU has 46" in prepare.uncompilable("max-autotune", "cuda")
    assert prepare.uncompilable("reduce-overhead", "cuda") == ""


def test_too_few_images_are_a_reason_and_too_large_a_subset_an_error(tiny, tmp_path):
    few = replace(SETTINGS, num_images=3)
    base = tiny("base", settings=few)
    quality.quality([base], tmp_path / "q.parquet", EMBEDDERS, few)
    reasons = dict(read_table(tmp_path / "q.parquet", "benchmark.quality").select("metric", "reason").rows())
    assert reasons["precision"] == "precision needs at least 4 images, there are 3" and reasons["fid"] == ""
    with pytest.raises(InputError, match="kid_subset_size: 4 is more than the 3 images"):
        quality.quality([base], tmp_path / "q.parquet", EMBEDDERS, replace(few, kid_subset_size=4))
    more = replace(SETTINGS, num_images=6)
    assert read_table(tiny("base", settings=more), "benchmark.run")["images"][0] == 6  # a CSV starts over
    table = tmp_path / "prompts.parquet"
    write_runs(read_runs(tmp_path / "prompts.csv"), table)
    with pytest.raises(InputError, match=r"num_images: 6, but .*prompts.parquet hold 5 runs; add prompts"):
        benchmark("tiny", tiny_generator("flux").entry, MORE, EMBEDDERS, tmp_path / "o", [table], "base", settings=more)


def calibration_set(folder, pngs, **changes):
    """A calibration set of the tiny generator with these reference images."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number, png in enumerate(pngs):
        (folder / f"images/{number}.png").write_bytes(png)
        image = {"image_id": number, "prompt_id": f"p{number}", "prompt": "a ring", "seed": number}
        images.append(image | {"file": f"images/{number}.png"})
    entry = tiny_generator("flux").entry
    manifest = {"schema_version": "1", "model": "tiny", "num_steps": entry.steps, "cfg_weight": entry.guidance}
    manifest |= {"width": entry.width, "height": entry.height, "n_completed": len(images), "images": images} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def squares(count):
    pngs = [io.BytesIO() for _ in range(count)]
    for number, file in enumerate(pngs):
        Image.new("RGB", (32, 32), (40 * number, 90, 20)).save(file, "png")
    return [file.getvalue() for file in pngs]


def test_a_calibration_set_is_a_reference_as_a_set(tiny, tmp_path):
    base = tiny("base", "base")
    pngs = [sample["png"] for _, sample in sorted(read_images(base).items())]
    run = tiny("int3", "int3", reference_dir=calibration_set(tmp_path / "calibration", pngs))
    table = read_table(run.parent / "quality.parquet", "benchmark.quality")
    assert set(table["scheme"]) == {"int3"}
    rows = {row["metric"]: row for row in table.iter_rows(named=True)}
    assert rows.keys() == {*quality.PAIRED, *quality.OF_SETS}
    assert rows["psnr_db"]["value"] is None and "no pairs to compare" in rows["psnr_db"]["reason"]
    assert rows["prompt_alignment"]["value"] is not None and rows["fid"]["n"] == 4
    quality.quality([base, run], tmp_path / "paired.parquet", EMBEDDERS, SETTINGS)
    paired = read_table(tmp_path / "paired.parquet", "benchmark.quality").filter(scheme="int3")
    for metric in quality.OF_SETS:  # the same images, the same numbers
        (expected,) = paired.filter(metric=metric)["value"]
        assert rows[metric]["value"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_steps": 50}, "made with steps 50, this run has"),
        ({"cfg_weight": 7.5}, "made with guidance 7.5, this run has"),
        ({"model": "other"}, "made with model other, this run has"),
        ({"images": []}, "lists no images to compare with"),
    ],
)
def test_a_calibration_set_of_other_settings_is_refused_before_loading(changes, named, tiny, tmp_path, monkeypatch):
    folder = calibration_set(tmp_path / "calibration", squares(4), **changes)
    monkeypatch.setattr(run_module, "load_generator", None)
    with pytest.raises(InputError, match=named):
        tiny("int8", "other", reference_dir=folder)


def test_calibration_images_that_cannot_be_read_are_refused(tiny, tmp_path, monkeypatch):
    folder = calibration_set(tmp_path / "calibration", squares(4))
    monkeypatch.setattr(run_module, "load_generator", None)
    with pytest.raises(InputError, match="kid_subset_size: 5 is more than the 4 images"):
        tiny("int8", "other", replace(SETTINGS, kid_subset_size=5, num_images=5), reference_dir=folder)
    (folder / "images/1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"images/1\.png is damaged .*; calibrate again"):
        tiny("int8", "other", reference_dir=folder)
    (folder / "images/1.png").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: images: no file `images/1\.png`"):
        tiny("int8", "other", reference_dir=folder)


def test_a_damaged_reference_image_is_named(tiny, tmp_path, monkeypatch):
    base, other = tiny("base"), tiny("int8")
    samples = list(read_images(base).values())
    png = samples[1]["png"]
    for broken in (png[: len(png) // 2], png[:60] + b"\x00\x01" + png[62:], b""):
        write_tar([samples[0], samples[1] | {"png": broken}, *samples[2:]], base.with_suffix(".tar"))
        with pytest.raises(
            InputError, match=f"base-eager.tar: the image `{samples[1]['__key__']}` is damaged"
        ) as error:
            quality.quality([base, other], tmp_path / "q.parquet", EMBEDDERS, SETTINGS)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(run_module, "load_generator", None)  # refused before anything loads
    with pytest.raises(InputError, match="is damaged"):
        tiny("int8", "other", reference_dir=base.parent)


def test_a_verdict_takes_the_whole_interval():
    key = {"model": "m", "hardware": "h", "compile": "eager"}
    cases = [("a", 0.01, 0.0, 0.04), ("b", 0.04, 0.01, 0.06), ("c", 0.08, 0.06, 0.1), ("d", 0.02, None, None)]
    cases.append(("base", 0.0, None, None))
    judged = pl.DataFrame(
        [
            key | {"scheme": s, "metric": "quality_loss", "value": v, "low": lo, "high": hi, "n": 4, "n_prompts": 4}
            for s, v, lo, hi in cases
        ]
    )
    runs = pl.DataFrame([key | {"scheme": s, "kind": s} for s in ("a", "b", "c", "d", "e", "base")])
    verdicts = with_quality(runs, judged, 0.05)
    assert verdicts["quality_verdict"].to_list() == ["within", "undecided", "beyond", "undecided", None, "within"]
    assert verdicts["quality_bound"].unique().to_list() == [0.05]


def recommended() -> tuple[pl.DataFrame, pl.DataFrame]:
    """A joined table of made-up runs and their timings."""
    sizes = [  # scheme, compile, stored, nominal, simulated, loss, verdict, reason
        ("base", "eager", 80, 80, False, 0.0, "within", ""), ("base", "full", 80, 80, False, 0.001, "within", ""),
        ("int8", "eager", 20, 20, False, 0.01, "within", ""), ("worse", "eager", 30, 30, False, 0.02, "within", ""),
        ("int3", "eager", 20, 8, True, 0.2, "beyond", ""), ("fp8", "eager", None, 20, False, None, None, "no GPU"),
        ("base+fuse_qkv", "eager", 80, 80, False, 0.001, "within", ""),
        ("big", "eager", 80, 80, False, 0.001, "within", ""),
    ]  # fmt: skip
    names = [
        "scheme",
        "compile",
        "stored_bytes",
        "nominal_bytes",
        "simulated",
        "quality_loss",
        "quality_verdict",
        "reason",
    ]
    case = [pl.lit("m").alias("model"), pl.lit("h").alias("hardware")]
    table = pl.DataFrame(sizes, schema=names, orient="row").with_columns(
        *case, pl.col("scheme").alias("kind"), quality_loss_low="quality_loss", quality_loss_high="quality_loss",
        n=pl.lit(3000), n_prompts=pl.lit(3000),
        stored_bytes=pl.col("stored_bytes") * 10**6, nominal_bytes=pl.col("nominal_bytes") * 10**6,
    )  # fmt: skip
    times = [
        ("base", "eager", 1, 10.0, 1.0, ""), ("base", "full", 1, 6.0, 1.0, ""), ("int8", "eager", 1, 8.0, 1.25, ""),
        ("worse", "eager", 1, 20.0, 0.5, ""), ("int3", "eager", 1, 1.0, 10.0, ""),
        ("int8", "eager", 4, None, None, "OOM"), ("fp8", "eager", 1, None, None, "no GPU"),
    ]  # fmt: skip
    timed = pl.DataFrame(
        times, schema=["scheme", "compile", "batch", "latency_median_ms", "speedup", "reason"], orient="row"
    ).with_columns(
        *case, latency_p10_ms="latency_median_ms", latency_p90_ms="latency_median_ms", noisy_because=pl.lit(""),
        verdict=pl.when(pl.col("latency_median_ms").is_not_null()).then(pl.lit("quiet")),
        speedup_verdict=pl.when(pl.col("speedup").is_not_null()).then(pl.lit("quiet")),
        speedup_low=pl.lit(None, pl.Float64), speedup_high=pl.lit(None, pl.Float64),
    )  # fmt: skip
    return table, timed


def test_the_recommendation_follows_from_the_data():
    table, timed = recommended()
    text = recommendation(table, timed, 0.05)
    memory, packed = text.split("Packed file")
    assert "| 20.00 MB | `int8` | 1 % (1 % to 1 %) | within | 1.25 |" in memory and "`int3`" not in memory
    assert "| verdict | speed-up (eager, batch 1) |" in memory
    assert "| 8.00 MB | `int3` | 20 % (20 % to 20 %) | beyond | 10.00 |" in packed and "| 30.00 MB" not in text
    assert "| 1 | `base`, full | 6 (6 to 6) | 1.00 |" in text, "the fastest of those within the bound"
    assert "`int3`, eager: its quality loss, 20 % (20 % to 20 %), is beyond 5 %; its bits are only simulated" in text
    assert "`worse`, eager: slower than the base at every batch size (speed-up 0.50 at batch 1)" in text
    assert "`big`, eager: no smaller than the base in memory" in text
    assert "`base+fuse_qkv`" not in text, "it was joined for speed"
    assert "`fp8`, eager: no GPU" in text and "`int8`, eager, batch 4: OOM" in text
    assert "Compilation alone, without quantization, loses 0.1 % (full)." in text and "are few" not in text
    slow = timed.with_columns(speedup=pl.when(scheme="int8").then(0.5).otherwise("speedup"))
    text = recommendation(table, slow, 0.05)
    assert "| 20.00 MB | `int8` | 1 % (1 % to 1 %) | within | 0.50 |" in text and "- `int8`, eager: slower" not in text
    assert "`worse`, eager: slower than the base" in text, "another is smaller and better"


def test_the_recommendation_leaves_noisy_timings_out():
    table, timed = recommended()
    noisy = pl.when(scheme="base", compile="full").then(pl.lit("noisy")).otherwise("verdict")
    loud = timed.with_columns(verdict=noisy, noisy_because=pl.lit("others took 40% of the processors' time"))
    text = recommendation(table, loud, 0.05)
    assert "| 1 | `int8`, eager | 8 (8 to 8) | 1.25 |" in text, "the fastest of the quiet ones"
    assert "Left out as noisy (1 of 4 timings within the bound)" in text
    assert "- `base`, full, batch 1: others took 40% of the processors' time" in text and "no verdict" not in text
    one = loud.with_columns(speedup_verdict=pl.when(scheme="worse").then(pl.lit("noisy")).otherwise("speedup_verdict"))
    assert "`worse`, eager: slower" not in recommendation(table, one, 0.05), "nothing is said of what is not known"
    every = loud.with_columns(verdict=pl.lit("noisy"), speedup_verdict=pl.lit("noisy"))
    text = recommendation(table, every, 0.05)
    assert "Batch 1: every timing is noisy, so there is no verdict; run the benchmark again" in text
    assert "| batch | use |" not in text and "| within | noisy |" in text


def test_ratios_stay_within_a_compile_state_and_a_host():
    rows = [
        ("h", "base", "eager", 100.0, 10), ("h", "int8", "eager", 50.0, 5), ("h", "base", "full", 40.0, 10),
        ("h", "int8", "full", 50.0, 4), ("h", "int8", "regional", 1.0, 4), ("other", "int8", "eager", 1.0, 4),
        ("h", "int4", "eager", None, None),
    ]  # fmt: skip
    names = ["hardware", "scheme", "compile", "latency_median_ms", "steady_peak_bytes"]
    loud = (pl.col("scheme") == "int8") & (pl.col("compile") == "full")
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.lit("m").alias("model"), pl.lit(1).alias("batch"), pl.col("scheme").alias("kind"),
        latencies_ms=pl.when(pl.col("latency_median_ms").is_not_null()).then(
            pl.concat_list(pl.col("latency_median_ms") * (1 + i / 100) for i in range(-4, 5))
        ),
        verdict=pl.when(loud).then(pl.lit("noisy")).otherwise(pl.lit("quiet")), peak_covers=pl.lit("process"),
    )  # fmt: skip
    ratios = with_speed_ratios(table)
    assert ratios["speedup"].to_list() == [1, 2, 1, 0.8, None, None, None]
    assert ratios["latency_reduction"].to_list() == [0, 0.5, 0, -0.25, None, None, None]
    low, high = ratios["speedup_low"][1], ratios["speedup_high"][1]
    assert 1.9 < low < 2 < high < 2.1 and ratios["speedup_low"].null_count() == 5, "the base is no sample of its own"
    assert ratios["speedup_verdict"].to_list() == ["quiet", "quiet", "quiet", "noisy", None, None, None]
    assert ratios["peak_memory_ratio"].to_list() == [1, 0.5, 1, 0.4, None, None, None]
    other = pl.when(scheme="int8").then(pl.lit("transformer")).otherwise("peak_covers")
    assert with_speed_ratios(table.with_columns(peak_covers=other))["peak_memory_ratio"].to_list()[:2] == [1, None]
    sizes = table.select(
        "model", "hardware", "scheme", "compile", "kind", nominal_bytes=pl.lit(8), stored_bytes=pl.lit(4)
    )
    assert with_size_ratios(sizes)["nominal_ratio"].to_list() == [1, 1, 1, 1, 1, None, 1]


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="peaks are reset through Linux's /proc")
def test_peaks_are_those_of_the_phase():
    memory.reset_peaks()
    before = memory.peak_rss()
    block = bytearray(96 << 20)
    during = memory.peak_rss()
    del block
    memory.reset_peaks()
    assert during - before > 90 << 20
    assert memory.peak_rss() < during - (60 << 20)


def fake_smi(folder, line):
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:/bin"


@pytest.fixture
def drivers(monkeypatch, tmp_path):
    """Make nvidia-smi list one H200 under a driver (none: no nvidia-smi), for a torch built as given, not loaded."""

    def set_up(driver, build=("2.13.0+cu130", "13.0"), **environment):
        hardware.nvidia_gpus.cache_clear()
        path = fake_smi(tmp_path / "smi", f"NVIDIA H200, {driver}") if driver else str(tmp_path / "none")
        monkeypatch.setenv("PATH", path)
        monkeypatch.setattr(hardware, "torch_build", lambda: build)
        for name in (hardware.VISIBLE, hardware.ON_CPU, *hardware.SCHEDULERS):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    hidden = {name: module for name, module in sys.modules.items() if name != "torch"}
    monkeypatch.setattr(hardware.sys, "modules", hidden)
    yield set_up
    hardware.nvidia_gpus.cache_clear()


def test_hardware_ids_name_what_computes(drivers, monkeypatch):
    assert hardware.slug("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz") == "intel-xeon-platinum-8480c"
    cpu = hardware.slug(hardware.cpu_model())
    for driver, build, environment, expected in (
        ("580.95", ("2.13.0+cu130", "13.0"), {}, "nvidia-h200"),
        ("580.95", ("2.13.0+cu130", "13.0"), {"CUDA_VISIBLE_DEVICES": "0"}, "nvidia-h200"),
        ("580.95", ("2.13.0+cu130", "13.0"), {"CUDA_VISIBLE_DEVICES": ""}, cpu),
        ("570.86", ("2.13.0+cu130", "13.0"), {}, cpu),
        ("570.86", ("2.13.0", "12.9"), {}, "nvidia-h200"),
        ("580.95", ("2.13.0", ""), {}, cpu),
        ("580.95", ("", ""), {}, "nvidia-h200"),
        ("", ("2.13.0+cu130", "13.0"), {}, cpu),
    ):
        drivers(driver, build, **environment)
        assert hardware.hardware_id().startswith(expected), (driver, build, environment)
    drivers("580.95")
    assert [hardware.fingerprint()[key] for key in ("gpu", "driver")] == ["NVIDIA H200", "580.95"]
    monkeypatch.undo()  # torch is loaded, and computes on the CPU whatever nvidia-smi lists
    if not torch.cuda.is_available():
        assert hardware.hardware_id().startswith(cpu)


def test_peaks_say_what_they_cover(monkeypatch, tmp_path):
    assert memory.judged_peak("cuda") == ("allocated_bytes", "pipeline")
    assert memory.judged_peak("mlx") == ("mlx_bytes", "transformer")
    for file, covers in ((tmp_path, "process"), (tmp_path / "none", "process since its start")):
        monkeypatch.setattr(memory, "CLEAR_REFS", file)
        assert memory.judged_peak("cpu") == memory.judged_peak("mps") == ("rss_bytes", covers)


def test_the_build_of_torch_is_read_without_it():
    assert hardware.torch_build() == (torch.__version__, torch.version.cuda or "")


OLD, CPU_BUILD = ("2.13.0+cu130", "13.0"), ("2.13.0", "")


@pytest.mark.skipif(loading.device_at_hand() != "cpu", reason="torch computes on an accelerator here")
@pytest.mark.parametrize(
    ("driver", "build", "given", "expected"),
    [
        ("535.104", OLD, {}, "NVIDIA H200 is at hand, but torch 2.13.0+cu130 (CUDA 13.0) needs driver 580"),
        ("580.95", CPU_BUILD, {}, "torch 2.13.0 is built without CUDA: the CPU would compute in its place"),
        ("", OLD, {"CUDA_VISIBLE_DEVICES": "0"}, "GPU 0 is at hand, but torch sees no CUDA device"),
        ("580.95", CPU_BUILD, {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "2"}, "GPU 2 is at hand, but torch 2.13.0"),
        ("580.95", CPU_BUILD, {"SLURM_JOB_ID": "7"}, ""),
        ("580.95", CPU_BUILD, {"CUDA_VISIBLE_DEVICES": ""}, ""),
        ("580.95", CPU_BUILD, {"CUDA_VISIBLE_DEVICES": "0", "DITSCOPE_CPU": "1"}, ""),
        ("", CPU_BUILD, {}, ""),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused(drivers, driver, build, given, expected):
    drivers(driver, build, **given)
    if not expected:
        assert loading.default_device() == "cpu"
        return
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        loading.default_device()
    assert "\n" not in str(error.value) and loading.device_at_hand() == "cpu"


def test_bad_choices_are_refused_before_anything_loads(tiny):
    with pytest.raises(InputError, match="did you mean `int8`"):
        tiny("int88")
    with pytest.raises(InputError, match="did you mean `full`"):
        tiny("base", compile="ful")
    with pytest.raises(InputError, match=r"kid_subset_size: 99 is more than the 4 images of benchmark.num_images"):
        tiny("base", settings=replace(SETTINGS, kid_subset_size=99))


@pytest.mark.parametrize(
    ("benchmark_settings", "message"),
    [
        ({"compile": ["eagre"]}, "did you mean `eager`"),
        ({"compile": ["full"]}, "kind `base` in eager mode"),
        ({"schemes": ["int8"]}, "kind `base` in eager mode"),
        ({"features": "clip"}, "`clip` is not in the config's `embedders`"),
        ({"kid_subset_size": 17}, "kid_subset_size: 17 is more than benchmark.num_images, 16"),
    ],
)
def test_the_config_is_checked(benchmark_settings, message):
    data = {
        "models": {"m": {"family": "flux", "source": "x"}},
        "schemes": {"base": {"kind": "base"}, "int8": {"kind": "int8-weight-only"}},
        "embedders": {"shapes-clip": {"family": "clip", "source": "y"}},
        "benchmark": {"models": ["m"], "schemes": ["base", "int8"]} | benchmark_settings,
    }
    with pytest.raises(InputError, match=message):
        check(decode(Config, data))
    skipped = data | {"benchmark": data["benchmark"] | {"skip_metrics": True, "compile": ["full"]}}
    check(decode(Config, skipped))


def test_only_the_schemes_that_are_named_are_compiled():
    bench = Benchmark(schemes=["base", "int8"], compile=["eager", "full"])
    assert benchmark_cases(bench) == [("base", "eager"), ("base", "full"), ("int8", "eager"), ("int8", "full")]
    assert benchmark_cases(replace(bench, compiled=["base"]))[1:] == [("base", "full"), ("int8", "eager")]


@pytest.mark.parametrize(
    ("benchmark_settings", "message"),
    [
        ({"targets": {"t": {"model": "n", "latency_ms": 3.0}}}, "targets.t.model: `n` is not in the config's `models`"),
        ({"checkpoints": ["int4"]}, "`int4` is not in the config's `schemes`"),
    ],
)
def test_names_in_the_config_are_checked(benchmark_settings, message):
    models, schemes = (
        {"m": {"family": "flux", "source": "x"}},
        {"fused": {"kind": "plan", "plan": "b", "fuse_qkv": True}},
    )
    with pytest.raises(InputError, match=message):
        check(decode(Config, {"models": models, "benchmark": benchmark_settings}))
    with pytest.raises(InputError, match="fuse_qkv: a plan names the separate layers"):
        check(decode(Config, {"schemes": schemes, "plan": {"budgets": {"b": {"mean_bits": 4.0}}}}))
