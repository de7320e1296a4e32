"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

from types import ModuleType

from ditscope.core.errors import InputError
from ditscope.models.settings import Model

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


def family_of(name: str, entry: Model) -> ModuleType:
    """The module of pure functions for the entry's architecture."""
    from ditscope.models.families import flux, sd3, sdxl, wan  # spelled out, so that code digests reach them

    families = {"flux": flux, "sd3": sd3, "sdxl": sdxl, "wan": wan}
    if entry.family not in families:
        valid = ", ".join(families)
        raise InputError(f"models.{name}.family: `{entry.family}` is no family of generators; valid: {valid}")
    return families[entry.family]
