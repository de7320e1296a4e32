"""What the stage `benchmark` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.benchmark.tables import NOISE_FLOOR
from ditscope.core.answer import Answer, counted, percent
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "What does quantization save, and what does it cost?"
FIGURE = "benchmark-pareto"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The smallest scheme whose quality loss is within the bound: size, loss, speed, and what to think of each."""
    runs = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark")
    times = concat_tables(named(files, "benchmark", "benchmark.timing.parquet"), "benchmark.timing")
    ran = runs.filter(pl.col("reason") == "", pl.col("kind") != NOISE_FLOOR)
    schemes = ran.filter(pl.col("kind") != "base", pl.col("compile") == "eager").drop_nulls("nominal_ratio")
    if schemes.is_empty():
        told = f"No scheme ran: {counted(len(runs), 'row')} give the reason."
        return Answer(QUESTION, told, FIGURE, 0, "prompt")
    good = schemes.filter(pl.col("quality_loss") <= pl.col("quality_bound"))
    order = ["nominal_bytes", "quality_loss"] if len(good) else ["quality_loss", "nominal_bytes"]
    best = (good if len(good) else schemes).sort(order, nulls_last=True).row(0, named=True)
    pace = times.filter(**{key: best[key] for key in ("model", "hardware", "scheme", "compile")}).sort("batch")
    caveats = ["simulated: stored or computed in more bits here"] if best["simulated"] else []
    caveats += ["timing noisy: no verdict"] if len(pace) and pace["speedup_verdict"][0] != "quiet" else []
    caveats += [f"{n} rows not measured"] if (n := len(runs) - len(ran)) else []
    return Answer(
        QUESTION,
        f"{best['scheme']} of {best['model']} takes {1 / best['nominal_ratio']:.2g} of the base's bytes{loss(best)}"
        f"{speed(pace)}.",
        FIGURE,
        best["n_prompts"] or 0,
        "prompt",
        best["quality_loss"],
        best["quality_loss_low"],
        best["quality_loss_high"],
        tuple(caveats),
    )


def loss(run: dict) -> str:
    """The quality loss of a run in words, with its interval and the verdict."""
    if run["quality_loss"] is None:
        return "; its quality was not judged"
    n = counted(run["n_prompts"], "prompt")
    interval = f"n = {n}, no interval"
    if run["quality_loss_low"] is not None:
        interval = f"95 % interval {percent(run['quality_loss_low'])} to {percent(run['quality_loss_high'])}, n = {n}"
    return (
        f" and loses {percent(run['quality_loss'])} of the quality ({interval}; bound {percent(run['quality_bound'])}: "
        f"{run['quality_verdict']})"
    )


def speed(pace: pl.DataFrame) -> str:
    """The speed-up of a run at its smallest batch in words; noisy timings are not told."""
    if pace.is_empty() or pace["speedup_verdict"][0] != "quiet":
        return ""
    row = pace.row(0, named=True)
    interval = f", 95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}" if row["speedup_low"] else ""
    n = f"n = {row['repeats']} timings{interval}"
    return f", at {row['speedup']:.2f} times the base's speed (batch {row['batch']}, {n})"
