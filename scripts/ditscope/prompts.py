"""Prompt CSVs: read, check, split into shards of runs (prompt x seed)."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ditscope.errors import InputError
from ditscope.identity import derived_seed, digest
from ditscope.paths import InputFile, OutputFile
from ditscope.settings import Prompts

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")  # no XML, so no SVG, can hold one
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
    """The prompts of a CSV one by one, each checked: a million of them need not be in memory together."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt CSV; set `prompts.csv` to an existing file") from None
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: row {number} is not UTF-8; save the file as UTF-8") from None
    if control := CONTROL.search(text):
        number = text[: control.start()].count("\n") + 1
        raise InputError(f"{path}: line {number} has the control character {control[0]!r}; remove it")
    rows = csv_rows(path, text.removeprefix("\ufeff"))
    if not (first := next(rows, [])):
        raise InputError(f"{path}: empty; the first row must name the columns, `prompt` among them")
    header = [name.strip() for name in first]
    if "prompt" not in header:
        raise InputError(f"{path}: row 1 has no `prompt` column (columns: {', '.join(header)})")
    if stray := [name for name in header if name not in COLUMNS]:
        raise InputError(f"{path}: row 1: unknown column `{stray[0]}`; known: {', '.join(COLUMNS)}")
    row_of: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; quote commas")
        values = {name: value.strip() for name, value in zip(header, row, strict=True)}
        if not values["prompt"]:
            raise InputError(f"{path}: row {number}: the prompt is empty")
        prompt_id = values.get("prompt_id") or f"p{len(row_of):05d}"
        if prompt_id in row_of:
            raise InputError(f"{path}: row {number}: prompt_id `{prompt_id}` is already in row {row_of[prompt_id]}")
        row_of[prompt_id] = number
        try:
            seed = int(values["seed"]) if values.get("seed") else None
        except ValueError:
            raise InputError(f"{path}: row {number}: seed `{values['seed']}` is not an integer") from None
        yield Prompt(prompt_id, values["prompt"], values.get("negative_prompt", ""), values.get("family", ""), seed)
    if not row_of:
        raise InputError(f"{path}: no prompt below the header")


def csv_rows(path: Path, text: str) -> Iterator[list[str]]:
    """The rows of a CSV. Raises InputError with file and line where it is none."""
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        yield from rows
    except csv.Error as error:
        raise InputError(
            f"{path}: line {rows.line_num} is not CSV ({error}); quote the field or save it again"
        ) from None


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


def least(*limits: int) -> int:
    """The tightest of some limits of which 0 is none."""
    return min((limit for limit in limits if limit), default=0)


def read_runs(path: Path | str) -> list[dict]:
    """The runs of a `prompts` table, or of a prompt CSV (seed 0 where it names none)."""
    if Path(path).suffix == ".csv":
        return runs_of(read_prompts(path), [0], Path(path).stem)
    from ditscope.tables import read_table

    return read_table(path, "prompts").to_dicts()


def write_shard(csv: InputFile, shard: int, out: OutputFile, settings: Prompts, experiment: str) -> None:
    """Write the runs of one shard as the table `prompts`."""
    start = shard * settings.shard_size
    stop = least(settings.limit, start + settings.shard_size)
    write_runs(runs_of(list(islice(iter_prompts(csv), start, stop)), settings.all_seeds(), experiment), out)


def write_slice(csv: Path | str, start: int, count: int, out: Path | str, settings: Prompts, experiment: str) -> None:
    """Write runs `start` to `start + count` of all, in order, as the table `prompts`."""
    prompts = read_prompts(csv, least(settings.limit, start + count))
    write_runs(runs_of(prompts, settings.all_seeds(), experiment)[start : start + count], out)


def write_runs(runs: list[dict], out: Path | str) -> None:
    """Write runs as the table `prompts`."""
    import polars as pl

    from ditscope.tables import write_table

    schema = {
        "prompt_id": pl.String,
        "prompt": pl.String,
        "negative_prompt": pl.String,
        "family": pl.String,
        "seed": pl.Int64,
        "derived_seed": pl.Boolean,
    }
    write_table(pl.DataFrame(runs, schema=schema), out, "prompts")
