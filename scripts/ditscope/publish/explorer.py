"""An interactive page over a study's tables: the map of states, drift, quality against size. One file, no network."""

from pathlib import Path

import altair as alt
import polars as pl

from ditscope.benchmark.figures import benchmark_points
from ditscope.cluster.figures import labelled_map
from ditscope.core.atomic import write_text
from ditscope.drift.figures import drift_quantiles
from ditscope.style import Files

WIDTH = 360


def write_explorer(files: Files, out: Path) -> None:
    """Write one HTML page with what the finished stages allow; every library it needs is inside the file."""
    charts = [make(files) for stages, make in CHARTS if set(stages) <= set(files)]
    charts = charts or [alt.Chart(pl.DataFrame()).mark_point()]
    page = alt.vconcat(*charts).resolve_scale(color="independent", shape="independent", strokeDash="independent")
    write_text(out, escaped(page.to_html(inline=True)))


def escaped(html: str) -> str:
    """The page with every `<` of its data written as \\u003c, so that no prompt or caption can close the script."""
    head, start, rest = html.rpartition("const spec = ")
    spec, end, tail = rest.partition(";\n")
    return head + start + spec.replace("<", "\\u003c") + end + tail


def state_map(files: Files) -> alt.Chart:
    """The t-SNE map: choose a network in the legend, hover a state to read it."""
    table = labelled_map(files)
    network = alt.selection_point(fields=["network"], bind="legend")
    base = alt.Chart(table, width=WIDTH, height=WIDTH).mark_circle(size=36)
    return (
        base.encode(
            x=alt.X("x", axis=None),
            y=alt.Y("y", axis=None),
            color=alt.Color("network"),
            opacity=alt.condition(network, alt.value(0.9), alt.value(0.08)),
            tooltip=["text", "network", "run_id", "sequence_number", "label"],
        )
        .add_params(network)
        .facet(column=alt.Column("embedder", title=None), title="Embedded states (t-SNE)")
        .resolve_scale(x="independent", y="independent")
    )


def drift_lines(files: Files) -> alt.Chart:
    """Median cosine distance to the start, by network and embedder."""
    table = drift_quantiles(files).with_columns(pl.col("control").cast(pl.String))
    base = alt.Chart(table, width=WIDTH, height=200).encode(
        x=alt.X("sequence_number", title="sequence number", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("q50", title="cosine distance"),
        color="network",
        tooltip=["network", "control", "sequence_number", "q25", "q50", "q75", "runs"],
    )
    lines = base.mark_line().encode(strokeDash="control") + base.mark_circle(size=30).encode(detail="control")
    return lines.facet(column=alt.Column("embedder", title=None), title="Drift from the first state (median)")


def quality_by_size(files: Files) -> alt.Chart:
    """Quality loss of each scheme against its nominal size."""
    table = benchmark_points(files)
    base = alt.Chart(table, width=WIDTH, height=240, title="Quantization: quality loss against size").mark_point(
        size=80, filled=True
    )
    return base.encode(
        x=alt.X("nominal_bytes", title="nominal bytes", scale=alt.Scale(zero=False)),
        y=alt.Y("value", title="quality loss"),
        color="scheme",
        shape="compile",
        tooltip=[
            "model",
            "hardware",
            "scheme",
            "compile",
            "nominal_bytes",
            "stored_bytes",
            "simulated",
            "value",
            "low",
            "high",
        ],
    )


# (stages a chart needs, its function)
CHARTS = (
    (("cluster",), state_map),
    (("drift",), drift_lines),
    (("benchmark",), quality_by_size),
)
