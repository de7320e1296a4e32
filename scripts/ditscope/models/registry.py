"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.models.settings import REMOTE_EMBEDDERS, Embedder, Model


@dataclass(frozen=True)
class Family:
    """What is known of a family of generators without loading it; its module has the rest."""

    module: str
    # The class of diffusers that loads and samples it; ANY: the one that its folder names; empty: its module's own,
    # without weights.
    pipeline: str
    guidance: float  # the default of that pipeline's call; below 0: as its signature says
    # Settings of its transformer's config that count blocks, by type, in network order: such blocks can be read one by
    # one, and are captured, calibrated, scored and ablated.
    blocks: Mapping[str, str] = field(default_factory=dict)
    mlx: bool = False  # DiffusionKit has its transformer
    video: bool = False


ANY = "any"  # for the class of a pipeline: the one that the model's folder names
FLUX_BLOCKS = {"double": "num_layers", "single": "num_single_layers"}
FAMILIES = {
    "flux": Family("ditscope.models.families.flux", "FluxPipeline", 3.5, FLUX_BLOCKS, mlx=True),
    "sd3": Family("ditscope.models.families.sd3", "StableDiffusion3Pipeline", 7.0, {"joint": "num_layers"}, mlx=True),
    "sdxl": Family("ditscope.models.families.sdxl", "StableDiffusionXLPipeline", 5.0),
    "wan": Family("ditscope.models.families.wan", "WanPipeline", 5.0, video=True),
    "dit": Family("ditscope.models.families.dit", ANY, -1.0, {ANY: ANY}, video=True),
    "dummy": Family("ditscope.models.families.dummy", "", 0.0),
}
# What a transformer on MLX needs: named, not imported, since torch jobs neither have MLX nor depend on the code for it.
ON_MLX = {"load": "ditscope.models.mlx.transformer", "quantize": "ditscope.models.mlx.quantize"}


@dataclass(frozen=True)
class CaptionerFamily:
    """What is known of a family of captioners."""

    model_type: str  # in the config of its folders; empty: it has no weights
    module: str = ""  # has `load`, as one of the user's own; empty: a class of transformers, by `models.captioners`
    prompt: bool = False  # it reads a text beside the image (`caption_prompt`)
    top_p: bool = True  # it can draw from the most probable tokens alone
    beams: bool = True  # it can search by beams
    remote_code: bool = False  # its class is code of its hub repository


CAPTIONERS = {
    "blip": CaptionerFamily("blip", prompt=True),
    "blip2": CaptionerFamily("blip-2", prompt=True),
    "florence2": CaptionerFamily("florence2"),
    "qwen3-vl": CaptionerFamily("qwen3_vl", "ditscope.models.qwen3_vl", prompt=True),
    "moondream": CaptionerFamily("moondream1", "ditscope.models.moondream", prompt=True, beams=False, remote_code=True),
    "dummy-captioner": CaptionerFamily("", "ditscope.models.dummy_captioner", top_p=False, beams=False),
}


def facts_of(name: str, where: str = "models.<name>.family") -> Family:
    """What is known of a family of generators: a line of the registry, or `FAMILY` of a module of the user's own."""
    if name in FAMILIES:
        return FAMILIES[name]
    known = {key: value.module for key, value in (FAMILIES | CAPTIONERS).items()}
    module = load_plugin(name, known, where, "a family of models")
    if not isinstance(facts := getattr(module, "FAMILY", None), Family):
        raise InputError(
            f"{where}: `{name}` has neither FAMILY, a ditscope.models.registry.Family, as generators have, nor "
            "`load`, as captioners"
        )
    return facts


def on_mlx(part: str) -> ModuleType:
    """The module of a part of ON_MLX."""
    return import_module(ON_MLX[part])


def families_with(feature: str) -> str:
    """Names of the registered families that have a feature (`blocks`, `mlx`, `video`), for messages."""
    return ", ".join(name for name, facts in FAMILIES.items() if getattr(facts, feature))


def is_generator(entry: Model) -> bool:
    """Whether the model makes images from text, not text from images: captioners of the user's own have a `load`."""
    return entry.family not in CAPTIONERS and not ("." in entry.family and hasattr(own_family(entry.family), "load"))


def own_family(name: str) -> ModuleType:
    """The module of a family of the user's own, given its dotted path."""
    return load_plugin(name, {}, "models.<name>.family", "a family of models")


def has_weights(entry: Model) -> bool:
    """Whether the model is read from files: a dummy has none."""
    if entry.family in CAPTIONERS:
        return bool(CAPTIONERS[entry.family].model_type)
    return entry.family not in FAMILIES or bool(FAMILIES[entry.family].pipeline)


def module_of_family(entry: Model) -> str:
    """The module of the entry's family; empty for captioners of transformers."""
    if is_generator(entry):
        return facts_of(entry.family).module
    return CAPTIONERS[entry.family].module if entry.family in CAPTIONERS else entry.family


def require_weights(stage: str, name: str, entry: Model) -> None:
    """Refuse a dummy for a stage that works on a network's weights."""
    if not has_weights(entry):
        raise InputError(f"{stage}: `{name}` is a dummy without weights; take a model that has some")


