"""Sensitivity against the plain loop (quantize one layer, run the whole model, restore) on the same samples.

python perf/sensitivity.py exact | modes [MODEL ...]

exact: CPU time, numbers and peak memory on one batch of 1, 4 and 8 samples, the bound of prefix reuse in counted
operations, and fast mode on the same batch; MODEL is shapes-flux, shapes-sd3 or wide. modes: exact and fast
mode on 8 new images x 8 steps of a shipped model: CPU time, plans, rank agreement.
Times are CPU seconds of this process on one thread, so that a busy machine distorts the ratios less.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ditscope.calibrate.files import Reference, load_calibration
from ditscope.calibrate.load import Batch
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import InputRecorder, calibrate
from ditscope.core.tables import concat_tables
from ditscope.models.families import sd3
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantizers import QUANTIZERS
from ditscope.models.sampling import sample
from ditscope.models.settings import Model
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import budget_bytes, choices_of, solve
from ditscope.sensitivity.exact import Network, network_of, score_layers, scores
from ditscope.sensitivity.fast import estimate_layers
from ditscope.sensitivity.scores import assign_buckets, rank_agreement
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import MODES, finished, start
from ditscope.sensitivity.tables import SAMPLES

ROOT = Path(__file__).resolve().parents[1]
TURNS = 3  # the fastest counts: one turn alone varies by a fifth
SEED = 1000  # of the calibration images: others than any that the method was developed on
SHIPPED = {
    "shapes-flux": Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=8),
    "shapes-sd3": Model("sd3", str(ROOT / "models/shapes-sd3"), width=64, height=64, steps=8, guidance=3.0),
}


def wide(count: int) -> tuple[Generator, Batch]:
    """A randomly initialised SD3 transformer of width 1024 and 4 blocks, and a batch of samples of 36 + 16 tokens."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=12, patch_size=2, in_channels=8, out_channels=8, num_layers=4, attention_head_dim=64,
        num_attention_heads=16, joint_attention_dim=256, caption_projection_dim=1024, pooled_projection_dim=256,
        pos_embed_max_size=12,
    ).eval()  # fmt: skip
    pipe = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(), *[None] * 7)
    pipe.set_progress_bar_config(disable=True)
    model = Generator("wide", Model("sd3", "random"), sd3, pipe, torch.device("cpu"))
    cond = Conditioning(torch.randn(count, 16, 256), torch.randn(count, 256))
    return model, Batch(references(count), "early", torch.randn(count, 8, 12, 12), torch.tensor(0.8), cond, 0.0)


def shipped(name: str, count: int) -> tuple[Generator, Batch]:
    """A shipped generator, and the first step of `count` images."""
    entry = SHIPPED[name]
    model = load_generator(name, entry, "cpu")
    prompts = ["a large red ring at the left on a beige background"] * count
    recorder = InputRecorder()
    sample(model, prompts, [""] * count, range(count), [recorder], steps=1)
    x = torch.from_numpy(recorder.latents[0]).permute(0, 3, 1, 2)
    return model, Batch(references(count), "early", x, torch.tensor(0.8), recorder.cond, model.entry.guidance)


def references(count: int) -> tuple[Reference, ...]:
    """Places of samples that lie in no file."""
    return tuple(Reference(Path("none"), None, i, 0, 0.8) for i in range(count))


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def plain_loop(network: Network, batch: Batch, settings: Sensitivity) -> dict[tuple, float]:
    """Relative L2 by layer, bits and image, the obvious way."""
    reference = batch.velocity(network.model)
    found = {}
    for layer in network.layers:
        own = layer.module.weight.data
        for bits in settings.bits:
            layer.module.weight.data = QUANTIZERS[settings.quantizer](own, bits, settings.group_size)
            output = batch.velocity(network.model)
            for r, score in zip(batch.references, scores(reference, output), strict=True):
                found[layer.name, bits, r.image] = score["relative_l2"]
            layer.module.weight.data = own
    return found


