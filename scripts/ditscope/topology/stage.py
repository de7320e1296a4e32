"""Topology: persistent homology of each trajectory's states, entropy of its diagrams, distances between diagrams."""

import logging
from itertools import pairwise, product
from math import e

import numpy as np
import persim
import polars as pl

from ditscope.core.counts import check_complete
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.tables import write_table
from ditscope.embed.files import (
    RUN,
    by_embedder,
    degenerate_networks,
    marked,
    read_states,
    run_starts,
    sample_runs,
    unit,
    unmarked,
    vectors,
    with_kind_of_seeds,
)
from ditscope.topology.diagrams import duplicates, persistence, some
from ditscope.topology.nulls import shape_tests
from ditscope.topology.settings import Topology
from ditscope.topology.tables import DIAGRAMS, DISTANCES, ENTROPY, NULLS

log = logging.getLogger(__name__)
DIMENSION = DIAGRAMS.schema()["dimension"]
# What two compared runs have in common beside their kind of seeds, and what must differ; runs of one network and prompt
# differ in their seed.
RELATIONS: dict[str, tuple[list[str], str]] = {
    "other_seed": (["embedder", "network", "prompt_id"], ""),
    "other_network": (["embedder", "prompt_id"], "network"),
    "other_prompt": (["embedder", "network"], "prompt_id"),
    "other_embedder": (["network", "run_id"], "embedder"),
}
RELATION = DISTANCES.schema()["relation"]
SEED = 0
VALUES = dict.fromkeys(["wasserstein", "bottleneck", "sorted_length_l1"], pl.Float64)


def topology(
    embeddings: list[InputFile], trajectories: list[InputFile], folder: OutputFolder, settings: Topology = Topology()
) -> None:
    """Compute the persistent homology of every trajectory's states, and compare trajectories by it.

    Leaves in `folder`: diagrams.parquet (a row per bar), entropy.parquet (persistent entropy and counts of each run and
    dimension), distances.parquet (Wasserstein and bottleneck distances between runs) and nulls.parquet (whether
    they say more than chance).
    """
    states = sample_runs(read_states(embeddings, trajectories), settings.max_runs)
    clouds, bars = [], []
    for embedder, part in by_embedder(states):
        part = part.filter(pl.col("position") >= 0)
        u, starts = unit(vectors(part)), run_starts(part)
        runs = part[starts[:-1]].select(*RUN, "prompt_id", "seed")
        points = [some(u[a:b], settings.max_points) for a, b in pairwise(starts)]
        counts = [(len(p), duplicates(p)) for p in points]
        counted = pl.DataFrame(counts, {"states": pl.Int64, "duplicate_states": pl.Int64}, orient="row")
        clouds.append(pl.concat([runs, counted], how="horizontal"))
        bars += [
            diagram_table(key, persistence(p, settings.max_dimension))
            for key, p in zip(runs.rows(), points, strict=True)
        ]
        log.info("%s: diagrams of %d runs", embedder, len(points))
    diagrams = pl.concat([pl.DataFrame(schema=unmarked(DIAGRAMS)), *bars])
    dimensions = DIMENSION.categories[: settings.max_dimension + 1].cast(DIMENSION).rename("dimension").to_frame()
    runs = pl.concat(clouds)
    measured = entropy(runs.join(dimensions, how="cross"), diagrams)
    asked = states.filter(pl.col("position") >= 0).select(RUN).unique().rows()
    left = ((row[:-1], row[-1]) for row in measured.select(*RUN, "dimension").rows())
    check_complete(folder / "entropy.parquet", "runs and dimensions", product(asked, dimensions["dimension"]), left)
    distances = diagram_distances(
        related_runs(with_kind_of_seeds(runs, trajectories), settings.max_pairs), dimensions["dimension"], diagrams
    )
    poor = degenerate_networks(states)
    for frame, table in (
        (diagrams, DIAGRAMS),
        (measured, ENTROPY),
        (distances, DISTANCES),
        (shape_tests(states, settings.max_dimension, settings.max_points), NULLS),
    ):
        write_table(marked(frame, poor), folder / f"{table.stem}.parquet", table)


def diagram_table(key: tuple[str, ...], diagrams: list[np.ndarray]) -> pl.DataFrame:
    """The bars of one run as rows; `key` starts with embedder, network and run id; an infinite death is null."""
    bars = np.concatenate(diagrams)
    dimension = np.repeat(np.arange(len(diagrams)), [len(d) for d in diagrams])
    return pl.DataFrame(
        {
            **{name: [value] * len(bars) for name, value in zip(RUN, key, strict=False)},
            "dimension": DIMENSION.categories.gather(dimension),
            "birth": bars[:, 0],
            "death": pl.Series(bars[:, 1]).replace(np.inf, None),
        },
        schema=unmarked(DIAGRAMS),
    )


