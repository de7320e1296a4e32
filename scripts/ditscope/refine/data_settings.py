"""Settings of the data that a refiner is trained on: where samples come from, and what is held out of training."""

from dataclasses import dataclass

from ditscope.core.errors import InputError
from ditscope.core.settings import setting

# Where samples come from, each with the module that gives them.
SOURCES = {
    name: f"ditscope.refine.sources.{name}"
    for name in ("generated", "renders", "clips", "mazes", "images", "films", "shards", "fake")
}
# What values are of a picture, a film or a path, each with the module that computes them.
ADAPTERS = {name: f"ditscope.refine.adapters.{name}" for name in ("vae", "pixels", "maze", "latents")}

# The adapter of a source that names none; of one that is not here, latents.
OWN_ADAPTER = {"renders": "vae", "clips": "vae", "images": "vae", "films": "vae", "mazes": "maze"}
IN_FOLDERS = ("images", "films", "shards")  # kinds that read `folder`
MADE = ("renders", "clips", "mazes", "fake")  # kinds of which `count` are made


@dataclass(frozen=True)
class Source:
    """The samples of a refiner: pictures, films or paths with their prompts, and how they become values."""

    kind: str = setting(
        "generated",
        "generated (pictures that `generate` left for `model`); renders and clips (still and moving pictures of the "
        "shapes world); mazes (shortest paths); images and films (a folder of them, or of class folders); shards "
        "(WebDataset in place); fake (noise); or a module of your own",
        choices=tuple(SOURCES),
        importable=True,
    )
    model: str = setting("", "Model whose VAE and text encoder are used, and whose pictures `generated` takes")
    adapter: str = setting(
        "",
        "Values of a picture: vae (latents of the model's VAE) or pixels; empty: what the kind has",
        choices=("", *ADAPTERS),
        importable=True,
    )
    text_encoder: str = setting(
        "text_encoder", "Folder of the model's text encoder whose tokens are the condition; empty: no text"
    )
    folder: str = setting("", "images, films, shards: the folder they lie in", path=True)
    count: int = setting(1152, "Samples to make (renders, clips, mazes, fake)", positive=True)
    seed: int = setting(0, "Seed of what is made", most=2**32 - 1)
    size: int = setting(64, "images, films: pixels of a side, to which pictures are cropped and scaled", positive=True)
    frames: int = setting(9, "clips, films: frames of one", positive=True)
    rooms: int = setting(6, "mazes: rooms along a side", positive=True)
    path_steps: int = setting(32, "mazes: points of a path", positive=True)
    shape: list[int] = setting(
        [8, 16, 16], "fake: channels and sides of a sample", positive=True, filled=True, again=tuple(range(1, 4097))
    )
    held_out: float = setting(
        0.15,
        "Share that is never trained on; of renders and clips the combinations that no model is trained on",
        most=1,
    )
    held_out_by: str = setting(
        "",
        "What is held out together: by the hash of a prompt, a label or a sample, or attributes (combinations of the "
        "shapes world); empty: what the kind has",
        choices=("", "attributes", "prompt", "label", "sample"),
    )
    damaged: str = setting(
        "refuse",
        "What becomes of damaged samples and shards: refuse, or skip, with their count",
        choices=("refuse", "skip"),
    )
    shard_samples: int = setting(256, "Samples of a shard", positive=True)
    dtype: str = setting("float16", "Type that values are stored in", choices=("float16", "float32"))
    statistics: int = setting(
        16384, "Training samples, evenly over all, that mean and standard deviation are taken of; 0: all"
    )


def adapter_of(source: Source) -> str:
    """The kind of a source's adapter: its own choice, or what the kind of source has."""
    return source.adapter or OWN_ADAPTER.get(source.kind, "latents")


def has_pictures(source: Source) -> bool:
    """Whether values of a source decode to pictures; of an adapter of the user's own that is taken to be so."""
    kind = adapter_of(source)
    return kind != "maze" and (kind != "latents" or bool(source.model))


def check_source_of(where: str, source: Source) -> None:
    """Refuse a source that lacks what its kind needs; `where` names its key."""
    if source.kind in IN_FOLDERS and not source.folder:
        raise InputError(f"{where}.folder: name the folder of the `{source.kind}`")
    if source.kind == "generated" and not source.model:
        raise InputError(f"{where}.model: name the model whose generated pictures these are")
    if adapter_of(source) == "vae" and not source.model:
        raise InputError(f"{where}.model: name the model whose VAE makes the latents, or set `adapter: pixels`")
    if source.kind in ("images", "films") and adapter_of(source) == "vae" and source.size % 16:
        raise InputError(f"{where}.size: {source.size} is not a multiple of 16, which the model's VAE needs")
    if len(source.shape) not in (2, 3, 4):
        raise InputError(f"{where}.shape: {source.shape} is not channels and one to three sides")
