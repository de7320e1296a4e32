"""Tables for a paper: small summaries of the study's long tables, as CSV, Markdown and LaTeX."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ditscope.core.atomic import write_text
from ditscope.core.tables import concat_tables
from ditscope.drift.figures import drift_quantiles
from ditscope.models.bit_plan import load_plan
from ditscope.publish.figures import PAPER_TABLES
from ditscope.style import Files, named

LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)  # fmt: skip


MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", "|": r"\|"})


def sensitivity_ranking(files: Files) -> pl.DataFrame:
    """The ten most sensitive layers of each model at its fewest bits: relative L2 error, mean over buckets."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity")
    table = table.filter(pl.col("metric") == "relative_l2")
    mean = table.group_by("model", "layer", "kind", "bits").agg(pl.col("value").mean().alias("relative_l2"))
    least = mean.filter(pl.col("bits") == pl.col("bits").min().over("model"))
    ranked = least.sort("model", "relative_l2", "layer", descending=[False, True, False])
    return ranked.group_by("model", maintain_order=True).head(10)


def plans(files: Files) -> pl.DataFrame:
    """Each bit plan beside uniform bits that fit the same budget."""
    rows = []
    for path in files["plan"]:
        plan = load_plan(path)
        uniform = plan["uniform"] or {"bits": None, "predicted": None}
        kept = {key: plan[key] for key in ("model", "budget", "mean_bits", "nominal_bytes", "predicted")}
        rows.append(kept | {"uniform_bits": uniform["bits"], "uniform_predicted": uniform["predicted"]})
    return pl.DataFrame(rows).sort("model", "budget")


def benchmark(files: Files) -> pl.DataFrame:
    """Size and quality of each scheme."""
    table = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark")
    metrics = [m for m in ("psnr_db", "ssim", "feature_cosine", "quality_loss", "kid", "fid") if table[m].count()]
    keys = ["model", "hardware", "scheme", "compile"]
    return table.select(*keys, "nominal_bytes", "stored_bytes", "simulated", *metrics, "reason").sort(keys)


def drift(files: Files) -> pl.DataFrame:
    """Cosine distance of the last states to the first, observed and shuffled: median and quartiles over runs."""
    keys = ["embedder", "network", "control"]
    quantiles = drift_quantiles(files).with_columns(pl.col("control").cast(pl.String))
    return quantiles.group_by(keys, maintain_order=True).last().sort(keys)


def clusters(files: Files) -> pl.DataFrame:
    """Clusters, outliers, longest stays and returns by embedder and network."""
    keys = ["embedder", "network"]
    shares = concat_tables(named(files, "cluster", "outliers.parquet"), "clusters.outliers")
    stays = concat_tables(named(files, "cluster", "longest_runs.parquet"), "clusters.longest_runs")
    returns = concat_tables(named(files, "cluster", "returns.parquet"), "clusters.returns")
    longest = stays.filter(pl.col("scope").cast(pl.String) == "anytime").group_by(keys)
    came_back = (pl.col("returns") > 0).mean().alias("share_of_runs_that_return")
    return (
        shares.select(*keys, "states", "clusters", "outliers_share")
        .join(longest.agg(pl.col("length").median().alias("median_longest_stay")), on=keys, how="left")
        .join(returns.group_by(keys).agg(came_back), on=keys, how="left")
        .sort(keys)
    )


FUNCTIONS: dict[str, Callable[[Files], pl.DataFrame]] = {
    "sensitivity-ranking": sensitivity_ranking,
    "bit-plans": plans,
    "benchmark": benchmark,
    "drift": drift,
    "clusters": clusters,
}


def write_paper_tables(files: Files, out: Path) -> None:
    """Write every table whose stages are in `files` into the folder `out`."""
    for name, stage in PAPER_TABLES.items():
        if stage in files:
            table = FUNCTIONS[name](files)
            for kind, text in (("csv", table.write_csv()), ("md", markdown(table)), ("tex", latex(table))):
                write_text(out / f"{name}.{kind}", text)


def cell(value: object) -> str:
    """A value as text on one line: four significant digits, nothing for null."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def markdown(table: pl.DataFrame) -> str:
    """The table in Markdown; markup in its values is shown, not followed."""
    rows = [[cell(v).translate(MARKDOWN) for v in row] for row in table.rows()]
    lines = [table.columns, ["---"] * table.width, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: pl.DataFrame) -> str:
    """The table as a LaTeX tabular (booktabs), every special character escaped."""
    align = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    rows = [" & ".join(cell(v).translate(LATEX) for v in row) + r" \\" for row in table.rows()]
    header = " & ".join(name.translate(LATEX) for name in table.columns) + r" \\"
    body = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*body, ""])
