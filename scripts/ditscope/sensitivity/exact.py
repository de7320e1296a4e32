"""Exact sensitivity: one layer at one bit width at a time, running again only what its change reaches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.calibrate.load import Batch
from ditscope.models.loading import Generator
from ditscope.models.quantizers import QUANTIZERS, quantizable, shared_weights
from ditscope.sensitivity.replay import dependencies, record, replaced, variants
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import layer_kind

CACHED_SHARE = 0.25  # quantized weights that are kept, as a share of the transformer's own bytes


@dataclass(frozen=True)
class Layer:
    """One quantizable layer and its place in the network."""

    name: str
    module: nn.Module
    kind: str
    depth: int  # of its block; -1 before the first, their number after the last

    def described(self, settings: Sensitivity) -> dict[str, Any]:
        """What the table says of a layer besides its scores."""
        weight = self.module.weight
        return {
            "layer": self.name,
            "kind": self.kind,
            "depth": self.depth,
            "module": type(self.module).__name__.lower(),
            "shared_weights": shared_weights(weight, settings.quantizer, settings.group_size),
            "parameters": weight.numel(),
        }


@dataclass(frozen=True)
class Network:
    """A generator's quantizable layers, and which of them each module depends on."""

    model: Generator
    layers: list[Layer]  # by depth
    blocks: list[nn.Module]
    depends: dict[nn.Module, set[nn.Module]]
    lists: dict[nn.Module, str] = field(default_factory=dict)  # of blocks, where several return unlike things

    def at(self, depth: int) -> list[Layer]:
        """The layers at one depth."""
        return [layer for layer in self.layers if layer.depth == depth]

    def depths(self) -> list[int]:
        """The depths that have layers, ascending."""
        return sorted({layer.depth for layer in self.layers})


@torch.no_grad()
def network_of(model: Generator, batch: Batch) -> Network:
    """Learn the order and the dependencies of a model's layers from passes over one batch of one sample."""
    transformer = model.pipe.transformer.requires_grad_(False)
    blocks = list(model.family.blocks(transformer).values())
    layers = quantizable(transformer)
    _, order = record([*blocks, *layers.values()], [], len(batch.x), lambda: batch.velocity(model))
    inside = {module: depth for depth, block in enumerate(blocks) for module in block.modules()}
    linear = []
    for name, module in layers.items():
        after = order.began.get(module, -1) > order.ended[blocks[-1]]
        depth = inside.get(module, len(blocks) if after else -1)
        linear.append(Layer(name, module, layer_kind(name), depth))
    modules = [m for m in transformer.modules() if m is not transformer]
    depends = dependencies(layers.values(), modules, lambda: batch.velocity(model))
    return Network(model, sorted(linear, key=lambda layer: layer.depth), blocks, depends)


