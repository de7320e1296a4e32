"""Settings of the stage `drift`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Drift:
    """Distances of each state to the trajectory's first prompt."""

    shuffles: int = setting(1, "Shuffled-order controls of each trajectory")
    max_runs: int = setting(
        1000, "Runs of an embedder that are compared in pairs, of prompts drawn at random where there are more; 0: all"
    )
