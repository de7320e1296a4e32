"""The benchmark in words: what to use under a memory budget or a quality bound, what to avoid, and why."""

import polars as pl

from ditscope.benchmark.tables import NOISE_FLOOR
from ditscope.core.intervals import LEAST_UNITS

MB = 1e6
WITHHELD = (
    "every timing is noisy, so there is no verdict; run the benchmark again on a quiet machine, or with `until_quiet`."
)
SMALL_N = 2048


def recommendation(sizes: pl.DataFrame, speeds: pl.DataFrame, bound: float, judged: pl.DataFrame | None = None) -> str:
    """Markdown written from the tables `benchmark` and `benchmark.timing`: a chapter for each model and hardware.

    `bound` is the largest quality loss that counts as good; `judged` is the table `benchmark.quality`, for its floor.
    """
    lines = ["# Recommendation", ""]
    for model, hardware in sizes.select("model", "hardware").unique(maintain_order=True).rows():
        runs = sizes.filter(model=model, hardware=hardware)
        timed = speeds.filter(model=model, hardware=hardware)
        floor = [] if judged is None else noise_floor(judged.filter(model=model, hardware=hardware))
        lines += [f"## {model} on {hardware}", "", *basis(runs, bound), *floor, ""]
        lines += ["### Under a memory budget", "", *under_a_budget(runs, timed), ""]
        lines += [f"### Fastest within a quality loss of {percent(bound)}", "", *fastest(runs, timed), ""]
        lines += ["### What to avoid, and why", "", *avoid(runs, timed, bound), ""]
        lines += ["### Not measured here", "", *not_measured(runs, timed), ""]
    return "\n".join(lines)


def basis(runs: pl.DataFrame, bound: float) -> list[str]:
    """What the judgement rests on, and how far it may be trusted."""
    n, prompts = runs["n"].max(), runs["n_prompts"].max()
    if n is None:
        return ["Quality was not judged: this is about size and speed only."]
    text = (
        f"Quality: {n} images of {prompts} prompts, with the same seeds and starting noise as the eager base; a scheme "
        f"is within the bound of {percent(bound)} only if its whole 95 % interval (over prompts) is."
    )
    if prompts < LEAST_UNITS:
        text += f" Fewer than {LEAST_UNITS} prompts give no interval, so that no scheme is judged."
    few = f" {n} images are few: no FID here is a headline (that takes {SMALL_N:,}), and intervals are wide."
    control = runs.filter((pl.col("kind") == "base") & (pl.col("compile") != "eager")).drop_nulls("quality_loss")
    drift = [f"{percent(row['quality_loss'])} ({row['compile']})" for row in control.iter_rows(named=True)]
    compiled = [f"Compilation alone, without quantization, loses {', '.join(drift)}."] if drift else []
    return [text + (few if n < SMALL_N else ""), *compiled]


def noise_floor(judged: pl.DataFrame) -> list[str]:
    """What the base loses against itself in another batch: a scheme's difference below that is none."""
    rows = judged.filter(kind=NOISE_FLOOR).drop_nulls("value")
    floor = {row["metric"]: row["value"] for row in rows.iter_rows(named=True)}
    if "quality_loss" not in floor:
        return []
    return [
        f"Noise floor (`{rows['scheme'][0]}` against the base): quality loss {percent(floor['quality_loss'])}, PSNR "
        f"{floor['psnr_db']:.1f} dB; a difference of that size is the batch's, not the scheme's."
    ]


def under_a_budget(runs: pl.DataFrame, timed: pl.DataFrame) -> list[str]:
    """The front of size against quality loss, for weights as they lie in memory and as a packed file, and its price."""
    lines = []
    eager = measured_eager(runs)
    paces = timed.filter(compile="eager").drop_nulls("speedup").sort("batch").unique("scheme", keep="first")
    rows = paces.select("scheme", "speedup", "speedup_verdict").rows()
    speedups = {scheme: f"{pace:.2f}" if verdict == "quiet" else "noisy" for scheme, pace, verdict in rows}
    batch = f", batch {paces['batch'].min()}" if len(paces) else ""
    if not eager["quality_loss"].count():
        smallest = eager.sort("stored_bytes").drop_nulls("stored_bytes").rows(named=True)[:1]
        return [f"Smallest in memory: `{r['scheme']}`, {r['stored_bytes'] / MB:.2f} MB." for r in smallest]
    for title, column, table in (
        ("Weights in memory", "stored_bytes", eager.filter(~pl.col("simulated"))),
        ("Packed file (nominal size; schemes that are only simulated included)", "nominal_bytes", eager),
    ):
        head = f"| from | use | quality loss (95 %) | verdict | speed-up (eager{batch}) |"
        lines += [f"{title}:", "", head, "|---|---|---|---|---|"]
        for row in front(table, column):
            pace = speedups.get(row["scheme"], "")
            size, verdict = f"{row[column] / MB:.2f} MB", row["quality_verdict"]
            lines.append(f"| {size} | `{row['scheme']}` | {loss(row)} | {verdict} | {pace} |")
        lines.append("")
    return lines[:-1]


def measured_eager(runs: pl.DataFrame) -> pl.DataFrame:
    """The runs in eager mode that have a result."""
    return runs.filter((pl.col("compile") == "eager") & (pl.col("reason") == ""))


def front(table: pl.DataFrame, size: str) -> list[dict]:
    """Rows that no smaller or equal row beats in quality loss, from the smallest on (the Pareto front)."""
    best, kept = float("inf"), []
    for row in table.drop_nulls([size, "quality_loss"]).sort(size, "quality_loss").iter_rows(named=True):
        if row["quality_loss"] < best:
            best = row["quality_loss"]
            kept.append(row)
    return kept


