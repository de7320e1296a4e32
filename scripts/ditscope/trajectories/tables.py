"""Tables of the stage `trajectories`."""

from ditscope.core.schema import Column, Table

NETWORK = Column("String", "name of the network")
RUN_ID = Column("String", "64-bit hex id of (network, prompt, seed)")

TRAJECTORIES = Table(
    "trajectories",
    "trajectories/*/shard-*.parquet",
    "state, by run as in the prompt tables, then by `sequence_number`",
    key=("run_id", "sequence_number"),
    columns={
        "network": NETWORK,
        "run_id": RUN_ID,
        **dict.fromkeys(("prompt_id", "prompt"), Column("String", "where the run started")),
        "seed": Column(
            "Int64",
            "seed of the invocation: the run's own, or under a derived seed one for each invocation, in all networks",
        ),
        "derived_seed": Column("Boolean", "whether the run was asked for with seed -1"),
        "sequence_number": Column("Int32", "-1 for the prompt, then 0, 1, ..."),
        "entry": Column("String", "the network's entry, as `shapes-flux:int4`; null at -1", nullable=True),
        "model": Column("String", "the entry's model; null at -1", nullable=True),
        "scheme": Column(
            "String",
            "`base` without quantization, else the entry's scheme or plan's budget; null at -1",
            nullable=True,
        ),
        "type": Column("String", "what the state is: `TEXT` or `IMAGE`"),
        "input_key": Column("String", "128-bit hex key of the state before; null at -1", nullable=True),
        "output_key": Column("String", "128-bit hex key of the state: the text, or size and exact pixels of the image"),
        "output_text": Column("String", "the text (white space collapsed); null for an image", nullable=True),
        "input_truncated": Column(
            "Boolean",
            "whether the generator's text encoder had to cut its input; null for a captioner",
            nullable=True,
        ),
        "request_hash": Column(
            "String",
            "128-bit key of everything that determines the output, as in the table `images`; of a caption the seed "
            "counts only at a `temperature` above 0; null at -1",
            nullable=True,
        ),
        "stop_reason": Column(
            "String", "why it ended: `length`, or `repeat` of a state at the same place of the cycle"
        ),
        "loop_length": Column("Int32", "invocations of the loop that a repeat closed; null otherwise", nullable=True),
    },
)
TIMING = Table(
    "trajectories.timing",
    "trajectories/*/shard-*.timing.parquet",
    "invocation",
    key=("run_id", "sequence_number"),
    columns={
        "network": NETWORK,
        "run_id": RUN_ID,
        "sequence_number": Column("Int64", "number of the invocation, from 0"),
        "entry": Column("String", "the network's entry, as `shapes-flux:int4`"),
        **dict.fromkeys(("model", "scheme"), Column("String", "the entry's two parts")),
        "type": Column("String", "what it made: `TEXT` or `IMAGE`"),
        "seconds": Column("Float64", "the invocation's share of its batch, without loading the model"),
        "batch_size": Column("Int64", "invocations computed together"),
        "shared": Column(
            "Boolean",
            "whether an equal request of an earlier run in the same round was answered for it; sum `seconds` without "
            "these",
        ),
    },
)
