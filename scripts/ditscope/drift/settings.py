"""Settings of the stage `drift`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Drift:
    """Distances of each state to the trajectory's first prompt."""

    shuffles: int = setting(1, "Shuffled-order controls of each trajectory")
    max_runs: int = setting(
        1000,
        "Runs that are compared in pairs and with their start, of prompts drawn at random where there are more; 0: all",
    )
    jump_states: int = setting(3, "States before and after a step whose means tell a jump", positive=True)
    jump_false_alarms: float = setting(
        0.05, "Share of runs whose states are in random order that have a jump all the same", positive=True, most=0.5
    )
    oracle: list[str] = setting(
        [], "Networks of the shapes world, whose pictures its oracle reads: how long does what a prompt named last?"
    )
