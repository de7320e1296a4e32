"""Publication: figures with their data, paper tables, a DuckDB catalog of every table, an interactive explorer."""

import logging
from pathlib import Path

import polars as pl

from ditscope.figures import FIGURES, Files, available, draw
from ditscope.figures.style import save
from ditscope.progress import read_plan
from ditscope.settings import Publish

log = logging.getLogger(__name__)


def publish(results: Path, settings: Publish = Publish()) -> None:
    """Draw every figure and write every table that the results of a study allow, below `results`."""
    targets = read_plan(results)["targets"]
    files = {stage: [Path(p) for p in paths] for stage, paths in targets.items() if paths and stage != "publish"}
    complete = {stage: paths for stage, paths in files.items() if all(path.exists() for path in paths)}
    figures([f.name for f in available(set(complete))], complete, results / "figures", settings)
    catalog([p for paths in complete.values() for p in paths if p.suffix == ".parquet"], results, results / "catalog.duckdb")


def figures(names: list[str], files: Files, out: Path, settings: Publish = Publish()) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV."""
    for name in names:
        figure, data = draw(FIGURES[name], files)
        save(figure, data, out / name, settings.formats, settings.dpi)
        log.info("drew %s (%d rows)", name, len(data))


def catalog(tables: list[Path], results: Path, out: Path) -> None:
    """Collect Parquet tables into one DuckDB file, a table for each name in the files' metadata.

    Tables of the same name are united by column name. Not byte-stable: DuckDB lays its file out by itself.
    """
    import duckdb

    named: dict[str, list[str]] = {}
    for path in sorted(tables):
        name = pl.read_parquet_metadata(path).get("table")
        if name:
            named.setdefault(name.replace(".", "_"), []).append(str(path))
    out.unlink(missing_ok=True)
    with duckdb.connect(out) as database:
        for name, paths in sorted(named.items()):
            database.execute(
                f'CREATE TABLE "{name}" AS SELECT * FROM read_parquet($paths, union_by_name = true)', {"paths": paths}
            )
