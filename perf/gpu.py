"""One large GPU in at most eight minutes, without downloads: what a desk cannot know.

python perf/gpu.py [--out FILE] [--seconds 480] [--toy]

A FLUX.1 transformer of full size with random weights at 1024 x 1024 pixels, the text encoders of models/shapes-flux, a
VAE of full size. Each row is printed and appended to FILE (JSON lines) as it ends, in the order of what is most wanted;
a row that fails or for which no time is left says so in `reason`. Random weights say nothing of pictures: the rows are
time, bytes, differences and whether it runs at all. `--toy`, and a machine without CUDA, take a model of a few hundred
thousand weights.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from ditscope.benchmark.latency import now
from ditscope.benchmark.memory import peaks, reset_peaks
from ditscope.calibrate.files import Reference
from ditscope.calibrate.load import Batch
from ditscope.capture.recorder import Recorder
from ditscope.capture.settings import CaptureSet
from ditscope.core.determinism import WORKSPACE, deterministic
from ditscope.core.errors import first_line
from ditscope.models.families import flux
from ditscope.models.families.common import Conditioning
from ditscope.models.hardware import fingerprint
from ditscope.models.loading import Generator, default_device
from ditscope.models.placement import keep_encoders_in_host_memory
from ditscope.models.prepare import prepare
from ditscope.models.quantize import stored_bytes
from ditscope.models.quantizers import QUANTIZERS, quantizable
from ditscope.models.sampling import Observer, sample
from ditscope.models.settings import CALIBRATED, SCHEMES, Model, Scheme
from ditscope.sensitivity.exact import network_of
from ditscope.sensitivity.fast import estimate_layers
from ditscope.sensitivity.settings import Sensitivity

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "models/shapes-flux"
RECORD = {"generation_id": "perfperf", "prompt_id": "p", "model": "perf", "prompt": "a ring", "position": 0}
STATES = ("eager", "regional", "full", "max-autotune")
PROMPT = "a large red ring at the left on a beige background"

Row = tuple[str, Callable[[], dict[str, Any]]]  # what is measured, and the function that measures it


@dataclass(frozen=True)
class Size:
    """How large the model is, and what it is given."""

    heads: int = 24
    head_dim: int = 128
    rope: tuple[int, int, int] = (16, 56, 56)
    doubles: int = 19
    singles: int = 38
    pixels: int = 1024
    text_tokens: int = 512
    vae: tuple[int, ...] = (128, 256, 512, 512)
    steps: int = 2
    dtype: str = "bfloat16"


TOY = Size(2, 32, (8, 12, 12), 1, 1, 64, 16, (8, 8, 8, 8), 2, "float32")


@cache
def text_encoders() -> FluxPipeline:
    """The text encoders and tokenizers of the shipped model; all generators here share them."""
    return FluxPipeline.from_pretrained(SHIPPED, transformer=None, vae=None, use_safetensors=True)


def generator(size: Size, device: torch.device, doubles: int, singles: int, dtype: str = "") -> Generator:
    """A FLUX generator of random weights, the same ones for the same arguments, made on the device."""
    torch.manual_seed(0)
    dtype = dtype or size.dtype
    encoders = text_encoders()
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with device:
            transformer = FluxTransformer2DModel(
                in_channels=64,
                num_layers=doubles,
                num_single_layers=singles,
                attention_head_dim=size.head_dim,
                num_attention_heads=size.heads,
                joint_attention_dim=encoders.text_encoder_2.config.d_model,
                pooled_projection_dim=encoders.text_encoder.config.hidden_size,
                axes_dims_rope=size.rope,
            )
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=size.vae,
                layers_per_block=2,
                latent_channels=16,
                norm_num_groups=min(32, size.vae[0]),
                shift_factor=0.1159,
                scaling_factor=0.3611,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
    finally:
        torch.set_default_dtype(default)
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae.eval(),
        encoders.text_encoder,
        encoders.tokenizer,
        encoders.text_encoder_2,
        encoders.tokenizer_2,
        transformer.eval().requires_grad_(False),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device, getattr(torch, dtype))
    entry = Model(
        "flux",
        str(SHIPPED),
        dtype=dtype,
        width=size.pixels,
        height=size.pixels,
        steps=size.steps,
        max_sequence_length=size.text_tokens,
    )
    return Generator("perf", entry, flux, pipe, device)


def pictures(model: Generator, seeds: Sequence[int], observers: Sequence[Observer] = ()) -> Tensor:
    """Latents of one picture per seed, sampled as one batch; texts are encoded anew."""
    model.encoded.clear()
    return sample(model, [PROMPT] * len(seeds), [""] * len(seeds), seeds, observers)


class FirstStep(Observer):
    """Keeps the noise and the conditioning that the first step is given."""

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Keep the conditioning."""
        self.cond = cond

    def before(self, index: int, x: Tensor) -> None:
        """Keep the latents of step 0, which are noise."""
        if index == 0:
            self.noise = x


