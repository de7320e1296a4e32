"""Tables of the stage `prompts`."""

from ditscope.core.schema import Column, Table

AS_IN_THE_CSV = Column("String", "as in the CSV; empty where it has no such column")

PROMPTS = Table(
    "prompts",
    "prompts/shard-*.parquet",
    "run (prompt x seed), in the order of the CSV",
    key=("prompt_id", "seed"),
    columns={
        "prompt_id": Column("String", "the CSV's id, or `p00000`, `p00001`, ..."),
        **dict.fromkeys(("prompt", "negative_prompt", "family"), AS_IN_THE_CSV),
        "seed": Column(
            "Int64",
            "the CSV's seed, else each seed of `prompts.seeds`; for -1 a seed derived from experiment, prompt and "
            "place in that list",
        ),
        "derived_seed": Column("Boolean", "whether it was"),
    },
    parts="prompts/runs-*.parquet",
)
