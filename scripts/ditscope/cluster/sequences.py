"""Sequences of cluster labels along trajectories: stable runs, transitions, phases, returns, agreement.

Every function takes the table `clusters`, in which label -1 is an outlier and null means that the embedder's states
were not clustered (`reason`). What is not known is not joined: states before and after a gap do not follow each other.
All are group-by operations of O(n log n) for n states.
"""

from itertools import combinations

import polars as pl
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from ditscope.cluster.tables import AGREEMENT, LABEL_PHASES, LONGEST_RUNS
from ditscope.embed.files import RUN, sampled

OUTLIER = -1
PHASE = LABEL_PHASES.schema()["phase"]
SCOPE = LONGEST_RUNS.schema()["scope"]
# By what the states of two labellings are matched; run ids name one network's runs.
MATCHED = {"embedders": ["run_id", "position"], "networks": ["prompt_id", "seed", "position"]}
SCORES = {"ari": adjusted_rand_score, "ami": adjusted_mutual_info_score, "v_measure": v_measure_score}


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


def dwell_times(lengths: pl.DataFrame) -> pl.DataFrame:
    """How long stays in a cluster last: share of stays longer than `duration` states (Kaplan & Meier 1958).

    A stay of which the end of its run or a gap leaves d states lasts d or longer. Whether it ended at d was not seen,
    so it counts up to d - 1 (right-censored). Stays whose beginning was not seen are left out, and so are outliers. Of
    each embedder and network a row per duration to which stays were followed, with the numbers of stays and of runs
    that were followed so far (`at_risk`, `runs`), and how many ended there (`exits`) or were not followed further
    (`censored`). Stays of one run are not independent: no interval is given.
    """
    cell = ["embedder", "network"]
    followed = pl.col("length") - (~pl.col("exit_seen")).cast(pl.Int64)
    stays = lengths.filter((pl.col("label") != OUTLIER) & pl.col("entry_seen")).with_columns(followed.alias("duration"))
    stays = stays.filter(pl.col("duration") > 0)
    longest = stays.group_by(*cell, "run_id").agg(pl.col("duration").max())
    ended = pl.col("exit_seen").sum().cast(pl.Int64)
    table = stays.group_by(*cell, "duration").agg(exits=ended, stays=pl.len().cast(pl.Int64))
    table = table.join(longest.group_by(*cell, "duration").agg(runs=pl.len().cast(pl.Int64)), on=[*cell, "duration"],
                       how="left").sort(*cell, "duration")  # fmt: skip
    left = pl.col("stays", "runs").fill_null(0).cum_sum(reverse=True).over(cell)
    table = table.with_columns((pl.col("stays") - pl.col("exits")).alias("censored"), left)
    table = table.rename({"stays": "at_risk"})
    survival = (1 - pl.col("exits") / pl.col("at_risk")).cum_prod().over(cell)
    return table.select(*cell, "duration", "at_risk", "runs", "exits", "censored", survival.alias("survival"))


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


def agreement(clusters: pl.DataFrame, most: int = 0) -> pl.DataFrame:
    """Agreement of two labellings of the same states: adjusted Rand, adjusted mutual information, V-measure.

    `between` embedders: each pair within a network, matched by position along the run (of a text and an image embedder:
    an image and the caption that followed it). `between` networks: each pair under one embedder, matched by prompt,
    seed and position: do networks that start alike go to the same clusters? Outliers count as a cluster of their own
    (`outliers` = kept) or are left out where either labelling has one (excluded). Two labellings of a single label each
    agree by convention, which says nothing: null, with the `reason`, as where fewer than two states can be compared.
    The adjusted mutual information is of a sample of `most` states (0: of all): what chance gives takes time that grows
    with states times clusters.
    """
    rows = clusters.select(*RUN, "prompt_id", "seed", "position", "label").drop_nulls("label")
    parts = rows.partition_by("embedder", "network", as_dict=True)
    embedders, networks = (clusters[name].unique().sort().to_list() for name in ("embedder", "network"))
    pairs = [("embedders", (a, n), (b, n)) for n in networks for a, b in combinations(embedders, 2)]
    pairs += [("networks", (e, a), (e, b)) for e in embedders for a, b in combinations(networks, 2)]
    records = []
    for between, a, b in pairs:
        left, right = (parts.get(key, rows.clear()) for key in (a, b))
        shared = left.join(right, on=MATCHED[between], suffix="_b").select("label", "label_b")
        inside = shared.filter((pl.col("label") != OUTLIER) & (pl.col("label_b") != OUTLIER))
        records += [(between, a[0], b[0], a[1], b[1], "kept", *scores(shared, most))]
        records += [(between, a[0], b[0], a[1], b[1], "excluded", *scores(inside, most))]
    names = ["between", "embedder_a", "embedder_b", "network_a", "network_b", "outliers"]
    return pl.DataFrame(records, schema=AGREEMENT.schema(), orient="row").sort(names)


def scores(pairs: pl.DataFrame, most: int = 0) -> tuple:
    """Number of pairs of labels, their scores in the order of `SCORES`, and the reason where there are none."""
    reason = None
    if pairs.height < 2:
        reason = "fewer than two states that both label"
    elif pairs["label"].n_unique() == pairs["label_b"].n_unique() == 1:
        reason = "both have a single label"
    of = {"ami": pairs[sampled(pairs.height, most)]}
    values = [None if reason else float(score(*of.get(name, pairs).get_columns())) for name, score in SCORES.items()]
    return pairs.height, *values, reason
