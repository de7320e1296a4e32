"""Step caching: bit for bit the same at threshold 0, diffusers' own at others, profiles against its calibration."""

import ast
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, SanaTransformer2DModel
from diffusers.hooks import apply_mag_cache

from ditscope.benchmark.caching import caching
from ditscope.config import Config, check
from ditscope.core.errors import InputError
from ditscope.core.identity import BASE, scheme_id
from ditscope.core.settings import decode
from ditscope.models import step_cache
from ditscope.models.prepare import prepare
from ditscope.models.quantize import label, unsupported
from ditscope.models.sampling import sample
from ditscope.models.settings import CACHES, Scheme
from ditscope.models.step_cache import NEVER, Profile, TeaCacheHead, enable, profile_of, refusal
from ditscope.models.structure import on_meta
from tiny_models import tiny_generator

KINDS = ("flux", "sd3")
RUNS = (["a", "b"], ["", ""], [1, 2])


def cached(kind, method, threshold, scheme="base"):
    generator = tiny_generator(kind)
    entry = Scheme(scheme, cache=method, cache_threshold=threshold)
    assert prepare(generator, entry, "eager", None) == ""
    return generator, generator.pipe.transformer.step_cache


@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("scheme", ["base", "int8-weight-only"])
@pytest.mark.parametrize("kind", KINDS)
def test_threshold_0_gives_identical_pictures(kind, scheme, method):
    plain = tiny_generator(kind)
    assert prepare(plain, Scheme(scheme), "eager", None) == ""
    generator, cache = cached(kind, method, 0.0, scheme)
    assert torch.equal(sample(generator, *RUNS), sample(plain, *RUNS))
    assert (cache.calls, cache.skipped) == (generator.entry.steps, 0)


@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_threshold_skips_steps_and_a_run_leaves_nothing_to_the_next(kind, method):
    generator, cache = cached(kind, method, 100.0)
    first, steps = sample(generator, *RUNS), generator.entry.steps
    # MagCache runs its first fifth in full, and never skips more than three steps in a row.
    assert cache.skipped == (steps - 1 if method != "magcache" else {5: 3, 6: 4}[steps])
    sample(generator, ["c"], [""], [3])
    assert torch.equal(sample(generator, *RUNS), first)
    assert not torch.equal(first, sample(tiny_generator(kind), *RUNS))


def test_first_block_cache_is_that_of_diffusers():
    ours, _ = cached("flux", "first-block", 0.3)
    theirs = tiny_generator("flux")
    theirs.pipe.transformer.enable_cache(FirstBlockCacheConfig(0.3))
    assert torch.equal(sample(ours, *RUNS), sample(theirs, *RUNS))


@pytest.mark.parametrize("kind", KINDS)
def test_magcache_is_that_of_diffusers_by_its_own_calibration(kind, capsys):
    ours, cache = cached(kind, "magcache", 0.2)
    pictures = sample(ours, *RUNS)
    printed = []
    for seed in step_cache.PROFILE_SEEDS:
        theirs, steps = tiny_generator(kind), ours.entry.steps
        apply_mag_cache(theirs.pipe.transformer, MagCacheConfig(num_inference_steps=steps, calibrate=True))
        sample(theirs, [""], [""], [seed])
        printed.append(ast.literal_eval(capsys.readouterr().out.split("mag_ratios=...):\n")[1].split("\n")[0]))
    ratios = np.mean(printed, axis=0)
    assert cache.profiles[steps].ratios == pytest.approx(ratios.tolist(), rel=1e-6)
    again = tiny_generator(kind)
    apply_mag_cache(
        again.pipe.transformer,
        MagCacheConfig(0.2, num_inference_steps=steps, mag_ratios=cache.profiles[steps].ratios),
    )
    assert torch.equal(sample(again, *RUNS), pictures)


def test_first_block_cache_of_sd3_against_its_definition():
    """The blocks after the first answer with the residual of the first step, which is kept from there on."""
    ours, _ = cached("sd3", "first-block", 100.0)
    plain = tiny_generator("sd3")
    blocks, kept = plain.pipe.transformer.transformer_blocks, {}
    own = [block.forward for block in blocks]

    def head(*args, **options):
        out = own[0](*args, **options)
        kept["head"] = out[1]
        return out

    def middle(*args, **options):
        return own[1](*args, **options) if "tail" not in kept else (options["encoder_hidden_states"], None)

    def tail(*args, **options):
        if "tail" not in kept:
            out = own[2](*args, **options)
            kept["tail"] = out[1] - kept["head"]
            return out
        return None, kept["head"] + kept["tail"]

    for block, forward in zip(blocks, (head, middle, tail), strict=True):
        block.forward = forward
    assert torch.equal(sample(ours, *RUNS), sample(plain, *RUNS))


