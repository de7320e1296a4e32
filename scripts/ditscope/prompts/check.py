"""What `ditscope doctor` checks of the stage `prompts`."""

from pathlib import Path
from typing import Any

import polars as pl

from ditscope.core.study import Study
from ditscope.prompts.files import read_prompts, runs_of, runs_table, shards_of


def check_prompts(study: Study) -> None:
    """Prompt shards hold the runs of the CSV, where the CSV is at hand; slices hold runs of the shards."""
    tables = {file: study.table("prompts", file, "prompts") for file in study.targets("prompts")}
    for file, table in tables.items():
        shards = csv_shards(study) if table is not None else None
        if table is not None and shards is not None:
            number = int(file.removesuffix(".parquet").rpartition("-")[2])
            wanted = shards[number] if number < len(shards) else []
            rows = [(r["prompt_id"], r["seed"], r["prompt"], r["negative_prompt"]) for r in wanted]
            given = table.select("prompt_id", "seed", "prompt", "negative_prompt").rows()
            study.same_rows("prompts", file, given, rows, "runs of the CSV")
            study.agree("prompts", file, table, pl.DataFrame(wanted, infer_schema_length=None))
    whole = prompt_tables(study)
    if len(whole) < len(study.asked("prompts")) or not whole:
        return
    runs = pl.concat(whole)
    for path in sorted((study.results / "prompts").glob("runs-*-*.parquet")):
        file = path.relative_to(study.results).as_posix()
        part = study.table("prompts", file, "prompts")
        with study.noting("prompts", file):
            start, count = map(int, path.stem.split("-")[1:])
            if part is not None:
                study.agree("prompts", file, part, runs.slice(start, count))


def csv_shards(study: Study) -> list[list[dict[str, Any]]] | None:
    """The runs of each prompt shard as the CSV gives them; None where it is not at hand or was noted."""
    settings = study.config.prompts
    if not Path(settings.csv).is_file():
        return None

    def read() -> list[list[dict[str, Any]]] | None:
        with study.noting("prompts", settings.csv):
            prompts = read_prompts(settings.csv, settings.limit)
            shards = shards_of(prompts, settings.shard_size)
            return [runs_of(shard, settings.all_seeds(), study.config.experiment) for shard in shards]
        return None

    return study.once("prompts", read)


def prompt_tables(study: Study) -> list[pl.DataFrame]:
    """The prompt shards that can be read; their defects are noted by `check_prompts`.

    Of a study that does not ask for all of them they are what its CSV gives; none where that is not at hand.
    """
    if not study.asked("prompts"):
        return [runs_table(runs) for runs in csv_shards(study) or []]
    quiet = study.quiet()
    tables = [quiet.table("prompts", file, "prompts") for file in study.asked("prompts")]
    return [table for table in tables if table is not None]
