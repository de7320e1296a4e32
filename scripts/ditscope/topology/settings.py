"""Settings of the stage `topology`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Topology:
    """Persistent homology of each trajectory's point cloud."""

    max_dimension: int = setting(2, "Highest homology dimension", choices=(0, 1, 2))
    max_runs: int = setting(
        500, "Runs of an embedder that have diagrams, of prompts drawn at random where there are more; 0: all"
    )
    max_points: int = setting(100, "States of a run that make its diagrams, drawn at random where it has more; 0: all")
    max_pairs: int = setting(
        200, "Most pairs of runs compared in each relation, pair of networks and pair of embedders; 0: all"
    )
