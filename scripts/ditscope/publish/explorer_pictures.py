"""The pictures of the explorer: where they lie, and thumbnails of them that fit a budget of bytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ditscope.capture.files import DECODED, captures_in, decoded_file, picture_file, read_metadata
from ditscope.core.errors import InputError, parsing
from ditscope.core.picture_file import whole
from ditscope.core.shards import check_end
from ditscope.core.tables import read_table
from ditscope.publish.explorer_tables import encoded

# Longest side of a thumbnail in pixels, and the quality of its WebP (0: lossless): the first at which all fit is taken.
FORMS = ((256, 0), (256, 90), (192, 85), (160, 80), (128, 80), (96, 80), (64, 80), (48, 75), (32, 75))
HIGH = 16_000  # pixels that a sheet may be high: WebP has 16,383
PROBES = 40  # pictures by which the size of all is estimated
FLAT = 0.75  # bytes of a picture in a page: base64 has 4 letters for 3 bytes


@dataclass(frozen=True)
class Source:
    """A picture of the study: its name in the page, the view that shows it, and how its bytes are read."""

    name: str
    view: str
    read: Callable[[], bytes]
    sides: int = 1  # how many times wider than others it is, and any number of times higher: a sheet of pictures


@dataclass
class Pictures:
    """Thumbnails: the place of each name among the encoded WebP pictures, equal ones once."""

    places: dict[str, int] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    side: int = 0
    notes: list[str] = field(default_factory=list)


def thumbnails(sources: list[Source], budget: int) -> Pictures:
    """Encode pictures as large as all of them fit `budget` bytes of a page; where none do, each view's first ones.

    What was left out, or could not be read, is told in the notes.
    """
    result = Pictures()
    form, kept = form_that_fits(sources, budget)
    result.side = form[0]
    spent, known, damaged = 0, dict[str, int](), list[str]()
    for number, source in enumerate(kept):
        try:
            webp = thumbnail(source, form)
        except InputError as error:
            damaged.append(f"{source.name} ({error})")
            continue
        digest = hashlib.sha256(webp).hexdigest()
        if digest not in known:
            text = encoded(webp)
            if spent + len(text) > budget:
                kept = kept[:number]
                break
            spent += len(text)
            known[digest] = len(result.data)
            result.data.append(text)
        result.places[source.name] = known[digest]
    if damaged:
        result.notes.append(f"{len(damaged)} pictures could not be read, first {damaged[0]}")
    if len(kept) < len(sources):
        result.notes.append(
            f"pictures: the first {len(kept):,} of {len(sources):,}, each view with its share, so that the page stays "
            "within publish.explorer_bytes; all of them are in the study's own files"
        )
    return result


def form_that_fits(sources: list[Source], budget: int) -> tuple[tuple[int, int], list[Source]]:
    """The best of `FORMS` in which all pictures fit, by the mean size of some, or the smallest with those that do."""
    if not sources:
        return FORMS[0], []
    probes = sources[:: max(1, len(sources) // PROBES)]
    mean = 0.0
    for form in FORMS:
        sizes = [size for source in probes if (size := size_of(source, form))]
        mean = 1.1 * sum(sizes) / max(1, len(sizes)) / FLAT or 1.0
        if mean * len(sources) <= budget:
            return form, sources
    return FORMS[-1], first_of_each(sources, int(budget / mean))


def size_of(source: Source, form: tuple[int, int]) -> int:
    """Bytes of a thumbnail; 0 of a picture that cannot be read."""
    try:
        return len(thumbnail(source, form))
    except InputError:
        return 0


def first_of_each(sources: list[Source], most: int) -> list[Source]:
    """At most `most` pictures: the first of each view, in equal shares as far as they have so many."""
    by_view: dict[str, list[Source]] = {}
    for source in sources:
        by_view.setdefault(source.view, []).append(source)
    kept: list[Source] = []
    for left, group in enumerate(sorted(by_view.values(), key=len)):
        kept += group[: (most - len(kept)) // (len(by_view) - left)]
    return kept


def thumbnail(source: Source, form: tuple[int, int]) -> bytes:
    """A picture as WebP in one of `FORMS`. Raises InputError where it is none."""
    side, quality = form
    with whole(), Image.open(io.BytesIO(source.read())) as opened:
        image = opened.convert("RGB")
    wide = side * source.sides
    image.thumbnail((wide, wide if source.sides == 1 else HIGH), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=not quality, quality=quality or 20, method=4 if quality else 3)
    return out.getvalue()


# Where pictures lie ---------------------------------------------------------------------------------------------------


def members(path: Path) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Key and extension of each file in a tar shard, with how it is read when it is wanted."""
    with parsing(path, "not a readable tar shard ({}); run its stage again", (tarfile.TarError,)):
        check_end(path)
        with tarfile.open(path, "r:") as tar:
            found = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    for name, offset, size in found:
        key, _, extension = Path(name).name.partition(".")
        yield key, extension, partial(part_of, path, offset, size)


