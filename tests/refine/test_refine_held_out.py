"""Does a refiner help where it was not trained? On combinations of the shapes world that no training sample has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t

from ditscope.models.settings import Model
from ditscope.refine.apply import apply
from ditscope.refine.batches import Samples, conditions_of, corrupted_input, samples_of
from ditscope.refine.data_settings import Source
from ditscope.refine.dataset import open_dataset, read_values
from ditscope.refine.encoder import Encoder
from ditscope.refine.keys import draw_orders
from ditscope.refine.patches import patchify
from ditscope.refine.prepare import prepare
from ditscope.refine.settings import Refine
from ditscope.refine.train import train_latent_mae, train_refiner
from ditscope.shapes import world
from workflow import ROOT

COUNT, HELD_OUT = 640, 96
SETTINGS = replace(
    Refine(), codes=6, steps=120, mae_steps=100, generated_per_class=6, positives=12, ema=0.98, checkpoint_every=10**6
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Samples, Samples]:
    """VAE latents of renders to train on, and of combinations that no model is trained on; shapes are classes."""
    folder = tmp_path_factory.mktemp("renders")
    files = folder / "samples.parquet", folder / "data.json"
    model = Model("flux", f"{ROOT}/models/shapes-flux", width=64, height=64)
    prepare({"flux": model}, *files, folder / "data", source=Source(kind="renders", model="flux", count=COUNT))
    data = open_dataset(*files)
    shapes = [world.parse_caption(prompt)["shape"] for prompt in data.samples["prompt"]]
    codes = np.array([world.SHAPES.index(shape) for shape in shapes])
    return samples_of(data, "train", codes, SETTINGS), samples_of(data, "held-out", codes, SETTINGS)


def gains(sets: tuple[Samples, Samples], settings: Refine, folder) -> np.ndarray:
    """Missing-token error of the interpolation less that of a refiner trained on the first set, (levels, held out)."""
    train, test = sets
    device, rows = torch.device("cpu"), test.rows[:HELD_OUT]
    torch.manual_seed(0)
    encoder, _ = train_latent_mae(train, settings, folder / "mae", device)
    network, _ = train_refiner(train, Encoder(encoder), settings, "", folder / "refiner", device)
    orders = draw_orders(np.random.default_rng(9), len(rows), test.nodes)
    clean = patchify(read_values(test.data, rows), settings.patch)
    told = conditions_of(test, rows, np.ones(len(rows), np.float32), settings)
    rng, gained = np.random.default_rng(0), []
    for level in range(1, settings.levels + 1):
        levels = np.full(len(rows), level)
        inputs = corrupted_input(test, clean, levels, orders, told, settings, rng, rows)
        with torch.no_grad():
            refined = apply(network, inputs, test.grid)
        missing, truth = ~inputs.keys, torch.from_numpy(clean)
        tokens = (inputs.tokens, refined)
        errors = [((x - truth).square().mean(-1) * missing).sum(1) / missing.sum(1) for x in tokens]
        gained.append((errors[0] - errors[1]).numpy())
    return np.stack(gained)


@pytest.mark.system
def test_the_default_objective_beats_interpolation_at_every_level_and_by_more_than_drifting(sets, tmp_path):
    gain = gains(sets, SETTINGS, tmp_path / "default")
    count = gain.shape[1]
    half_width = t.ppf(0.975, count - 1) * gain.std(1, ddof=1) / np.sqrt(count)
    assert (gain.mean(1) - half_width > 0.03).all()
    drifting = gains(sets, replace(SETTINGS, objective="drifting"), tmp_path / "drifting")
    assert (gain.mean(1) > drifting.mean(1) + half_width).all()
