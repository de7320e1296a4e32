"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

import difflib
import inspect
import json
import logging
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ditscope.errors import UNREADABLE, InputError
from ditscope.settings import Embedder, Model

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GENERATORS = ("flux", "sd3", "sdxl", "wan")
WITH_BLOCKS = ("flux", "sd3")  # families whose blocks can be read, and so captured, calibrated, scored and ablated
ON_MLX = ("flux", "sd3")
VIDEO = ("wan",)
CAPTIONERS = ("blip", "blip2", "florence2")
GUIDANCE = {"flux": 3.5, "sd3": 7.0, "sdxl": 5.0, "wan": 5.0}  # the pipelines' own defaults, as their signatures say
OWN_SETTINGS = (  # what a pipeline takes and settings of ditscope, or its way of sampling, give
    "prompt", "negative_prompt", "generator", "latents", "height", "width", "num_frames", "num_inference_steps",
    "guidance_scale", "max_sequence_length", "output_type", "return_dict", "num_images_per_prompt",
    "num_videos_per_prompt", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "self", "kwargs",
)  # fmt: skip
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Generator:
    """A loaded text-to-image or text-to-video model."""

    name: str
    entry: Model
    family: ModuleType
    pipe: Any
    device: "torch.device"
    encoded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # texts, by what was asked for

    @property
    def computes_on(self) -> str:
        """What its transformer computes on: the device's type, or `mlx`."""
        return "mlx" if self.entry.backend == "mlx" else self.device.type


def is_generator(entry: Model) -> bool:
    """Whether the model makes images from text (and not text from images)."""
    return entry.family not in CAPTIONERS


def require_blocks(stage: str, name: str, entry: Model, backends: tuple[str, ...] = ("torch",)) -> None:
    """Refuse a model for a stage that works on blocks one by one, if its family's cannot be read or watched."""
    if entry.family not in WITH_BLOCKS:
        raise InputError(
            f"{stage}: `{name}` is of the family `{entry.family}`, whose blocks cannot be read; "
            f"families with blocks: {', '.join(WITH_BLOCKS)}"
        )
    if entry.backend not in backends:
        raise InputError(f"{stage}: `{name}` runs on MLX, where blocks cannot be watched; take `backend: torch`")


def check_backend(name: str, entry: Model) -> None:
    """Refuse MLX for a family that DiffusionKit has no transformer of."""
    if entry.backend == "mlx" and entry.family not in ON_MLX:
        valid = ", ".join(ON_MLX)
        raise InputError(f"models.{name}.backend: `{entry.family}` has no transformer on MLX; families: {valid}")


def check_frames(name: str, entry: Model) -> None:
    """Refuse a video from a family of images, and a number of frames that no latent stands for."""
    if entry.frames != 1 and entry.family not in VIDEO:
        valid = ", ".join(VIDEO)
        raise InputError(f"models.{name}.frames: `{entry.family}` makes images, so 1; families of videos: {valid}")
    if entry.frames < 1 or entry.frames % 4 != 1:
        near = max(round((entry.frames - 1) / 4), 0) * 4 + 1
        raise InputError(f"models.{name}.frames: {entry.frames} is not 4 n + 1, as the VAE decodes; take {near}")


