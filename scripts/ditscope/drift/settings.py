"""Settings of the stage `drift`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Drift:
    """Distances of each state to the trajectory's first prompt."""

    shuffles: int = setting(1, "Shuffled-order controls of each trajectory")
    jump_states: int = setting(3, "States before and after a step whose means tell a jump", positive=True)
    jump_false_alarms: float = setting(
        0.05, "Share of runs whose states are in random order that have a jump all the same", positive=True, most=0.5
    )
