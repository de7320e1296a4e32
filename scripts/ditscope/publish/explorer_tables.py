"""The tables of the explorer: which columns each view shows, thinned to what a page holds, packed for a browser."""

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.schema import table_named
from ditscope.core.tables import read_table

MOST_ROWS = 120_000  # of one table in the page
RUN = "embedder network run_id sequence_number"
PLACE = "generation_id model prompt_id step block depth"
CASE = "model hardware scheme compile"


@dataclass(frozen=True)
class Shown:
    """A table of the explorer: the stage that leaves it, the columns that the page has, and what is thinned as one."""

    stage: str
    name: str
    columns: str  # names with blanks between them; `*`: those that there are
    unit: str = ""  # column whose values are kept or left out with all their rows; else single rows
    where: tuple[tuple[str, str], ...] = ()  # values that rows have


SHOWN = (
    Shown("prompts", "prompts", "prompt_id prompt negative_prompt family seed derived_seed"),
    Shown("capture", "capture_statistics", f"{PLACE} stream half rms absmax std", "generation_id"),
    Shown("blocks", "blocks.similarity", f"{PLACE} stream half cosine linear_cka", "generation_id"),
    Shown("blocks", "blocks.residual", f"{PLACE} stream half relative_update update_cosine", "generation_id"),
    Shown("blocks", "blocks.text_drift", f"{PLACE} half cosine_distance", "generation_id"),
    Shown("blocks", "blocks.decodability", f"{PLACE} psnr_db feature_cosine_distance", "generation_id"),
    Shown(
        "ablate",
        "ablation",
        "request_hash model prompt_id seed block depth kind latent_relative_l2 psnr_db ssim feature_cosine_distance",
    ),
    Shown(
        "sensitivity",
        "sensitivity",
        "model backend layer kind depth module bits bucket metric value value_low value_high n_images n_samples "
        "parameters packed_bytes mode",
        "layer",
    ),
    Shown(
        "benchmark",
        "benchmark",
        f"{CASE} kind mean_bits nominal_bytes stored_bytes simulated quality_bound quality_verdict reason",
    ),
    Shown("benchmark", "benchmark.quality", f"{CASE} metric value low high n n_prompts small_n reason"),
    Shown(
        "benchmark",
        "benchmark.timing",
        f"{CASE} batch repeats latency_median_ms latency_p10_ms latency_p90_ms steady_peak_bytes peak_covers speedup "
        "speedup_low speedup_high verdict noisy_because reason cpu gpu platform python packages",
    ),
    Shown("benchmark", "benchmark.targets", "target model source batch latency_ms"),
    Shown(
        "trajectories",
        "trajectories",
        "network run_id prompt_id prompt seed sequence_number entry type output_key output_text stop_reason "
        "loop_length",
        "run_id",
    ),
    Shown("drift", "drift", f"{RUN} cosine_distance degenerate", "run_id", (("control", "observed"),)),
    Shown("drift", "drift.bands", "embedder network claim sequence_number runs observed low median high"),
    Shown(
        "drift",
        "drift.nulls",
        "embedder network claim runs prompts draws statistic null_low null_high p_holm reason degenerate",
    ),
    Shown("cluster", "clusters", f"{RUN} label is_medoid", "run_id"),
    Shown("cluster", "clusters.map", f"{RUN} position x y reason", "run_id"),
    Shown("cluster", "clusters.medoids", "embedder label states runs medoid_text jaccard"),
    Shown("refine", "refine.training", "*"),
    Shown("refine", "refine.evaluation", "*"),
    Shown("refine", "refine.gallery", "*"),
    Shown("publish", "answers", "*"),
)


@dataclass
class Gathered:
    """Tables of the page by name, and what is to be said of them."""

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)  # by stage: files that could not be read
    sampled: list[str] = field(default_factory=list)


