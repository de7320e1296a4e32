"""Runs of trajectories in rows and columns, and their pictures: what films and sheets of trajectories draw."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from PIL import Image

from ditscope.core.errors import InputError, again, parsing
from ditscope.core.tables import concat_tables
from ditscope.drift.tables import BEYOND_WALK


class TarImages(Mapping):
    """Pictures of WebDataset shards by key, read from their place in the tar when they are asked for."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.places: dict[str, tuple[Path, int, int]] = {}
        for shard in shards:
            damaged = f"not a readable tar shard ({{}}); {again(shard, ending='.tar')}"
            with parsing(shard, damaged, (tarfile.TarError,)), tarfile.open(shard, "r:") as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith(".png"):
                        self.places[member.name.removesuffix(".png")] = shard, member.offset_data, member.size

    def __getitem__(self, key: str) -> Image.Image:
        if key not in self.places:
            raise InputError(f"no image {key}.png in the shards of `images`, which the trajectories name; give all")
        shard, offset, size = self.places[key]
        with open(shard, "rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(size)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Run:
    """One run: its states by sequence number, and how it started."""

    run_id: str
    network: str
    prompt_id: str
    prompt: str
    seed: str  # `seed 7`; `own seeds` where every invocation drew one
    states: list[dict]

    def until(self, number: int, kind: str) -> dict | None:
        """The newest state of a kind (`IMAGE`, `TEXT`) up to a sequence number."""
        past = (s for s in reversed(self.states) if s["sequence_number"] <= number and s["type"] == kind)
        return next(past, None)

    @property
    def last(self) -> int:
        """Sequence number of the last state."""
        return self.states[-1]["sequence_number"]

    @property
    def ending(self) -> str:
        """Why it stopped, and when."""
        return f"{self.states[-1]['stop_reason']} at {self.last + 1}"


@dataclass(frozen=True)
class Grid:
    """Who stands where: runs[row][column] is a run; None where there is none."""

    prompts: list[tuple[str, str, str]]  # (id, text, what all runs of the row have in common besides)
    columns: list[tuple[str, str]]  # (network, label: the seed, or the run's place)
    runs: list[list[Run | None]]
    cycles: dict[str, list[str]]  # entries of each network, in the order of their first turn
    length: int  # last sequence number of any run


def read_trajectories(tables: Sequence[Path]) -> pl.DataFrame:
    """The states of all runs, in the order of the tables. Raises InputError where there is none."""
    if not tables:
        raise InputError("tables: none is given, so there is nothing to draw; name the tables `trajectories`")
    rows = concat_tables(tables, "trajectories", ("network", "run_id", "sequence_number"))
    if rows.is_empty():
        raise InputError(f"{tables[0]}: no trajectory, so there is nothing to draw; run the stage `trajectories` first")
    return rows


def runs_of(rows: pl.DataFrame) -> list[Run]:
    """Every run, in the order of the table."""
    runs = []
    for _, states in rows.group_by("network", "run_id", maintain_order=True):
        ordered = states.sort("sequence_number").to_dicts()
        first = ordered[0]
        seed = "own seeds" if first["derived_seed"] else f"seed {first['seed']}"
        runs.append(Run(first["run_id"], first["network"], first["prompt_id"], first["prompt"], seed, ordered))
    return runs


@dataclass(frozen=True)
class Jumps:
    """Where an embedder's vectors jump."""

    embedder: str = ""
    places: frozenset[tuple[str, int]] = frozenset()  # (run, sequence number of the first state after the jump)


def read_jumps(table: Path, embedder: str = "") -> Jumps:
    """The jumps of one embedder, or of the first one in the table `drift.jumps`; none where the table has no row.

    Those that a walk makes as well (`p_walk` above BEYOND_WALK) are left out, as in the figure's counts.
    """
    rows = concat_tables([table], "drift.jumps")
    there = rows["embedder"].unique(maintain_order=True).to_list()
    if embedder and embedder not in there:
        raise InputError(
            f"video.jump_embedder: no jumps of `{embedder}` in {table}; it has {', '.join(there) or 'none'}"
        )
    chosen = embedder or next(iter(there), "")
    of_embedder = rows.filter(pl.col("embedder") == chosen, pl.col("jump"), pl.col("p_walk") <= BEYOND_WALK)
    return Jumps(chosen, frozenset(of_embedder.select("run_id", "sequence_number").iter_rows()))


def in_order(prompts: Mapping[str, str], prompt_order: Sequence[str]) -> list[str]:
    """Prompt ids, the named ones first. Raises InputError for one that is unknown, or named twice."""
    if unknown := [p for p in prompt_order if p not in prompts]:
        there = ", ".join(list(prompts)[:20]) + (", ..." if len(prompts) > 20 else "")
        raise InputError(f"video.prompt_order: no trajectory starts from `{unknown[0]}`; there are {there}")
    if twice := [p for place, p in enumerate(prompt_order) if p in prompt_order[:place]]:
        raise InputError(f"video.prompt_order: names `{twice[0]}` twice; name each prompt once")
    return [*prompt_order, *(p for p in prompts if p not in prompt_order)]


def grid_of(rows: pl.DataFrame, prompt_order: Sequence[str] = ()) -> Grid:
    """Sort runs into a grid; prompts come in `prompt_order` first, then in the table's order, and so do networks.

    The runs of a prompt and network stand side by side, in the order of their seeds.
    """
    runs = runs_of(rows)
    texts = {run.prompt_id: run.prompt for run in runs}
    order = in_order(texts, prompt_order)
    by_place: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_place.setdefault((run.network, run.prompt_id), []).append(run)
    networks = list(dict.fromkeys(run.network for run in runs))
    places = [(n, i) for n in networks for i in range(max(len(by_place.get((n, p), [])) for p in order))]
    cells = [[dict(enumerate(by_place.get((n, p), []))).get(i) for n, i in places] for p in order]
    columns = [(n, column_label(i, [row[c] for row in cells])) for c, (n, i) in enumerate(places)]
    prompts = [(p, texts[p], row_label(row)) for p, row in zip(order, cells, strict=True)]
    return Grid(prompts, columns, cells, {n: cycle_of(rows, n) for n in networks}, max(run.last for run in runs))


def column_label(place: int, runs: Sequence[Run | None]) -> str:
    """What a column holds: the seed that all of its runs have, else their place among the runs of their prompt."""
    seeds = {run.seed for run in runs if run}
    return seeds.pop() if len(seeds) == 1 and "own seeds" not in seeds else f"run {place + 1}"


def row_label(runs: Sequence[Run | None]) -> str:
    """The seed that all runs of a row have; empty where they differ."""
    seeds = {run.seed for run in runs if run}
    return seeds.pop() if len(seeds) == 1 else ""


def cycle_of(rows: pl.DataFrame, network: str) -> list[str]:
    """The entries of a network, in the order of their first turn."""
    made = rows.filter(pl.col("network") == network, pl.col("sequence_number") >= 0).sort("sequence_number")
    return made["entry"].unique(maintain_order=True).to_list()
