"""A PDF of a study's figures, tables and captions, by a template of Typst."""

import csv
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, InputFolder
from ditscope.publish.figures import INDEX, PAPER_TABLES


def paper(
    results: InputFolder,
    /,
    template: InputFile = Path("paper/main.typ"),
    title: Annotated[str, "title of the paper; empty: the experiment's name"] = "",
) -> None:
    """Compile the figures and tables of a study into `results`/paper.pdf.

    The template finds them by `sys.inputs`: `results`, `title`, `tables`. It may read whatever lies in the folder that
    it and the results have in common.
    """
    try:
        import typst
    except ImportError:
        raise InputError("paper needs the package typst: `make setup` installs it") from None
    check_figures(results)
    root = Path(os.path.commonpath([results.resolve(), template.resolve().parent]))
    tables = [name for name in PAPER_TABLES if (results / "tables" / f"{name}.csv").exists()]
    inputs = {
        "results": f"/{results.resolve().relative_to(root).as_posix()}",
        "title": title or results.name,
        "tables": ",".join(tables),
    }
    try:
        pdf = typst.compile(
            template, root=root, sys_inputs=inputs, ignore_system_fonts=True, timestamp=datetime.fromtimestamp(0, UTC)
        )
    except typst.TypstError as error:
        raise InputError(f"{template}: {error}") from None
    with replacing(results / "paper.pdf") as partial:
        partial.write_bytes(pdf)


def check_figures(results: Path) -> None:
    """Refuse a study whose figures are not drawn, or not as PDF, before the template fails on one of them."""
    index = results / "figures" / INDEX
    remedy = f"draw them with `ditscope figures {results} --formats pdf`"
    if not index.exists():
        raise InputError(f"{index}: no figures here; {remedy}")
    with open(index, encoding="utf-8", newline="") as file:
        names = [row["figure"] for row in csv.DictReader(file)]
    missing = [name for name in names if not (index.parent / f"{name}.pdf").exists()]
    if missing:
        raise InputError(f"{index.parent}/{missing[0]}.pdf is missing ({len(missing)} of {len(names)}); {remedy}")
