"""Prompt CSVs and tables of runs: read strictly, counted, split into shards."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ditscope.core.errors import InputError
from ditscope.core.identity import derived_seed, digest
from ditscope.prompts.settings import Prompts
from ditscope.prompts.tables import PROMPTS

if TYPE_CHECKING:
    import polars as pl

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")  # no XML, so no SVG, can hold one
INTEGER = re.compile(r"[-+]?[0-9]+")
LINE_BREAK = re.compile(r"\r\n|\r|\n")
# A field in quotes (1) or without (2); an opened quote that is not closed is a field without, up to the comma.
FIELD = re.compile(r'"((?:[^"]|"")*+)"|([^,\r\n]*+)')
OTHER_KINDS = {
    b"PAR1": "a Parquet table",
    b"PK\x03\x04": "a spreadsheet or archive (ZIP)",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"\x1f\x8b": "a gzip file",
}
MAX_SEED = 2**63 - 1
COLUMNS = ("prompt", "prompt_id", "seed", "family", "negative_prompt")
MAX_SHARDS = 99_999  # five digits in file names
ADVISED_SHARDS = 1_000  # a plan of seconds; more shards only help where more GPUs than that work at once


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt CSV; `seed` None takes the seeds of the config."""

    prompt_id: str
    prompt: str
    negative_prompt: str = ""
    family: str = ""
    seed: int | None = None


def read_prompts(path: Path | str, count: int = 0) -> list[Prompt]:
    """Read the first `count` prompts of a CSV (0: all). Raises InputError with file and row (the header is row 1)."""
    return list(islice(iter_prompts(path), count or None))


def iter_prompts(path: Path | str) -> Iterator[Prompt]:
    """The prompts of a CSV one by one, each checked: a million of them need not be in memory together.

    The CSV is that of RFC 4180 in UTF-8: commas, fields with commas, quotes or line breaks in double quotes, quotes in
    them doubled. Blank lines count as rows and are passed over.
    """
    path = Path(path)
    rows = csv_rows(path, csv_text(path))
    _, _, first = next(rows, (0, 0, []))
    if not first:
        raise InputError(f"{path}: empty; the first row must name the columns, `prompt` among them")
    header = header_of(path, first)
    row_of: dict[str, int] = {}
    for number, line, row in rows:
        where = f"{path}: row {number}" + (f" (line {line})" if line != number else "")
        if len(row) != len(header):
            raise InputError(f"{where} has {len(row)} fields, the header has {len(header)}; quote commas")
        values = {name: value.strip() for name, value in zip(header, row, strict=True)}
        if not values["prompt"]:
            raise InputError(f"{where}: the prompt is empty")
        prompt_id = values.get("prompt_id") or f"p{len(row_of):05d}"
        if prompt_id in row_of:
            raise InputError(f"{where}: prompt_id `{prompt_id}` is already in row {row_of[prompt_id]}")
        row_of[prompt_id] = number
        seed = None
        if text := values.get("seed"):
            if not INTEGER.fullmatch(text):
                raise InputError(f"{where}: seed `{text}` is not an integer")
            seed = check_seed(f"{where}: seed", int(text) if len(text) <= len(str(MAX_SEED)) else MAX_SEED + 1)
        yield Prompt(prompt_id, values["prompt"], values.get("negative_prompt", ""), values.get("family", ""), seed)
    if not row_of:
        raise InputError(f"{path}: no prompt below the header")


def check_seed(where: str, seed: int) -> int:
    """`seed`, refused unless it is 0 to 2^63 - 1, or -1 for a derived one: tables and generators hold no other."""
    if not -1 <= seed <= MAX_SEED:
        shown = f"{seed} is" if abs(seed) <= MAX_SEED else "the number is"
        raise InputError(f"{where}: {shown} not within 0 to 2^63 - 1 (or -1: a derived one)")
    return seed