def fastest(runs: pl.DataFrame, timed: pl.DataFrame) -> list[str]:
    """For each batch size the fastest quiet run within the bound, beside the base of its compile state."""
    judged = runs.filter(pl.col("quality_verdict") == "within") if runs["quality_verdict"].count() else runs
    keys = ["scheme", "compile"]
    allowed = timed.drop_nulls("latency_median_ms").join(judged.select(keys), on=keys, how="semi")
    if allowed.is_empty():
        return ["No timed run is within the bound."]
    noisy = allowed.filter(pl.col("verdict") == "noisy")
    best = allowed.filter(pl.col("verdict") == "quiet").sort("batch", "latency_median_ms").unique("batch", keep="first")
    lines = []
    if len(best):
        lines = ["| batch | use | ms per batch (p10 to p90) | speed-up over the base in the same compile state |"]
        lines.append("|---|---|---|---|")
    for row in best.sort("batch").iter_rows(named=True):
        spread = f"{row['latency_p10_ms']:.4g} to {row['latency_p90_ms']:.4g}"
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f}{interval(row)}"
        speedup = "noisy base" if row["speedup_verdict"] == "noisy" else speedup
        use = f"`{row['scheme']}`, {row['compile']}"
        lines.append(f"| {row['batch']} | {use} | {row['latency_median_ms']:.4g} ({spread}) | {speedup} |")
    withheld = sorted(set(allowed["batch"]) - set(best["batch"]))
    if withheld:
        lines += ["", f"Batch {', '.join(map(str, withheld))}: {WITHHELD}"]
    if len(noisy):
        lines += ["", f"Left out as noisy ({len(noisy)} of {len(allowed)} timings within the bound):", ""]
        lines += [
            f"- `{row['scheme']}`, {row['compile']}, batch {row['batch']}: {row['noisy_because']}"
            for row in noisy.iter_rows(named=True)
        ]
    return lines


def interval(row: dict) -> str:
    """The 95 % interval of a speed-up in brackets, where there is one."""
    return "" if row["speedup_low"] is None else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"


def avoid(runs: pl.DataFrame, timed: pl.DataFrame, bound: float) -> list[str]:
    """Runs that cost quality, time or memory without giving anything for it.

    Being slow is the price, not a fault, of what saves the most memory for its quality.
    """
    lines = []
    frugal = {row["scheme"] for row in front(measured_eager(runs).filter(~pl.col("simulated")), "stored_bytes")}
    base = runs.filter(pl.col("kind") == "base")["stored_bytes"].drop_nulls()
    for row in runs.filter((pl.col("kind") != "base") & (pl.col("reason") == "")).iter_rows(named=True):
        why = []
        if row["quality_verdict"] == "beyond":
            why.append(f"its quality loss, {loss(row)}, is beyond {percent(bound)}")
        pace = timed.filter(scheme=row["scheme"], compile=row["compile"], speedup_verdict="quiet").drop_nulls("speedup")
        noisy = timed.filter(scheme=row["scheme"], compile=row["compile"], speedup_verdict="noisy")
        slow = pace.filter(pl.col("speedup") < 1)
        paid = row["compile"] == "eager" and row["scheme"] in frugal and row["quality_verdict"] != "beyond"
        if len(pace) and len(slow) == len(pace) and not paid:
            worst = slow.sort("speedup").row(0, named=True)
            every = "every quietly timed" if noisy.height else "every"
            why.append(
                f"slower than the base at {every} batch size "
                f"(speed-up {worst['speedup']:.2f} at batch {worst['batch']})"
            )
        if row["simulated"] and row["nominal_bytes"] < row["stored_bytes"]:
            why.append(
                f"its bits are only simulated: {row['stored_bytes'] / MB:.2f} MB in memory for nominal "
                f"{row['nominal_bytes'] / MB:.2f} MB"
            )
        elif len(base) and row["stored_bytes"] >= base[0] and row["kind"].split("+")[0] != "base":  # fused: for speed
            why.append("no smaller than the base in memory")
        if why:
            lines.append(f"- `{row['scheme']}`, {row['compile']}: {'; '.join(why)}.")
    return lines or ["Nothing: every measured scheme gives something for what it costs."]


def not_measured(runs: pl.DataFrame, timed: pl.DataFrame) -> list[str]:
    """Runs and batch sizes without a result, each with its reason."""
    lines = [
        f"- `{row['scheme']}`, {row['compile']}: {row['reason']}"
        for row in runs.filter(pl.col("reason") != "").iter_rows(named=True)
    ]
    whole = runs.filter(pl.col("reason") != "").select("scheme", "compile")
    batches = timed.filter(pl.col("reason") != "").join(whole, on=["scheme", "compile"], how="anti")
    lines += [f"- `{r['scheme']}`, {r['compile']}, batch {r['batch']}: {r['reason']}" for r in batches.to_dicts()]
    return lines or ["Nothing: every scheme ran."]


def loss(row: dict) -> str:
    """The quality loss of a run and its interval, in percent."""
    if row["quality_loss_low"] is None:
        return percent(row["quality_loss"])
    return f"{percent(row['quality_loss'])} ({percent(row['quality_loss_low'])} to {percent(row['quality_loss_high'])})"


def percent(share: float) -> str:
    """A share in percent, two significant digits; rounding noise is 0."""
    return f"{share * 100 if share > 1e-6 else 0:.2g} %"
