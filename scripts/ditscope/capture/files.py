"""Where things are in a capture folder, and its metadata; light enough for readers without torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditscope.capture.settings import CaptureSet
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError, check_version, read_json
from ditscope.core.identity import generation_id

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = "1"
METADATA = "metadata.json"
IMAGE_FORMATS = ("jpg", "png")
ELSEWHERE = ("generations", "max_bytes", "offload", "multi_gpu")  # settings that leave a generation's files as they are
EMBEDDING = "embedding"  # stands for what the first block is given, at depth -1
ORIGINAL_DECODE = "x_prev"  # what the original program's folder `decoded` shows
DECODED = {"x0": "decoded", "x_prev": "decoded_x_prev"}  # folder of each kind of decode


def generation_name(request: str, settings: CaptureSet) -> str:
    """The generation id that a request (its hash) has under these settings: other files, another id."""
    return generation_id(request, {k: v for k, v in asdict(settings).items() if k not in ELSEWHERE})


def step_file(index: int) -> str:
    """The file name of a step's tensors."""
    return f"step_{index:03d}.safetensors"


def write_metadata(metadata: dict[str, Any], intermediates: Path, name: str = METADATA) -> None:
    """Write metadata.json once every tensor file is there: a folder without it is no capture."""
    text = json.dumps({"schema_version": SCHEMA_VERSION} | metadata, indent=1, ensure_ascii=False)
    write_text(intermediates / name, text + "\n")


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a capture, given its generation folder or the `intermediates` folder in it."""
    file = metadata_file(path)
    metadata = read_json(file, "not JSON; capture it again")
    check_version(file, metadata.get("schema_version"), SCHEMA_VERSION, "capture it again")
    return metadata


def metadata_file(path: Path | str) -> Path:
    """The file of a capture's metadata. Raises InputError where there is none, as in an unfinished capture."""
    folder = intermediates_of(path)
    files = [folder / METADATA] if (folder / METADATA).exists() else sorted(folder.glob("metadata_*.json"))
    if len(files) != 1:
        raise InputError(f"{folder}: holds no finished capture (no {METADATA}); capture it again")
    return files[0]


def rows_of_runs(table: "pl.DataFrame", metadata: dict[str, Any]) -> "pl.DataFrame":
    """A table of one capture with its rows once for each run that shares the capture, by `prompt_id`."""
    import polars as pl

    runs = metadata.get("runs") or [metadata]
    return pl.concat([table.with_columns(pl.lit(run["prompt_id"]).alias("prompt_id")) for run in runs])


def intermediates_of(path: Path | str) -> Path:
    """The folder of tensors of a generation folder; `path` itself if it is that already."""
    path = Path(path)
    return path / "intermediates" if (path / "intermediates").is_dir() else path


def captures_in(folder: Path | str) -> list[Path]:
    """The finished generation folders below `folder`, in the order of their prompts."""
    folders = [p.parent for p in sorted(Path(folder).glob("*/intermediates")) if not p.parts[-2].startswith(".")]
    return sorted(folders, key=lambda p: (read_metadata(p)["position"], p.name))


def decoded_file(folder: Path | str, kind: str, step: int, block: str) -> Path:
    """The picture of a block's read-out (`kind` x0 or x_prev) at a step of a capture."""
    return intermediates_of(folder) / DECODED[kind] / f"step_{step}" / f"{block}.jpg"


def film_file(picture: Path) -> Path:
    """The film of which a picture shows the middle frame."""
    return picture.with_suffix(".mp4")


def drawn_files(folder: Path | str, metadata: dict[str, Any]) -> list[Path]:
    """Every picture of a block's read-out that a capture has by its metadata, of a video with its film."""
    pictures = [
        decoded_file(folder, kind, step, block)
        for kind in metadata.get("decoded", [])
        for step in metadata["captured_steps"]
        for block in metadata["captured_blocks"]
    ]
    return pictures + [film_file(picture) for picture in pictures if is_video(metadata)]


def is_video(metadata: dict[str, Any]) -> bool:
    """Whether a capture is of a video, by its metadata."""
    return bool(metadata.get("frames", 1) > 1)


def has_frames(metadata: dict[str, Any]) -> bool:
    """Whether a capture has statistics of frames: of a video whose image tokens are of one frame after the other."""
    return "latent_frames" in metadata


def picture_file(folder: Path | str) -> Path:
    """The generated image of a generation folder: img_0.jpg or img_0.png."""
    files = [path for kind in IMAGE_FORMATS if (path := Path(folder) / f"img_0.{kind}").exists()]
    if not files:
        raise InputError(f"{folder}: holds no generated image img_0.jpg or .png; capture it again")
    return files[0]


def generations_in(source: Path | str) -> list[Path]:
    """The captures of a folder: generation folders and .pt files in it; the source itself, where it is one of these."""
    source = Path(source)
    if source.is_file() or (source / "intermediates").is_dir():
        return [source]
    return sorted(path for path in source.iterdir() if path.suffix == ".pt" or (path / "intermediates").is_dir())


def decodes_of(generation: Path) -> list[str]:
    """Which decodes a capture has pictures of: x0, x_prev."""
    if generation.is_file():
        return []
    if is_original(generation):
        return [ORIGINAL_DECODE] if (generation / "intermediates" / DECODED["x0"]).is_dir() else []
    return [kind for kind, folder in DECODED.items() if (generation / "intermediates" / folder).is_dir()]


def is_original(generation: Path) -> bool:
    """Whether a capture is the original program's: a .pt file alone, or beside metadata without a schema version."""
    try:
        return generation.is_file() or not read_metadata(generation)
    except InputError:
        return bool(pt_files(generation))


def pt_files(generation: Path) -> list[Path]:
    """The .pt files of a generation folder."""
    return sorted(intermediates_of(generation).glob("*.pt"))