def require_blocks(stage: str, name: str, entry: Model, backends: tuple[str, ...] = ("torch",)) -> None:
    """Refuse a model for a stage that works on blocks one by one, if its family's cannot be read or watched."""
    if not is_generator(entry) or not facts_of(entry.family).blocks:
        raise InputError(
            f"{stage}: `{name}` is of the family `{entry.family}`, whose blocks cannot be read; "
            f"families with blocks: {families_with('blocks')}"
        )
    if entry.backend not in backends:
        raise InputError(f"{stage}: `{name}` runs on MLX, where blocks cannot be watched; take `backend: torch`")


def check_backend(name: str, entry: Model) -> None:
    """Refuse MLX for a family that DiffusionKit has no transformer of."""
    if entry.backend == "mlx" and not (is_generator(entry) and facts_of(entry.family).mlx):
        valid = families_with("mlx")
        raise InputError(f"models.{name}.backend: `{entry.family}` has no transformer on MLX; families: {valid}")


def check_frames(name: str, entry: Model) -> None:
    """Refuse a video from a family of images, and a number of frames that no latent stands for."""
    if entry.frames != 1 and not (is_generator(entry) and facts_of(entry.family).video):
        valid = families_with("video")
        raise InputError(f"models.{name}.frames: `{entry.family}` makes images, so 1; families of videos: {valid}")
    if entry.frames >= 1 and is_generator(entry) and facts_of(entry.family).pipeline == ANY:
        return  # its VAE knows
    if entry.frames < 1 or entry.frames % 4 != 1:
        near = max(round((entry.frames - 1) / 4), 0) * 4 + 1
        raise InputError(f"models.{name}.frames: {entry.frames} is not 4 n + 1, as the VAE decodes; take {near}")


def check_source(name: str, entry: Model) -> None:
    """Refuse a model without weights to read, and weights for a dummy."""
    if has_weights(entry) and not entry.source:
        raise InputError(f"models.{name}: the required key `source` is missing: a folder, or a hub id")
    if not has_weights(entry) and (entry.source or entry.revision):
        raise InputError(f"models.{name}: `{entry.family}` has no weights; leave out `source` and `revision`")
    if entry.revision and (Path(entry.source).expanduser() / "model_index.json").is_file():
        raise InputError(
            f"models.{name}: `source` is a folder here, and `revision` a commit of the hub (perhaps of config.yaml's "
            "entry of this name); set `revision: ''`, or choose another name"
        )


def check_loras(name: str, entry: Model) -> None:
    """Refuse LoRA files of what has no weights in torch that they could change, and files of another kind."""
    if not entry.loras:
        return
    if not is_generator(entry) or not has_weights(entry) or entry.backend == "mlx":
        raise InputError(f"models.{name}.loras: only generators whose weights are loaded by torch take LoRA files")
    if other := next((file for file in entry.loras if not file.endswith(".safetensors")), ""):
        raise InputError(f"models.{name}.loras: `{other}` is no .safetensors file; pickles are refused: convert it")


def check_captioning(name: str, entry: Model) -> None:
    """Refuse settings of captions that a model does not read, and beams of which tokens are drawn."""
    given = {"temperature": entry.temperature > 0, "top_p": entry.top_p < 1, "caption_prompt": entry.caption_prompt}
    given |= {"num_beams": entry.num_beams > 1}
    facts = CAPTIONERS.get(entry.family)  # what one of the user's own reads it knows itself
    reads = {"caption_prompt": facts.prompt, "top_p": facts.top_p, "num_beams": facts.beams} if facts else {}
    for setting in (setting for setting, value in given.items() if value):
        where = f"models.{name}.{setting}"
        if is_generator(entry):
            raise InputError(f"{where}: `{entry.family}` makes images; only captioners read it")
        if not reads.get(setting, True):
            raise InputError(f"{where}: `{entry.family}` does not read it; leave it out")
        if setting == "top_p" and not entry.temperature:
            raise InputError(f"{where}: nothing is drawn at temperature 0; set `temperature`, or leave `top_p` out")
        if setting == "temperature" and entry.num_beams > 1:
            raise InputError(f"{where}: beams are not drawn; set `num_beams: 1`, or leave `temperature` out")


def runs_remote_code(entry: Model | Embedder) -> bool:
    """Whether the entry's family is known by code of its hub repository alone."""
    if isinstance(entry, Embedder):
        return entry.family in REMOTE_EMBEDDERS
    return entry.family in CAPTIONERS and CAPTIONERS[entry.family].remote_code


def check_remote_code(where: str, entry: Model | Embedder) -> None:
    """Refuse to use a model that is remote code where its entry does not allow that."""
    if runs_remote_code(entry) and not entry.allow_remote_code:
        raise InputError(
            f"{where}: `{entry.family}` runs code of {entry.source}; read it, and set `allow_remote_code: true` in an "
            "overlay to allow it"
        )


def family_of(name: str, entry: Model) -> ModuleType:
    """The module of pure functions for the entry's architecture."""
    return import_module(facts_of(entry.family, f"models.{name}.family").module)
