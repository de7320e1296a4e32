"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.models.settings import Model


@dataclass(frozen=True)
class Family:
    """What is known of a family of generators without loading it; its module has the rest."""

    module: str
    pipeline: str  # the class of diffusers that loads and samples it
    guidance: float  # the default of that pipeline's call
    blocks: bool = False  # its blocks can be read one by one: captured, calibrated, scored, ablated
    mlx: bool = False  # DiffusionKit has its transformer
    video: bool = False


FAMILIES = {
    "flux": Family("ditscope.models.families.flux", "FluxPipeline", 3.5, blocks=True, mlx=True),
    "sd3": Family("ditscope.models.families.sd3", "StableDiffusion3Pipeline", 7.0, blocks=True, mlx=True),
    "sdxl": Family("ditscope.models.families.sdxl", "StableDiffusionXLPipeline", 5.0),
    "wan": Family("ditscope.models.families.wan", "WanPipeline", 5.0, video=True),
}
# What a transformer on MLX needs: named, not imported, since torch jobs neither have MLX nor depend on the code for it.
ON_MLX = {"load": "ditscope.models.mlx.transformer", "quantize": "ditscope.models.mlx.quantize"}
# Families of captioners, all of them behind `models.captioners`, with the `model_type` of their folders.
CAPTIONERS = {"blip": "blip", "blip2": "blip-2", "florence2": "florence2"}


def facts_of(name: str, where: str = "models.<name>.family") -> Family:
    """What is known of a family of generators: a line of the registry, or `FAMILY` of a module of the user's own."""
    if name in FAMILIES:
        return FAMILIES[name]
    known = {key: value.module for key, value in FAMILIES.items()}
    module = load_plugin(name, known, where, "a family of generators")
    if not isinstance(facts := getattr(module, "FAMILY", None), Family):
        raise InputError(f"{where}: `{name}` has no FAMILY, a ditscope.models.registry.Family; define one")
    return facts


def on_mlx(part: str) -> ModuleType:
    """The module of a part of ON_MLX."""
    return import_module(ON_MLX[part])


def families_with(feature: str) -> str:
    """Names of the registered families that have a feature (`blocks`, `mlx`, `video`), for messages."""
    return ", ".join(name for name, facts in FAMILIES.items() if getattr(facts, feature))


def is_generator(entry: Model) -> bool:
    """Whether the model makes images from text (and not text from images)."""
    return entry.family not in CAPTIONERS


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
    if entry.frames < 1 or entry.frames % 4 != 1:
        near = max(round((entry.frames - 1) / 4), 0) * 4 + 1
        raise InputError(f"models.{name}.frames: {entry.frames} is not 4 n + 1, as the VAE decodes; take {near}")


def family_of(name: str, entry: Model) -> ModuleType:
    """The module of pure functions for the entry's architecture."""
    return import_module(facts_of(entry.family, f"models.{name}.family").module)
