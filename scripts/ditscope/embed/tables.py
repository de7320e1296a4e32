"""Tables of the stage `embed`, and the columns that analyses of embedded states share."""

from ditscope.core.schema import Column, Table, one_of

EMBEDDER = Column("String", "the embedder's name in the config")
MODALITY = Column("String", "what it embeds: `text` or `image`")
NETWORK = Column("String", "the network of the trajectory")
RUN_ID = Column("String", "the trajectory, as in the table `trajectories`")
PROMPT_ID = Column("String", "the prompt that the trajectory started from")
SEED = Column("Int64", "the seed that the trajectory started with")
SEQUENCE_NUMBER = Column(
    "Int32", "place of the state in the trajectory, text and images counted together; -1: the initial prompt"
)
POSITION = Column("Int64", "place among the run's generated states of the embedder's modality: 0, 1, ...")
SEEDS_KINDS = ("fixed", "derived")
SEEDS = Column(
    one_of(SEEDS_KINDS), "`fixed`: a run has one seed for all invocations; `derived`: one of its own for each"
)
# What analyses of embeddings say of a two-sided test.
DRAWS = Column("Int64", "draws from the null: 999, or 40 for each test if that is more", nullable=True)
NULL_QUANTILES = dict.fromkeys(
    ("null_low", "null_median", "null_high"),
    Column("Float64", "2.5, 50 and 97.5 % quantile of the statistic under the null", nullable=True),
)
P_HOLM = Column("Float64", "corrected for all tests of the table (Holm 1979)", nullable=True)
DEGENERATE = Column(
    "String",
    "why the runs of the network show nothing under the embedder, with the number that decided; null: they may",
    nullable=True,
)
RUN = {"embedder": EMBEDDER, "network": NETWORK, "run_id": RUN_ID}  # of one embedder
START = {"prompt_id": PROMPT_ID, "seed": SEED}
RUN_KEY = tuple(RUN)
# The columns of two runs that are compared: `network_a`, ..., `seed_b`.
SIDES = {
    f"{name}_{side}": Column(column.type, f"{name} of the {place} run")
    for side, place in (("a", "first"), ("b", "second"))
    for name, column in (RUN | START).items()
}

EMBEDDINGS = Table(
    "embeddings",
    "embeddings/*/*-*.parquet",
    "state of the embedder's modality, in the order of the table `trajectories`",
    key=(*RUN_KEY, "sequence_number"),
    columns={
        **RUN,
        "sequence_number": Column("Int32", "the state; text embedders also embed the prompt, at -1"),
        "modality": MODALITY,
        "vector": Column("List(Float32)", "one length for each embedder"),
    },
)
