"""Tables of the stage `topology`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import (
    DEGENERATE,
    DRAWS,
    EMBEDDER,
    NETWORK,
    NULL_QUANTILES,
    P_HOLM,
    RUN,
    RUN_KEY,
    SEEDS,
    SIDES,
    START,
)

HOMOLOGY = ("H₀", "H₁", "H₂")
DIMENSION = Column(one_of(HOMOLOGY), "components, loops or voids")
RELATIONS = ("other_seed", "other_network", "other_prompt", "other_embedder")
SURROGATES = ("walk", "normal")
VERDICTS = ("longer than chance", "shorter than chance", "no more than chance")

DIAGRAMS = Table(
    "topology.diagrams",
    "topology/diagrams.parquet",
    "bar; equal bars are rows of their own",
    key=(),
    columns={
        **RUN,
        "dimension": DIMENSION,
        "birth": Column("Float64", "distance of unit vectors, 0 to 2"),
        "death": Column("Float64", "likewise; null: infinite, of which H₀ has one per run", nullable=True),
        "degenerate": DEGENERATE,
    },
)
ENTROPY = Table(
    "topology.entropy",
    "topology/entropy.parquet",
    "run and dimension",
    key=(*RUN_KEY, "dimension"),
    columns={
        **RUN,
        **START,
        "states": Column("Int64", "points of the run that went in, at most `topology.max_points`"),
        "duplicate_states": Column(
            "Int64",
            "how many equal an earlier one (closer than 0.00001): a covariate, since repeats thin out H₀ without any "
            "change of shape",
        ),
        "dimension": DIMENSION,
        "bars": Column("Int64", "bars of finite and positive length"),
        "infinite_bars": Column("Int64", "bars that never die"),
        "total_length": Column("Float64", "distance, of the finite bars"),
        "longest": Column("Float64", "distance, of the finite bars; null without one", nullable=True),
        "entropy": Column(
            "Float64",
            "nat: -sum p ln p over the finite bars' shares p of the total length; null without a bar, 0 for one",
            nullable=True,
        ),
        "normalized_entropy": Column("Float64", "0 to 1: entropy / ln(bars), from two bars on", nullable=True),
        "degenerate": DEGENERATE,
    },
)
DISTANCES = Table(
    "topology.distances",
    "topology/distances.parquet",
    "pair of runs of one kind of seeds and dimension",
    key=("relation", *(f"{name}_{side}" for side in "ab" for name in RUN_KEY), "dimension"),
    columns={
        "relation": Column(
            one_of(RELATIONS),
            "in what the two runs differ: `other_seed` (the noise floor), `other_network` (same prompt), "
            "`other_prompt` (same network), `other_embedder` (the same run)",
        ),
        "seeds": Column(SEEDS.type, f"{SEEDS.meaning}; that of both runs"),
        **SIDES,
        "dimension": DIMENSION,
        "wasserstein": Column("Float64", "1-Wasserstein distance of the diagrams, Euclidean ground distance"),
        "bottleneck": Column("Float64", "bottleneck distance, maximum norm"),
        "sorted_length_l1": Column(
            "Float64",
            "L1 distance of the sorted, zero-padded bar lengths: cheap, blind to births, no metric of diagrams",
        ),
        "degenerate": DEGENERATE,
    },
)
NULLS = Table(
    "topology.nulls",
    "topology/nulls.parquet",
    "embedder, network, dimension and null: how long the bars are, beside surrogates of as many distinct states",
    key=("embedder", "network", "dimension", "null"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "dimension": DIMENSION,
        "null": Column(
            one_of(SURROGATES),
            "`walk`: walks of increments drawn from the observed ones. `normal`: normal clouds with the covariance of "
            "the states about their run's mean",
        ),
        "runs": Column("Int64", "how many runs went in: of 4 to 100 distinct states"),
        "prompts": Column("Int64", "prompts that they are of; each is one draw"),
        "distinct_states": Column("Float64", "of the median run", nullable=True),
        "duplicate_correlation": Column(
            "Float64", "Spearman's, over runs, of total length and number of repeated states", nullable=True
        ),
        "draws": DRAWS,
        "statistic": Column(
            "Float64", "total length of the finite bars of a run's distinct states, mean", nullable=True
        ),
        **NULL_QUANTILES,
        "p_value": Column("Float64", "two-sided", nullable=True),
        "p_holm": P_HOLM,
        "verdict": Column(
            "String",
            f"{', '.join(f'`{verdict}`' for verdict in VERDICTS)}, by both nulls of the dimension",
            nullable=True,
        ),
        "reason": Column("String", "why there is no test", nullable=True),
        "degenerate": DEGENERATE,
    },
)
