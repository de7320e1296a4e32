"""What a study answers: the table `answers`, from `answer` in `answer.py` of each stage."""

from collections.abc import Collection
from importlib import import_module

import polars as pl

from ditscope.core.answer import Answer
from ditscope.core.paths import OutputFile
from ditscope.core.tables import Files, write_table
from ditscope.publish.figures import ANSWERING
from ditscope.publish.tables import ANSWERS


def answer_of(stage: str, files: Files, controls: Collection[str] = ()) -> Answer:
    """The answer of a stage: `answer` of its `answer.py`. `controls` are embedders of which no claim is made."""
    return import_module(f"ditscope.{stage}.answer").answer(files, controls)


def answers_table(files: Files, controls: Collection[str] = ()) -> pl.DataFrame:
    """The table `answers` of the stages that are in `files`."""
    rows = []
    for stage in ANSWERING:
        if stage in files:
            said = answer_of(stage, files, controls)
            row = {"stage": stage, "answer": said.sentence} | vars(said) | {"caveats": "; ".join(said.caveats) or None}
            rows.append({name: row[name] for name in ANSWERS.columns})
    return pl.DataFrame(rows, ANSWERS.schema())


def write_answers(files: Files, out: OutputFile, controls: Collection[str] = ()) -> None:
    """Write the table `answers`."""
    write_table(answers_table(files, controls), out, ANSWERS)
