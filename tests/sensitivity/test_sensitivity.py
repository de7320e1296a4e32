"""Sensitivity: quantizers and metrics against references, prefix replay against the plain loop, known answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_

from ditscope.calibrate import load
from ditscope.calibrate import stage as calibrate_stage
from ditscope.calibrate.files import load_calibration, read_sample
from ditscope.calibrate.load import batches
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.families.common import Conditioning
from ditscope.models.quantizers import QUANTIZERS, group_affine, palettize, quantizable, shared_weights
from ditscope.models.sampling import predict
from ditscope.sensitivity import on_torch, stage
from ditscope.sensitivity.exact import METRICS, network_of, score_layers
from ditscope.sensitivity.replay import record, replaced
from ditscope.sensitivity.scores import assign_buckets, gather, summary
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import sensitivity
from ditscope.sensitivity.tables import BUCKETS, SENSITIVITY, layer_kind
from tiny_models import ENTRIES, tiny_generator

SETTINGS = Sensitivity(bits=[2, 4, 8], group_size=8, max_images=0, batch_size=6)


# Quantizers ----------------------------------------------------------------------------------------------------------


def nearest_level(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Brute force: the level with the least distance, for every value."""
    return levels[np.abs(values[:, None] - levels[None]).argmin(1)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(7, 12), (3, 2, 3, 3)])
def test_palettize_against_brute_force(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    values = weight.double().numpy().ravel()
    expected = nearest_level(values, np.linspace(values.min(), values.max(), 2**bits))
    got = palettize(weight, bits)
    assert got.shape == weight.shape
    np.testing.assert_allclose(got.numpy().ravel(), expected, atol=1e-6)
    assert len(got.unique()) <= 2**bits


def test_palettize_leaves_a_constant_tensor_alone():
    weight = torch.full((4, 4), 0.3)
    assert torch.equal(palettize(weight, 2), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_group_affine_against_brute_force(bits, offset):
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(bits)) + offset
    expected = []
    for group in weight.double().numpy().reshape(-1, 8):
        low, high = min(group.min(), 0), max(group.max(), 0)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        expected.append(nearest_level(group, (np.arange(2**bits) - zero) * scale))
    np.testing.assert_allclose(group_affine(weight, bits, 8).numpy().reshape(-1, 8), expected, atol=2e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [8, 0])
def test_group_affine_is_what_torchao_stores(bits, group_size):
    layer = nn.Linear(24, 6)
    expected = group_affine(layer.weight.detach(), bits, group_size)
    granularity = PerGroup(group_size) if group_size else PerAxis(0)
    config = IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), granularity, MappingType.ASYMMETRIC)
    quantize_(layer, config)
    torch.testing.assert_close(layer.weight.dequantize(), expected, atol=1e-6, rtol=0)


def test_group_size_that_does_not_divide_the_row_takes_the_row():
    weight = torch.randn(4, 10)
    assert torch.equal(group_affine(weight, 3, 8), group_affine(weight, 3, 0))
    assert (shared_weights(weight, "group", 8), shared_weights(weight, "group", 5)) == (10, 5)
    assert shared_weights(weight, "palettize", 8) == 40


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_zero_stays_and_error_falls_with_bits(quantizer):
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    errors = [(QUANTIZERS[quantizer](weight, bits, 8) - weight).norm() for bits in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(QUANTIZERS[quantizer](torch.zeros(4, 8), 4, 8), torch.zeros(4, 8))
    assert QUANTIZERS[quantizer](weight.bfloat16(), 4, 8).dtype == torch.bfloat16


# Metrics, kinds, buckets ---------------------------------------------------------------------------------------------


def test_metrics_against_float64_formulas():
    rng = np.random.default_rng(0)
    reference, noise = rng.normal(size=(3, 50)), rng.normal(size=(3, 50)) * 0.01
    got = {name: metric(torch.tensor(reference), torch.tensor(reference + noise)) for name, metric in METRICS.items()}
    for i in range(3):
        rmse = np.sqrt(np.mean(noise[i] ** 2))
        assert got["psnr_db"][i] == pytest.approx(20 * np.log10((np.abs(reference[i]).max() + 1e-5) / (rmse + 1e-10)))
        expected = 10 * np.log10(np.sum(reference[i] ** 2) / np.sum(noise[i] ** 2))
        assert got["sqnr_db"][i] == pytest.approx(expected, abs=1e-6)
        assert got["relative_l2"][i] == pytest.approx(np.linalg.norm(noise[i]) / np.linalg.norm(reference[i]))


def test_metrics_stay_finite_for_equal_and_for_zero_outputs():
    for reference in (torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)):
        assert all(metric(reference, reference).isfinite().all() for metric in METRICS.values())