def default_device() -> str:
    """The accelerator that torch sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_generator(name: str, entry: Model, device: str | None = None) -> Generator:
    """Load a generator of the registry onto one device, in evaluation mode."""
    family = family_of(name, entry)
    check_frames(name, entry)
    check_backend(name, entry)
    folder = resolve_source(name, entry)
    entry = settled(entry)
    target = available(device or default_device())
    left_out = {"transformer": None} if entry.backend == "mlx" else {}
    pipe = load_pipeline(name, entry, folder, **left_out)
    pipe.to(target)
    if entry.backend == "mlx":
        # Imported by name: MLX is no part of the code whose edits make results of torch stale, nor of its environment.
        on_mlx = import_module("ditscope.mlx.transformer")
        pipe.transformer = on_mlx.load_transformer(folder, name, entry, target)
    pipe.set_progress_bar_config(disable=True)
    loaded = Generator(name, entry, family, pipe, target)
    log.info("loaded %s (%s, %s) on %s", name, entry.family, entry.dtype, loaded.computes_on)
    return loaded


def available(device: str) -> "torch.device":
    """The device of a name as torch knows it, as `cuda:1`. Raises InputError where this machine has none."""
    import torch

    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"device `{device}`: not on this machine ({reason}); here: {default_device()}") from None
    return found


def load_pipeline(name: str, entry: Model, folder: Path, **parts: Any) -> Any:
    """The diffusers pipeline of a folder; `parts` are components that are loaded already, or None to leave them out."""
    import diffusers

    from ditscope.families.common import DTYPES

    family = family_of(name, entry)
    pipeline = getattr(diffusers, family.PIPELINE)
    check_call(name, entry, pipeline)
    dtype: Any = DTYPES[entry.dtype]
    if hasattr(family, "VAE_DTYPE"):
        dtype = {"default": dtype, "vae": family.VAE_DTYPE}
    if not entry.use_t5 and entry.family == "sd3":
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    pipe = pipeline.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **parts)
    if not hasattr(pipe, "transformer"):
        pipe.transformer = pipe.unet  # the network that is quantized and watched, under the name of every other family
    return pipe


def check_call(name: str, entry: Model, pipeline: type) -> None:
    """Refuse arguments of `call` that the pipeline does not take, or that settings of their own give."""
    known = set(inspect.signature(pipeline.__call__).parameters) - set(OWN_SETTINGS)
    for argument in entry.call:
        if argument in OWN_SETTINGS:
            raise InputError(f"models.{name}.call: `{argument}` is no option of `call`; the entry and the prompts give it")
        if argument not in known:
            near = ", ".join(difflib.get_close_matches(argument, known, 3, 0.5) or sorted(known))
            raise InputError(f"models.{name}.call: {pipeline.__name__} takes no `{argument}`; it takes {near}")


def settled(entry: Model) -> Model:
    """The entry with the guidance that its pictures are made with: the pipeline's default where none is given.

    0 where the model reads none, so that a setting without effect is neither hashed nor recorded.
    """
    guidance = entry.guidance if entry.guidance >= 0 else GUIDANCE[entry.family]
    if not transformer_config(entry).get("guidance_embeds", True):
        if entry.guidance > 0:
            log.warning("%s: reads no guidance; %g is left out, and recorded as 0", entry.source, entry.guidance)
        guidance = 0.0
    return replace(entry, guidance=guidance)


def reads_negative(entry: Model, guidance: float) -> bool:
    """Whether a model reads a negative prompt: under classifier-free guidance, which FLUX has by `true_cfg_scale`."""
    return bool((entry.call.get("true_cfg_scale", 1) if entry.family == "flux" else guidance) > 1)


def transformer_config(entry: Model) -> dict[str, Any]:
    """The config of a model's transformer, where its folder is here; else nothing."""
    file = source_folder(entry) / "transformer" / "config.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except UNREADABLE as error:
        raise InputError(f"{file}: not a config of diffusers ({error}); fetch or copy it again") from None
    return found if isinstance(found, dict) else {}


def text_length(model: Generator) -> int:
    """Tokens that the model's T5 reads of a prompt: the entry's, else the pipeline's default as far as it was trained.

    Its tokenizer says how far (`model_max_length`); without a T5 it is the length of the zeros in its place.
    """
    parameters = inspect.signature(type(model.pipe).__call__).parameters
    if "max_sequence_length" not in parameters:
        return 0
    tokenizer = getattr(model.pipe, model.family.T5, None)
    limit = parameters["max_sequence_length"].default
    return model.entry.max_sequence_length or (min(limit, tokenizer.model_max_length) if tokenizer else limit)


def family_of(name: str, entry: Model) -> ModuleType:
    """The module of pure functions for the entry's architecture."""
    from ditscope.families import flux, sd3, sdxl, wan  # spelled out, so that code digests reach them

    families = {"flux": flux, "sd3": sd3, "sdxl": sdxl, "wan": wan}
    if entry.family not in families:
        valid = ", ".join(families)
        raise InputError(f"models.{name}.family: `{entry.family}` is no family of generators; valid: {valid}")
    return families[entry.family]


def resolve_source(name: str, entry: Model | Embedder, registry: str = "models") -> Path:
    """The local folder of a model: its own, or where a hub id was downloaded to; checked before anything loads."""
    folder = source_folder(entry)
    if not folder.is_dir():
        hint = "run the workflow once to download it" if entry.revision else "set `source` to an existing folder"
        raise InputError(f"{registry}.{name}.source: no folder {folder}; {hint}")
    check_model_folder(folder)
    return folder


def source_folder(entry: Model | Embedder) -> Path:
    """Where the weights lie: `source` itself, or resources/models/<id>@<revision> for a hub id."""
    if not entry.revision:
        return Path(entry.source)
    return Path("resources/models") / f"{entry.source.replace('/', '--')}@{entry.revision}"


def check_model_folder(folder: Path) -> None:
    """Refuse a missing folder, pickled weights and truncated safetensors."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; set the model's `source` to an existing one")
    found = False
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICKLES:
            raise InputError(f"{file}: pickled weights are refused; convert the model to safetensors")
        if file.suffix == ".safetensors":
            check_safetensors(file)
            found = True
    if not found:
        raise InputError(f"{folder}: holds no .safetensors weights")


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file whose header and length do not agree."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if size >= 8 + length else None
            tensors = [tensor for key, tensor in (header or {}).items() if key != "__metadata__"]
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        except UNREADABLE:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file (bad header); fetch or copy it again")
    if size != 8 + length + end:
        raise InputError(
            f"{file}: truncated safetensors ({size} bytes, its header says {8 + length + end}); copy it again"
        )
