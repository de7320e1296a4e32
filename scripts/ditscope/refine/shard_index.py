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
from functools import lru_cache
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
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
TORCH_TYPES = ("float32", "float16", "bfloat16", "float64")


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
    start = file.read(12)
    wide = start[6:7] != b"\x01"  # the length of the head has two bytes in version 1, then four
    length = 12 + int.from_bytes(start[8:12], "little") if wide else 10 + int.from_bytes(start[8:10], "little")
    shape, fortran, dtype = npy_header(start + file.read(min(length, size) - len(start)))
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    if dtype.kind != "f" or dtype.byteorder == ">":
        raise ValueError(f"numbers of type {dtype}, not little-endian floats")
    return within(Block(offset + length, shape, dtype.name), offset, size)


@lru_cache(64)  # the samples of a set have few
def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type that the head of a .npy tells."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy of version {version}")
    return read(file)


def pth_block(file: IO[bytes], offset: int, size: int) -> Block:
    """The numbers of one tensor that torch saved: a zip of `size` bytes that begins at `offset`, read by its directory.

    Its pickle is read by torch's own reader of weights, which makes nothing but tensors.
    """
    with zipfile.ZipFile(Part(file, offset, size)) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        numbers = members.get("data/0")
        stored = [info for name, info in members.items() if name.startswith("data/")]
        if (
            numbers is None
            or len(stored) > 1
            or numbers.compress_type != zipfile.ZIP_STORED
            or "data.pkl" not in members
        ):
            raise ValueError("not one tensor of torch")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("numbers that are not little-endian")
        if numbers.file_size > size:
            raise ValueError("its directory promises more than there is")
        shape, dtype = tensor_header(archive.read(members["data.pkl"]), numbers.file_size)
    file.seek(offset + numbers.header_offset)
    head = file.read(30)  # two lengths in it tell where the numbers begin
    start = numbers.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return within(Block(offset + start, shape, dtype), offset, size)


@lru_cache(64)  # the samples of a set have few
def tensor_header(pickled: bytes, size: int) -> tuple[tuple[int, ...], str]:
    """Shape and type of a whole, contiguous tensor of floats by its pickle, read over `size` bytes of zeros."""
    import torch

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("data/0", bytes(size))):
            archive.writestr(f"archive/{name}", data)
    buffer.seek(0)
    try:
        tensor = torch.load(buffer, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    dtype = str(getattr(tensor, "dtype", "")).removeprefix("torch.")
    if dtype not in TORCH_TYPES or not tensor.is_contiguous() or tensor.storage_offset():
        raise ValueError("not one whole tensor of floats")
    return tuple(tensor.shape), dtype


class Part(io.RawIOBase):
    """`size` bytes of an open file from `offset` on, as a file of their own."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.place = file, offset, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = 0) -> int:
        place += (0, self.place, self.size)[whence]
        if place < 0:
            raise ValueError("a place before the beginning")
        self.place = place
        return place

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        self.file.seek(self.offset + self.place)
        data = self.file.read(left if count < 0 else min(count, left))
        self.place += len(data)
        return data


def within(block: Block, offset: int, size: int) -> Block:
    """The block, if it ends where its member does or before."""
    if any(side < 1 for side in block.shape) or block.offset + block.size > offset + size:
        raise ValueError("its header promises more than there is, or nothing")
    return block
