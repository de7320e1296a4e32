"""`ditscope culprit`: planted outliers are found, the certificate is true by brute force, and effects are proved."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ditscope.benchmark import culprit as module
from ditscope.benchmark.culprit import Culprit, Search, culprit, find, hopeless, judged_runs, passed
from ditscope.benchmark.culprit_report import markdown
from ditscope.benchmark.took_effect import effect_of
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.settings import Scheme
from tiny_models import tiny_generator

SCHEME = Scheme("intx-weight-only", bits=8)
QUICK = Culprit(metric="latent_error", threshold=0.02, order_prompts=2, num_prompts=8, batch_size=4)


def runs(count: int) -> list[dict]:
    return [{"prompt_id": f"p{i}", "prompt": f"a {i}", "negative_prompt": "", "seed": i} for i in range(count)]


def plant(transformer: nn.Module, layer: str) -> None:
    """Outliers in one column of a weight, of an input channel that carries next to nothing.

    The other columns' grid is thousands of times coarser, and the layer computes much as it did.
    """
    weight = transformer.get_submodule(layer).weight
    with torch.no_grad():
        weight[:, 0] = weight.abs().max() * 2000
    mask = torch.ones(weight.shape[1])
    mask[0] = 1e-6
    transformer.get_submodule(layer).register_forward_pre_hook(lambda _, given: (given[0] * mask, *given[1:]))


@pytest.fixture
def planted():
    """A model whose hooks stay with copies of its layers, as its quantized copy needs."""
    model = tiny_generator("flux")
    model = replace(model, entry=replace(model.entry, steps=2))
    return model


def linear_names(model) -> list[str]:
    return [n for n, m in model.pipe.transformer.named_modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    "layers",
    [
        ["single_transformer_blocks.0.proj_mlp"],
        pytest.param(
            ["transformer_blocks.1.ff.net.2", "single_transformer_blocks.1.proj_out"], marks=pytest.mark.system
        ),
    ],
)
def test_planted_outliers_are_recovered_exactly(planted, layers):
    for layer in layers:
        plant(planted.pipe.transformer, layer)
    found = find(planted, SCHEME, runs(10), QUICK)
    assert found.kept == set(layers)
    assert found.layers.filter("kept")["passes_without"].to_list() == [False] * len(layers)
    assert found.layers.filter("kept")["layer"].to_list() == found.layers["layer"].to_list()[: len(layers)]
    assert found.certificate == [(1, len(linear_names(planted)), len(linear_names(planted)))][: len(layers) - 1]
    assert not found.sets.filter(pl.col("kept").list.len() == 0)["passes"].any()
    assert (found.layers["finding"] == "").all()
    text = markdown("tiny", QUICK, found.layers, found.sets, found.kept, found.certificate)
    assert (
        f"**{len(layers)} of {len(found.layers)} layers** make it pass" in text and "So no smaller set passes" in text
    )
    transformer = planted.pipe.transformer
    assert all(type(transformer.get_submodule(layer)) is nn.Linear for layer in found.layers["layer"])


@pytest.mark.parametrize("seed", range(20))
def test_search_against_brute_force(seed):
    """Six layers whose errors add: the found set is a smallest one, and its certificate is true."""
    rng = np.random.default_rng(seed)
    layers = [f"l{i}" for i in range(6)]
    error = dict(zip(layers, rng.exponential(size=6) ** 3, strict=True))
    jointly = {frozenset(pair): rng.normal() * 0.3 for pair in combinations(layers, 2)}

    def total(kept) -> float:
        rest = [layer for layer in layers if layer not in kept]
        return sum(error[layer] for layer in rest) + sum(v for pair, v in jointly.items() if pair <= set(rest))

    limit = rng.uniform(0.1, 0.8) * max(total(()), 0.1)

    def judge(kept):
        return np.full(8, total(kept)), total(kept) <= limit

    search = Search(judge)
    order = sorted(layers, key=error.__getitem__, reverse=True)
    kept = search.smallest(order, Culprit())
    passing = [set(s) for size in range(7) for s in combinations(layers, size) if total(s) <= limit]
    assert kept is not None and set(kept) in passing
    assert all(total(kept - {layer}) > limit for layer in kept)
    if len(kept) <= 3:
        assert len(kept) == min(map(len, passing))
    else:
        assert min(map(len, passing)) > 2 and search.tried(1) == 6 and search.tried(2) == 15
    assert all(trial.passes == (total(key) <= limit) for key, trial in search.trials.items())


def test_limits_of_the_search_are_said():
    search = Search(lambda kept: (np.ones(8), len(kept) == 4))
    assert search.smallest("abcdef", Culprit(max_layers=3)) is None
    search = Search(lambda kept: (np.ones(8), len(kept) >= 4))
    assert search.smallest("abcdef", Culprit(max_sets=10)) == frozenset("abcd")
    assert search.tried(1) == 6 and search.tried(2) == 4


def test_a_verdict_needs_the_whole_interval_and_stops_only_where_it_is_clear():
    psnr, error = Culprit(threshold=30.0), Culprit(metric="latent_error", threshold=0.1)
    assert passed(np.full(8, 31.0), psnr) and not passed(np.array([25.0, 40] * 4), psnr)
    assert passed(np.full(8, 0.09), error) and not passed(np.array([0.01, 0.18] * 4), error)
    assert hopeless(np.array([0.9, 0.8]), 16, error) and not hopeless(np.array([0.9, 0.5]), 16, error)
    assert hopeless(np.linspace(20, 25, 8), 16, psnr) and not hopeless(np.linspace(20, 25, 4), 16, psnr)
    assert not hopeless(np.linspace(29, 32, 8), 16, psnr)


def test_effect_of_a_layer_against_float64():
    torch.manual_seed(0)
    own, x = nn.Linear(16, 8), torch.randn(3, 16)
    after = deepcopy(own)
    after.weight.data += 0.1
    found = effect_of(own, after, x, True, "")
    moved = (after.weight.double() - own.weight.double()).norm() / own.weight.double().norm()
    assert found["weight_error"] == pytest.approx(float(moved.detach()), rel=1e-6)
    changed = (x.double() @ after.weight.double().T - x.double() @ own.weight.double().T).norm()
    assert found["output_error"] == pytest.approx(float((changed / own(x).double().norm()).detach()), rel=1e-5)
    assert found["finding"] == "" and found["stored_bytes"] == found["full_bytes"] == 16 * 8 * 4
    assert effect_of(own, deepcopy(own), x, True, "")["finding"].startswith("not applied")
    left = effect_of(own, deepcopy(own), x, False, "below min_weights 9")
    assert left["finding"] == "" and left["left_because"] == "below min_weights 9"


def test_what_was_not_applied_is_a_finding_and_ends_with_1(planted, tmp_path, monkeypatch, capsys):
    """A scheme whose application silently skips a layer, as where a filter misses its name."""
    csv = tmp_path / "p.csv"
    csv.write_text("prompt\n" + "".join(f"a {i}\n" for i in range(10)))
    monkeypatch.setattr(module, "load_generator", lambda name, model: planted)
    own = module.prepare

    def forgetful(model, *rest):
        kept = deepcopy(model.pipe.transformer.proj_out)
        reason = own(model, *rest)
        model.pipe.transformer.set_submodule("proj_out", kept)
        return reason

    monkeypatch.setattr(module, "prepare", forgetful)
    with pytest.raises(SystemExit) as ended:
        culprit("tiny", planted.entry, SCHEME, [csv], tmp_path / "out", settings=replace(QUICK, threshold=0.5))
    assert ended.value.code == 1
    assert "**Finding**: `proj_out`: not applied" in capsys.readouterr().out
    table = read_table(tmp_path / "out/layers.parquet", "benchmark.culprit")
    assert table.filter(pl.col("finding") != "")["layer"].to_list() == ["proj_out"]
    monkeypatch.setattr(module, "prepare", own)
    culprit("tiny", planted.entry, SCHEME, [csv], tmp_path / "out", settings=replace(QUICK, threshold=0.5))
    assert "It passes as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Culprit(num_prompts=20), r"p\.csv: 10 prompts; 4 to order and 20 to judge are 24"),
        (Culprit(num_prompts=4), "num_prompts: 4 is too few for an interval; take at least 8"),
        (Culprit(threshold=120.0), "threshold: 120 dB; equal pictures count as 100 dB"),
    ],
)
def test_bad_input(tmp_path, settings, message):
    (tmp_path / "p.csv").write_text("prompt\n" + "".join(f"a {i}\n" for i in range(10)))
    with pytest.raises(InputError, match=message):
        judged_runs([tmp_path / "p.csv"], settings)


def test_seeds_of_a_prompt_are_no_units(tmp_path):
    rows = [f"a {i},{seed}\n" for i in range(9) for seed in (0, 1)]
    (tmp_path / "p.csv").write_text("prompt,seed\n" + "".join(rows))
    judged = judged_runs([tmp_path / "p.csv"], Culprit(order_prompts=1, num_prompts=8))
    assert [(run["prompt"], run["seed"]) for run in judged] == [(f"a {i}", 0) for i in range(9)]
