"""What any transformer would predict from the tokens of one of its blocks: by its own tail, and its own guidance.

The model's forward runs once more; blocks up to that one answer with what they put out, later ones hand on what they
are given. The pipeline then guides as it always does.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.models.loading import Generator
from ditscope.models.sampling import Call, Step, in_one_step, pixels
from ditscope.models.structure import Block, Seen, Trace, blocks, bound, check_order, facts, found

HALVES = ("cond", "uncond")
UNCOND = ("uncond", "pred_uncond")  # what pipelines call the call of the negative half


@dataclass
class Answered:
    """One call of a transformer, with what its blocks and itself put out."""

    call: Call
    trace: Trace
    outputs: dict[str, Any]  # of each block
    given: dict[str, Tensor]  # the streams that the first block was given
    output: Any

    @property
    def rows(self) -> int:
        """Rows of the batch: as many as pictures, or twice as many."""
        return len(self.call.latents)


class BlockWatch:
    """Hooks on all blocks of a transformer: what each put out in the call that is under way."""

    def __init__(self, name: str, transformer: nn.Module) -> None:
        self.name, self.transformer = name, transformer
        self.modules = blocks(transformer)
        self.described = {block.name: block for block in found(transformer)}
        self.order: list[str] = []  # of the first call
        self.trace: Trace | None = None
        self.active = False
        self.outputs: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}  # of the first block
        self.handles = [
            module.register_forward_hook(self.hook(block), with_kwargs=True) for block, module in self.modules.items()
        ]

    def hook(self, name: str) -> Callable[..., None]:
        """Keep what the block `name` puts out, and learn its streams in the first call."""

        def look(module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
            if not self.active:
                return
            if name in self.outputs:
                raise InputError(f"{self.name}: {name} runs twice in one call; such blocks cannot be captured")
            if not self.outputs:
                self.arguments = bound(module, args, options)
            if self.seen:
                self.seen.add(self.described[name], module, bound(module, args, options), output)
            self.outputs[name] = output

        return look

    def begin(self, call: Call) -> None:
        """Before a call."""
        self.call, self.active = call, True
        self.outputs, self.arguments = {}, {}
        self.seen = None if self.trace else Seen(facts(self.transformer))
        if self.seen:
            self.seen.start(self.transformer, call.args, call.options)

    def end(self, output: Any) -> Answered:
        """After a call: what it was."""
        self.active = False
        if self.seen:
            if not self.seen.blocks:
                raise InputError(f"{self.name}: a call of its transformer went through none of its blocks")
            self.trace = Trace(tuple(self.seen.blocks), self.seen.image_tokens, self.seen.text)
            self.order = list(self.outputs)
        check_order(self.name, self.order, list(self.outputs), self.call.index)
        assert self.trace is not None
        return Answered(self.call, self.trace, self.outputs, self.given(self.trace), output)

    def given(self, trace: Trace) -> dict[str, Tensor]:
        """The streams that the first block is given."""
        block = trace.blocks[0]
        return trace.split(block, block.passed(self.arguments))

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def read_outs(answered: Answered, modules: Mapping[str, nn.Module], chosen: Sequence[str]) -> dict[str, Any]:
    """What the transformer would put out if each of the `chosen` blocks were its last."""
    return {name: tail(answered, modules, name) for name in chosen}


def tail(answered: Answered, modules: Mapping[str, nn.Module], last: str) -> Any:
    """The output of a call's transformer where the blocks after `last` do nothing."""
    order = [block.name for block in answered.trace.blocks]
    known = order[: order.index(last) + 1]
    forwards = {}
    for block in answered.trace.blocks:
        module = modules[block.name]
        if block.name in known:
            forwards[module] = constant(answered.outputs[block.name])
        else:
            forwards[module] = handing_on(block, module)
    with replaced(forwards), torch.no_grad():
        return answered.call.run()


def constant(output: Any) -> Callable[..., Any]:
    """A forward that gives one output, whatever it is given."""
    return lambda *args, **options: output


def handing_on(block: Block, module: nn.Module) -> Callable[..., Any]:
    """A forward that hands on what it is given."""
    return lambda *args, **options: block.passed(bound(module, args, options))


