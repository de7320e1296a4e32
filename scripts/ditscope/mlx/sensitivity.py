"""Sensitivity on MLX by the plain loop: change one layer's weights, run the whole transformer, put them back.

The quantizers, the metrics and the names of layers are those of torch (ditscope.sensitivity_exact), so that tables of
both back ends, and plans made from them, can be set side by side.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch import Tensor

from ditscope.calibration_batches import Batch
from ditscope.mlx.network import converted, read_weights
from ditscope.mlx.transformer import OnMlx, mx_dtype, to_mlx_array
from ditscope.models import Generator
from ditscope.quantizers import QUANTIZERS, quantizable
from ditscope.sensitivity_adaptive import Cells
from ditscope.sensitivity_exact import Layer, Network, labelled, scores
from ditscope.sensitivity_table import layer_kind
from ditscope.settings import Sensitivity

AFTER_BLOCKS = ("norm_out.", "proj_out")


def network_of(model: Generator) -> Network:
    """A model's quantizable layers and their places, told from their names."""
    transformer = model.pipe.transformer
    blocks = list(model.family.blocks(transformer).values())
    inside = {module: depth for depth, block in enumerate(blocks) for module in block.modules()}
    layers = [
        Layer(name, module, layer_kind(name), inside.get(module, len(blocks) if name.startswith(AFTER_BLOCKS) else -1))
        for name, module in quantizable(transformer).items()
    ]
    return Network(model, sorted(layers, key=lambda layer: layer.depth), blocks, {})


def score_layers(
    network: Network, depth: int, samples: Iterable[Batch], settings: Sensitivity, only: Cells | None = None
) -> list[dict[str, Any]]:
    """Scores of the layers at one depth (`only` these bits of layers) as `ditscope.sensitivity_exact.score_layers`."""
    model = network.model
    transformer: OnMlx = model.pipe.transformer
    quantizer = QUANTIZERS[settings.quantizer]
    mine = [layer for layer in network.at(depth) if only is None or layer.name in only]
    changed: dict[tuple[str, int], Tensor] = {}
    rows = []
    for batch in samples:
        reference = batch.velocity(model)
        for layer in mine:
            for bits in settings.bits if only is None else only[layer.name]:
                if (layer.name, bits) not in changed:
                    changed[layer.name, bits] = quantizer(own_weight(transformer, layer), bits, settings.group_size)
                with weight_of(transformer, layer.name, changed[layer.name, bits]):
                    output = batch.velocity(model)
                rows += labelled(layer.name, bits, batch, scores(reference, output))
    return rows


def own_weight(transformer: OnMlx, layer: Layer) -> Tensor:
    """A layer's weight in the diffusers folder, read anew, so that no second copy of the model gathers in memory."""
    value = read_weights(transformer.source)[f"{layer.name}.weight"]
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
