"""Tables of the stage `capture`."""

from ditscope.core.schema import Column, Table

# Where in a run and in the network a row is; tables of what blocks do begin with the same columns.
PLACE = {
    "generation_id": Column("String", "name of the captured generation"),
    "prompt_id": Column("String", "the run's prompt, as in the table `prompts`"),
    "model": Column("String", "the model's name in the config"),
    "step": Column("Int64", "number of the denoising step, from 0"),
    "sigma": Column("Float64", "noise level before the step"),
    "block": Column("String", "the block, as `double_block_3`"),
    "block_type": Column("String", "kind of the block, as `double`"),
    "block_index": Column("Int64", "number of the block among those of its kind, from 0"),
    "depth": Column("Int64", "place of the block in the whole network, from 0"),
}
HALF = Column("String", "`cond`, and under classifier-free guidance `uncond`")
STREAM = Column("String", "`img` or `txt` tokens; `joint` where both are one stream whose places are not known")

STATISTICS = Table(
    "capture_statistics",
    "captures/*/*/*/statistics.parquet",
    "captured step, block, stream and half of the batch, and run that asks for the picture",
    key=("generation_id", "prompt_id", "step", "block", "stream", "half"),
    columns={
        **PLACE,
        "stream": STREAM,
        "half": HALF,
        "tokens": Column("Int64", "number of tokens"),
        **dict.fromkeys(
            ("mean", "std", "rms", "absmax"), Column("Float64", "of all numbers of the stream; std divides by n")
        ),
        "mean_token_norm": Column("Float64", "mean over tokens of the Euclidean norm"),
        "token_norms": Column("List(Float32)", "Euclidean norm of each token, in order"),
    },
)

FRAMES = Table(
    "capture_frames",
    "captures/*/*/*/frames.parquet",
    "captured step, block, half of the batch and latent frame of a video, and run that asks for it",
    key=("generation_id", "prompt_id", "step", "block", "half", "frame"),
    columns={
        **PLACE,
        "half": HALF,
        "frame": Column("Int64", "latent frame whose image tokens these are, from 0"),
        "tokens": Column("Int64", "number of tokens of the frame"),
        **dict.fromkeys(
            ("mean", "std", "rms", "absmax"),
            Column("Float64", "of all numbers of its tokens; std divides by n"),
        ),
        "mean_token_norm": Column("Float64", "mean over tokens of the Euclidean norm"),
        "cosine_to_previous": Column(
            "Float64",
            "mean over places of the cosine between a token and that of the frame before; nothing for the first",
            nullable=True,
        ),
    },
)
