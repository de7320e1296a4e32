"""Sampling by the pipeline's own `__call__`, watched by observers.

A picture is the pipeline's by construction: its noise, schedule, guidance, rounding and text encoding are diffusers'.
Observers see it through three seams: the transformer's `forward`, `scheduler.step` and `encode_prompt`. Nothing here
knows a family, but for the facts that its module in `ditscope.models.families` holds.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator, text_length

ENCODED_BYTES = 1_000_000_000  # of text encodings that a job keeps


@dataclass(frozen=True)
class Step:
    """One denoising step of a batch, as observers see it."""

    index: int
    sigma: Tensor  # scalar, noise level before the step
    sigma_next: Tensor  # scalar, noise level after it
    x: Tensor  # (batch, channels, [frames,] height, width) latents before the step
    velocity: Tensor  # like x: the prediction after guidance
    x_next: Tensor  # like x


class Observer:
    """Watches a sampling run; override what is of interest. Observers see tensors and must not change them."""

    one_pass = False  # whether it can only watch pipelines that call their transformer once per step

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Before the first step; the place to register forward hooks.

        `cond` is what the transformer's first call is given, `sigmas` (steps + 1,) the scheduler's noise levels.
        """

    def before(self, index: int, x: Tensor) -> None:
        """Before the model is called at step `index` with latents `x`, as it is given them."""

    def after(self, step: Step) -> None:
        """After a step."""

    def stop(self) -> None:
        """After the last step, or after an exception once a run has started; the place to remove hooks."""


