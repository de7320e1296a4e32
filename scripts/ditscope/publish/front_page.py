"""The front page of a study: the question of each stage, its answer in one sentence, and the figure."""

import io
from base64 import b64encode
from html import escape
from pathlib import Path

import polars as pl
from PIL import Image

from ditscope.core.atomic import write_text
from ditscope.core.paths import OutputFile

WIDTH, HIGHEST = 640, 0.42  # pixels of a picture; of a higher one the top is shown, at most this share of its width


def write_front_page(name: str, answers: pl.DataFrame, figures: Path, out: OutputFile) -> None:
    """Write the page of the study `name` from its table `answers`, with the pictures of the folder `figures`."""
    write_text(out, front_page(name, answers, figures))


def front_page(name: str, answers: pl.DataFrame, figures: Path) -> str:
    """One HTML page in one file: a card for each answer. What the tables say is shown as text, never as markup."""
    cards = "\n".join(card(row, figures) for row in answers.iter_rows(named=True))
    empty = "" if len(answers) else "<p>No stage of this study answers a question yet.</p>"
    return PAGE.format(name=escape(name), style=STYLE, script=SCRIPT, cards=cards or empty)


def card(row: dict, figures: Path) -> str:
    """The card of an answer: question, sentence, caveats, picture."""
    caveats = f'<p class="caveat">{escape(row["caveats"])}</p>' if row["caveats"] else ""
    kind = next((kind for kind in ("svg", "png", "pdf") if (figures / f"{row['figure']}.{kind}").exists()), "")
    source = thumbnail(figures, row["figure"])
    name = escape(row["figure"])
    picture = f'<img src="{source}" alt="top of the figure {name}">' if source else name
    link = f'<a class="figure" href="figures/{name}.{kind}">{picture}</a>' if kind else ""
    return (
        f"<article><h2>{escape(row['question'])} <small>{escape(row['stage'])}</small></h2>"
        f"<p>{escape(row['answer'])}</p>{caveats}{link}</article>"
    )


def thumbnail(figures: Path, name: str) -> str:
    """The top of a figure as a data URI, small, of its PNG; else its whole SVG; empty where there is neither."""
    png, svg = figures / f"{name}.png", figures / f"{name}.svg"
    if png.exists():
        with Image.open(png) as opened:
            whole = opened.convert("RGB")
        top = whole.crop((0, 0, whole.width, min(whole.height, round(HIGHEST * whole.width))))
        top.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        kept = io.BytesIO()
        top.quantize(64).save(kept, "PNG", optimize=True)
        return f"data:image/png;base64,{b64encode(kept.getvalue()).decode()}"
    return f"data:image/svg+xml;base64,{b64encode(svg.read_bytes()).decode()}" if svg.exists() else ""


STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --paper: #f6f8fa; --card: #ffffff; --line: #d0d7de; --accent: #0b5cad;
  --warn: #8a4600; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --paper: #0d1117; --card: #161b22;
  --line: #30363d; --accent: #6cb6ff; --warn: #e3a35c; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 8px 14px; background: var(--paper); color: var(--ink);
  font: 13px/1.35 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px; margin-bottom: 6px; }
h1 { font-size: 18px; margin: 0; }
header p { margin: 0; color: var(--soft); }
nav a, main a { color: var(--accent); }
nav { display: flex; gap: 14px; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 8px; }
article { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 10px; min-width: 0; overflow-wrap: anywhere; }
article p { margin: 0 0 4px; }
h2 { font-size: 14px; margin: 0 0 2px; }
small { color: var(--soft); font-weight: normal; font-size: 11px; white-space: nowrap; }
.caveat { color: var(--warn); font-size: 12px; }
.figure { margin-top: auto; display: block; background: #fff; border-radius: 4px; text-align: center; }
img { display: block; width: 100%; height: 118px; object-fit: cover; object-position: top; }
@media (max-width: 640px) { img { height: auto; max-height: 240px; } }
"""
# Inside of Snakemake's report the page has no place of its own: there links beside it lead nowhere.
SCRIPT = """
if (location.protocol === "data:" || location.protocol === "blob:") {
  for (const nav of document.querySelectorAll("nav")) nav.remove();
  for (const link of document.querySelectorAll("a")) link.removeAttribute("href");
}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: what came out</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{name}: what came out</h1>
<p>One question per stage, answered from the study's tables. Without an interval a number rests on too few units.</p>
<nav><a href="explorer.html">explore</a><a href="report.html">report</a></nav>
</header>
<main>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""
