"""What the stage `refine` answers."""

from collections.abc import Collection

from ditscope.core.answer import Answer, counted, percent
from ditscope.core.tables import Files, read_table

QUESTION = "Does one step put interpolated latents right?"
FIGURE = "refiner-diagnostics"
ERRORS = ("mse_corrupted_missing", "mse_refined_missing")


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """Error on missing tokens, interpolated and refined, at the level where most is missing."""
    levels = 0
    for path in files["refine"]:
        if path.name != "diagnostics.parquet":
            continue
        table = read_table(path, "refine.diagnostics")
        if not {"group", "metric", "value"} <= set(table.columns):
            continue
        errors = {metric: table.filter(metric=metric).drop_nulls("value") for metric in ERRORS}
        levels = len(errors[ERRORS[1]])
        if levels and levels == len(errors[ERRORS[0]]):
            worst = errors[ERRORS[0]].sort("value").row(-1, named=True)
            refined = errors[ERRORS[1]].filter(group=worst["group"])["value"][0]
            change = refined / worst["value"] - 1
            return Answer(
                QUESTION,
                f"At {worst['group']} of {path.parent.name}, where most is missing, the mean squared error of missing "
                f"tokens is {refined:.3g} after the step and {worst['value']:.3g} before ({percent(change)}, n = "
                f"{counted(levels, 'level')}, no interval).",
                FIGURE,
                levels,
                "level",
                change,
            )
    return Answer(QUESTION, "The diagnostics hold no error by level.", FIGURE, levels, "level")
