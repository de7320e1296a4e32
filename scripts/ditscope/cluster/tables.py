"""Tables of the stage `cluster`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import (
    DEGENERATE,
    EMBEDDER,
    MODALITY,
    NETWORK,
    POSITION,
    RUN,
    RUN_KEY,
    SEQUENCE_NUMBER,
    START,
)

PHASES = ("beginning", "middle", "end")
SCOPES = ("from_start", "anytime")
REASON = Column("String", "why there is no label", nullable=True)

CLUSTERS = Table(
    "clusters",
    "clusters/clusters.parquet",
    "generated state",
    key=(*RUN_KEY, "sequence_number"),
    columns={
        "embedder": EMBEDDER,
        "modality": MODALITY,
        "network": NETWORK,
        "run_id": RUN["run_id"],
        **START,
        "sequence_number": SEQUENCE_NUMBER,
        "position": POSITION,
        "text": Column("String", "the state's text; of an image, the caption that followed it, if any", nullable=True),
        "medoid_network": Column("String", "network of its cluster's medoid; null for outliers", nullable=True),
        "medoid_run_id": Column("String", "run of its cluster's medoid; null for outliers", nullable=True),
        "medoid_sequence_number": Column("Int32", "place of its cluster's medoid; null for outliers", nullable=True),
        "medoid_text": Column("String", "text of its cluster's medoid; null for outliers", nullable=True),
        "label": Column("Int64", "its cluster: 0 the largest, -1 an outlier; null without a clustering", nullable=True),
        "is_medoid": Column(
            "Boolean",
            "whether it is its cluster's medoid: the member with the least sum of cosine distances to the others",
        ),
        "reason": REASON,
        "degenerate": DEGENERATE,
    },
)
MAP = Table(
    "clusters.map",
    "clusters/map.parquet",
    "generated state",
    key=(*RUN_KEY, "sequence_number"),
    columns={
        "embedder": EMBEDDER,
        "modality": MODALITY,
        "network": NETWORK,
        "run_id": RUN["run_id"],
        "prompt_id": START["prompt_id"],
        "sequence_number": SEQUENCE_NUMBER,
        "position": POSITION,
        **dict.fromkeys(
            "xy",
            Column(
                "Float64",
                "t-SNE coordinate, without a unit: neighbours are kept, distances between groups mean little",
                nullable=True,
            ),
        ),
        "reason": Column("String", "why there is none", nullable=True),
        "degenerate": DEGENERATE,
    },
)
RUN_LENGTHS = Table(
    "clusters.run_lengths",
    "clusters/run_lengths.parquet",
    "stretch of equal labels in a run; outliers are stretches too, unless `cluster.drop_outliers` takes them out first",
    key=(*RUN_KEY, "stretch"),
    columns={
        **RUN,
        "stretch": Column("Int64", "number of the stretch in its run, from 0"),
        **START,
        "label": Column("Int64", "its cluster; -1: outliers"),
        "start_sequence_number": Column("Int32", "`sequence_number` of its first state"),
        "start_position": Column("Int64", "`position` of its first state"),
        "length": Column("Int64", "states; runs that ended in a loop are continued"),
        "entry_seen": Column("Boolean", "whether it begins here as far as is known, or a gap is before it"),
        "exit_seen": Column("Boolean", "whether it ends here as far as is known, or the run's end or a gap cuts it"),
        "degenerate": DEGENERATE,
    },
)
DWELL_TIMES = Table(
    "clusters.dwell_times",
    "clusters/dwell_times.parquet",
    "embedder, network and duration: how long stays in a cluster last (Kaplan-Meier)",
    key=("embedder", "network", "duration"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "duration": Column("Int64", "states to which stays were followed"),
        "at_risk": Column("Int64", "stays that were followed so far"),
        "runs": Column("Int64", "runs that they are of"),
        "prompts": Column("Int64", "prompts that they are of"),
        "exits": Column("Int64", "stays that ended after `duration` states"),
        "censored": Column("Int64", "stays that were not followed further: the run's end or a gap cut them"),
        "survival": Column("Float64", "share of stays that last longer"),
        **dict.fromkeys(
            ("low", "high"),
            Column("Float64", "95 % interval over prompts, from 8 on; null where all or none stay", nullable=True),
        ),
        "degenerate": DEGENERATE,
    },
)
LONGEST_RUNS = Table(
    "clusters.longest_runs",
    "clusters/longest_runs.parquet",
    "run and scope: the longest stay in one cluster",
    key=(*RUN_KEY, "scope"),
    columns={
        **RUN,
        **START,
        "scope": Column(one_of(SCOPES), "the first stretch, or any"),
        "label": Column("Int64", "the cluster; null where length is 0", nullable=True),
        "start_sequence_number": Column("Int32", "where it begins; null where length is 0", nullable=True),
        "length": Column("Int64", "states; 0: starts as, or is all, outliers"),
        "exit_seen": Column("Boolean", "whether the stay ended, or was cut; null where length is 0", nullable=True),
        "rank": Column("Int64", "by length among the runs of the embedder and network, from 1"),
        "degenerate": DEGENERATE,
    },
)
TRANSITIONS = Table(
    "clusters.transitions",
    "clusters/transitions.parquet",
    "embedder, network and pair of labels that follow each other",
    key=("embedder", "network", "source", "target"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        **dict.fromkeys(("source", "target"), Column("Int64", "label; -1 is one like any other")),
        "count": Column("Int64", "how often; runs that ended in a loop are continued"),
        "runs": Column("Int64", "in how many runs"),
        "probability": Column("Float64", "share of all that leave `source`"),
        "degenerate": DEGENERATE,
    },
)
LABEL_PHASES = Table(
    "clusters.label_phases",
    "clusters/label_phases.parquet",
    "embedder, network, third of the runs and label",
    key=("embedder", "network", "phase", "label"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "phase": Column(one_of(PHASES), "third of the run, by position"),
        "label": Column("Int64", "the cluster; -1: outliers"),
        "states": Column("Int64", "states of the phase with the label"),
        "share": Column("Float64", "of the phase's states"),
        "degenerate": DEGENERATE,
    },
)
RETURNS = Table(
    "clusters.returns",
    "clusters/returns.parquet",
    "run",
    key=RUN_KEY,
    columns={
        **RUN,
        **START,
        "initial_label": Column("Int64", "cluster of the first generated state; null after an outlier", nullable=True),
        "states": Column("Int64", "states of the run"),
        "states_inside": Column("Int64", "states in the initial cluster; null after an outlier", nullable=True),
        "left": Column("Boolean", "whether it ever left it; null after an outlier", nullable=True),
        "returns": Column("Int64", "arrivals there from another label; null after an outlier", nullable=True),
        "first_return": Column("Int64", "position of the first arrival; null: never", nullable=True),
        "reason": Column("String", "why there is none: the first state is an outlier or missing", nullable=True),
        "degenerate": DEGENERATE,
    },
)
OUTLIERS = Table(
    "clusters.outliers",
    "clusters/outliers.parquet",
    "embedder and network",
    key=("embedder", "network"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "states": Column("Int64", "generated states"),
        "clustered": Column("Int64", "those in a cluster"),
        "outliers": Column("Int64", "those in none"),
        "clusters": Column("Int64", "clusters visited"),
        **dict.fromkeys(("clustered_share", "outliers_share"), Column("Float64", "share of the states", nullable=True)),
        "reason": REASON,
        "degenerate": DEGENERATE,
    },
)
AGREEMENT = Table(
    "clusters.agreement",
    "clusters/agreement.parquet",
    "pair of labellings, with and without outliers",
    key=("between", "embedder_a", "embedder_b", "network_a", "network_b", "outliers"),
    columns={
        "between": Column(
            "String",
            "`embedders`: two embedders of the same states of one network. `networks`: two networks under one "
            "embedder, matched by prompt, seed and position",
        ),
        **dict.fromkeys(("embedder_a", "embedder_b", "network_a", "network_b"), Column("String", "which")),
        "outliers": Column("String", "`kept` as a cluster of their own, or `excluded` where either labelling has one"),
        "states": Column("Int64", "how many were compared"),
        "ari": Column("Float64", "adjusted Rand index: 0 for chance, 1 for equal", nullable=True),
        "ami": Column(
            "Float64",
            "adjusted mutual information: 0 for chance, 1 for equal; of at most `cluster.max_compared` states",
            nullable=True,
        ),
        "v_measure": Column("Float64", "V-measure: 1 for equal, not adjusted for chance", nullable=True),
        "reason": Column("String", "why there is no score", nullable=True),
        "prompts": Column("Int64", "prompts that they are of: the null permutes these, with all their runs"),
        "draws": Column("Int64", "permutations: 999, or 20 per pair if that is more", nullable=True),
        **{
            f"{score}_{name}": Column("Float64", meaning, nullable=True)
            for score in ("ari", "ami", "v_measure")
            for name, meaning in (
                ("null_median", "median of the permutations"),
                ("null_high", "their 95 % quantile"),
                ("p", "share of permutations with a score as high; one-sided"),
                ("p_holm", "corrected for the pairs of the same `between` and `outliers` (Holm 1979)"),
            )
        },
        "null_reason": Column("String", "why there are no permutations", nullable=True),
        "degenerate": DEGENERATE,
    },
)
STABILITY = Table(
    "clusters.stability",
    "clusters/stability.parquet",
    "embedder: whether its clusters come again from half of the prompts",
    key=("embedder",),
    columns={
        "embedder": EMBEDDER,
        "states": Column("Int64", "generated states"),
        "prompts": Column("Int64", "prompts that they are of"),
        "clusters": Column("Int64", "clusters of all states"),
        "draws": Column("Int64", "halves of the prompts that were clustered", nullable=True),
        "states_drawn": Column("Int64", "states in each, median; at most 600", nullable=True),
        "ari": Column("Float64", "adjusted Rand index with the labels of all states, median over draws", nullable=True),
        **dict.fromkeys(("low", "high"), Column("Float64", "between which 95 % of the draws are", nullable=True)),
        "reason": Column("String", "why there is none", nullable=True),
        "degenerate": DEGENERATE,
    },
)
MEDOIDS = Table(
    "clusters.medoids",
    "clusters/medoids.parquet",
    "cluster",
    key=("embedder", "label"),
    columns={
        "embedder": EMBEDDER,
        "label": Column("Int64", "the cluster"),
        "states": Column("Int64", "states in it"),
        "runs": Column("Int64", "runs that they are of"),
        "medoid_network": Column("String", "network of its medoid"),
        "medoid_run_id": Column("String", "run of its medoid"),
        "medoid_sequence_number": Column("Int32", "place of its medoid"),
        "medoid_text": Column("String", "text of its medoid; null of an image without a caption", nullable=True),
        "draws": Column("Int64", "draws of `clusters.stability` that have states of it"),
        "jaccard": Column(
            "Float64", "states in common with the most similar cluster of a draw, of all in both; median", nullable=True
        ),
        **dict.fromkeys(("low", "high"), Column("Float64", "between which 95 % of the draws are", nullable=True)),
        "medoid_cosine": Column(
            "Float64", "cosine of its medoid and that of the cluster of the draw, median", nullable=True
        ),
        "degenerate": DEGENERATE,
    },
)
