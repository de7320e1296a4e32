"""The refine stage as a whole on small synthetic latents: repeatable, resumable, refused on bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import ditscope.refine.train as stage
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.tables import read_table
from ditscope.refine.batches import RefinerInput, draw_batch, refiner_input, training_set, without_replacement
from ditscope.refine.codebook import build_codebook
from ditscope.refine.features import FEATURES, extract
from ditscope.refine.keys import draw_orders
from ditscope.refine.latents import read_latents
from ditscope.refine.loop import LoopSettings, fit
from ditscope.refine.networks import (
    LatentMAE,
    LatentMAEConfig,
    Refiner,
    RefinerConfig,
    load_network,
    mae_loss,
    patch_mask,
    save_network,
)
from ditscope.refine.objectives import OBJECTIVES
from ditscope.refine.patches import patch_sides
from ditscope.refine.settings import Refine
from refine_latents import TINY, disc_latents, drifting_discs, write_discs, write_latents

OUTPUTS = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet")


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    return write_discs(tmp_path_factory.mktemp("images") / "shard-00000.tar")


def run(shard: Path, folder: Path, settings: Refine = TINY, partial: Path | None = None) -> dict[str, bytes]:
    build_codebook([shard], folder / "codebook.safetensors", folder / "assignments.parquet", settings)
    paths = [folder / name for name in (*OUTPUTS, "training.timing.parquet")]
    stage.train([shard], folder / "assignments.parquet", *paths, settings=settings, partial=partial)
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def undisturbed(shard, tmp_path_factory) -> dict[str, bytes]:
    return run(shard, tmp_path_factory.mktemp("undisturbed"))


def test_a_shard_that_is_given_twice_is_refused(shard, tmp_path):
    with pytest.raises(InputError, match=r"the run of prompt_id `p000`, seed 0, is there more than once"):
        read_latents([shard, shard], 2)


def test_the_same_settings_give_the_same_bytes(shard, undisturbed, tmp_path):
    assert run(shard, tmp_path) == undisturbed


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 7}, {"interpolation": "idw"}, {"weighting": "log"}])
def test_a_changed_setting_changes_the_refiner(shard, undisturbed, tmp_path, change):
    changed = run(shard, tmp_path, replace(TINY, **change))
    assert changed["refiner.safetensors"] != undisturbed["refiner.safetensors"]
    assert (changed["latent_mae.safetensors"] == undisturbed["latent_mae.safetensors"]) == ("seed" not in change)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_and_resumed_training_gives_the_bytes_of_an_undisturbed_one(shard, tmp_path, monkeypatch, optimizer):
    settings = replace(TINY, optimizer=optimizer)
    whole = run(shard, tmp_path / "whole", settings)
    objective, calls = OBJECTIVES["drifting"], []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the sixth step, after the checkpoint of the fourth
            raise KeyboardInterrupt
        return objective(*arguments)

    monkeypatch.setitem(OBJECTIVES, "drifting", killed)
    with pytest.raises(KeyboardInterrupt):
        run(shard, tmp_path / "killed", settings, tmp_path / "partial")
    assert list((tmp_path / "partial").rglob("step-000004.safetensors"))
    assert run(shard, tmp_path / "killed", settings, tmp_path / "partial") == whole
    assert len(calls) == 6 + 2  # only the two steps after the checkpoint ran again
    assert not any((tmp_path / "partial").iterdir())


def test_training_table_holds_every_step(undisturbed, shard, tmp_path):
    run(shard, tmp_path)
    table = read_table(tmp_path / "training.parquet", "refine.training")
    assert table.columns == ["network", "step", "metric", "value"]
    for network in ("latent_mae", "refiner"):
        losses = table.filter((pl.col("network") == network) & (pl.col("metric") == "loss"))
        assert losses["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert table["value"].is_finite().all()


def test_gradient_accumulation_averages_batches(tmp_path):
    """Two batches of one step are one batch of both: the same weights, and the mean of their losses."""
    x, y = torch.randn(2, 5, 8, 3, generator=torch.Generator().manual_seed(0)).unbind()  # (steps, samples, width)

    def fitted(accumulate: int) -> tuple[torch.Tensor, list[float]]:
        network = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.eye_(network.weight)

        def loss(forward, step, number):
            rows = slice(number, None, accumulate)
            return (forward(x[step, rows]) - y[step, rows]).square().mean(), {"number": float(number)}

        folder = tmp_path / str(accumulate)
        history = fit("test", network, loss, LoopSettings(steps=5, batch=8, lr=0.01, warmup=1), folder, accumulate)
        assert [record["number"] for record in history] == [(accumulate - 1) / 2] * 5
        return network.weight.detach(), [record["loss"] for record in history]

    (whole, losses), (halves, means) = fitted(1), fitted(2)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(means, losses, rtol=1e-6)
    assert (whole - torch.eye(3)).abs().max() > 1e-3


def test_latent_mae_learns_to_fill_in_and_features_have_one_shape_a_name():
    latents, _ = disc_latents(32, side=8)
    x = torch.from_numpy(latents)
    torch.manual_seed(0)
    network = LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2))
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    losses = []
    for step in range(60):
        scores = torch.rand(32, 16, generator=torch.Generator().manual_seed(step))
        mask = patch_mask(scores, 0.5, (4, 4), 2)
        loss = mae_loss(network(x, mask), x, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * x.var().item()
    features = extract(network, x, list(FEATURES))
    assert features["map0.location"].shape == (32, 64, 8)
    assert features["map1.patch2.mean"].shape == (32, 4, 16)
    assert features["input.vanilla"].shape == (32, 1, 256)
    maps = network.maps(x)
    expected = maps[1][:, :, 2:4, 0:2].flatten(2).mean(-1)
    torch.testing.assert_close(features["map1.patch2.mean"][:, 2], expected)
    spread = maps[0].flatten(2).std(-1, correction=0)
    torch.testing.assert_close(features["map0.std"][:, 0], spread, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(features["input.rms"][:, 0], x.square().mean((2, 3)).sqrt(), atol=1e-5, rtol=1e-4)


def test_hidden_values_reach_neither_features_nor_loss():
    x = torch.randn(2, 4, 8, 8)
    mask = patch_mask(torch.rand(2, 16), 0.5, (4, 4), 2)
    assert mask.sum().item() == 2 * 8 * 4  # half of 16 patches of 4 positions, in each sample
    network = LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2))
    other = x + mask * 100
    torch.testing.assert_close(network(x, mask), network(other, mask))
    prediction = x + (1 - mask) * 7 + mask * 2
    assert mae_loss(prediction, x, mask).item() == pytest.approx(4.0)


@pytest.mark.parametrize("grid", [(6,), (4, 4), (2, 4, 4)])
def test_an_untrained_refiner_returns_its_input_on_any_grid(grid):
    tokens = int(np.prod(grid))
    network = Refiner(RefinerConfig(3, grid, 2, 24, 2, 2, 5, 4, False))
    x = torch.randn(2, tokens, 3 * 2 ** min(len(grid), 2))
    anchors = torch.rand(2, tokens) < 0.3
    arguments = (anchors, torch.tensor([0, 4]), torch.tensor([1, 4]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(network(x, *arguments), x)
    space = [n * side for n, side in zip(grid, patch_sides(len(grid), 2), strict=True)]
    latents = torch.randn(1, 3, *space)
    assert LatentMAE(LatentMAEConfig(3, len(grid), 2, 8, 2))(latents, torch.zeros(1, 1, *space)).shape == latents.shape


def test_clamped_anchors_pass_through_and_every_condition_matters(tmp_path):
    torch.manual_seed(0)
    network = Refiner(RefinerConfig(4, (4, 4), 2, 24, 1, 2, 3, 2, True))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, anchors = torch.randn(1, 16, 16), torch.arange(16)[None] < 5
    arguments = {"classes": torch.tensor([0]), "levels": torch.tensor([1]), "alpha": torch.tensor([1.0])}
    refined = network(x, anchors, **arguments)
    torch.testing.assert_close(refined[anchors], x[anchors])
    assert (refined[~anchors] - x[~anchors]).abs().min() > 0
    for name, tensor in arguments.items():
        assert not torch.allclose(network(x, anchors, **arguments | {name: tensor + 1}), refined), name
    save_network(network, torch.zeros(4), torch.ones(4), tmp_path / "refiner.safetensors")
    loaded, mean, std = load_network(tmp_path / "refiner.safetensors", "refiner")
    torch.testing.assert_close(loaded(x, anchors, **arguments), refined)
    assert loaded.config == network.config
    assert (mean.tolist(), std.tolist()) == ([0] * 4, [1] * 4)
    with pytest.raises(InputError, match="holds refiner of schema version 1, not latent_mae"):
        load_network(tmp_path / "refiner.safetensors", "latent_mae")


def test_batches_balance_classes_and_repeat_no_sample_before_its_turn(shard):
    latents = read_latents([shard], TINY.patch)
    codes = np.array([0] * 18 + [2] * 4 + [3] * 2)
    data = training_set(latents, codes, TINY)
    settings = replace(TINY, classes_per_step=3)
    batch = draw_batch(data, settings, np.random.default_rng(0))
    classes = batch.inputs.classes.reshape(3, 3)
    assert sorted(classes[:, 0].tolist()) == [0, 2, 3]
    assert (classes == classes[:, :1]).all()
    for row, code in zip(batch.positives, classes[:, 0].tolist(), strict=True):
        assert (codes[row] == code).all()
    alpha = batch.inputs.alpha.reshape(3, 3)
    assert (alpha == batch.alpha[:, None]).all()
    kept = batch.inputs.anchors.sum(1)
    assert kept.tolist() == [data.counts[level - 1] for level in batch.inputs.levels]
    clean, corrupted = batch.inputs.clean, batch.inputs.corrupted
    torch.testing.assert_close(clean[batch.inputs.anchors], corrupted[batch.inputs.anchors])
    draws = without_replacement(np.random.default_rng(0), np.arange(5), 13)
    assert sorted(np.bincount(draws).tolist()) == [2, 2, 3, 3, 3]
    assert len(set(draws[:5])) == 5


def test_codebook_separates_prompts_and_assigns_what_it_was_fitted_on(shard, tmp_path):
    settings = replace(TINY, codes=6)
    build_codebook([shard], tmp_path / "a.safetensors", tmp_path / "a.parquet", settings)
    build_codebook([shard], tmp_path / "b.safetensors", tmp_path / "b.parquet", settings)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    table = read_table(tmp_path / "a.parquet", "refine.assignments")
    assert table.group_by("prompt").agg(pl.col("code").n_unique())["code"].to_list() == [1] * 6  # 6 colour pairs
    assert table["code"].n_unique() == 6


def test_codebook_assigns_every_sample_to_its_nearest_centroid(shard):
    from ditscope.refine.codebook import assign, embed_set, fit_codebook

    latents = read_latents([shard], TINY.patch)
    book = fit_codebook(latents, TINY)
    embedding = embed_set(book, latents, TINY)
    codes, distances = assign(book, embedding)
    for row, code, distance in zip(embedding, codes, distances, strict=True):
        by_hand = [float(np.sqrt(((row - c) ** 2).sum())) for c in book.arrays["centroids"]]
        assert int(np.argmin(by_hand)) == code
        assert min(by_hand) == pytest.approx(distance)
    for code in range(TINY.codes):  # k-means: a centroid is the mean of its members
        np.testing.assert_allclose(book.arrays["centroids"][code], embedding[codes == code].mean(0), atol=1e-5)
    widths = (len(book.words), embedding.shape[1] - len(book.words))
    for part in np.split(embedding, [widths[0]], axis=1):  # both parts weigh the same
        assert (part**2).sum(1).mean() == pytest.approx(1.0)


def test_bad_input_is_one_line_before_anything_trains(shard, tmp_path):
    samples = list(read_tar(shard))
    nameless = [{k: v for k, v in samples[0].items() if k != "latent.npy"}]
    write_tar(nameless, tmp_path / "nameless.tar")
    with pytest.raises(InputError, match=r"nameless.tar: sample 0+ has no latent.npy"):
        read_latents([tmp_path / "nameless.tar"], 2)
    bad = [samples[0] | {"latent.npy": np.full((4, 8, 8), np.nan, np.float32)}]
    write_tar(bad, tmp_path / "bad.tar")
    with pytest.raises(InputError, match="NaN or Inf"):
        read_latents([tmp_path / "bad.tar"], 2)
    write_tar([samples[0], samples[1] | {"latent.npy": np.zeros((4, 6, 6), np.float32)}], tmp_path / "sizes.tar")
    with pytest.raises(InputError, match=r"\(4, 6, 6\), the first has \(4, 8, 8\)"):
        read_latents([tmp_path / "sizes.tar"], 2)
    with pytest.raises(InputError, match=r"refine.patch: 3 does not divide"):
        read_latents([shard], 3)
    with pytest.raises(InputError, match=r"refine.codes: 99 pseudo-classes from 24 samples"):
        build_codebook([shard], tmp_path / "c.safetensors", tmp_path / "c.parquet", replace(TINY, codes=99))
    with pytest.raises(InputError, match="did you mean `locations`"):
        stage.check_settings(replace(TINY, features=["location"]))
    build_codebook([shard], tmp_path / "c.safetensors", tmp_path / "c.parquet", TINY)
    other = write_discs(tmp_path / "other.tar", samples=12)
    with pytest.raises(InputError, match="lists other samples"):
        stage.read_codes(tmp_path / "c.parquet", read_latents([other], 2))
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match=r"torn.safetensors: not a readable safetensors file"):
        load_network(tmp_path / "torn.safetensors", "refiner")


@pytest.mark.system
def test_two_processes_share_out_the_batches_of_one(shard, tmp_path):
    """Two gloo processes under torchrun against one process that accumulates the same two batches per step.

    That of `paired`: the scales of `drifting` are taken over the batches of all processes, not over accumulated ones.
    """
    import os
    import subprocess
    import sys

    scripts = Path(stage.__file__).resolve().parents[2]
    settings = replace(TINY, mae_steps=1, objective="paired")
    build_codebook([shard], tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet", settings)
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom ditscope.refine.train import train\n"
        "from ditscope.refine.settings import Refine\n"
        "shard, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), Refine(**json.loads(sys.argv[3]))\n"
        "names = ('latent_mae.safetensors', 'refiner.safetensors', 'training.parquet', 'timing.parquet')\n"
        "train([shard], folder.parent / 'assignments.parquet', *[folder / n for n in names], settings=settings)\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    weights = {}
    for name, launch, accumulate in (("two", torchrun, 1), ("one", [], 2), ("half", [], 1)):
        arguments = [program, shard, tmp_path / name, json.dumps(vars(settings) | {"grad_accum": accumulate})]
        environment = os.environ | {"PYTHONPATH": str(scripts), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launch, *map(str, arguments)], check=True, env=environment, timeout=300)
        weights[name] = load_file(tmp_path / name / "refiner.safetensors")["network.head.weight"]
    torch.testing.assert_close(weights["two"], weights["one"], atol=1e-5, rtol=0.0)
    assert (weights["half"] - weights["one"]).abs().max() > 1e-4


VIDEO = replace(TINY, keys="frames", levels=2, min_anchors=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """24 video latents (4, 5, 8, 8)."""
    return write_latents(tmp_path_factory.mktemp("videos") / "shard-00000.tar", *drifting_discs(24))


@pytest.mark.parametrize("keys", ["frames", "patches"])
def test_videos_train_by_the_same_code_with_key_frames_or_key_patches(videos, tmp_path, keys):
    settings = replace(VIDEO, keys=keys)
    first = run(videos, tmp_path / "a", settings)
    assert run(videos, tmp_path / "b", settings) == first
    encoder, *_ = load_network(tmp_path / "a" / "latent_mae.safetensors", "latent_mae")
    network, *_ = load_network(tmp_path / "a" / "refiner.safetensors", "refiner")
    assert encoder.config.axes == 3
    assert network.config.grid == (5, 4, 4)
    table = read_table(tmp_path / "a" / "training.parquet", "refine.training")
    assert table["value"].is_finite().all()


def test_keys_of_a_video_are_whole_frames(videos):
    data = training_set(read_latents([videos], 2), np.arange(24) % 4, VIDEO)
    assert (data.nodes, data.counts, data.grid) == (5, [3, 2], (5, 4, 4))
    batch = draw_batch(data, VIDEO, np.random.default_rng(0))
    kept = batch.inputs.anchors.reshape(-1, 5, 16)
    assert (kept == kept[..., :1]).all()
    assert kept[..., 0].sum(1).tolist() == [data.counts[level - 1] for level in batch.inputs.levels]
    clean, corrupted = batch.inputs.clean, batch.inputs.corrupted
    torch.testing.assert_close(clean[batch.inputs.anchors], corrupted[batch.inputs.anchors])


def test_anchors_of_a_codebook_of_videos_are_all_patches_of_the_same_frames(videos):
    from ditscope.refine.codebook import fit_codebook

    anchors = fit_codebook(read_latents([videos], 2), VIDEO).arrays["anchors"]
    frames = np.unique(anchors // 16)
    assert len(frames) == VIDEO.min_anchors
    np.testing.assert_array_equal(anchors, (frames[:, None] * 16 + np.arange(16)).ravel())


def test_features_of_a_video_are_windows_of_one_frame():
    torch.manual_seed(0)
    encoder, x = LatentMAE(LatentMAEConfig(4, 3, 2, 8, 2)), torch.randn(2, 4, 5, 8, 8)
    features = extract(encoder, x, list(FEATURES))
    assert features["map0.patch4.mean"].shape == (2, 5 * 2 * 2, 8)
    maps = encoder.maps(x)
    torch.testing.assert_close(features["map0.patch4.mean"][:, 7], maps[0][:, :, 1, 4:, 4:].flatten(2).mean(-1))
    assert features["map0.location"].shape == (2, 320, 8)


def test_a_batch_has_nested_keys_protected_ends_and_replaced_keys_of_the_same_class(videos):
    latents, codes = read_latents([videos], 2), np.arange(24) % 4
    settings = replace(VIDEO, endpoints=True, interpolation="linear", min_anchors=2, levels=3, key_replacement=0.5)
    data = training_set(latents, codes, settings)
    orders = draw_orders(np.random.default_rng(0), 24, data.nodes, data.protected)
    rows, masks = np.arange(24), []
    for level in (1, 2, 3):
        levels, alpha = np.full(24, level), torch.ones(24)
        inputs = refiner_input(data, rows, levels, alpha, settings, np.random.default_rng(1), orders)
        masks.append(inputs.anchors.numpy())
        kept = inputs.anchors.reshape(24, 5, 16)[..., 0].numpy()
        assert kept[:, [0, 4]].all()
        assert (kept.sum(1) == data.counts[level - 1]).all()
        same = (inputs.corrupted == inputs.clean).reshape(24, 5, -1).all(-1).numpy()
        assert same[:, [0, 4]].all()
    assert (masks[2] <= masks[1]).all()
    assert (masks[1] <= masks[0]).all()
    inputs = refiner_input(data, rows, np.ones(24, int), torch.ones(24), settings, np.random.default_rng(1), orders)
    frames, clean = (x.reshape(24, 5, -1).numpy() for x in (inputs.corrupted, inputs.clean))
    kept, moved = masks[0].reshape(24, 5, 16)[..., 0], 0
    for i, t in zip(*np.nonzero(kept), strict=True):
        others = [j for j in range(24) if np.array_equal(frames[i, t], clean[j, t])]
        assert any(codes[j] == codes[i] for j in others)
        moved += i not in others
    assert moved > 5


def test_more_endpoints_than_anchors_are_refused(videos):
    latents, settings = read_latents([videos], 2), replace(VIDEO, endpoints=True)
    training_set(latents, np.arange(24) % 4, settings)
    with pytest.raises(InputError, match="min_anchors: 1 are fewer than the 2 endpoints; raise it"):
        training_set(latents, np.arange(24) % 4, replace(settings, min_anchors=1))


def test_interpolation_errors_are_those_of_all_and_of_missing_tokens():
    clean, anchors = torch.zeros(1, 4, 2), torch.tensor([[True, False, False, True]])
    corrupted = torch.tensor([[[0.0, 0], [1, 1], [3, 1], [0, 2]]])
    one = torch.ones(1, dtype=torch.int64)
    inputs = RefinerInput(corrupted, anchors, one, one, torch.ones(1), clean)
    assert stage.interpolation_errors(inputs) == {"interp/mse_all": 2.0, "interp/mse_missing": 3.0}


@pytest.mark.parametrize("objective", ["paired", "sum"])
def test_other_objectives_train_by_the_same_loop(shard, undisturbed, tmp_path, objective):
    run(shard, tmp_path, replace(TINY, objective=objective))
    assert (tmp_path / "latent_mae.safetensors").read_bytes() == undisturbed["latent_mae.safetensors"]
    table = read_table(tmp_path / "training.parquet", "refine.training").filter(network="refiner")
    curve = {metric: table.filter(metric=metric)["value"] for metric in table["metric"].unique()}
    if objective == "paired":
        assert curve["loss"].to_list() == pytest.approx(curve["mse_refined"].to_list(), rel=1e-5)
        assert not [metric for metric in curve if metric.startswith("field_strength")]
    else:
        terms = curve["loss_paired"] + TINY.drifting_weight * curve["loss_drifting"]
        assert curve["loss"].to_list() == pytest.approx(terms.to_list(), rel=1e-5)
        assert curve["loss_paired"].to_list() == pytest.approx(curve["mse_refined"].to_list(), rel=1e-5)


def test_a_batch_tells_which_real_samples_are_its_own(shard):
    latents = read_latents([shard], 2)
    data = training_set(latents, np.arange(24) % 4, TINY)
    torch.manual_seed(0)
    encoder = LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2))
    batch = draw_batch(data, TINY, np.random.default_rng(0))
    targets = stage.real_targets(data, encoder, batch, TINY, torch.device("cpu"))["map0.mean"]
    sources = [[*batch.unconditional, *positives] for positives in batch.positives]
    for c, rows in enumerate(batch.rows):
        for g, row in enumerate(rows):
            assert targets.own[c, g].tolist() == [source == row for source in sources[c]]
            np.testing.assert_array_equal(batch.inputs.clean[c * len(rows) + g], data.tokens[row])
    assert targets.own.any()
