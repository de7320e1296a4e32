"""Trajectories: a prompt to a generator, its image to a captioner, the caption back, and so on around a network."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl
from tqdm import tqdm

from ditscope.calibrate.load import calibration_id
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.identity import derived_seed, digest, file_digest
from ditscope.core.paths import InputFile, InputFolder, OutputFile, OutputFolder
from ditscope.core.scratch import discard, unfinished
from ditscope.core.shards import Sample, png_bytes, read_tar, write_tar
from ditscope.core.tables import write_table
from ditscope.models.settings import Model, Scheme
from ditscope.prompts.files import read_runs
from ditscope.trajectories.invocations import (
    Answer,
    Node,
    Request,
    State,
    check_calibration,
    node_of,
    state_key,
    state_of,
)
from ditscope.trajectories.networks import on_sets, plan_file, resolve_network
from ditscope.trajectories.settings import Trajectories
from ditscope.trajectories.tables import TIMING, TRAJECTORIES

log = logging.getLogger(__name__)


def trajectories(
    network: str,
    entries: list[str],
    models: dict[str, Model],
    schemes: dict[str, Scheme],
    prompt_tables: list[InputFile],
    table: OutputFile,
    images: OutputFile,
    timing: OutputFile,
    plans: InputFolder = Path("plans"),
    calibration: InputFolder = Path("calibration"),
    settings: Trajectories = Trajectories(),
    partial: OutputFolder | None = None,
) -> None:
    """Follow runs around a network and record every text and image on the way.

    `entries` is the cycle (`shapes-flux:int4 shapes-blip`); the rows of `prompt_tables` (tables `prompts` or CSVs) are
    the runs; `plans` holds <model>/<budget>.json for entries that are quantized by a plan, `calibration` the
    sets <model>/ that calibrated schemes are solved from. Leaves `table` (table
    `trajectories`, one row per state, the prompt at -1), `images` (tar of png by output_key, each image once) and
    `timing` (table `trajectories.timing`). Finished rounds in `partial` are reused.
    """
    if settings.max_length < 1:
        raise InputError(f"trajectories.max_length: {settings.max_length}; a trajectory has at least one invocation")
    cycle = on_sets(resolve_network(network, entries, models, schemes), lambda name: calibration / name)
    files = [plan_file(plans, entry) for entry in cycle]
    for file in files:
        if file is not None and not file.is_file():
            raise InputError(f"{file}: no such bit plan; run the stage `plan` first, or correct networks.{network}")
    for entry in cycle:
        check_calibration(entry)
    runs = read_runs(*prompt_tables)
    key = {
        "cycle": [asdict(entry) for entry in cycle],
        "calibration": [calibration_id(entry.scheme) if entry.scheme else "" for entry in cycle],
        "plans": [file and file_digest(file) for file in files],
        "runs": runs,
        "max_length": settings.max_length,
        "compile": settings.compile,
    }
    parts = unfinished(partial, table, key)
    nodes = [node_of(entry, file, settings) for entry, file in zip(cycle, files, strict=True)]
    rows, seconds = walk(network, nodes, runs, settings, parts)
    lengths = Counter(row["run_id"] for row in seconds)  # invocations that were timed
    asked = [(run_id(network, run), number) for run in runs for number in range(-1, lengths[run_id(network, run)])]
    check_complete(table, "runs and invocations", asked, [(row["run_id"], row["sequence_number"]) for row in rows])
    write_tar(distinct_images(parts), images)
    write_table(pl.DataFrame(rows, schema=TRAJECTORIES.schema()), table, TRAJECTORIES)
    write_table(pl.DataFrame(seconds, schema=TIMING.schema()), timing, TIMING)
    discard(parts)


def walk(
    network: str, nodes: Sequence[Node], runs: list[dict], settings: Trajectories, parts: Path
) -> tuple[list[dict], list[dict]]:
    """Advance all runs in lockstep, one invocation a round; rows of the tables `trajectories` and `.timing`, by run.

    Requests that are equal are answered once a round. Each round is kept as a tar in `parts` and taken from there if
    it is there already.
    """
    walkers = [Walker(network, run) for run in runs]
    models = Models(settings.batch_size)
    for number in tqdm(range(settings.max_length), desc=network, unit="round", disable=None):
        active = [walker for walker in walkers if walker.stop_reason == "length"]
        if not active:
            break
        node = nodes[number % len(nodes)]
        requests = [walker.ask(node, number) for walker in active]
        part = parts / f"{number:05d}.tar"
        if not part.exists():
            distinct = {request.hash: request for request in requests}
            write_tar(models.answer(node, list(distinct.values())), part)
        answers = {sample["__key__"]: sample for sample in read_tar(part)}
        shared = {request.hash: walker for walker, request in zip(reversed(active), reversed(requests), strict=True)}
        for walker, request in zip(active, requests, strict=True):
            place = (number + 1) % len(nodes)
            walker.advance(node, request, answers[request.hash], number, place, shared[request.hash] is not walker)
        log.info("%s: round %d of %d done (%d runs)", network, number + 1, settings.max_length, len(active))
    return [row for w in walkers for row in w.finished()], [row for w in walkers for row in w.timing]


class Walker:
    """One run on its way around a network: its rows so far, the states it has been in, and why it stopped.

    A run stops when it comes back to a state that it has been in at the same place of the cycle: with one seed for all
    its invocations it would repeat itself for ever. Under a derived seed every invocation draws a seed of its own and
    nothing stops the run before its length.
    """

    def __init__(self, network: str, run: dict) -> None:
        self.run = run
        self.run_id = run_id(network, run)
        self.state: State = run["prompt"]
        self.key = state_key(self.state)
        self.common = {"network": network, "run_id": self.run_id}
        self.common |= {k: run[k] for k in ("prompt_id", "prompt", "seed", "derived_seed")}
        start = {"sequence_number": -1, "type": "TEXT", "output_key": self.key, "output_text": self.state}
        self.rows: list[dict] = [dict.fromkeys(TRAJECTORIES.columns) | self.common | start]
        self.timing: list[dict] = []
        self.visits = {(0, self.key): -1}  # (place of the cycle, state): sequence number
        self.stop_reason = "length"
        self.loop_length: int | None = None

    def ask(self, node: Node, number: int) -> Request:
        """What the run asks of a node as its invocation `number`."""
        # Of the run and not of the network: a quantized generator and its base are asked under the same seeds.
        seed = derived_seed(*identity(self.run), number) if self.run["derived_seed"] else self.run["seed"]
        negative = self.run["negative_prompt"]
        return Request(node.ask(self.state, seed, negative), self.state, seed, negative)

    def advance(self, node: Node, request: Request, answer: Sample, number: int, place: int, shared: bool) -> None:
        """Take an answer as the new state, before the node at `place` of the cycle."""
        record = answer["json"]
        self.state, before, self.key = state_of(answer), self.key, record["output_key"]
        invocation = {"sequence_number": number, "entry": node.label, "model": node.model, "scheme": node.scheme}
        invocation |= {"type": node.makes}
        result = {
            "seed": request.seed,
            "input_key": before,
            "output_key": self.key,
            "output_text": self.state if node.makes == "TEXT" else None,
            "input_truncated": record["input_truncated"],
            "request_hash": request.hash,
        }
        self.rows.append(self.common | invocation | result)
        cost = {k: record[k] for k in ("seconds", "batch_size")} | {"shared": shared}
        self.timing.append({k: self.common[k] for k in ("network", "run_id")} | invocation | cost)
        if (place, self.key) in self.visits and not self.run["derived_seed"]:
            self.stop_reason, self.loop_length = "repeat", number - self.visits[place, self.key]
        self.visits[place, self.key] = number

    def finished(self) -> list[dict]:
        """The run's rows of the table `trajectories`."""
        return [row | {"stop_reason": self.stop_reason, "loop_length": self.loop_length} for row in self.rows]


