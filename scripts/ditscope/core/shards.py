"""WebDataset shards of images: deterministic tars of png, json and latent, written whole or not at all."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError, again, parsing
from ditscope.core.npy import npy_bytes
from ditscope.core.paths import is_inside

Sample = dict[str, Any]  # "__key__", and "png" (bytes), "json" (dict), "latent.npy" (array), of a video "mp4" (bytes)


def write_tar(samples: Iterable[Sample], path: Path | str) -> None:
    """Write samples in order, with fixed times and owners, so that equal samples give equal bytes."""
    import webdataset

    with (
        replacing(path) as partial,
        open(partial, "wb") as file,
        webdataset.TarWriter(file, mtime=0, encoder=False) as writer,
    ):
        for sample in samples:
            writer.write({k: encode(k, v) for k, v in sample.items()})


def encode(name: str, value: Any) -> Any:
    """Bytes of one member by its extension."""
    if name == "json":
        return json.dumps(value, sort_keys=True).encode()
    if name.endswith("npy"):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()
    return value


def read_tar(path: Path | str) -> Iterator[Sample]:
    """Samples of a shard in order. Refuses a cut shard, and members that are no plain files or would leave it."""
    damaged = f"not a readable tar shard ({{}}); {again(path, ending='.tar')}"
    try:
        with parsing(path, damaged, (tarfile.TarError,)):
            check_end(Path(path))
            tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed below, beyond this parser's errors)
    except FileNotFoundError:
        raise InputError(f"{path}: no such shard; run the stage that writes it first") from None
    with tar:
        sample: Sample = {}
        while True:
            with parsing(path, damaged, (tarfile.TarError,)):
                if (member := tar.next()) is None:
                    break
                file = tar.extractfile(member) if member.isfile() else None
                data = file.read() if file else b""
            if not member.isfile() or not is_inside(member.name):
                raise InputError(f"{path}: member {member.name!r} is not a plain file inside the shard")
            key, _, extension = PurePosixPath(member.name).name.partition(".")
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            if extension in sample:
                raise InputError(f"{path}: member {member.name!r} is there twice; {again(path)}")
            with parsing(path, f"member {member.name!r} is damaged ({{}}); {again(path)}", (TypeError,)):
                value = decode(extension, data)
            sample |= {"__key__": key, extension: value}
        if sample:
            yield sample


def samples_of_runs(path: Path | str) -> Iterator[Sample]:
    """A sample for each run of a shard of images: one that several runs share comes once for each, with its record."""
    for sample in read_tar(path):
        shared = {key: value for key, value in sample["json"].items() if key != "runs"}
        for run in sample["json"].get("runs") or [{}]:
            yield sample | {"json": shared | run}


def check_end(path: Path) -> None:
    """Refuse a tar without the two empty blocks at its end: Python reads one that was cut between members."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        if file.read() != bytes(1024):
            raise InputError(f"{path}: not a readable tar shard (cut before its end); {again(path, ending='.tar')}")


def decode(extension: str, data: bytes) -> Any:
    """The value of one member: parsed json, an array, or the bytes themselves."""
    if extension == "json":
        return json.loads(data)
    if extension.endswith("npy"):
        if npy_bytes(io.BytesIO(data)) > len(data):
            raise ValueError("its header promises more than there is")
        return np.load(io.BytesIO(data), allow_pickle=False)
    return data


def png_bytes(image: np.ndarray) -> bytes:
    """A (height, width, 3) uint8 image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
