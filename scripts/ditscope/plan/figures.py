"""Figures of the stage `plan`."""

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.models.bit_plan import load_plan
from ditscope.style import COLOURS, Files


def bit_plan(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Bits of each layer under each plan (left), and predicted error against size (right)."""
    plans = [load_plan(path) for path in files["plan"]]
    figure = Canvas(figsize=(7, 2.4 * len(plans)))
    axes = figure.subplots(len(plans), 2, squeeze=False, gridspec_kw={"width_ratios": [3, 2]})
    records = []
    for (left, right), plan in zip(axes, plans, strict=True):
        bits = list(plan["layers"].values())
        left.bar(range(len(bits)), bits, width=1.0, color=COLOURS[0])
        left.set_ylabel("bits")
        left.set_xlabel("layer, in network order")
        left.set_title(f"{plan['model']}, budget {plan['budget']}: {plan['mean_bits']:.2f} mean bits")
        line = plan["frontier"]
        right.plot(
            [p["nominal_bytes"] / 1e6 for p in line], [p["predicted"] for p in line], marker=".", label="best plans"
        )
        right.plot(plan["nominal_bytes"] / 1e6, plan["predicted"], "o", color=COLOURS[1], label="this plan")
        if uniform := plan["uniform"]:
            label = f"uniform {uniform['bits']} bit"
            right.plot(uniform["nominal_bytes"] / 1e6, uniform["predicted"], "x", color=COLOURS[6], label=label)
        right.set_yscale("log")
        right.set_xlabel("nominal MB")
        right.set_ylabel(f"predicted error power ({plan['metric']})")
        right.legend()
        for layer, width in plan["layers"].items():
            records.append({"model": plan["model"], "budget": plan["budget"], "layer": layer, "bits": width})
    return figure, pl.DataFrame(records)


def bit_plans_table(files: Files) -> pl.DataFrame:
    """Each bit plan beside uniform bits that fit the same budget."""
    rows = []
    for path in files["plan"]:
        plan = load_plan(path)
        uniform = plan["uniform"] or {"bits": None, "predicted": None}
        kept = {key: plan[key] for key in ("model", "budget", "mean_bits", "nominal_bytes", "predicted")}
        rows.append(kept | {"uniform_bits": uniform["bits"], "uniform_predicted": uniform["predicted"]})
    return pl.DataFrame(rows).sort("model", "budget")
