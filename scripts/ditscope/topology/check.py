"""What `ditscope doctor` checks of the stage `topology`."""

from collections.abc import Iterable
from functools import partial

import polars as pl

from ditscope.core.study import Study
from ditscope.embed.check import analysed, check_analysis


def check_topology(study: Study) -> None:
    """The tables of topology are what the embeddings and trajectories give."""
    check_analysis(study, "topology", topology_again, 1e-5)


def topology_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of topology, computed again."""
    from ditscope.topology.stage import topology

    return analysed(study, partial(topology, settings=study.config.topology), trajectories)