def part_of(path: Path, offset: int, size: int) -> bytes:
    """Some bytes of a file."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def samples(path: Path) -> Iterator[tuple[str, dict[str, Any], Callable[[], bytes]]]:
    """Key, record and PNG of each sample of a tar shard that has a picture."""
    by_key: dict[str, dict[str, Callable[[], bytes]]] = {}
    for key, extension, read in members(path):
        by_key.setdefault(key, {})[extension] = read
    for key, parts in by_key.items():
        if "png" in parts:
            yield key, json.loads(parts["json"]()) if "json" in parts else {}, parts["png"]


def runs_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that share a picture, each with its prompt's id and seed."""
    return record.get("runs") or [record]


def state_sources(files: list[Path]) -> Iterator[Source]:
    """Pictures of trajectories: `state/<network>/<key>`."""
    for path in tars(files):
        for key, _, read in samples(path):
            yield Source(f"state/{path.parent.name}/{key}", "trajectories", read)


def image_sources(files: list[Path]) -> Iterator[Source]:
    """Generated pictures: `image/<model>/<prompt>/<seed>`."""
    for path in tars(files):
        for _, record, read in samples(path):
            for run in runs_of(record):
                yield Source(f"image/{path.parent.name}/{run.get('prompt_id')}/{run.get('seed')}", "study", read)


def ablation_sources(files: list[Path]) -> Iterator[Source]:
    """Pictures with a block ablated: `ablation/<model>/<block>/<kind>`; `none/none` is the unchanged one."""
    for path in tars(files):
        for _, record, read in samples(path):
            yield Source(f"ablation/{path.stem}/{record.get('block')}/{record.get('kind')}", "blocks", read)


def benchmark_sources(files: list[Path], most: int = 24) -> Iterator[Source]:
    """Pictures of the first prompts under each scheme: `benchmark/<model>/<hardware>/<run>/<prompt>/<seed>`."""
    for path in tars(files):
        place = f"benchmark/{path.parent.parent.name}/{path.parent.name}/{path.stem}"
        made = {(str(r.get("prompt_id")), r.get("seed")): read for _, s, read in samples(path) for r in runs_of(s)}
        for prompt, seed in islice(sorted(made, key=str), most):
            yield Source(f"{place}/{prompt}/{seed}", "benchmark", made[prompt, seed])


def tars(files: list[Path]) -> list[Path]:
    """The tar shards among files."""
    return [path for path in files if path.suffix == ".tar" and path.exists()]


def captures(files: list[Path], problems: list[str]) -> list[dict[str, Any]]:
    """What was captured: of each generation its folder, prompt, steps, blocks and which kinds of decode it has."""
    told = []
    for folder in (path for path in files if path.is_dir()):
        try:
            generations = captures_in(folder)
        except InputError as error:
            problems.append(str(error))
            continue
        for generation in generations:
            metadata = read_metadata(generation)
            kind = next((k for k in DECODED if (generation / "intermediates" / DECODED[k]).is_dir()), "")
            told.append(
                {key: metadata.get(key) for key in ("model", "prompt_id", "prompt", "seed", "steps", "guidance")}
                | {
                    "generation": generation.name,
                    "set": folder.name,
                    "folder": generation,
                    "sigmas": metadata.get("sigmas", []),
                    "captured_steps": metadata.get("captured_steps", []),
                    "blocks": metadata.get("captured_blocks", []),
                    "decode": kind,
                }
            )
    return told


def capture_sources(told: list[dict[str, Any]]) -> Iterator[Source]:
    """Final pictures and decoded intermediates: `capture/<generation>/final`, `capture/<generation>/<step>/<block>`."""
    for one in told:
        folder, name = one["folder"], f"capture/{one['generation']}"
        with suppress(InputError):  # the page says that there is none
            yield Source(f"{name}/final", "blocks", picture_file(folder).read_bytes)
        for step in one["captured_steps"] if one["decode"] else []:
            for block in one["blocks"]:
                if (path := decoded_file(folder, one["decode"], step, block)).exists():
                    yield Source(f"{name}/{step}/{block}", "blocks", path.read_bytes)


def refiner_sources(files: list[Path]) -> Iterator[Source]:
    """Pictures of a refiner's gallery, `refine/<refiner>/<level>/<sample>/<method>`.

    Sheets that a refiner left, and `compared.png` of its storyboards, are shown as they are:
    `refine/<refiner>/<name>/whole`.
    """
    for path in (file for file in files if file.exists()):
        if path.name == "gallery.parquet":
            for row in read_table(path, "refine.gallery").iter_rows(named=True):
                if (picture := path.parent / row["picture"]).suffix == ".png" and picture.exists():
                    name = f"refine/{path.parent.name}/{row['level']}/{row['key']}/{row['method']}"
                    yield Source(name, "refiner", picture.read_bytes, sides=2)
        elif path.suffix == ".png":
            yield Source(f"refine/{path.parent.name}/{path.stem}/whole", "refiner", path.read_bytes, sides=4)
        elif path.parent.name == "storyboards":
            for picture in sorted(path.rglob("compared.png")):
                name = "-".join(picture.relative_to(path.parent).parts[:-1])
                yield Source(f"refine/{path.parent.parent.name}/{name}/whole", "refiner", picture.read_bytes, sides=4)
