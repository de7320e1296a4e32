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
from ditscope.core.tables import read_table
from ditscope.refine.batches import (
    Batch,
    Samples,
    conditions_of,
    corrupted_input,
    draw_batch,
    epoch_rows,
    load_batches,
    samples_of,
    without_replacement,
)
from ditscope.refine.codebook import build_codebook
from ditscope.refine.corruption import REPLACED
from ditscope.refine.dataset import open_dataset, read_values
from ditscope.refine.encoder import Encoder
from ditscope.refine.features import FEATURES, extract
from ditscope.refine.keys import draw_orders
from ditscope.refine.loop import LoopSettings, fit
from ditscope.refine.networks import (
    LatentMAE,
    LatentMAEConfig,
    load_network,
    mae_loss,
    patch_mask,
)
from ditscope.refine.objectives import OBJECTIVES
from ditscope.refine.patches import patch_sides, patchify
from ditscope.refine.refiner_file import load_refiner
from ditscope.refine.settings import Refine
from refine_latents import TINY, data_files, data_of, disc_latents, drifting_discs, write_discs, write_latents

OUTPUTS = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """32 discs of which 4 are held out: the table of samples and data.json."""
    folder = tmp_path_factory.mktemp("discs")
    return data_files(write_discs(folder / "shard-00000.tar", samples=32), folder)


@pytest.fixture(scope="module")
def discs(files) -> Samples:
    return samples_of(open_dataset(*files), "train", np.arange(32) % 4, TINY)


def run(files: tuple[Path, Path], folder: Path, settings: Refine = TINY, partial: Path | None = None, start: str = ""):
    codebook = folder / "codebook.safetensors", folder / "assignments.parquet"
    build_codebook(*files, *codebook, settings)
    paths = [folder / name for name in (*OUTPUTS, "training.timing.parquet")]
    stage.train(*files, *codebook, *paths, settings=settings, start=start, partial=partial)
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory) -> dict[str, bytes]:
    return run(files, tmp_path_factory.mktemp("undisturbed"))


def test_the_same_settings_give_the_same_bytes(files, undisturbed, tmp_path):
    assert run(files, tmp_path) == undisturbed


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 7}, {"interpolation": "idw"}, {"weighting": "log"}])
def test_a_changed_setting_changes_the_refiner(files, undisturbed, tmp_path, change):
    changed = run(files, tmp_path, replace(TINY, **change))
    assert changed["refiner.safetensors"] != undisturbed["refiner.safetensors"]
    assert (changed["latent_mae.safetensors"] == undisturbed["latent_mae.safetensors"]) == ("seed" not in change)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_and_resumed_training_gives_the_bytes_of_an_undisturbed_one(files, tmp_path, monkeypatch, optimizer):
    settings = replace(TINY, optimizer=optimizer)
    whole = run(files, tmp_path / "whole", settings)
    objective, calls = OBJECTIVES["drifting"], []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the sixth step, after the checkpoint of the fourth
            raise KeyboardInterrupt
        return objective(*arguments)

    monkeypatch.setitem(OBJECTIVES, "drifting", killed)
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "killed", settings, tmp_path / "partial")
    assert list((tmp_path / "partial").rglob("step-000004.safetensors"))
    assert run(files, tmp_path / "killed", settings, tmp_path / "partial") == whole
    assert len(calls) == 6 + 2  # only the two steps after the checkpoint ran again
    assert not any((tmp_path / "partial").iterdir())


def test_training_table_holds_every_step(undisturbed, files, tmp_path):
    run(files, tmp_path)
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

        def loss(forward, at, logged):
            step, number = at
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
def test_the_autoencoder_takes_any_number_of_axes(grid):
    space = [n * side for n, side in zip(grid, patch_sides(len(grid), 2), strict=True)]
    latents = torch.randn(1, 3, *space)
    assert LatentMAE(LatentMAEConfig(3, len(grid), 2, 8, 2))(latents, torch.zeros(1, 1, *space)).shape == latents.shape


