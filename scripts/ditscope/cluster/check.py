"""What `ditscope doctor` checks of the stage `cluster`."""

from collections.abc import Iterable

import polars as pl

from ditscope.cluster.tables import CLUSTERS, MAP
from ditscope.core.study import Study
from ditscope.embed.check import check_analysis, generated
from ditscope.trajectories.check import states

STATES = (CLUSTERS.file, MAP.file)  # a row per generated state


def check_cluster(study: Study) -> None:
    """The tables of clusters are what the embeddings and trajectories give, with a row per generated state."""
    left = check_analysis(study, "cluster", cluster_again, 1e-6)
    if left:
        check_map(study, left.get(MAP.file))
        check_states(study, left, states(study))


def cluster_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of clusters, computed again; of the map all but its coordinates, which rounding moves far."""
    from ditscope.cluster.stage import describe, why_no_places
    from ditscope.embed.files import by_embedder, degenerate_networks, marked, read_states, unit, vectors

    followed = [study.results / file for file in trajectories]
    states = read_states([study.results / file for file in study.targets("embed")], followed)
    frames = describe(states, followed, study.config.cluster, study.config.trajectories.max_length)
    maps = []
    for _, part in by_embedder(states.filter(pl.col("position") >= 0)):
        reason = pl.Series("reason", why_no_places(unit(vectors(part)), study.config.cluster.max_map_points), pl.String)
        maps.append(part.drop("text", "vector", "seed").with_columns(reason))
    poor = degenerate_networks(states)
    return {name: marked(frame, poor) for name, frame in (frames | {"map": pl.concat(maps)}).items()}


def check_map(study: Study, table: pl.DataFrame | None) -> None:
    """A state has both coordinates, or a reason for having none."""
    if table is None:
        return
    for (embedder,), part in table.partition_by("embedder", as_dict=True).items():
        if any((part[axis].is_null() != part["reason"].is_not_null()).any() for axis in "xy"):
            study.note("cluster", MAP.file, f"{embedder}: states without coordinates or a reason")


def check_states(study: Study, given: dict[str, pl.DataFrame | None], tables: dict[str, pl.DataFrame]) -> None:
    """Labels and coordinates are there of every generated state of an embedder's modality."""
    keys = ["network", "run_id", "sequence_number"]
    for file in STATES:
        table = given.get(file)
        if table is not None:
            wanted = generated(study, tables, keys)
            study.same_rows(
                "cluster",
                file,
                sorted(table.select("embedder", *keys).rows(), key=str),
                sorted(wanted, key=str),
                "states",
            )
