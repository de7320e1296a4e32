"""The data of a refiner: a table of samples and shards that are mapped, never held in memory.

Any sample is read by its row, so that what is drawn is a function of seed, step and number alone: a training resumes in
the middle of an epoch, and is split over processes, without keeping where it was.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import MALFORMED, InputError, check_version, parsing, read_json
from ditscope.core.tables import read_table

SCHEMA_VERSION = "1"
KIND = "refine.data"
TRAIN, HELD_OUT = "train", "held-out"
OPEN_SHARDS = 128  # mapped at once


@dataclass(frozen=True)
class Dataset:
    """Samples and where their numbers lie."""

    samples: pl.DataFrame  # the table `refine.samples`
    root: Path  # the folder that names of shards start from
    channels: int
    space: tuple[int, ...]  # (y, x), (t, y, x) or (t,)
    mean: np.ndarray  # (channels,) float32, over the training split
    std: np.ndarray  # (channels,) float32
    words: int  # most tokens of a text; 0 without text
    text_width: int
    dtype: str
    text_dtype: str
    adapter: dict[str, Any]  # what `adapter.load_adapter` takes
    text: dict[str, Any]  # what `text.load_text_encoder` takes; empty where tokens are the data's own

    def __post_init__(self) -> None:
        _ = self.where  # here, not in a worker of a loader: polars hangs in a forked process

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split, `train` or `held-out`, in order."""
        return np.flatnonzero((self.samples["split"] == split).to_numpy())

    @cached_property
    def where(self) -> dict[str, Any]:
        """The columns that reading needs, as arrays."""
        columns = ("values_offset", "values_bytes", "text_offset", "text_bytes")
        told = {column: self.samples[column].to_numpy() for column in columns}
        ends = np.maximum(told["values_offset"] + told["values_bytes"], told["text_offset"] + told["text_bytes"])
        number: dict[str, int] = {}
        shard = [number.setdefault(name, len(number)) for name in self.samples["shard"].to_list()]
        return told | {"end": ends, "shards": list(number), "shard": np.array(shard, np.int64)}


def open_dataset(samples: Path, about: Path) -> Dataset:
    """Open what `prepare` left: the table of samples and data.json beside which (or in whose `root`) the shards lie."""
    told, table = read_about(about), read_table(samples, "refine.samples")
    with parsing(about, "not a whole data.json ({}); make the refiner's data again", MALFORMED):
        data, count = dataset(table, told, Path(about).parent), sum(told["samples"].values())
        if not len(data.mean) == len(data.std) == data.channels or not (data.std > 0).all():
            raise ValueError("statistics of other channels")
    if len(table) != count:
        raise InputError(f"{samples}: {len(table)} samples, {about} tells of {count}; make both again")
    return data


def dataset(table: pl.DataFrame, told: dict[str, Any], home: Path) -> Dataset:
    """A table of samples with what data.json, which lies in the folder `home`, tells of them."""
    channels, *space = told["shape"]
    return Dataset(
        samples=table,
        root=Path(told["folder"] or home),
        channels=channels,
        space=tuple(space),
        mean=np.array(told["mean"], np.float32),
        std=np.array(told["std"], np.float32),
        **{name: told[name] for name in ("words", "text_width", "dtype", "text_dtype", "adapter", "text")},
    )


def read_about(path: Path) -> dict[str, Any]:
    """What data.json tells. Raises InputError where it is none, or of another version."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; make the refiner's data first")
    told = read_json(path, "not a readable data.json ({}); make the refiner's data again")
    if told.get("kind") != KIND:
        raise InputError(f"{path}: tells of {told.get('kind')}, not of a refiner's data")
    check_version(path, told.get("schema_version"), SCHEMA_VERSION, "make the refiner's data again")
    return told


def read_values(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Standardised values (rows, channels, *space) float32.

    Raises InputError, with the sample's key, where one is not finite.
    """
    values = read_raw(data, rows)
    if not np.isfinite(values).all():
        bad = int(rows[~np.isfinite(values.reshape(len(values), -1)).all(1)][0])
        key, shard = data.samples["key"][bad], data.samples["shard"][bad]
        raise InputError(
            f"{data.root / shard}: sample {key} has NaN or Inf in its values; make it again or leave it out"
        )
    axes = (-1, *[1] * len(data.space))
    values -= data.mean.reshape(axes)
    values /= data.std.reshape(axes)
    return values


def read_raw(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Values (rows, channels, *space) float32 as they are stored."""
    shape = (data.channels, *data.space)
    values = np.empty((len(rows), *shape), np.float32)
    size = int(np.prod(shape))
    for place, shard, row in by_shard(data, rows):
        values[place] = numbers(shard, data.dtype, size, int(data.where["values_offset"][row])).reshape(shape)
    return values


def read_text(data: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text tokens (rows, words, width) float32 and which of them are there (rows, words) bool.

    What is padding in the data (zero throughout) is not there.
    """
    text = np.zeros((len(rows), data.words, data.text_width), np.float32)
    if not data.words:
        return text, np.zeros(text.shape[:2], bool)
    item = itemsize(data.text_dtype)
    for place, shard, row in by_shard(data, rows):
        count = int(data.where["text_bytes"][row]) // item
        tokens = numbers(shard, data.text_dtype, count, int(data.where["text_offset"][row]))
        text[place, : count // data.text_width] = tokens.reshape(-1, data.text_width)
    return text, (text != 0).any(-1)


def by_shard(data: Dataset, rows: np.ndarray) -> Iterator[tuple[int, mmap.mmap, int]]:
    """Of each row its place in `rows`, the map of its shard, which holds all of it, and itself; shard by shard."""
    where = data.where
    order = np.argsort(where["shard"][rows], kind="stable")
    opened, shard, path = None, -1, data.root
    for place in order:
        row = int(rows[place])
        if where["shard"][row] != shard or opened is None:
            shard = where["shard"][row]
            path = data.root / where["shards"][shard]
            opened = mapped(path)
        if where["end"][row] > len(opened):
            raise InputError(f"{path}: shorter than its table says; make the refiner's data again")
        yield int(place), opened, row


def mapped(path: Path) -> mmap.mmap:
    """A shard, mapped; again only where the file is another than before."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such shard; make the refiner's data again") from None
    return _mapped(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(OPEN_SHARDS)
def _mapped(path: Path, size: int, changed: int) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def itemsize(dtype: str) -> int:
    """Bytes of a number; NumPy has no bfloat16."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def numbers(shard: mmap.mmap, dtype: str, count: int, offset: int) -> np.ndarray:
    """`count` numbers of a mapped file as float32, or as they are where that is exact."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(shard, np.uint16, count, offset).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(shard, np.dtype(dtype), count, offset)