def test_kinds_of_the_real_names():
    with torch.device("meta"):
        names = quantizable(FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True))
    kinds = {name: layer_kind(name) for name in names}
    assert kinds["transformer_blocks.0.norm1_context.linear"] == "modulation"
    assert kinds["single_transformer_blocks.0.norm.linear"] == kinds["norm_out.linear"] == "modulation"
    assert kinds["transformer_blocks.0.attn.to_out.0"] == "attention"
    assert kinds["transformer_blocks.0.attn.add_k_proj"] == "attention_text"
    assert kinds["transformer_blocks.0.attn.to_add_out"] == "attention_text"
    assert kinds["transformer_blocks.0.ff.net.2"] == kinds["single_transformer_blocks.0.proj_out"] == "mlp"
    assert kinds["transformer_blocks.0.ff_context.net.0.proj"] == "mlp_text"
    assert kinds["proj_out"] == "output"
    assert kinds["time_text_embed.guidance_embedder.linear_1"] == kinds["x_embedder"] == "embedder"


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A function that calibrates a tiny model (2 images) and returns it with its calibration folder."""

    def make(kind: str, steps: int = 3):
        model = tiny_generator(kind)
        monkeypatch.setattr(calibrate_stage, "load_generator", lambda name, entry: model)
        monkeypatch.setattr(stage, "load_generator", lambda name, entry: model)
        monkeypatch.setattr(load, "transformer_config", lambda name, entry: dict(model.pipe.transformer.config))
        csv = tmp_path / "prompts.csv"
        csv.write_text("prompt\na red ring\na blue star\n")
        calibrate("tiny", ENTRIES[kind], csv, tmp_path / kind, Calibrate(num_images=2, num_steps=steps, cfg_weight=3.0))
        return model, tmp_path / kind

    return make


def score(model, folder: Path, settings: Sensitivity = SETTINGS, **options) -> pl.DataFrame:
    out = folder / "layers.parquet"
    sensitivity("tiny", model.entry, folder, out, settings, **options)
    return read_table(out, "sensitivity")


@torch.no_grad()
def plain_loop(model, folder: Path, settings: Sensitivity) -> dict[tuple, float]:
    """The obvious way: put the quantized weight in, run the whole model on one sample, take the weight back."""
    calibration = load_calibration(folder)
    scores: dict[tuple, list[float]] = {}
    for reference in calibration.samples:
        sample = read_sample(reference)
        x = torch.from_numpy(sample["x"]).permute(0, 3, 1, 2)
        embeds, pooled = torch.from_numpy(sample["conditioning"]), torch.from_numpy(sample["pooled_conditioning"])
        negative = (embeds[1:], pooled[1:]) if len(embeds) == 2 else ()
        cond = Conditioning(embeds[:1], pooled[:1], *negative)
        sigma, guidance = torch.tensor(sample["sigma"]), sample["guidance"]
        exact = predict(model, x, sigma, cond, guidance)
        for name, layer in quantizable(model.pipe.transformer).items():
            own = layer.weight.data
            for bits in settings.bits:
                layer.weight.data = QUANTIZERS[settings.quantizer](own, bits, settings.group_size)
                changed = predict(model, x, sigma, cond, guidance)
                error = ((changed - exact).double().norm() / exact.double().norm()).item()
                scores.setdefault((name, bits, BUCKETS[reference.step_index]), []).append(error)
            layer.weight.data = own
    return {key: float(np.mean(values)) for key, values in scores.items()}


@pytest.mark.parametrize(
    ("kind", "quantizer"), [("flux", "group"), ("flux-distilled", "palettize"), ("sd3", "group"), ("sd3", "palettize")]
)
def test_replay_gives_the_plain_loop_s_numbers(study, kind, quantizer):
    model, folder = study(kind)
    settings = replace(SETTINGS, quantizer=quantizer)
    table = score(model, folder, settings)
    expected = plain_loop(model, folder, settings)
    rows = table.filter(pl.col("metric") == "relative_l2").rows_by_key(["layer", "bits", "bucket"], named=True)
    assert rows.keys() == expected.keys()
    for key, (row,) in rows.items():
        assert row["value"] == pytest.approx(expected[key], rel=2e-3, abs=2e-6)
    assert table.columns == list(SENSITIVITY.columns)
    layers = len(quantizable(model.pipe.transformer))
    # Of the velocity 3 metrics by 3 buckets; of the image one, by bucket and in all steps, from 32 probes.
    for cells, mode, samples in ((3 * 3, "exact", 2), (4, "fast", 32)):
        rows = table.filter(mode=mode)
        assert (rows.height, rows["n_samples"].unique().to_list()) == (layers * 3 * cells, [samples])
        assert rows["n_images"].unique().to_list() == [2] and rows["value_low"].is_null().all()
    assert set(table.filter(mode="fast")["metric"]) == {"image_rms"}
    assert all(not vars(m).get("forward") for m in model.pipe.transformer.modules())


def test_result_does_not_depend_on_batch_size_or_grouping(study, tmp_path):
    model, folder = study("sd3")
    whole = score(model, folder).sort("layer", "bits", "bucket", "metric")
    parts = []
    for group in range(2):
        parts.append(tmp_path / f"{group}.parquet")
        changed = replace(SETTINGS, batch_size=2)  # fewer than bit widths: one image, bits in two chunks
        sensitivity("tiny", model.entry, folder, parts[-1], changed, group, 2)
    assert not set(read_table(parts[0], "sensitivity")["layer"]) & set(read_table(parts[1], "sensitivity")["layer"])
    gather(parts, tmp_path / "all.parquet")
    joined = read_table(tmp_path / "all.parquet", "sensitivity").sort("layer", "bits", "bucket", "metric")
    assert joined.drop("value", "value_std").equals(whole.drop("value", "value_std"))
    l2 = pl.col("metric") == "relative_l2"
    np.testing.assert_allclose(joined.filter(l2)["value"], whole.filter(l2)["value"], rtol=2e-3, atol=2e-6)


def test_only_what_follows_the_layer_runs_again(study):
    model, folder = study("flux")
    blocks = list(model.family.blocks(model.pipe.transformer).values())
    runs = []
    for depth, block in enumerate(blocks):
        block.attn.processor = Counting(block.attn.processor, depth, runs)
    batch = next(batches(model, *bucketed(folder), 1))
    network = network_of(model, batch)
    runs.clear()
    score_layers(network, 2, [batch], SETTINGS)
    inside = len(network.at(2))
    # One recording pass through every block, then for each layer of block 2 the blocks 2 and 3 only; for proj_mlp,
    # beside the attention, and proj_out, behind it, not even the attention of their own block.
    assert [runs.count(depth) for depth in range(len(blocks))] == [1, 1, 1 + inside - 2, 1 + inside]


class Counting:
    """An attention processor that notes which block called it."""

    def __init__(self, own, depth, runs):
        self.own, self.depth, self.runs = own, depth, runs

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        self.runs.append(self.depth)
        return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def bucketed(folder: Path):
    calibration = load_calibration(folder)
    return calibration, assign_buckets(calibration, "thirds", folder)


def test_layer_multiplied_out_by_zero_ranks_last_and_a_fragile_one_first(study):
    model, folder = study("flux")
    transformer = model.pipe.transformer
    with torch.no_grad():
        # The gate of the second single block is 0: nothing that the block's MLP computes arrives anywhere.
        norm = transformer.single_transformer_blocks[1].norm.linear
        norm.weight[2 * norm.weight.shape[0] // 3 :] = 0
        norm.bias[2 * norm.weight.shape[0] // 3 :] = 0
        # One huge weight stretches the range of a group, so that its neighbours all round to zero.
        fragile = transformer.x_embedder.weight
        fragile *= 5
        fragile[:, 0] = 500
    table = score(model, folder, replace(SETTINGS, bits=[4], group_size=0))
    ranking = (
        table.filter(pl.col("metric") == "relative_l2").group_by("layer").agg(pl.col("value").mean()).sort("value")
    )
    assert ranking["layer"][-1] == "x_embedder"
    parts = ("norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v")
    silent = {f"single_transformer_blocks.1.{part}" for part in parts}
    assert set(ranking["layer"][: len(silent)]) == silent
    assert ranking["value"][len(silent) - 1] < 1e-6 < 100 * ranking["value"][len(silent)]
    images = table.filter(metric="image_rms").group_by("layer").agg(pl.col("value").max()).sort("value")
    assert images["layer"][-1] == "x_embedder"
    assert images.filter(pl.col("layer").is_in(silent))["value"].to_list() == [0.0] * len(silent)


def test_interrupted_job_resumes_at_a_block(study, tmp_path, monkeypatch):
    model, folder = study("flux")
    whole = score(model, folder)
    scored = []
    original = on_torch.score_layers

    def failing(*arguments):
        scored.append(arguments[1])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(on_torch, "score_layers", failing)
    with pytest.raises(KeyboardInterrupt):
        score(model, folder, partial=tmp_path / "partial")
    resumed = score(model, folder, partial=tmp_path / "partial")
    assert scored == [-1, 0, 1, 1, 2, 3, 4]
    assert resumed.equals(whole)


def test_empty_bucket_other_model_and_wrong_latents_are_refused(study):
    model, folder = study("sd3", steps=6)
    with pytest.raises(InputError, match="no calibration sample in bucket `mid`"):
        sensitivity("tiny", model.entry, folder, folder / "x.parquet", replace(SETTINGS, step_stride=4))
    with pytest.raises(InputError, match="made with model `tiny`, not `other`"):
        sensitivity("other", model.entry, folder, folder / "x.parquet", SETTINGS)
    buckets = assign_buckets(load_calibration(folder), "sigma", folder)
    for reference, bucket in buckets.items():
        assert bucket == ("early" if reference.sigma > 0.7 else "late" if reference.sigma < 0.3 else "mid")


def test_broken_sample_of_any_step_is_refused_before_the_model_loads(study, monkeypatch):
    model, folder = study("sd3", steps=6)
    monkeypatch.setattr(stage, "load_generator", None)
    file = load_calibration(folder).samples[1].file  # a step that the stride leaves out
    with np.load(file) as npz:
        arrays = dict(npz)
    np.savez(file, **arrays | {"x": arrays["x"] * np.nan})
    with pytest.raises(InputError, match=f"{file}: key `x` has NaN or infinite values"):
        sensitivity("tiny", model.entry, folder, folder / "x.parquet", replace(SETTINGS, step_stride=2))


def test_a_module_that_runs_twice_runs_again():
    twice, last = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(1, 2)
    output, recording = record([twice, last], [twice, last], 1, lambda: last(twice(twice(x))))
    assert twice not in recording.replay(last, [], 1)
    with replaced(recording.replay(last, [], 1)):
        torch.testing.assert_close(last(twice(twice(x))), output)


def test_a_layer_that_never_runs_changes_nothing(study):
    model, folder = study("flux")
    model.pipe.transformer.single_transformer_blocks[0].register_module("idle", nn.Linear(8, 8))
    table = score(model, folder, replace(SETTINGS, bits=[2]))
    idle = table.filter(pl.col("layer").str.ends_with("idle") & (pl.col("metric") == "relative_l2"))
    assert idle.height == 3
    assert idle["value"].max() < 1e-6


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_every_module_that_a_changed_output_reaches_is_a_dependency(study, kind):
    """Reference: replace a layer's output by another one and see which modules put out something else.

    The converse need not hold: autograd sees joint attention as one operation, in which image queries reach no text.
    """
    model, folder = study(kind)
    batch = next(batches(model, *bucketed(folder), 1))
    network = network_of(model, batch)
    modules = list(network.depends)

    @torch.no_grad()
    def outputs() -> dict[nn.Module, list[torch.Tensor]]:
        seen = {}

        def look(module, _, output):
            seen[module] = [t.clone() for t in (output if isinstance(output, tuple) else (output,)) if t is not None]

        handles = [m.register_forward_hook(look) for m in modules]
        batch.velocity(model)
        for handle in handles:
            handle.remove()
        return seen

    own = outputs()
    for layer in network.layers[::4]:
        disturb = layer.module.register_forward_hook(lambda m, i, o: o + torch.randn_like(o))
        changed = outputs()
        disturb.remove()
        for module in modules:
            same = all(torch.equal(a, b) for a, b in zip(own[module], changed[module], strict=True))
            assert same or layer.module in network.depends[module]


def test_what_a_layer_does_not_reach_is_not_run_again(study):
    """A changed image MLP reaches neither the text MLP of its block nor the modulation of later blocks."""
    model, folder = study("flux")
    batch = next(batches(model, *bucketed(folder), 1))
    network = network_of(model, batch)
    first, second = model.pipe.transformer.transformer_blocks
    runs = []
    for module in (first.ff_context, second.norm1.linear, second.ff):
        own = module.forward
        module.forward = lambda *a, own=own, module=module, **k: (runs.append(module), own(*a, **k))[1]
    one = replace(network, layers=[la for la in network.layers if la.name == "transformer_blocks.0.ff.net.2"])
    score_layers(one, 0, [batch], replace(SETTINGS, bits=[4]))
    assert [runs.count(m) for m in (first.ff_context, second.norm1.linear, second.ff)] == [1, 1, 2]


def test_interval_resamples_images_not_their_steps():
    """8 images of 5 steps that share most of their deviation: the interval is Student's over 8 means, not 40 rows."""
    rng = np.random.default_rng(3)
    scores = rng.normal(20, 2, 8)[:, None] + rng.normal(0, 0.1, (8, 5))
    row = summary(scores.ravel(), np.repeat(range(8), 5).tolist(), "sqnr_db", squared=False)
    reference = scipy.stats.ttest_1samp(scores.mean(1), 0).confidence_interval(0.95)
    assert row["value"] == pytest.approx(scores.mean())
    assert (row["value_low"], row["value_high"]) == pytest.approx((reference.low, reference.high))
    assert (row["n_samples"], row["n_images"]) == (40, 8)
    assert row["value_std"] / np.sqrt(8) == pytest.approx(scipy.stats.sem(scores.mean(1)))
    few = summary(scores[:7].ravel(), np.repeat(range(7), 5).tolist(), "sqnr_db", squared=False)
    assert few["value_low"] is None and few["value_high"] is None and few["n_images"] == 7


@pytest.mark.parametrize("n", [8, 16, 64])
def test_interval_of_a_cell_covers_at_its_nominal_rate(n):
    """Images with a level of their own and steps around it, as calibration sets have them."""
    rng, sets = np.random.default_rng(n), 2000
    scores = rng.normal(20, 2, (sets, n, 1)) + rng.normal(0, 1, (sets, n, 6))
    images = np.repeat(range(n), 6).tolist()
    cells = [summary(rows.ravel(), images, "sqnr_db", squared=False) for rows in scores]
    share = np.mean([c["value_low"] <= 20 <= c["value_high"] for c in cells])
    assert share == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / sets))


def test_scores_are_taken_in_float32_whatever_the_model_s_type(study, monkeypatch):
    model, folder = study("flux")
    asked = []
    monkeypatch.setattr(stage, "load_generator", lambda name, entry: asked.append(entry.dtype) or model)
    sensitivity("tiny", replace(model.entry, dtype="bfloat16"), folder, folder / "x.parquet", SETTINGS)
    assert asked == ["float32"]
