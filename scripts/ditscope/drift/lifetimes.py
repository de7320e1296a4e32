"""How long what a run began with lasts, and how long a quantized network does as its base does: first changes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.identity import derived_seed
from ditscope.core.picture_file import rgb_image
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.drift.tables import LIFETIMES, PICTURE, PROMPT
from ditscope.embed.files import CYCLE, by_embedder, continue_loops, parts_of, unit, unmarked, vectors
from ditscope.embed.tables import SEEDS_KINDS
from ditscope.shapes.oracle import UNCLEAR, oracle
from ditscope.shapes.world import ATTRIBUTES, parse_caption

CAPTION = "caption"
MOST_PROMPTS = 1000  # first states whose distances give the threshold, drawn at random where there are more
UNNAMED = "the prompt does not name it"
UNREAD = "the oracle cannot read it in the first picture"
ONE_PROMPT = "one prompt: no distance between prompts to compare with"
COLUMNS = ("network", "run_id", "prompt_id", "prompt", "seed", "derived_seed", "sequence_number", "entry", "model",
           "scheme", "type", "output_key", "output_text", "loop_length")  # fmt: skip
RUN_COLUMNS = ("network", "run_id", "prompt_id", "prompt", "seed", "seeds")
Lasted = tuple[int, bool]  # states before the first that differs, and whether there is one


@dataclass(frozen=True)
class Readings:
    """What one reader says of the generated states of each run, in order, up to the first gap."""

    by: str  # of READERS
    what: str  # the attribute, `caption`, or the embedder
    states: dict[str, np.ndarray]  # by run: values (n,), of embedders unit vectors (n, d)
    starts: dict[str, Any]  # by run: what it began with; None where that is nothing to compare with
    threshold: float | None = None  # cosine distance beyond which vectors differ

    def differ(self, states: np.ndarray, other: Any) -> np.ndarray:
        """Which states differ from another one, or each from its counterpart."""
        if self.by != "embedding":
            return states != other
        return np.square(states - other).sum(axis=1) / 2 > (self.threshold or np.inf)

    @property
    def reason(self) -> str | None:
        """Why nothing can be said of any run."""
        return ONE_PROMPT if self.by == "embedding" and not self.threshold else None

    def lasted(self, run_id: str, start: Any) -> Lasted:
        """How long a run is as it, or another one, began."""
        return first_change(self.differ(self.states[run_id], start))

    def together(self, a: str, b: str) -> Lasted:
        """How long two runs are alike."""
        n = min(len(self.states[a]), len(self.states[b]))
        return first_change(self.differ(self.states[a][:n], self.states[b][:n]))


def first_change(differs: np.ndarray) -> Lasted:
    """How many states pass before the first that differs, and whether there is one."""
    return (int(np.argmax(differs)), True) if differs.any() else (len(differs), False)


class Trajectories:
    """The tables of trajectories as runs, and their states with loops continued."""

    def __init__(self, paths: Sequence[Path], max_length: int, run_ids: Collection[str] = ()) -> None:
        """The runs `run_ids` of the tables, or all of them."""

        def part(table: pl.DataFrame) -> pl.DataFrame:
            return table.select(COLUMNS).filter(pl.col("run_id").is_in(list(run_ids)) if run_ids else pl.lit(True))

        self.table = concat_tables(paths, "trajectories", part=part)
        self.max_length = max_length
        fixed, derived = SEEDS_KINDS
        first = ("prompt_id", "prompt", "seed", "derived_seed")
        runs = self.table.sort("sequence_number").group_by("network", "run_id").agg(pl.col(first).first())
        kind = pl.when(pl.col("derived_seed")).then(pl.lit(derived)).otherwise(pl.lit(fixed)).alias("seeds")
        self.runs = runs.with_columns(kind).select(RUN_COLUMNS).sort("network", "run_id").to_dicts()

    @cached_property
    def states(self) -> pl.DataFrame:
        """Generated states with those that follow from loops: network, run_id, sequence_number, type, key, text."""
        ends = self.table.group_by("network", "run_id").agg(
            pl.col("sequence_number").max().alias("last"), pl.col("loop_length").first()
        )
        table = self.table.with_columns(
            pl.lit("").alias("embedder"), (pl.col("sequence_number").cast(pl.Int64) // CYCLE).alias("position")
        )
        whole = continue_loops(table, ends.with_columns(pl.lit("").alias("embedder")), self.max_length)
        return whole.filter(pl.col("sequence_number") >= 0).sort("network", "run_id", "sequence_number")

    def of_type(self, kind: str, column: str) -> dict[str, np.ndarray]:
        """A column of the states of a type (IMAGE, TEXT), by run."""
        rows = self.states.filter(pl.col("type") == kind).group_by("run_id", maintain_order=True).agg(column)
        return {run_id: np.array(values, object) for run_id, values in rows.rows()}

    def pairs(self) -> list[tuple[str, str]]:
        """Networks of the same models of which one has no quantized entry, and the other one: (quantized, base)."""
        rows = self.table.drop_nulls("entry").select("network", "sequence_number", "model", "scheme").unique()
        cycles: dict[str, dict[int, tuple[str, str]]] = {}
        for network, number, model, scheme in rows.sort("network", "sequence_number").rows():
            cycles.setdefault(network, {})[number] = (model, scheme)
        pairs_of = []
        for (other, quantized), (base, theirs) in product(cycles.items(), repeat=2):
            shared = quantized.keys() & theirs.keys()
            same = all(quantized[number][0] == theirs[number][0] for number in shared)
            plain = all(scheme == "base" for _, scheme in theirs.values())
            if same and plain and any(scheme != "base" for _, scheme in quantized.values()):
                pairs_of.append((other, base))
        return pairs_of

    def paired(self, one: str, other: str, known: dict[str, np.ndarray]) -> list[tuple[dict, dict]]:
        """Runs of two networks of the same prompt and seed, both of which are `known`."""
        at = {(run["network"], *(run[key] for key in RUN_COLUMNS[2:])): run for run in self.runs}
        pairs = [(run, at.get((other, *key[1:]))) for key, run in at.items() if key[0] == one]
        return [(a, b) for a, b in pairs if b is not None and {a["run_id"], b["run_id"]} <= known.keys()]


def readings(
    runs: Trajectories, states: pl.DataFrame, networks: Sequence[str], images: Sequence[Path]
) -> Iterator[Readings]:
    """What the oracle (of some networks, in `images`), the captions and each embedder say.

    The `states` of embedders have their loops continued.
    """
    shapes = {run["run_id"] for run in runs.runs if run["network"] in networks}
    if shapes:
        keys = {run_id: of for run_id, of in runs.of_type("IMAGE", "output_key").items() if run_id in shapes}
        seen = oracle_readings(images, {key for of in keys.values() for key in of})
        named = {run["run_id"]: parse_caption(run["prompt"]) for run in runs.runs}
        for attribute in ATTRIBUTES:
            values = {run_id: np.array([seen[key][attribute] for key in of], object) for run_id, of in keys.items()}
            yield Readings("oracle", attribute, values, {run_id: names[attribute] for run_id, names in named.items()})
            first = {run_id: read[0] if len(read) and read[0] != UNCLEAR else None for run_id, read in values.items()}
            yield Readings(PICTURE, attribute, values, first)
    yield Readings(CAPTION, CAPTION, runs.of_type("TEXT", "output_text"), {})
    for embedder, part in by_embedder(states):
        yield embedder_readings(embedder, part)


def oracle_readings(images: Sequence[Path], wanted: set[str]) -> dict[str, dict[str, str]]:
    """The five attributes of each picture, by its key; each picture is read once."""
    read: dict[str, dict[str, str]] = {}
    for path in images:
        for sample in read_tar(path):
            key = sample["__key__"]
            if key in wanted and key not in read:
                read[key] = oracle(rgb_image(sample["png"]))
    if missing := wanted - read.keys():
        raise InputError(
            f"drift.oracle: no image {min(missing)}.png, which the trajectories name, in {len(images)} tars; give "
            "those of all networks that it lists, or leave these out of it"
        )
    return read


def embedder_readings(embedder: str, states: pl.DataFrame) -> Readings:
    """The directions of an embedder's states, and half the median distance of prompts' first states as threshold."""
    values: dict[str, np.ndarray] = {}
    starts: dict[str, np.ndarray] = {}
    prompts: dict[tuple[str, str], np.ndarray] = {}
    for run in parts_of(states, "network", "run_id"):
        u = unit(vectors(run))
        starts[run["run_id"][0]] = u[0]
        prompts.setdefault((run["network"][0], run["prompt_id"][0]), u[0])
        positions = run["position"].to_numpy()
        values[run["run_id"][0]] = u[positions == np.arange(len(positions)) + positions[0]][int(positions[0] < 0) :]
    kept = list(prompts)
    if len(kept) > MOST_PROMPTS:
        rng = np.random.default_rng(derived_seed("first states", embedder))
        kept = [kept[i] for i in np.sort(rng.choice(len(kept), MOST_PROMPTS, replace=False))]
    names = [prompt_id for _, prompt_id in kept]
    first = np.array([prompts[key] for key in kept])
    other = np.array([[a != b for b in names] for a in names], bool)
    apart = (1 - first @ first.T)[other]
    return Readings("embedding", embedder, values, starts, float(np.median(apart)) / 2 if apart.size else None)


def lifetimes(runs: Trajectories, read: Sequence[Readings]) -> pl.DataFrame:
    """The table `drift.lifetimes`: of each run and reader the states before the first change.

    `against` the prompt: until the oracle no longer reads what the prompt named (by `picture`: what it read in the
    run's first one), or the vector is farther from the run's first one than half the median cosine distance between
    first states of different prompts. `against` a base network: until a run of a quantized network differs from that of
    its base of the same prompt and seed.
    """
    rows = []
    for reader, run in product(read, runs.runs):
        if run["run_id"] in reader.states and reader.by != CAPTION:
            start, followed = reader.starts.get(run["run_id"]), len(reader.states[run["run_id"]])
            reason = (UNREAD if reader.by == PICTURE else UNNAMED) if start is None else reader.reason
            lasted = None if reason else reader.lasted(run["run_id"], start)
            named = None if reader.by == "embedding" else start
            rows.append(row_of(reader, run, PROMPT, followed, lasted, reason) | {"named": named})
    for (quantized, base), reader in product(runs.pairs(), [reader for reader in read if reader.by != PICTURE]):
        for run, other in runs.paired(quantized, base, reader.states):
            followed = min(len(reader.states[side["run_id"]]) for side in (run, other))
            lasted = None if reader.reason else reader.together(run["run_id"], other["run_id"])
            rows.append(row_of(reader, run, base, followed, lasted, reader.reason))
    return pl.DataFrame(rows, schema=unmarked(LIFETIMES)).sort(LIFETIMES.key)


def row_of(
    reader: Readings, run: dict, against: str, followed: int, lasted: Lasted | None, reason: str | None
) -> dict[str, Any]:
    """A row of the table `drift.lifetimes`."""
    count, changed = lasted or (None, None)
    became = str(reader.states[run["run_id"]][count]) if changed and reader.by in ("oracle", PICTURE) else None
    row = {key: run[key] for key in RUN_COLUMNS if key != "prompt"} | {"against": against, "by": reader.by}
    row |= {"what": reader.what, "threshold": reader.threshold, "followed": followed, "reason": reason}
    return row | {"lasted": count, "changed": changed, "became": became}
