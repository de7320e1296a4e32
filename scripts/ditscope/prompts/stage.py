"""Prompt CSVs: read, check, split into shards of runs (prompt x seed)."""

from itertools import islice
from pathlib import Path

from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.prompts.files import iter_prompts, least, read_prompts, runs_of, write_runs
from ditscope.prompts.settings import Prompts


def write_shard(csv: InputFile, shard: int, out: OutputFile, settings: Prompts, experiment: str) -> None:
    """Write the runs of one shard as the table `prompts`."""
    start = shard * settings.shard_size
    stop = least(settings.limit, start + settings.shard_size)
    prompts = list(islice(iter_prompts(csv), start, stop)) if 0 <= start < stop else []
    if not prompts:
        raise InputError(f"{csv}: has no prompts for shard {shard}, from prompt {start} on; ask for a lower shard")
    write_runs(runs_of(prompts, settings.all_seeds(), experiment), out)


def write_slice(csv: Path | str, start: int, count: int, out: Path | str, settings: Prompts, experiment: str) -> None:
    """Write runs `start` to `start + count` of all, in order, as the table `prompts`."""
    prompts = read_prompts(csv, least(settings.limit, start + count))
    runs = runs_of(prompts, settings.all_seeds(), experiment)[start : start + count]
    if len(runs) != count:
        raise InputError(f"{csv}: has {len(runs)} runs from run {start} on, not {count}; it changed since it was read")
    write_runs(runs, out)
