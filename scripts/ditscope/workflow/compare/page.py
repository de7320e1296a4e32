"""A comparison as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ditscope.workflow.compare.experiments import PICTURES, Comparison
from ditscope.workflow.compare.tables import SIDES
from ditscope.workflow.compare.text import HEADER, about, cells, printable, setting_rows, summary, table_sections

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1a1a1a; }}
h1 {{ font-size: 1.5rem; }} h2 {{ margin-top: 2.5rem; font-size: 1.2rem; }} h3 {{ margin: 1.5rem 0 .3rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; }}
td {{ overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }} th {{ white-space: nowrap; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }}
figure {{ margin: 0; min-width: 0; }} figure img {{ width: 100%; background: #fff; }}
figcaption, .note {{ color: #555; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_html(comparison: Comparison) -> str:
    """A comparison as one page that needs no other file and runs no script; every text is escaped."""
    a, b = comparison.sides
    title = safe(f"{a.experiment} and {b.experiment}")
    body = [f"<h1>{title}</h1>", *(f"<p>{safe(line)}</p>" for line in summary(comparison))]
    if comparison.settings:
        body += ["<h2>Settings that differ</h2>", html_table(("setting", *SIDES), setting_rows(comparison))]
    for heading, tables in table_sections(comparison):
        body.append(f"<h2>{heading}</h2>")
        for table in tables:
            body += [f"<h3>{safe(table.name)}</h3>", f'<p class="note">{safe(about(table))}</p>']
            body += [html_table(HEADER, [cells(column) for column in table.columns])] if table.columns else []
    body += ["<h2>Figures</h2>"] if comparison.figures else []
    for figure in comparison.figures:
        body.append(f"<h3>{safe(figure.name)}{', the same in both' if figure.same else ''}</h3>")
        pairs = [("A and B", figure.files[0])] if figure.same else zip(SIDES, figure.files, strict=True)
        body.append(f'<div class="pair">{"".join(picture(*pair) for pair in pairs)}</div>')
    return PAGE.format(title=title, body="\n".join(body))


def safe(text: str) -> str:
    """Text within a page: no markup, no control characters."""
    return escape(printable(text))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML, every cell escaped."""

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{safe(cell)}</{tag}>" for cell in row) + "</tr>"

    return f'<div class="scroll"><table>{line("th", header)}{"".join(line("td", row) for row in rows)}</table></div>'


def picture(label: str, file: Path | None) -> str:
    """A figure of one side within the page: as an image, in which an SVG runs no script."""
    if file is None:
        return f"<figure><figcaption>{label}: none</figcaption></figure>"
    data = base64.b64encode(file.read_bytes()).decode()
    image = f'<img alt="{label}: {safe(file.stem)}" src="data:{PICTURES[file.suffix]};base64,{data}">'
    return f"<figure><figcaption>{label}</figcaption>{image}</figure>"