@torch.no_grad()
def sample(
    model: Generator,
    prompts: Sequence[str],
    negatives: Sequence[str],
    seeds: Sequence[int],
    observers: Sequence[Observer] = (),
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> Tensor:
    """Latents (batch, channels, [frames,] height, width) of one picture per prompt, by the pipeline's own `__call__`.

    Each picture has a CPU generator of its own, seeded by its seed. Bit for bit those of the pipeline called with the
    same prompts, observers or none. Raises FloatingPointError where they are not finite.
    """
    entry, pipe = model.entry, model.pipe
    guidance = entry.guidance if guidance is None else guidance
    zeros = pipe.config.get("force_zeros_for_empty_prompt", False)  # SDXL: without a negative prompt its half is zeros
    if zeros and any(negatives) and not all(negatives):
        parts = [[i for i, text in enumerate(negatives) if bool(text) == given] for given in (False, True)]
        made = [
            sample(model, *([v[i] for i in rows] for v in (prompts, negatives, seeds)), observers,
                   steps=steps, guidance=guidance)
            for rows in parts
        ]  # fmt: skip
        return torch.cat(made)[torch.tensor(parts[0] + parts[1]).argsort()]
    wanted = {
        "prompt": list(prompts),
        "negative_prompt": None if zeros and not any(negatives) else list(negatives),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "height": entry.height,
        "width": entry.width,
        "num_frames": entry.frames,
        "num_inference_steps": entry.steps if steps is None else steps,
        "max_sequence_length": text_length(model),
    }
    arguments = accepted(pipe, wanted | guided(guidance)) | entry.call
    bar = {"desc": "steps", "unit": "step", "leave": False, "disable": None}
    with remembered(model), watched(model, observers, len(prompts), guidance), patched(pipe, _progress_bar_config=bar):
        latents = pipe(**arguments, output_type="latent", return_dict=False)[0]
    latents = unpacked(model, latents, entry.height, entry.width)
    if not latents.isfinite().all():
        raise FloatingPointError(f"{model.name}: sampling left NaN or Inf in the latents")
    return latents


def predict(model: Generator, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
    """The prediction after guidance, like `x` (batch, channels, height, width), at noise level `sigma` (scalar).

    It is what the pipeline computes in a step from these latents and this conditioning. Gradients reach `x`.
    """
    pipe, scheduler, predictions = model.pipe, model.pipe.scheduler, []

    @functools.wraps(scheduler.step)
    def step(prediction: Tensor, timestep: Any, latents: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        predictions.append(prediction)
        return (latents,)

    @functools.wraps(scheduler.set_timesteps)
    def set_timesteps(*args: Any, **options: Any) -> None:
        scheduler.sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
        scheduler.timesteps = scheduler.sigmas[:1] * scheduler.config.num_train_timesteps

    wanted = {
        "prompt_embeds": cond.embeds,
        "pooled_prompt_embeds": cond.pooled,
        "negative_prompt_embeds": cond.negative_embeds,
        "negative_pooled_prompt_embeds": cond.negative_pooled,
        "latents": packed(model, x),
        "num_inference_steps": 1,
        **pixels(model, x),
    }
    if cond.negative_embeds is None and "guidance_embeds" not in pipe.transformer.config:
        guidance = 1.0  # conditional alone: there is nothing to guide away from
    arguments = accepted(pipe, wanted | guided(guidance)) | model.entry.call
    with patched(scheduler, step=step, set_timesteps=set_timesteps):
        call(pipe)(pipe, **arguments, output_type="latent", return_dict=False)
    return unpacked(model, predictions[0], arguments["height"], arguments["width"])


def pictures(model: Generator, latents: Tensor) -> Tensor:
    """Pictures (batch, 3, [frames,] height, width) in [0, 1] from latents, decoded by the pipeline itself.

    `__call__` runs one step whose prediction is zeros and whose result is `latents`. Gradients reach `latents`.
    """
    pipe, transformer = model.pipe, model.pipe.transformer
    last = packed(model, latents.to(model.device))

    def zeros(*args: Any, **options: Any) -> tuple[Tensor]:
        return (torch.zeros_like(latents_given(args, options)),)

    @functools.wraps(pipe.scheduler.step)
    def step(*args: Any, **options: Any) -> tuple[Tensor]:
        return (last,)

    wanted = {
        "prompt": [""] * len(latents),
        "num_inference_steps": 1,
        "generator": [torch.Generator("cpu").manual_seed(0) for _ in latents],
        "max_sequence_length": text_length(model),
        **pixels(model, latents),
        **guided(0.0),
    }
    with (
        remembered(model),
        patched(pipe.scheduler, step=step),
        patched(transformer, forward=zeros, _compiled_call_impl=None),
    ):
        images: Tensor = call(pipe)(pipe, **accepted(pipe, wanted), output_type="pt", return_dict=False)[0]
    return images.transpose(1, 2).squeeze(2) if images.ndim == 5 else images  # a video has its frames first


@torch.no_grad()
def decode(model: Generator, latents: Tensor) -> Tensor:
    """Images (batch, [frames,] height, width, 3) as uint8 on the CPU."""
    return (pictures(model, latents).float() * 255).round().to(torch.uint8).movedim(1, -1).cpu()


def still(image: np.ndarray) -> np.ndarray:
    """An image (height, width, 3) as it is, the middle frame of a video (frames, height, width, 3)."""
    return image[len(image) // 2] if image.ndim == 4 else image


# The seams ------------------------------------------------------------------------------------------------------------


@contextmanager
def patched(thing: Any, **attributes: Any) -> Iterator[None]:
    """Within the context, an object has these attributes in place of its own."""
    own = {name: vars(thing)[name] for name in attributes if name in vars(thing)}
    for name, value in attributes.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in own:
                setattr(thing, name, own[name])
            else:
                delattr(thing, name)


@contextmanager
def remembered(model: Generator) -> Iterator[None]:
    """Within the context, the pipeline encodes a list of prompts only if the job has not encoded that list before.

    Lists are remembered whole: an encoder's last bits depend on the batch, and a picture must not depend on what the
    job did before it.
    """
    encode, kept = model.pipe.encode_prompt, model.encoded

    @functools.wraps(encode)
    def encode_prompt(*args: Any, **options: Any) -> Any:
        if any(isinstance(value, Tensor) for value in (*args, *options.values())):
            return encode(*args, **options)
        key = repr((args, sorted(options.items())))
        if key not in kept:
            with torch.no_grad():
                kept[key] = encode(*args, **options)
            while len(kept) > 1 and sum(map(size, kept.values())) > ENCODED_BYTES:
                del kept[next(iter(kept))]
        return kept[key]

    with patched(model.pipe, encode_prompt=encode_prompt):
        yield


def size(encoded: Sequence[Any]) -> int:
    """Bytes of the tensors of one text encoding."""
    return sum(t.nbytes for t in encoded if isinstance(t, Tensor))


@contextmanager
def watched(model: Generator, observers: Sequence[Observer], batch: int, guidance: float) -> Iterator[None]:
    """Within the context, observers see what the pipeline does to a batch of `batch` pictures."""
    if not observers:
        yield
        return
    transformer, scheduler, entry = model.pipe.transformer, model.pipe.scheduler, model.entry
    forward, step = transformer.forward, scheduler.step
    index, calls, sigmas = 0, 0, torch.empty(0)

    def latents(x: Tensor) -> Tensor:
        return unpacked(model, x, entry.height, entry.width)

    @functools.wraps(forward)
    def watched_forward(*args: Any, **options: Any) -> Any:
        nonlocal calls, sigmas
        calls += 1
        if calls == 1:
            if index == 0:
                sigmas = scheduler.sigmas.float().to(model.device)
                for observer in observers:
                    observer.start(model, sigmas, conditioning(options, batch), guidance)
            x = latents(latents_given(args, options)[:batch])
            for observer in observers:
                observer.before(index, x)
        elif any(observer.one_pass for observer in observers):
            raise InputError(
                f"{model.name}: its pipeline calls the transformer more than once per step; captures and calibration "
                "sets hold one call: leave out what asks for the others (`call` of the model's entry)"
            )
        return forward(*args, **options)

    @functools.wraps(step)
    def watched_step(prediction: Tensor, timestep: Any, x: Tensor, *args: Any, **options: Any) -> Any:
        nonlocal index, calls
        result = step(prediction, timestep, x, *args, **options)
        x_next = result[0] if isinstance(result, tuple) else result.prev_sample
        tensors = (latents(t) for t in (x, prediction, x_next))
        seen = Step(index, sigmas[index], sigmas[index + 1], *tensors)
        for observer in observers:
            observer.after(seen)
        index, calls = index + 1, 0
        return result

    try:
        with (
            patched(transformer, forward=watched_forward, _compiled_call_impl=None),
            patched(scheduler, step=watched_step),
        ):
            yield
    finally:
        for observer in observers if len(sigmas) else ():
            observer.stop()


def latents_given(args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The latents in a call of a transformer: its first argument."""
    given: Tensor = args[0] if args else options["hidden_states"]
    return given


def conditioning(options: dict[str, Any], batch: int) -> Conditioning:
    """What the transformer is given of the text; diffusers puts the negative half of a doubled batch first."""
    embeds = options["encoder_hidden_states"]
    pooled = options.get("pooled_projections")
    pooled = embeds.new_zeros(len(embeds), 0) if pooled is None else pooled
    if len(embeds) == batch:
        return Conditioning(embeds, pooled)
    (negative, positive), (negative_pooled, positive_pooled) = embeds.chunk(2), pooled.chunk(2)
    return Conditioning(positive, positive_pooled, negative, negative_pooled)


# What a pipeline takes ------------------------------------------------------------------------------------------------


def call(pipe: Any) -> Callable[..., Any]:
    """The pipeline's `__call__` without its `torch.no_grad`."""
    function: Callable[..., Any] = inspect.unwrap(type(pipe).__call__)
    return function


def accepted(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the pipeline's `__call__` knows."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in arguments.items() if name in known}


def guided(guidance: float) -> dict[str, float]:
    """The argument that sets the guidance; none below 0, which leaves the pipeline's own default."""
    return {} if guidance < 0 else {"guidance_scale": guidance}


def pixels(model: Generator, latents: Tensor) -> dict[str, int]:
    """Height, width and frames of the pictures of `latents` (batch, channels, [frames,] height, width)."""
    pipe = model.pipe
    space = getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor
    height, width = latents.shape[-2:]
    frames = (latents.shape[2] - 1) * pipe.vae_scale_factor_temporal + 1 if latents.ndim == 5 else 1
    return {"height": height * space, "width": width * space, "num_frames": frames}


def packed(model: Generator, latents: Tensor) -> Tensor:
    """Latents as the pipeline holds them while it samples."""
    return model.family.pack(latents) if hasattr(model.family, "pack") else latents


def unpacked(model: Generator, x: Tensor, height: int, width: int) -> Tensor:
    """What the pipeline holds while it samples pictures of `height` x `width` pixels, in the shape of latents."""
    if not hasattr(model.family, "unpack"):
        return x
    factor = model.pipe.vae_scale_factor
    latents: Tensor = model.family.unpack(x, height // factor, width // factor)
    return latents
