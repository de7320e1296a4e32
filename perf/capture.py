"""Capturing every block of every step: time over generation without, and peak memory, against the plain way.

python perf/capture.py [repeats]

The plain way keeps every block's output in lists and calls `torch.save` once at the end. All ways sample the same
picture in one process, in turn, each ending with its files closed. Decoding, of blocks and of the
image, is in none. Processor seconds are those of all threads, the work that is added whoever else is on the machine;
read them with OMP_NUM_THREADS=1, since OpenMP's threads wait by spinning. Memory is the peak of the resident set in a
process of its own, above what it was after one step of sampling without capture (Linux).

"capture, any family" is the recorder of the family `dit` on the same model. "nnsight" traces each call of the
transformer and keeps every block's output in memory; it writes nothing, and is there where nnsight can be imported.
It is installed apart: `python -m venv DIR`, a .pth file in DIR's site-packages that names those of this environment,
`DIR/bin/pip install --no-deps nnsight==0.8.1`, then `PYTHONPATH=scripts DIR/bin/python perf/capture.py`.
"""

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from ditscope.benchmark.memory import peak_rss, reset_peaks
from ditscope.capture.any_recorder import AnyRecorder
from ditscope.capture.recorder import Recorder
from ditscope.capture.settings import CaptureSet
from ditscope.models.families import dit, flux
from ditscope.models.loading import Generator, load_generator, text_length
from ditscope.models.sampling import Observer, sample
from ditscope.models.settings import Model

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results"
SHORT = 20  # turns on a shipped model for one on the wide model
RECORD = {"generation_id": "perfperf", "prompt_id": "p", "model": "perf", "prompt": "a ring", "position": 0}
Way = Callable[[Path, int], None]  # samples so many steps, leaving what it captures in a folder


class Plain(Observer):
    """The plain way: append every output to a list, save them all at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: dict[str, list[tuple[Tensor, ...]]] = {}

    def start(self, model, sigmas, cond, guidance):
        def keep(name):
            return lambda module, inputs, output: self.outputs.setdefault(name, []).append(
                tuple(t.detach().cpu() for t in output if t is not None)
            )

        blocks = model.family.blocks(model.pipe.transformer)
        self.handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]

    def stop(self):
        for handle in self.handles:
            handle.remove()
        torch.save(self.outputs, self.folder / "capture.pt")


def traced(model: Generator) -> Generator:
    """The same model, each call of whose transformer is a trace of nnsight that saves every block's output."""
    from nnsight import NNsight

    transformer = copy.deepcopy(model.pipe.transformer)  # nnsight leaves its own in the modules
    pipe = copy.copy(model.pipe)
    vars(pipe)["transformer"] = transformer
    wrapped = NNsight(transformer)
    own = transformer.forward  # nnsight's by now
    kept: list[list[Tensor]] = []

    def forward(*args, **options):
        transformer.forward = own
        saved = []
        try:
            with wrapped.trace(*args, **options):
                for block in wrapped.transformer_blocks:
                    saved.append(block.output.save())
                for block in getattr(wrapped, "single_transformer_blocks", ()):
                    saved.append(block.output.save())
                out = wrapped.output.save()
        finally:
            transformer.forward = forward
        kept[:] = [*kept[-100:], saved]
        return out

    transformer.forward = forward
    return replace(model, pipe=pipe, encoded={})


