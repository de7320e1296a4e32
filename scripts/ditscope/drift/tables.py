"""Tables of the stage `drift`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import (
    DEGENERATE,
    DRAWS,
    EMBEDDER,
    MODALITY,
    NETWORK,
    NULL_QUANTILES,
    P_HOLM,
    POSITION,
    RUN,
    RUN_KEY,
    SEEDS,
    SEQUENCE_NUMBER,
    SIDES,
    START,
)

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
        "draws": DRAWS,
        "statistic": Column(
            "Float64",
            "`ordered`: Spearman's correlation of cosine distance and time, mean over runs. `walk`: Euclidean "
            "distance, mean over runs and states from the second step on",
            nullable=True,
        ),
        **NULL_QUANTILES,
        "p_value": Column("Float64", "two-sided", nullable=True),
        "p_holm": P_HOLM,
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

# Claims about groups of runs, of which fixed and derived seeds are never pooled --------------------------------------

GROUP = {"embedder": EMBEDDER, "network": NETWORK, "seeds": SEEDS}
RUNS = Column("Int64", "how many runs went in: without gaps and of full length, at most 100 (drawn by prompts)")
PROMPTS = Column("Int64", "how many prompts they are of")
BOUNDS = dict.fromkeys(("low", "high"), Column("Float64", "95 % interval over prompts; null below 8", nullable=True))

TESTED = ("memory", "walk", "plateau")
GROUP_CLAIMS = (*TESTED, "divergence", "rate")
CLAIMS_TABLE = Table(
    "drift.claims",
    "drift/claims.parquet",
    "embedder, network, kind of seeds and claim, beside what comes out of nothing",
    key=(*GROUP, "claim"),
    columns={
        **GROUP,
        "claim": Column(
            one_of(GROUP_CLAIMS),
            "`memory`: of the prompt, in the last third of positions; null: prompts permuted among runs. `walk`, "
            "`plateau`: growth of the displacement; nulls: walks of the observed increments; states of each run "
            "shuffled (both of a prompt's runs alike). `divergence`, `rate`: how far and how fast twins part before "
            "their distance saturates, without a null",
        ),
        "runs": RUNS,
        "prompts": PROMPTS,
        "statistic": Column(
            "Float64",
            "`memory`: as in `drift.memory`. `walk`, `plateau`: mean squared displacement at the last third of lags "
            "over the middle third; 1 is a plateau. `rate`: slope of the logarithm of the distance, per state; "
            "`divergence`: that times the states, before half of the distance at which it saturates",
            nullable=True,
        ),
        **BOUNDS,
        "draws": DRAWS,
        **NULL_QUANTILES,
        "p_value": Column("Float64", "two-sided; none of `divergence` and `rate`", nullable=True),
        "p_holm": P_HOLM,
        "reason": Column("String", "why there is no statistic, or no p-value", nullable=True),
        "degenerate": DEGENERATE,
    },
)
MEMORY = Table(
    "drift.memory",
    "drift/memory.parquet",
    "embedder, network, kind of seeds and position of generated states",
    key=(*GROUP, "position"),
    columns={
        **GROUP,
        "position": POSITION,
        "sequence_number": SEQUENCE_NUMBER,
        "runs": RUNS,
        "prompts": PROMPTS,
        "twin": Column("Float64", "cosine distance of runs of one prompt and different seeds, mean over prompts"),
        "stranger": Column("Float64", "the same of runs of different prompts and seeds, mean over pairs of prompts"),
        "floor": Column(
            "Float64",
            "cosine distance by noise alone: 2 D(1) - D(2) of the mean distances D at lags 1 and 2 of runs, of "
            "computed states; of runs that ended in a loop 0 where D(2) is below D(1)",
        ),
        "memory": Column(
            "Float64", "(stranger - twin) / (stranger - floor): 1 is all, 0 nothing of the prompt", nullable=True
        ),
        **BOUNDS,
        **dict.fromkeys(
            ("null_low", "null_high"),
            Column("Float64", "2.5 and 97.5 % quantile of memory with prompts permuted among runs", nullable=True),
        ),
        "reason": Column("String", "why there is no memory", nullable=True),
        "degenerate": DEGENERATE,
    },
)
DIVERGENCE = Table(
    "drift.divergence",
    "drift/divergence.parquet",
    "embedder, network, kind of seeds and position of generated states",
    key=(*GROUP, "position"),
    columns={
        **GROUP,
        "position": POSITION,
        "sequence_number": SEQUENCE_NUMBER,
        "runs": RUNS,
        "prompts": PROMPTS,
        "distance": Column(
            "Float64", "of runs of one prompt and different seeds, vectors at length 1: 0 to 2, mean over prompts"
        ),
        **BOUNDS,
        "equal": Column("Float64", "share of these pairs that are in one state"),
        "stranger": Column("Float64", "the same distance of runs of different prompts and seeds"),
        "saturated": Column("Boolean", "whether the distance has been as large as its mean over the last third"),
        "degenerate": DEGENERATE,
    },
)
DISPLACEMENT = Table(
    "drift.displacement",
    "drift/displacement.parquet",
    "embedder, network, kind of seeds and lag",
    key=(*GROUP, "lag"),
    columns={
        **GROUP,
        "lag": Column("Int64", "how many generated states of the embedder's modality two states are apart"),
        "runs": RUNS,
        "prompts": PROMPTS,
        "displacement": Column("Float64", "squared Euclidean distance of states so far apart, mean over prompts"),
        **BOUNDS,
        **dict.fromkeys(
            ("walk_low", "walk_median", "walk_high"),
            Column("Float64", "2.5, 50 and 97.5 % quantile of the same of walks of the observed increments"),
        ),
        **dict.fromkeys(
            ("plateau_low", "plateau_median", "plateau_high"),
            Column("Float64", "the same with the states of each run shuffled, those of a prompt's runs alike"),
        ),
        "degenerate": DEGENERATE,
    },
)
BEYOND_WALK = 0.05  # `p_walk` up to which a jump is more than a walk makes
JUMPS = Table(
    "drift.jumps",
    "drift/jumps.parquet",
    "jump of a run; of a run without jumps its largest step; of a run that is not tested the reason",
    key=(*RUN_KEY, "number"),
    columns={
        **RUN,
        **START,
        "number": Column("Int64", "number of the jump in its run, from 0"),
        "states": Column("Int64", "generated states of the run that were computed"),
        "position": Column("Int64", "`position` of the first state after the step", nullable=True),
        "sequence_number": Column("Int32", "its place in the trajectory", nullable=True),
        "size": Column(
            "Float64", "distance of the means of `drift.jump_states` states before and after the step", nullable=True
        ),
        "threshold": Column(
            "Float64", "size that a share `drift.jump_false_alarms` of shuffles of the run exceeds", nullable=True
        ),
        "p_value": Column("Float64", "share of shuffles that have a step as large anywhere", nullable=True),
        "p_walk": Column(
            "Float64",
            "share of walks of the run's increments, less those of the jumps, that come as far; a jump is more than a "
            f"walk makes up to {BEYOND_WALK}",
            nullable=True,
        ),
        "jump": Column("Boolean", "whether the size is above the threshold"),
        "reason": Column("String", "why no step of the run is tested", nullable=True),
        "degenerate": DEGENERATE,
    },
)

# How long things last -------------------------------------------------------------------------------------------------

PICTURE = "picture"
READERS = ("oracle", PICTURE, "caption", "embedding")
PROMPT = "the prompt"  # no name of a network: those have no spaces
AGAINST = Column("String", f"`{PROMPT}`, or the base network of a quantized one")
BY = Column(
    one_of(READERS),
    "`oracle`: reads in pictures of the shapes world what the prompt named; `picture`: what the run's first one shows; "
    "`caption`: the text; `embedding`: the vector",
)
WHAT = Column("String", "the attribute, `caption`, or the embedder")
LIFETIMES = Table(
    "drift.lifetimes",
    "drift/lifetimes.parquet",
    "run, what it is held against, and reader",
    key=("network", "run_id", "against", "by", "what"),
    columns={
        "network": NETWORK,
        "run_id": RUN["run_id"],
        **START,
        "seeds": SEEDS,
        "against": AGAINST,
        "by": BY,
        "what": WHAT,
        "named": Column("String", "what the prompt named, or the first picture shows", nullable=True),
        "threshold": Column(
            "Float64",
            "cosine distance beyond which vectors differ: half the median between first states of different prompts",
            nullable=True,
        ),
        "followed": Column("Int64", "generated states of the reader's modality that are known, up to the first gap"),
        "lasted": Column("Int64", "how many of them come before the first that differs", nullable=True),
        "changed": Column("Boolean", "whether one differs", nullable=True),
        "became": Column("String", "what the oracle reads there", nullable=True),
        "reason": Column("String", "why there is none, as of what a prompt does not name", nullable=True),
        "degenerate": DEGENERATE,
    },
)
SURVIVAL = Table(
    "drift.survival",
    "drift/survival.parquet",
    "network, kind of seeds, what runs are held against, reader and position (Kaplan-Meier)",
    key=("network", "seeds", "against", "by", "what", "position"),
    columns={
        "network": NETWORK,
        "seeds": SEEDS,
        "against": AGAINST,
        "by": BY,
        "what": WHAT,
        "position": POSITION,
        "runs": Column("Int64", "how many runs (or pairs with one of the base) went in"),
        "left_out": Column(
            "Int64", "how many did not, as what their prompt does not name, or their first picture not show"
        ),
        "at_risk": Column("Int64", "runs whose state here is known and in which nothing changed before"),
        "prompts": Column("Int64", "prompts that they are of"),
        "changes": Column("Int64", "runs that change here"),
        "unclear": Column("Int64", "of these, runs in which the oracle cannot read it"),
        "censored": Column("Int64", "runs that are not followed further"),
        "survival": Column("Float64", "share of runs in which nothing has changed up to here"),
        **BOUNDS,
        "reference": Column(
            "Float64",
            "the same of runs held against what other prompts began with; against a base, of pairs of its runs of one "
            "prompt and different seeds",
            nullable=True,
        ),
        "degenerate": DEGENERATE,
    },
)
QUANTIZED = Table(
    "drift.quantized",
    "drift/quantized.parquet",
    "quantized network, its base, kind of seeds and reader: how long what runs began with lasts in either",
    key=("network", "base", "seeds", "by", "what"),
    columns={
        "network": NETWORK,
        "base": Column("String", "the network of the same models without quantization"),
        "seeds": SEEDS,
        "by": BY,
        "what": WHAT,
        "pairs": Column("Int64", "runs of one prompt and seed in both, known to the horizon"),
        "left_out": Column("Int64", "such runs that are not known as far"),
        "prompts": Column("Int64", "prompts that they are of"),
        "horizon": Column("Int64", "states to which they were followed", nullable=True),
        **dict.fromkeys(
            ("base_lasted", "lasted"),
            Column("Float64", "states before the first change, the horizon at most: mean over prompts", nullable=True),
        ),
        "difference": Column("Float64", "lasted - base_lasted", nullable=True),
        **BOUNDS,
        "draws": DRAWS,
        **dict.fromkeys(
            ("null_low", "null_median", "null_high"),
            Column("Float64", "2.5, 50 and 97.5 % quantile with the signs of the prompts at random", nullable=True),
        ),
        "p_value": Column("Float64", "two-sided", nullable=True),
        "p_holm": Column(
            "Float64", "corrected for the tests of the network, kind of seeds and `by` (Holm 1979)", nullable=True
        ),
        "reason": Column("String", "why there is no difference, or no test of it", nullable=True),
        "degenerate": DEGENERATE,
    },
)
