"""Linear layers whose weights differ between parts of the schedule, switched where one part of it ends.

Every variant stays in memory, so that switching copies nothing: a layer looks up which of its variants the part of the
present step has. The scheduler tells the step: `set_timesteps` begins a run, `step` ends a step.
"""

import copy
import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.models.schedule_parts import part_of_step


@dataclass(frozen=True)
class ByStep:
    """What becomes of a linear layer in each part of the schedule: a config, or None for full precision."""

    division: str
    parts: Mapping[str, Any]

    def distinct(self) -> dict[str, Any]:
        """The configs that differ, each under the first part that has it: what is stored."""
        first: dict[Hashable, str] = {}
        for part, config in self.parts.items():
            first.setdefault(repr(config), part)
        return {part: self.parts[part] for part in first.values()}


@dataclass
class Schedule:
    """Where a sampling run is; the stepped layers of a transformer share one."""

    division: str
    step: int = 0
    steps: int = 1
    part: str = field(init=False)

    def __post_init__(self) -> None:
        self.go_to(self.step, self.steps)

    def go_to(self, step: int, steps: int) -> None:
        """Be at step `step` of `steps`; after the last step it stays there."""
        self.step, self.steps = min(step, steps - 1), steps
        self.part = part_of_step(self.division, self.step, steps)


class SteppedLinear(nn.Module):
    """A linear layer with a variant for each part of the schedule."""

    def __init__(self, layer: nn.Linear, of_part: Mapping[str, int], count: int, schedule: Schedule) -> None:
        """`of_part` says which of `count` copies of the layer each part computes with; they share its bias."""
        super().__init__()
        self.variants = nn.ModuleList(copy.deepcopy(layer) for _ in range(count))
        for variant in self.variants:
            variant.bias = layer.bias
        self.of_part, self.schedule = dict(of_part), schedule
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def now(self) -> nn.Module:
        """The variant of the present part."""
        return self.variants[self.of_part[self.schedule.part]]

    @property
    def weight(self) -> Tensor:
        """The weight that it computes with now."""
        return self.now.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of all variants."""
        return self.now.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer as it is in the present part of the schedule."""
        return self.now(x)


def make_stepped(transformer: nn.Module, configs: Mapping[str, ByStep]) -> dict[str, Any]:
    """Give layers their variants, in place and still in full precision; the config of each by its new name.

    Raises InputError where the layers' parts are not of one division.
    """
    divisions = {config.division for config in configs.values()}
    if len(divisions) > 1:
        raise InputError(f"a plan divides the schedule in one way, not by {' and '.join(sorted(divisions))}")
    schedule = Schedule(divisions.pop())
    inner: dict[str, Any] = {}
    for name, config in configs.items():
        kept = config.distinct()
        numbers = {repr(variant): number for number, variant in enumerate(kept.values())}
        of_part = {part: numbers[repr(variant)] for part, variant in config.parts.items()}
        stepped = SteppedLinear(transformer.get_submodule(name), of_part, len(kept), schedule)
        transformer.set_submodule(name, stepped)
        inner |= {f"{name}.variants.{i}": variant for i, variant in enumerate(kept.values()) if variant is not None}
    return inner


def schedule_of(transformer: nn.Module) -> Schedule | None:
    """The schedule that a transformer's stepped layers share; None where it has none."""
    return next((module.schedule for module in transformer.modules() if isinstance(module, SteppedLinear)), None)


def follow(scheduler: Any, schedule: Schedule) -> None:
    """Have a scheduler tell `schedule` where it is, from now on: `set_timesteps` and `step` are wrapped."""
    begin, step = scheduler.set_timesteps, scheduler.step

    @functools.wraps(begin)
    def set_timesteps(*args: Any, **options: Any) -> Any:
        result = begin(*args, **options)
        schedule.go_to(0, len(scheduler.timesteps))
        return result

    @functools.wraps(step)
    def stepping(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        schedule.go_to(schedule.step + 1, schedule.steps)
        return result

    scheduler.set_timesteps, scheduler.step = set_timesteps, stepping
