"""Every setting of every stage, as frozen dataclasses.

These classes are the single source of the config's closed schema (`ditscope.config`), of the command-line options
(`ditscope.cli`) and of the config reference in docs/. A field's help text stands beside its default.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: tuple = (),
    positive: bool = False,
    signed: bool = False,
    most: float | None = None,
    filled: bool = False,
    config_only: bool = False,
    path: bool = False,
) -> Any:
    """A documented dataclass field; `config_only` keeps it off the command line.

    `choices` are the values that are allowed, of a list its items. Numbers, also those in a list or map, are at least
    0, or -1 where `signed`, above 0 where `positive`, and at most `most` (integers 2^63 - 1). A `filled` list has at
    least one item. In a `path`, or a map of them, `~` is the home folder.
    """
    allowed = {"positive": positive, "signed": signed, "most": most, "filled": filled}
    metadata = {"help": help, "choices": choices, "config_only": config_only, "allowed": allowed, "path": path}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Registries: maps from a short name to one of these -----------------------------------------------------------------


BACKENDS = ("torch", "mlx")


@dataclass(frozen=True)
class Model:
    """A generator (text to image) or a captioner (image to text): its weights and how it is run."""

    family: str = setting(help="flux, sd3, sdxl or wan (generators); blip, blip2 or florence2 (captioners)")
    source: str = setting(help="A diffusers / transformers folder, or a hub id", path=True)
    revision: str = setting("", "Commit of a hub id; required for one, so that results stay reproducible")
    backend: str = setting(
        "torch", "What computes the transformer of flux and sd3; the rest is torch", choices=BACKENDS
    )
    dtype: str = setting("float32", "Type of weights and activations", choices=("float32", "bfloat16", "float16"))
    width: int = setting(1024, "Image width in pixels, a multiple of 16", positive=True)
    height: int = setting(1024, "Image height in pixels, a multiple of 16", positive=True)
    frames: int = setting(1, "Frames of a video, 4 n + 1 (wan); 1: an image")
    steps: int = setting(4, "Denoising steps", positive=True)
    guidance: float = setting(
        -1.0,
        "Guidance: the distilled value (FLUX.1-dev) or the classifier-free scale (the others; <= 1 is off); below 0: "
        "the pipeline's own default",
        signed=True,
    )
    call: dict[str, Any] = setting({}, "Further arguments of the pipeline's `__call__`, as `{true_cfg_scale: 4.0}`")
    use_t5: bool = setting(True, "SD3: load the T5 encoder; without it the pipeline feeds zeros")
    max_sequence_length: int = setting(
        0, "Tokens that T5 reads of a prompt; 0: the pipeline's default, at most the length that its tokenizer names"
    )
    max_new_tokens: int = setting(50, "Captioner: longest caption in tokens", positive=True)
    num_beams: int = setting(1, "Captioner: beams", positive=True)
    caption_task: str = setting("<CAPTION>", "florence2: its task, as <DETAILED_CAPTION>")
    allow_remote_code: bool = setting(False, "Let the hub repository run its own code (pin `revision`)")
    memory_mb: int = setting(
        0, "Host memory that its weights take, in MB, which its jobs ask for; 0: as its files, once they are there"
    )


SCHEME_KINDS = (
    "base", "int8-weight-only", "int8-dynamic", "fp8-weight-only", "intx-weight-only", "int8-dynamic-intx",
    "fp8-dynamic-row", "fp8-dynamic-tensor", "int4-weight-only", "sparse-2-4", "sparse-2-4-fp8", "sparse-2-4-int8",
    "mlx-weight-only", "plan",
)  # fmt: skip


def backends_of(kind: str) -> tuple[str, ...]:
    """The back ends that a kind of scheme runs on."""
    return BACKENDS if kind in ("base", "plan") else ("mlx",) if kind.startswith("mlx-") else ("torch",)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize a generator's transformer."""

    kind: str = setting(help="What is done to the linear layers", choices=SCHEME_KINDS)
    bits: int = setting(8, "Weight bits, where the scheme has a choice", positive=True, most=16)
    group_size: int = setting(0, "Weights that share one scale along the input dimension; 0: a whole row")
    plan: str = setting("", "kind: plan only: the budget whose bit plan is applied")
    skip_layers: list[str] = setting([], "Layers left in full precision, by pattern of their names, as `*norm*`")
    min_weights: int = setting(0, "Leave layers of fewer weights in full precision")
    fuse_qkv: bool = setting(False, "Join the query, key and value projections to one layer before quantizing")
    compile_vae: bool = setting(False, "Compile the VAE's decoder too, where the transformer is compiled")


