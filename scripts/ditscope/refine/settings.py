"""Settings of the stage `refine`, and of each refiner that the config's registry `refiners` names."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ditscope.core.errors import InputError
from ditscope.core.settings import decode, setting
from ditscope.refine.data_settings import Source
from ditscope.refine.files import header

INTERPOLATIONS = {
    name: f"ditscope.refine.interpolations.{name}"
    for name in ("linear", "smoothed", "idw", "laplacian", "flow", "sinkhorn")
}

# What the drifting loss looks through, each with the module that loads it.
ENCODERS = {name: f"ditscope.refine.encoders.{name}" for name in ("latent_mae", "resnet", "efficientnet_lite0", "clip")}


# What weights are of: a refiner that goes on from a file has these as the file has them.
KEPT = (
    "patch", "keys", "levels", "min_keys", "schedule", "endpoints", "interpolation", "laplacian_space", "neighbours",
    "sigma_feature", "sigma_space", "lambda_reg", "noise", "noise_scale", "key_noise", "uncertainty", "codes",
    "fallback_codes", "keyframe_weight", "quantizer", "width", "depth", "heads", "clamp_keys", "class_dropout",
    "refinement",
)  # fmt: skip
# The settings that a codebook depends on.
CODEBOOK = (
    "seed", "patch", "keys", "min_keys", "codes", "fallback_codes", "keyframe_weight", "quantizer", "vq_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Refine:
    """Train a one-step refiner of interpolated latents."""

    refiners: list[str] = setting([], "Refiners to train, by name in `refiners`", config_only=True)
    seed: int = setting(0, "Seed of codebook, corruption and training", most=2**32 - 1)
    # corruption
    patch: int = setting(2, "Side of a patch of latents (of one frame), which is one token", positive=True)
    keys: str = setting(
        "patches", "What is kept as a whole: patches, or the frames of a video", choices=("patches", "frames")
    )
    levels: int = setting(4, "Nested corruption levels; the last keeps the fewest patches or frames", positive=True)
    min_keys: int = setting(4, "Known patches or frames (keys) at the hardest level", positive=True)
    schedule: str = setting("geometric", "How keys grow over levels", choices=("linear", "doubling", "geometric"))
    endpoints: bool = setting(False, "The first and last frame, or step of a path, are keys at every level")
    key_replacement: float = setting(
        0.0,
        "Scheduled sampling: probability that a key shows another sample of its pseudo-class (0: storyboard)",
        most=1,
    )
    interpolation: str = setting(
        "laplacian",
        "How missing patches or frames are filled: one of these, or a module of your own; the last two need frames",
        choices=tuple(INTERPOLATIONS),
        importable=True,
    )
    laplacian_space: str = setting(
        "pixel",
        "laplacian: nodes of the graph are patches (feature) or cells of the latent (pixel)",
        choices=("feature", "pixel"),
    )
    neighbours: int = setting(4, "laplacian: neighbours in a picture, 8 with diagonal ones", choices=(4, 8))
    sigma_feature: float = setting(
        2.0, "laplacian: feature difference, in standard deviations, that counts as an edge", positive=True
    )
    sigma_space: float = setting(
        1.0,
        "Width in nodes of what distance weighs: of neighbours (laplacian), of all (smoothed)",
        positive=True,
    )
    lambda_reg: float = setting(1e-4, "laplacian: pull towards the inverse-distance fill", positive=True)
    noise: str = setting(
        "none", "Noise on filled patches: even, or growing with distance", choices=("none", "gauss", "dist")
    )
    noise_scale: float = setting(0.1, "Standard deviation of that noise, in standard deviations of the latents")
    key_noise: float = setting(0.0, "gauss: share of that noise that keys get which are not endpoints", most=1)
    uncertainty: str = setting(
        "none",
        "1 - confidence of the interpolation as amplitude of the noise: not, instead, or added",
        choices=("none", "replace", "add"),
    )
    # pseudo-classes
    codes: int = setting(8, "Pseudo-classes of the codebook", positive=True)
    fallback_codes: int = setting(
        0,
        "Pseudo-classes instead of `codes` where more than a quarter of these have one training sample or none, or one "
        "has more than half of the samples (512 for 1024, say); 0: never",
    )
    quantizer: str = setting(
        "kmeans",
        "How pseudo-classes come about: mini-batch k-means, or codes that text and keys are best rebuilt from (vq)",
        choices=("kmeans", "vq"),
    )
    vq_steps: int = setting(1000, "vq: training steps of its encoder and codes", positive=True)
    keyframe_weight: float = setting(1.0, "Weight of the key patches beside the prompt in the condition embedding")
    # encoder
    encoder: str = setting(
        "latent_mae",
        "What the drifting loss looks through: latent_mae (trained here on the values themselves, as for diagnostics), "
        "resnet, efficientnet_lite0 or clip (of decoded pictures), or a module of your own",
        choices=tuple(ENCODERS),
        importable=True,
    )
    encoder_weights: str = setting(
        "",
        "Its weights: a file (resnet, efficientnet_lite0, a latent_mae of another refiner) or a folder (clip); empty: "
        "train the latent_mae, the package's efficientnet_lite0, the shapes world's clip",
        path=True,
    )
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
    clamp_keys: bool = setting(True, "Keep keys as they are, but those that were replaced; false: refine them too")
    text_dropout: float = setting(0.1, "Share of the samples that are trained on without their text", most=1)
    class_dropout: float = setting(0.1, "Share of the samples that are trained on without their pseudo-class", most=1)
    refinement: str = setting(
        "one-step",
        "How the trained refiner is used: at once, or from coarse to fine over the levels",
        choices=("one-step", "coarse-to-fine"),
    )
    # objective
    objective: str = setting(
        "paired",
        "What is trained on: each sample's own clean latent, distributions of features, or both",
        choices=("paired", "drifting", "sum"),
    )
    drifting_weight: float = setting(
        0.1, "sum: weight of the mean drifting loss of a feature beside the paired loss", positive=True
    )
    # drifting loss
    features: list[str] = setting(
        ["locations", "global", "patches", "input_rms"],
        "Feature sets of the loss: also vanilla (raw latents, no encoder)",
    )
    most_locations: int = setting(0, "Most locations of a feature that are compared, evenly spaced; 0: all")
    radii: list[float] = setting([0.02, 0.05, 0.2], "Kernel radii R of the drifting field", positive=True, filled=True)
    weighting: str = setting(
        "official", "Where the weight of unconditional negatives enters", choices=("official", "log")
    )
    softmax: str = setting(
        "both",
        "Softmaxes of the kernel: over targets and over refined samples, over targets only, or none",
        choices=("both", "targets", "none"),
    )
    shared_scales: list[str] = setting(
        ["classes", "locations"],
        "What shares one scale of distances and one strength of the field: the classes of a batch (of all processes), "
        "the locations of a feature",
        choices=("classes", "locations"),
    )
    vanilla_weight: float = setting(1.0, "Weight of the feature set `vanilla` beside the others", positive=True)
    compile_loss: bool = setting(False, "Compile the field of the loss; needs a C++ compiler, and some minutes")
    classes_per_step: int = setting(4, "Pseudo-classes of a training batch", positive=True)
    generated_per_class: int = setting(8, "Refined samples of each class in a batch", positive=True)
    positives: int = setting(16, "Real samples of the class in a batch", positive=True)
    unconditional: int = setting(8, "Real samples of any class in a batch, negatives under guidance")
    alpha_power: float = setting(3.0, "Guidance alpha on [1, 4] has density proportional to alpha^-power")
    alpha_atom: float = setting(0.5, "Probability that alpha is 1, no guidance", most=1)
    alpha_choices: list[float] = setting(
        [], "Guidance alpha is one of these instead, each as often as the others", positive=True
    )
    # optimization
    optimizer: str = setting(
        "adamw", "Optimizer of the matrices and convolutions inside blocks, of both networks", choices=("adamw", "muon")
    )
    learning_rate: float = setting(4e-4, "Peak learning rate of the refiner", positive=True)
    mae_learning_rate: float = setting(2e-3, "Peak learning rate of the autoencoder", positive=True)
    grad_accum: int = setting(1, "Batches of one optimizer step", positive=True)
    decay: float = setting(0.0, "Share of the steps, at their end, in which the learning rate falls to 0", most=1)
    ema: float = setting(0.999, "Decay of the moving average of the weights, which is what is kept", most=1)
    dtype: str = setting("float32", "bfloat16 runs the networks under autocast", choices=("float32", "bfloat16"))
    stored_dtype: str = setting("float32", "Type of the weights in the refiner's file", choices=("float32", "bfloat16"))
    workers: int = setting(0, "Processes that read and corrupt batches ahead of the training step", most=64)
    log_every: int = setting(
        1, "Steps between rows of the training table, which hold the numbers of that step", positive=True
    )
    checkpoint_every: int = setting(
        50, "Steps between checkpoints that an interrupted training resumes from", positive=True
    )
    # diagnostics
    top_k: int = setting(5, "Nearest neighbours looked at in the retrieval diagnostics", positive=True)
    evaluated: int = setting(256, "Held-out samples that the refiner is judged on, evenly over all", positive=True)
    judge: str = setting(
        "", "Embedder of images for feature distance and KID; empty: the pooled features of the encoder"
    )
    generator: str = setting(
        "", "Model whose pictures of the prompts, with the keys pasted in, are a control; empty: without"
    )
    gallery: int = setting(4, "Held-out samples drawn at each corruption level")


@dataclass(frozen=True)
class Storyboard:
    """What a refiner is given of pictures that a model makes of prompts: key frames of a film, or patches of each."""

    model: str = setting("", "Model whose pictures these are, by name in `models`")
    prompts: list[str] = setting([], "Prompts (prompt_id) whose pictures are taken, in order")
    pictures: list[str] = setting([], "Files of pictures, in order, instead of those of a model", path=True)
    refiner: str = setting("", "File of another refiner that completes them; empty: this one", path=True)
    prompt: str = setting("", "What the refiner is told that the film is; of pictures each its own prompt")
    frames: int = setting(0, "Frames of the film", most=4096)
    positions: list[int] = setting([], "Frames, from 0, at which the pictures stand; empty: evenly")
    keep: int = setting(0, "Of pictures, without frames: patches of each that are known", most=2**20)


@dataclass(frozen=True)
class Refiner:
    """A refiner: its samples, and what it sets otherwise than the section `refine`."""

    source: Source = setting(Source(), "Where its samples come from")
    start: str = setting(
        "",
        "File of a refiner that its training goes on from: weights, pseudo-classes, corruption and sizes are of it",
        path=True,
    )
    settings: dict[str, Any] = setting({}, "Settings of `refine` that are others for this one")
    storyboards: dict[str, Storyboard] = setting({}, "Pictures of generators that it completes, by name")


def settings_of(name: str, entry: Refiner, stage: Refine) -> Refine:
    """The settings of a refiner: those of the stage, over them what a file that it starts from keeps, then its own.

    Raises InputError where one of its own is unknown or out of its range, and where there is no such file.
    """
    where = f"refiners.{name}.settings"
    if "refiners" in entry.settings:
        raise InputError(f"{where}.refiners: a refiner has none; list names in `refine.refiners`")
    common = {f.name: getattr(stage, f.name) for f in fields(stage)} | {"refiners": []}
    decode(Refine, entry.settings, where)
    if entry.start:
        told = header(Path(entry.start), "refiner")["settings"]
        common |= {name: told[name] for name in KEPT}
    return decode(Refine, common | entry.settings, where)
