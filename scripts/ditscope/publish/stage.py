"""Publication of a study without Snakemake: figures, tables, answers, the catalog and the explorer in one call."""

from ditscope.core.paths import InputFolder
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import write_table
from ditscope.publish.answers import answers_table
from ditscope.publish.catalog import table_files, write_catalog
from ditscope.publish.draw import draw_figures
from ditscope.publish.explorer import study_of, write_explorer
from ditscope.publish.figures import available
from ditscope.publish.front_page import write_front_page
from ditscope.publish.paper_tables import write_paper_tables
from ditscope.publish.printing import finished
from ditscope.publish.settings import Publish
from ditscope.publish.tables import ANSWERS


def publish(results: InputFolder, settings: Publish = Publish()) -> None:
    """Draw every figure and write every table that the finished stages of a study allow, below `results`."""
    plan = read_plan(results)
    complete, own = finished(results)
    names = [figure.name for figure in available(set(complete))]
    draw_figures([*names, *own], complete, results / "figures", settings, own)
    controls = [name for name, entry in plan["config"]["embedders"].items() if entry["family"] == "random-walk"]
    answers = answers_table(complete, controls)
    write_table(answers, results / "answers.parquet", ANSWERS)
    write_front_page(results.name, answers, results / "figures", results / "answers.html")
    write_catalog([*table_files(complete), results / "answers.parquet"], results / "catalog.duckdb")
    write_paper_tables(complete, results / "tables")
    left, study = study_of(plan)
    write_explorer(left, results / "explorer.html", study, settings.explorer_bytes)