@dataclass(frozen=True)
class Embedder:
    """A model that maps a text or an image of a trajectory to a vector."""

    family: str = setting(help="sentence-transformers, minilm, clip, siglip, dinov2 or random-walk (the control)")
    source: str = setting("", "Folder, hub id, or empty where the package carries its weights", path=True)
    revision: str = setting("", "Commit of a hub id")
    modality: str = setting("text", "What is embedded", choices=("text", "image"))
    prompt: str = setting("", "sentence-transformers: text put before each item, as `clustering: ` for nomic")
    dimension: int = setting(64, "random-walk only: dimension of the walk", positive=True)
    allow_remote_code: bool = setting(False, "Let the hub repository run its own code (pin `revision`)")
    memory_mb: int = setting(
        0, "Host memory that its weights take, in MB, which its jobs ask for; 0: as its files, once they are there"
    )


# Stages, in pipeline order ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Split a prompt CSV into shards of runs (prompt x seed)."""

    csv: str = setting(
        "prompts/demo.csv", "CSV with `prompt` and optional `prompt_id, seed, family, negative_prompt`", path=True
    )
    shard_size: int = setting(
        64, "Prompts in a shard; appending prompts touches only the last shard", positive=True, config_only=True
    )
    max_shards: int = setting(
        10_000, "Refuse a study of more shards, which would take minutes to plan", config_only=True
    )
    seeds: list[int] = setting(
        [0],
        "Seeds of each prompt, 0 to 2^63 - 1; a `seed` in the CSV wins; -1 derives a recorded one",
        signed=True,
        filled=True,
    )
    num_seeds: int = setting(0, "Where above 0: seeds 0 to N - 1 in place of `seeds`", most=1_000_000)
    limit: int = setting(0, "Use only the first N prompts; 0: all")

    def all_seeds(self) -> list[int]:
        """The seeds of a prompt that names none itself."""
        return list(range(self.num_seeds)) if self.num_seeds else self.seeds


@dataclass(frozen=True)
class Generate:
    """Sample one image for each run of a prompt shard."""

    models: list[str] = setting([], "Models to generate with", config_only=True)
    slice_size: int = setting(
        16, "Images sampled together; also the unit that an interrupted job resumes at", positive=True
    )


@dataclass(frozen=True)
class CaptureSet:
    """Record the output of every block at every denoising step, and decode it."""

    generations: int = setting(2, "How many runs (the first of the prompt list) to capture; 0: all")
    blocks: str = setting("*", "Blocks by pattern, as `double:0,9,-1,single:*`; -1 is the last of its type")
    steps: str = setting("*", "Steps by pattern, as `0,2,-1` or `0-3`")
    decode: list[str] = setting(
        ["x0"], "Decodes to draw: x0 (clean estimate) and / or x_prev (next noisy state)", choices=("x0", "x_prev")
    )
    should_decode_intermediates: bool = setting(True, "Decode each block's output to an image")
    add_sampling_metadata: bool = setting(True, "Write the prompt into the image's EXIF data")
    image_format: str = setting("jpg", "File type of the generated image", choices=("jpg", "png"))
    format: str = setting("safetensors", "How captures are stored", choices=("safetensors", "pt"))
    store: str = setting(
        "tensors", "Keep whole tensors, or only their pooled statistics", choices=("tensors", "statistics")
    )
    max_bytes: int = setting(2_000_000_000, "Refuse a capture set that would take more bytes than this", positive=True)
    offload: bool = setting(False, "Keep the text encoders in host memory")
    multi_gpu: bool = setting(False, "Give each component a GPU of its own")


@dataclass(frozen=True)
class Capture:
    """Which models are captured, and how."""

    models: list[str] = setting([], "Models to capture", config_only=True)
    sets: dict[str, CaptureSet] = setting(
        {}, "Capture sets by name; each model is captured under each", config_only=True
    )


@dataclass(frozen=True)
class Blocks:
    """Describe what each block of captured generations does."""

    psnr_db: float = setting(20.0, "A clean estimate shows the picture from this PSNR to it on")
    feature_distance: float = setting(0.1, "... and from this cosine distance of image features on")
    features: str = setting("", "Embedder of images that the features are made with; empty: PSNR only")


