"""Tables of the stage `drift`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import DEGENERATE, EMBEDDER, MODALITY, NETWORK, RUN, RUN_KEY, SEQUENCE_NUMBER, SIDES, START

DISTANCES = ("euclidean", "cosine_distance", "angle_rad")
STEPS = tuple(f"step_{name}" for name in DISTANCES)
CONTROL = Column(
    one_of(("observed", "shuffled")), "`shuffled`: the run's later states in random order, the first one in place"
)
CLAIMS = ("ordered", "walk")
CLAIM = Column(
    one_of(CLAIMS),
    "`ordered`: distances are ordered in time; null: the later states shuffled, those of a prompt's runs alike. "
    "`walk`: runs go further or less far than a walk; null: increments drawn from the observed ones of all prompts",
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
        "continued": Column("Boolean", "whether it follows from the loop that ended the run; of a shuffle: the slot"),
        "euclidean": Column("Float64", "distance of the vector to the run's first one, in units of the embedding"),
        "cosine_distance": Column("Float64", "1 - cosine, 0 to 2"),
        "angle_rad": Column("Float64", "angle in radians, 0 to pi"),
        **dict.fromkeys(
            STEPS,
            Column("Float64", "the same to the previous state of the modality; null at the first", nullable=True),
        ),
        "degenerate": DEGENERATE,
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
        "degenerate": DEGENERATE,
    },
)
NULLS = Table(
    "drift.nulls",
    "drift/nulls.parquet",
    "embedder, network and claim: what drift says, and what comes out of nothing",
    key=("embedder", "network", "claim"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "claim": CLAIM,
        "runs": Column("Int64", "how many runs went in: without gaps, with three states after the first, at most 100"),
        "prompts": Column("Int64", "how many prompts they are of: what is drawn, with all its runs together"),
        "draws": Column("Int64", "draws from the null: 999, or 20 for each test if that is more", nullable=True),
        "statistic": Column(
            "Float64",
            "`ordered`: Spearman's correlation of cosine distance and time, mean over runs. `walk`: Euclidean "
            "distance, mean over runs and states from the second step on",
            nullable=True,
        ),
        **dict.fromkeys(
            ("null_low", "null_median", "null_high"),
            Column("Float64", "2.5, 50 and 97.5 % quantile of the statistic under the null", nullable=True),
        ),
        "p_value": Column("Float64", "two-sided", nullable=True),
        "p_holm": Column("Float64", "corrected for all tests of the table (Holm 1979)", nullable=True),
        "reason": Column("String", "why there is no test", nullable=True),
        "degenerate": DEGENERATE,
    },
)
BANDS = Table(
    "drift.bands",
    "drift/bands.parquet",
    "embedder, network, claim and state",
    key=("embedder", "network", "claim", "sequence_number"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "claim": CLAIM,
        "sequence_number": SEQUENCE_NUMBER,
        "runs": Column("Int64", "how many runs are there at this state, of those in `drift.nulls`"),
        "observed": Column("Float64", "median over runs of the distance: cosine (`ordered`), Euclidean (`walk`)"),
        **dict.fromkeys(
            ("low", "median", "high"), Column("Float64", "2.5, 50 and 97.5 % quantile of that median under the null")
        ),
        "degenerate": DEGENERATE,
    },
)
AUTOREGRESSION = Table(
    "drift.autoregression",
    "drift/autoregression.parquet",
    "embedder, network, control and measure",
    key=("embedder", "network", "control", "measure"),
    columns={
        "embedder": EMBEDDER,
        "network": NETWORK,
        "control": CONTROL,
        "measure": Column(one_of(STEPS), "the column of `drift`"),
        "runs": Column("Int64", "how many runs went in"),
        "pairs": Column("Int64", "how many pairs of consecutive steps went in"),
        "least_squares": Column(
            "Float64", "b with an intercept per run; short runs push it down by about (1 + b) / length", nullable=True
        ),
        "coefficient": Column("Float64", "b for which `least_squares` has its median where it is", nullable=True),
        **dict.fromkeys(
            ("low", "high"),
            Column("Float64", "95 % interval, by simulation; -1 and 1 are where stationary series end", nullable=True),
        ),
        "width": Column("Float64", "high - low", nullable=True),
        "reason": Column("String", "why there is none", nullable=True),
        "degenerate": DEGENERATE,
    },
)
AUTOREGRESSION_RUNS = Table(
    "drift.autoregression_runs",
    "drift/autoregression_runs.parquet",
    "run and measure: the autoregression of one run, from 50 steps on",
    key=(*RUN_KEY, "measure"),
    columns={
        **RUN,
        "measure": Column(one_of(STEPS), "the column of `drift`"),
        "steps": Column("Int64", "number of steps of the run"),
        "pairs": Column("Int64", "how many pairs of consecutive steps went in"),
        **{
            name: AUTOREGRESSION.columns[name]
            for name in ("least_squares", "coefficient", "low", "high", "width", "reason")
        },
        "degenerate": DEGENERATE,
    },
)
NORMALITY = Table(
    "drift.normality",
    "drift/normality.parquet",
    "run, measure and test",
    key=(*RUN_KEY, "measure", "test"),
    columns={
        **RUN,
        "measure": Column(one_of(STEPS), "the column of `drift`"),
        "test": Column("String", "`shapiro-wilk`, `dagostino-k2` or `anderson-darling`"),
        "n": Column("Int64", "number of steps of the run"),
        **dict.fromkeys(
            ("mean", "standard_deviation", "skewness", "excess_kurtosis"),
            Column("Float64", "of the steps; null where they are too few or all equal", nullable=True),
        ),
        **dict.fromkeys(("statistic", "p_value"), Column("Float64", "the test's", nullable=True)),
        "p_holm": Column(
            "Float64", "corrected for the runs of the embedder and network, in each measure and test", nullable=True
        ),
        "reason": Column("String", "why there is no test", nullable=True),
        "degenerate": DEGENERATE,
    },
)
