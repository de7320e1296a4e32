"""The embedded states of trajectories, as the analyses of drift, clusters and topology read them."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.schema import Table
from ditscope.core.tables import concat_tables, read_table
from ditscope.embed.tables import SEEDS, SEEDS_KINDS

log = logging.getLogger(__name__)
RUN = ["embedder", "network", "run_id"]
STATE = [*RUN, "sequence_number"]
CYCLE = 2  # text and images alternate, so the states of one modality are every second one
FEWEST_DISTINCT = 3  # states that differ in the median run: fewer have no path, whatever is computed from them
CHUNK = 8192  # rows whose hashes are computed at once
CELL = ["embedder", "network"]
COUNTS = {**dict.fromkeys(RUN, pl.String), "states": pl.Int64, "distinct": pl.Int64}
SEED = 0  # of samples
CHUNK = 1024  # rows that are normalized at once
NAMED = 10  # vectors that are left out, of which the log gives the names


def read_states(embeddings: list[Path], trajectories: list[Path]) -> pl.DataFrame:
    """Join the tables `embeddings` and `trajectories`: one row per state of an embedder, sorted by `STATE`.

    Columns: embedder, modality, network, run_id, prompt_id, seed, sequence_number (-1: the initial prompt), position
    (0, 1, ... among the run's generated states of the embedder's modality; -1: the initial prompt), text (of an image:
    the caption that followed it, if one did) and vector. Positions count states that have no embedding too, so that a
    gap shows. Vectors that are zero, NaN or Inf are left out and named in the log. Raises InputError on an embedding
    that has no trajectory, is there twice, or differs in length from the others of its embedder, and on a run whose
    first state (the prompt of a text embedder, the first image) has none. A network whose runs are part of fixed and
    part of derived seeds is two (`apart_by_seeds`). O(n d) for n states of d numbers.
    """
    if not embeddings or not trajectories:
        raise InputError("no embeddings or no trajectories given; name at least one table of each")
    columns = [*STATE[1:], "prompt_id", "seed", "derived_seed", "output_text"]
    steps = concat_tables(trajectories, "trajectories", STATE[1:], lambda table: table.select(columns)).sort(STATE[1:])
    steps = steps.select(
        "network",
        apart_by_seeds(steps).get_column("network").alias("part"),
        "run_id",
        "sequence_number",
        "prompt_id",
        pl.col("seed").first().over("network", "run_id"),  # with derived seeds every invocation has one of its own
        pl.col("output_text").backward_fill().over("network", "run_id").alias("text"),
    )
    rows = concat_tables(embeddings, "embeddings", STATE, vector_facts).with_row_index("row")
    states = rows.join(steps, on=["network", "run_id", "sequence_number"], how="left")
    states = states.with_columns(pl.coalesce("part", "network").alias("network")).drop("part").sort(STATE)
    where = f"embeddings ({embeddings[0]}, ...)" if len(embeddings) > 1 else str(embeddings[0])
    refuse(states, pl.col("prompt_id").is_null(), where, "has no row in the trajectories; run embed again")
    length = pl.col("length")
    refuse(states, (length != length.first().over("embedder")).fill_null(True), where,
           "differs in length from the embedder's others; run embed again")  # fmt: skip
    states = usable(states, where)
    if states.is_empty():
        raise InputError(f"{where}: no embeddings in it that can be used; check `embed.embedders` and run embed again")
    start = pl.when(pl.col("modality") == "text").then(-1).otherwise(0)
    first = pl.col("sequence_number") == pl.col("sequence_number").min().over(RUN)
    refuse(states, first & (pl.col("sequence_number") != start), where,
           "is the first of its run: the prompt's or first image's is missing or zero; run embed again")  # fmt: skip
    position = pl.col("sequence_number").cast(pl.Int64) // CYCLE
    return states.select(
        "embedder", "modality", "network", "run_id", "prompt_id", "seed", "sequence_number",
        position.alias("position"), "text", read_vectors(embeddings, states, rows.height),
    )  # fmt: skip


def apart_by_seeds(steps: pl.DataFrame) -> pl.DataFrame:
    """The rows of `trajectories`, with networks whose runs have both kinds of seeds as two networks.

    Under a derived seed each invocation has a seed of its own, and a run never ends by coming back to a state: its
    statistics are not those of a run of one fixed seed, and the two are never pooled.
    """
    derived = pl.col("derived_seed")
    both = derived.any().over("network") & ~derived.all().over("network")
    kind = pl.when(derived).then(pl.lit(" (derived seeds)")).otherwise(pl.lit(" (fixed seeds)"))
    return steps.with_columns(pl.when(both).then(pl.col("network") + kind).otherwise("network").alias("network"))


def with_kind_of_seeds(states: pl.DataFrame, trajectories: list[Path]) -> pl.DataFrame:
    """States with the column `seeds`: whether their run has one seed, or one for each invocation."""
    rows = concat_tables(
        trajectories, "trajectories", part=lambda table: table.select("network", "run_id", "derived_seed")
    )
    runs = apart_by_seeds(rows).group_by("network", "run_id").agg(pl.col("derived_seed").first())
    fixed, derived = (pl.lit(kind, SEEDS.dtype()) for kind in SEEDS_KINDS)
    kind = pl.when(pl.col("derived_seed").fill_null(False)).then(derived).otherwise(fixed).alias("seeds")
    names = states.select("network", "run_id").join(
        runs.select("network", "run_id", kind), on=["network", "run_id"], how="left", maintain_order="left"
    )
    return states.with_columns(names["seeds"])


def vector_facts(table: pl.DataFrame) -> pl.DataFrame:
    """The table `embeddings` with, in the place of each vector, its length and whether it is finite and not zero."""
    finite = pl.col("vector").list.eval(pl.element().is_finite()).list.all()
    directed = pl.col("vector").list.eval(pl.element() != 0).list.any()
    return table.select(
        *STATE,
        "modality",
        pl.col("vector").list.len().alias("length"),
        (finite & directed).fill_null(False).alias("usable"),
    )


def read_vectors(embeddings: list[Path], states: pl.DataFrame, rows: int) -> pl.Series:
    """The vectors of `states`, which are the rows numbered `row` of all `rows` of the tables, one after the other.

    Vectors are many times as large as all else, so they are read once more, one table at a time, to their places:
    O(n d) memory, once.
    """
    place = np.full(rows, -1)
    place[states["row"]] = np.arange(states.height)
    parts = [np.empty((part.height, part["length"][0]), np.float32) for _, part in by_embedder(states)]
    first = 0
    for path in embeddings:
        vector = read_table(path, "embeddings", ["vector"])["vector"]
        here, start = place[first : first + len(vector)], 0
        for part in parts:
            in_part = (here >= start) & (here < start + len(part))
            if in_part.any():
                part[here[in_part] - start] = vector.filter(in_part).explode().to_numpy().reshape(-1, part.shape[1])
            start += len(part)
        first += len(vector)
    return pl.concat([pl.Series("vector", part).cast(pl.List(pl.Float32)) for part in parts])


def usable(states: pl.DataFrame, where: str) -> pl.DataFrame:
    """The states whose vectors have a direction; the log names those that are zero or hold NaN or Inf."""
    bad = states.filter(~pl.col("usable")).select(STATE).rows()
    if bad:
        names = "; ".join("{}, {}, run {}, sequence number {}".format(*row) for row in bad[:NAMED])
        more = ", ..." if len(bad) > NAMED else ""
        log.warning("%s: %d zero, NaN or Inf vectors are left out, as gaps: %s%s", where, len(bad), names, more)
    return states.filter("usable")


def run_ends(states: pl.DataFrame, trajectories: list[Path]) -> pl.DataFrame:
    """Of each run of an embedder (`RUN`): `last` sequence number, and `loop_length` if it ended in a loop of states.

    The loop is counted in invocations, and null for a run that was cut. An embedder that gives equal states other
    vectors, as the control `random-walk` does, has not come back: it has no loops.
    """
    columns = [*STATE[1:], "loop_length", "derived_seed"]
    table = apart_by_seeds(concat_tables(trajectories, "trajectories", part=lambda rows: rows.select(columns)))
    ends = table.group_by("network", "run_id").agg(
        pl.col("sequence_number").max().alias("last"), pl.col("loop_length").first()
    )
    closed = ends.filter(pl.col("loop_length") > 0)
    back = [embedder for embedder, part in by_embedder(states) if comes_back(part, closed)]
    runs = states.select(RUN).unique().join(ends, on=["network", "run_id"], how="left").sort(RUN)
    return runs.with_columns(pl.when(pl.col("embedder").is_in(back)).then(pl.col("loop_length")))


def comes_back(states: pl.DataFrame, closed: pl.DataFrame) -> bool:
    """Whether the vectors of one embedder are where they were, as the states of the `closed` runs are."""
    rows = states.select(STATE).with_row_index("row").join(closed, on=["network", "run_id"])
    places = (pl.col("last"), pl.col("last") - pl.col("loop_length"))
    last, start = (rows.filter(pl.col("sequence_number") == place).select(*RUN, "row") for place in places)
    both = last.join(start, on=RUN, suffix="_before")
    moved = [states["vector"].gather(both[name]).alias(name) for name in ("row", "row_before")]
    return pl.DataFrame(moved).filter(pl.col("row") != pl.col("row_before")).is_empty()


def continue_loops(states: pl.DataFrame, ends: pl.DataFrame, max_length: int = 0) -> pl.DataFrame:
    """The states (any table of `STATE` and position) with those that follow in runs that ended in a loop.

    Such a run repeats its loop for ever, so it is known up to the invocation `max_length`, or as far as the longest run
    goes if that is further. The column `continued` says which states were not computed. What a gap of the loop left out
    is left out of its repeats. O(runs x length) rows.
    """
    end = max(max_length, ends["last"].max() + 1 if ends.height else 0)
    number, last, loop = pl.col("number"), pl.col("last"), pl.col("loop_length")
    looping = ends.filter(loop > 0).with_columns(pl.int_ranges(last + 1, end, dtype=pl.Int32).alias("number"))
    places = looping.explode("number").drop_nulls("number").with_columns(
        (last - loop + (number - last) % loop).cast(pl.Int32).alias("sequence_number")
    )  # fmt: skip
    if places.is_empty() or states.is_empty():
        return states.with_columns(pl.lit(False).alias("continued"))
    return pl.concat([continued(part, places) for _, part in by_embedder(states)])


def continued(states: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """States of one embedder with those of `places`: copies of states (`STATE`) that come again as the `number`-th."""
    known = states.select(STATE).with_row_index("row")
    again = known.join(places, on=STATE).with_columns(pl.col("number").alias("sequence_number")).select(known.columns)
    order = pl.concat([known.with_columns(continued=False), again.with_columns(continued=True)]).sort(STATE)
    position = pl.when("continued").then(pl.col("sequence_number").cast(pl.Int64) // CYCLE).otherwise("position")
    whole = states[order["row"]].with_columns(order["sequence_number"], order["continued"])
    return whole.with_columns(position.alias("position"))


def refuse(states: pl.DataFrame, bad: pl.Expr, where: str, complaint: str) -> None:
    """Raise an InputError that names the first state for which `bad` holds."""
    for row in states.filter(bad).head(1).iter_rows(named=True):
        state = f"{row['embedder']}, {row['network']}, run {row['run_id']}, sequence number {row['sequence_number']}"
        raise InputError(f"{where}: the embedding of {state} {complaint}")


def by_embedder(states: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The states of each embedder, in order of their names; vectors of one embedder have one length."""
    for part in parts_of(states, "embedder"):
        yield part["embedder"][0], part


