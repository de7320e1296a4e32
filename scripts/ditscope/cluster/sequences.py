"""Sequences of cluster labels along trajectories: stable runs, transitions, phases, returns.

Every function takes the table `clusters`, in which label -1 is an outlier and null means that the embedder's states
were not clustered (`reason`). What is not known is not joined: states before and after a gap do not follow each other.
All are group-by operations of O(n log n) for n states.
"""

import polars as pl

from ditscope.cluster.tables import LABEL_PHASES, LONGEST_RUNS
from ditscope.embed.files import RUN

OUTLIER = -1
PHASE = LABEL_PHASES.schema()["phase"]
SCOPE = LONGEST_RUNS.schema()["scope"]


def clustered(clusters: pl.DataFrame, drop_outliers: bool = False) -> pl.DataFrame:
    """The states that have a label, in order along their runs; without outliers if asked.

    `segment` numbers the parts of a run that have no gap, `from_start` says whether the part begins with the run.
    """
    rows = clusters.drop_nulls("label").sort(*RUN, "position")
    gap = pl.col("position").diff().fill_null(1) != 1
    rows = rows.with_columns(gap.cum_sum().over(RUN).cast(pl.Int64).alias("segment"))
    rows = rows.with_columns((pl.col("position").first() == 0).over(*RUN, "segment").alias("from_start"))
    return rows.filter(pl.col("label") != OUTLIER) if drop_outliers else rows


def run_lengths(clusters: pl.DataFrame, drop_outliers: bool = False) -> pl.DataFrame:
    """Run-length code of each trajectory's labels: one row for each stretch of equal labels, its length in states.

    Stretches of outliers are rows of label -1. With `drop_outliers` the outliers are taken out first, which glues
    stretches of one cluster across them. `entry_seen` and `exit_seen` say whether the stretch begins and ends as far as
    it is known: one that the end of the run or a gap cuts is longer than its length, or as long (right-censored).
    """
    label, segment = pl.col("label"), pl.col("segment")
    rows = clustered(clusters, drop_outliers).with_columns(
        pl.struct(label, segment).rle_id().over(RUN).cast(pl.Int64).alias("stretch"),
        (pl.col("from_start") | (segment == segment.shift()).over(RUN).fill_null(False)).alias("entry_seen"),
        (segment == segment.shift(-1)).over(RUN).fill_null(False).alias("exit_seen"),
    )
    return rows.group_by(*RUN, "stretch", maintain_order=True).agg(
        pl.col("prompt_id", "seed", "label").first(),
        pl.col("sequence_number").first().alias("start_sequence_number"),
        pl.col("position").first().alias("start_position"),
        pl.len().cast(pl.Int64).alias("length"),
        pl.col("entry_seen").first(),
        pl.col("exit_seen").last(),
    )


def longest_runs(lengths: pl.DataFrame) -> pl.DataFrame:
    """The longest stay in one cluster of each trajectory, `from_start` (its first stretch) and `anytime`.

    Where a trajectory starts with an outlier, or has nothing but outliers, the length is 0 and the label null. `rank`
    orders the trajectories of an embedder and network by length (1: the longest; ties by run id). Of equally long
    stretches the earliest counts. `exit_seen`: whether it ended, or was cut by the end of its run or a gap.
    """
    runs = lengths.select(*RUN, "prompt_id", "seed").unique(RUN, maintain_order=True)
    inside = lengths.filter(pl.col("label") != OUTLIER)
    stays = {
        "from_start": inside.filter(pl.col("start_position") == 0),
        "anytime": inside.sort(*RUN, "length", "stretch", descending=[False] * 3 + [True, False]).unique(
            RUN, keep="first", maintain_order=True
        ),
    }
    columns = ["label", "start_sequence_number", "length", "exit_seen"]
    tables = [
        runs.join(stays[scope].select(*RUN, *columns), on=RUN, how="left").select(
            *RUN, "prompt_id", "seed", pl.lit(scope, SCOPE).alias("scope"), "label", "start_sequence_number",
            pl.col("length").fill_null(0), "exit_seen",
        )
        for scope in SCOPE.categories
    ]  # fmt: skip
    ranked = pl.concat(tables).sort(
        "embedder", "network", "scope", "length", "run_id", descending=[False] * 3 + [True, False]
    )
    return ranked.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("embedder", "network", "scope").alias("rank")
    )


