"""Tables of the stage `blocks`, one for each question."""

from ditscope.capture.tables import HALF, PLACE, STREAM
from ditscope.core.schema import Column, Table

BLOCK = ["model", "depth", "block", "block_type", "block_index"]
HERE = ("generation_id", "prompt_id", "step", "block")
PAIR = {"stream": STREAM, "half": HALF, "previous": Column("String", "the block before it, whose tokens are its input")}

SIMILARITY = Table(
    "blocks.similarity",
    "analysis/*/*/similarity.parquet",
    "captured step, block, stream and half of the batch",
    key=(*HERE, "stream", "half"),
    columns={
        **PLACE,
        **PAIR,
        "cosine": Column("Float64", "mean cosine of each token with the same token after the block before"),
        "linear_cka": Column(
            "Float64",
            "linear centred kernel alignment of the two sets of tokens, 0 to 1 (Kornblith et al. 2019): 1 where they "
            "differ by a rotation, scale or shift",
        ),
    },
)
RESIDUAL = Table(
    "blocks.residual",
    "analysis/*/*/residual.parquet",
    "captured step, block, stream and half of the batch",
    key=(*HERE, "stream", "half"),
    columns={
        **PLACE,
        **PAIR,
        "relative_update": Column(
            "Float64", "norm of output - input over the norm of the input, over all tokens together"
        ),
        "update_cosine": Column(
            "Float64", "mean cosine of update and input: below 0 the block takes away from what is there"
        ),
        "input_rms": Column("Float64", "root mean square of the input"),
        "update_rms": Column("Float64", "root mean square of the update"),
    },
)
TEXT_DRIFT = Table(
    "blocks.text_drift",
    "analysis/*/*/text_drift.parquet",
    "captured step, block and half of the batch",
    key=(*HERE, "half"),
    columns={
        **PLACE,
        "half": HALF,
        "cosine_distance": Column(
            "Float64",
            "1 - mean cosine of the text tokens with those that the first captured place in the network has at the "
            "same step (`embedding`, if the first block was captured)",
        ),
        "relative_l2": Column("Float64", "norm of the difference from these over their norm"),
        "step_cosine_distance": Column(
            "Float64", "1 - mean cosine of the text tokens with those of the same block at the first captured step"
        ),
        "step_relative_l2": Column("Float64", "norm of the difference from these over their norm"),
    },
)
DECODABILITY = Table(
    "blocks.decodability",
    "analysis/*/*/decodability.parquet",
    "decoded clean estimate (`x0`)",
    key=HERE,
    columns={
        **PLACE,
        "psnr_db": Column(
            "Float64",
            "its peak signal-to-noise ratio to the generated picture in dB, both as stored (JPEG unless "
            "`image_format: png`); 100 for equal pixels",
        ),
        "feature_cosine_distance": Column(
            "Float64",
            "1 - cosine of their image features under the embedder `blocks.features`; null without one",
            nullable=True,
        ),
    },
)
DECODABLE = Table(
    "blocks.decodable",
    "analysis/*/*/decodable.parquet",
    "criterion and step: the first block, in network order, whose estimate is near enough to the picture; no row for a "
    "step where none is",
    key=("generation_id", "prompt_id", "step", "criterion"),
    columns={
        **PLACE,
        "criterion": Column("String", "`psnr_db` (at least) or `feature_cosine_distance` (at most)"),
        "threshold": Column("Float64", "the setting `blocks.psnr_db` or `blocks.feature_distance`"),
        "distance": Column("Float64", "its value"),
        "first": Column("Boolean", "whether it is the first of the whole run"),
    },
)
