"""Tables of the stage `publish`."""

from ditscope.core.schema import Column, Table

ANSWERS = Table(
    "answers",
    "answers.parquet",
    "stage that answers a question, in pipeline order",
    key=("stage",),
    columns={
        "stage": Column("String", "the stage's name"),
        "question": Column("String", "what it answers"),
        "answer": Column("String", "one sentence with its number, its interval and n"),
        "figure": Column("String", "the figure that shows it, a file name below `figures/` without its ending"),
        "n": Column("Int64", "how many units the number rests on"),
        "unit": Column("String", "what these are, as `prompt`"),
        "value": Column("Float64", "the number", nullable=True),
        "low": Column("Float64", "its 95 % interval; null where there is none", nullable=True),
        "high": Column("Float64", "its 95 % interval; null where there is none", nullable=True),
        "caveats": Column("String", "what else to know: degenerate, noisy, simulated, left out", nullable=True),
    },
)
