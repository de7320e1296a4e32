"""Plans over formats and steps in images, beside every format alone at its bytes, and beside nvidia-modelopt's search.

python perf/plans.py formats [MODEL ...]     plans by layer against each format alone, of the same bytes
python perf/plans.py steps [MODEL ...]       plans by layer and step against plans by layer, and what switching costs
python perf/plans.py modelopt [MODEL ...]      beside `auto_quantize` of nvidia-modelopt 0.47, which must be importable

Sensitivities are taken on 8 calibration images of a shipped model; 64 prompts that no shipped model was trained on, and
that no choice in ditscope was made on, are sampled from the same starting noise under every plan, through the same
quantizer (`kind: plan`). PSNR is of the float pictures to the unquantized model's. Intervals are 95 %, by Student's t
over prompts, of paired differences where two plans are compared.

`modelopt` is run by the interpreter of an environment that has nvidia-modelopt beside what ditscope needs. Both see
the same 8 batches of 4 calibration samples (4 images x 8 steps) and the same formats: integers of 4 and 8 bits by group
of 32 weights, or none. The loss that its gradients are of is that of flow matching, with the trajectory's own noise and
end. Each one's assignment is applied by ditscope's quantizer; ours has the bytes of its.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ditscope.calibrate.files import load_calibration
from ditscope.calibrate.load import Batch, batches
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.metrics import psnr_of_floats
from ditscope.models.loading import load_generator
from ditscope.models.prepare import prepare
from ditscope.models.sampling import pictures, sample
from ditscope.models.schedule_parts import piece_of_step
from ditscope.models.settings import Model, Scheme
from ditscope.plan.formats import Menu, assignment, bits_in_use, measured, menu_of, solve
from ditscope.plan.settings import Budget
from ditscope.sensitivity.formats import (
    format_changes,
    format_configs,
    linear_layers,
    moments_of_images,
    rows_of_layer,
    sensitivity_formats,
    steps_of_pieces,
)
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import FORMATS as FORMATS_TABLE
from plan import ROOT, SHIPPED, interval, new_prompts

SETTINGS = Sensitivity(max_images=0, mode="fast", probes=64)
FORMATS = {
    **{f"int{b}-g32": Scheme("intx-weight-only", bits=b, group_size=32) for b in (2, 3, 4, 5, 6, 8)},
    "int8": Scheme("int8-weight-only"),
    "fp8": Scheme("fp8-weight-only"),
    "int8-dynamic": Scheme("int8-dynamic"),
    "base": Scheme("base"),
}
ALONE = ("int3-g32", "int4-g32", "int6-g32", "int8", "fp8", "int8-dynamic")
BATCH = 16


def document(menu: Menu, columns: np.ndarray, formats: dict[str, Scheme], steps: str) -> dict:
    """What the plan stage writes of an assignment, as far as it is read to apply it."""
    return {
        "schema_version": "2", "budget": "perf", "steps": steps, "layers": bits_in_use(menu, columns),
        "formats": {name: asdict(scheme) for name, scheme in formats.items()}, "assignment": assignment(menu, columns),
    }  # fmt: skip


def images(name: str, entry: Model, plan: dict | None = None) -> tuple[np.ndarray, float]:
    """Float pictures (prompts, values) under a plan, prompt i from seed 6000 + i, and the seconds of sampling."""
    model = load_generator(name, entry, "cpu")
    if plan is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "plan.json").write_text(json.dumps(plan))
            if reason := prepare(model, Scheme("plan", plan="perf"), "eager", Path(folder) / "plan.json"):
                raise RuntimeError(reason)
    prompts, found, spent = new_prompts(), [], 0.0
    for i in range(0, len(prompts), BATCH):
        some = prompts[i : i + BATCH]
        began = time.perf_counter()
        latents = sample(model, some, [""] * len(some), range(6000 + i, 6000 + i + len(some)))
        spent += time.perf_counter() - began
        with torch.no_grad():
            found.append(pictures(model, latents).double().numpy().reshape(len(some), -1))
    return np.concatenate(found), spent


def calibrated(name: str, folder: Path, images: int = 8) -> Path:
    """A calibration set of a shipped model."""
    made = Calibrate(num_images=images, num_steps=0, cfg_weight=SHIPPED[name].guidance, slice_size=8, statistics="")
    calibrate(name, SHIPPED[name], ROOT / "prompts/demo.csv", folder / name, made)
    return folder / name


def measured_menus(name: str, folder: Path, formats: dict[str, Scheme], divisions: tuple[str, ...]) -> dict[str, Menu]:
    """The menu of a shipped model's layers in each division of the schedule."""
    table = folder / f"{name}.parquet"
    began = time.perf_counter()
    sensitivity_formats(name, SHIPPED[name], calibrated(name, folder), table, formats, list(formats), SETTINGS)
    print(f"{name}: {len(formats)} formats measured in {time.perf_counter() - began:.1f} s", flush=True)
    rows = measured([table], name, list(formats))
    return {steps: menu_of(rows, Budget(formats=list(formats), steps=steps), None) for steps in divisions}