def first_batch(model: Generator, seeds: Sequence[int]) -> Batch:
    """What the first step of one picture per seed is given, at noise level 0.5, as a calibration batch."""
    seen = FirstStep()
    pictures(model, seeds, [seen])
    references = tuple(Reference("perf", None, image, 0, 1.0) for image in range(len(seeds)))
    return Batch(references, "early", seen.noise, torch.tensor(0.5, device=model.device), seen.cond, 0.0)


def inputs(model: Generator, batch: int = 1) -> dict[str, Any]:
    """Arguments of one call of the transformer for 1 to 4 samples, the same random ones each time."""
    draw = torch.Generator().manual_seed(0)
    config, dtype, device = model.pipe.transformer.config, model.pipe.transformer.dtype, model.device
    side = model.entry.width // 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(4, *shape, generator=draw)[:batch].to(device, dtype)

    ids = torch.zeros(side, side, 3)
    ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None]
    return {
        "hidden_states": normal(side * side, 64),
        "encoder_hidden_states": normal(model.entry.max_sequence_length, config.joint_attention_dim),
        "pooled_projections": normal(config.pooled_projection_dim),
        "timestep": torch.full((batch,), 0.5, device=device, dtype=dtype),
        "img_ids": ids.view(-1, 3).to(device, dtype),
        "txt_ids": torch.zeros(model.entry.max_sequence_length, 3, device=device, dtype=dtype),
        "return_dict": False,
    }


@torch.no_grad()
def velocity(model: Generator, batch: int = 1) -> Tensor:
    """What the transformer predicts for `inputs`, in float32 on the CPU."""
    return model.pipe.transformer(**inputs(model, batch))[0].float().cpu()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of `repeats` runs, each until the device is done, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = now(device)
        work()
        times.append(now(device) - began)
    return statistics.median(times)


def relative(reference: Tensor, x: Tensor) -> float:
    """Norm of the change over the norm of the reference."""
    return float((x.cpu().double() - reference.cpu().double()).norm() / reference.cpu().double().norm())


