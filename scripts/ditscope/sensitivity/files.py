"""Files of the stage `sensitivity` that its tables are joined from."""

from ditscope.sensitivity.settings import Sensitivity

PARTS = ("layers", "fast")  # scores of a group of layers, as `mode` says, and the same layers in fast mode


def format_file(model: str) -> str:
    """The table of a model's layers in every format that a budget names, below the results; timings lie beside it."""
    return f"sensitivity/{model}/formats-000.parquet"


def part_files(model: str, part: str, settings: Sensitivity) -> list[str]:
    """The files of one of `PARTS` of a model, one per group of layers, below the results of a study."""
    return [f"sensitivity/{model}/{part}-{group:03d}.parquet" for group in range(settings.layer_groups)]
