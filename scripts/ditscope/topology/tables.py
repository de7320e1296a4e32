"""Tables of the stage `topology`."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.embed.tables import RUN, RUN_KEY, SIDES, START

HOMOLOGY = ("H₀", "H₁", "H₂")
DIMENSION = Column(one_of(HOMOLOGY), "components, loops or voids")
RELATIONS = ("other_seed", "other_network", "other_prompt", "other_embedder")

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
    },
)
DISTANCES = Table(
    "topology.distances",
    "topology/distances.parquet",
    "pair of runs and dimension",
    key=("relation", *(f"{name}_{side}" for side in "ab" for name in RUN_KEY), "dimension"),
    columns={
        "relation": Column(
            one_of(RELATIONS),
            "in what the two runs differ: `other_seed` (the noise floor), `other_network` (same prompt), "
            "`other_prompt` (same network), `other_embedder` (the same run)",
        ),
        **SIDES,
        "dimension": DIMENSION,
        "wasserstein": Column("Float64", "1-Wasserstein distance of the diagrams, Euclidean ground distance"),
        "bottleneck": Column("Float64", "bottleneck distance, maximum norm"),
        "sorted_length_l1": Column(
            "Float64",
            "L1 distance of the sorted, zero-padded bar lengths: cheap, blind to births, no metric of diagrams",
        ),
    },
)
