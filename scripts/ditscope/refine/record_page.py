"""The record of a refiner experiment as one page that a browser opens without anything beside it."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.refine.gallery import FILM

MIME = {".png": "image/png", ".gif": "image/gif"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.7em 0 } td, th { padding: 0.15em 0.7em; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 0.6em 0.8em 0; vertical-align: top }
figcaption { font-size: 12px; color: #555 }
img { image-rendering: pixelated; max-width: 100% } .no { color: #a00 } .yes { color: #060 } pre { overflow-x: auto }
"""


def record_page(record: Mapping[str, Any], evaluation: pl.DataFrame, gallery: pl.DataFrame, folder: Path) -> str:
    """HTML of a record: its decision, each level with its controls, criteria, pictures and settings.

    Pictures of `gallery` lie below `folder` and are put into the page.
    """
    results, name = record["results"], record["header"]["refiner"]
    held = results["held_out"]
    parts = [
        f"<h1>Refiner {escape(name)}: {escape(results['decision'])}</h1>",
        f"<p>{escape(results['why'])}.</p><p>Rule: {escape(results['rule'])}.</p>",
        f"<p>Judged on {held['samples']} held-out samples of {held['units']} units; {escape(held['note'])}.</p>",
        "<h2>Held-out samples by level</h2>",
        *(evaluation_table(metric, part) for (metric,), part in by_metric(evaluation)),
        "<h2>Pictures</h2>",
        *(pictures_of(part, folder) for _, part in gallery.group_by("key", "level", maintain_order=True)),
        "<h2>Criteria</h2>",
        criteria_table(results["criteria"]),
        *(section(title, record[title]) for title in ("data", "model", "runtime", "settings")),
    ]
    title = f"Refiner {name}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def by_metric(evaluation: pl.DataFrame) -> Any:
    """The table's parts by metric, in the order of first appearance."""
    return evaluation.group_by("metric", maintain_order=True)


def evaluation_table(metric: str, part: pl.DataFrame) -> str:
    """Means of a metric, a row per method and a column per level, with the paired gain over interpolation."""
    levels = part["level"].unique(maintain_order=True).to_list()
    keys = dict(part.select("level", "keys").unique().iter_rows())
    head = row("th", [metric, *(f"level {level} ({keys[level]} keys)" for level in levels)])
    lines = [head]
    for (method,), own in part.group_by("method", maintain_order=True):
        cells = {r["level"]: cell(r) for r in own.iter_rows(named=True)}
        lines.append(row("td", [str(method), *(cells.get(level, "") for level in levels)]))
    return f"<table>{''.join(lines)}</table>"


def cell(values: Mapping[str, Any]) -> str:
    """A value with its interval, and the gain with its own."""
    text = f"{values['value']:.3g}"
    if values["low"] is not None:
        text += f" [{values['low']:.3g}, {values['high']:.3g}]"
    if values["gain"] is not None:
        text += f"; gain {values['gain']:+.3g}"
        if values["gain_low"] is not None:
            text += f" [{values['gain_low']:+.3g}, {values['gain_high']:+.3g}]"
    return text


def criteria_table(criteria: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per criterion: its value, what it must be, whether it passed."""
    lines = [row("th", ["criterion", "value", "must be", "passed"])]
    for name, check in criteria.items():
        side = "below" if "must_be_below" in check else "above"
        value, bound = check["value"], check[f"must_be_{side}"]
        shown = ["none" if x is None else f"{x:.4g}" for x in (value, bound)]
        lines.append(row("td", [name, shown[0], f"{side} {shown[1]}", "yes" if check["passed"] else "no"]))
    return f"<table>{''.join(lines)}</table>"


def pictures_of(part: pl.DataFrame, folder: Path) -> str:
    """The pictures of a sample at a level, in a row below its prompt."""
    first = part.row(0, named=True)
    figures = [figure(folder / r["picture"], r["method"]) for r in in_order(part.to_dicts())]
    said = f"level {first['level']}, {first['keys']} keys: {first['prompt']}"
    return f"<p>{escape(said)}</p><div>{''.join(figures)}</div>"


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A film before its strips."""
    return sorted(rows, key=lambda r: r["method"] != FILM)


def figure(path: Path, caption: str) -> str:
    """A picture in the page."""
    data = b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:{MIME[path.suffix]};base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def section(title: str, values: Mapping[str, Any]) -> str:
    """A part of the record as a table of its entries."""
    lines = [f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>" for key, value in values.items()]
    return f"<h2>{escape(title.capitalize())}</h2><table>{''.join(lines)}</table>"


def row(tag: str, cells: Sequence[str]) -> str:
    """A row of a table."""
    marked = {"yes": ' class="yes"', "no": ' class="no"'}
    return "<tr>" + "".join(f"<{tag}{marked.get(c, '')}>{escape(c)}</{tag}>" for c in cells) + "</tr>"
