"""SDNQ beside a bit plan, in images: sdnq's own types, and the plan of uniform 4 bit's bytes reloaded by sdnq.

python perf/sdnq_peer.py [MODEL]

For a Python that has sdnq beside what ditscope needs (`pip install --no-deps sdnq` into an environment of its own).
Sensitivity, prompts and intervals are those of `plan.py`. Bytes are what the weights, scales and zero points of linear
layers take in sdnq, and what a packed file has of the plan. Each layer's error of both quantizers is said, too.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantize import apply_scheme
from ditscope.models.quantizers import group_affine
from ditscope.models.settings import Scheme
from ditscope.plan.export import export
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import plan
from ditscope.sensitivity.stage import sensitivity
from plan import ROOT, SETTINGS, SHIPPED, images, interval, new_prompts, psnr_db

OWN = {
    "uint4 by 32": {"weights_dtype": "uint4", "group_size": 32},
    "uint4, its own groups": {"weights_dtype": "uint4"},
    "int4, its own groups": {"weights_dtype": "int4"},
    "uint4 by 32, Hadamard": {
        "weights_dtype": "uint4", "group_size": 32, "use_hadamard": True, "hadamard_group_size": 32,
    },
}  # fmt: skip
EVERY_LAYER = {"add_skip_keys": False, "minimum_allowed_numel": 0, "minimum_allowed_channel_size": 0}


def by_sdnq(name: str, arguments: dict[str, Any]) -> Any:
    """The transformer of a shipped model, quantized by sdnq."""
    from sdnq import SDNQConfig

    folder = ROOT / "models" / name / "transformer"
    cls = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
    return cls.from_pretrained(folder, torch_dtype=torch.float32, quantization_config=SDNQConfig(**arguments))


def stored(transformer: nn.Module) -> int:
    """Bytes of the linear layers without biases."""
    linear = [m for m in transformer.modules() if isinstance(m, nn.Linear) or hasattr(m, "sdnq_dequantizer")]
    return sum(p.nbytes for m in linear for key, p in m.named_parameters(recurse=False) if key != "bias")


def planned(name: str, folder: Path) -> tuple[Path, Path]:
    """The plan at the bytes of uniform 4 bit, and its export to sdnq."""
    entry, made = SHIPPED[name], folder / "plan.json"
    settings = Calibrate(num_images=8, num_steps=0, cfg_weight=entry.guidance, slice_size=8, statistics="")
    calibrate(name, entry, ROOT / "prompts/demo.csv", folder / "set", settings)
    sensitivity(name, entry, folder / "set", folder / "s.parquet", SETTINGS)
    plan(name, [folder / "s.parquet"], made, Budget(uniform_bits=4), Plan(metric="image_rms"))
    export(made, models=SHIPPED, to="sdnq", out=folder / "sdnq.json")
    return made, folder / "sdnq.json"


def score(model: Generator, transformer: Any, prompts: list[str], reference: np.ndarray) -> np.ndarray:
    """PSNR of each picture with another transformer."""
    own, model.pipe.transformer = model.pipe.transformer, transformer
    try:
        return psnr_db(reference, images(model, prompts))
    finally:
        model.pipe.transformer = own


def errors(base: nn.Module, quantized: nn.Module, made: dict[str, Any]) -> str:
    """Mean relative error of a layer's output under random inputs, by bits: sdnq's, and that of quantizer `group`."""
    found: dict[int, list[tuple[float, float]]] = {}
    for layer, bits in made["layers"].items():
        module, weight = quantized.get_submodule(layer), base.get_submodule(layer).weight.detach()
        x = torch.randn(200, weight.shape[1], generator=torch.Generator().manual_seed(0))
        exact = x @ weight.T
        with torch.no_grad():
            theirs = module(x) - (0 if module.bias is None else module.bias)
        ours = x @ group_affine(weight, bits, made["group_size"]).T
        found.setdefault(bits, []).append(tuple(float((y - exact).norm() / exact.norm()) for y in (theirs, ours)))
    means = {bits: np.mean(values, axis=0) for bits, values in sorted(found.items())}
    return ", ".join(f"{bits} bits {theirs:.4f} ({ours:.4f})" for bits, (theirs, ours) in means.items())


def main(name: str = "shapes-flux") -> None:
    """Compare on one shipped model."""
    torch.set_num_threads(1)
    prompts, model, base = (
        new_prompts(),
        load_generator(name, SHIPPED[name], "cpu"),
        load_generator(name, SHIPPED[name]),
    )
    reference = images(model, prompts)
    with tempfile.TemporaryDirectory() as folder:
        made, arguments = planned(name, Path(folder))
        document = json.loads(made.read_text())
        apply_scheme(base.pipe.transformer, Scheme("plan"), made)
        ours = score(model, base.pipe.transformer, prompts, reference)
        print(f"plan by torchao: {document['nominal_bytes']} bytes, PSNR {interval(ours)}", flush=True)
        reloaded = by_sdnq(name, json.loads(arguments.read_text()))
    again = score(model, reloaded, prompts, reference)
    print(
        f"plan by sdnq: {stored(reloaded)} bytes, PSNR {interval(again)}; by torchao over it {interval(ours - again)}"
    )
    print(f"errors of layers by sdnq (by ditscope): {errors(model.pipe.transformer, reloaded, document)}", flush=True)
    for label, settings in OWN.items():
        own = by_sdnq(name, settings | EVERY_LAYER)
        theirs = score(model, own, prompts, reference)
        over = f"plan by torchao over it {interval(ours - theirs)}, by sdnq {interval(again - theirs)}"
        print(f"sdnq {label}: {stored(own)} bytes, PSNR {interval(theirs)}; {over}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
