"""Fast sensitivity: every layer at every bit width from one backward pass a probe.

To first order a change dW of a layer moves the velocity by J dW, J being its Jacobian. The gradient of an output error
vanishes at the unquantized weights, but that of <u, velocity> does not: with probes u of independent components of mean
0 and variance 1, E[<u, J dW>^2] = |J dW|^2 (Hutchinson 1990), and <u, J dW> is the inner product of the gradient at the
layer's output with dW x. All bit widths of all layers share one backward pass; each sample has probes of its own.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ditscope.calibrate.files import Reference
from ditscope.calibrate.load import Batch
from ditscope.models.loading import Generator
from ditscope.models.quantizers import QUANTIZERS
from ditscope.sensitivity.back_ends import back_end
from ditscope.sensitivity.exact import Layer, labelled
from ditscope.sensitivity.settings import Sensitivity

Change: TypeAlias = Tensor | Callable[[Tensor], Tensor]  # dW of a weight, or what becomes of the output from the input
Changes = Callable[[nn.Module], Sequence[Change]]  # of a module at each bit width, or in each format
CACHE_BYTES = 2_000_000_000  # of weight changes that are kept from one batch to the next


def estimate_layers(
    model: Generator,
    layers: Sequence[Layer],
    samples: Iterable[Batch],
    buckets: dict[Reference, str],
    settings: Sensitivity,
) -> list[dict[str, Any]]:
    """One row for each layer, bit width, sample and probe, as `score_layers` makes them.

    The metric columns hold squared error ratios (see `ratios`), whose means estimate those of the samples. Each sample
    gets as many probes as fill its bucket to `settings.probes`.
    """
    model.pipe.transformer.requires_grad_(False)
    modules = {layer.module: layer.name for layer in layers}
    sizes = Counter(buckets.values())
    generator = torch.Generator().manual_seed(0)
    changes = weight_changes(model, settings)
    rows = []
    for batch in samples:
        for _ in range(math.ceil(settings.probes / sizes[batch.bucket])):
            velocity, products = probe(model, batch, list(modules), changes, generator)
            for module, by_width in products.items():
                for bits, values in zip(settings.bits, by_width.T, strict=True):
                    rows += labelled(modules[module], bits, batch, ratios(velocity, values.square()))
    return rows


def weight_changes(model: Generator, settings: Sensitivity) -> Changes:
    """A function that gives dW of a module at each bit width; it remembers as many as `CACHE_BYTES` hold."""
    cached: dict[nn.Module, list[Tensor]] = {}
    held, weight_of = 0, back_end(model).own_weight

    def changes(module: nn.Module) -> list[Tensor]:
        nonlocal held
        if module in cached:
            return cached[module]
        own = weight_of(model, module)
        of_module = [QUANTIZERS[settings.quantizer](own, bits, settings.group_size) - own for bits in settings.bits]
        size = sum(change.nbytes for change in of_module)
        if held + size <= CACHE_BYTES:
            cached[module] = of_module
            held += size
        return of_module

    return changes


def probe(
    model: Generator,
    batch: Batch,
    modules: Sequence[nn.Module],
    changes: Changes,
    generator: torch.Generator,
) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """The velocity of a batch, and <u, J dW> of each module, (samples, changes), for one random probe per sample."""
    with back_end(model).collected(model, modules, changes, len(batch.x)) as products, torch.enable_grad():
        velocity = batch.velocity(model)
        velocity.backward(random_signs(velocity, generator))
    return velocity.detach(), products


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """A probe: independent components of -1 or 1, drawn on the CPU whatever the device."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def refuse_infinite(model: Generator, products: dict[nn.Module, Tensor]) -> None:
    """Stop where a gradient was not finite."""
    if not all(product.isfinite().all() for product in products.values()):
        raise FloatingPointError(f"{model.name}: NaN or Inf in a gradient; use mode exact, or dtype float32")


def ratios(velocity: Tensor, squared_error: Tensor) -> list[dict[str, float]]:
    """Squared error ratios of each sample from estimates of its squared error norm, with the metrics' own epsilons.

    `psnr_db` and `sqnr_db` are -10 log10 of their means, `relative_l2` the root.
    """
    reference = velocity.cpu().double().flatten(1)
    rmse = (squared_error / reference.shape[1]).sqrt() + 1e-10
    power = reference.square()
    values = {
        "psnr_db": (rmse / (power.amax(1).sqrt() + 1e-5)).square(),
        "sqnr_db": (rmse / (power.mean(1).sqrt() + 1e-10)).square(),
        "relative_l2": squared_error / power.sum(1).clamp(min=torch.finfo(torch.float64).tiny),
    }
    lists = [value.tolist() for value in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*lists, strict=True)]