def entropy(runs: pl.DataFrame, diagrams: pl.DataFrame) -> pl.DataFrame:
    """Persistent entropy (nats) of each row of `runs` (embedder, network, run_id, ..., dimension).

    E = -sum p ln p with p the shares of bar lengths (Rucco et al. 2016), over bars of finite, positive length; null
    without one. `normalized_entropy` is E / ln k for k >= 2 such bars. `duplicate_states` is carried as a covariate:
    repeated states thin out H0 without any change of shape. O(bars).
    """
    length = pl.col("death") - pl.col("birth")
    share = length.filter(length > 0)
    measured = diagrams.group_by(*RUN, "dimension", maintain_order=True).agg(
        bars=(length > 0).sum().cast(pl.Int64),
        infinite_bars=pl.col("death").is_null().sum().cast(pl.Int64),
        total_length=share.sum(),
        longest=share.max(),
        entropy=share.entropy(base=e, normalize=True),
    )
    table = runs.join(measured, on=[*RUN, "dimension"], how="left").sort(*RUN, "dimension")
    k = pl.col("bars")
    return table.with_columns(
        pl.col("bars", "infinite_bars").fill_null(0), pl.col("total_length").fill_null(0.0)
    ).with_columns(
        entropy=pl.when(k > 0).then(pl.col("entropy").clip(0)),
        normalized_entropy=pl.when(k > 1).then((pl.col("entropy") / k.log()).clip(0, 1)),
    )


def diagram_distances(pairs: pl.DataFrame, dimensions: pl.Series, diagrams: pl.DataFrame) -> pl.DataFrame:
    """Distances between the diagrams of `pairs` of runs (as `related_runs` gives them) in each homology dimension.

    `wasserstein` is the 1-Wasserstein distance with Euclidean ground distance, `bottleneck` that with the maximum norm
    (both by persim, the diagonal as usual); `sorted_length_l1` is the L1 distance between the sorted, zero-padded bar
    lengths, which needs no matching and ignores births. Infinite bars are left out: every run has just one, in H0. A
    pair of diagrams of b bars takes O(b^3): 10 ms at 100.
    """
    bars = {
        key: part.select("birth", "death").to_numpy()
        for key, part in diagrams.drop_nulls("death").partition_by(*RUN, "dimension", as_dict=True).items()
    }
    none = np.zeros((0, 2))
    rows = pairs.join(dimensions.to_frame("dimension"), how="cross")
    sides = [rows.select(*(f"{name}_{side}" for name in RUN), "dimension").rows() for side in "ab"]
    values = [compare(bars.get(a, none), bars.get(b, none)) for a, b in zip(*sides, strict=True)]
    order = ["relation", "dimension", *(f"{name}_{side}" for side in "ab" for name in RUN)]
    return pl.concat([rows, pl.DataFrame(values, schema=VALUES, orient="row")], how="horizontal").sort(order)


def compare(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Wasserstein, bottleneck and sorted-length L1 distance of two diagrams (bars, 2) of finite bars."""
    if len(a) == len(b) == 0:
        return 0.0, 0.0, 0.0
    return float(persim.wasserstein(a, b)), float(persim.bottleneck(a, b)), sorted_length_l1(a, b)


def sorted_length_l1(a: np.ndarray, b: np.ndarray) -> float:
    """L1 distance between the sorted bar lengths of two diagrams, the shorter list padded with zeros."""
    size = max(len(a), len(b))
    padded = [np.pad(np.sort(d[:, 1] - d[:, 0])[::-1], (0, size - len(d))) for d in (a, b)]
    return float(np.abs(padded[0] - padded[1]).sum())


def related_runs(runs: pl.DataFrame, max_pairs: int) -> pl.DataFrame:
    """Pairs of `runs` that agree in all but one thing, which `relation` names; columns with the suffixes _a and _b.

    A run of one seed and one of derived seeds differ in more than their network or prompt: such pairs are left out, and
    what both runs have is the column `seeds`. (A network that has both kinds is two by name, see `apart_by_seeds`.)
    The pairs of one relation, pair of networks and pair of embedders are cut to a fixed random sample of `max_pairs`
    (0: all). O(R^2) memory for the R runs of a network.
    """
    sides = [*RUN, "prompt_id", "seed"]
    runs = runs.select(*sides, "seeds").sort("embedder", "network", "prompt_id", "seed", "run_id")
    index = runs.with_row_index("row")
    tables = []
    for relation, (same, other) in RELATIONS.items():
        pairs = index.join(index, on=[*same, "seeds"], suffix="_b", coalesce=False).filter(
            pl.col("row") < pl.col("row_b")
        )
        if other:
            pairs = pairs.filter(pl.col(other) != pl.col(f"{other}_b"))
        pairs = pairs.sort("row", "row_b").drop("row", "row_b", "seeds_b").rename({name: f"{name}_a" for name in sides})
        group = ["embedder_a", "embedder_b", "network_a", "network_b"]
        lot = pl.Series("lot", np.random.default_rng(SEED).permutation(pairs.height))
        chosen = pairs.with_columns(lot).filter(pl.col("lot").rank().over(group) <= (max_pairs or pairs.height))
        tables.append(chosen.select(pl.lit(relation, RELATION).alias("relation"), "seeds", pl.exclude("lot", "seeds")))
    return pl.concat(tables)