def parts_of(states: pl.DataFrame, *keys: str) -> Iterator[pl.DataFrame]:
    """Stretches of rows with equal `keys`, by which the rows are sorted: views, where `partition_by` copies vectors."""
    start = 0
    for count in states.select(pl.struct(keys).rle().struct.field("len")).to_series():
        yield states[start : start + count]
        start += count


def sample_runs(states: pl.DataFrame, most: int) -> pl.DataFrame:
    """The states of at most `most` runs (0: of all): those of prompts drawn at random, the same for every embedder.

    A run is a network's, so that the networks, seeds and embedders of a prompt that was drawn are there to be compared;
    of the last prompt only as many as there is room for.
    """
    runs = states.select("prompt_id", "network", "run_id").unique().sort("prompt_id", "network", "run_id")
    if not most or runs.height <= most:
        return states
    prompts = runs.select("prompt_id").unique(maintain_order=True)
    lots = prompts.with_columns(pl.Series("lot", np.random.default_rng(SEED).permutation(prompts.height)))
    chosen = runs.join(lots, on="prompt_id", maintain_order="left").sort("lot", maintain_order=True).head(most)
    log.info("%d of %d runs are looked at", most, runs.height)
    return states.join(chosen, on=["network", "run_id"], how="semi", maintain_order="left")