def digest(*tensors: Tensor) -> str:
    """A digest of the values of tensors."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.detach().float().cpu().numpy().tobytes())
    return hashed.hexdigest()


# Rows, in the order of what is most wanted ---------------------------------------------------------------------------


def versions(device: torch.device, side: int) -> Iterator[Row]:
    """What is measured on, and one fp8 product."""
    names = ("torch", "torchao", "diffusers", "transformers")
    yield "versions", lambda: fingerprint() | {name: version(name) for name in names} | {"cuda": torch.version.cuda}

    def product() -> dict[str, Any]:
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        scale = torch.ones((), device=device)
        eighth = [(x / 8).to(torch.float8_e4m3fn) for x in (a, b)]

        def scaled() -> Tensor:
            return torch._scaled_mm(eighth[0], eighth[1].T, scale, scale, out_dtype=torch.bfloat16)

        exact = a @ b.T
        times = {"bf16_ms": seconds(lambda: a @ b.T, device) * 1e3, "fp8_ms": seconds(scaled, device) * 1e3}
        return times | {"relative_l2": relative(exact, scaled() * 64)}

    yield f"fp8 product, {side} x {side}", product


def capturing(whole: Callable[[], Generator]) -> Iterator[Row]:
    """Bytes and overhead of capturing every block of every step."""

    def capture() -> dict[str, Any]:
        model = whole()
        blocks = list(model.family.blocks(model.pipe.transformer))
        steps = range(model.entry.steps)
        plain = seconds(lambda: pictures(model, [0]), model.device, 2)
        written = []

        def captured() -> None:
            with tempfile.TemporaryDirectory(dir=ROOT / "results") as folder:
                settings = CaptureSet(should_decode_intermediates=False)
                pictures(model, [0], [Recorder(Path(folder), blocks, steps, settings, RECORD)])
                written.append(sum(file.stat().st_size for file in Path(folder).iterdir()))

        (ROOT / "results").mkdir(exist_ok=True)
        took = seconds(captured, model.device, 2)
        return {"bytes": written[-1], "plain_s": plain, "captured_s": took, "overhead": took / plain}

    yield "capture of every block and step", capture


def batching(whole: Callable[[], Generator]) -> Iterator[Row]:
    """Batch 1 against 4: the same pictures, and how much faster each."""

    def compare() -> dict[str, Any]:
        model = whole()
        one = torch.cat([pictures(model, [seed]) for seed in range(4)])
        four = pictures(model, range(4))
        times = [seconds(lambda n=n: pictures(model, range(n)), model.device, 1) for n in (1, 4)]
        return {
            "relative_l2": [relative(a, b) for a, b in zip(one, four, strict=True)],
            "one_s": times[0],
            "four_s": times[1],
        }

    yield "batch 1 against 4", compare


def floors(size: Size, device: torch.device) -> Iterator[Row]:
    """What bfloat16 itself changes of a prediction, beside what quantizing every layer does, 2 + 2 blocks."""

    def floor() -> dict[str, Any]:
        exact = generator(size, device, 2, 2, "float32")
        half = generator(size, device, 2, 2, "bfloat16")
        half.pipe.transformer.load_state_dict(exact.pipe.transformer.state_dict())
        reference = velocity(exact)
        found = {"bf16": relative(reference, velocity(half))}
        layers = quantizable(exact.pipe.transformer)
        own = {name: layer.weight.data for name, layer in layers.items()}
        for bits in (8, 6, 4):
            for name, layer in layers.items():
                layer.weight.data = QUANTIZERS["group"](own[name], bits, 32)
            found[f"{bits}_bits"] = relative(reference, velocity(exact))
        return {f"relative_l2_{key}": value for key, value in found.items()}

    yield "floor of bfloat16 beside bits", floor


def schemes(size: Size, device: torch.device) -> Iterator[Row]:
    """Every scheme on 2 + 2 blocks of full width, eager: does it run, how fast, how far off, how large."""
    reference: list[Tensor] = []
    options = {"intx-weight-only": {"bits": 4, "group_size": 32}, "int8-dynamic-intx": {"bits": 4, "group_size": 32}}

    def run(kind: str) -> dict[str, Any]:
        model = generator(size, device, 2, 2)
        if reason := prepare(model, Scheme(kind, **options.get(kind, {})), "eager", None):
            return {"reason": reason}
        found = velocity(model)
        if kind == "base":
            reference.append(found)
        arguments, alone = inputs(model), torch.no_grad()
        with alone:
            took = seconds(lambda: model.pipe.transformer(**arguments), device)
        numbers = {"ms": took * 1e3, "stored_bytes": stored_bytes(model.pipe.transformer)}
        four = velocity(model, 4)[:1]  # SD3 and FLUX hand other layouts on at more than one sample
        return numbers | {"relative_l2": relative(reference[0], found), "relative_l2_in_four": relative(found, four)}

    for kind in SCHEMES:
        if kind not in ("plan", "mlx-weight-only", *CALIBRATED):  # solved and emulated: perf/schemes.py
            yield f"scheme {kind}", lambda kind=kind: run(kind)


def compiled(size: Size, device: torch.device, states: Sequence[str]) -> Iterator[Row]:
    """All blocks at batch 1: eager, compiled block by block, whole, tuned; and fp8 row-wise."""

    def run(kind: str, state: str) -> dict[str, Any]:
        torch._dynamo.reset()
        reset_peaks()
        model = generator(size, device, size.doubles, size.singles)
        began = time.perf_counter()
        if reason := prepare(model, Scheme(kind), state, None):
            return {"reason": reason}
        arguments = inputs(model)
        with torch.no_grad():
            model.pipe.transformer(**arguments)
            first = now(device) - began
            took = seconds(lambda: model.pipe.transformer(**arguments), device)
        return {"ms": took * 1e3, "first_call_s": first} | peaks()

    for kind, state in [("base", s) for s in states] + [("fp8-dynamic-row", s) for s in states[:2]]:
        yield f"{kind}, all blocks, {state}", lambda kind=kind, state=state: run(kind, state)


def twice(size: Size, device: torch.device) -> Iterator[Row]:
    """The same work twice, compared byte by byte, 2 + 2 blocks."""
    small = replace(size, pixels=min(size.pixels, 512))

    def sampling() -> dict[str, Any]:
        return {"equal": len({digest(pictures(generator(small, device, 2, 2), [0])) for _ in range(2)}) == 1}

    def gradients(guarded: bool) -> dict[str, Any]:
        model = generator(small, device, 2, 2, "float32")
        batch = first_batch(model, [0, 1])
        one = replace(batch, x=batch.x[:1], cond=batch.cond[:1], references=batch.references[:1])
        settings = Sensitivity(bits=[4], probes=2)
        layers = network_of(model, one).layers

        def scores() -> str:
            rows = estimate_layers(model, layers, [batch], dict.fromkeys(batch.references, "early"), settings)
            return json.dumps(rows)

        if guarded:
            with deterministic():
                return {"equal": scores() == scores(), "seconds": seconds(scores, device, 1)}
        return {"equal": scores() == scores(), "seconds": seconds(scores, device, 1)}

    def training() -> dict[str, Any]:
        return {"equal": len({trained(device) for _ in range(2)}) == 1}

    yield "sampling twice", sampling
    yield "gradients twice, as torch chooses", lambda: gradients(False)
    yield "gradients twice, deterministic", lambda: gradients(True)
    yield "refiner trained twice", training


def trained(device: torch.device) -> str:
    """A digest of a refiner that was trained for a few steps on random values."""
    from ditscope.refine import train
    from ditscope.refine.batches import samples_of
    from ditscope.refine.data_settings import Source
    from ditscope.refine.dataset import open_dataset
    from ditscope.refine.encoder import Encoder
    from ditscope.refine.prepare import prepare
    from ditscope.refine.settings import Refine

    settings = Refine(codes=2, mae_steps=4, steps=4, classes_per_step=2, objective="drifting")
    torch.manual_seed(0)
    with deterministic(), tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = place / "samples.parquet", place / "data.json"
        prepare({}, *files, place / "data", source=Source(kind="fake", count=64, shape=[16, 16, 16]))
        data = open_dataset(*files)
        samples = samples_of(data, "train", np.arange(len(data)) % 2, settings)
        encoder, _ = train.train_latent_mae(samples, settings, place / "mae", device)
        network, _ = train.train_refiner(samples, Encoder(encoder), settings, "", place / "refiner", device)
    return digest(*network.parameters())


def offloading(size: Size, device: torch.device) -> Iterator[Row]:
    """A picture with all components on the device, with the encoders in host memory, and by diffusers' own offload."""

    def run(place: Callable[[FluxPipeline], None]) -> dict[str, Any]:
        model = generator(size, device, size.doubles, size.singles)
        place(model.pipe)
        reset_peaks()
        return {"seconds": seconds(lambda: pictures(model, [0]), device, 2)} | peaks()

    def by_diffusers(pipe: FluxPipeline) -> None:
        pipe.to("cpu")
        pipe.enable_model_cpu_offload(device=device)

    yield "resident", lambda: run(lambda pipe: None)
    if device.type == "cpu":
        yield "offloaded by diffusers", lambda: {"reason": "no accelerator to offload from"}
    else:
        yield "offloaded by diffusers", lambda: run(by_diffusers)
    # Last: the encoders, which all rows share, do not come back.
    yield "offloaded", lambda: run(lambda pipe: keep_encoders_in_host_memory(pipe, device))


