"""Registry entries: generators and captioners, quantization schemes, embedders."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditscope.core.settings import setting

BACKENDS = ("torch", "mlx")
# The last two compile the whole transformer in a mode of torch.compile: CUDA graphs; these and the fastest kernels.
COMPILE_STATES = ("eager", "regional", "full", "reduce-overhead", "max-autotune")


# Kinds of quantization schemes, each with the module that does it.
SCHEMES = {
    "base": "ditscope.models.schemes.base",
    "int8-weight-only": "ditscope.models.schemes.int8_weight_only",
    "int8-dynamic": "ditscope.models.schemes.int8_dynamic",
    "fp8-weight-only": "ditscope.models.schemes.fp8_weight_only",
    "intx-weight-only": "ditscope.models.schemes.intx_weight_only",
    "int8-dynamic-intx": "ditscope.models.schemes.int8_dynamic_intx",
    "fp8-dynamic-row": "ditscope.models.schemes.fp8_dynamic_row",
    "fp8-dynamic-tensor": "ditscope.models.schemes.fp8_dynamic_tensor",
    "mxfp8-dynamic": "ditscope.models.schemes.mxfp8_dynamic",
    "mxfp4-dynamic": "ditscope.models.schemes.mxfp4_dynamic",
    "nvfp4-weight-only": "ditscope.models.schemes.nvfp4_weight_only",
    "nvfp4-dynamic": "ditscope.models.schemes.nvfp4_dynamic",
    "int4-weight-only": "ditscope.models.schemes.int4_weight_only",
    "sparse-2-4": "ditscope.models.schemes.sparse_2_4",
    "sparse-2-4-fp8": "ditscope.models.schemes.sparse_2_4_fp8",
    "sparse-2-4-int8": "ditscope.models.schemes.sparse_2_4_int8",
    "mlx-weight-only": "ditscope.models.schemes.mlx_weight_only",
    "plan": "ditscope.models.schemes.plan",
    "nearest": "ditscope.models.schemes.nearest",
    "gptq": "ditscope.models.schemes.gptq",
    "awq": "ditscope.models.schemes.awq",
    "smoothquant": "ditscope.models.schemes.smoothquant",
    "svdquant": "ditscope.models.schemes.svdquant",
}
CALIBRATED = ("gptq", "awq", "smoothquant", "svdquant")  # kinds that are solved from recorded inputs
EMULATED = ("nearest", *CALIBRATED)  # kinds that round to any format, computed in the model's own type
CALIBRATE = "calibrate"  # the calibration set that is that stage's
# Number formats of emulated kinds, and the same for activations; `int` has the scheme's bits.
WEIGHT_FORMATS = ("int", "fp8-row", "fp8-tensor", "mxfp8", "mxfp4", "nvfp4")
ACTIVATION_FORMATS = ("", "int8", "int4", "fp8-row", "fp8-tensor", "mxfp8", "mxfp4", "nvfp4")


@dataclass(frozen=True)
class Model:
    """A generator (text to image) or a captioner (image to text): its weights and how it is run."""

    family: str = setting(
        help="flux, sd3, sdxl, wan, dit (any diffusion transformer) or dummy (generators); blip, blip2, florence2, "
        "qwen3-vl, moondream or dummy-captioner (captioners); or a module of your own"
    )
    source: str = setting("", "A diffusers / transformers folder, or a hub id; empty for a dummy alone", path=True)
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
    loras: dict[str, float] = setting(
        {}, "LoRA files (safetensors) fused into the weights as they are loaded, each with its scale", signed=True
    )
    use_t5: bool = setting(True, "SD3: load the T5 encoder; without it the pipeline feeds zeros")
    max_sequence_length: int = setting(
        0, "Tokens that T5 reads of a prompt; 0: the pipeline's default, at most the length that its tokenizer names"
    )
    max_new_tokens: int = setting(50, "Captioner: longest caption in tokens", positive=True)
    num_beams: int = setting(1, "Captioner: beams", positive=True)
    caption_task: str = setting("<CAPTION>", "florence2: its task, as <DETAILED_CAPTION>")
    caption_prompt: str = setting(
        "",
        "blip, blip2: the text that the caption goes on from, no part of the caption; qwen3-vl, moondream: what is "
        "asked of them in place of a short caption",
    )
    temperature: float = setting(0.0, "Captioner: tokens are drawn at this temperature; 0: greedy or beam search")
    top_p: float = setting(
        1.0, "Captioner, temperature > 0: draw from the fewest tokens of this probability", positive=True, most=1
    )
    allow_remote_code: bool = setting(False, "Let the hub repository run its own code (pin `revision`)")
    code_revisions: dict[str, str] = setting(
        {}, "allow_remote_code: further hub repositories that its code reads, each with its commit"
    )
    memory_mb: int = setting(
        0, "Host memory that its weights take, in MB, which its jobs ask for; 0: as its files, once they are there"
    )
    licence: str = setting("", "Licence of its weights, as their repository names it")
    gated: bool = setting(False, "Its licence must be accepted on the hub, and HF_TOKEN set, before it is downloaded")
    disk_mb: int = setting(0, "Megabytes of its files, which a download brings")
    parameters: dict[str, float] = setting(
        {},
        "Millions of parameters by component, as `{transformer: 3876, text_encoder: 4022, vae: 84}`: what memory it "
        "takes, said by `ditscope check --model` before its files are here",
    )


# What an entry says about a model, and no result depends on.
ABOUT = ("memory_mb", "licence", "gated", "disk_mb", "parameters")


def backends_of(kind: str) -> tuple[str, ...]:
    """The back ends that a kind of scheme runs on."""
    return BACKENDS if kind in ("base", "plan") else ("mlx",) if kind.startswith("mlx-") else ("torch",)


def calibration_of(scheme: "Scheme") -> str:
    """The calibration set that a scheme is solved from: `calibrate`, a folder, or empty where it needs none."""
    return scheme.calibration or (CALIBRATE if scheme.kind in CALIBRATED else "")


def calibrated_on(scheme: "Scheme", name: str, made: Path | str) -> "Scheme":
    """The scheme of a model with the folder of the calibration set that it is solved from, where it needs one.

    `made` is the set of the calibrate stage, or the user's own in its place.
    """
    chosen = calibration_of(scheme)
    folder = str(made) if chosen == CALIBRATE else chosen.replace("{model}", name)
    return replace(scheme, calibration=folder)


# Ways to skip denoising steps, in `ditscope.models.step_cache`.
CACHES = ("first-block", "teacache", "magcache")


@dataclass(frozen=True)
class Scheme:
    """One way to quantize a generator's transformer."""

    kind: str = setting(help="What is done to the linear layers", choices=tuple(SCHEMES), importable=True)
    bits: int = setting(8, "Weight bits, where the scheme has a choice", positive=True, most=16)
    group_size: int = setting(0, "Weights that share one scale along the input dimension; 0: a whole row")
    format: str = setting(
        "int",
        "Emulated kinds, mlx-weight-only: format of the weights; `int` has `bits` and `group_size`",
        choices=WEIGHT_FORMATS,
    )
    activations: str = setting(
        "", "Emulated kinds: format of the activations; empty: full precision", choices=ACTIVATION_FORMATS
    )
    calibration: str = setting(
        "",
        "Calibrated kinds: `calibrate`, the set of that stage or of `calibrate.sources`, or a folder, in which "
        "{model} stands for the model's name; empty: what the kind needs",
    )
    calibration_images: int = setting(0, "Calibrated kinds: images of the set that are used, its first; 0: all")
    alpha: float = setting(
        0.5, "smoothquant, svdquant: how much of the activations' range moves into the weights", most=1
    )
    rank: int = setting(32, "svdquant: rank of the branch in 16 bits", positive=True)
    damping: float = setting(0.01, "gptq: share of the Hessian's mean diagonal that is added to it", positive=True)
    act_order: bool = setting(False, "gptq: columns by falling activation, in groups of the given weights' ranges")
    plan: str = setting("", "kind: plan only: the budget whose bit plan is applied")
    skip_layers: list[str] = setting(
        [],
        "Layers left in full precision, by pattern of their names, as `*norm*`, or by kind, as `kind:modulation`",
    )
    min_weights: int = setting(0, "Leave layers of fewer weights in full precision")
    fuse_qkv: bool = setting(False, "Join the query, key and value projections to one layer before quantizing")
    text_encoders: bool = setting(False, "Quantize the linear layers of the text encoders too")
    compile_vae: bool = setting(False, "Compile the VAE's decoder too, where the transformer is compiled")
    cache: str = setting(
        "",
        "Skip denoising steps in which little changes, by diffusers' hooks; with any kind, `base` too",
        choices=("", *CACHES),
    )
    cache_threshold: float = setting(0.0, "cache: the change below which a step is skipped; 0: none is")


