"""A verdict as a Markdown table for a pull request, and as JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

import ditscope
from ditscope.core.intervals import LEAST_UNITS
from ditscope.workflow.compare.text import printable
from ditscope.workflow.verdict.judge import ALPHA, EXIT, SHOWN, UNDECIDED, Row, overall
from ditscope.workflow.verdict.metrics import Measured, metric_named
from ditscope.workflow.verdict.sides import Sides

HEADER = ("metric", "A", "B", "B - A (95 %)", "margin", "p", "worst 5 %", "verdict", "more prompts")
SCHEMA_VERSION = "1"


def as_markdown(rows: Sequence[Row], sides: Sides, measured: Measured) -> str:
    """The verdict as Markdown: what was compared, a row per metric, the worst prompts, and how to read it."""
    lines = [
        f"### {safe(sides.b.name)} against {safe(sides.a.name)}: **{overall(rows)}**",
        "",
        *compared(sides, measured),
    ]
    lines += ["", f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(cells(row, sides.perfect))} |" for row in rows]
    lines += ["", *worst_prompts(rows, measured, sides.perfect), *legend(rows, sides, measured)]
    return "\n".join(lines) + "\n"


def compared(sides: Sides, measured: Measured) -> list[str]:
    """Which runs these are and how many pictures of how many prompts."""
    prompts, pictures = len(set(measured.prompts)), len(measured.prompts)
    row = sides.a.row
    against = (
        f"{sides.perfect} is the base itself" if sides.perfect else f"both against the base {code(sides.base.name)}"
    )
    made = f"{row['steps']} steps, guidance {row['guidance']:g}, {row['width']} x {row['height']} pixels"
    hosts = dict.fromkeys((sides.a.row["hardware"], sides.b.row["hardware"]))
    return [
        f"A {code(sides.a.label)}, B {code(sides.b.label)}: {pictures} pictures of {prompts} prompts on each side, "
        f"same seeds and starting noise; {made}; {safe(' and '.join(hosts))}; {against}.",
    ]


def cells(row: Row, perfect: str = "") -> tuple[str, ...]:
    """The cells of a metric's line under HEADER; the base has no PSNR to itself, so that there is no difference."""
    if perfect and row.metric == "psnr_db":
        values = ("", f"{row.b:.4g}") if perfect == "A" else (f"{row.a:.4g}", "")
        return (metric_named(row.metric).title, *values, "", "", "", "", row.verdict, "")
    interval = "" if row.low is None or row.high is None else f" ({row.low:+.3g} to {row.high:+.3g})"
    chance = "" if row.tail_chance is None else f" (chance {row.tail_chance:+.2g})"
    more = "" if row.verdict != UNDECIDED else "over a million" if row.more is None else f"{row.more:,}"
    return (
        safe(metric_named(row.metric).title),
        f"{row.a:.4g}",
        f"{row.b:.4g}",
        f"{row.difference:+.3g}{interval}",
        "" if row.margin is None else f"{row.margin:g}",
        "" if row.p is None else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}",
        "" if row.tail is None else f"{row.tail:+.3g}{chance}",
        row.verdict,
        more,
    )


def worst_prompts(rows: Sequence[Row], measured: Measured, perfect: str) -> list[str]:
    """The prompts that lose most, by metric."""
    lines = [
        f"- {metric_named(row.metric).title}: "
        + "; ".join(f"{safe(measured.ids[prompt])} {difference:+.3g}" for prompt, difference in row.worst)
        for row in rows
        if row.worst and not (perfect and row.metric == "psnr_db")
    ]
    return ["Worst prompts (B - A):", "", *lines, ""] if lines else []


def legend(rows: Sequence[Row], sides: Sides, measured: Measured) -> list[str]:
    """How the table is to be read, and what is not in it."""
    lines = [
        "Prompts are the units (seeds of one are averaged). Equivalent: the whole interval lies within the margin; "
        f"worse or better: p (Holm over the metrics that are judged) is at most {ALPHA:.2g}; else undecided, and so "
        "many more prompts would decide with 80 % power if they were like these.",
    ]
    if sides.perfect:
        lines.append(
            f"{sides.perfect} is what fidelity is measured against, so it is ahead in SSIM, LPIPS and cosines by "
            "definition: of these, p is for a difference larger than the margin."
        )
    if min(row.n for row in rows) < LEAST_UNITS:
        lines.append(
            f"Fewer than {LEAST_UNITS} prompts give no interval and no verdict: benchmark more of them (`num_images`, "
            "or fewer seeds)."
        )
    shown = [metric_named(row.metric).title for row in rows if row.verdict == SHOWN]
    if shown:
        lines.append(f"Shown, not judged: {', '.join(shown)} (no margin).")
    lines += [f"Not measured: {safe(name)} ({safe(reason)})." for name, reason in measured.reasons.items()]
    return [" ".join(lines), "", f"ditscope {ditscope.__version__} verdict"]


def as_json(rows: Sequence[Row], sides: Sides, measured: Measured) -> str:
    """The same as JSON, every number unrounded."""
    verdict = overall(rows)
    named = [
        asdict(row) | {"worst": [{"prompt_id": measured.ids[p], "prompt": p, "difference": d} for p, d in row.worst]}
        for row in rows
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict,
        "exit_code": EXIT[verdict],
        "a": sides.a.label,
        "b": sides.b.label,
        "base": sides.base.name,
        "perfect": sides.perfect,
        "pictures": len(measured.prompts),
        "prompts": len(set(measured.prompts)),
        "metrics": named,
        "not_measured": measured.reasons,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def code(text: str) -> str:
    """A text as code of Markdown."""
    return f"`{printable(text).replace('`', '')}`"


def safe(text: str) -> str:
    """A text that is no markup of Markdown or HTML and holds no control characters."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]~#])", r"\\\1", escaped)