def wide(width: int = 1024, doubles: int = 2, singles: int = 4) -> Generator:
    """A randomly initialised FLUX transformer of `width`, for 256 image and 64 text tokens."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=doubles, num_single_layers=singles, attention_head_dim=128,
        num_attention_heads=width // 128, joint_attention_dim=512, pooled_projection_dim=256,
        axes_dims_rope=(16, 56, 56),
    ).eval()  # fmt: skip
    vae = AutoencoderKL(latent_channels=16, block_out_channels=(8,) * 4, norm_num_groups=4, layers_per_block=1)
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    encoded = torch.randn(1, 64, 512), torch.randn(1, 256), torch.zeros(64, 3)
    pipe.encode_prompt = lambda *_, **__: encoded
    pipe.set_progress_bar_config(disable=True)
    return Generator("wide", Model("flux", "", width=256, height=256, guidance=0.0), flux, pipe, torch.device("cpu"))


def shipped(name: str) -> Generator:
    """A model that comes with ditscope."""
    family, guidance = ("flux", 0.0) if name == "shapes-flux" else ("sd3", 3.0)
    entry = Model(family, str(ROOT / "models" / name), width=64, height=64, guidance=guidance)
    return load_generator(name, entry, "cpu")


def ways(model: Generator) -> dict[str, Way]:
    """Sampling alone, with the plain way, with ditscope's capture, and with its read-outs of every block too."""
    blocks = list(model.family.blocks(model.pipe.transformer))

    def run(folder: Path, steps: int, observers: list[Observer]) -> None:
        sample(model, ["a large red ring"], [""], [0], observers, steps=steps)

    def capture(folder: Path, steps: int, predictions: bool) -> None:
        settings = CaptureSet(should_decode_intermediates=predictions)
        run(folder, steps, [Recorder(folder, blocks, range(steps), settings, RECORD)])

    def any_family(folder: Path, steps: int) -> None:
        entry = replace(model.entry, family="dit", max_sequence_length=text_length(model))
        held = replace(model, family=dit, entry=entry, encoded={})
        settings = CaptureSet(should_decode_intermediates=False)
        recorder = AnyRecorder(folder, blocks, range(steps), settings, RECORD)
        sample(held, ["a large red ring"], [""], [0], [recorder], steps=steps)

    peers: dict[str, Way] = {}
    if find_spec("nnsight"):
        apart = traced(model)

        def by_nnsight(folder: Path, steps: int) -> None:
            sample(apart, ["a large red ring"], [""], [0], steps=steps)

        peers = {"nnsight, in memory": by_nnsight}
    return peers | {
        "without": lambda folder, steps: run(folder, steps, []),
        "plain": lambda folder, steps: run(folder, steps, [Plain(folder)]),
        "capture": lambda folder, steps: capture(folder, steps, False),
        "capture, any family": any_family,
        "capture + read-outs": lambda folder, steps: capture(folder, steps, True),
    }


def measure(way: Way, steps: int, folder: Path) -> tuple[float, float, int]:
    """Seconds of one run, its processor seconds on all cores, and the bytes that it leaves on the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began, worked = time.perf_counter(), time.process_time()
        way(Path(out), steps)
        seconds, busy = time.perf_counter() - began, time.process_time() - worked
        return seconds, busy, sum(f.stat().st_size for f in Path(out).iterdir())


def compare(name: str, found: dict[str, Way], steps: int, repeats: int, folder: Path) -> None:
    """Time all ways in turn, `repeats` times: ratios of the fastest runs, and the median of the turns' ratios."""
    seconds: dict[str, list[float]] = {way: [] for way in found}
    busy: dict[str, list[float]] = {way: [] for way in found}
    left = {}
    for turn in range(repeats + 1):  # the first warms up
        for way, function in found.items():
            time_s, busy_s, left[way] = measure(function, steps, folder)
            if turn:
                seconds[way].append(time_s)
                busy[way].append(busy_s)
    for way, times in seconds.items():
        fastest = min(times) / min(seconds["without"])
        turns, processor = (ratio_of_turns(of[way], of["without"]) for of in (seconds, busy))
        print(f"| {name} | {way} | {min(times):.3f} | {fastest:.2f} | {turns:.2f} ", end="")
        print(f"| {processor:.2f} | {left[way] / 1e6:.1f} |", flush=True)


def ratio_of_turns(times: list[float], alone: list[float]) -> float:
    """The median over turns of a way's seconds over those without capture."""
    return statistics.median(a / b for a, b in zip(times, alone, strict=True))


def peak(way: str, steps: int) -> float:
    """Peak MB of one run on the wide model above what a step without capture needs, in a process of its own."""
    command = [sys.executable, __file__, "peak", way, str(steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(way: str, steps: int) -> None:
    """Print what `peak` reads."""
    found = ways(wide())
    with tempfile.TemporaryDirectory(dir=FOLDER) as out:
        found["without"](Path(out), 1)
        reset_peaks()
        before = peak_rss()
        found[way](Path(out), steps)
        print((peak_rss() - before) / 1e6)


def main(repeats: int = 5) -> None:
    """Print the tables of time and of memory."""
    FOLDER.mkdir(exist_ok=True)
    print(
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"{repeats} turns on the wide model, {SHORT * repeats} on a shipped one\n"
    )
    print(
        "| model | way | seconds | over without, fastest | median turn | processor seconds, median turn | MB on disk |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in ("shapes-flux", "shapes-sd3"):
        compare(f"{name}, 8 steps", ways(shipped(name)), 8, SHORT * repeats, FOLDER)
    compare("width 1024, 3 steps", ways(wide()), 3, repeats, FOLDER)
    print("\n| model | steps | plain: peak MB above sampling | capture |\n|---|---|---|---|")
    for steps in (2, 32):
        print(f"| width 1024 | {steps} | {peak('plain', steps):.0f} | {peak('capture', steps):.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print_peak(sys.argv[2], int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