def transitions(clusters: pl.DataFrame, drop_outliers: bool = False) -> pl.DataFrame:
    """Transition matrix of each embedder and network: count of `source` -> `target`, and its share of the source's.

    A transition leads from a state to the next one of its trajectory; the last state has none, nor has one before a
    gap. `runs` is in how many runs it occurs. Label -1 (outlier) is a
    source and a target like any other, unless outliers are dropped.
    """
    cell = ["embedder", "network", "source", "target"]
    rows = clustered(clusters, drop_outliers).select(
        *RUN, pl.col("label").alias("source"), pl.col("label").shift(-1).over(*RUN, "segment").alias("target")
    )
    counts = rows.drop_nulls("target").group_by(cell).agg(
        pl.len().cast(pl.Int64).alias("count"), pl.col("run_id").n_unique().cast(pl.Int64).alias("runs")
    ).sort(cell)  # fmt: skip
    total = pl.col("count").sum().over("embedder", "network", "source")
    return counts.with_columns((pl.col("count") / total).alias("probability"))


def label_phases(clusters: pl.DataFrame) -> pl.DataFrame:
    """How often each label occurs in the beginning, middle and end (thirds by position) of trajectories.

    State i of n is in third floor(3 i / n). `share` is of the states of the embedder, network and phase.
    """
    cell = ["embedder", "network", "phase", "label"]
    third = 3 * pl.int_range(pl.len()).over(RUN) // pl.len().over(RUN)
    phase = third.replace_strict(dict(enumerate(PHASE.categories)), return_dtype=PHASE)
    rows = clustered(clusters).with_columns(phase.alias("phase"))
    counts = rows.group_by(cell).agg(pl.len().cast(pl.Int64).alias("states")).sort(cell)
    total = pl.col("states").sum().over("embedder", "network", "phase")
    return counts.with_columns((pl.col("states") / total).alias("share"))


def returns(clusters: pl.DataFrame) -> pl.DataFrame:
    """How often each trajectory comes back to the cluster of its first state after it has left it.

    `returns` counts arrivals from another label, `states_inside` the states in the initial cluster, `first_return` the
    position of the first arrival (null: never). A trajectory that starts as an outlier has none (`reason`), nor has one
    whose first state is not known. An arrival after a gap is not known to be one.
    """
    label, first = pl.col("label"), pl.col("label").first()
    arrives = (label == first) & (pl.col("before") != first)
    rows = clustered(clusters).with_columns(label.shift().over(*RUN, "segment").alias("before"))
    table = rows.group_by(RUN, maintain_order=True).agg(
        pl.col("prompt_id", "seed").first(),
        first.alias("initial_label"),
        pl.len().cast(pl.Int64).alias("states"),
        (label == first).sum().cast(pl.Int64).alias("states_inside"),
        (label != first).any().alias("left"),
        arrives.sum().cast(pl.Int64).alias("returns"),
        pl.col("position").filter(arrives).first().alias("first_return"),
        pl.col("from_start").first().alias("known"),
    )  # fmt: skip
    inside = pl.col("known") & (pl.col("initial_label") != OUTLIER)
    reason = pl.when(~pl.col("known")).then(pl.lit("the first state has no usable embedding"))
    kept = ["initial_label", "states_inside", "left", "returns", "first_return"]
    return table.with_columns(
        *(pl.when(inside).then(pl.col(name)).alias(name) for name in kept),
        reason.when(~inside).then(pl.lit("the first state is an outlier")).alias("reason"),
    ).drop("known")


def outliers(clusters: pl.DataFrame) -> pl.DataFrame:
    """Shares of states in a cluster and outside all, and the number of clusters visited, by embedder and network."""
    label = pl.col("label")
    table = clusters.group_by("embedder", "network").agg(
        pl.len().cast(pl.Int64).alias("states"),
        (label != OUTLIER).sum().cast(pl.Int64).alias("clustered"),
        (label == OUTLIER).sum().cast(pl.Int64).alias("outliers"),
        label.filter(label != OUTLIER).n_unique().cast(pl.Int64).alias("clusters"),
        pl.col("reason").first(),
    )
    labelled = pl.col("reason").is_null()
    return table.select(
        "embedder", "network", "states", "clustered", "outliers", "clusters",
        *(
            pl.when(labelled).then(pl.col(name) / pl.col("states")).alias(f"{name}_share")
            for name in ("clustered", "outliers")
        ),
        "reason",
    ).sort("embedder", "network")  # fmt: skip
