"""Sensitivity of any transformer on torch: recorded calls are run again, one sample at a time.

What `ditscope.sensitivity.on_torch` has, for samples that are calls (`models.call_files`). A step may have several
calls, each with a recording of its own; the prediction that is scored is what the pipeline makes of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ditscope.calibrate.load import CallBatch, call_batches
from ditscope.models.loading import Generator
from ditscope.models.readout import aside
from ditscope.models.structure import block_lists
from ditscope.sensitivity import exact
from ditscope.sensitivity.exact import Network, kept_of, labelled, quantized, scores
from ditscope.sensitivity.fast import Changes, refuse_infinite
from ditscope.sensitivity.on_torch import inner_products, own_weight
from ditscope.sensitivity.replay import record, replaced, variants
from ditscope.sensitivity.settings import Sensitivity

__all__ = ["call_batches", "collected", "network_of", "no_image_effects", "own_weight", "score_layers"]


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
