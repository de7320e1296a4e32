"""Tables of single runs of the benchmark: apart, so that an edit of how images are judged makes no timing stale."""

from ditscope.core.schema import Column, Table

PARTS = ("encode", "denoise", "decode")
MEMORY = ("rss_bytes", "allocated_bytes", "reserved_bytes", "mlx_bytes")
HOST = {
    "device": "String", "threads": "Int64", "cpu": "String", "cores": "Int64", "host_memory_bytes": "Int64",
    "gpu": "String", "gpus": "Int64", "driver": "String", "platform": "String", "python": "String",
    "packages": "String",
}  # fmt: skip
RUN = {
    "model": Column("String", "the model's name in the config"),
    "hardware": Column("String", "name under which the host's results are kept apart"),
    "scheme": Column("String", "the scheme's name in the config"),
    "kind": Column(
        "String",
        "what it does (`+fuse_qkv`, `+text_encoders`, `+compile_vae`, `+` its step cache where it has that too)",
    ),
    "compile": Column("String", "compile state: `eager`, `regional`, `full`, `reduce-overhead` or `max-autotune`"),
}
IDENTITY = tuple(RUN)
CASE_KEY = ("model", "hardware", "scheme", "compile")
MADE = {
    "dtype": Column("String", "type of weights that are not quantized, and of activations"),
    "steps": Column("Int64", "denoising steps of the images"),
    "guidance": Column("Float64", "guidance scale of the images"),
    **dict.fromkeys(("width", "height"), Column("Int64", "pixels of the images")),
    "quantized_layers": Column("Int64", "linear layers that the scheme quantizes"),
    "skipped_layers": Column("Int64", "linear layers that its `skip_layers` and `min_weights` leave"),
    "indivisible_layers": Column("Int64", "linear layers that it had to leave"),
    "indivisible": Column("String", "names of these, joined by commas"),
    "mean_bits": Column(
        "Float64", "bits of a quantized weight, scales and zero points included; null for the base", nullable=True
    ),
    "nominal_bytes": Column(
        "Int64",
        "what the transformer stands for: packed weights, 16-bit scales, zero points; on MLX packed weights with a "
        "scale and a bias per group in the type of the weights",
    ),
    "simulated": Column(
        "Boolean",
        "stored or computed in more bits than it says, as torchao keeps integers of fewer than 8 bits in bytes: "
        "compare such rows by `nominal_bytes` and quality only",
    ),
    "stored_bytes": Column(
        "Int64", "bytes that its parameters and buffers take in memory; null where it did not run", nullable=True
    ),
    "encoder_nominal_bytes": Column(
        "Int64",
        "what the text encoders stand for, as `nominal_bytes`; a scheme with `text_encoders` makes it smaller",
        optional=True,
    ),
    "encoder_stored_bytes": Column(
        "Int64", "bytes that the text encoders take in memory; null where it did not run", nullable=True, optional=True
    ),
    "images": Column("Int64", "images made for the metrics"),
    "quality_batch": Column("Int64", "images that were sampled together for the metrics"),
    "floor_batch": Column("Int64", "the same for the noise floor (the eager base alone)", nullable=True),
    "images_reason": Column("String", "why there are no images where the timings ran; empty otherwise"),
    "images_sha256": Column("String", "digest of their PNG files; null without images", nullable=True),
    "reason": Column("String", "why there is no result; empty where there is one"),
}
MEASURED = {
    "batch": Column("Int64", "images sampled together"),
    "repeats": Column("Int64", "timed runs", nullable=True),
    "latency_median_ms": Column(
        "Float64", "prompts to pictures of the whole batch, after loading and warm-up: median, ms", nullable=True
    ),
    "latency_p10_ms": Column("Float64", "its 10 % quantile, ms", nullable=True),
    "latency_p90_ms": Column("Float64", "its 90 % quantile, ms", nullable=True),
    "latency_per_image_ms": Column("Float64", "the median over `batch`, ms", nullable=True),
    "latency_mean_ms": Column("Float64", "mean of the timed runs, ms", nullable=True),
    **dict.fromkeys(
        ("latency_mean_low_ms", "latency_mean_high_ms"),
        Column(
            "Float64",
            "its 95 % interval by Student's t over the timed runs of this process, ms; none below 8 runs",
            nullable=True,
        ),
    ),
    "encode_median_ms": Column("Float64", "median of the text encoders, ms", nullable=True),
    "denoise_median_ms": Column("Float64", "median of all steps of the transformer, ms", nullable=True),
    "decode_median_ms": Column("Float64", "median of the VAE, ms", nullable=True),
    "latencies_ms": Column("List(Float64)", "every timed run, in order, ms", nullable=True),
    "latency_cv": Column("Float64", "standard deviation of the timed runs over their mean", nullable=True),
    "latency_relative_iqr": Column("Float64", "their interquartile range over their median", nullable=True),
    "others_share": Column(
        "Float64",
        "share of the time of the processors that the process may use that others took while it was timed: (busy - "
        "own) / elapsed; own is the process and its children",
        nullable=True,
    ),
    "load_reason": Column(
        "String",
        "why there is no such share (the system does not tell, or under 0.5 s was timed); empty where there is one",
        nullable=True,
    ),
    **dict.fromkeys(
        ("cpu_mhz_low", "cpu_mhz_high"),
        Column("Float64", "the processors' frequency before and after, MHz, where it can be read", nullable=True),
    ),
    **dict.fromkeys(
        ("gpu_mhz_low", "gpu_mhz_high"),
        Column("Float64", "the GPU's clock during the timed runs, MHz, by nvidia-smi every 200 ms", nullable=True),
    ),
    "gpu_throttling": Column(
        "String",
        "its reasons for lower clocks in that time; empty where there is none, null without nvidia-smi",
        nullable=True,
    ),
    "verdict": Column("String", "`quiet` or `noisy` (below)", nullable=True),
    "noisy_because": Column("String", "what made it noisy", nullable=True),
    "measurements": Column(
        "Int64",
        "how often it was measured until the verdict (`until_quiet`); the quietest is kept",
        nullable=True,
    ),
    "warmup_seconds": Column("Float64", "the warm-up runs, compilation included, s", nullable=True),
    **dict.fromkeys(
        (f"steady_peak_{kind}" for kind in MEMORY),
        Column(
            "Int64",
            "peak bytes of the timed runs only: resident, CUDA allocated, CUDA reserved, MLX's; after the warm-up "
            "CUDA's cache is emptied and counters are reset",
            nullable=True,
        ),
    ),
    "steady_peak_bytes": Column(
        "Int64", "the one of these that ratios and figures take: CUDA's allocated, MLX's, else resident", nullable=True
    ),
    "peak_covers": Column(
        "String",
        "what it covers: `pipeline` (CUDA), `transformer` (MLX), `process`, or `process since its start` where "
        "resident peaks cannot be reset",
        nullable=True,
    ),
    "reason": Column("String", "why there is no result; empty where there is one"),
    "load_seconds": Column("Float64", "reading the model, s"),
    "prepare_seconds": Column("Float64", "quantizing it, s"),
    **dict.fromkeys(
        (f"load_peak_{kind}" for kind in MEMORY),
        Column(
            "Int64",
            "peak bytes until the model is loaded and quantized: resident, CUDA allocated, CUDA reserved, MLX's "
            "allocator (the transformer's weights and activations); null without it",
            nullable=True,
        ),
    ),
    **{name: Column(kind, "what it was measured on") for name, kind in HOST.items()},
}
FLAT = {
    **RUN,
    "steps": Column("Int64", "denoising steps that the picture was sampled with"),
    "seed": Column("Int64", "its seed"),
    "noise": Column(
        "Float64",
        "standard deviation of the pixel noise in 1/255: image less its Gaussian blur (sigma 2 pixels), by the median "
        "absolute deviation, scaled so that white noise gives its own",
    ),
}

OF_RUN = Table(
    "benchmark.run",
    "benchmarks/*/*/*-*.parquet",
    "run: a single one, without ratios and quality",
    key=CASE_KEY,
    joined="benchmark",
    columns=RUN | MADE,
)
RUN_TIMING = Table(
    "benchmark.run.timing",
    "benchmarks/*/*/*-*.timing.parquet",
    "batch size of a single run",
    key=(*CASE_KEY, "batch"),
    joined="benchmark.timing",
    columns=RUN | MEASURED,
)
RUN_FLAT = Table(
    "benchmark.run.flat",
    "benchmarks/*/*/*-*.flat.parquet",
    "step count and seed of a single run",
    key=(*CASE_KEY, "steps", "seed"),
    joined="benchmark.flat_field",
    columns=FLAT,
)