class Models:
    """The models of a network, each loaded when it is first asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.loaded: dict[str, Callable[[list[Request]], list[Answer]]] = {}

    def answer(self, node: Node, requests: list[Request]) -> Iterator[Sample]:
        """WebDataset samples by request hash: png or txt, and json (output_key, seconds a request, batch_size)."""
        if node.label not in self.loaded:
            self.loaded[node.label] = node.load()
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            began = time.perf_counter()
            answers = self.loaded[node.label](batch)
            cost = {"seconds": (time.perf_counter() - began) / len(batch), "batch_size": len(batch)}
            for request, answer in zip(batch, answers, strict=True):
                state = answer.state
                content = {"txt": state.encode()} if isinstance(state, str) else {"png": png_bytes(state)}
                record = {"output_key": state_key(state), "input_truncated": answer.input_truncated}
                yield {"__key__": request.hash, "json": record | cost, **content}


def run_id(network: str, run: dict) -> str:
    """64-bit hex id of a run by its network, prompt and seed."""
    return digest([network, *identity(run)], 64)


def identity(run: dict) -> list:
    """What tells a run from the others of its network."""
    return [run[key] for key in ("prompt_id", "prompt", "negative_prompt", "seed", "derived_seed")]


def distinct_images(parts: Path) -> Iterator[Sample]:
    """Every image of the kept rounds once, by its output_key, in order of appearance."""
    written: set[str] = set()
    for part in sorted(parts.glob("*.tar")):
        for sample in read_tar(part):
            key = sample["json"]["output_key"]
            if "png" in sample and key not in written:
                written.add(key)
                yield {"__key__": key, "png": sample["png"]}
