"""Sensitivity on MLX: what ditscope.sensitivity.on_torch has for torch.

Exact scores come of the plain loop: change one layer's weights, run the whole transformer, put them back. Quantizers,
metrics and names of layers are those of torch, so that tables of both back ends, and plans made from them, can be set
side by side.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch import Tensor, nn

from ditscope.calibrate.load import Batch
from ditscope.models.loading import Generator
from ditscope.models.mlx.gradients import Weights
from ditscope.models.mlx.names import mmdit_paths
from ditscope.models.mlx.network import converted, read_weights
from ditscope.models.mlx.tensors import to_mlx_array
from ditscope.models.mlx.transformer import OnMlx, mx_dtype
from ditscope.models.quantizers import QUANTIZERS, quantizable
from ditscope.sensitivity.exact import Layer, Network, labelled, scores
from ditscope.sensitivity.fast import Changes, refuse_infinite
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import layer_kind

AFTER_BLOCKS = ("norm_out.", "proj_out")


def network_of(model: Generator, batch: Batch) -> Network:
    """A model's quantizable layers and their places, told from their names (torch needs a pass over `batch` for it)."""
    transformer = model.pipe.transformer
    blocks = list(model.family.blocks(transformer).values())
    inside = {module: depth for depth, block in enumerate(blocks) for module in block.modules()}
    layers = [
        Layer(name, module, layer_kind(name), inside.get(module, len(blocks) if name.startswith(AFTER_BLOCKS) else -1))
        for name, module in quantizable(transformer).items()
    ]
    return Network(model, sorted(layers, key=lambda layer: layer.depth), blocks, {})


def score_layers(network: Network, depth: int, samples: Iterable[Batch], settings: Sensitivity) -> list[dict[str, Any]]:
    """Scores of the layers at one depth, as `ditscope.sensitivity.exact.score_layers` gives them."""
    model = network.model
    transformer: OnMlx = model.pipe.transformer
    quantizer = QUANTIZERS[settings.quantizer]
    changed: dict[tuple[str, int], Tensor] = {}
    rows = []
    for batch in samples:
        reference = batch.velocity(model)
        for layer in network.at(depth):
            for bits in settings.bits:
                if (layer.name, bits) not in changed:
                    changed[layer.name, bits] = quantizer(own_weight(model, layer.module), bits, settings.group_size)
                with weight_of(transformer, layer.name, changed[layer.name, bits]):
                    output = batch.velocity(model)
                rows += labelled(layer.name, bits, batch, scores(reference, output))
    return rows


def own_weight(model: Generator, layer: nn.Module) -> Tensor:
    """A layer's weight in the diffusers folder, read anew, so that no second copy of the model gathers in memory."""
    transformer: OnMlx = model.pipe.transformer
    name = next(name for name, module in transformer.named_modules() if module is layer)
    value = read_weights(transformer.source)[f"{name}.weight"]
    return torch.from_numpy(np.array(value.astype(mx.float32))).to(transformer.dtype)


@contextmanager
def weight_of(transformer: OnMlx, layer: str, weight: Tensor) -> Iterator[None]:
    """Within the context, a layer (named as in diffusers) has this weight."""
    mmdit = transformer.mmdit
    value = to_mlx_array(weight).astype(mx_dtype(transformer))
    new = converted(f"{layer}.weight", value, mmdit.config.hidden_size)
    known = dict(tree_flatten(mmdit.parameters()))
    mmdit.load_weights(list(new.items()), strict=False)
    try:
        yield
    finally:
        mmdit.load_weights([(path, known[path]) for path in new], strict=False)


@contextmanager
def collected(
    model: Generator, modules: Sequence[nn.Module], changes: Changes, count: int
) -> Iterator[dict[nn.Module, Tensor]]:
    """As `ditscope.sensitivity.on_torch.collected`: the inner products <gradient of the weight, dW> of each module."""
    transformer: OnMlx = model.pipe.transformer
    names = {module: name for name, module in quantizable(transformer).items()}
    width = transformer.mmdit.config.hidden_size
    products: dict[nn.Module, Tensor] = {}
    rows: list[mx.array] = []  # of halves x samples: (modules, changes)

    def gather(gradients: Weights) -> None:
        sums = []
        for module in modules:
            moved = [converted(f"{names[module]}.weight", to_mlx_array(change), width) for change in changes(module)]
            sums.append([sum((gradients[path] * part).sum() for path, part in change.items()) for change in moved])
        rows.append(mx.stack([mx.stack(of_module) for of_module in sums]))
        mx.eval(rows[-1])

    transformer.gather = gather
    transformer.wanted = [f"{path}.weight" for module in modules for path in mmdit_paths(names[module])]
    try:
        yield products
    finally:
        transformer.gather, transformer.wanted = None, ()
    inner = torch.from_numpy(np.array(mx.stack(rows, axis=1))).double()  # (modules, halves x samples, changes)
    products |= zip(modules, inner.unflatten(1, (-1, count)).sum(1), strict=True)
    refuse_infinite(model, products)