@dataclass(frozen=True)
class Ablate:
    """Leave out one block at a time, or blur what it adds, and measure what becomes of the picture."""

    models: list[str] = setting([], "Models to ablate", config_only=True)
    generations: int = setting(4, "How many runs (the first of the prompt list) are sampled for each block; 0: all")
    blocks: str = setting("*", "Blocks by pattern, as `double:0-5,single:*`")
    steps: str = setting("*", "Steps at which a block is ablated, by pattern, as `0,2,-1` or `0-3`")
    kinds: list[str] = setting(
        ["skip", "mean"], "skip: the block does nothing; mean: it adds its mean over tokens to each token"
    )
    features: str = setting("", "Embedder of images for a feature distance; empty: pixels and latents only")
    batch_size: int = setting(8, "Images sampled together", positive=True)


@dataclass(frozen=True)
class Calibrate:
    """Record the transformer's inputs along sampling trajectories, for calibration and sensitivity."""

    models: list[str] = setting([], "Models to calibrate", config_only=True)
    num_images: int = setting(
        10, "Images to sample, one a prompt; the prompts repeat with new seeds where there are fewer", positive=True
    )
    num_steps: int = setting(50, "Denoising steps of each image; 0: the model's own")
    cfg_weight: float = setting(7.5, "Classifier-free guidance, <= 1 is off; guidance-distilled models keep their own")
    seed: int = setting(0, "Seed of the first image; image i uses seed + i")
    shard_size: int = setting(8, "Images of one job", positive=True, config_only=True)
    slice_size: int = setting(
        4, "Images sampled together; also the unit that an interrupted job resumes at", positive=True
    )
    format: str = setting(
        "samples", "One NPZ a step, or packed: one an image, conditioning once", choices=("samples", "packed")
    )
    statistics: str = setting("*", "Steps whose activations are measured by channel, as `0,2,-1`; empty: none")


@dataclass(frozen=True)
class Sensitivity:
    """Quantize one layer at a time and measure the change of the predicted velocity."""

    models: list[str] = setting([], "Models to analyse", config_only=True)
    calibrations: dict[str, str] = setting(
        {},
        "Folders of calibration sets of your own by model, used instead of the calibrate stage's",
        config_only=True,
        path=True,
    )
    bits: list[int] = setting([2, 3, 4, 6, 8], "Bit widths", positive=True, most=16, filled=True)
    quantizer: str = setting("group", "Weight quantizer", choices=("palettize", "group"))
    group_size: int = setting(32, "Weights that share one scale and zero point (quantizer: group)")
    buckets: str = setting(
        "thirds", "Timestep buckets: thirds of the steps, or sigma 0.7 / 0.3", choices=("thirds", "sigma")
    )
    max_images: int = setting(4, "Calibration images used; 0: all")
    step_stride: int = setting(1, "Use every n-th step", positive=True)
    batch_size: int = setting(
        16, "Samples x bit widths of one forward pass (twice the rows under guidance)", positive=True
    )
    layer_groups: int = setting(
        2, "Jobs that the layers are spread over (mode: exact)", positive=True, config_only=True
    )
    mode: str = setting(
        "exact",
        "exact: every layer on every sample; fast: from gradients of random probes",
        choices=("exact", "fast"),
    )
    probes: int = setting(
        32, "Least number of random probes in each bucket (fast mode, effect on images)", positive=True
    )
    gradient_batch: int = setting(
        0, "Samples of one backward pass (fast mode, effect on images); 0: as many as memory takes, at most 8"
    )


@dataclass(frozen=True)
class Budget:
    """How large a bit plan may be: exactly one of these, the others 0."""

    mean_bits: float = setting(0.0, "Mean bits per quantized weight, scales and zero points included")
    bytes: int = setting(0, "Nominal bytes of the quantized layers")
    uniform_bits: int = setting(0, "As large as every layer at this bit width", most=16)


@dataclass(frozen=True)
class Plan:
    """Choose bits for every layer by an integer program under a size budget."""

    budgets: dict[str, Budget] = setting({}, "Budgets by name", config_only=True)
    metric: str = setting(
        "auto",
        "Sensitivity that is summed; auto: image_rms where it was measured, else relative_l2",
        choices=("auto", "image_rms", "relative_l2", "sqnr_db", "psnr_db"),
    )
    min_bits: int = setting(2, "Fewest bits a layer may get", positive=True, most=16)
    floors: dict[str, int] = setting({}, "Fewest bits by kind of layer, as {modulation: 4}", positive=True, most=16)


