"""A Mac in at most eight minutes, without downloads: torch on Metal (MPS) and MLX beside torch on the CPU.

python perf/mac.py [--out FILE] [--seconds 480] [--toy]

A FLUX.1 transformer of full width with 2 + 2 blocks of random weights at 512 x 512 pixels; rows as those of
perf/gpu.py. `--toy`, and a machine without MPS, take a model of a few hundred thousand weights, on the CPU.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gpu import (
    ROOT,
    TOY,
    Row,
    Size,
    first_batch,
    generator,
    inputs,
    pictures,
    quiet,
    relative,
    run_rows,
    seconds,
    velocity,
)

from ditscope.benchmark.memory import peaks, reset_peaks
from ditscope.models.hardware import fingerprint
from ditscope.models.loading import Generator, default_device
from ditscope.models.quantize import apply_scheme
from ditscope.models.quantizers import quantizable
from ditscope.models.settings import Scheme
from ditscope.sensitivity.exact import Layer
from ditscope.sensitivity.fast import estimate_layers
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import layer_kind

CPU = torch.device("cpu")


def mps_rows(size: Size, device: torch.device) -> Iterator[Row]:
    """Torch on Metal against torch on the CPU, in each type; batch 1 against 4."""

    @cache
    def reference() -> torch.Tensor:
        return velocity(generator(size, CPU, 2, 2, "float32"))

    def run(dtype: str) -> dict[str, Any]:
        reset_peaks()
        exact = generator(size, CPU, 2, 2, "float32")
        model = generator(size, device, 2, 2, dtype)
        model.pipe.transformer.load_state_dict(exact.pipe.transformer.state_dict())
        arguments, found = inputs(model), velocity(model)
        with torch.no_grad():
            took = seconds(lambda: model.pipe.transformer(**arguments), device)
        four = velocity(model, 4)[:1]
        numbers = {"ms": took * 1e3, "relative_l2": relative(reference(), found)}
        return numbers | {"relative_l2_in_four": relative(found, four)} | peaks()

    for dtype in ("float32", "bfloat16", "float16"):
        yield f"{device.type}, {dtype}", lambda dtype=dtype: run(dtype)


def on_mlx(model: Generator, folder: Path) -> Generator:
    """The same generator with its transformer on MLX; the weights pass through a folder."""
    from ditscope.models.mlx.transformer import load_transformer

    model.pipe.transformer.save_pretrained(folder / "transformer")
    entry = replace(model.entry, backend="mlx")
    model.pipe.transformer = load_transformer(folder, "perf", entry, model.device)
    return replace(model, entry=entry)


def mlx_rows(size: Size, device: torch.device) -> Iterator[Row]:
    """MLX against torch on the CPU: eager, compiled, 8 and 4 bits."""

    def run(bits: int, compiled: bool) -> dict[str, Any]:
        base = generator(size, device, 2, 2)
        reference = velocity(base)
        reset_peaks()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = on_mlx(base, Path(folder))
            if bits < 16:
                apply_scheme(model.pipe.transformer, Scheme("mlx-weight-only", bits=bits, group_size=32))
            if compiled:
                model.pipe.transformer.compile()
            arguments = inputs(model)
            found = velocity(model)
            took = seconds(lambda: model.pipe.transformer(**arguments), CPU)
        return {"ms": took * 1e3, "relative_l2": relative(reference, found)} | peaks()

    yield "mlx", lambda: run(16, False)
    yield "mlx, compiled", lambda: run(16, True)
    for bits in (8, 4):
        yield f"mlx, {bits} bits", lambda bits=bits: run(bits, False)


def gradient_rows(size: Size, device: torch.device) -> Iterator[Row]:
    """Fast sensitivity, whose backward pass torch runs in the device's own thread, on the device and on MLX."""

    def run(mlx: bool) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            model = generator(size, device, 2, 2, "float32")
            model = on_mlx(model, Path(folder)) if mlx else model
            batch = first_batch(model, [0])
            layers = [
                Layer(name, layer, layer_kind(name), 0) for name, layer in quantizable(model.pipe.transformer).items()
            ]
            settings = Sensitivity(bits=[4], probes=1)
            found: list[dict[str, Any]] = []

            def score() -> None:
                found[:] = estimate_layers(model, layers, [batch], dict.fromkeys(batch.references, "early"), settings)

            took = seconds(score, device, 1)
        return {"seconds": took, "layers": len(found), "largest": max(row["relative_l2"] for row in found)}

    yield f"gradients on {device.type}", lambda: run(False)
    yield "gradients on mlx", lambda: run(True)


def sampling_rows(size: Size, device: torch.device) -> Iterator[Row]:
    """A whole picture, and the same again."""

    def run() -> dict[str, Any]:
        model = generator(size, device, 2, 2)
        first, second = pictures(model, [0]), pictures(model, [0])
        equal = bool((first == second).all())
        return {"equal": equal, "seconds": seconds(lambda: pictures(model, [0]), device, 2)}

    yield "sampling twice", run


def rows(size: Size, device: torch.device) -> Iterator[Row]:
    """Every row, in the order of what is most wanted."""
    yield "versions", fingerprint
    for part in (mps_rows, gradient_rows, mlx_rows, sampling_rows):
        yield from part(size, device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure row by row, and leave each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results/perf/mac.jsonl")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args(arguments)
    quiet()
    toy = given.toy or not torch.backends.mps.is_available()
    device = CPU if toy else torch.device(default_device())
    size = TOY if toy else replace(Size(), pixels=512, text_tokens=256)
    run_rows(rows(size, device), given.out, given.seconds, {"device": str(device), "toy": toy})


if __name__ == "__main__":
    main()