def test_the_file_of_a_refiner_holds_all_that_using_it_needs(files, undisturbed, tmp_path):
    run(files, tmp_path)
    trained, data = load_refiner(tmp_path / "refiner.safetensors"), open_dataset(*files)
    assert (trained.settings, trained.adapter) == (TINY, data.adapter)
    np.testing.assert_array_equal([trained.mean, trained.std], [data.mean, data.std])
    assert trained.codebook.arrays["centroids"].shape[0] == TINY.codes
    with pytest.raises(InputError, match="holds refiner of schema version 2, not latent_mae"):
        load_network(tmp_path / "refiner.safetensors", "latent_mae")


def test_training_goes_on_from_the_file_of_a_refiner_and_refuses_another_shape(files, tmp_path):
    run(files, tmp_path / "first")
    first = str(tmp_path / "first" / "refiner.safetensors")
    still = run(files, tmp_path / "still", replace(TINY, learning_rate=1e-30), start=first)
    weights = [load_file(tmp_path / name / "refiner.safetensors") for name in ("first", "still")]
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key])
    assert run(files, tmp_path / "anew", replace(TINY, learning_rate=1e-30)) != still
    with pytest.raises(InputError, match=r"refiner.safetensors: `blocks.0.+` has the shape .+, this refiner"):
        run(files, tmp_path / "other", replace(TINY, width=48), start=first)


def test_batches_balance_classes_and_repeat_no_sample_before_its_turn(files):
    samples = samples_of(open_dataset(*files), "train", np.array([0] * 18 + [2] * 8 + [3] * 6), TINY)
    batch = draw_batch(samples, replace(TINY, classes_per_step=3, class_dropout=0.0), 0, 0)
    classes = batch.inputs.classes.reshape(3, 3)
    assert sorted(classes[:, 0].tolist()) == [0, 2, 3]
    assert (classes == classes[:, :1]).all()
    assert (batch.inputs.alpha.reshape(3, 3) == batch.banks.alpha[:, None]).all()
    kept = batch.inputs.keys.sum(1)
    assert set(kept.tolist()) <= set(samples.counts)
    torch.testing.assert_close(batch.clean[batch.inputs.keys], batch.inputs.tokens[batch.inputs.keys])
    draws = without_replacement(np.random.default_rng(0), np.arange(5), 13)
    assert sorted(np.bincount(draws).tolist()) == [2, 2, 3, 3, 3]
    assert len(set(draws[:5])) == 5


def test_an_epoch_has_every_training_sample_once_however_it_is_cut():
    rows = np.array([3, 5, 8, 9, 20])
    long = epoch_rows(rows, 0, 0, 15)
    for epoch in long.reshape(3, 5):
        assert sorted(epoch) == rows.tolist()
    assert len({tuple(epoch) for epoch in long.reshape(3, 5)}) == 3
    np.testing.assert_array_equal(np.concatenate([epoch_rows(rows, 0, start, 3) for start in range(0, 15, 3)]), long)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_batches_in_order(discs, workers):
    settings = replace(TINY, objective="paired")
    numbers = [(4, 0), (4, 1), (5, 0)]
    for (step, number), batch in zip(
        numbers, load_batches(draw_batch, (discs, settings), workers, numbers), strict=True
    ):
        wanted = draw_batch(discs, settings, step, number)
        assert torch.equal(batch.clean, wanted.clean)
        assert torch.equal(batch.inputs.tokens, wanted.inputs.tokens)


def test_texts_and_classes_are_left_out_at_the_rates_of_the_settings(discs):
    settings = replace(TINY, class_dropout=0.25, codes=4)
    told = conditions_of(
        discs, np.repeat(discs.rows, 100), np.ones(2800, np.float32), settings, np.random.default_rng(0)
    )
    assert (told.classes == 4).float().mean().item() == pytest.approx(0.25, abs=0.04)
    plain = conditions_of(discs, discs.rows, np.ones(28, np.float32), settings)
    assert plain.classes.tolist() == discs.codes.tolist()