def csv_text(path: Path) -> str:
    """The text of a prompt CSV, refused by line where it is none."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, where a prompt CSV is meant; name the file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt CSV; set `prompts.csv` to an existing file") from None
    if kind := next((kind for magic, kind in OTHER_KINDS.items() if data.startswith(magic)), ""):
        raise InputError(f"{path}: {kind}, where a prompt CSV is meant; save it as CSV in UTF-8")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = line_of(data[: error.start].decode("utf-8"))
        raise InputError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
    if control := CONTROL.search(text):
        number = line_of(text[: control.start()])
        raise InputError(f"{path}: line {number} has the control character {control[0]!r}; remove it")
    return text


def line_of(before: str) -> int:
    """The number of the line that begins or goes on after the text `before`, as editors count."""
    return 1 + len(LINE_BREAK.findall(before))


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Number of the row, number of its first line, and fields, of every row of a CSV that is not blank.

    Raises InputError by line for a quote that is never closed, one inside a field without quotes, and text behind a
    closing quote: a lenient reader swallows rows there, or keeps the quotes.
    """
    at, line, number = 0, 1, 0
    while at < len(text):
        number += 1
        row: list[str] = []
        begin = at
        while True:
            field = FIELD.match(text, at)
            assert field is not None  # the pattern matches nothing, too
            at = field.end()
            quoted = field[1] is not None
            here = line + len(LINE_BREAK.findall(text, begin, field.start()))
            if not quoted and '"' in field[2]:
                if field[2].startswith('"'):
                    raise InputError(f"{path}: line {here}: a quote is opened and never closed; close it, or double it")
                raise InputError(
                    f"{path}: line {here}: a quote inside a field without quotes; put the field in quotes and double it"
                )
            row.append(field[1].replace('""', '"') if quoted else field[2])
            if at < len(text) and text[at] not in ",\r\n":
                here = line + len(LINE_BREAK.findall(text, begin, at))
                raise InputError(f"{path}: line {here}: text behind a closing quote; double the quotes in a field")
            if at >= len(text) or text[at] != ",":
                break
            at += 1
        if row != [""] or text.startswith('"', begin):
            yield number, line, row
        if at < len(text):
            at += 2 if text.startswith("\r\n", at) else 1
        line += len(LINE_BREAK.findall(text, begin, at))


def header_of(path: Path, row: list[str]) -> list[str]:
    """The names of a CSV's columns, checked."""
    header = [name.strip() for name in row]
    if "prompt" not in header:
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if any("prompt" in map(str.strip, field.split(separator)) for field in row if separator in field):
                raise InputError(f"{path}: row 1 is separated by {name}; save the file with commas")
        raise InputError(f"{path}: row 1 has no `prompt` column (columns: {', '.join(header)})")
    if stray := [name for name in header if name not in COLUMNS]:
        raise InputError(f"{path}: row 1: unknown column `{stray[0]}`; known: {', '.join(COLUMNS)}")
    if twice := [name for i, name in enumerate(header) if name in header[:i]]:
        raise InputError(f"{path}: row 1 names the column `{twice[0]}` twice; keep one")
    return header


def runs_of(prompts: list[Prompt], seeds: list[int], experiment: str) -> list[dict]:
    """One record for each (prompt, seed): prompt_id, prompt, negative_prompt, family, seed, derived_seed.

    A prompt's own seed wins over `seeds`; -1 is replaced by a seed derived from experiment and prompt, and in a list
    of seeds from its place too.
    """
    runs = []
    for prompt in prompts:
        for place, seed in enumerate([prompt.seed] if prompt.seed is not None else seeds):
            derived = seed == -1
            if derived:
                seed = derived_seed(experiment, prompt.prompt_id, prompt.prompt, place)
            runs.append(vars(prompt) | {"seed": seed, "derived_seed": derived})
    return runs


