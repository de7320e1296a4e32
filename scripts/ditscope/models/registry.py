"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

import difflib
import inspect
import json
import logging
import os
import re
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import MALFORMED, InputError
from ditscope.models.settings import Embedder, Model

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PIPELINES = {
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "wan": "WanPipeline",
}
GENERATORS = tuple(PIPELINES)
WITH_BLOCKS = ("flux", "sd3")  # families whose blocks can be read, and so captured, calibrated, scored and ablated
ON_MLX = ("flux", "sd3")
VIDEO = ("wan",)
CAPTIONERS = ("blip", "blip2", "florence2")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SHIPPED = dict.fromkeys(CAPTIONERS, "shapes-blip") | {"sd3": "shapes-sd3"}  # what to try instead; else shapes-flux
GUIDANCE = {"flux": 3.5, "sd3": 7.0, "sdxl": 5.0, "wan": 5.0}  # the pipelines' own defaults, as their signatures say
OWN_SETTINGS = (  # what a pipeline takes and settings of ditscope, or its way of sampling, give
    "prompt", "negative_prompt", "generator", "latents", "height", "width", "num_frames", "num_inference_steps",
    "guidance_scale", "max_sequence_length", "output_type", "return_dict", "num_images_per_prompt",
    "num_videos_per_prompt", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "self", "kwargs",
)  # fmt: skip
INDEX = "model_index.json"
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)(?=[.-])")
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
    """The accelerator that torch sees, else the CPU; raises InputError where it would leave a GPU of its own idle."""
    from ditscope.models.hardware import idle_gpus

    device = device_at_hand()
    if device == "cpu" and (reason := idle_gpus(os.environ)):
        raise InputError(reason)
    return device


def device_at_hand() -> str:
    """The accelerator that torch sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_generator(name: str, entry: Model, device: str | None = None) -> Generator:
    """Load a generator of the registry onto one device, in evaluation mode."""
    family = family_of(name, entry)
    check_frames(name, entry)
    check_backend(name, entry)
    folder = resolve_source(name, entry)
    if entry.guidance > 0 and not settled(entry).guidance:
        log.warning("%s: reads no guidance; %g is left out, and recorded as 0", name, entry.guidance)
    entry = settled(entry)
    target = available(device or default_device())
    options: dict[str, Any] = {"transformer": None} if entry.backend == "mlx" else {}
    if target.index is None:  # files go straight to the device, and not through host memory
        options["device_map"] = target.type
    pipe = load_pipeline(name, entry, folder, **options)
    pipe.to(target)
    if entry.backend == "mlx":
        # Imported by name: MLX is no part of the code whose edits make results of torch stale, nor of its environment.
        on_mlx = import_module("ditscope.models.mlx.transformer")
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

    from ditscope.models.families.common import DTYPES

    family = family_of(name, entry)
    pipeline = getattr(diffusers, PIPELINES[entry.family])
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
            raise InputError(f"models.{name}.call: `{argument}` is no option of `call`; other settings give it")
        if argument not in known:
            near = ", ".join(difflib.get_close_matches(argument, known, 3, 0.5) or sorted(known))
            raise InputError(f"models.{name}.call: {pipeline.__name__} takes no `{argument}`; it takes {near}")


def settled(entry: Model) -> Model:
    """The entry with the guidance that its pictures are made with: the pipeline's default where none is given.

    0 where the model reads none, so that a setting without effect is neither hashed nor recorded.
    """
    guidance = entry.guidance if entry.guidance >= 0 else GUIDANCE[entry.family]
    read = config_at_hand(entry).get("guidance_embeds", True)
    return replace(entry, guidance=guidance if read else 0.0)


def reads_negative(entry: Model) -> bool:
    """Whether a model reads a negative prompt: under classifier-free guidance, which FLUX has by `true_cfg_scale`."""
    return bool((entry.call.get("true_cfg_scale", 1) if entry.family == "flux" else entry.guidance) > 1)


def config_at_hand(entry: Model, part: str = "transformer/config.json") -> dict[str, Any]:
    """A JSON file of a model's folder, by default its transformer's config; empty where it is not here."""
    file = source_folder(entry) / part
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
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
    from ditscope.models.families import flux, sd3, sdxl, wan  # spelled out, so that code digests reach them

    families = {"flux": flux, "sd3": sd3, "sdxl": sdxl, "wan": wan}
    if entry.family not in families:
        valid = ", ".join(families)
        raise InputError(f"models.{name}.family: `{entry.family}` is no family of generators; valid: {valid}")
    return families[entry.family]


def resolve_source(name: str, entry: Model | Embedder, registry: str = "models") -> Path:
    """The local folder of a model: its own, or where a hub id was downloaded to; checked before anything loads."""
    folder = source_folder(entry)
    where = f"{registry}.{name}"
    if entry.revision and not download_mark(entry).is_file():
        shipped = SHIPPED.get(entry.family, "shapes-flux")
        instead = f", or try a model that ships: `--model {shipped}`" if registry == "models" else ""
        state = "are not all here" if folder.is_dir() else "are not here"
        raise InputError(
            f"{where}: the weights of {entry.source} {state}; `ditscope download {name}` gets them{instead}"
        )
    if not folder.is_dir():
        if HUB_ID.fullmatch(entry.source):
            raise InputError(
                f"{where}: no folder {folder}; if `{entry.source}` is a hub id, set `revision` to its commit "
                f"(`ditscope download {name}` says which), else `source` to an existing folder"
            )
        raise InputError(f"{where}.source: no folder {folder}; set `source` to an existing folder")
    check_model_folder(folder)
    if isinstance(entry, Model):
        check_pipeline(name, entry)
    return folder


def transformer_config(name: str, entry: Model) -> dict[str, Any]:
    """The diffusers config of a model's transformer, read without its weights."""
    config: dict[str, Any] = json.loads((resolve_source(name, entry) / "transformer" / "config.json").read_text())
    return config


