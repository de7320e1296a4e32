"""Tables of the stage `benchmark`: those of its runs, joined, and of their quality."""

from ditscope.benchmark.run_tables import CASE_KEY, FLAT, MADE, MEASURED, OF_RUN, RUN, RUN_FLAT, RUN_TIMING  # noqa: F401 tables of this stage, too
from ditscope.core.schema import Column, Table

NOISE_FLOOR = "noise floor"  # kind of the row of the base, sampled in another batch
# Metrics of pairs of images and of sets of images; between them stand those of `benchmark.cosines`.
OF_TEXT = ("prompt_alignment", "prompt_alignment_change")
PAIRED = ("psnr_db", "ssim", "feature_cosine", "quality_loss", *OF_TEXT, "lpips")
OF_SETS = ("fid", "kid", "inception_score", "precision", "recall")

RATIO = Column("Float64", "bytes of the base over the scheme's own", nullable=True)
OF_QUALITY = Column("Float64", "value of `benchmark.quality`", nullable=True)

BENCHMARK = Table(
    "benchmark",
    "benchmarks/benchmark.parquet",
    "run: model, hardware, scheme and compile state",
    key=CASE_KEY,
    columns={
        **RUN,
        **MADE,
        **dict.fromkeys(("nominal_ratio", "stored_ratio"), RATIO),
        **dict.fromkeys((*PAIRED, "cosine_*", *OF_SETS), OF_QUALITY),
        **dict.fromkeys(
            ("quality_loss_low", "quality_loss_high"),
            Column("Float64", "95 % interval of the quality loss over prompts; null below 8", nullable=True),
        ),
        "n": Column("Int64", "the images that it was measured on", nullable=True),
        "n_prompts": Column("Int64", "the prompts that it was measured on", nullable=True),
        "quality_bound": Column("Float64", "the largest loss that counts as good"),
        "quality_verdict": Column(
            "String",
            "`within` where the whole interval is at most that, `beyond` where all of it is more, else, and below 8 "
            "prompts, `undecided`",
            nullable=True,
        ),
    },
)
TIMING = Table(
    "benchmark.timing",
    "benchmarks/benchmark.timing.parquet",
    "run and batch size",
    key=(*CASE_KEY, "batch"),
    columns={
        **RUN,
        **MEASURED,
        **dict.fromkeys(
            ("speedup_low", "speedup_high"),
            Column(
                "Float64",
                "95 % interval of the ratio of geometric means (Welch's t on logarithms), from 8 timed runs of both on",
                nullable=True,
            ),
        ),
        "speedup": Column(
            "Float64",
            "latency of the base over the scheme's, same model, host, compile state and batch size",
            nullable=True,
        ),
        "speedup_verdict": Column("String", "`quiet` where both timings are", nullable=True),
        "latency_reduction": Column("Float64", "1 - 1 / `speedup`: the share of time that is saved", nullable=True),
        "peak_memory_ratio": Column(
            "Float64", "steady peak over the base's; null where the two cover different things", nullable=True
        ),
    },
)
QUALITY = Table(
    "benchmark.quality",
    "benchmarks/quality.parquet",
    "run and metric",
    key=(*CASE_KEY, "metric"),
    columns={
        **RUN,
        "metric": Column("String", "see below"),
        "value": Column("Float64", "its value; of metrics of pairs the mean over prompts", nullable=True),
        **dict.fromkeys(
            ("low", "high"),
            Column(
                "Float64",
                "95 % interval of the mean by Student's t over prompts, all seeds of a prompt being one unit; null "
                "for metrics of sets and below 8 prompts",
                nullable=True,
            ),
        ),
        "n": Column("Int64", "images"),
        "n_prompts": Column("Int64", "prompts of these"),
        "small_n": Column("Boolean", "whether so few images bias the metric"),
        "reason": Column("String", "why there is no value; empty where there is one"),
    },
    parts="benchmarks/*/*/quality.parquet",
)
FLAT_FIELD = Table(
    "benchmark.flat_field",
    "benchmarks/flat_field.parquet",
    "run, step count and seed",
    key=(*CASE_KEY, "steps", "seed"),
    columns=FLAT,
)
TARGETS = Table(
    "benchmark.targets",
    "benchmarks/targets.parquet",
    "published latency",
    key=("target",),
    columns={
        "target": Column("String", "its name"),
        "model": Column("String", "the model's name in the config"),
        "source": Column("String", "hardware, scheme, where it was published"),
        "batch": Column("Int64", "images of the batch"),
        "latency_ms": Column("Float64", "published latency of the whole batch, ms"),
    },
)
QUALITY_OF_SET = "mean over the prompts of `metric`"
CULPRIT_LAYERS = Table(
    "benchmark.culprit",
    "",
    "linear layer, the most sensitive first (`ditscope culprit`: layers.parquet)",
    key=("layer",),
    columns={
        "layer": Column("String", "fully qualified name in the transformer"),
        "kept": Column("Boolean", "whether it is in the set that stays in full precision"),
        "alone": Column(
            "Float64", "relative change of the latents where it alone is quantized; null: not covered", nullable=True
        ),
        "without": Column("Float64", "quality where it is taken out of the set; null: not in it", nullable=True),
        "without_low": Column("Float64", "95 % interval of it; null below 8 prompts", nullable=True),
        "without_high": Column("Float64", "95 % interval of it; null below 8 prompts", nullable=True),
        "passes_without": Column("Boolean", "whether the set passes without it", nullable=True),
        "metric": Column("String", "`psnr_db` or `latent_error`"),
        "weight_type": Column("String", "class of its weight after quantization"),
        "stored_bytes": Column("Int64", "bytes that its weight then takes"),
        "full_bytes": Column("Int64", "bytes that it took"),
        "weight_error": Column(
            "Float64", "norm of the weight's change over its norm; null where it cannot be turned back", nullable=True
        ),
        "output_error": Column(
            "Float64", "norm of the output's change over its norm, on a recorded input", nullable=True
        ),
        "left_because": Column("String", "why the scheme does not cover it; empty where it does"),
        "finding": Column("String", "what is wrong, as `not applied: ...`; empty: nothing"),
    },
)
CULPRIT_SETS = Table(
    "benchmark.culprit.sets",
    "",
    "set of kept layers, in the order in which they were tried (`ditscope culprit`: sets.parquet)",
    key=("kept",),
    columns={
        "kept": Column("List(String)", "layers in full precision"),
        "size": Column("Int64", "how many they are"),
        "why": Column("String", "the scheme as it is; grown: the most sensitive; taken out; smaller"),
        "metric": Column("String", "`psnr_db` or `latent_error`"),
        "threshold": Column("Float64", "what the mean must reach"),
        "quality": Column("Float64", QUALITY_OF_SET),
        "quality_low": Column("Float64", "95 % interval of it; null below 8 prompts", nullable=True),
        "quality_high": Column("Float64", "95 % interval of it; null below 8 prompts", nullable=True),
        "n_prompts": Column("Int64", "prompts that were sampled: fewer than all where it was clear that it fails"),
        "passes": Column("Boolean", "whether the whole interval is on the right side"),
    },
)