def sampled(n: int, most: int) -> np.ndarray:
    """Numbers of the rows, of n, that an analysis looks at: all, or a fixed random sample of `most` (0: all)."""
    if not most or n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(SEED).choice(n, most, replace=False))


def vectors(states: pl.DataFrame) -> np.ndarray:
    """The vectors (n, d) of one embedder's states, in the stored type; (0, 1) for no states."""
    if states.is_empty():
        return np.zeros((0, 1), np.float32)
    return states["vector"].explode().to_numpy().reshape(states.height, -1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of `x` (n, d) at length 1, in float64; a zero row has no direction and stays zero."""
    x = x.astype(np.float64)
    for start in range(0, len(x), CHUNK):  # in place: the copy is large
        rows = x[start : start + CHUNK]
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, norm, out=rows, where=norm > 0)
        rows[~(norm[:, 0] > 0)] = 0
    return x


def run_starts(states: pl.DataFrame) -> np.ndarray:
    """Row numbers at which a new run begins, with the number of rows at the end: runs are [starts[i], starts[i+1])."""
    if states.is_empty():
        return np.zeros(1, np.int64)
    first = states.select(pl.struct(RUN).rle_id().diff().fill_null(1).cast(pl.Boolean)).to_series()
    return np.append(first.arg_true().to_numpy(), states.height).astype(np.int64)


# Degenerate data ------------------------------------------------------------------------------------------------------


def degenerate_networks(states: pl.DataFrame) -> pl.DataFrame:
    """Of each embedder and network: why its runs show nothing (`degenerate`; null: they may), and what decided.

    The numbers are `runs`, and of the median run `median_states` and `median_distinct`, generated states alone. Fewer
    than FEWEST_DISTINCT distinct ones are degenerate: what is computed of so few tells their number alone. O(n d).
    """
    counts = pl.concat([pl.DataFrame(schema=COUNTS), *(distinct_of_runs(part) for _, part in by_embedder(states))])
    cells = counts.group_by(CELL).agg(
        pl.len().cast(pl.Int64).alias("runs"),
        pl.col("states", "distinct").median().name.prefix("median_"),
    )
    distinct, of = (pl.col(f"median_{name}").cast(pl.String).str.strip_suffix(".0") for name in ("distinct", "states"))
    reason = pl.format(f"distinct states of the median run: {{}} of {{}}, {FEWEST_DISTINCT} needed", distinct, of)
    poor = pl.col("median_distinct") < FEWEST_DISTINCT
    return cells.with_columns(pl.when(poor).then(reason).alias("degenerate")).sort(CELL)


def distinct_of_runs(states: pl.DataFrame) -> pl.DataFrame:
    """Of each run (`RUN`) of one embedder: generated `states`, and how many are `distinct`, to the last bit.

    An embedder gives equal texts or images equal vectors, and the control `random-walk` never gives one twice.
    """
    keys = pl.Series("key", row_hashes(vectors(states)), pl.UInt64)
    keyed = states.select(*RUN, "position").with_columns(keys).filter(pl.col("position") >= 0)  # no copy of vectors
    counts = keyed.group_by(RUN).agg(
        pl.len().cast(pl.Int64).alias("states"), pl.col("key").n_unique().cast(pl.Int64).alias("distinct")
    )
    runs = states.select(RUN).unique(maintain_order=True)
    return runs.join(counts, on=RUN, how="left", maintain_order="left").with_columns(
        pl.col("states", "distinct").fill_null(0)
    )


def row_hashes(x: np.ndarray) -> np.ndarray:
    """A 64-bit number (n,) of each row of `x` (n, d) float32: equal for equal rows, wherever they stand."""
    odd = np.random.default_rng(0).integers(1 << 63, size=x.shape[1], dtype=np.uint64) * 2 + 1
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    parts = [(bits[i : i + CHUNK].astype(np.uint64) * odd).sum(axis=1) for i in range(0, len(bits), CHUNK)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def unmarked(table: Table) -> dict[str, pl.DataType]:
    """The schema of a table before it is `marked`."""
    return {name: kind for name, kind in table.schema().items() if name != "degenerate"}


def marked(table: pl.DataFrame, poor: pl.DataFrame) -> pl.DataFrame:
    """A table of an analysis with its last column, `degenerate`, from `degenerate_networks`.

    A row of two embedders or networks has the reason of the first that is; a row of an embedder alone has one where all
    its networks are, a row of a network alone (of its fixed or derived `seeds`) where one of the embedders says so.
    """
    reasons, table = poor.select(*CELL, "degenerate"), table.drop("degenerate", strict=False)
    embedders, networks = ([c for c in (n, f"{n}_a", f"{n}_b") if c in table.columns] for n in CELL)
    reason = pl.col("degenerate")
    if not networks:
        every = pl.when(reason.is_not_null().all()).then(reason.first())
        return table.join(reasons.group_by("embedder").agg(every), on="embedder", how="left", maintain_order="left")
    if not embedders:
        some = reasons.sort(CELL).group_by("network").agg(reason.drop_nulls().first())
        of_kind = pl.format("{} ({} seeds)", "network", "seeds") if "seeds" in table.columns else pl.col("network")
        known = pl.when(of_kind.is_in(some["network"].to_list())).then(of_kind).otherwise("network").alias("group")
        joined = table.with_columns(known).join(
            some, left_on="group", right_on="network", how="left", maintain_order="left"
        )
        return joined.drop("group")
    for i, network in enumerate(networks):
        side = reasons.rename({"degenerate": f"degenerate_{i}"})
        on = [embedders[min(i, len(embedders) - 1)], network]
        table = table.join(side, left_on=on, right_on=CELL, how="left", maintain_order="left")
    names = [f"degenerate_{i}" for i in range(len(networks))]
    return table.with_columns(pl.coalesce(names).alias("degenerate")).drop(names)
