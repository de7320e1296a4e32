"""Tables of the stage `drift`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import EMBEDDER, MODALITY, NETWORK, RUN, RUN_KEY, SEQUENCE_NUMBER, SIDES, START

DISTANCES = ("euclidean", "cosine_distance", "angle_rad")
STEPS = tuple(f"step_{name}" for name in DISTANCES)
CONTROL = Column(
    one_of(("observed", "shuffled")), "`shuffled`: the run's later states in random order, the first one in place"
)

DRIFT = Table(
    "drift",
    "drift/drift.parquet",
    "state, observed and in each shuffle",
    key=(*RUN_KEY, "control", "shuffle", "sequence_number"),
    columns={
        "embedder": EMBEDDER,
        "modality": MODALITY,
        "network": NETWORK,
        "run_id": RUN["run_id"],
        **START,
        "sequence_number": SEQUENCE_NUMBER,
        "control": CONTROL,
        "shuffle": Column("Int64", "0 for observed, else the number of the shuffle; `sequence_number` is the slot's"),
        "euclidean": Column("Float64", "distance of the vector to the run's first one, in units of the embedding"),
        "cosine_distance": Column("Float64", "1 - cosine, 0 to 2; null for a zero vector", nullable=True),
        "angle_rad": Column("Float64", "angle in radians, 0 to pi; null for a zero vector", nullable=True),
        **dict.fromkeys(
            STEPS,
            Column("Float64", "the same to the previous state of the modality; null at the first", nullable=True),
        ),
    },
)
SIMILARITY = Table(
    "drift.similarity",
    "drift/similarity.parquet",
    "pair of runs of an embedder, each run with itself too",
    key=("embedder", "network_a", "run_id_a", "network_b", "run_id_b"),
    columns={
        "embedder": EMBEDDER,
        **{name: column for name, column in SIDES.items() if not name.startswith("embedder")},
        "mean_cosine": Column("Float64", "mean cosine over all pairs of a state of the one and one of the other run"),
        "centroid_cosine": Column("Float64", "cosine of the runs' mean directions; null without one", nullable=True),
        "aligned_cosine": Column("Float64", "mean cosine of states at the same position", nullable=True),
        "shared_positions": Column("Int64", "how many of these there are"),
    },
)
AUTOREGRESSION = Table(
    "drift.autoregression",
    "drift/autoregression.parquet",
    "embedder, network, control, measure and estimator",
    key=("embedder", "network", "control", "measure", "estimator"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "control": CONTROL,
        "measure": Column(one_of((*DISTANCES, *STEPS)), "the column of `drift`"),
        "estimator": Column(
            "String",
            "`pooled`: one intercept; differences between runs push b up. `within`: an intercept per run; short runs "
            "push b down by about (1 + b) / length. The truth is between them",
        ),
        "runs": Column("Int64", "how many runs went in"),
        "pairs": Column("Int64", "how many pairs of consecutive states went in"),
        "coefficient": Column("Float64", "b", nullable=True),
        "standard_error": Column("Float64", "its error with runs as independent clusters", nullable=True),
        **dict.fromkeys(
            ("low", "high"),
            Column("Float64", "95 % interval by Student's t with runs - 1 degrees of freedom", nullable=True),
        ),
        "reason": Column("String", "why there is no coefficient or no interval", nullable=True),
    },
)
NORMALITY = Table(
    "drift.normality",
    "drift/normality.parquet",
    "embedder, network, control, measure and test",
    key=("embedder", "network", "control", "measure", "test"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "control": CONTROL,
        "measure": Column(one_of(STEPS), "the column of `drift`"),
        "test": Column("String", "`shapiro-wilk` or `dagostino-k2`"),
        "n": Column("Int64", "number of steps"),
        **dict.fromkeys(
            ("mean", "standard_deviation", "skewness", "excess_kurtosis"),
            Column("Float64", "of the steps; null where they are too few or all equal", nullable=True),
        ),
        **dict.fromkeys(("statistic", "p_value"), Column("Float64", "the test's", nullable=True)),
        "reason": Column("String", "why there is no test", nullable=True),
    },
)
