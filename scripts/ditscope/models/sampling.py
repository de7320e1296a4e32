"""Sampling by the pipeline's own `__call__`, watched by observers.

A picture is the pipeline's by construction: its noise, schedule, guidance, rounding and text encoding are diffusers'.
Observers see it through three seams: the transformer's `forward`, `scheduler.step` and `encode_prompt`. Nothing here
knows a family, but for the facts that its module in `ditscope.models.families` holds.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator, text_length

ENCODED_BYTES = 1_000_000_000  # of text encodings that a job keeps


@dataclass(frozen=True)
class Call:
    """One call of a transformer, with the arguments that the pipeline gives it."""

    transformer: Any
    index: int  # of the step
    number: int  # of the call within the step
    batch: int  # pictures; a tensor may have twice as many rows
    context: str  # what the pipeline calls it (`cond`, `uncond`); empty where it has no name
    args: tuple[Any, ...]
    options: dict[str, Any]
    forward: Callable[..., Any]  # the transformer's own

    def run(self) -> Any:
        """What the transformer puts out, seen by no observer."""
        return self.forward(*self.args, **self.options)

    @property
    def latents(self) -> Any:
        """What is denoised: the first argument, a tensor or a list of tensors."""
        return latents_given(self.args, self.options)


@dataclass(frozen=True)
class Step:
    """One denoising step of a batch, as observers see it."""

    index: int
    sigma: Tensor  # scalar, noise level before the step
    sigma_next: Tensor  # scalar, noise level after it
    x: Tensor  # (batch, channels, [frames,] height, width) latents before the step
    velocity: Tensor  # like x: the prediction after guidance
    x_next: Tensor  # like x
    timestep: Any = None  # as the scheduler is given it


class Observer:
    """Watches a sampling run; override what is of interest. Observers see tensors and must not change them."""

    one_pass = False  # whether it can only watch pipelines that call their transformer once per step

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Before the first step; the place to register forward hooks.

        `cond` is what the transformer's first call is given of the text, None where that is not the two tensors of
        FLUX.1 and SD3; `sigmas` (steps + 1,) are the scheduler's noise levels.
        """

    def before(self, index: int, x: Tensor) -> None:
        """Before the model is called at step `index` with latents `x`, as it is given them."""

    def called(self, call: Call) -> None:
        """Before each call of a transformer: once per step, or more often under guidance."""

    def answered(self, call: Call, output: Any) -> None:
        """After each call of a transformer, with what it put out."""

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
        "max_sequence_length": text_length(model) or None,
    }
    for transformer in transformers_of(pipe):
        if cache := getattr(transformer, "step_cache", None):
            cache.start(model, wanted["num_inference_steps"])
    arguments = accepted(pipe, wanted | guided(guidance)) | entry.call
    bar = {"desc": "steps", "unit": "step", "leave": False, "disable": None}
    with (
        remembered(model),
        watched(model, observers, len(prompts), guidance),
        last_state(model) as states,
        patched(pipe, _progress_bar_config=bar),
    ):
        pipe(**arguments, output_type="latent", return_dict=False)
    latents = unpacked(model, states[-1], entry.height, entry.width)
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
    last = packed(model, latents.to(model.device))

    def step(*args: Any, **options: Any) -> tuple[Tensor]:
        return (last,)

    size = pixels(model, latents)
    images = in_one_step(model, len(latents), lambda given, transformer: zeros_for(given, transformer), step, size, 0.0)
    return images.transpose(1, 2).squeeze(2) if images.ndim == 5 else images  # a video has its frames first


