"""Publication of a study without Snakemake: every figure, table, the catalog and the explorer in one call."""

from ditscope.core.paths import InputFolder
from ditscope.core.study_plan import read_plan
from ditscope.publish.catalog import table_files, write_catalog
from ditscope.publish.draw import draw_figures
from ditscope.publish.explorer import study_of, write_explorer
from ditscope.publish.figures import available
from ditscope.publish.paper_tables import write_paper_tables
from ditscope.publish.printing import finished
from ditscope.publish.settings import Publish


def publish(results: InputFolder, settings: Publish = Publish()) -> None:
    """Draw every figure and write every table that the finished stages of a study allow, below `results`."""
    complete, own = finished(results)
    names = [figure.name for figure in available(set(complete))]
    draw_figures([*names, *own], complete, results / "figures", settings, own)
    write_catalog(table_files(complete), results / "catalog.duckdb")
    write_paper_tables(complete, results / "tables")
    left, study = study_of(read_plan(results))
    write_explorer(left, results / "explorer.html", study, settings.explorer_bytes)