def rows(size: Size, device: torch.device, states: Sequence[str]) -> Iterator[Row]:
    """Every row; a model is made when its first row is reached, and dropped with its last."""
    yield from versions(device, size.heads * size.head_dim)
    whole = cache(lambda: generator(size, device, size.doubles, size.singles))
    yield from capturing(whole)
    yield from batching(whole)
    whole.cache_clear()
    yield from floors(size, device)
    yield from schemes(size, device)
    yield from compiled(size, device, states)
    yield from twice(size, device)
    yield from offloading(size, device)


def measured(work: Callable[[], dict[str, Any]], left: float) -> dict[str, Any]:
    """A row's numbers, or the reason for which it has none; at most `left` seconds."""
    if left < 1:
        return {"reason": "not measured: no time left"}

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not measured: more than the {left:.0f} s that were left")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(left))
    try:
        return work()
    except Exception as error:  # the other rows go on
        return {"reason": first_line(error)}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_rows(found: Iterator[Row], out: Path, limit: float, where: dict[str, Any]) -> None:
    """Measure row by row, for at most `limit` seconds; each is printed and written as it ends."""
    began = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w") as file:
        for what, work in found:
            start = time.perf_counter()
            row = {"row": what} | where | measured(work, limit - (start - began))
            row["row_seconds"] = round(time.perf_counter() - start, 2)
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()


def quiet() -> None:
    """No notes and bars of the libraries among the rows."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure row by row, and leave each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results/perf/gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args(arguments)
    quiet()
    os.environ.setdefault(WORKSPACE, ":4096:8")  # before the first product, for the rows that run deterministic kernels
    device = torch.device(default_device())
    toy = given.toy or device.type == "cpu"
    size, states = (TOY, STATES[:1]) if toy else (Size(), STATES)
    run_rows(rows(size, device, states), given.out, given.seconds, {"device": str(device), "toy": toy})


if __name__ == "__main__":
    main()