def exact_rows(network: Network, batch: Batch, settings: Sensitivity) -> list[dict[str, Any]]:
    """Exact mode on one batch."""
    return [row for depth in network.depths() for row in score_layers(network, depth, [batch], settings)]


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors that were alive at once during a call, above those alive before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def compare_exact(model: Generator, batch: Batch) -> None:
    """Print exact and fast mode against the plain loop on one batch."""
    count = len(batch.x)
    settings = Sensitivity(probes=count)
    single = Batch(batch.references[:1], batch.bucket, batch.x[:1], batch.sigma, batch.cond[:1], batch.guidance)
    batch.velocity(model)  # a process's first pass is slow, whoever runs it
    setup, network = cpu_seconds(lambda: network_of(model, single))
    turns = []
    for _ in range(TURNS):
        plain, expected = cpu_seconds(lambda: plain_loop(network, batch, settings))
        exact, rows = cpu_seconds(lambda: exact_rows(network, batch, settings))
        turns.append((plain, exact))
    plain, exact = (min(seconds) for seconds in zip(*turns, strict=True))
    buckets = dict.fromkeys(batch.references, batch.bucket)
    fast, _ = cpu_seconds(lambda: estimate_layers(model, network.layers, [batch], buckets, settings))
    found = {(r["layer"], r["bits"], r["image"]): r["relative_l2"] for r in rows}
    worst = max(abs(found[k] - v) / max(v, 1e-4) for k, v in expected.items())
    layers, widths = len(network.layers), len(settings.bits)
    full = operations(lambda: batch.velocity(model))
    done = operations(lambda: exact_rows(network, batch, settings))
    print(f"\n{model.name}: {layers} layers x {widths} bit widths, {count} samples")
    print(f"  plain loop {plain:.1f} s; exact {exact:.1f} s + {setup:.2f} s once: {plain / (exact + setup):.2f}x")
    print(f"  bound by operations: program order {program_order_bound(network, batch):.2f}x, ", end="")
    print(f"what exact mode really runs {layers * widths * full / done:.2f}x")
    print(f"  largest difference of relative L2: {worst:.1e} of its value (or of 1e-4)")
    print(f"  fast mode, one probe per sample: {fast:.2f} s: {plain / fast:.0f}x")
    forward = peak_bytes(lambda: batch.velocity(model, widths))
    largest = max(network.depths(), key=lambda d: sum(x.module.weight.numel() for x in network.at(d)))
    peak = peak_bytes(lambda: score_layers(network, largest, [batch], settings))
    weights = sum(p.nbytes for p in model.pipe.transformer.parameters())
    ratio = (weights + peak) / (weights + forward)
    print(f"  peak memory, weights included: {ratio:.2f} of a forward pass of as many rows", flush=True)


def program_order_bound(network: Network, batch: Batch) -> float:
    """(layers x full pass) / (sum of what runs from each layer on), in operations of the layers themselves."""
    order: dict[torch.nn.Module, int] = {}
    cost = {}

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        order.setdefault(module, len(order))
        cost[module] = module.weight.numel() * (output.numel() // module.weight.shape[0])

    handles = [layer.module.register_forward_hook(note) for layer in network.layers]
    with torch.no_grad():
        batch.velocity(network.model)
    for handle in handles:
        handle.remove()
    costs = np.array([cost[module] for module in order], float)
    suffixes = costs[::-1].cumsum()
    return len(costs) * costs.sum() / suffixes.sum()


def compare_modes(name: str, folder: Path) -> None:
    """Print CPU time, plans and rank agreement of both modes on 64 samples of a shipped model."""
    entry = SHIPPED[name]
    made = Calibrate(num_images=8, num_steps=8, cfg_weight=entry.guidance, slice_size=8, seed=SEED, statistics="")
    calibrate(name, entry, ROOT / "prompts/demo.csv", folder / name, made)
    found = load_calibration(folder / name)
    buckets = assign_buckets(found, "thirds", folder)
    model = load_generator(name, entry, "cpu")
    tables = {}
    for mode in MODES:
        settings = Sensitivity(max_images=0, batch_size=40, mode=mode)
        work = start(model, found, buckets, settings, folder / f"{name}-{mode}")
        seconds, parts = cpu_seconds(lambda: MODES[mode](work))  # noqa: B023
        rows = concat_tables(parts, SAMPLES)
        tables[mode] = finished(work, parts, mode)
        print(f"{name}: {mode} {seconds:.1f} CPU s, {len(rows)} rows", flush=True)
    choices = {mode: choices_of(t.filter(module="linear"), Plan(metric="relative_l2")) for mode, t in tables.items()}
    limit = budget_bytes(choices["exact"], Budget(uniform_bits=4), "perf")
    plans = {mode: solve(c, limit) for mode, c in choices.items()}
    best = choices["exact"].totals(plans["exact"])["predicted"]
    other = int((plans["fast"] != plans["exact"]).sum())
    worse = choices["exact"].totals(plans["fast"])["predicted"] / best - 1
    print(f"  fast: {other} of {len(plans['fast'])} layers get other bits, predicted error {100 * worse:+.2f} %")
    print(
        rank_agreement(tables["exact"], tables["fast"])
        .filter(metric="relative_l2")
        .pivot("bits", index="bucket", values="spearman")
    )


def main(what: str = "exact", *models: str) -> None:
    """Run one comparison for the named models, or all it has."""
    torch.set_num_threads(1)
    if what == "exact":
        with torch.no_grad():
            for name in models or (*SHIPPED, "wide"):
                for count in (2,) if name == "wide" else (1, 4, 8):
                    compare_exact(*(wide(count) if name == "wide" else shipped(name, count)))
    elif what == "modes":
        with tempfile.TemporaryDirectory() as folder, pl.Config(tbl_hide_column_data_types=True):
            for name in models or SHIPPED:
                compare_modes(name, Path(folder))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
