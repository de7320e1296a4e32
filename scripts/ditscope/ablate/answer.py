"""What the stage `ablate` answers."""

from collections.abc import Collection

from ditscope.core.answer import Answer, measured
from ditscope.core.intervals import mean_interval
from ditscope.core.tables import Files, concat_tables

QUESTION = "Which block does the picture depend on most?"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The block whose absence changes the final latents most, beside the one that is missed least."""
    table = concat_tables([path for path in files["ablate"] if path.suffix == ".parquet"], "ablation")
    skipped = table.filter(kind="skip") if "skip" in table["kind"] else table
    effects = {
        (model, block): mean_interval(rows["latent_relative_l2"].to_numpy(), rows["prompt_id"].to_list())
        for (model, block), rows in skipped.group_by("model", "block", maintain_order=True)
    }
    (model, block), most = max(effects.items(), key=lambda item: item[1].mean)
    (_, other), least = min(((k, e) for k, e in effects.items() if k[0] == model), key=lambda item: item[1].mean)
    number = measured(most.mean, most.low, most.high, most.units, "prompt")
    return Answer(
        QUESTION,
        f"{block} of {model}: without it the final latents change by {number} times their norm; without {other}, "
        f"which is missed least, by {least.mean:.3g}.",
        "ablation-effects",
        most.units,
        "prompt",
        most.mean,
        most.low,
        most.high,
    )
