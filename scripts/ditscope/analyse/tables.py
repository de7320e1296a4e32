"""Tables of the stage `analyse`."""

from ditscope.core.schema import Column, Table

ANALYSIS = Table(
    "analysis.*",
    "analysis/*.parquet",
    "whatever the analysis finds; one table for each entry of `analyse.analyses`, named after it",
    key=(),
    columns={"*": Column("*", "what the module's `analyse` returns", nullable=True)},
)
