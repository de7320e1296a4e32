"""Where the numbers of every sample lie in WebDataset shards, read from headers alone: a shard may be gigabytes.

Members of a sample are KEY.values.npy (or latent), optionally KEY.text.npy (or embed), KEY.json, KEY.prompt.txt (or
txt) and KEY.cls. Arrays are .npy, or .pth as torch saves one tensor: both hold their numbers uncompressed and in one
piece, so that a sample is read by mapping the file.
"""

import io
import json
import math
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from ditscope.core.errors import InputError, parsing
from ditscope.core.paths import is_inside
from ditscope.core.shards import check_end

VALUES, TEXT, RECORD, PROMPT, LABEL = "values", "text", "record", "prompt", "label"
ROLES = {
    **{f"{name}.{ending}": VALUES for name in ("values", "latent", "latents") for ending in ("npy", "pth")},
    **{f"{name}.{ending}": TEXT for name in ("text", "embed", "embeds") for ending in ("npy", "pth")},
    "json": RECORD,
    **dict.fromkeys(("prompt.txt", "prompts.txt", "prompt", "txt"), PROMPT),
    "cls": LABEL,
}
TORCH_TYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float64": "float64"}


@dataclass(frozen=True)
class Block:
    """An array's numbers in a file: they begin at `offset`, in C order."""

    offset: int
    shape: tuple[int, ...]
    dtype: str  # by NumPy's name, or bfloat16

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class Entry:
    """One sample of a shard."""

    key: str
    blocks: dict[str, Block] = field(default_factory=dict)  # by role: values, text
    record: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    label: str = ""


def entries(path: Path) -> Iterator[Entry]:
    """The samples of a shard in order, without their numbers.

    Raises InputError where the tar is cut or damaged, a member is none of a shard, or an array's header is not sound.
    """
    damaged = (tarfile.TarError, zipfile.BadZipFile)
    with parsing(path, "not a readable tar shard ({})", damaged):
        check_end(path)
        tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed below, beyond this parser's errors)
    with tar, open(path, "rb") as file:
        entry: Entry | None = None
        while True:
            with parsing(path, "not a readable tar shard ({})", damaged):
                member = tar.next()
            tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
            if member is None:
                break
            if not member.isfile() or not is_inside(member.name):
                raise InputError(f"{path}: member {member.name!r} is not a plain file inside the shard")
            key, _, ending = PurePosixPath(member.name).name.partition(".")
            if entry is None or entry.key != key:
                if entry:
                    yield entry
                entry = Entry(key)
            with parsing(path, f"member {member.name!r} is damaged ({{}})", damaged):
                entry = with_member(entry, ending, file, member.offset_data, member.size)
        if entry:
            yield entry


def with_member(entry: Entry, ending: str, file: IO[bytes], offset: int, size: int) -> Entry:
    """A sample with one more member of it; what has no role is passed over."""
    role = ROLES.get(ending)
    if role in (VALUES, TEXT):
        if role in entry.blocks:
            raise ValueError(f"a second array of {role}")
        block = (npy_block if ending.endswith("npy") else pth_block)(file, offset, size)
        return replace(entry, blocks=entry.blocks | {role: block})
    if role is None:
        return entry
    file.seek(offset)
    data = file.read(size)
    if role == RECORD:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError("not a map")
        return replace(entry, record=record)
    text = data.decode().strip()
    return replace(entry, label=text) if role == LABEL else replace(entry, prompt=text)


def npy_block(file: IO[bytes], offset: int, size: int) -> Block:
    """The numbers of a .npy of `size` bytes that begins at `offset`."""
    file.seek(offset)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy of version {version}")
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    if dtype.kind != "f" or dtype.byteorder == ">":
        raise ValueError(f"numbers of type {dtype}, not little-endian floats")
    return within(Block(file.tell(), shape, dtype.name), offset, size)


def pth_block(file: IO[bytes], offset: int, size: int) -> Block:
    """The numbers of one tensor that torch saved, a zip of `size` bytes that begins at `offset`.

    Its pickle is read by torch's own reader of weights, which makes nothing but tensors.
    """
    import pickle

    import torch

    file.seek(offset)
    data = file.read(size)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        numbers = [info for info in archive.infolist() if info.filename.endswith("/data/0")]
        others = [info for info in archive.infolist() if "/data/" in info.filename]
    if len(numbers) != 1 or len(others) != 1 or numbers[0].compress_type != zipfile.ZIP_STORED:
        raise ValueError("not one tensor of torch")
    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    dtype = str(getattr(tensor, "dtype", "")).removeprefix("torch.")
    if dtype not in TORCH_TYPES or not tensor.is_contiguous() or tensor.storage_offset():
        raise ValueError("not one whole tensor of floats")
    head = data[numbers[0].header_offset :][:30]
    start = (
        numbers[0].header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    )
    return within(Block(offset + start, tuple(tensor.shape), dtype), offset, size)


def within(block: Block, offset: int, size: int) -> Block:
    """The block, if it ends where its member does or before."""
    if any(side < 1 for side in block.shape) or block.offset + block.size > offset + size:
        raise ValueError("its header promises more than there is, or nothing")
    return block
