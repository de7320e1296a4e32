"""What `ditscope doctor` checks of the stage `cluster`."""

from collections.abc import Iterable

import numpy as np
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
    from ditscope.cluster import sequences
    from ditscope.cluster.stage import cluster_labels, label_states
    from ditscope.embed.files import by_embedder, continue_loops, read_states, run_ends, unit, vectors

    embeddings = [study.results / file for file in study.targets("embed")]
    followed = [study.results / file for file in trajectories]
    settings, labelled, maps = study.config.cluster, [], []
    embedded = read_states(embeddings, followed)
    for _, part in by_embedder(embedded):
        part = part.filter(pl.col("position") >= 0)
        u = unit(vectors(part))
        labels, reason = cluster_labels(u, settings)
        labelled.append(label_states(part, u, labels, reason))
        maps.append(part.drop("text", "vector", "seed"))
    clusters = pl.concat(labelled)
    whole = continue_loops(clusters, run_ends(embedded, followed), study.config.trajectories.max_length)
    runs = sequences.run_lengths(whole, settings.drop_outliers)
    return {
        "clusters": clusters,
        "map": pl.concat(maps),
        "run_lengths": runs,
        "longest_runs": sequences.longest_runs(runs),
        "dwell_times": sequences.dwell_times(runs),
        "transitions": sequences.transitions(whole, settings.drop_outliers),
        "label_phases": sequences.label_phases(clusters),
        "returns": sequences.returns(clusters),
        "outliers": sequences.outliers(clusters),
        "agreement": sequences.agreement(clusters, settings.max_compared),
    }


def check_map(study: Study, table: pl.DataFrame | None) -> None:
    """A state has both coordinates, or a reason for having none, and so have all states of its embedder."""
    from ditscope.cluster.stage import FEWEST
    from ditscope.embed.files import sampled

    if table is None:
        return
    most = study.config.cluster.max_map_points
    for (embedder,), part in table.partition_by("embedder", as_dict=True).items():
        few = len(part) < FEWEST
        reason = f"{len(part)} states, a map needs {FEWEST}" if few else None
        shown = np.zeros(len(part), bool)
        if not few:
            shown[sampled(len(part), most)] = True
            reason = f"not in the sample of {most} states that the map is of"
        if part["reason"].to_list() != [None if is_shown else reason for is_shown in shown]:
            study.note("cluster", MAP.file, f"{embedder}: column `reason` is not {reason!r}")
        if any((part[axis].is_null().to_numpy() == shown).any() for axis in "xy"):
            study.note("cluster", MAP.file, f"{embedder}: states without coordinates or with too few")


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
