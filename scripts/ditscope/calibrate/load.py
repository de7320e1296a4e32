"""Calibration samples as batches that a generator takes, and what its layers are given when they run again.

NPZ samples come as one step of several images, recorded calls of any transformer as one step of one image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.calibrate.files import (
    CalibrationSet,
    Reference,
    check_fits,
    check_made_with,
    guidance_of,
    load_calibration,
    read_sample,
    records_calls,
)
from ditscope.core.errors import InputError
from ditscope.core.identity import digest, file_digest
from ditscope.models import guided
from ditscope.models.call_files import SUFFIX, read_calls
from ditscope.models.emulate.inputs import Inputs, Measure, watched
from ditscope.models.families.common import DTYPES, Conditioning
from ditscope.models.folders import transformer_config, weights_of
from ditscope.models.loading import Generator
from ditscope.models.sampling import latents_given, predict
from ditscope.models.settings import CALIBRATE, Model, Scheme, backends_of, calibration_of

ROUNDED = 1e-2  # relative: bfloat16 keeps 8 bits


@dataclass(frozen=True)
class Batch:
    """Calibration samples of one step, ready for the model."""

    references: tuple[Reference, ...]
    bucket: str
    x: Tensor  # (batch, channels, height, width)
    sigma: Tensor  # scalar
    cond: Conditioning
    guidance: float

    def repeated(self, copies: int) -> "Batch":
        """`copies` copies of the batch as one: (copies * batch) samples."""
        tensors = {key: t.repeat(copies, *[1] * (t.ndim - 1)) for key, t in vars(self.cond).items() if t is not None}
        x = self.x.repeat(copies, 1, 1, 1)
        return replace(self, references=self.references * copies, x=x, cond=Conditioning(**tensors))

    def at(self, x: Tensor) -> "Batch":
        """The same step from other latents `x`."""
        return replace(self, x=x)

    def velocity(self, model: Generator, copies: int = 1) -> Tensor:
        """The guided velocity of `copies` copies of the batch, (copies * batch, channels, height, width)."""
        if copies > 1:
            return self.repeated(copies).velocity(model)
        return predict(model, self.x, self.sigma, self.cond, self.guidance)


def batches(
    model: Generator,
    calibration: CalibrationSet,
    buckets: dict[Reference, str],
    size: int,
    chosen: Sequence[Reference] | None = None,
) -> Iterator[Batch]:
    """The samples of a set, or the `chosen` ones, step by step, in batches of at most `size` images."""
    kept = calibration.samples if chosen is None else chosen
    for step in sorted({s.step_index for s in kept}):
        same = sorted((s for s in kept if s.step_index == step), key=lambda s: s.image)
        for rows in (same[i : i + size] for i in range(0, len(same), size)):
            samples = [read_sample(s) for s in rows]
            check_shapes(model, rows[0].file, samples)
            embedded = bool(getattr(model.pipe.transformer.config, "guidance_embeds", False))
            guidance = guidance_of(calibration, samples[0], rows[0].file, embedded)
            yield make_batch(model, samples, rows, buckets[rows[0]], guidance)


def make_batch(
    model: Generator, samples: list[dict[str, Any]], references: Sequence[Reference], bucket: str, guidance: float
) -> Batch:
    """Samples of one step as the tensors that `predict` takes."""

    def tensor(key: str) -> Tensor:
        stacked = torch.stack([torch.from_numpy(s[key]) for s in samples], dim=1)
        return stacked.to(model.device, DTYPES[model.entry.dtype])

    embeds, pooled = tensor("conditioning"), tensor("pooled_conditioning")  # (1 or 2 halves, batch, ...)
    negative = (embeds[1], pooled[1]) if len(embeds) == 2 else ()
    return Batch(
        tuple(references),
        bucket,
        tensor("x")[0].permute(0, 3, 1, 2).contiguous(),
        torch.tensor(samples[0]["sigma"], dtype=torch.float32, device=model.device),
        Conditioning(embeds[0], pooled[0], *negative),
        guidance,
    )


def check_shapes(model: Generator, file: Path, samples: list[dict[str, Any]]) -> None:
    """Refuse samples that the model cannot take, or of unlike conditioning, noise level or guidance."""
    check_fits(samples[0], file, model.name, dict(model.pipe.transformer.config))
    for key in ("x", "conditioning", "pooled_conditioning"):
        if len({s[key].shape for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` has another shape than in the same step of other images")
    for key in ("sigma", "guidance"):
        if len({s[key] for s in samples}) > 1:
            raise InputError(f"{file}: key `{key}` differs from the same step of other images; calibrate again")


@dataclass(frozen=True)
class CallBatch:
    """The calls of one step of one picture, as a batch of one."""

    references: tuple[Reference]
    bucket: str
    x: Tensor  # (1, ...) latents before the step, as the pipeline holds them
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    guided: dict[str, Any]
    timestep: float
    guidance: float

    def output(self, model: Generator, number: int) -> Any:
        """What the transformer puts out in one of the calls."""
        args, options = self.calls[number]
        return model.pipe.transformer(*args, **options)

    def combined(self, model: Generator, outputs: Sequence[Any]) -> Tensor:
        """The prediction that the pipeline makes of its calls' outputs."""
        return guided.combined(model, self.guided, outputs, self.x, self.timestep, self.guidance)

    def velocity(self, model: Generator) -> Tensor:
        """The guided prediction of the step."""
        return self.combined(model, [self.output(model, number) for number in range(len(self.calls))])

    @property
    def sigma(self) -> float:
        """The noise level of the step."""
        return self.references[0].sigma

    def at(self, x: Tensor) -> "CallBatch":
        """The same step from other latents `x` in place of those that its calls were given. Gradients reach them.

        Raises InputError where a call was given anything but the latents as they are, repeated by halves of guidance.
        """
        return replace(self, x=x, calls=tuple(self.moved(call, x) for call in self.calls))

    def moved(self, call: tuple[tuple[Any, ...], dict[str, Any]], x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call with the latents `x` in place of its own."""
        args, options = call
        given = latents_given(args, options)
        rows = [*given] if isinstance(given, (list, tuple)) else [*given.split(1)]
        if not all(row.numel() == x.numel() and alike(row.flatten(), self.x.flatten()) for row in rows):
            raise InputError(
                f"{self.references[0].file}: its call was given other latents than its step began with; the effect on "
                "images cannot be estimated"
            )
        own = [x.reshape(row.shape) for row in rows]
        new = type(given)(own) if isinstance(given, (list, tuple)) else torch.cat(own)
        if args:
            return (new, *args[1:]), options
        return args, {name: new if value is given else value for name, value in options.items()}

    @cached_property
    def first(self) -> "CallBatch":
        """The first call alone."""
        return replace(self, calls=self.calls[:1], guided={"kind": "apart"})


def alike(given: Tensor, x: Tensor) -> bool:
    """Whether a call was given the latents of its step, up to rounding to the transformer's type."""
    return bool((given.float() - x.float()).norm() <= ROUNDED * x.float().norm())


def call_batches(
    model: Generator,
    calibration: CalibrationSet,
    buckets: dict[Reference, str],
    chosen: Sequence[Reference] | None = None,
) -> Iterator[CallBatch]:
    """The samples of a set of recorded calls, or the `chosen` ones, step by step, each a batch of its own."""
    kept = calibration.samples if chosen is None else chosen
    dtype = DTYPES[model.entry.dtype]

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(model.device, dtype if value.is_floating_point() else None)
        if isinstance(value, (list, tuple)):
            return type(value)(moved(one) for one in value)
        return {key: moved(one) for key, one in value.items()} if isinstance(value, dict) else value

    for reference in sorted(kept, key=lambda r: (r.step_index, r.image)):
        about, calls, tensors = read_calls(reference.file)
        yield CallBatch(
            (reference,), buckets[reference], moved(tensors["x"]), tuple(moved(call) for call in calls),
            about["guided"], about["timestep"], about["guidance"],
        )  # fmt: skip


def check_samples(calibration: CalibrationSet, name: str, model: Model) -> None:
    """Read every sample of a set before the model loads; refuse a broken one, and one that the model does not take."""
    for reference in calibration.samples:
        if (reference.file.suffix == SUFFIX) != records_calls(model):
            kind = "recorded calls" if records_calls(model) else "NPZ samples"
            raise InputError(f"{reference.file}: `{name}` ({model.family}) takes {kind}; calibrate `{name}`")
    if records_calls(model):
        for reference in calibration.samples:
            read_calls(reference.file)
        return
    config = transformer_config(name, model)
    for reference in calibration.samples:
        sample = read_sample(reference)
        check_fits(sample, reference.file, name, config)
        guidance_of(calibration, sample, reference.file, bool(config.get("guidance_embeds")))


def calibration_of_scheme(scheme: Scheme, name: str, model: Model) -> CalibrationSet | None:
    """The set that a model's scheme is solved from, looked through before the model loads; None where it needs none.

    Raises InputError for a scheme that has no folder of one yet, a set of another model or of other weights, and a
    sample that is broken or does not fit.
    """
    folder = calibration_of(scheme)
    if not folder or model.backend not in backends_of(scheme.kind):
        return None
    if folder == CALIBRATE:
        raise InputError(
            f"a scheme of kind `{scheme.kind}` is solved from a calibration set: give its folder "
            "(--calibration; `ditscope calibrate` makes one)"
        )
    calibration = load_calibration(folder, scheme.calibration_images)
    check_made_with(Path(folder), calibration, name)
    weights = weights_of(model)
    if weights and calibration.manifest.get("weights", weights) != weights:
        raise InputError(f"{folder}: made with other weights of `{name}`; calibrate `{name}` again")
    check_samples(calibration, name, model)
    return calibration


def calibration_id(scheme: Scheme) -> str:
    """Digest of the samples that a scheme is solved from; empty where it needs none."""
    folder = calibration_of(scheme)
    if not folder:
        return ""
    samples = load_calibration(folder, scheme.calibration_images).samples
    return digest([file_digest(file) for file in dict.fromkeys(sample.file for sample in samples)])


def measure_on(model: Generator, calibration: CalibrationSet | None) -> Measure | None:
    """A function that measures a model's layers on a calibration set; None where there is none."""
    return None if calibration is None else partial(layer_inputs, model, calibration)


@torch.no_grad()
def layer_inputs(
    model: Generator, calibration: CalibrationSet, layers: Mapping[str, nn.Module], hessian: bool, size: int = 4
) -> dict[str, Inputs]:
    """Statistics of what each layer is given when a set's samples run again, `size` images of a step at once."""
    buckets = dict.fromkeys(calibration.samples, "all")
    with watched(layers, hessian) as seen:
        if records_calls(model.entry):
            for calls in call_batches(model, calibration, buckets):
                for number in range(len(calls.calls)):
                    calls.output(model, number)
        else:
            for batch in batches(model, calibration, buckets, size):
                batch.velocity(model)
    return seen
