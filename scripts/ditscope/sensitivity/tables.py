"""Tables of the stage `sensitivity`, and what some of their columns may hold."""

from ditscope.core.schema import Column, Table, one_of
from ditscope.models.schedule_parts import PIECES
from ditscope.sensitivity.buckets import BUCKETS

WHOLE = "all"  # in place of a bucket: the layer is quantized in every step
METRICS = ("psnr_db", "sqnr_db", "relative_l2")  # of the velocity
IMAGE_METRIC = "image_rms"
# Kinds of layers, by what their names in diffusers contain; the first that fits holds.
KINDS = (
    ("modulation", ("norm", "modulation", "_mod.", "distilled_guidance")),
    ("mlp_text", ("ff_context.", "txt_mlp.")),
    ("attention_text", ("attn.add_", "attn.to_add_out")),
    ("attention", ("attn.", "attn1.", "attn2.", "attention.")),
    # A single block's proj_out reads its MLP and its attention.
    ("mlp", (".ff.", ".ffn.", ".feed_forward.", ".proj_mlp", "blocks.")),
    ("output", ("proj_out", "final_layer")),
    ("embedder", ("",)),
)
LAYER_KINDS = tuple(kind for kind, _ in KINDS)


def layer_kind(name: str) -> str:
    """What a layer does, told from its name: one of the kinds of `KINDS`."""
    return next(kind for kind, parts in KINDS if any(part in name for part in parts))


MODEL = Column("String", "the model's name in the config")
BITS = Column("Int64", "bits of a weight")
BUCKET = Column(
    one_of((*BUCKETS, WHOLE)),
    "thirds of the steps, or sigma above 0.7, 0.3 to 0.7, below 0.3; `all` (of `image_rms`): the layer is quantized in "
    "every step",
)
METRIC = Column("String", "`psnr_db`, `sqnr_db`, `relative_l2` or `image_rms`, see below")
INTERVAL = Column("Float64", "95 % interval of `value` over the images (below); null below 8 images", nullable=True)

SENSITIVITY = Table(
    "sensitivity",
    "sensitivity/sensitivity.parquet",
    "layer, bit width, bucket and metric",
    key=("model", "layer", "bits", "bucket", "metric"),
    columns={
        "model": MODEL,
        "backend": Column("String", "torch or mlx"),
        "layer": Column("String", "fully qualified name in the transformer"),
        "kind": Column("String", "modulation, attention, attention_text, mlp, mlp_text, embedder or output"),
        "depth": Column(
            "Int64", "number of the layer's block in network order; -1 before the first, their number after the last"
        ),
        "module": Column("String", "linear, conv2d, ..."),
        "bits": BITS,
        "quantizer": Column(
            "String",
            "`palettize`: 2^bits even levels over the tensor; `group`: affine with an integer zero point by group",
        ),
        "group_size": Column("Int64", "the setting: weights that share a scale; 0: a whole row"),
        "shared_weights": Column(
            "Int64",
            "weights that really share one: the row where `group_size` does not divide it, the tensor for `palettize`",
        ),
        "bucket": BUCKET,
        "metric": METRIC,
        "value": Column(
            "Float64", "mean over the bucket's images; in fast mode the metric of the mean squared error ratio"
        ),
        "value_std": Column(
            "Float64",
            "standard deviation over the images; `value_std` / sqrt(`n_images`) is the standard error in every mode; "
            "null for one image",
            nullable=True,
        ),
        "value_low": INTERVAL,
        "value_high": INTERVAL,
        "n_samples": Column("Int64", "samples (image x step) that were measured; in fast mode, probes"),
        "n_images": Column("Int64", "images they come from: the units of the interval"),
        "parameters": Column("Int64", "weights of the layer, without bias"),
        "packed_bytes": Column(
            "Int64",
            "size of its weights at these bits as the model's back end stores them; null where it cannot",
            nullable=True,
        ),
        "mode": Column("String", "`exact` or `fast`"),
    },
    parts="sensitivity/*/*-*.parquet",
)
AGREEMENT = Table(
    "sensitivity.agreement",
    "sensitivity/agreement.parquet",
    "model, bucket, bit width and metric",
    key=("model", "bucket", "bits", "metric"),
    columns={
        "model": MODEL,
        "bucket": BUCKET,
        "bits": BITS,
        "metric": METRIC,
        "spearman": Column(
            "Float64", "rank correlation over the layers of `value` with its fast estimate", nullable=True
        ),
        "layers": Column("Int64", "layers that were ranked"),
    },
)
FORMATS = Table(
    "sensitivity.formats",
    "sensitivity/*/formats-*.parquet",
    "layer and pair of cells (format, piece of the schedule), each pair once",
    key=("model", "layer", "format", "piece", "other_format", "other_piece"),
    columns={
        "model": MODEL,
        "layer": Column("String", "fully qualified name in the transformer"),
        "kind": Column("String", "as in the table `sensitivity`"),
        "depth": Column("Int64", "as in the table `sensitivity`"),
        "format": Column("String", "the scheme's name in the config"),
        "piece": Column(one_of(PIECES), "first and last step; thirds of the steps between"),
        "other_format": Column("String", "of the other cell"),
        "other_piece": Column(one_of(PIECES), "of the other cell"),
        "moment": Column(
            "Float64",
            "mean over probes of the product of the two cells' effects: of one cell with itself its mean square effect",
        ),
        "piece_steps": Column("Int64", "steps of `piece`"),
        "metric": Column(
            "String",
            "`image_rms`: effects are on the image's values (0 to 1); `relative_l2`: on the velocity, relative to its "
            "norm (recorded calls)",
        ),
        "n_probes": Column("Int64", "probes that `moment` is the mean of"),
        "n_images": Column("Int64", "calibration images that they are of"),
        "parameters": Column("Int64", "weights of the layer, without bias"),
        "format_bytes": Column("Int64", "nominal bytes of its weight in `format`: values, scales and zero points"),
        "full_bytes": Column("Int64", "bytes of its weight in the model's own type"),
    },
)
FORMATS_TIMING = Table(
    "sensitivity.formats.timing",
    "sensitivity/*/formats-*.timing.parquet",
    "layer and format",
    key=("model", "layer", "format"),
    columns={
        "model": MODEL,
        "layer": Column("String", "fully qualified name in the transformer"),
        "format": Column("String", "the scheme's name in the config, or `full`: the layer as it is"),
        "latency_median_ms": Column(
            "Float64", "milliseconds of one call in a step of one picture, median of the repeats"
        ),
        "latency_p10_ms": Column("Float64", "tenth percentile"),
        "latency_p90_ms": Column("Float64", "ninetieth percentile"),
        "repeats": Column("Int64", "calls, formats turn by turn"),
        "rows": Column("Int64", "rows (tokens x halves of guidance) that the layer took"),
        "hardware": Column("String", "hardware id"),
    },
)
SAMPLES = Table(
    "sensitivity.samples",
    "",
    "layer, bit width and sample or probe, of unfinished work",
    key=(),
    columns={
        "layer": Column("String", "fully qualified name in the transformer"),
        "bits": BITS,
        "bucket": Column("String", "bucket of the sample's step"),
        "image": Column("Int64", "number of the image"),
        "step_index": Column("Int64", "number of the step", optional=True),
        **dict.fromkeys((*METRICS, IMAGE_METRIC), Column("Float64", "score, or squared error ratio", optional=True)),
    },
)
