"""What a codebook of a large set costs: seconds and peak memory of fitting and of assigning.

python perf/codebook.py [SAMPLES [CODES [DIMENSIONS]]]

By default 248,320 samples (970 shards of 256) and 1,024 codes, with conditions of 832 numbers (a text of 768, keys
of 64) drawn around 2,000 centres. Holding all distances of samples x codes x dimensions in float64, as a first form
did, is printed beside it.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditscope.refine.quantizers import chunks, kmeans, occupancy, quantized  # noqa: E402

CENTRES = 2000


def conditions(samples: int, dimensions: int) -> np.ndarray:
    """Float16 conditions (samples, dimensions), made chunk by chunk."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, dimensions), dtype=np.float32)
    made = np.empty((samples, dimensions), np.float16)
    for rows in chunks(np.arange(samples)):
        noise = rng.standard_normal((len(rows), dimensions), dtype=np.float32)
        made[rows] = centres[rng.integers(CENTRES, size=len(rows))] + 0.5 * noise
    return made


def peak() -> float:
    """Peak resident memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(samples: int = 248_320, codes: int = 1024, dimensions: int = 832) -> None:
    """Print seconds and memory."""
    held = conditions(samples, dimensions)
    rows = np.arange(samples)
    print(f"{samples} samples x {codes} codes x {dimensions}")
    print(f"conditions: {held.nbytes / 2**30:.2f} GB, peak {peak():.2f} GB")
    began, clock = time.perf_counter(), time.process_time()
    arrays = kmeans(lambda part: held[part].astype(np.float32), rows, codes, 0, 0)
    seconds = f"{time.perf_counter() - began:.0f} s ({time.process_time() - clock:.0f} s of a core)"
    print(f"fit: {seconds}, peak {peak():.2f} GB")
    began, clock = time.perf_counter(), time.process_time()
    found, _ = quantized(arrays, lambda part: held[part].astype(np.float32), rows)
    print(f"assign: {time.perf_counter() - began:.0f} s ({time.process_time() - clock:.0f} s), peak {peak():.2f} GB")
    numbers = occupancy(found, codes)
    empty = codes - numbers["non_empty_classes"]
    print(f"codes without samples: {empty:.0f}; samples of a code, p10 {numbers['p10']:.0f}, p90 {numbers['p90']:.0f}")
    print(f"all distances at once: {samples * codes * dimensions * 8 / 2**40:.2f} TB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
