"""Clusters of embedded states (HDBSCAN), their medoids, and a map of the states (t-SNE)."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openTSNE
import polars as pl
from sklearn.cluster import HDBSCAN

from ditscope.cluster import sequences
from ditscope.cluster.agreement import agreement
from ditscope.cluster.dwell import dwell_times
from ditscope.cluster.settings import Cluster
from ditscope.cluster.stability import cluster_rows, half_clusterings, medoid_table, stability_row
from ditscope.cluster.tables import CLUSTERS, MAP, MEDOIDS, STABILITY
from ditscope.core.counts import check_rows
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.schema import tables_of
from ditscope.core.tables import write_table
from ditscope.embed.files import (
    STATE,
    by_embedder,
    continue_loops,
    degenerate_networks,
    marked,
    read_states,
    run_ends,
    sampled,
    unit,
    unmarked,
    vectors,
)

log = logging.getLogger(__name__)
SEED = 0
OUTLIER = sequences.OUTLIER
FEWEST = 4  # states below which neither a clustering nor a map says anything
CHUNK = 4096  # rows whose distances to the fitted ones are held at once


def cluster(
    embeddings: list[InputFile],
    trajectories: list[InputFile],
    folder: OutputFolder,
    settings: Cluster = Cluster(),
    max_length: int = 0,
) -> None:
    """Cluster the states of each embedder over all networks, and describe how trajectories move between clusters.

    Leaves in `folder`: clusters.parquet (a label for each generated state, and its cluster's medoid), map.parquet
    (t-SNE), stability.parquet and medoids.parquet (whether clusters come again from half of the prompts), and of the
    label sequences run_lengths, longest_runs, dwell_times, transitions, label_phases, returns, outliers and
    agreement.parquet. In run_lengths to transitions, runs that ended in a loop are continued to `max_length`
    invocations (0: as far as the longest run goes). Initial prompts are not clustered: every network and seed repeats
    them, so that each would be a cluster.
    """
    if settings.min_cluster_size == 1 or settings.min_cluster_size < 0:
        raise InputError(f"cluster.min_cluster_size: {settings.min_cluster_size} must be 0 (automatic) or at least 2")
    states = read_states(embeddings, trajectories)
    frames = describe(states, trajectories, settings, max_length)
    generated = [part.filter(pl.col("position") >= 0) for _, part in by_embedder(states)]
    frames |= {
        MAP.stem: pl.concat([map_states(part, unit(vectors(part)), settings.max_map_points) for part in generated])
    }
    asked = states.filter(pl.col("position") >= 0).select(STATE)
    for table in (CLUSTERS, MAP):
        check_rows(folder / f"{table.stem}.parquet", "states", asked, frames[table.stem].select(STATE))
    poor = degenerate_networks(states)
    for table in tables_of("cluster"):
        write_table(marked(frames[table.stem], poor), folder / f"{table.stem}.parquet", table)


def describe(
    states: pl.DataFrame, trajectories: list[Path], settings: Cluster, max_length: int
) -> dict[str, pl.DataFrame]:
    """Every table but the map, by the name of its file, before it is `marked`."""
    labelled, steady, members = [], [], {}
    for embedder, part in by_embedder(states):
        part = part.filter(pl.col("position") >= 0)
        u = unit(vectors(part))
        labels, reason = cluster_labels(u, settings)
        labelled.append(label_states(part, u, labels, reason))
        prompts = part["prompt_id"].to_numpy()
        drawn = [] if reason else half_clusterings(u, prompts, embedder, partial(labels_of_part, settings))
        why = {"reason": reason} if reason else {}
        steady.append({"embedder": embedder} | stability_row(labels, prompts, drawn) | why)
        members[embedder] = [] if reason else cluster_rows(u, labels, drawn, medoids(u, labels))
        log.info("%s: %d states, %d clusters", embedder, len(u), len(np.unique(labels[labels != OUTLIER])))
    clusters = pl.concat(labelled)
    whole = continue_loops(clusters, run_ends(states, trajectories), max_length)
    lengths = sequences.run_lengths(whole, settings.drop_outliers)
    return {
        "clusters": clusters,
        "run_lengths": lengths,
        "longest_runs": sequences.longest_runs(lengths),
        "dwell_times": dwell_times(lengths),
        "transitions": sequences.transitions(whole, settings.drop_outliers),
        "label_phases": sequences.label_phases(clusters),
        "returns": sequences.returns(clusters),
        "outliers": sequences.outliers(clusters),
        "agreement": agreement(clusters, settings.max_compared),
        "stability": pl.DataFrame(steady, schema=unmarked(STABILITY)),
        "medoids": medoid_table(clusters, members, unmarked(MEDOIDS)),
    }


def labels_of_part(settings: Cluster, u: np.ndarray, share: float) -> np.ndarray:
    """Labels of a part of the states: clusters may be smaller in the same proportion."""
    size, samples = (max(2, round(share * n)) if n else 0 for n in (settings.min_cluster_size, settings.min_samples))
    return cluster_labels(u, replace(settings, min_cluster_size=size, min_samples=samples))[0]


def cluster_labels(u: np.ndarray, settings: Cluster = Cluster()) -> tuple[np.ndarray, str | None]:
    """HDBSCAN labels (n,) of unit vectors `u` (n, d): 0 is the largest cluster, -1 an outlier; and why there are none.

    Campello, Moulavi & Sander 2013, with epsilon of Malzer & Baum 2020. Euclidean distance e on unit vectors stands for
    the cosine distance e^2 / 2. The time is O(n^2 d) (40 s at n = 8,000, d = 384 on one core), the memory O(n d): above
    `max_points` states a fixed random sample is clustered and every other state takes the label of its nearest sampled
    one, in O(n max_points d).
    """
    n = len(u)
    if n < FEWEST:
        return np.full(n, OUTLIER), f"{n} states, a clustering needs {FEWEST}"
    rows = sampled(n, settings.max_points)
    size = settings.min_cluster_size or max(2, len(rows) // 1000)
    samples = settings.min_samples or size
    if max(size, samples) > len(rows):
        return np.full(n, OUTLIER), f"{n} states, `min_cluster_size` and `min_samples` ask for {max(size, samples)}"
    fitted = HDBSCAN(
        min_cluster_size=size,
        min_samples=samples,
        allow_single_cluster=settings.allow_single_cluster,
        copy=True,
    ).fit(u[rows])
    # scikit-learn 1.9's own `cluster_selection_epsilon` fails under NumPy 2.4 as soon as it has something to merge.
    fitted_labels = fitted.labels_
    if settings.epsilon > 0:
        fitted_labels = merge_close(fitted_labels, fitted.dbscan_clustering(settings.epsilon, min_cluster_size=size))
    labels = fitted_labels[nearest(u, u[rows])] if len(rows) < n else fitted_labels
    return by_size(labels), None


def merge_close(labels: np.ndarray, components: np.ndarray) -> np.ndarray:
    """HDBSCAN labels (n,) without splits below the distance at which `components`, DBSCAN* labels (n,), were cut.

    A cluster that lies within one component was split off below that distance: the whole component takes its place
    (the hybrid of DBSCAN* and HDBSCAN* of Malzer & Baum 2020). One that reaches beyond its components stays.
    """
    names, number = np.unique(labels, return_inverse=True)
    low, high = np.full(len(names), len(labels)), np.full(len(names), OUTLIER)
    np.minimum.at(low, number, components)
    np.maximum.at(high, number, components)
    within = (low == high) & (low > OUTLIER) & (names != OUTLIER)
    merged = labels.copy()
    for component, name in zip(low[within], names[within], strict=True):
        merged[components == component] = name
    return merged


def nearest(u: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """For each row of `u` (n, d) the number of the row of `sample` (m, d) with the largest inner product.

    In float32: rows that a rounding would exchange are neighbours, and of one cluster.
    """
    columns = sample.T.astype(np.float32)
    chunks = (u[i : i + CHUNK].astype(np.float32) for i in range(0, len(u), CHUNK))
    parts = [np.argmax(chunk @ columns, axis=1) for chunk in chunks]
    return np.concatenate(parts)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered so that 0 is the largest cluster; of equally large ones, that with the earlier first row."""
    names, first, counts = np.unique(labels, return_index=True, return_counts=True)
    clusters = names != OUTLIER
    order = np.lexsort((first[clusters], -counts[clusters]))
    new = np.full(len(names), OUTLIER)
    new[np.flatnonzero(clusters)[order]] = np.arange(len(order))
    return new[np.searchsorted(names, labels)]


def medoids(u: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row number of the medoid of each state's cluster (n,), -1 for outliers.

    The member with the least sum of squared distances to the others; on unit vectors also the least sum of cosine
    distances. It is the one with the largest inner product with the sum of the members: O(n d), no pairs.
    """
    rows = np.full(len(u), OUTLIER)
    for label in np.unique(labels[labels != OUTLIER]):
        members = np.flatnonzero(labels == label)
        centrality = u[members] @ u[members].sum(axis=0)
        # Equal members differ in rounding by their place in the matrix product: the first one wins.
        rows[members] = members[np.argmax(np.round(centrality, 9))]
    return rows


def label_states(states: pl.DataFrame, u: np.ndarray, labels: np.ndarray, reason: str | None) -> pl.DataFrame:
    """The table `clusters`: a row per state with its label, and its cluster's medoid; null labels with the reason."""
    rows = pl.Series(medoids(u, labels))
    medoid = states[rows.clip(0).to_numpy()].select(
        pl.col("network", "run_id", "sequence_number", "text").name.prefix("medoid_")
    )
    clustered = rows.to_numpy() != OUTLIER
    medoid = medoid.with_columns(pl.when(pl.Series(clustered)).then(pl.all()))
    label = pl.Series("label", labels.astype(np.int64))
    return pl.concat([states.drop("vector"), medoid], how="horizontal").with_columns(
        pl.lit(None, pl.Int64).alias("label") if reason else label,
        pl.Series("is_medoid", clustered & (rows.to_numpy() == np.arange(states.height))),
        pl.lit(reason, pl.String).alias("reason"),
    )


def map_states(states: pl.DataFrame, u: np.ndarray, most: int = 0) -> pl.DataFrame:
    """The table `clusters.map`: t-SNE coordinates x, y (no unit) of each state, or of a sample of `most` (0: all).

    PCA start, fixed seed, perplexity min(30, (n - 1) / 3), one thread: the same on every run. O(n log n) from 1,000
    states on, where neighbours are approximate and forces interpolated.
    """
    columns = ["embedder", "modality", "network", "run_id", "prompt_id", "sequence_number", "position"]
    rows, reason = sampled(len(u), most), no_map(u)
    xy = np.full((len(u), 2), np.nan)
    if reason is None:
        few = min(30, (len(rows) - 1) / 3)
        tsne = openTSNE.TSNE(perplexity=few, initialization="pca", random_state=SEED, n_jobs=1)
        xy[rows] = np.asarray(tsne.fit(u[rows]))
    x, y = (pl.Series(name, xy[:, i]).fill_nan(None) for i, name in enumerate("xy"))
    return states.select(*columns, x, y, pl.Series("reason", why_no_places(u, most), pl.String))


def why_no_places(u: np.ndarray, most: int) -> list[str | None]:
    """Of each of the unit vectors (n, d) why it has no place in a map of at most `most` states."""
    if reason := no_map(u):
        return [reason] * len(u)
    outside = np.ones(len(u), bool)
    outside[sampled(len(u), most)] = False
    return [f"not in the sample of {most} states that the map is of" if missing else None for missing in outside]


def no_map(u: np.ndarray) -> str | None:
    """Why none of the unit vectors (n, d) has a place in a map."""
    if len(u) < FEWEST:
        return f"{len(u)} states, a map needs {FEWEST}"
    return "all states are equal" if (u == u[0]).all() else None
