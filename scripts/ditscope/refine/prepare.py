"""Prepare the data of a refiner: write or find its shards, index them, split them, and take their statistics."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from ditscope.core.atomic import make_folder, write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile, OutputFolder
from ditscope.core.plugins import load_plugin
from ditscope.core.scratch import discard, unfinished
from ditscope.core.settings import plain
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.tables import write_table
from ditscope.models.settings import Model
from ditscope.refine.adapter import Adapter, load_adapter
from ditscope.refine.data_settings import SOURCES, Source, adapter_of, check_source_of
from ditscope.refine.dataset import HELD_OUT, KIND, SCHEMA_VERSION, TRAIN, Dataset, dataset, mapped, numbers, read_raw
from ditscope.refine.samples import Damage, Sample
from ditscope.refine.shard_index import TEXT, VALUES, Entry, entries
from ditscope.refine.tables import SAMPLES
from ditscope.refine.text import TextEncoder, load_text_encoder

log = logging.getLogger(__name__)
ENCODED = 64  # samples that are encoded together
CHUNK = 64  # samples that statistics are taken of together
# The columns of the table `refine.samples` less the split, and what the source says of that.
INDEX = {name: kind for name, kind in SAMPLES.schema().items() if name != "split"} | {"held_out": pl.Boolean()}
ENTRY = ("family", "source", "revision", "width", "height")  # what of a model its VAE and text encoder depend on


def prepare(
    models: dict[str, Model],
    samples: OutputFile,
    about: OutputFile,
    data: OutputFolder,
    images: list[InputFile] = [],  # noqa: B006 (never changed; the command line shows it)
    source: Source = Source(),
    partial: OutputFolder | None = None,
) -> None:
    """Make the data of a refiner from `source`: shards in `data` (none where they are used in place), and their index.

    `images` are the shards of `generate`, for sources of the kind `generated`. Leaves `samples` (table
    `refine.samples`) and `about` (json: shapes, types, statistics of the training split, what was left out). What was
    encoded is found again in `partial`.
    """
    check_source_of("source", source)
    plugin = load_plugin(source.kind, SOURCES, "source.kind", "a source")
    damage = Damage(source.damaged)
    adapter, text = described(source, models)
    make_folder(data)
    encoder: TextEncoder | None = None
    parts = unfinished(partial, samples, {"adapter": adapter, "text": text, "source": source})
    if hasattr(plugin, "shards"):
        folder, shards = plugin.shards(source)
        write_text(data / "where.txt", f"The shards lie in {folder}.\n")
    else:
        folder = data.parent
        encoder = load_text_encoder(text) if text else None
        made = encoded(plugin.samples(source, images, damage), adapter, encoder, source, damage, parts)
        shards = write_shards(made, data, source)
    table, shared = indexed(shards, folder, source, damage, hasattr(plugin, "shards"))
    told = told_of(table, shared, folder if folder != data.parent else None, data.parent, source, models)
    write_table(table, samples, SAMPLES)
    told |= {"left_out": damage.noted, "short": damage.short, "truncated": len(encoder.cut) if encoder else 0}
    write_text(about, json.dumps(told, indent=2, sort_keys=True) + "\n")
    if told["truncated"]:
        log.warning("refine: %d prompts are longer than their encoder reads", told["truncated"])
    discard(parts)
    lost = sum(noted["samples"] for noted in damage.noted)
    log.info("refine: %d samples, %d of them held out; %d left out", len(table), told["samples"][HELD_OUT], lost)


def indexed(
    shards: list[Path], folder: Path, source: Source, damage: Damage, given: bool
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The table `refine.samples` of shards below `folder`, and what all samples share; `given` are the user's own."""
    rows, shared = index(shards, folder, damage, given)
    plugin = load_plugin(source.kind, SOURCES, "source.kind", "a source")
    return split(rows, source, plugin), shared


def told_of(
    table: pl.DataFrame,
    shared: dict[str, Any],
    elsewhere: Path | None,
    home: Path,
    source: Source,
    models: Mapping[str, Model],
) -> dict[str, Any]:
    """What data.json tells of samples, whose shards lie in the folder `elsewhere`, or else below `home`."""
    adapter, text = described(source, models)
    told = shared | {"kind": KIND, "schema_version": SCHEMA_VERSION, "folder": str(elsewhere or "")}
    told |= {"source": plain(source), "adapter": adapter, "text": text}
    zeros = {"mean": [0.0] * shared["shape"][0], "std": [1.0] * shared["shape"][0]}
    mean, std = statistics(dataset(table, told | zeros, home), source.statistics)
    counts = {name: int((table["split"] == name).sum()) for name in (TRAIN, HELD_OUT)}
    return told | {"mean": mean.tolist(), "std": std.tolist(), "samples": counts}


