"""Activation statistics: every number against NumPy over the activations themselves, merging, and the whole stage."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ditscope.calibrate import stage
from ditscope.calibrate.activation_table import DECAY, activation_table
from ditscope.calibrate.activations import ActivationRecorder, channel_statistics, joined
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.calibrate.tables import ACTIVATIONS, CHANNELS, PART
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.quantizers import quantizable
from ditscope.models.sampling import sample
from tiny_models import ENTRIES, tiny_generator


def moving(midpoints: np.ndarray) -> np.ndarray:
    """The moving average over images, started without bias: weights DECAY to the images after, normalised."""
    weights = DECAY ** np.arange(len(midpoints))[::-1]
    return (weights[:, None] * midpoints).sum(0) / weights.sum()


def reference(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of activations (images, tokens, channels) by NumPy in float64."""
    size = abs(images)
    return {
        "channel_min": images.min((0, 1)),
        "channel_max": images.max((0, 1)),
        "channel_p99": np.quantile(size, 0.99, axis=1, method="inverted_cdf").mean(0),
        "channel_p999": np.quantile(size, 0.999, axis=1, method="inverted_cdf").mean(0),
        "channel_shift": moving((images.min(1) + images.max(1)) / 2),
    }


def part(values: torch.Tensor, n: int, layer: str = "l", step: int = 0) -> dict:
    row = {"model": "m", "layer": layer, "step_index": step, "sigma": 0.5, "n": n}
    return row | dict(zip(CHANNELS, values.numpy(), strict=True))


@pytest.mark.parametrize("tokens", [1, 7, 100, 1500])
@pytest.mark.parametrize("slices", [[5], [2, 3], [1, 1, 3]])
def test_numbers_are_numpy_s_however_the_images_are_sliced(tokens, slices):
    rng = np.random.default_rng(tokens)
    images = (rng.normal(size=(5, tokens, 6)) * [1, 2, 3, 4, 5, 200]).astype(np.float32)
    parts, start = [], 0
    for size in slices:
        parts.append(part(channel_statistics(torch.from_numpy(images[start : start + size]), size), size))
        start += size
    (row,) = activation_table(pl.DataFrame(parts, schema=PART.schema())).to_dicts()
    for name, expected in reference(images.astype(np.float64)).items():
        np.testing.assert_allclose(row[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    size = abs(images).max((0, 1))
    assert (row["n"], row["channels"], row["outliers"], row["outlier_channels"]) == (5, 6, 1, [5])
    assert row["absmax"] == pytest.approx(size.max())
    assert row["outlier_ratio"] == pytest.approx(size.max() / np.median(size), rel=1e-6)


def test_halves_of_guidance_belong_to_their_image():
    halves = torch.randn(2, 3, 8, 4)  # [cond, uncond] x images x tokens x channels
    together = halves.movedim(1, 0).reshape(3, 16, 4)
    assert torch.equal(channel_statistics(halves.flatten(0, 1), 3), channel_statistics(together, 3))


def test_a_layer_called_twice_counts_its_images_twice():
    calls = torch.randn(2, 3, 8, 4)
    both = joined(channel_statistics(calls[0], 3), channel_statistics(calls[1], 3), 3)
    table = activation_table(pl.DataFrame([part(both, 6)], schema=PART.schema()))
    for name, expected in reference(calls.flatten(0, 1).double().numpy()).items():
        np.testing.assert_allclose(table[name][0], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_channels_that_are_always_zero_have_no_outliers():
    (row,) = activation_table(pl.DataFrame([part(torch.zeros(5, 4), 1)], schema=PART.schema())).to_dicts()
    assert (row["absmax"], row["outliers"], row["outlier_ratio"]) == (0.0, 0, None)
    assert activation_table(pl.DataFrame(schema=PART.schema())).is_empty()


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_recorder_sees_what_the_layers_are_given(kind):
    """Against inputs that plain hooks kept; tokens of linear layers, places of convolutions."""
    model = tiny_generator(kind)
    layers = quantizable(model.pipe.transformer)
    kept: dict[tuple[str, int], torch.Tensor] = {}
    seen: dict[str, int] = {}

    def keep(name):
        def hook(module, inputs):
            kept[name, seen.setdefault(name, 0)] = inputs[0].clone()
            seen[name] += 1

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in layers.items()]
    recorder = ActivationRecorder([0, 2])
    sample(model, ["a", "b"], ["", ""], [0, 1], [recorder], steps=3)
    for handle in handles:
        handle.remove()
    assert set(seen.values()) == {3}
    assert recorder.statistics.keys() == {(name, step) for name in layers for step in (0, 2)}
    for (name, step), (n, values) in recorder.statistics.items():
        x = kept[name, step].double()
        if isinstance(layers[name], nn.Conv2d):
            x = x.flatten(2).mT
        rows = x.unflatten(0, (-1, 2)).movedim(1, 0).reshape(2, -1, x.shape[-1]).numpy()
        assert n == 2
        (row,) = activation_table(pl.DataFrame([part(values, n)], schema=PART.schema())).to_dicts()
        for column, expected in reference(rows).items():
            np.testing.assert_allclose(row[column], expected, rtol=1e-4, atol=1e-5, err_msg=f"{name} {column}")
    assert not any(module._forward_pre_hooks for module in layers.values())


def test_stage_leaves_one_table_of_all_slices_and_shards(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stage, "load_generator", lambda name, entry: tiny_generator("sd3", name))
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt\na red ring\na blue star\n")
    settings = {"num_images": 3, "num_steps": 4, "cfg_weight": 2.5, "statistics": "0,-1"}
    tables = []
    for folder, sizes in (("a", {"shard_size": 2, "slice_size": 1}), ("b", {"shard_size": 3, "slice_size": 3})):
        calibrate("tiny", ENTRIES["sd3"], csv, tmp_path / folder, Calibrate(**settings, **sizes))
        tables.append(read_table(tmp_path / folder / "activations.parquet", ACTIVATIONS.name))
    layers = list(quantizable(tiny_generator("sd3").pipe.transformer))
    assert tables[0].select("layer", "step_index").rows() == [(name, step) for name in layers for step in (0, 3)]
    assert tables[0]["n"].unique().to_list() == [3]
    for name in CHANNELS:  # how images are batched changes rounding only
        one, other = (np.concatenate(table[name].to_list()) for table in tables)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
    with pytest.raises(InputError, match=r"calibrate\.statistics `9`: `9` matches nothing; there are 0-3"):
        calibrate("tiny", ENTRIES["sd3"], csv, tmp_path / "c", Calibrate(num_steps=4, statistics="9"))
    calibrate("tiny", ENTRIES["sd3"], csv, tmp_path / "d", Calibrate(num_images=1, num_steps=4, statistics=""))
    assert read_table(tmp_path / "d/activations.parquet", ACTIVATIONS.name).is_empty()
