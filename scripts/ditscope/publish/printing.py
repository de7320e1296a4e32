"""The figures and tables of a study for print, from what its finished stages left: without torch, page or catalog."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from ditscope.core.errors import InputError
from ditscope.core.paths import InputFolder
from ditscope.core.plugins import load_plugin
from ditscope.core.study_plan import read_plan
from ditscope.publish.draw import draw_figures
from ditscope.publish.figures import FIGURES, available
from ditscope.publish.paper_tables import write_paper_tables
from ditscope.publish.settings import Publish
from ditscope.style import Files

log = logging.getLogger(__name__)


def figures(
    results: InputFolder,
    /,
    only: Sequence[Annotated[str, "names of figures; none: all of them"]] = (),
    processes: Annotated[int, "processes that share out the figures"] = 1,
    settings: Publish = Publish(),
) -> None:
    """Draw the figures of a study from the tables that its stages left, below `results`/figures; a list is index.csv.

    With `--columns 1`, those for one column of a paper, below `results`/figures-one-column. Needs no torch.
    """
    complete, own = finished(results)
    drawn = [*(figure.name for figure in available(set(complete))), *own]
    for name in only:
        if name not in drawn:
            known = "is not drawn of what this study has left" if name in FIGURES else "is not a figure of ditscope"
            raise InputError(f"--only {name}: {known}; {results} has {', '.join(drawn) or 'none'}")
    folder = results / ("figures" if settings.columns == 2 else "figures-one-column")
    draw_figures([*only] or drawn, complete, folder, settings, own, processes)
    write_paper_tables(complete, results / "tables")


def finished(results: Path) -> tuple[Files, dict[str, str]]:
    """What finished stages left, and the modules of the study's own analyses that draw; tells what is missing."""
    plan = read_plan(results)
    planned = {stage: paths for stage, paths in plan["targets"].items() if paths and stage != "publish"}
    files = {stage: [found(Path(path), results) for path in paths] for stage, paths in planned.items()}
    complete = {stage: paths for stage, paths in files.items() if all(path.exists() for path in paths)}
    for stage in files.keys() - complete.keys():
        without = [figure.name for figure in FIGURES.values() if stage in figure.stages]
        if without:
            log.warning("%s is not finished: without %s; `snakemake %s` goes on", stage, ", ".join(without), stage)
    analyses = plan["config"].get("analyse", {}).get("analyses", {}) if "analyse" in complete else {}
    modules = {name: (a["module"], load_plugin(a["module"], {}, name, "an analysis")) for name, a in analyses.items()}
    return complete, {name: path for name, (path, module) in modules.items() if hasattr(module, "figure")}


def found(path: Path, results: Path) -> Path:
    """A file of the plan, whose paths are those of the project's folder: here, or where this study lies."""
    return path if path.exists() else results.parent.parent / path