def in_one_step(
    model: Generator,
    batch: int,
    answer: Callable[[Any, Any], Any],
    step: Callable[..., tuple[Tensor]],
    size: dict[str, int],
    guidance: float,
    timestep: Any = None,
    output: str = "pt",
    negative: Sequence[str] | None = None,
) -> Any:
    """What the pipeline's `__call__` makes of `batch` pictures in one step, with stand-ins for its two seams.

    `answer` (what is denoised, transformer) stands in for the transformer's forward, `step` for the scheduler's. The
    step is at `timestep`, where one is given. Some pipelines only guide where there are `negative` prompts.
    """
    pipe, scheduler = model.pipe, model.pipe.scheduler
    own_step, own_timesteps = scheduler.step, getattr(scheduler, "set_timesteps", None)

    def forward_of(transformer: Any) -> Callable[..., tuple[Any]]:
        return lambda *args, **options: (answer(latents_given(args, options), transformer),)

    def set_timesteps(*args: Any, **options: Any) -> None:
        assert own_timesteps is not None
        own_timesteps(*args, **options)
        scheduler.timesteps = torch.as_tensor(timestep).reshape(1).to(scheduler.timesteps)

    wanted = {
        "prompt": [""] * batch,
        "negative_prompt": negative,
        "num_inference_steps": 2 if getattr(model.family, "AS_HELD", False) else 1,  # Mochi has no schedule of one
        "generator": [torch.Generator("cpu").manual_seed(0) for _ in range(batch)],
        "max_sequence_length": text_length(model),
        **size,
        **guided(guidance),
    }
    seams: dict[str, Any] = {"step": functools.wraps(own_step)(step)}
    if timestep is not None:
        seams["set_timesteps"] = functools.wraps(scheduler.set_timesteps)(set_timesteps)
    with ExitStack() as stack:
        stack.enter_context(remembered(model))
        stack.enter_context(patched(scheduler, **seams))
        for transformer in transformers_of(pipe):
            stack.enter_context(patched(transformer, forward=forward_of(transformer), _compiled_call_impl=None))
        arguments = accepted(pipe, wanted) | model.entry.call
        return call(pipe)(pipe, **arguments, output_type=output, return_dict=False)[0]


def zeros_for(given: Any, transformer: Any) -> Any:
    """What a transformer would put out of what is denoised, as zeros: PixArt and its kin predict a variance as well."""
    if not isinstance(given, Tensor):
        return [zeros_for(one, transformer) for one in given]
    config = getattr(transformer, "config", {})
    channels = config.get("in_channels")
    if channels and config.get("out_channels") == 2 * channels and given.shape[1] == channels:
        return given.new_zeros(len(given), 2 * channels, *given.shape[2:])
    return torch.zeros_like(given)


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
    encode, kept = getattr(model.pipe, "encode_prompt", None), model.encoded
    if encode is None:
        yield
        return

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


def size(encoded: Any) -> int:
    """Bytes of the tensors of one text encoding."""
    if isinstance(encoded, Tensor):
        return encoded.nbytes
    return sum(map(size, encoded)) if isinstance(encoded, (tuple, list)) else 0