@contextmanager
def replaced(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
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


# Guidance -------------------------------------------------------------------------------------------------------------


def aside(model: Generator) -> Generator:
    """The same model with a pipeline of its own that shares the weights: what it runs leaves the other undisturbed."""
    pipe = copy.copy(model.pipe)
    for name, part in model.pipe.components.items():
        if part is not None and not isinstance(part, nn.Module) and not name.startswith("tokenizer"):
            twin = copy.copy(part)
            for own in ("step", "set_timesteps"):  # an observer's
                vars(twin).pop(own, None)
            vars(pipe)[name] = copy.deepcopy(twin) if name != "text_processor" else part
    return replace(model, pipe=pipe)


class GuidedError(Exception):
    """The prediction has come: nothing more of the pipeline is wanted."""

    def __init__(self, prediction: Tensor) -> None:
        self.prediction = prediction


def guide(model: Generator, outputs: Sequence[Any], batch: int, timestep: Any, guidance: float) -> Tensor:
    """The prediction that the pipeline makes of the outputs of its transformer's calls in a step at `timestep`."""
    left = list(outputs)

    def answer(given: Any, transformer: Any) -> Any:
        if not left:
            raise InputError(f"{model.name}: its pipeline calls the transformer more often than was recorded")
        output = left.pop(0)
        return output[0] if isinstance(output, tuple) else output

    def step(model_output: Tensor, *args: Any, **options: Any) -> Any:
        raise GuidedError(model_output)

    try:
        size = pixels(model, torch.empty(0))
        in_one_step(model, batch, answer, step, size, guidance, timestep, "latent", [""] * batch)
    except GuidedError as found:
        if left:
            raise InputError(f"{model.name}: its pipeline calls the transformer less often than was recorded") from None
        return found.prediction
    raise InputError(f"{model.name}: its pipeline made no step")


def cond_first(answered: Sequence[Answered], step: Step) -> list[int]:
    """The halves of guidance in the order in which they came, as places: the conditional half first.

    By what the pipeline calls its calls; else the half that weighs more in the prediction, by least squares.
    """
    halves = halves_of(answered)
    if len(halves) == 1:
        return [0]
    if len(halves) > 2:
        raise InputError(
            f"{answered[0].call.transformer.__class__.__name__}: a step has {len(halves)} halves of guidance; captures "
            "and calibration sets hold two: leave out what asks for the others (`call` of the model's entry)"
        )
    names = [a.call.context for a in answered]
    if len(answered) == 2 and any(name in UNCOND for name in names):
        return [1, 0] if names[0] in UNCOND else [0, 1]
    columns = [fitted(half, step.velocity) for half in halves]
    if any(column is None for column in columns):
        return [0, 1] if len(answered) == 2 else [1, 0]
    matrix = torch.stack([column for column in columns if column is not None], 1)
    weights = torch.linalg.lstsq(matrix, step.velocity.double().cpu().flatten()[:, None]).solution.flatten().abs()
    return [0, 1] if weights[0] >= weights[1] else [1, 0]


def halves_of(answered: Sequence[Answered]) -> list[list[Tensor]]:
    """What each half of guidance put out, as a tensor per picture, in the order in which it came."""
    halves = []
    for one in answered:
        output = one.output[0] if isinstance(one.output, tuple) else getattr(one.output, "sample", one.output)
        rows, batch = list(output), one.call.batch
        if len(rows) % batch or len(rows) > 2 * batch:
            raise InputError(
                f"{one.call.transformer.__class__.__name__}: puts out {len(rows)} rows for {batch} pictures; captures "
                "and calibration sets take one row a picture, or two under guidance"
            )
        halves += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return halves


def fitted(half: Sequence[Tensor], like: Tensor) -> Tensor | None:
    """A half's output as a column of as many numbers as the prediction; None where it has not the same."""
    stacked = torch.stack(tuple(half)).double().cpu()
    if stacked.numel() == 2 * like.numel() and stacked.ndim > 2:  # with a variance
        stacked = stacked[:, : stacked.shape[1] // 2]
    return stacked.flatten() if stacked.numel() == like.numel() else None
