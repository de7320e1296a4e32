"""Settings of the stage `topology`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Topology:
    """Persistent homology of each trajectory's point cloud."""

    max_dimension: int = setting(2, "Highest homology dimension", choices=(0, 1, 2))
    max_pairs: int = setting(
        200, "Most pairs of runs compared in each relation, pair of networks and pair of embedders; 0: all"
    )