def described(source: Source, models: Mapping[str, Model]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of a source's adapter and of its text encoder, the latter empty where there is none."""
    kind = adapter_of(source)
    named: dict[str, Any] = {}
    if source.model:
        if source.model not in models:
            raise InputError(f"source.model: `{source.model}` is not in the config's `models`")
        entry = models[source.model]
        named = {"model": source.model, "entry": {k: getattr(entry, k) for k in ENTRY}}
    reads = named and source.text_encoder
    return {"kind": kind} | (named if kind in ("vae", "latents") else {}), (
        named | {"folder": source.text_encoder} if reads else {}
    )


def encoded(
    samples: Iterable[Sample],
    adapter: dict[str, Any],
    encoder: TextEncoder | None,
    source: Source,
    damage: Damage,
    parts: Path,
) -> Iterator[dict[str, Any]]:
    """Samples as members of a shard: their values encoded and their prompts' tokens, in one type.

    What was encoded in an interrupted run, group by group, is found in `parts`.
    """
    loaded: Adapter | None = None
    shape: tuple[int, ...] = ()
    number = 0
    for group in batched(samples, ENCODED):
        part = parts / f"{group_digest(group)}.tar"
        if part.exists():
            pairs = read_part(part, group, encoder)
        else:
            if group[0].pictures is not None:
                loaded = loaded or load_adapter(adapter)
            values = [np.asarray(value).astype(source.dtype) for value in values_of(group, loaded, adapter["kind"])]
            tokens = encoder([s.prompt for s in group]) if encoder else [None] * len(group)
            pairs = list(zip(values, tokens, strict=True))
            if loaded or encoder:
                write_part(pairs, group, encoder, part)
        for sample, (value, words) in zip(group, pairs, strict=True):
            shape = shape or value.shape
            if reason := unfit(value, shape):
                damage.note(f"sample {sample.key}", reason)
                continue
            record = {"key": sample.key, "prompt": sample.prompt, "prompt_id": sample.prompt_id or sample.key}
            about = {"seed": sample.seed, "label": sample.label, "held_out": sample.held_out}
            words = words if sample.text is None else sample.text.astype(np.float16)
            members = {"__key__": f"{number:08d}", "json": record | about, "values.npy": value}
            yield members if words is None else members | {"text.npy": words}
            number += 1


Encoded = list[tuple[np.ndarray, np.ndarray | None]]  # values and text tokens of a group of samples


def group_digest(group: list[Sample]) -> str:
    """What identifies what is encoded of a group."""
    seen = hashlib.sha256()
    for sample in group:
        array = sample.values if sample.pictures is None else sample.pictures
        seen.update(json.dumps([sample.key, sample.prompt]).encode())
        seen.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return seen.hexdigest()[:32]


def write_part(pairs: Encoded, group: list[Sample], encoder: TextEncoder | None, part: Path) -> None:
    """Keep what was encoded of a group for a run that goes on from here."""
    cut = encoder.cut if encoder else set()
    kept = (
        {"__key__": f"{n:04d}", "json": {"cut": sample.prompt in cut}, "values.npy": value}
        | ({} if words is None else {"text.npy": words})
        for n, (sample, (value, words)) in enumerate(zip(group, pairs, strict=True))
    )
    write_tar(kept, part)


def read_part(part: Path, group: list[Sample], encoder: TextEncoder | None) -> Encoded:
    """What was encoded of a group; its prompts are known to the encoder as if it had encoded them now."""
    kept = list(read_tar(part))
    for sample, found in zip(group, kept, strict=True):
        if encoder:
            encoder.remembered[sample.prompt] = found["text.npy"]
            encoder.cut |= {sample.prompt} if found["json"]["cut"] else set()
    return [(found["values.npy"], found.get("text.npy")) for found in kept]


def values_of(group: list[Sample], adapter: Adapter | None, kind: str) -> list[np.ndarray]:
    """The values of samples of one shape, encoded where they are pictures."""
    pictures = [s.pictures for s in group if s.pictures is not None]
    if not pictures:
        return [s.values for s in group if s.values is not None]
    if adapter is None or adapter.encode is None:
        raise InputError(f"source.adapter: `{kind}` encodes no pictures; choose vae or pixels")
    return list(adapter.encode(np.stack(pictures)))


def unfit(value: np.ndarray, shape: tuple[int, ...]) -> str:
    """Why values cannot be in a set whose first sample is of `shape`; empty where they can."""
    if value.shape != shape:
        return f"its values have the shape {value.shape}, those of the first sample {shape}"
    return "" if np.isfinite(value).all() else f"NaN or Inf in its values, as {value.dtype}"


def batched(samples: Iterable[Sample], most: int) -> Iterator[list[Sample]]:
    """Samples in groups whose pictures have one shape."""

    def alike(sample: Sample) -> Any:
        return None if sample.pictures is None else sample.pictures.shape

    for _, group in itertools.groupby(samples, alike):
        while part := list(itertools.islice(group, most)):
            yield part


def write_shards(made: Iterator[dict[str, Any]], folder: Path, source: Source) -> list[Path]:
    """Write samples to shards of `shard_samples` in `folder`, their paths; refuses a set of none."""
    shards: list[Path] = []
    bar = tqdm(desc=source.kind, unit="sample", disable=None)
    for first in made:
        path = folder / f"{len(shards):05d}.tar"
        rest = itertools.islice(made, source.shard_samples - 1)
        write_tar((bar.update() or sample for sample in itertools.chain([first], rest)), path)
        shards.append(path)
    for stale in set(folder.glob("[0-9]" * 5 + ".tar")) - set(shards):  # of an earlier, longer set
        stale.unlink()
    if not shards:
        raise InputError(f"source: `{source.kind}` gives no samples; see what it was given")
    return shards


def index(shards: list[Path], folder: Path, damage: Damage, given: bool) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A row of the table `refine.samples`, without its split, for each sample of shards; and what all share.

    Of shards that are `given` by the user one that cannot be read to its end is damaged as a whole, all but the last
    are to have as many samples as the first, and where damage is skipped all values are read, to find NaN in them.
    """
    tables: list[pl.DataFrame] = []
    rows = 0
    like: dict[str, Any] = {}
    words = expected = 0
    verify = given and damage.policy == "skip"
    for path in tqdm(shards, desc="shards", unit="shard", disable=None):
        part: list[dict[str, Any]] = []
        name = path.relative_to(folder).as_posix()
        found = list_entries(path, damage, expected) if given else list(entries(path))
        expected = expected or len(found)
        if given and found and len(found) < expected and path != shards[-1]:
            damage.note_short(path, len(found), expected)
        for entry in found:
            if reason := misfit(entry, like) or (not_finite(path, entry) if verify else ""):
                damage.note(path, f"sample {entry.key} {reason}")
                continue
            like = like or kind_of(entry)
            words = max(words, entry.blocks[TEXT].shape[0] if TEXT in entry.blocks else 0)
            part.append({"row": rows + len(part)} | row_of(entry) | {"shard": name})
        rows += len(part)
        tables.append(pl.DataFrame(part, INDEX))
    if not rows:
        raise InputError(f"{folder}: no whole sample in {len(shards)} shards; see what it was given")
    return pl.concat(tables), like | {"words": words, "shards": len(shards), "estimated": expected * len(shards)}


def list_entries(path: Path, damage: Damage, expected: int) -> list[Entry]:
    """The samples of a shard; none of one that cannot be read to its end, which counts as many as the first had."""
    found: list[Entry] = []
    try:
        found.extend(entries(path))
    except InputError as error:
        damage.note(path, str(error).removeprefix(f"{path}: "), max(expected, len(found)))
        return []
    return found


def not_finite(path: Path, entry: Entry) -> str:
    """What is wrong where a sample's values hold NaN or Inf; empty where they do not."""
    block = entry.blocks[VALUES]
    values = numbers(mapped(path), block.dtype, int(np.prod(block.shape)), block.offset)
    return "" if np.isfinite(values).all() else "has NaN or Inf in its values"


def kind_of(entry: Entry) -> dict[str, Any]:
    """What the samples of a set share: shape and type of values, width and type of text tokens."""
    values, text = entry.blocks[VALUES], entry.blocks.get(TEXT)
    shared = {"shape": list(values.shape), "dtype": values.dtype}
    return shared | {"text_width": text.shape[1] if text else 0, "text_dtype": text.dtype if text else ""}


def misfit(entry: Entry, like: dict[str, Any]) -> str:
    """Why a sample cannot be in a set of samples `like` this (empty: it is the first); empty where it can."""
    if VALUES not in entry.blocks:
        return "has no values (`values.npy` or `latent.npy`)"
    if not 2 <= len(entry.blocks[VALUES].shape) <= 4:
        shapes = "(channels, y, x), (channels, t, y, x) or (channels, t)"
        return f"has values of shape {entry.blocks[VALUES].shape}, not {shapes}"
    if TEXT in entry.blocks and len(entry.blocks[TEXT].shape) != 2:
        return f"has text tokens of shape {entry.blocks[TEXT].shape}, not (words, width)"
    if like and (own := kind_of(entry)) != like:
        what = next(name for name in like if own[name] != like[name])
        return f"has {what} {own[what]}, the first {like[what]}"
    return ""


def row_of(entry: Entry) -> dict[str, Any]:
    """What the table tells of a sample, and `held_out` where its source says that."""
    values, text, record = entry.blocks[VALUES], entry.blocks.get(TEXT), entry.record
    key = str(record.get("key", entry.key))
    return {
        "key": key,
        "prompt_id": str(record.get("prompt_id", key)),
        "prompt": str(record.get("prompt", entry.prompt)),
        "seed": int(record.get("seed", 0)),
        "label": str(record.get("label", entry.label)),
        "held_out": record.get("held_out"),
        "values_offset": values.offset,
        "values_bytes": values.size,
        "text_offset": text.offset if text else 0,
        "text_bytes": text.size if text else 0,
    }


def split(table: pl.DataFrame, source: Source, plugin: ModuleType) -> pl.DataFrame:
    """The table with its column `split`.

    Held out is what its source says, or else what shares a prompt, label or key whose hash is below the share: the
    same in any set. Where that is nothing, or all, the group of the lowest, or highest, hash is moved.
    """
    by = source.held_out_by or plugin.HELD_OUT_BY
    column = {"attributes": "label", "sample": "key"}.get(by, by)
    groups = table[column].unique().to_list()
    place = {g: int(hashlib.sha256(g.encode()).hexdigest()[:12], 16) / 16**12 for g in groups}
    out = {g: place[g] < source.held_out for g in groups}
    if by == "attributes":
        said = table.filter(pl.col("held_out").is_not_null()).select(column, "held_out").unique()
        out |= dict(said.rows())
    if source.held_out and len(groups) > 1 and len(set(out.values())) == 1:
        moved = (max if all(out.values()) else min)(groups, key=lambda g: place[g])
        out[moved] = not out[moved]
    held = pl.Series([out[g] for g in table[column].to_list()], dtype=pl.Boolean)
    if held.all():
        raise InputError("source.held_out: all samples would be held out; lower it, or give more of them")
    named = pl.select(pl.when(held).then(pl.lit(HELD_OUT)).otherwise(pl.lit(TRAIN)).alias("split"))["split"]
    return table.with_columns(named).select(list(SAMPLES.columns))


def statistics(data: Dataset, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over training samples, at most `most` of them, evenly over all.

    Sums are joined chunk by chunk (Chan, Golub and LeVeque 1983, equations 2.1), so nothing is held.
    """
    rows = data.rows(TRAIN)
    if most and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    chunk = max(1, min(CHUNK, 2**21 // (data.channels * int(np.prod(data.space)))))
    count, mean, squares = 0, np.zeros(data.channels), np.zeros(data.channels)
    for start in range(0, len(rows), chunk):
        part = read_raw(data, rows[start : start + chunk])
        finite = np.isfinite(part.reshape(len(part), -1)).all(1)
        if not finite.all():
            key = data.samples["key"][int(rows[start : start + chunk][~finite][0])]
            raise InputError(f"{data.root}: sample {key} has NaN or Inf in its values; make it again or leave it out")
        flat = np.moveaxis(part, 1, 0).reshape(data.channels, -1).astype(np.float64)
        n, own = flat.shape[1], flat.mean(1)
        squares += ((flat - own[:, None]) ** 2).sum(1) + (own - mean) ** 2 * count * n / (count + n)
        mean += (own - mean) * n / (count + n)
        count += n
    return mean, np.sqrt(squares / count) + 1e-6