def source_folder(entry: Model | Embedder) -> Path:
    """Where the weights lie: `source` itself, or resources/models/<id>@<revision> for a hub id."""
    if not entry.revision:
        return Path(entry.source).expanduser()
    return Path("resources/models") / f"{entry.source.replace('/', '--')}@{entry.revision}"


def download_mark(entry: Model | Embedder) -> Path:
    """The file of a downloaded model that comes last: where it is, the download is whole."""
    pipeline = isinstance(entry, Model) and is_generator(entry)
    return source_folder(entry) / ("model_index.json" if pipeline else "config.json")


def check_revision(where: str, revision: str) -> None:
    """Refuse a branch or a tag as the revision of a hub id: it moves, and results could not be made again."""
    if revision and not COMMIT.fullmatch(revision):
        raise InputError(
            f"{where}.revision: `{revision}` is no commit, and may move; give the 40 hex digits of one, which the "
            "repository's page on the hub lists under `History`"
        )


def check_model_folder(folder: Path) -> None:
    """Refuse a missing folder, dangling links, pickled weights, lone variants and truncated safetensors."""
    if folder.is_file():
        raise InputError(
            f"{folder}: a single file; give the folder of a model in the format of diffusers or transformers "
            "(`from_single_file(...).save_pretrained(FOLDER)` of diffusers makes one of a checkpoint)"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; set the model's `source` to an existing one")
    files = sorted(folder.rglob("*"))
    for file in files:
        if file.is_symlink() and not file.exists():
            raise InputError(f"{file}: a link to {os.readlink(file)}, which is not there; copy or download the file")
    weights = [file for file in files if file.suffix == ".safetensors"]
    for file in files:
        if file.suffix in PICKLES:
            beside = any(other.parent == file.parent for other in weights)
            mend = "move it elsewhere, safetensors lie beside it" if beside else "convert the model to safetensors"
            raise InputError(f"{file}: pickled weights are refused; {mend}")
    for file in weights:
        check_safetensors(file)
        variant = VARIANT.search(file.name)
        if variant and not any(f.parent == file.parent and not VARIANT.search(f.name) for f in weights):
            plain = file.name.replace(f".{variant[1]}", "")
            raise InputError(
                f"{file}: only the variant `{variant[1]}` of these weights is here; rename the file to {plain} (in "
                f"index.json files too), or download {plain}; `dtype` says what weights are cast to"
            )
    if not weights:
        raise InputError(f"{folder}: holds no .safetensors weights")


def check_pipeline(name: str, entry: Model) -> None:
    """Refuse a generator's folder that is no pipeline of diffusers, one of another family, and too large pictures."""
    if entry.family not in PIPELINES:
        return
    folder, index = source_folder(entry), config_at_hand(entry, INDEX)
    if not index:
        alone = sorted(folder.glob("*.safetensors"))
        what = f"{alone[0].name} is a single-file checkpoint" if alone else "it is no pipeline of diffusers"
        raise InputError(
            f"models.{name}.source: {folder} has no {INDEX}; {what}: save the whole pipeline there with "
            "`from_single_file(...).save_pretrained(FOLDER)` of diffusers, or give its hub id"
        )
    wanted, found = PIPELINES[entry.family], index.get("_class_name")
    if found != wanted:
        fitting = [family for family, pipeline in PIPELINES.items() if pipeline == found]
        mend = f"set `family: {fitting[0]}`" if fitting else f"families: {', '.join(GENERATORS)}"
        raise InputError(f"models.{name}.family: {folder} is a {found}, `{entry.family}` a {wanted}; {mend}")
    check_size(name, entry)


def check_size(name: str, entry: Model) -> None:
    """Refuse pictures that are larger than an SD3 transformer has places for."""
    config = config_at_hand(entry)
    most = config.get("pos_embed_max_size")
    channels = config_at_hand(entry, "vae/config.json").get("block_out_channels", [])
    if most and channels:
        pixels = most * config.get("patch_size", 2) * 2 ** (len(channels) - 1)
        for side in ("width", "height"):
            if getattr(entry, side) > pixels:
                raise InputError(
                    f"models.{name}.{side}: {getattr(entry, side)} is more than the {pixels} pixels that the model "
                    f"has places for (pos_embed_max_size {most}); take at most {pixels}"
                )


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file whose header and length do not agree."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if size >= 8 + length else None
            tensors = [tensor for key, tensor in (header or {}).items() if key != "__metadata__"]
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        except MALFORMED:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file (bad header); fetch or copy it again")
    if size != 8 + length + end:
        raise InputError(
            f"{file}: truncated safetensors ({size} bytes, its header says {8 + length + end}); copy it again"
        )
