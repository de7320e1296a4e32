"""Settings of the stage `drift`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Drift:
    """Distances of each state to the trajectory's first prompt."""

    shuffles: int = setting(1, "Shuffled-order controls of each trajectory")