def test_held_out_samples_are_never_drawn(files, discs):
    data = open_dataset(*files)
    held_out = read_values(data, data.rows("held-out"))
    assert len(held_out)
    seen = [draw_batch(discs, TINY, step, 0) for step in range(20)]
    clean = torch.cat([batch.clean for batch in seen])
    for sample in torch.from_numpy(patchify(held_out, TINY.patch)):
        assert (clean - sample).abs().amax((1, 2)).min() > 1e-3
        for batch in seen:
            real = torch.cat([batch.banks.positives, batch.banks.unconditional])
            assert (torch.from_numpy(patchify(real.numpy(), TINY.patch)) - sample).abs().amax((1, 2)).min() > 1e-3


def test_codebook_separates_prompts_and_assigns_what_it_was_fitted_on(files, tmp_path):
    settings = replace(TINY, codes=6)
    build_codebook(*files, tmp_path / "a.safetensors", tmp_path / "a.parquet", settings)
    build_codebook(*files, tmp_path / "b.safetensors", tmp_path / "b.parquet", settings)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    table = read_table(tmp_path / "a.parquet", "refine.assignments")
    assert table.group_by("prompt").agg(pl.col("code").n_unique())["code"].to_list() == [1] * 6  # 6 colour pairs
    assert table["code"].n_unique() == 6


def test_bad_input_is_one_line_before_anything_trains(files, tmp_path):
    with pytest.raises(InputError, match=r"refine.patch: 3 does not divide"):
        samples_of(open_dataset(*files), "train", np.zeros(32, int), replace(TINY, patch=3))
    with pytest.raises(InputError, match=r"refine.codes: 99 pseudo-classes from [0-9]+ samples"):
        build_codebook(*files, tmp_path / "c.safetensors", tmp_path / "c.parquet", replace(TINY, codes=99))
    with pytest.raises(InputError, match="did you mean `locations`"):
        stage.check_settings(replace(TINY, features=["location"]))
    with pytest.raises(InputError, match=r"refine.mask_ratio: 0 hides nothing"):
        stage.check_settings(replace(TINY, mask_ratio=0.0))
    build_codebook(*files, tmp_path / "c.safetensors", tmp_path / "c.parquet", TINY)
    with pytest.raises(InputError, match=r"refine.codes: 3, but .*c.safetensors has 4 pseudo-classes"):
        made = [tmp_path / name for name in ("m.safetensors", "r.safetensors", "t.parquet", "tt.parquet")]
        stage.train(*files, tmp_path / "c.safetensors", tmp_path / "c.parquet", *made, settings=replace(TINY, codes=3))
    other = data_of(write_discs(tmp_path / "other.tar", samples=12), tmp_path / "other")
    with pytest.raises(InputError, match="lists other samples"):
        stage.read_codes(tmp_path / "c.parquet", other)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match=r"torn.safetensors: not a readable safetensors file"):
        load_refiner(tmp_path / "torn.safetensors")


@pytest.mark.system
def test_two_processes_share_out_the_batches_of_one(files, tmp_path):
    """Two gloo processes under torchrun against one process that accumulates the same two batches per step.

    That of `paired`: the scales of `drifting` are taken over the batches of all processes, not over accumulated ones.
    """
    import os
    import subprocess
    import sys

    scripts = Path(stage.__file__).resolve().parents[2]
    settings = replace(TINY, mae_steps=1, objective="paired")
    build_codebook(*files, tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet", settings)
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom ditscope.refine.train import train\n"
        "from ditscope.refine.settings import Refine\n"
        "data, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), Refine(**json.loads(sys.argv[3]))\n"
        "inputs = [data / 'samples.parquet', data / 'data.json']\n"
        "inputs += [folder.parent / name for name in ('codebook.safetensors', 'assignments.parquet')]\n"
        "names = ('latent_mae.safetensors', 'refiner.safetensors', 'training.parquet', 'timing.parquet')\n"
        "train(*inputs, *[folder / name for name in names], settings=settings)\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    weights = {}
    for name, launch, accumulate in (("two", torchrun, 1), ("one", [], 2), ("half", [], 1)):
        arguments = [program, files[0].parent, tmp_path / name, json.dumps(vars(settings) | {"grad_accum": accumulate})]
        environment = os.environ | {"PYTHONPATH": str(scripts), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launch, *map(str, arguments)], check=True, env=environment, timeout=300)
        weights[name] = load_file(tmp_path / name / "refiner.safetensors")["network.head.weight"]
    torch.testing.assert_close(weights["two"], weights["one"], atol=1e-5, rtol=0.0)
    assert (weights["half"] - weights["one"]).abs().max() > 1e-4