def compare_formats(name: str, folder: Path) -> None:
    """Each format alone, and the plan of its bytes."""
    menu = measured_menus(name, folder, FORMATS, ("all",))["all"]
    reference, _ = images(name, SHIPPED[name])
    print(f"{name}: {len(menu.layers)} linear layers, {len(reference)} prompts", flush=True)
    for alone in ALONE:
        columns = menu.uniform(alone)
        limit = menu.totals(columns)["nominal_bytes"]
        chosen = solve(menu, "bytes", limit)
        both = [psnr_of_floats(reference, images(name, SHIPPED[name], document(menu, c, FORMATS, "all"))[0])
                for c in (columns, chosen)]  # fmt: skip
        predicted = [menu.totals(c)["predicted"] for c in (columns, chosen)]
        used = sorted({menu.combinations[c][0] for c in chosen})
        print(f"  {alone}: {limit} bytes, {menu.totals(columns)['mean_bits']:.3f} bits, {interval(both[0])}; plan of "
              f"its bytes {interval(both[1])}; plan over it {interval(both[1] - both[0])}; predicted error "
              f"{predicted[1] / predicted[0]:.3f} of its; of {', '.join(used)}", flush=True)  # fmt: skip


def compare_steps(name: str, folder: Path) -> None:
    """Plans by layer and step against plans by layer, at equal bits in use and at equal stored bytes."""
    menus = measured_menus(name, folder, FORMATS, ("all", "thirds", "edges"))
    whole = menus["all"]
    reference, _ = images(name, SHIPPED[name])
    for alone in ("int3-g32", "int4-g32"):
        totals = whole.totals(whole.uniform(alone))
        for kind in ("mean_bits", "bytes"):
            limit = whole.size(kind)[np.arange(len(whole.layers)), whole.uniform(alone)].sum()
            chosen = {steps: solve(menu, kind, int(limit)) for steps, menu in menus.items()}
            scores = {}
            for steps, menu in menus.items():
                of_plan = menu.totals(chosen[steps])
                plan = document(menu, chosen[steps], FORMATS, steps)
                switched = sum(isinstance(names, dict) for names in plan["assignment"].values())
                if steps == "all" or switched:
                    scores[steps] = psnr_of_floats(reference, images(name, SHIPPED[name], plan)[0])
                    told = f"PSNR {interval(scores[steps])}"
                    told += "" if steps == "all" else f"; over by layer {interval(scores[steps] - scores['all'])}"
                else:
                    told = "the plan by layer"
                print(f"  {name}, {kind} of {alone} ({totals['mean_bits']:.3f}), {steps}: {switched} layers "
                      f"switch, {of_plan['mean_bits']:.3f} bits in use, {of_plan['nominal_bytes']} bytes stored, "
                      f"predicted {of_plan['predicted']:.3g}; {told}", flush=True)  # fmt: skip
    cost_of_switching(name, menus)


def cost_of_switching(name: str, menus: dict[str, Menu]) -> None:
    """Seconds of sampling where every layer switches between two copies of one format, over those of that format."""
    formats = FORMATS | {"again": replace(FORMATS["int8"], min_weights=1)}  # another scheme, the same weights
    own = menus["edges"]
    plain = dict.fromkeys(own.layers, "int8")
    two = {layer: {"edge": "int8", "inner": "again"} for layer in own.layers}
    bits = dict.fromkeys(own.layers, 8.0)
    made = {"schema_version": "2", "budget": "perf", "steps": "edges", "layers": bits,
            "formats": {key: asdict(scheme) for key, scheme in formats.items()}}  # fmt: skip
    spent = np.array(
        [[images(name, SHIPPED[name], made | {"assignment": a})[1] for a in (plain, two)] for _ in range(5)]
    )
    pair = [images(name, SHIPPED[name], made | {"assignment": a})[0] for a in (plain, two)]
    ratio = np.median(spent[:, 1] / spent[:, 0])
    print(f"  {name}: {len(own.layers)} layers that switch, over layers that do not: {ratio:.3f} times the seconds "
          f"(median of 5 pairs, {spent.min():.1f} to {spent.max():.1f} s); same pictures {np.array_equal(*pair)}",
          flush=True)  # fmt: skip