def test_teacache_sums_estimated_changes_until_they_pass_the_threshold():
    profile = Profile([], [2.0, 0.0], [0.0, 0.1, 0.5], [])  # twice the change of the input
    assert [profile.change(x) for x in (0.2, 0.05, 9.0)] == pytest.approx([0.4, 0.2, 1.0])  # borders of what was seen
    assert Profile([], [-1.0, 0.0], [0.0, 0.1, 0.5], []).change(0.2) == 0
    states = type("States", (), {"context": type("Context", (), {"name": "x"})})()
    head = TeaCacheHead(states, 0.5)
    head.profile, full = profile, []
    for value in (1.0, 1.1, 1.21, 1.331, 1.331 * 1.5):  # changes of 0.1, 0.1, 0.1, 0.5
        head.modulated = torch.full((1, 2, 3), value)
        full.append(head._should_compute_remaining_blocks(None))
    assert full == [True, False, False, True, True]  # sums of 0.2, 0.4, 0.6; from 0 again 1.0


def test_a_profile_of_known_runs():
    hidden = torch.ones(1, 4, 2)
    run = [[hidden * 1.5**i, hidden * 1.2**i, hidden * 1.5**i + 0.5**i] for i in range(12)]
    profile = profile_of([run])
    assert profile.ratios == pytest.approx([1.0] + [0.5] * 11, rel=1e-4)
    assert profile.input_change == pytest.approx([0.0] + [0.2] * 11, abs=1e-6)
    assert profile_of([run[:1]]).ratios == [1.0]
    assert len(profile_of([run]).coefficients) == 3  # 12 steps: a parabola


def test_a_profile_belongs_to_a_number_of_steps():
    generator, cache = cached("flux", "magcache", 0.1)
    for steps in (4, 7):
        sample(generator, *RUNS, steps=steps)
    assert {steps: len(profile.ratios) for steps, profile in cache.profiles.items()} == {4: 4, 7: 7}
    assert cache.calls == 11  # those of profiles are not counted


def test_hooks_can_be_taken_off():
    generator, cache = cached("sd3", "teacache", 100.0)
    sample(generator, *RUNS)
    cache.remove()
    assert torch.equal(sample(generator, *RUNS), sample(tiny_generator("sd3"), *RUNS))
    assert enable(generator, "first-block", 0.0) == ""  # and others put on


def test_what_cannot_be_cached_says_why():
    generator = tiny_generator("flux")
    sana = on_meta(SanaTransformer2DModel, {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8})
    assert "no cache hooks for SanaTransformerBlock" in refusal(sana, "first-block")
    assert "finds no list of blocks" in refusal(torch.nn.Linear(2, 2), "magcache")
    generator.pipe.transformer_2 = generator.pipe.transformer
    assert "two transformers" in prepare(generator, Scheme("base", cache="magcache"), "eager", None)
    sd3, _ = cached("sd3", "first-block", 0.1)
    guided = replace(sd3, entry=replace(sd3.entry, call={"skip_guidance_layers": [1]}))
    with pytest.raises(InputError, match="calls the transformer twice in a step"):
        sample(guided, *RUNS)


def test_settings_of_a_cache(tmp_path, capsys):
    with pytest.raises(InputError, match=r"cache_threshold.*-0\.1"):
        decode(Config, {"schemes": {"a": {"kind": "base", "cache": "first-block", "cache_threshold": -0.1}}})
    with pytest.raises(InputError, match="cache_threshold: says nothing without"):
        check(decode(Config, {"schemes": {"a": {"kind": "base", "cache_threshold": 0.1}}}))
    assert unsupported(Scheme("base", cache="magcache"), "mlx").startswith("cache is torch's")
    with pytest.raises(InputError, match=r"first_block.*first-block"):
        decode(Config, {"schemes": {"a": {"kind": "base", "cache": "first_block"}}})
    with pytest.raises(InputError, match=r"--thresholds: -0\.2 is below 0"):
        caching("tiny", tiny_generator("flux").entry, tmp_path / "p.csv", tmp_path / "o.json", {}, thresholds=[-0.2])
    scheme = Scheme("base", cache="teacache", cache_threshold=0.2)
    assert label(scheme) == "base+teacache"
    assert scheme_id(vars(scheme)) != BASE == scheme_id(vars(Scheme("base")))
    assert NEVER < 0


def test_the_command_measures_every_method(tmp_path, monkeypatch):
    monkeypatch.setattr("ditscope.benchmark.caching.load_generator", lambda name, entry: tiny_generator("sd3"))
    (tmp_path / "p.csv").write_text("prompt\na red ring\na blue square\n")
    entry, out = tiny_generator("sd3").entry, tmp_path / "o.json"
    schemes = {"base": Scheme("base")}
    caching("tiny", entry, tmp_path / "p.csv", out, schemes, num_images=4, batch=2, thresholds=[0.0, 5.0])
    made = json.loads(out.read_text())
    rows = {(p["method"], p["threshold"]): p for p in made["points"]}
    assert rows.keys() == {(method, threshold) for method in CACHES for threshold in (0.0, 5.0)}
    assert all(rows[method, 0.0]["skipped"] == 0 and rows[method, 0.0]["psnr_db"] == 60 for method in CACHES)
    assert all(rows[method, 5.0]["skipped"] > 0 and rows[method, 5.0]["psnr_db"] < 60 for method in CACHES)
    assert len(made["profile"]["ratios"]) == entry.steps and made["refused"] == {}
