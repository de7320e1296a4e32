"""How fast a refiner's samples are read, and in what memory.

python perf/loader.py [files | workers | memory] [samples]

`files`: batches of random samples out of shards against one file per sample (`np.load`), the same numbers, warm caches;
then one pass in order. `workers`: corrupted batches (inverse-distance and Laplacian interpolation) from the training's
loader with 1 and 2 worker processes, and the processor time that a batch takes in these and in the process that
trains: the first over the second is how many workers can help. `memory`: a set of 10^3, 10^4 and 10^5 samples is made
and read once, each in a process of its own; the peak of the memory that is the process's alone (pages of mapped files
can be dropped).
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from threading import Event, Thread

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditscope.refine.data_settings import Source  # noqa: E402
from ditscope.refine.dataset import Dataset, open_dataset, read_text, read_values  # noqa: E402
from ditscope.refine.prepare import prepare  # noqa: E402
from ditscope.refine.settings import Refine  # noqa: E402

SHAPE = [8, 16, 16]  # as the latents of the shipped models; 4 KB a sample
BATCH, BATCHES, TURNS = 64, 60, 5
DRAWN = 24  # batches of a turn of the loader


def made(folder: Path, samples: int) -> Dataset:
    """A data set of noise in shards."""
    source = Source(kind="fake", count=samples, shape=SHAPE)
    prepare({}, folder / "samples.parquet", folder / "data.json", folder / "data", [], source)
    return open_dataset(folder / "samples.parquet", folder / "data.json")


def timed(read: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> float:
    """Median over turns of the microseconds that a sample takes."""
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for rows in batches:
            read(rows)
        seconds.append(time.perf_counter() - began)
    return 1e6 * median(seconds) / sum(map(len, batches))


def files(folder: Path, samples: int) -> None:
    """Shards against one file per sample."""
    data = made(folder, samples)
    loose = folder / "loose"
    loose.mkdir()
    for row in range(samples):
        np.save(loose / f"{row:08d}.npy", read_values(data, np.array([row]))[0].astype(np.float16))

    def from_files(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.load(loose / f"{row:08d}.npy") for row in rows]).astype(np.float32)

    def from_shards(rows: np.ndarray) -> np.ndarray:
        return read_values(data, rows)

    assert np.allclose(from_files(np.arange(64)), from_shards(np.arange(64)), atol=2e-3)
    rng = np.random.default_rng(0)
    ways = {
        "drawn at random": [rng.integers(samples, size=BATCH) for _ in range(BATCHES)],
        "in order": list(np.arange(samples)[: BATCH * BATCHES].reshape(-1, BATCH)),
    }
    for way, batches in ways.items():
        shards, single = timed(from_shards, batches), timed(from_files, batches)
        print(f"{way}: shards {shards:.1f} us a sample, files {single:.1f}: {single / shards:.1f} times as fast")


def workers(folder: Path, samples: int) -> None:
    """Batches a second of the training's loader."""
    from ditscope.refine.batches import draw_batch, load_batches, samples_of

    data = made(folder, samples)
    for interpolation in ("idw", "laplacian"):
        settings = replace(Refine(), interpolation=interpolation, classes_per_step=4, generated_per_class=16)
        drawn = samples_of(data, "train", np.zeros(len(data), np.int64), settings)
        rates, spent = {}, {}
        for count in (1, 2):
            turns, own, children = [], time.process_time(), getrusage(RUSAGE_CHILDREN).ru_utime
            for _ in range(TURNS):
                batches = load_batches(draw_batch, (drawn, settings), count, [(step, 0) for step in range(DRAWN)])
                next(batches)  # the processes have started
                began = time.perf_counter()
                left = sum(1 for _ in batches)
                turns.append(left / (time.perf_counter() - began))
                del batches  # waits for the processes, whose time counts then
            rates[count] = max(turns)
            spent[count] = [
                1000 * seconds / TURNS / DRAWN
                for seconds in (getrusage(RUSAGE_CHILDREN).ru_utime - children, time.process_time() - own)
            ]
        print(
            f"{interpolation}: {rates[1]:.1f} batches of {BATCH} a second by 1 worker, {rates[2]:.1f} by 2: "
            f"{rates[2] / rates[1]:.2f}; processor milliseconds of a batch, in workers {spent[1][0]:.1f} and "
            f"{spent[2][0]:.1f}, in the process that trains {spent[1][1]:.1f} and {spent[2][1]:.1f}"
        )


def private_mb() -> float:
    """Memory of this process that no file stands behind, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def memory_of(folder: Path, samples: int) -> None:
    """Print what making and reading a set once takes above what the imports took, in MB, and the seconds, as JSON."""
    made(folder / "warm", 100)
    before, peak, done = private_mb(), [0.0], Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], private_mb())

    def of(work: Callable[[], None]) -> tuple[float, float]:
        peak[0], began = 0.0, time.perf_counter()
        work()
        return max(peak[0], private_mb()) - before, time.perf_counter() - began

    Thread(target=watch, daemon=True).start()
    make = of(lambda: made(folder / "set", samples) and None)
    data = open_dataset(folder / "set/samples.parquet", folder / "set/data.json")
    table = private_mb() - before

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(samples)
        for start in range(0, samples, BATCH):
            read_values(data, order[start : start + BATCH])
            read_text(data, order[start : start + BATCH])

    read = of(epoch)
    done.set()
    size = sum(path.stat().st_size for path in (folder / "set/data").glob("*.tar"))
    print(json.dumps({"make": make, "table": table, "read": read, "bytes": size}))


def memory(folder: Path, samples: int) -> None:
    """Memory of sets of 10^3 up to 10^5 samples."""
    for count in (1_000, 10_000, samples):
        place = folder / str(count)
        command = [sys.executable, __file__, "memory-of", str(count), str(place)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        make, read = told["make"], told["read"]
        print(
            f"{count} samples, {told['bytes'] / 1e6:.0f} MB: made in {make[1]:.0f} s and {make[0]:.0f} MB, "
            f"read once in {read[1]:.1f} s and {read[0]:.0f} MB, of them {told['table']:.0f} MB the table"
        )
        shutil.rmtree(place)


def main() -> None:
    """Run the parts that are asked for."""
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    if what == "memory-of":
        return memory_of(Path(sys.argv[3]), int(sys.argv[2]))
    sizes = {"files": 20_000, "workers": 2_000, "memory": 100_000}
    for name, part in {"files": files, "workers": workers, "memory": memory}.items():
        if what in ("all", name):
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else sizes[name])
    return None


if __name__ == "__main__":
    main()
