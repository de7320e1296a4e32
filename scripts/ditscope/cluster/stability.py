"""Whether clusters come again where half of the prompts are clustered, and their medoids."""

from collections.abc import Callable

import numpy as np
import polars as pl
from sklearn.metrics import adjusted_rand_score

from ditscope.cluster.sequences import OUTLIER
from ditscope.core.identity import derived_seed

DRAWS = 40
SHARE = 0.5  # of the prompts in each draw
FEWEST_PROMPTS = 4  # fewer have next to no halves that differ
MOST_STATES = 600  # clustered in each draw: sampled where there are more
TAILS = [0.025, 0.975]
REASON = "{} prompts, halves need {}"

Labelled = tuple[np.ndarray, np.ndarray]  # rows that were clustered, and their labels


def half_clusterings(
    u: np.ndarray, prompts: np.ndarray, name: str, labels_of: Callable[[np.ndarray, float], np.ndarray]
) -> list[Labelled]:
    """Clusterings of unit vectors `u` (n, d) of half of the `prompts` (n,): none of fewer than FEWEST_PROMPTS.

    Prompts are drawn whole: states of one prompt resemble each other. `labels_of` clusters vectors, given their share
    of all. `name` seeds the draws.
    """
    units = np.unique(prompts)
    if len(units) < FEWEST_PROMPTS:
        return []
    rng = np.random.default_rng(derived_seed("cluster stability", name))
    drawn = []
    for _ in range(DRAWS):
        rows = np.flatnonzero(np.isin(prompts, rng.choice(units, round(SHARE * len(units)), replace=False)))
        if len(rows) > MOST_STATES:
            rows = np.sort(rng.choice(rows, MOST_STATES, replace=False))
        drawn.append((rows, labels_of(u[rows], len(rows) / len(u))))
    return drawn


def stability_row(labels: np.ndarray, prompts: np.ndarray, drawn: list[Labelled]) -> dict:
    """The row of `clusters.stability` of one embedder: adjusted Rand index of the labels and those of each draw."""
    few = len(np.unique(prompts))
    row = {"states": len(labels), "prompts": few, "clusters": len(np.unique(labels[labels != OUTLIER]))}
    if not drawn:
        return row | {"reason": REASON.format(few, FEWEST_PROMPTS)}
    single = row["clusters"] <= 1 and (labels == labels[0]).all()
    if single:
        return row | {"reason": "all states have one label"}
    scores = np.array([adjusted_rand_score(labels[rows], again) for rows, again in drawn])
    low, median, high = map(float, np.quantile(scores, [TAILS[0], 0.5, TAILS[1]]))
    size = int(np.median([len(rows) for rows, _ in drawn]))
    return row | {"draws": len(scores), "states_drawn": size, "ari": median, "low": low, "high": high}


def cluster_rows(u: np.ndarray, labels: np.ndarray, drawn: list[Labelled], medoid_of: np.ndarray) -> list[dict]:
    """The rows of `clusters.medoids` of one embedder: how well each cluster comes again (Hennig 2007).

    `jaccard`: members in common with the draw's cluster most like it, as a share of all of both, median over the draws
    that have members of it. `medoid_cosine`: of its medoid and that of the draw's cluster. `medoid_of` (n,) has the
    row of the medoid of each state's cluster.
    """
    rows = []
    for label in np.unique(labels[labels != OUTLIER]):
        pairs = [again_of(u, labels == label, medoid_of[labels == label][0], *draw) for draw in drawn]
        likeness = np.array([pair for pair in pairs if pair is not None]).reshape(-1, 2)
        row: dict[str, object] = {"label": int(label), "states": int((labels == label).sum()), "draws": len(likeness)}
        if len(likeness):
            low, middle, high = map(float, np.quantile(likeness[:, 0], [TAILS[0], 0.5, TAILS[1]]))
            cosines = likeness[~np.isnan(likeness[:, 1]), 1]
            row |= {"jaccard": middle, "low": low, "high": high}
            row |= {"medoid_cosine": float(np.median(cosines)) if len(cosines) else None}
        rows.append(row)
    return rows


def again_of(
    u: np.ndarray, members: np.ndarray, medoid: int, rows: np.ndarray, again: np.ndarray
) -> tuple[float, float] | None:
    """Jaccard index and medoids' cosine of a cluster and the one of a draw most like it; None without a member in it.

    0 and NaN where the draw leaves all its members outside its clusters.
    """
    drawn = members[rows]
    if not drawn.any():
        return None
    names, common = np.unique(again[drawn & (again != OUTLIER)], return_counts=True)
    if not len(names):
        return 0.0, np.nan
    sizes = np.array([(again == name).sum() for name in names])
    likeness = common / (drawn.sum() + sizes - common)
    best = u[rows[again == names[np.argmax(likeness)]]]
    centre = best[np.argmax(np.round(best @ best.sum(axis=0), 9))]
    return float(likeness.max()), float(centre @ u[medoid])


def medoid_table(clusters: pl.DataFrame, parts: dict[str, list[dict]], schema: dict) -> pl.DataFrame:
    """The table `clusters.medoids`: what was found of each cluster, with its medoid's place and text."""
    names = ["embedder", "label", "medoid_network", "medoid_run_id", "medoid_sequence_number", "medoid_text"]
    rows = [{"embedder": embedder} | row for embedder, part in parts.items() for row in part]
    runs = clusters.group_by("embedder", "label").agg(pl.col("run_id").n_unique().cast(pl.Int64).alias("runs"))
    medoids = clusters.filter(pl.col("label") != OUTLIER).select(names).unique(["embedder", "label"])
    measured = pl.DataFrame(rows, schema={k: v for k, v in schema.items() if k not in (*names[2:], "runs")})
    keys = ["embedder", "label"]
    joined = measured.join(medoids, on=keys, how="left").join(runs, on=keys, how="left")
    return joined.select(list(schema)).sort(keys)
