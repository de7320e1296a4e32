"""Tables of the stage `generate`."""

from ditscope.core.schema import Column, Table

IMAGES = Table(
    "images",
    "images/*/shard-*.parquet",
    "run, in the order of the prompts",
    key=("model", "prompt_id", "seed"),
    columns={
        "request_hash": Column(
            "String",
            "128-bit key of everything that determines the image: the columns from `model` to `height`, without "
            "`prompt_id` and `derived_seed`, with the scheme's settings and plan in the place of its name; the "
            "registry's `use_t5`, `max_sequence_length` and `call`; the number of frames of a video",
        ),
        "model": Column("String", "the model's name in the config"),
        "revision": Column("String", "commit of a hub model; empty for a folder"),
        "weights": Column("String", "the revision, or a digest of the model's folder"),
        "scheme": Column("String", "quantization scheme (`base`: none)"),
        "backend": Column("String", "library that computed it: torch or mlx"),
        "dtype": Column("String", "type of the weights"),
        **dict.fromkeys(("prompt_id", "prompt"), Column("String", "the run, as in the table `prompts`")),
        "negative_prompt": Column(
            "String", "what the model read of the run's: empty where it reads none (no classifier-free guidance)"
        ),
        "seed": Column("Int64", "the run's seed, as in the table `prompts`"),
        "derived_seed": Column("Boolean", "whether the seed was derived, as in the table `prompts`"),
        "steps": Column("Int64", "denoising steps"),
        "guidance": Column(
            "Float64", "guidance scale (the pipeline's default where the entry has none; 0 where the model reads none)"
        ),
        **dict.fromkeys(("width", "height"), Column("Int64", "pixels")),
        "prompt_tokens": Column("Int64", "tokens under the tokenizer that reads furthest (T5's, where there is one)"),
        "prompt_truncated": Column("Boolean", "whether these are more than its encoder is given"),
        "key": Column("String", "the sample's key in the tar"),
        "png_sha256": Column("String", "SHA-256 of the PNG"),
    },
)
TIMING = Table(
    "images.timing",
    "images/*/shard-*.timing.parquet",
    "slice of a shard",
    key=("model", "slice"),
    places=("", "shard"),
    columns={
        "model": Column("String", "the model's name in the config"),
        "slice": Column("Int64", "number of the slice, from 0"),
        "images": Column("Int64", "pictures that were sampled"),
        "seconds": Column("Float64", "seconds of the slice; near zero where a finished slice was found"),
    },
)