def gather(files: dict[str, list[Path]], most_rows: int = MOST_ROWS) -> Gathered:
    """Read what the stages left of the tables that the page shows; what is not there, or not readable, is told.

    A table of more than `most_rows` rows is thinned. Tables of states keep whole runs, all of them the same ones, so
    that a run that is seen in one view is there in the others.
    """
    gathered = Gathered()
    for shown in SHOWN:
        parts = [part for path in files_of(shown, files) for part in read_part(shown, path, gathered.problems)]
        if parts:
            table = pl.concat(parts, how="diagonal_relaxed")
            gathered.tables[shown.name] = with_summary(shown, table, gathered)
    units: dict[str, int] = {}
    for shown in SHOWN:
        if shown.name in gathered.tables and shown.unit:
            rows = gathered.tables[shown.name].height
            units[shown.unit] = max(units.get(shown.unit, 1), -(-rows // most_rows))
    for shown in SHOWN:
        if shown.name in gathered.tables:
            table = gathered.tables[shown.name]
            kept = thinned(table, shown.unit, units.get(shown.unit, 1), most_rows)
            if kept.height < table.height:
                what = f"{shown.unit.removesuffix('_id')}s" if shown.unit else "rows"
                gathered.sampled.append(
                    f"{shown.name}: {kept.height:,} of {table.height:,} rows, of {what} drawn by their names; "
                    "medians and intervals are of all"
                )
            gathered.tables[shown.name] = kept
    return gathered


def files_of(shown: Shown, files: dict[str, list[Path]]) -> Iterator[Path]:
    """The Parquet files of a table among what its stage left, also in its folders."""
    pattern = table_named(shown.name).file
    for path in files.get(shown.stage, []):
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            timing = file.name.endswith(".timing.parquet") and not shown.name.endswith(".timing")
            if file.match(pattern) and not timing and file.exists():
                yield file


def read_part(shown: Shown, path: Path, problems: dict[str, list[str]]) -> Iterator[pl.DataFrame]:
    """The shown columns of a file, if it can be read; its problem is noted otherwise."""
    try:
        table = read_table(path, shown.name)
    except InputError as error:
        problems.setdefault(shown.stage, []).append(str(error))
        return
    if table_named(shown.name).places:
        table = table.with_columns(model=pl.lit(path.parent.name))
    wanted = [*shown.columns.replace("*", "").split(), *(name for name, _ in shown.where)]
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        problems.setdefault(shown.stage, []).append(
            f"{path}: the table `{shown.name}` has no column {', '.join(missing)}; run the stage again"
        )
        return
    yield table


def with_summary(shown: Shown, table: pl.DataFrame, gathered: Gathered) -> pl.DataFrame:
    """The shown rows and columns of a table. Quartiles of drift over all runs become a table of their own."""
    if shown.name == "drift":
        keys = ["embedder", "network", "control", "sequence_number"]
        quartiles = [pl.col("cosine_distance").quantile(q).alias(f"q{q * 100:.0f}") for q in (0.25, 0.5, 0.75)]
        by_state = table.group_by(keys).agg(*quartiles, pl.col("run_id").n_unique().alias("runs")).sort(keys)
        gathered.tables["drift.summary"] = by_state
    for name, value in shown.where:
        table = table.filter(pl.col(name).cast(pl.String) == value)
    return table if shown.columns == "*" else table.select(shown.columns.split())


def thinned(table: pl.DataFrame, unit: str, share: int, most_rows: int) -> pl.DataFrame:
    """About one in `share` of the values of `unit` with all their rows, the same ones in every table.

    Where that leaves far more than `most_rows` rows, since few values have many, or there is no unit: every n-th row.
    """
    if unit and share > 1:
        names = table[unit].unique().to_list()
        kept = [name for name in names if zlib.crc32(str(name).encode()) % share == 0]
        if kept:  # else one value has all the rows
            table = table.filter(pl.col(unit).is_in(kept))
    if table.height > (1.5 if unit else 1) * most_rows:
        table = table.gather_every(-(-table.height // most_rows))
    return table


def packed_tables(tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Tables as plain data: for each column its kind and its values in base64."""
    return {
        name: {"rows": table.height, "columns": {column.name: packed(column) for column in table}}
        for name, table in sorted(tables.items())
    }


def packed(column: pl.Series) -> dict[str, Any]:
    """A column as its kind and its values in base64.

    `u1`, `u2`, `u4`: places in a dictionary `d` of texts, from 1 on (0: null). `b`: truth values (2: null). `f4`, `f8`:
    numbers (NaN: null); whole numbers that a float of four bytes cannot hold take eight.
    """
    if column.dtype == pl.Boolean:
        return {"k": "b", "v": encoded(column.cast(pl.UInt8).fill_null(2).to_numpy().astype("u1"))}
    if column.dtype.is_numeric():
        numbers = column.cast(pl.Float64).to_numpy()
        four = numbers.astype("<f4")
        exact = column.dtype.is_float() or np.array_equal(four.astype("f8"), numbers, equal_nan=True)
        return {"k": "f4", "v": encoded(four)} if exact else {"k": "f8", "v": encoded(numbers.astype("<f8"))}
    texts = column.cast(pl.String)
    words = texts.drop_nulls().unique(maintain_order=True)
    kind = "u1" if len(words) < 2**8 else "u2" if len(words) < 2**16 else "u4"
    places = dict(zip(words.to_list(), range(1, len(words) + 1), strict=True))
    codes = np.array([places.get(text, 0) for text in texts.to_list()], dtype=f"<{kind}")
    return {"k": kind, "d": words.to_list(), "v": encoded(codes)}


def encoded(values: np.ndarray | bytes) -> str:
    """Bytes, or an array's bytes, in base64."""
    return base64.b64encode(values if isinstance(values, bytes) else values.tobytes()).decode("ascii")
