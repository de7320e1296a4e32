"""What `ditscope doctor` checks of the stage `analyse`."""

from pathlib import Path

from ditscope.core.study import Study


def check_analyse(study: Study) -> None:
    """Tables of the user's own analyses are named as these are; what they say is the user's business."""
    for file in study.targets("analyse"):
        study.table("analyse", file, f"analysis.{Path(file).stem}")
