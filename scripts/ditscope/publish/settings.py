"""Settings of the stage `publish`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Publish:
    """Draw the figures and write the tables of the report."""

    formats: list[str] = setting(
        ["svg", "png", "pdf"], "File types of each figure", choices=("svg", "png", "pdf"), filled=True
    )
    columns: int = setting(
        2, "Columns of a paper that the figures fit: 2 (7 inches at most) or 1 (3.4 inches)", choices=(1, 2)
    )
    dpi: int = setting(160, "Resolution of PNG figures", positive=True)
    explorer_bytes: int = setting(
        15_000_000, "Most bytes of explorer.html: its pictures are as large as fit", positive=True
    )