VIDEO = replace(TINY, keys="frames", levels=2, min_keys=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> tuple[Path, Path]:
    """The data of 24 video latents (4, 5, 8, 8)."""
    folder = tmp_path_factory.mktemp("videos")
    return data_files(write_latents(folder / "shard-00000.tar", *drifting_discs(24)), folder)


def films(videos: tuple[Path, Path], settings: Refine) -> Samples:
    return samples_of(open_dataset(*videos), "train", np.arange(24) % 4, settings)


@pytest.mark.parametrize("keys", ["frames", "patches"])
def test_videos_train_by_the_same_code_with_key_frames_or_key_patches(videos, tmp_path, keys):
    settings = replace(VIDEO, keys=keys)
    first = run(videos, tmp_path / "a", settings)
    assert run(videos, tmp_path / "b", settings) == first
    encoder, *_ = load_network(tmp_path / "a" / "latent_mae.safetensors", "latent_mae")
    assert encoder.config.axes == load_refiner(tmp_path / "a" / "refiner.safetensors").network.config.axes == 3
    table = read_table(tmp_path / "a" / "training.parquet", "refine.training")
    assert table["value"].is_finite().all()


def test_keys_of_a_video_are_whole_frames(videos):
    samples = films(videos, VIDEO)
    assert (samples.nodes, samples.counts, samples.grid) == (5, [3, 2], (5, 4, 4))
    batch = draw_batch(samples, VIDEO, 0, 0)
    kept = batch.inputs.keys.reshape(-1, 5, 16)
    assert (kept == kept[..., :1]).all()
    assert set(kept[..., 0].sum(1).tolist()) <= set(samples.counts)
    torch.testing.assert_close(batch.clean[batch.inputs.keys], batch.inputs.tokens[batch.inputs.keys])


def test_features_of_a_video_are_windows_of_one_frame():
    torch.manual_seed(0)
    encoder, x = LatentMAE(LatentMAEConfig(4, 3, 2, 8, 2)), torch.randn(2, 4, 5, 8, 8)
    features = extract(encoder, x, list(FEATURES))
    assert features["map0.patch4.mean"].shape == (2, 5 * 2 * 2, 8)
    maps = encoder.maps(x)
    torch.testing.assert_close(features["map0.patch4.mean"][:, 7], maps[0][:, :, 1, 4:, 4:].flatten(2).mean(-1))
    assert features["map0.location"].shape == (2, 320, 8)


def test_a_batch_has_nested_keys_protected_ends_and_replaced_keys_of_the_same_class(videos):
    settings = replace(VIDEO, endpoints=True, interpolation="linear", min_keys=2, levels=3, key_replacement=0.5)
    samples = films(videos, settings)
    rows, count = samples.rows, len(samples.rows)
    clean = patchify(read_values(samples.data, rows), 2)
    orders = draw_orders(np.random.default_rng(0), count, samples.nodes, samples.protected)
    told = conditions_of(samples, rows, np.ones(count, np.float32), settings)
    masks, inputs = [], []
    for level in (1, 2, 3):
        levels, rng = np.full(count, level), np.random.default_rng(1)
        inputs.append(corrupted_input(samples, clean, levels, orders, told, settings, rng, rows))
        masks.append(inputs[-1].keys.numpy())
        kept = inputs[-1].keys.reshape(count, 5, 16)[..., 0].numpy()
        assert kept[:, [0, 4]].all()
        assert (kept.sum(1) == samples.counts[level - 1]).all()
        same = (inputs[-1].tokens.numpy() == clean).reshape(count, 5, -1).all(-1)
        assert same[:, [0, 4]].all()
    assert (masks[2] <= masks[1]).all()
    assert (masks[1] <= masks[0]).all()
    frames, true = (x.reshape(count, 5, -1) for x in (inputs[0].tokens.numpy(), clean))
    kept, moved = masks[0].reshape(count, 5, 16)[..., 0], 0
    for i, t in zip(*np.nonzero(kept), strict=True):
        others = [j for j in range(count) if np.array_equal(frames[i, t], true[j, t])]
        assert any(samples.codes[j] == samples.codes[i] for j in others)
        moved += i not in others
        assert i in others or inputs[0].confidence.reshape(count, 5, 16)[i, t, 0] == REPLACED
    assert moved > 5


def test_more_endpoints_than_keys_are_refused(videos):
    settings = replace(VIDEO, endpoints=True)
    films(videos, settings)
    with pytest.raises(InputError, match="min_keys: 1 are fewer than the 2 endpoints; raise it"):
        films(videos, replace(settings, min_keys=1))


def test_errors_are_those_of_all_and_of_missing_tokens(discs):
    batch = draw_batch(discs, TINY, 0, 0)
    keys = torch.tensor([[True, False, False, True]])
    tokens = torch.tensor([[[0.0, 0], [1, 1], [3, 1], [0, 2]]])
    inputs = replace(batch.inputs, tokens=tokens, keys=keys)
    numbers = stage.errors(Batch(inputs, torch.zeros(1, 4, 2), None), 2 * tokens)
    interpolated = {"interp/mse_all": 2.0, "interp/mse_missing": 3.0}
    assert numbers == interpolated | {"refined/mse_all": 8.0, "refined/mse_missing": 12.0}


@pytest.mark.parametrize("objective", ["paired", "sum"])
def test_other_objectives_train_by_the_same_loop(files, undisturbed, tmp_path, objective):
    run(files, tmp_path, replace(TINY, objective=objective))
    assert (tmp_path / "latent_mae.safetensors").read_bytes() == undisturbed["latent_mae.safetensors"]
    table = read_table(tmp_path / "training.parquet", "refine.training").filter(network="refiner")
    curve = {metric: table.filter(metric=metric)["value"] for metric in table["metric"].unique()}
    if objective == "paired":
        assert curve["loss"].to_list() == pytest.approx(curve["refined/mse_all"].to_list(), rel=1e-5)
        assert not [metric for metric in curve if metric.startswith("field_strength")]
    else:
        terms = curve["loss_paired"] + TINY.drifting_weight * curve["loss_drifting"]
        assert curve["loss"].to_list() == pytest.approx(terms.to_list(), rel=1e-5)
        assert curve["loss_paired"].to_list() == pytest.approx(curve["refined/mse_all"].to_list(), rel=1e-5)


def test_a_batch_tells_which_real_samples_are_its_own(discs):
    torch.manual_seed(0)
    encoder = Encoder(LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2)))
    batch = draw_batch(discs, TINY, 0, 0)
    own = stage.real_targets(encoder, batch, TINY)["map0.mean"].own
    tokens = torch.from_numpy(patchify(batch.banks.unconditional.numpy(), TINY.patch))
    positives = torch.from_numpy(patchify(batch.banks.positives.numpy(), TINY.patch)).unflatten(0, (2, -1))
    clean = batch.clean.unflatten(0, (2, -1))
    for c in range(2):
        for g in range(TINY.generated_per_class):
            real = torch.cat([tokens, positives[c]])
            assert own[c, g].tolist() == (real == clean[c, g]).flatten(1).all(1).tolist()
    assert own.any()
