"""Run a network again from one changed layer on: what cannot have seen the change is replayed from a recording.

Two facts make this exact. A module whose call ended before the changed layer began cannot have seen the change; neither
can one whose output autograd does not connect with the layer's (the key projection of a changed query, the modulation
layers of later blocks).
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
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

    def replay(
        self,
        layer: nn.Module,
        blocks: Collection[nn.Module],
        copies: int,
        untouched: Collection[nn.Module] = (),
        lists: Mapping[nn.Module, str] = {},
    ) -> dict[nn.Module, Forward]:
        """Forwards for a pass of `copies` x batch samples in which only what the change of `layer` reaches really runs.

        Of the blocks that ended before it only the last one's output matters, of each list of blocks (`lists`, by
        block) where there are several that return unlike things; the others hand on the same. `untouched` are further
        modules that do not depend on the layer (see `dependencies`).
        """
        if layer not in self.began:
            return {}
        done = self.before(layer, blocks)
        outputs = {module: self.outputs[module] for module in self.before(layer, self.outputs)}
        outputs |= {module: self.outputs[module] for module in untouched if module in self.outputs}
        last = {lists.get(block, ""): block for block in done}
        ends = {name: self.outputs[block] for name, block in last.items() if block in self.outputs}
        outputs |= {block: ends[lists.get(block, "")] for block in done if lists.get(block, "") in ends}
        users = Counter(id(output) for output in outputs.values())
        forwards = {
            id(output): constant(output, self.batch, copies, users[id(output)] > 1) for output in outputs.values()
        }
        return {module: forwards[id(output)] for module, output in outputs.items()}


def record(
    modules: Collection[nn.Module], keep: Collection[nn.Module], batch: int, run: Forward
) -> tuple[Any, Recording]:
    """Run `run()` and record the calls of `modules`, keeping the outputs of `keep`.

    A module that is called twice has no one output to replay, and one whose output is written into later has lost it:
    they run again.
    """
    recording = Recording(batch, {}, {}, {})
    versions: dict[nn.Module, list[int]] = {}
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
            versions[module] = versions_of(output)

    distinct = dict.fromkeys(modules)
    handles = [m.register_forward_pre_hook(begin) for m in distinct]
    handles += [m.register_forward_hook(end) for m in distinct]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    for module, output in [*recording.outputs.items()]:
        if versions_of(output) != versions[module]:
            del recording.outputs[module]
    return result, recording


def versions_of(output: Any) -> list[int]:
    """How often each tensor of a module's output has been written into."""
    if isinstance(output, Tensor):
        return [output._version]
    return [v for one in output for v in versions_of(one)] if isinstance(output, (tuple, list)) else []


def dependencies(
    layers: Collection[nn.Module], modules: Collection[nn.Module], run: Forward
) -> dict[nn.Module, set[nn.Module]]:
    """For each of `modules` that `run()` calls: which of `layers` its outputs depend on, itself included.

    Autograd knows: one pass with gradients on marks the output of each layer in the graph, and the markers among the
    ancestors of a module's output are its layers. Nothing is saved for a backward pass, so that memory stays low.
    """
    marks: dict[Any, nn.Module] = {}
    reached: dict[nn.Module, list[Any]] = {}

    def mark(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        marked = output.view_as(output)
        marks[marked.grad_fn] = layer
        return marked

    def look(module: nn.Module, _: Any, output: Any) -> None:
        tensors = [t for t in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(t, Tensor)]
        reached.setdefault(module, []).extend(t.grad_fn for t in tensors if t.grad_fn is not None)

    handles = [layer.register_forward_hook(mark) for layer in layers]  # first, so that a layer depends on itself
    handles += [m.register_forward_hook(look) for m in modules]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda t: t):
            kept = run()  # keeps the graph alive
    finally:
        for handle in handles:
            handle.remove()
    above: dict[Any, set[nn.Module]] = {None: set()}
    outcome = {
        module: set().union(*(ancestors(node, marks, above) for node in nodes)) for module, nodes in reached.items()
    }
    del kept
    return outcome


def ancestors(node: Any, marks: dict[Any, nn.Module], above: dict[Any, set[nn.Module]]) -> set[nn.Module]:
    """The marked layers at and above a node of the autograd graph; `above` holds what is known already."""
    stack = [node]
    while stack:
        last = stack[-1]
        parents = [parent for parent, _ in last.next_functions] if last is not None else []
        if unknown := [parent for parent in parents if parent not in above]:
            stack += unknown
            continue
        own = {marks[last]} if last in marks else set()
        above.setdefault(last, own.union(*(above[parent] for parent in parents)))
        stack.pop()
    return above[node]


def constant(output: Any, batch: int, copies: int, shared: bool) -> Forward:
    """A forward that ignores its inputs and returns `copies` copies of a recorded output.

    What several modules share is made once and held; the rest is made when it is called for, and held by nobody here.
    """

    def make() -> Any:
        return repeat(output, batch, copies)

    made = cache(make) if shared else make
    return lambda *args, **kwargs: made()


def repeat(output: Any, batch: int, copies: int) -> Any:
    """Rows (halves x batch) -> (halves x copies x batch), in every tensor of a module's output."""
    if isinstance(output, (tuple, list)):
        return type(output)(repeat(item, batch, copies) for item in output)
    if not isinstance(output, Tensor):
        return output
    rows = output.unflatten(0, (-1, 1, batch))
    return rows.expand(-1, copies, *rows.shape[2:]).flatten(0, 2)


def variants(layer: nn.Module, weights: Sequence[Tensor], batch: int) -> Forward:
    """A forward over rows (halves x len(weights) x batch) that gives each copy of the batch its own weight."""
    own = layer.forward

    def forward(x: Tensor) -> Tensor:
        rows = x.unflatten(0, (-1, len(weights), batch))
        weight, outputs = layer.weight.data, None
        try:
            for i, changed in enumerate(weights):
                layer.weight.data = changed
                output = own(rows[:, i].flatten(0, 1)).unflatten(0, (-1, batch))
                if outputs is None:  # written in place: a list and then a stack of it would take twice the memory
                    outputs = output.new_empty(len(output), len(weights), *output.shape[1:])
                outputs[:, i] = output
        finally:
            layer.weight.data = weight
        assert outputs is not None
        return outputs.flatten(0, 2)

    return forward