# The last two compile the whole transformer in a mode of torch.compile: CUDA graphs; these and the fastest kernels.
COMPILE_STATES = ("eager", "regional", "full", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Target:
    """A published latency, drawn as a line beside the measured ones; nothing is asserted of it."""

    model: str = setting(help="The model that it was measured on")
    latency_ms: float = setting(help="Milliseconds a batch", positive=True)
    batch: int = setting(1, "Images sampled together", positive=True)
    source: str = setting("", "Hardware, scheme and where it was published")


@dataclass(frozen=True)
class Benchmark:
    """Time, weigh and judge a model under one quantization scheme."""

    models: list[str] = setting([], "Models to benchmark", config_only=True)
    schemes: list[str] = setting([], "Schemes, by name in `schemes`", config_only=True)
    compile: list[str] = setting(
        ["eager"],
        "torch.compile states: eager, regional (block by block), full, and full in a mode: reduce-overhead (CUDA "
        "graphs), max-autotune (CUDA graphs, kernels chosen by timing)",
        choices=COMPILE_STATES,
        config_only=True,
    )
    compiled: list[str] = setting(
        [], "Schemes that run in the compiled states as well; empty: all of them", config_only=True
    )
    batches: list[int] = setting([1], "Batch sizes that are timed", positive=True, filled=True)
    repeats: int = setting(5, "Timed runs of each batch size", positive=True)
    warmup: int = setting(2, "Untimed runs before them")
    until_quiet: int = setting(0, "Times that a noisy measurement is repeated; the quietest one is kept")
    num_images: int = setting(16, "Images generated for the quality metrics", positive=True)
    quality_batch: int = setting(
        0, "Images sampled together for the quality metrics, under every scheme; 0: the smallest of `batches`"
    )
    num_steps: int = setting(0, "Denoising steps; 0: the model's own")
    cfg_scale: float = setting(-1.0, "Guidance; -1: the model's own", signed=True)
    skip_metrics: bool = setting(False, "Leave image quality out: latency and memory only")
    hardware: str = setting(
        "auto", "Id under which results are filed; auto: named after this host's accelerator or CPU"
    )
    features: str = setting("shapes-clip", "Embedder whose image features FID, KID and the cosine are computed on")
    cosines: list[str] = setting([], "More embedders whose image cosine is measured, as metric `cosine_NAME`")
    classes: list[str] = setting(
        [], "Inception Score: its zero-shot classes as texts, `a {red,blue} {ring,star}` for four; empty: no score"
    )
    kid_subset_size: int = setting(0, "Images of one KID subset; 0: 1,000, or all where there are fewer")
    checkpoints: list[str] = setting(
        [], "Schemes whose quantized weights are saved as well, in checkpoints/<model>/", config_only=True
    )
    targets: dict[str, Target] = setting({}, "Published latencies to draw beside the measured ones", config_only=True)
    quality_bound: float = setting(0.05, "Largest quality loss that counts as good", config_only=True)
    flat_field_steps: list[int] = setting(
        [], "Step counts of the noise-growth curve on a flat field; empty: no such curve", positive=True
    )
    flat_field_prompt: str = setting("a plain gray background", "What is asked for there")
    flat_field_seeds: int = setting(4, "Images at each of these step counts", positive=True)


@dataclass(frozen=True)
class Trajectories:
    """Feed text to a generator, its image to a captioner, the caption back, and so on."""

    networks: list[str] = setting([], "Networks, by name in `networks`", config_only=True)
    prompts: int = setting(
        4, "How many prompts (the first of the list) start a trajectory, one for each seed; 0: all", config_only=True
    )
    max_length: int = setting(8, "Invocations of a trajectory, text and image together", positive=True, most=2**31 - 1)
    shard_size: int = setting(
        16, "Runs (prompt x seed) of one job, which advance together", positive=True, config_only=True
    )
    batch_size: int = setting(
        16, "Invocations computed together; an interrupted job resumes at a whole round", positive=True
    )


@dataclass(frozen=True)
class Embed:
    """Embed every text and image of the trajectories."""

    embedders: list[str] = setting([], "Embedders, by name in `embedders`", config_only=True)
    batch_size: int = setting(32, "Items embedded together", positive=True)


@dataclass(frozen=True)
class Drift:
    """Distances of each state to the trajectory's first prompt."""

    shuffles: int = setting(1, "Shuffled-order controls of each trajectory")


@dataclass(frozen=True)
class Cluster:
    """Cluster the embedded states (HDBSCAN) and describe how trajectories move between clusters."""

    min_cluster_size: int = setting(0, "Smallest cluster; 0: max(2, n / 1000) for n states of an embedder")
    min_samples: int = setting(0, "Neighbours that make a dense place; 0: as min_cluster_size")
    epsilon: float = setting(0.4, "Clusters closer than this Euclidean distance of unit vectors are not split")
    allow_single_cluster: bool = setting(True, "Let all states be one cluster")
    max_points: int = setting(20_000, "Cluster a fixed sample of so many states and label the rest by it; 0: all")
    drop_outliers: bool = setting(False, "Glue run lengths across outliers instead of breaking at them")


@dataclass(frozen=True)
class Topology:
    """Persistent homology of each trajectory's point cloud."""

    max_dimension: int = setting(2, "Highest homology dimension", choices=(0, 1, 2))
    max_pairs: int = setting(
        200, "Most pairs of runs compared in each relation, pair of networks and pair of embedders; 0: all"
    )


@dataclass(frozen=True)
class Refine:
    """Train a one-step refiner of interpolated latents with the drifting loss."""

    models: list[str] = setting([], "Models whose latents are refined", config_only=True)
    seed: int = setting(0, "Seed of codebook, corruption and training", most=2**32 - 1)
    # corruption
    patch: int = setting(2, "Side of a patch of latents (of one frame), which is one token", positive=True)
    keys: str = setting(
        "patches", "What is kept as a whole: patches, or the frames of a video", choices=("patches", "frames")
    )
    levels: int = setting(4, "Nested corruption levels; the last keeps the fewest patches or frames", positive=True)
    min_anchors: int = setting(4, "Known patches or frames (anchors) at the hardest level", positive=True)
    schedule: str = setting("geometric", "How anchors grow over levels", choices=("linear", "doubling", "geometric"))
    interpolation: str = setting(
        "laplacian", "How missing patches or frames are filled", choices=("linear", "idw", "laplacian")
    )
    sigma_feature: float = setting(
        0.2, "laplacian: feature difference, in standard deviations, that counts as an edge", positive=True
    )
    ridge: float = setting(
        1e-4, "laplacian: pull towards the inverse-distance fill, against bad conditioning", positive=True
    )
    noise: str = setting(
        "none", "Noise on filled patches: even, or growing with distance", choices=("none", "gauss", "dist")
    )
    noise_scale: float = setting(0.1, "Standard deviation of that noise, in standard deviations of the latents")
    # pseudo-classes
    codes: int = setting(8, "Pseudo-classes of the codebook", positive=True)
    keyframe_weight: float = setting(1.0, "Weight of the anchor patches beside the prompt in the condition embedding")
    # latent masked autoencoder
    mae_steps: int = setting(200, "Training steps of the latent masked autoencoder", positive=True)
    mae_batch: int = setting(16, "Latents of one of its steps", positive=True)
    mae_width: int = setting(24, "Channels of its finest scale; each coarser scale doubles them", positive=True)
    mae_scales: int = setting(3, "Scales, each half as fine as the one before", positive=True)
    mask_ratio: float = setting(0.5, "Share of patches that it must fill in", most=1)
    # refiner
    steps: int = setting(200, "Training steps of the refiner", positive=True)
    width: int = setting(96, "Width of the refiner", positive=True)
    depth: int = setting(3, "Transformer blocks of the refiner", positive=True)
    heads: int = setting(4, "Attention heads of the refiner", positive=True)
    clamp_anchors: bool = setting(False, "Put the known patches back into the refiner's output")
    # drifting loss
    features: list[str] = setting(
        ["locations", "global", "patches", "input_rms"],
        "Feature sets of the loss: also vanilla (raw latents, no encoder)",
    )
    radii: list[float] = setting([0.02, 0.05, 0.2], "Kernel radii R of the drifting field", positive=True, filled=True)
    weighting: str = setting(
        "official", "Where the weight of unconditional negatives enters", choices=("official", "log")
    )
    classes_per_step: int = setting(4, "Pseudo-classes of a training batch", positive=True)
    generated_per_class: int = setting(8, "Refined samples of each class in a batch", positive=True)
    positives: int = setting(16, "Real samples of the class in a batch", positive=True)
    unconditional: int = setting(8, "Real samples of any class in a batch, negatives under guidance")
    alpha_power: float = setting(3.0, "Guidance alpha on [1, 4] has density proportional to alpha^-power")
    alpha_atom: float = setting(0.5, "Probability that alpha is 1, no guidance", most=1)
    # optimization
    optimizer: str = setting("adamw", "Optimizer of the matrices inside blocks", choices=("adamw", "muon"))
    learning_rate: float = setting(4e-4, "Peak learning rate of the refiner", positive=True)
    mae_learning_rate: float = setting(2e-3, "Peak learning rate of the autoencoder", positive=True)
    grad_accum: int = setting(1, "Batches of one optimizer step", positive=True)
    ema: float = setting(0.999, "Decay of the moving average of the weights, which is what is kept", most=1)
    checkpoint_every: int = setting(
        50, "Steps between checkpoints that an interrupted training resumes from", positive=True
    )
    # diagnostics
    top_k: int = setting(5, "Nearest neighbours looked at in the retrieval diagnostics", positive=True)
    gallery: int = setting(4, "Samples drawn at each corruption level")


@dataclass(frozen=True)
class Video:
    """Draw captures, trajectories and refinements as moving pictures."""

    output_format: str = setting("gif", "Container", choices=("gif", "mp4"))
    fps: float = setting(2.0, "Frames per second", positive=True)
    block_type: str = setting("", "Only this type of block (double, single, joint); empty or None: all")
    max_blocks: int = setting(0, "Most blocks of a step, in network order; 0: all")
    decode: str = setting("x0", "Which decode of a capture is shown", choices=("x0", "x_prev"))
    max_generations: int = setting(4, "Most generations side by side in the video of a capture set", positive=True)
    font_size: int = setting(24, "Size of the overlay's text in pixels", positive=True)
    tile_size: int = setting(256, "Side of a tile of the trajectory mosaic in pixels", positive=True)
    prompt_order: list[str] = setting([], "Prompt ids in the order of the mosaic's rows; empty: as in the CSV")


@dataclass(frozen=True)
class Publish:
    """Draw the figures and write the tables of the report."""

    formats: list[str] = setting(
        ["svg", "png", "pdf"], "File types of each figure", choices=("svg", "png", "pdf"), filled=True
    )
    dpi: int = setting(160, "Resolution of PNG figures", positive=True)


@dataclass(frozen=True)
class Config:
    """The whole study."""

    experiment: str = setting("demo", "Name of the study: its results are in results/<experiment>/")
    backends: list[str] = setting(
        ["torch"],
        "Back ends that `all` asks for: models on others are left out, until `snakemake mlx` makes them",
        choices=BACKENDS,
    )
    staleness: str = setting(
        "code", "What makes results stale: the library's code, or only a new release", choices=("code", "release")
    )
    warm_starts: bool = setting(
        True, "Jobs that load models start from one process that has imported their libraries; only where jobs run locally"
    )
    models: dict[str, Model] = setting({}, "Generators and captioners by name")
    schemes: dict[str, Scheme] = setting({}, "Quantization schemes by name")
    embedders: dict[str, Embedder] = setting({}, "Embedders by name")
    networks: dict[str, list[str]] = setting(
        {}, "Cycles of models by name; an entry may be `model:scheme` or `model:budget`"
    )
    prompts: Prompts = setting(Prompts(), "")
    generate: Generate = setting(Generate(), "")
    capture: Capture = setting(Capture(), "")
    blocks: Blocks = setting(Blocks(), "")
    ablate: Ablate = setting(Ablate(), "")
    calibrate: Calibrate = setting(Calibrate(), "")
    sensitivity: Sensitivity = setting(Sensitivity(), "")
    plan: Plan = setting(Plan(), "")
    benchmark: Benchmark = setting(Benchmark(), "")
    trajectories: Trajectories = setting(Trajectories(), "")
    embed: Embed = setting(Embed(), "")
    drift: Drift = setting(Drift(), "")
    cluster: Cluster = setting(Cluster(), "")
    topology: Topology = setting(Topology(), "")
    refine: Refine = setting(Refine(), "")
    video: Video = setting(Video(), "")
    publish: Publish = setting(Publish(), "")

    def selected_models(self) -> list[str]:
        """Names of the models that some stage uses, in the registry's order."""
        names = {name for stage in self.stages().values() for name in getattr(stage, "models", [])}
        names |= {entry.partition(":")[0] for network in self.trajectories.networks for entry in self.networks[network]}
        return [name for name in self.models if name in names]

    def stages(self) -> dict[str, Any]:
        """The settings of each stage by the stage's name, in pipeline order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in STAGES}


STAGES = (
    "prompts", "generate", "capture", "blocks", "ablate", "calibrate", "sensitivity", "plan", "benchmark",
    "trajectories", "embed", "drift", "cluster", "topology", "refine", "video", "publish",
)  # fmt: skip
