"""What layers are given during calibration: the statistics that calibrated schemes are solved from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """Statistics of the n inputs x (channels) of one layer over samples, tokens and both halves of guidance."""

    n: int
    absmax: Tensor  # (channels,) largest magnitude
    absmean: Tensor  # (channels,) mean magnitude
    hessian: Tensor | None = None  # (channels, channels) mean of x x': half the Hessian of the layer's squared error

    def joined(self, other: "Inputs") -> "Inputs":
        """The statistics of both sets of inputs."""
        n = self.n + other.n
        hessian = None
        if self.hessian is not None and other.hessian is not None:
            hessian = self.hessian * (self.n / n) + other.hessian * (other.n / n)
        absmean = self.absmean * (self.n / n) + other.absmean * (other.n / n)
        return Inputs(n, torch.maximum(self.absmax, other.absmax), absmean, hessian)


# Runs the calibration set through the model and gives the statistics of some of its layers, with Hessians or without.
Measure = Callable[[Mapping[str, nn.Module], bool], dict[str, Inputs]]


def measured(x: Tensor, hessian: bool) -> Inputs:
    """The statistics of inputs (..., channels), in float64 on a CPU, else in float32."""
    rows = x.detach().flatten(0, -2).to(torch.float64 if x.device.type == "cpu" else torch.float32)
    magnitude = rows.abs()
    return Inputs(len(rows), magnitude.amax(0), magnitude.mean(0), rows.mT @ rows / len(rows) if hessian else None)


@contextmanager
def watched(layers: Mapping[str, nn.Module], hessian: bool) -> Iterator[dict[str, Inputs]]:
    """Within the context, calls of `layers` are measured; the dictionary has those that were called."""
    seen: dict[str, Inputs] = {}

    def watch(name: str, x: Tensor) -> None:
        now = measured(x, hessian)
        seen[name] = seen[name].joined(now) if name in seen else now

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: watch(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
