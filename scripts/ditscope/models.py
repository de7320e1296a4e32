"""Load generators: check the folder first, then hand over the family's pipeline on one device."""

import json
import logging
import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ditscope.errors import MALFORMED, InputError
from ditscope.settings import Embedder, Model

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GENERATORS = ("flux", "sd3", "sdxl", "wan")
WITH_BLOCKS = ("flux", "sd3")  # families whose blocks can be read, and so captured, calibrated, scored and ablated
ON_MLX = ("flux", "sd3")
VIDEO = ("wan",)
CAPTIONERS = ("blip", "blip2", "florence2")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SHIPPED = dict.fromkeys(CAPTIONERS, "shapes-blip") | {"sd3": "shapes-sd3"}  # what to try instead; else shapes-flux
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Generator:
    """A loaded text-to-image or text-to-video model."""

    name: str
    entry: Model
    family: ModuleType
    pipe: Any
    device: "torch.device"

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
    from ditscope.hardware import idle_gpus

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
    import torch

    family = family_of(name, entry)
    check_frames(name, entry)
    check_backend(name, entry)
    folder = resolve_source(name, entry)
    target = torch.device(device or default_device())
    left_out = {"transformer": None} if entry.backend == "mlx" else {}
    pipe = family.load(str(folder), entry, use_safetensors=True, **left_out)
    pipe.to(target)
    if entry.backend == "mlx":
        # Imported by name: MLX is no part of the code whose edits make results of torch stale, nor of its environment.
        on_mlx = import_module("ditscope.mlx.transformer")
        pipe.transformer = on_mlx.load_transformer(folder, name, entry, target)
    pipe.set_progress_bar_config(disable=True)
    loaded = Generator(name, entry, family, pipe, target)
    log.info("loaded %s (%s, %s) on %s", name, entry.family, entry.dtype, loaded.computes_on)
    return loaded


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
        except MALFORMED:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file (bad header); fetch or copy it again")
    if size != 8 + length + end:
        raise InputError(
            f"{file}: truncated safetensors ({size} bytes, its header says {8 + length + end}); copy it again"
        )
