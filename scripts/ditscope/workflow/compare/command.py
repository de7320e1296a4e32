"""`ditscope compare`: two experiments side by side, as text and as one HTML page."""

from typing import Annotated

from ditscope.core.atomic import write_text
from ditscope.core.paths import OutputFile
from ditscope.workflow.compare.experiments import comparison, study_folder
from ditscope.workflow.compare.page import as_html
from ditscope.workflow.compare.text import as_text


def compare(
    a: Annotated[str, "an experiment: its results folder, or its name below results/"],
    b: Annotated[str, "the experiment to compare it with"],
    /,
    html: OutputFile | None = None,
) -> None:
    """Print how two experiments differ: their settings, their tables row by row, their figures.

    Rows of a table are matched by the columns that tell them apart in both; of columns of numbers the largest and the
    median difference are said. Durations are said apart. `html` takes the same as one page that shows the figures
    next to each other and needs no other file. Raises InputError where one of them has never run.
    """
    both = comparison(study_folder(a), study_folder(b))
    print(as_text(both), end="")
    if html:
        write_text(html, as_html(both))