@contextmanager
def last_state(model: Generator) -> Iterator[list[Tensor]]:
    """Within the context, the list holds what the scheduler's last step left: what the pipeline then decodes."""
    scheduler = model.pipe.scheduler
    step = scheduler.step
    states: list[Tensor] = []

    @functools.wraps(step)
    def noting(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        states[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]
        return result

    with patched(scheduler, step=noting):
        yield states


@contextmanager
def watched(model: Generator, observers: Sequence[Observer], batch: int, guidance: float) -> Iterator[None]:
    """Within the context, observers see what the pipeline does to a batch of `batch` pictures."""
    if not observers:
        yield
        return
    seams = Seams(model, observers, batch, guidance)
    try:
        with ExitStack() as stack:
            for transformer in transformers_of(model.pipe):
                wrapped = {"forward": seams.forward_of(transformer), "_compiled_call_impl": None}
                if hasattr(transformer, "cache_context"):
                    wrapped["cache_context"] = seams.naming(transformer.cache_context)
                stack.enter_context(patched(transformer, **wrapped))
            scheduler = model.pipe.scheduler
            stack.enter_context(patched(scheduler, step=seams.step_of(scheduler.step)))
            yield
    finally:
        for observer in observers if len(seams.sigmas) else ():
            observer.stop()


@dataclass
class Seams:
    """What stands in for a pipeline's seams while observers watch it, and how far the run has come."""

    model: Generator
    observers: Sequence[Observer]
    batch: int
    guidance: float
    index: int = 0  # of the step
    calls: int = 0  # of the transformer in this step
    context: str = ""  # the pipeline's name of the call
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))

    def latents(self, x: Tensor) -> Tensor:
        """What the pipeline holds, in the shape of latents."""
        return unpacked(self.model, x, self.model.entry.height, self.model.entry.width)

    def begin(self, call: Call) -> None:
        """Before the first call of a step."""
        if self.index == 0:
            self.sigmas = noise_levels(self.model.pipe.scheduler).to(self.model.device)
            for observer in self.observers:
                observer.start(self.model, self.sigmas, conditioning(call.options, self.batch), self.guidance)
        given = call.latents[: self.batch]
        x = self.latents(given if isinstance(given, Tensor) else torch.stack(tuple(given)))
        for observer in self.observers:
            observer.before(self.index, x)

    def forward_of(self, transformer: Any) -> Callable[..., Any]:
        """A transformer's forward that tells the observers."""
        forward = transformer.forward

        @functools.wraps(forward)
        def watched_forward(*args: Any, **options: Any) -> Any:
            call = Call(transformer, self.index, self.calls, self.batch, self.context, args, options, forward)
            self.calls += 1
            if call.number == 0:
                self.begin(call)
            elif any(observer.one_pass for observer in self.observers):
                raise InputError(
                    f"{self.model.name}: its pipeline calls the transformer more than once per step; captures and "
                    "calibration sets hold one call: leave out what asks for the others (`call` of the model's entry)"
                )
            for observer in self.observers:
                observer.called(call)
            output = forward(*args, **options)
            for observer in self.observers:
                observer.answered(call, output)
            return output

        return watched_forward

    def naming(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """A transformer's `cache_context`, by which a pipeline names its calls, that notes the name."""

        @contextmanager
        def cache_context(name: str, *args: Any, **options: Any) -> Iterator[None]:
            before, self.context = self.context, name
            try:
                with own(name, *args, **options):
                    yield
            finally:
                self.context = before

        return cache_context

    def step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's step that tells the observers."""

        @functools.wraps(step)
        def watched_step(*args: Any, **options: Any) -> Any:
            result = step(*args, **options)
            given = inspect.signature(step).bind(*args, **options).arguments
            x_next = result[0] if isinstance(result, tuple) else result.prev_sample
            x, prediction, x_next = (self.latents(t) for t in (given["sample"], given["model_output"], x_next))
            levels = self.sigmas[self.index], self.sigmas[self.index + 1]
            seen = Step(self.index, *levels, x, prediction, x_next, given["timestep"])
            for observer in self.observers:
                observer.after(seen)
            self.index, self.calls = self.index + 1, 0
            return result

        return watched_step


def keeps_variance(scheduler: Any) -> bool:
    """Whether a scheduler's latents are sqrt(1 - s^2) x0 + s noise, and its sigmas s / sqrt(1 - s^2)."""
    flow = scheduler.config.get("use_flow_sigmas") or scheduler.config.get("prediction_type") == "flow_prediction"
    return not flow and type(scheduler).__name__.startswith(("DPMSolver", "UniPC", "DEIS", "SASolver"))


def transformers_of(pipe: Any) -> list[Any]:
    """The networks that a pipeline denoises with: one, or the two of Wan 2.2, for high noise and for low."""
    return [part for part in (pipe.transformer, getattr(pipe, "transformer_2", None)) if part is not None]


def noise_levels(scheduler: Any) -> Tensor:
    """Noise levels (steps + 1,) float32 of a scheduler whose timesteps are set, the last one 0.

    Its own sigmas, or sqrt(1 - alpha) where it counts by cumulated alphas (DDIM) or keeps the variance (DPM-Solver).
    Raises InputError where it has none.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(scheduler.timesteps) + 1:
        levels = torch.as_tensor(sigmas).float()
        return levels / (1 + levels**2).sqrt() if keeps_variance(scheduler) else levels
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise InputError(
            f"{type(scheduler).__name__} has neither sigmas nor cumulated alphas: its steps have no noise level to "
            "record; generate with it, or take another scheduler"
        )
    levels = (1 - alphas[scheduler.timesteps.long().cpu()].float()).sqrt()
    return torch.cat([levels, levels.new_zeros(1)])


def latents_given(args: Sequence[Any], options: dict[str, Any]) -> Any:
    """The latents in a call of a transformer: its first argument."""
    return args[0] if args else next(options[name] for name in ("hidden_states", "x", "sample") if name in options)


def conditioning(options: dict[str, Any], batch: int) -> Any:
    """What the transformer is given of the text; diffusers puts the negative half of a doubled batch first.

    None where it is not the two tensors that FLUX.1 and SD3 take: an observer of any model watches its calls.
    """
    embeds = options.get("encoder_hidden_states")
    if not isinstance(embeds, Tensor) or len(embeds) not in (batch, 2 * batch):
        return None
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
    """Height, width and frames of the pictures of `latents` (batch, channels, [frames,] height, width).

    Those of the model's entry where latents keep the shape that the pipeline holds them in.
    """
    pipe, entry = model.pipe, model.entry
    if getattr(model.family, "AS_HELD", False):
        return {"height": entry.height, "width": entry.width, "num_frames": entry.frames}
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
