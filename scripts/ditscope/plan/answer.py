"""What the stage `plan` answers."""

from collections.abc import Collection

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files
from ditscope.models.bit_plan import load_plan

QUESTION = "What does a bit width of its own for each layer gain?"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The plan that gains most over uniform bits of its size: the ratio of predicted errors."""
    plans = [load_plan(path) for path in files["plan"]]
    beside = [plan for plan in plans if plan["uniform"] and plan["uniform"]["predicted"] > 0]
    if not beside:
        told = f"No uniform bit width fits a budget of the {counted(len(plans), 'plan')}."
        return Answer(QUESTION, told, "bit-plan", 0, "layer", caveats=("nothing to compare with",))
    best = min(beside, key=lambda plan: plan["predicted"] / plan["uniform"]["predicted"])
    ratio = best["predicted"] / best["uniform"]["predicted"]
    n = len(best["layers"])
    return Answer(
        QUESTION,
        f"Under the budget {best['budget']} ({best['nominal_bytes'] / 1e6:.3g} MB) the plan of {best['model']} has "
        f"{ratio:.2g} times the predicted error of uniform {best['uniform']['bits']} bits (n = {counted(n, 'layer')}, "
        "no interval).",
        "bit-plan",
        n,
        "layer",
        ratio,
        caveats=("predicted: the benchmark measures it",),
    )