def shards_of(prompts: Iterable[Prompt], shard_size: int) -> Iterator[list[Prompt]]:
    """Consecutive shards of `shard_size` prompts; the last may be smaller."""
    if shard_size < 1:
        raise InputError(f"shard_size: {shard_size} is less than 1")
    waiting = iter(prompts)
    while shard := list(islice(waiting, shard_size)):
        yield shard


def shard_index(settings: Prompts, experiment: str) -> list[dict]:
    """What the workflow must know of each shard: its digest (prompts and seeds), number of runs, and last prompt.

    `end` counts the prompts up to the shard's last one. Raises InputError where there are more than `max_shards`.
    """
    index: list[dict] = []
    end = 0
    for shard in shards_of(islice(iter_prompts(settings.csv), settings.limit or None), settings.shard_size):
        runs = runs_of(shard, settings.all_seeds(), experiment)
        end += len(shard)
        index.append({"digest": digest(runs), "runs": len(runs), "end": end})
    check_shards("prompts", end, settings.shard_size, settings.max_shards)
    return index


def check_shards(stage: str, count: int, shard_size: int, max_shards: int) -> None:
    """Raise InputError where `count` prompts or runs make more shards than a study can be planned with."""
    shards, limit = -(-count // shard_size), min(max_shards, MAX_SHARDS)
    if shards > limit:
        advised = 1 << (-(-count // min(limit, ADVISED_SHARDS)) - 1).bit_length()
        raise InputError(
            f"{stage}.shard_size: {count:,} in shards of {shard_size} are {shards:,} shards, more than "
            f"{limit:,}; set it to {advised}, or see docs/scaling.md"
        )


def first_runs(settings: Prompts, experiment: str, count: int) -> dict:
    """What the workflow must know of the first `count` runs (0: all): where they start, their number and digest."""
    prompts = read_prompts(settings.csv, least(settings.limit, count))
    runs = runs_of(prompts, settings.all_seeds(), experiment)[: count or None]
    return {"start": 0, "count": len(runs), "digest": digest(runs)}


def slice_name(part: dict) -> str:
    """The name of a part of the runs, as `first_runs` describes it, in file names: where it starts and how many."""
    return f"{part['start']}-{part['count']}"


def least(*limits: int) -> int:
    """The tightest of some limits of which 0 is none."""
    return min((limit for limit in limits if limit), default=0)


def read_runs(*paths: Path | str) -> list[dict]:
    """The runs of `prompts` tables and of prompt CSVs (seed 0 where one names none), told apart by their content.

    Raises InputError where two of them are one run, (prompt_id, seed): no later table could tell them apart.
    """
    runs: list[dict] = []
    first: dict[tuple[str, int], Path | str] = {}
    for path in paths:
        for run in runs_in(Path(path)):
            key = run["prompt_id"], run["seed"]
            if key in first:
                other = f"in {first[key]}, too" if first[key] != path else "there twice"
                raise InputError(f"{path}: the run of prompt_id `{key[0]}`, seed {key[1]} is {other}; rename one")
            first[key] = path
            runs.append(run)
    return runs


def runs_in(path: Path) -> list[dict]:
    """The runs of one table or CSV."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, where a prompt CSV or a table `prompts` is meant; name the file in it")
    table = path.suffix == ".parquet"
    if not table and path.exists():
        with open(path, "rb") as file:
            table = file.read(4) == b"PAR1"
    if not table:
        return runs_of(read_prompts(path), [0], path.stem)
    from ditscope.core.tables import read_table

    return read_table(path, "prompts").to_dicts()


def write_runs(runs: list[dict], out: Path | str) -> None:
    """Write runs as the table `prompts`."""
    from ditscope.core.tables import write_table

    write_table(runs_table(runs), out, PROMPTS)


def runs_table(runs: list[dict]) -> "pl.DataFrame":
    """Runs as the rows of the table `prompts`."""
    import polars as pl

    return pl.DataFrame(runs, schema=PROMPTS.schema())
