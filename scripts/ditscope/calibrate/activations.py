"""Measure what each layer is given, channel by channel, while a pipeline samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from ditscope.calibrate.activation_table import DECAY
from ditscope.calibrate.tables import CHANNELS, PART, PERCENTILES
from ditscope.core.tables import write_table
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator
from ditscope.models.quantizers import quantizable
from ditscope.models.sampling import Observer


class ActivationRecorder(Observer):
    """Extremes, percentiles and moving midpoint of every input channel of every layer at the given `steps`.

    A call of a layer counts each image of the batch once, its tokens and both halves of guidance together.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = set(steps)

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        self.model, self.sigmas = model.name, sigmas.tolist()
        self.statistics: dict[tuple[str, int], tuple[int, Tensor]] = {}
        self.seen: tuple[Any, Tensor] = (None, sigmas)  # query, key and value read the same tensor: measured once
        layers = quantizable(model.pipe.transformer)
        self.order = {name: place for place, name in enumerate(layers)}
        self.handles = [module.register_forward_pre_hook(self.watch(name)) for name, module in layers.items()]

    def before(self, index: int, x: Tensor) -> None:
        self.step, self.batch = index, len(x)

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.seen = (None, self.seen[1])

    def watch(self, name: str) -> Any:
        """The hook of one layer."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self.step not in self.steps:
                return
            if self.seen[0] is not inputs[0]:
                x = inputs[0] if isinstance(module, nn.Linear) else inputs[0].flatten(2).mT  # channels last
                self.seen = inputs[0], channel_statistics(x, self.batch)
            n, values = self.statistics.get((name, self.step), (0, None))
            new = self.seen[1]
            self.statistics[name, self.step] = (
                n + self.batch,
                new if values is None else joined(values, new, self.batch),
            )

        return hook

    def write(self, path: Path) -> None:
        """Leave what was found as a part of the table `calibration.activations`."""
        rows = []
        for (layer, step), (n, values) in sorted(self.statistics.items(), key=lambda f: (self.order[f[0][0]], f[0][1])):
            row = {"model": self.model, "layer": layer, "step_index": step, "sigma": self.sigmas[step], "n": n}
            rows.append(row | dict(zip(CHANNELS, values.cpu().numpy(), strict=True)))
        write_table(pl.DataFrame(rows, schema=PART.schema()), path, PART)


def channel_statistics(x: Tensor, batch: int) -> Tensor:
    """Of activations (halves x batch, ..., channels): rows as in `CHANNELS`, (5, channels) float32.

    Least, largest; the sum over images of percentiles of the magnitude (nearest rank) over an image's tokens; the sum
    of midpoints (min + max) / 2 of images, each weighted by DECAY to the number of images after it, times 1 - DECAY.
    """
    rows = x.float().unflatten(0, (-1, batch)).movedim(1, 0).reshape(batch, -1, x.shape[-1])  # (images, tokens, ...)
    low, high = rows.amin(1), rows.amax(1)
    tokens = rows.shape[1]
    ranks = [tokens - math.ceil(share * tokens) for share in PERCENTILES.values()]  # from the largest, from 0
    largest = rows.abs().topk(max(ranks) + 1, dim=1).values
    weights = (1 - DECAY) * DECAY ** torch.arange(batch - 1, -1, -1, device=x.device)
    shift = ((low + high) / 2 * weights[:, None]).sum(0)
    return torch.stack([low.amin(0), high.amax(0), *(largest[:, rank].sum(0) for rank in ranks), shift])


def joined(first: Tensor, second: Tensor, batch: int) -> Tensor:
    """The statistics of two calls of one layer in one step, the second after the first."""
    low, high = torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])
    return torch.stack([low, high, *(first[2:-1] + second[2:-1]), first[-1] * DECAY**batch + second[-1]])