def modelopt_assignment(model: Any, samples: list[Batch], bits: float) -> dict[str, str]:
    """The format of each linear layer that `auto_quantize` chooses at `bits` effective bits, on a copy."""
    import modelopt.torch.quantization as mtq

    ends = [samples[0].x, samples[-1].x - float(samples[-1].sigma) * samples[-1].velocity(model).detach()]
    own = model.pipe.transformer
    copied = model.pipe.transformer = deepcopy(own)

    def form(width: int) -> dict:
        cfg = {"num_bits": width, "block_sizes": {-1: 32}}
        quantizers = [{"quantizer_name": "*", "enable": False},
                      {"quantizer_name": "*weight_quantizer", "cfg": cfg, "enable": True}]  # fmt: skip
        return {"quant_cfg": quantizers, "algorithm": "max"}

    try:
        _, state = mtq.auto_quantize(
            copied, {"effective_bits": bits}, [form(4), form(8)], data_loader=samples,
            forward_step=lambda _, batch: batch.velocity(model),
            loss_func=lambda velocity, _: (velocity - (ends[0] - ends[1])).square().mean(),
            num_calib_steps=len(samples), num_score_steps=len(samples),
        )  # fmt: skip
    finally:
        model.pipe.transformer = own
    found = {}
    for key, recipe in state["best"]["recipe"].items():
        width = recipe.num_bits
        found[key.removesuffix(".quant_recipe")] = "base" if width >= 16 else f"int{round(width)}-g32"
    return found


def compare_modelopt(name: str, folder: Path) -> None:
    """Seconds to a plan from the same samples and formats, and pictures under each one's plan of the same bytes."""
    formats = {key: FORMATS[key] for key in ("int4-g32", "int8-g32", "base")}
    model = load_generator(name, SHIPPED[name], "cpu")
    calibration = load_calibration(calibrated(name, folder, 4))
    pieces = {r: piece_of_step(r.step_index, calibration.num_steps) for r in calibration.samples}
    samples = list(batches(model, calibration, pieces, 4))
    spent = {}
    for probes in (4, 16, 64):
        began = time.perf_counter(), time.process_time()
        menus = our_menu(model, calibration, pieces, samples[0], formats, probes)
        solve(menus, "bytes", int(menus.stored[:, 0].sum() * 1.3))
        spent[probes] = time.perf_counter() - began[0], time.process_time() - began[1]
        menu = menus
    reference, _ = images(name, SHIPPED[name])
    print(f"{name}: ours in " + ", ".join(f"{s:.1f} s ({c:.1f} of the processor) by {p} probes"
          for p, (s, c) in spent.items()), flush=True)  # fmt: skip
    for bits in (5.0, 6.0):
        began = time.perf_counter(), time.process_time()
        theirs = modelopt_assignment(model, samples, bits)
        told = f"{time.perf_counter() - began[0]:.1f} s ({time.process_time() - began[1]:.1f} of the processor)"
        column = {combination[0]: i for i, combination in enumerate(menu.combinations)}
        columns = np.array([column[theirs.get(layer, "base")] for layer in menu.layers])
        limit = menu.totals(columns)["nominal_bytes"]
        chosen = solve(menu, "bytes", limit)
        both = [psnr_of_floats(reference, images(name, SHIPPED[name], document(menu, c, formats, "all"))[0])
                for c in (columns, chosen)]  # fmt: skip
        kinds = Counter(theirs.get(layer, "base") for layer in menu.layers)
        print(f"  {bits:g} effective bits: modelopt in {told}, {limit} bytes (base as 16 bits), {dict(kinds)}: "
              f"{interval(both[0])}; ours of its bytes {interval(both[1])}; ours over it {interval(both[1] - both[0])}",
              flush=True)  # fmt: skip


def our_menu(
    model: Any, calibration: Any, pieces: dict, sample: Batch, formats: dict[str, Scheme], probes: int
) -> Menu:
    """Sensitivities of a loaded model and the menu of them; what is not quantized counts 16 bits."""
    settings = replace(SETTINGS, probes=probes, gradient_batch=4)
    layers = linear_layers(model, sample)
    configs = format_configs(model, layers, formats)
    changes = format_changes(layers, formats, configs, "float32")
    moments, _ = moments_of_images(model, layers, calibration, pieces, changes, settings, len(formats))
    steps = steps_of_pieces(calibration.num_steps)
    constants = {"metric": "image_rms", "n_probes": probes, "n_images": 4}
    rows = [
        row | constants
        for layer in layers
        for row in rows_of_layer("m", layer, moments[layer.module], formats, configs, steps, "bfloat16")
    ]
    return menu_of(pl.DataFrame(rows, FORMATS_TABLE.schema()), Budget(formats=list(formats)), None)


def main(what: str, *arguments: str) -> None:
    """Run one comparison for the named models, or both."""
    torch.set_num_threads(1)
    compare = {"formats": compare_formats, "steps": compare_steps, "modelopt": compare_modelopt}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments or SHIPPED:
            compare[what](name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
