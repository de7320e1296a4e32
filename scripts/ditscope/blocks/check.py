"""What `ditscope doctor` checks of the stage `blocks`."""

from pathlib import Path

import polars as pl

from ditscope.blocks.tables import DECODABLE
from ditscope.capture.check import STATISTIC, blocks_of
from ditscope.core.errors import InputError
from ditscope.core.study import Study


def check_blocks(study: Study) -> None:
    """The tables of blocks are what the capture's tensors, pictures and statistics give."""
    for stem in sorted({file.rpartition("/")[0] for file in study.targets("blocks")}):
        _, model, name = stem.split("/")
        captures = study.results / "captures" / model / name
        wanted: dict[str, pl.DataFrame] = {}
        with study.noting("blocks", stem):
            wanted = study.once(f"blocks {stem}", lambda: block_tables(study, captures))  # noqa: B023
        for file in study.targets("blocks"):
            kind = Path(file).stem
            if file.rpartition("/")[0] != stem:
                continue
            table = study.table("blocks", file, f"blocks.{kind}")
            if table is None or kind not in wanted:
                continue
            columns = wanted[kind]
            if kind == "decodability" and study.config.blocks.features:  # needs the embedder
                columns = columns.drop("feature_cosine_distance")
                check_range(study, "blocks", file, table, "feature_cosine_distance", 0, 2)
            if kind == "decodable":
                columns = decodable(study, stem)
            study.agree("blocks", file, table, columns, tolerance=STATISTIC, least=1e-6)


def block_tables(study: Study, captures: Path) -> dict[str, pl.DataFrame]:
    """The tables of blocks from a capture set, without features of pictures."""
    from ditscope.blocks.stage import TABLES, decodability_rows, stream_rows
    from ditscope.capture.files import captures_in, rows_of_runs
    from ditscope.capture.load import load_capture

    tables: dict[str, list[pl.DataFrame]] = {name: [pl.DataFrame(schema=t.schema())] for name, t in TABLES.items()}
    for folder in captures_in(captures):
        rows: dict[str, list[dict]] = {name: [] for name in TABLES}
        capture = load_capture(folder)
        metadata = capture["metadata"]
        if metadata["model"] in study.config.capture.sources:  # of a model that may not be here
            known = study.read(folder / "statistics.parquet", "capture_statistics").select("block", "depth")
            depths = dict(known.unique().rows())
        else:
            order = blocks_of(study, metadata["model"])
            depths = {block: order.index(block) for block in metadata["captured_blocks"]}
        try:
            stream_rows(capture, depths, rows)
        except RuntimeError as error:  # of torch, whose shapes do not fit: the tensors of another capture
            raise InputError(f"{folder.name}: tensors that do not belong together ({error})") from None
        rows["decodability"] += decodability_rows(folder, metadata, depths)
        for name, declared in TABLES.items():
            tables[name].append(rows_of_runs(pl.DataFrame(rows[name], schema=declared.schema()), metadata))
    return {name: pl.concat([t.select(parts[0].columns) for t in parts]) for name, parts in tables.items()}


def decodable(study: Study, stem: str) -> pl.DataFrame:
    """The table `blocks.decodable` from the table `blocks.decodability` beside it, generation by generation."""
    from ditscope.blocks.stage import decodable_rows

    table = study.quiet().table("blocks", f"{stem}/decodability.parquet", "blocks.decodability")
    parts = table.partition_by("generation_id", "prompt_id", maintain_order=True) if table is not None else []
    rows = [row for part in parts for row in decodable_rows(part.to_dicts(), study.config.blocks)]
    return pl.DataFrame(rows, schema=DECODABLE.schema())


def check_range(study: Study, stage: str, file: str, table: pl.DataFrame, column: str, low: float, high: float) -> None:
    """Record a column that has nothing in places, or what is not within a range."""
    if not table[column].fill_null(float("inf")).is_between(low - 1e-6, high + 1e-6).all():
        study.note(stage, file, f"column `{column}` has values that are not between {low} and {high}")
