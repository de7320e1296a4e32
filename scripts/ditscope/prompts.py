"""Prompt CSVs: read, check, split into shards of runs (prompt x seed)."""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

from ditscope.errors import InputError
from ditscope.identity import derived_seed, digest
from ditscope.settings import Prompts

COLUMNS = ("prompt", "prompt_id", "seed", "family", "negative_prompt")


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt CSV; `seed` None takes the seeds of the config."""

    prompt_id: str
    prompt: str
    negative_prompt: str = ""
    family: str = ""
    seed: int | None = None


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read a prompt CSV. Raises InputError with file and row (the header is row 1)."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such prompt CSV; set `prompts.csv` to an existing file") from None
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: row {number} is not UTF-8; save the file as UTF-8") from None
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    if not rows:
        raise InputError(f"{path}: empty; the first row must name the columns, `prompt` among them")
    header = [name.strip() for name in rows[0]]
    if "prompt" not in header:
        raise InputError(f"{path}: row 1 has no `prompt` column (columns: {', '.join(header)})")
    if stray := [name for name in header if name not in COLUMNS]:
        raise InputError(f"{path}: row 1: unknown column `{stray[0]}`; known: {', '.join(COLUMNS)}")
    prompts: list[Prompt] = []
    row_of: dict[str, int] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} fields, the header has {len(header)}; quote commas")
        values = {name: value.strip() for name, value in zip(header, row, strict=True)}
        if not values["prompt"]:
            raise InputError(f"{path}: row {number}: the prompt is empty")
        prompt_id = values.get("prompt_id") or f"p{len(prompts):05d}"
        if prompt_id in row_of:
            raise InputError(f"{path}: row {number}: prompt_id `{prompt_id}` is already in row {row_of[prompt_id]}")
        row_of[prompt_id] = number
        try:
            seed = int(values["seed"]) if values.get("seed") else None
        except ValueError:
            raise InputError(f"{path}: row {number}: seed `{values['seed']}` is not an integer") from None
        prompts.append(
            Prompt(prompt_id, values["prompt"], values.get("negative_prompt", ""), values.get("family", ""), seed)
        )
    if not prompts:
        raise InputError(f"{path}: no prompt below the header")
    return prompts


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
            runs.append(asdict(prompt) | {"seed": seed, "derived_seed": derived})
    return runs


def shards_of(prompts: list[Prompt], shard_size: int) -> list[list[Prompt]]:
    """Consecutive shards of `shard_size` prompts; the last may be smaller."""
    return [prompts[i : i + shard_size] for i in range(0, len(prompts), shard_size)]


def shard_index(settings: Prompts, experiment: str) -> list[dict]:
    """What the workflow must know of each shard: its digest (prompts and seeds) and its number of runs."""
    prompts = read_prompts(settings.csv)
    prompts = prompts[: settings.limit] if settings.limit else prompts
    shards = [runs_of(shard, settings.all_seeds(), experiment) for shard in shards_of(prompts, settings.shard_size)]
    return [{"digest": digest(runs), "runs": len(runs)} for runs in shards]


def first_runs(settings: Prompts, experiment: str, count: int) -> dict:
    """What the workflow must know of the first `count` runs (0: all): their digest, and the shards they are in."""
    prompts = read_prompts(settings.csv)
    prompts = prompts[: settings.limit] if settings.limit else prompts
    shards = [runs_of(shard, settings.all_seeds(), experiment) for shard in shards_of(prompts, settings.shard_size)]
    runs = [(number, run) for number, shard in enumerate(shards) for run in shard][: count or None]
    return {"digest": digest([run for _, run in runs]), "shards": sorted({number for number, _ in runs})}


def read_runs(path: Path | str) -> list[dict]:
    """The runs of a `prompts` table, or of a prompt CSV (seed 0 where it names none)."""
    if Path(path).suffix == ".csv":
        return runs_of(read_prompts(path), [0], Path(path).stem)
    from ditscope.tables import read_table

    return read_table(path, "prompts").to_dicts()


def write_shard(csv: Path | str, shard: int, out: Path | str, settings: Prompts, experiment: str) -> None:
    """Write the runs of one shard as the table `prompts`."""
    import polars as pl

    from ditscope.tables import write_table

    prompts = read_prompts(csv)
    prompts = prompts[: settings.limit] if settings.limit else prompts
    runs = runs_of(shards_of(prompts, settings.shard_size)[shard], settings.all_seeds(), experiment)
    schema = {
        "prompt_id": pl.String,
        "prompt": pl.String,
        "negative_prompt": pl.String,
        "family": pl.String,
        "seed": pl.Int64,
        "derived_seed": pl.Boolean,
    }
    write_table(pl.DataFrame(runs, schema=schema), out, "prompts")
