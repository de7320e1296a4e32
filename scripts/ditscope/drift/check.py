"""What `ditscope doctor` checks of the stage `drift`."""

from collections.abc import Iterable
from functools import partial

import polars as pl

from ditscope.core.study import Study
from ditscope.embed.check import analysed, check_analysis


def check_drift(study: Study) -> None:
    """The tables of drift are what the embeddings and trajectories give."""
    check_analysis(study, "drift", drift_again, 1e-5)  # distances of states that differ by rounding


def drift_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of drift, computed again."""
    from ditscope.drift.stage import drift

    length = study.config.trajectories.max_length
    tars = (file for file in study.targets("trajectories") if file.endswith(".tar"))
    images = [study.results / file for file in tars if file.split("/")[1] in study.config.drift.oracle]
    again = partial(drift, settings=study.config.drift, max_length=length, images=images)
    return analysed(study, again, trajectories)
