"""The MLX back end beside torch on one machine: the same pictures, milliseconds a step of the transformer alone.

python perf/back_ends.py [MODEL ...]    shipped models, default both

Both in float32, on the device that each takes by itself, eager and compiled by MLX, and MLX at 8 and 4 bits. On a Linux
CPU this says how the back ends compare there, and nothing of a Mac.
"""

import sys
import time
from dataclasses import replace

import numpy as np
from torch import Tensor

from ditscope.config_files import read_config
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantize import apply_scheme
from ditscope.models.sampling import sample
from ditscope.models.settings import Scheme

REPEATS = 3


def seconds(model: Generator, batch: int) -> tuple[float, Tensor]:
    """Median seconds of one denoising step of a batch, text encoding and VAE left out; and the latents."""
    asked = ["a large red ring at the left"] * batch, [""] * batch, range(batch)
    times = []
    latents = sample(model, *asked)
    for _ in range(REPEATS):
        began = time.perf_counter()
        latents = sample(model, *asked)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / model.entry.steps, latents


def main(names: list[str]) -> None:
    """Print a line for each model, batch size and way to run it."""
    config = read_config([])
    for name in names:
        entry = config.models[name]
        for batch in (1, 4):
            base, reference = seconds(load_generator(name, entry), batch)
            print(f"{name}, batch {batch}: torch {base * 1e3:.1f} ms per step")
            for label, bits in (("", 0), (", compiled", 0), (", 8 bit", 8), (", 4 bit", 4)):
                model = load_generator(name, replace(entry, backend="mlx"))
                if bits:
                    apply_scheme(model.pipe.transformer, Scheme("mlx-weight-only", bits=bits, group_size=32))
                if "compiled" in label:
                    model.pipe.transformer.compile()
                took, latents = seconds(model, batch)
                error = ((latents - reference).norm() / reference.norm()).item()
                speed = f"{took * 1e3:.1f} ms per step, {base / took:.2f} of torch's speed"
                print(f"  MLX{label}: {speed}; latents differ by {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["shapes-flux", "shapes-sd3"])