# Families of embedders, each with the module that loads it.
EMBEDDER_FAMILIES = {
    "sentence-transformers": "ditscope.models.embedders.sentence",
    "minilm": "ditscope.models.embedders.sentence",
    "clip": "ditscope.models.embedders.towers",
    "siglip": "ditscope.models.embedders.towers",
    "dinov2": "ditscope.models.embedders.towers",
    "jina-clip": "ditscope.models.embedders.jina_clip",
    "efficientnet-lite": "ditscope.models.embedders.efficientnet_lite",
    "random-walk": "ditscope.models.embedders.random_walk",
    "vectors": "ditscope.models.embedders.vectors",
}
REMOTE_EMBEDDERS = ("jina-clip",)  # families that are known by code of their hub repository alone


@dataclass(frozen=True)
class Embedder:
    """A model that maps a text or an image of a trajectory to a vector."""

    family: str = setting(
        help="sentence-transformers, minilm, clip, siglip, dinov2, jina-clip, efficientnet-lite, random-walk (the "
        "control), vectors (a table of your own), or a module of your own"
    )
    source: str = setting("", "Folder, hub id, or empty where the package carries its weights", path=True)
    revision: str = setting("", "Commit of a hub id")
    modality: str = setting("text", "What is embedded", choices=("text", "image"))
    prompt: str = setting("", "sentence-transformers: text put before each item, as `clustering: ` for nomic")
    dimension: int = setting(64, "random-walk only: dimension of the walk", positive=True)
    allow_remote_code: bool = setting(False, "Let the hub repository run its own code (pin `revision`)")
    code_revisions: dict[str, str] = setting(
        {}, "allow_remote_code: further hub repositories that its code reads, each with its commit"
    )
    memory_mb: int = setting(
        0, "Host memory that its weights take, in MB, which its jobs ask for; 0: as its files, once they are there"
    )
