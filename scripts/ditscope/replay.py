"""Run a network again from one changed layer on: what ran before it is replayed from a recording.

Program order makes this exact: a module whose call ended before the changed layer began cannot have seen the change.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]


@contextmanager
def replaced(forwards: dict[nn.Module, Forward]) -> Iterator[None]:
    """Within the context, modules compute by these functions instead of their own `forward`."""
    own = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


@dataclass(frozen=True)
class Recording:
    """When the modules of one forward pass began and ended, and the outputs of some of them."""

    batch: int  # samples of the pass; a tensor may have twice as many rows: [cond, uncond]
    began: dict[nn.Module, int]
    ended: dict[nn.Module, int]
    outputs: dict[nn.Module, Any]

    def before(self, layer: nn.Module, modules: Collection[nn.Module]) -> list[nn.Module]:
        """Those of `modules` that ended before `layer` began, in the order they ended."""
        began = self.began[layer]
        return sorted((m for m in modules if self.ended.get(m, began) < began), key=self.ended.__getitem__)

    def replay(self, layer: nn.Module, blocks: Collection[nn.Module], copies: int) -> dict[nn.Module, Forward]:
        """Forwards for a pass of `copies` x batch samples in which only `layer` and what follows it really runs.

        Of the blocks that ended before it only the last one's output matters; the others hand on the same.
        """
        if layer not in self.began:
            return {}
        done = self.before(layer, blocks)
        outputs = {module: self.outputs[module] for module in self.before(layer, self.outputs)}
        if done:
            outputs |= dict.fromkeys(done, self.outputs[done[-1]])
        return {module: constant(output, self.batch, copies) for module, output in outputs.items()}


def record(
    modules: Collection[nn.Module], keep: Collection[nn.Module], batch: int, run: Forward
) -> tuple[Any, Recording]:
    """Run `run()` and record the calls of `modules`, keeping the outputs of `keep`.

    A module that is called twice has no one output to replay: it runs again.
    """
    recording = Recording(batch, {}, {}, {})
    kept = set(keep)
    clock = count()

    def begin(module: nn.Module, *_: Any) -> None:
        if module in recording.began:
            kept.discard(module)
            recording.outputs.pop(module, None)
        recording.began.setdefault(module, next(clock))

    def end(module: nn.Module, _: Any, output: Any) -> None:
        recording.ended[module] = next(clock)
        if module in kept:
            recording.outputs[module] = output

    handles = [m.register_forward_pre_hook(begin) for m in modules] + [m.register_forward_hook(end) for m in modules]
    try:
        return run(), recording
    finally:
        for handle in handles:
            handle.remove()


def constant(output: Any, batch: int, copies: int) -> Forward:
    """A forward that ignores its inputs and returns `copies` copies of a recorded output."""
    return lambda *args, **kwargs: repeat(output, batch, copies)


def repeat(output: Any, batch: int, copies: int) -> Any:
    """Rows (halves x batch) -> (halves x copies x batch), in every tensor of a module's output."""
    if isinstance(output, tuple):
        return tuple(repeat(item, batch, copies) for item in output)
    if output is None:
        return None
    rows = output.unflatten(0, (-1, 1, batch))
    return rows.expand(-1, copies, *rows.shape[2:]).flatten(0, 2)


def variants(layers: Sequence[nn.Module], batch: int) -> Forward:
    """A forward over rows (halves x len(layers) x batch) that gives each copy of the batch its own layer."""

    def forward(x: Tensor) -> Tensor:
        rows = x.unflatten(0, (-1, len(layers), batch))
        outputs = [layer(rows[:, i].flatten(0, 1)).unflatten(0, (-1, batch)) for i, layer in enumerate(layers)]
        return torch.stack(outputs, dim=1).flatten(0, 2)

    return forward
