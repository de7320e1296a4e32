"""Sensitivity of any transformer on torch: recorded calls are run again, one sample at a time.

What `ditscope.sensitivity.on_torch` has, for samples that are calls (`models.call_files`). A step may have several
calls, each with a recording of its own; the prediction that is scored is what the pipeline makes of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ditscope.calibrate.files import CalibrationSet, Reference
from ditscope.core.errors import InputError
from ditscope.models import guided
from ditscope.models.call_files import read_calls
from ditscope.models.families.common import DTYPES
from ditscope.models.loading import Generator
from ditscope.models.readout import aside
from ditscope.models.sampling import latents_given
from ditscope.models.structure import block_lists
from ditscope.sensitivity import exact
from ditscope.sensitivity.exact import Network, kept_of, labelled, quantized, scores
from ditscope.sensitivity.fast import Changes, refuse_infinite
from ditscope.sensitivity.on_torch import inner_products, own_weight
from ditscope.sensitivity.replay import record, replaced, variants
from ditscope.sensitivity.settings import Sensitivity

ROUNDED = 1e-2  # relative: bfloat16 keeps 8 bits
__all__ = ["call_batches", "collected", "network_of", "no_image_effects", "own_weight", "score_layers"]


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


def no_image_effects(model: Generator) -> str:
    """Why the effect of layers on finished images cannot be estimated; empty where it can.

    The way back through the steps is that of Euler's method: x' = x + (sigma' - sigma) prediction.
    """
    scheduler = model.pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return f"its scheduler, {type(scheduler).__name__}, takes no plain steps of Euler's method"
    if scheduler.config.get("stochastic_sampling"):
        return "its scheduler draws new noise in each step"
    return ""


def network_of(model: Generator, batch: CallBatch) -> Network:
    """A model's layers, their places and dependencies, from the first call of a step."""
    network = exact.network_of(model, batch.first)
    lists = {block: path for path, part in block_lists(model.pipe.transformer).items() for block in part}
    return replace(network, lists=lists)


@torch.no_grad()
def score_layers(
    network: Network, depth: int, samples: Iterable[CallBatch], settings: Sensitivity
) -> list[dict[str, Any]]:
    """Scores of the layers at one depth, as `ditscope.sensitivity.exact.score_layers` gives them."""
    model, blocks = replace(network.model, pipe=aside(network.model).pipe), network.blocks
    keep, untouched = kept_of(network, depth)
    changed = {
        (layer.name, bits): quantized(layer.module, settings, bits)
        for layer in network.at(depth)
        for bits in settings.bits
    }
    rows = []
    for batch in samples:
        runs = [lambda n=number: batch.output(model, n) for number in range(len(batch.calls))]  # noqa: B023
        recorded = [record([*blocks, *keep], keep, 1, run) for run in runs]
        reference = batch.combined(model, [output for output, _ in recorded])
        for layer in network.at(depth):
            for bits in settings.bits:
                own = {layer.module: variants(layer.module, [changed[layer.name, bits]], 1)}
                outputs = []
                for run, (_, recording) in zip(runs, recorded, strict=True):
                    forwards = recording.replay(layer.module, blocks, 1, untouched[layer.module], network.lists)
                    with replaced(forwards | own):
                        outputs.append(run())
                rows += labelled(layer.name, bits, batch, scores(reference, batch.combined(model, outputs)))
    return rows


@contextmanager
def collected(
    model: Generator, modules: Sequence[nn.Module], changes: Changes, count: int
) -> Iterator[dict[nn.Module, Tensor]]:
    """As `ditscope.sensitivity.on_torch.collected`, for one sample, whose rows may be tokens or halves of guidance."""
    products: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        seen = inputs[0].detach()
        output.register_hook(lambda gradient: gather(module, seen, gradient))
        return output

    def gather(module: nn.Module, seen: Tensor, gradient: Tensor) -> None:
        if isinstance(module, nn.Linear):  # all rows are one sample's
            seen, gradient = (t.reshape(1, -1, t.shape[-1]) for t in (seen, gradient))
        inner = inner_products(module, seen, gradient, changes(module)).sum(0, keepdim=True)
        products[module] = products[module] + inner if module in products else inner

    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        yield products
    finally:
        for handle in handles:
            handle.remove()
    idle = torch.zeros_like(next(iter(products.values())))
    complete = {module: products.get(module, idle) for module in modules}
    products.clear()
    products.update(complete)
    refuse_infinite(model, products)