@torch.no_grad()
def score_layers(
    network: Network,
    depth: int,
    samples: Iterable[Batch],
    settings: Sensitivity,
) -> list[dict[str, Any]]:
    """Scores of the layers at one depth: a row for each layer, bit width and sample.

    A row has layer, bits, bucket, image, step_index and one column for each metric.
    """
    model, blocks = network.model, network.blocks
    layers = network.at(depth)
    keep, untouched = kept_of(network, depth)
    changed: dict[tuple[str, int], Tensor] = {}  # kept from one batch to the next, as far as the room reaches
    room = sum(p.nbytes for p in model.pipe.transformer.parameters()) * CACHED_SHARE

    def weight_of(layer: Layer, width: int) -> Tensor:
        nonlocal room
        weight = changed.get((layer.name, width))
        if weight is None:
            weight = quantized(layer.module, settings, width)
            if weight.nbytes <= room:
                room -= weight.nbytes
                changed[layer.name, width] = weight
        return weight

    rows = []
    for batch in samples:
        run = batch.velocity
        reference, recording = record([*blocks, *keep], keep, len(batch.x), lambda: run(model))  # noqa: B023
        for layer in layers:
            for bits in chunks(settings.bits, settings.batch_size // len(batch.x)):
                weights = [weight_of(layer, width) for width in bits]
                forwards = recording.replay(layer.module, blocks, len(bits), untouched[layer.module])
                with replaced(forwards | {layer.module: variants(layer.module, weights, len(batch.x))}):
                    outputs = batch.velocity(model, len(bits))
                errors = scores(torch.cat([reference] * len(bits)), outputs)
                for i, width in enumerate(bits):
                    rows += labelled(layer.name, width, batch, errors[i * len(batch.x) : (i + 1) * len(batch.x)])
    return rows


def kept_of(network: Network, depth: int) -> tuple[list[nn.Module], dict[nn.Module, list[nn.Module]]]:
    """The modules whose outputs a pass of the layers at one depth replays; of each layer those it does not reach."""
    blocks, layers = network.blocks, network.at(depth)
    outside = [layer.module for layer in network.layers if layer.depth in (-1, len(blocks))]
    inside = [m for m in blocks[depth].modules() if m is not blocks[depth]] if 0 <= depth < len(blocks) else []
    # Later blocks: what depends on none of the layers here, such as the modulation of the time embedding.
    here = {layer.module for layer in layers}
    later = [m for block in blocks[max(depth + 1, 0) :] for m in block.modules()]
    apart = [m for m in later if m in network.depends and not network.depends[m] & here]
    before = blocks[: max(depth, 0)]
    last = {network.lists.get(block, ""): block for block in before}  # of each list
    keep = [*outside, *inside, *apart, *last.values()]
    untouched = {
        layer.module: [m for m in keep if m in network.depends and layer.module not in network.depends[m]]
        for layer in layers
    }
    return keep, untouched


def labelled(layer: str, bits: int, batch: Any, values: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Scores of a batch with what tells one from another."""
    return [
        {"layer": layer, "bits": bits, "bucket": batch.bucket, "image": r.image, "step_index": r.step_index} | value
        for r, value in zip(batch.references, values, strict=True)
    ]


def chunks(bits: list[int], size: int) -> list[list[int]]:
    """Bit widths in lists of at most `size` (at least 1)."""
    size = max(1, size)
    return [bits[i : i + size] for i in range(0, len(bits), size)]


def quantized(module: nn.Module, settings: Sensitivity, bits: int) -> Tensor:
    """A layer's weight after the quantizer; the bias stays as it is."""
    return QUANTIZERS[settings.quantizer](module.weight.data, bits, settings.group_size)


# Metrics: functions of (batch, values) float64 reference and output, one number per sample ----------------------------


def psnr_db(reference: Tensor, output: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 20 log10((max|ref| + 1e-5) / (RMSE + 1e-10)); finite where they are equal."""
    rmse = (output - reference).square().mean(1).sqrt()
    return 20 * torch.log10((reference.abs().amax(1) + 1e-5) / (rmse + 1e-10))


def sqnr_db(reference: Tensor, output: Tensor) -> Tensor:
    """Signal-to-quantization-noise ratio, 20 log10(RMS(ref) / RMSE), both with 1e-10 added so that it stays finite."""
    rmse = (output - reference).square().mean(1).sqrt()
    return 20 * torch.log10((reference.square().mean(1).sqrt() + 1e-10) / (rmse + 1e-10))


def relative_l2(reference: Tensor, output: Tensor) -> Tensor:
    """Norm of the change over the norm of the reference."""
    return (output - reference).norm(dim=1) / reference.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)


METRICS = {"psnr_db": psnr_db, "sqnr_db": sqnr_db, "relative_l2": relative_l2}


def scores(reference: Tensor, output: Tensor) -> list[dict[str, float]]:
    """Every metric of every sample of a batch, computed in float64 and on the CPU: MPS has no float64."""
    reference, output = reference.cpu().double().flatten(1), output.cpu().double().flatten(1)
    if not output.isfinite().all():
        raise FloatingPointError("a quantized layer left NaN or Inf in the velocity")
    values = {name: metric(reference, output).tolist() for name, metric in METRICS.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
