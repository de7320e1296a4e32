"""Checks of trajectories, their embeddings, and the analyses of both: every state of every run, in every table."""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.picture_file import decode_picture
from ditscope.models.random_walk import FAMILY as RANDOM_WALK
from ditscope.workflow.doctor.books import beside
from ditscope.workflow.doctor.images import image_rows, positive, prompt_tables
from ditscope.workflow.doctor.study import Study

TRAJECTORIES = "network run_id prompt_id prompt seed derived_seed sequence_number entry? model? scheme? type input_key?"
TRAJECTORIES += " output_key output_text? input_truncated? request_hash? stop_reason loop_length?"
TIMING = "network run_id sequence_number entry model scheme type seconds batch_size shared"
EMBEDDINGS = "embedder network run_id sequence_number modality vector"
NORM = 1e-3  # how far the length of a vector that is stored at length 1 may be from it
# Table of each file that an analysis leaves; its columns are those that its inputs give.
ANALYSES = {
    "drift/drift.parquet": "drift",
    "drift/similarity.parquet": "drift.similarity",
    "drift/autoregression.parquet": "drift.autoregression",
    "drift/normality.parquet": "drift.normality",
    "clusters/clusters.parquet": "clusters",
    "clusters/map.parquet": "clusters.map",
    "clusters/run_lengths.parquet": "clusters.run_lengths",
    "clusters/longest_runs.parquet": "clusters.longest_runs",
    "clusters/transitions.parquet": "clusters.transitions",
    "clusters/label_phases.parquet": "clusters.label_phases",
    "clusters/returns.parquet": "clusters.returns",
    "clusters/outliers.parquet": "clusters.outliers",
    "clusters/agreement.parquet": "clusters.agreement",
    "topology/diagrams.parquet": "topology.diagrams",
    "topology/entropy.parquet": "topology.entropy",
    "topology/distances.parquet": "topology.distances",
}
STATES = ("clusters/clusters.parquet", "clusters/map.parquet")  # a row a generated state
# States that differ by rounding have distances of rounding, and angles of its root.
ROUNDING = {"drift": 1e-5, "clusters": 1e-6, "topology": 1e-5}


def check_trajectories(study: Study) -> None:
    """Runs are those of the prompts, each is one that its network can take, and every image is in the shard."""
    shards: dict[str, list[str]] = {}
    for file in study.targets("trajectories"):
        if file.endswith(".parquet"):
            shards.setdefault(file.split("/")[1], []).append(file)
    for network, files in shards.items():
        first = 0
        runs = chosen_runs(study)
        for file in sorted(files):
            part = runs[first : first + study.config.trajectories.shard_size] if runs is not None else None
            first += study.config.trajectories.shard_size
            check_shard(study, network, file, part)


def check_shard(study: Study, network: str, file: str, runs: list[dict[str, Any]] | None) -> None:
    """One shard of trajectories: its runs, its images, its timing."""
    tar = file.removesuffix(".parquet") + ".tar"
    clock = beside(tar)[1]
    table = study.table("trajectories", file, "trajectories", TRAJECTORIES)
    timing = study.table("trajectories", clock, "trajectories.timing", TIMING, file)
    samples = study.tar("trajectories", tar)
    if table is None:
        return
    if unknown := set(table["entry"].drop_nulls()) - set(study.config.networks.get(network, [])):
        study.note("trajectories", file, f"invoked {unknown.pop()}, which is not in the network {network}")
    for rows in table.partition_by("run_id", maintain_order=True):
        if rows["sequence_number"].to_list() != list(range(-1, len(rows) - 1)):
            study.note("trajectories", file, f"run {rows['run_id'][0]} has gaps or doubled states")
    if runs is not None:
        found = table["prompt_id"].unique(maintain_order=True).to_list()
        wanted = list(dict.fromkeys(run["prompt_id"] for run in runs))
        study.same_rows("trajectories", file, sorted(found, key=str), sorted(wanted), "prompts")
        if table["run_id"].n_unique() != len(runs):
            study.note("trajectories", file, f"{network}: {table['run_id'].n_unique()} runs of {len(runs)}")
    pictures: dict[str, np.ndarray] | None = None
    if samples is not None:
        pictures = check_pictures(study, tar, table, samples)
    if runs is not None and pictures is not None:
        with study.noting("trajectories", file):
            walk_again(study, network, file, clock, table, timing, runs, pictures)


def check_pictures(
    study: Study, tar: str, table: pl.DataFrame, samples: list[dict[str, Any]]
) -> dict[str, np.ndarray] | None:
    """The shard holds every image of the table, each under the key of its pixels; gives their pixels."""
    from ditscope.trajectories.invocations import state_key, state_of

    named = set(table.filter(pl.col("type") == "IMAGE")["output_key"].drop_nulls())
    keys = [sample["__key__"] for sample in samples]
    study.same_rows("trajectories", tar, sorted(keys), sorted(named), "images of the table")
    pictures = {}
    for sample in samples:
        with study.noting("trajectories", tar):
            if not sample.get("png", b"").startswith(b"\x89PNG"):
                raise InputError(f"image {sample['__key__']} is not a PNG")
            decode_picture(sample["png"])
            pixels = np.asarray(state_of(sample))
            if state_key(pixels) != sample["__key__"]:
                raise InputError(f"image {sample['__key__']} has the key of other pixels")
            pictures[sample["__key__"]] = pixels
    return pictures if named <= pictures.keys() else None


def walk_again(
    study: Study,
    network: str,
    file: str,
    clock: str,
    table: pl.DataFrame,
    timing: pl.DataFrame | None,
    runs: list[dict[str, Any]],
    pictures: dict[str, np.ndarray],
) -> None:
    """Follow the runs again with the answers that the table holds: asked, named, ended and shared as they must be."""
    from ditscope.trajectories.invocations import node_of
    from ditscope.trajectories.networks import plan_file, resolve_network
    from ditscope.trajectories.stage import SCHEMA, Walker

    config, settings = study.config, study.config.trajectories
    entries = resolve_network(network, config.networks[network], config.models, config.schemes)
    nodes = [node_of(entry, plan_file(study.results / "plans", entry)) for entry in entries]
    walkers = [Walker(network, run) for run in runs]
    rows = {(row["run_id"], row["sequence_number"]): row for row in table.to_dicts()}
    batches: list[dict[str, Any]] = []
    for number in range(settings.max_length):
        active = [walker for walker in walkers if walker.stop_reason == "length"]
        node = nodes[number % len(nodes)]
        requests = [walker.ask(node, number) for walker in active]
        distinct = list(dict.fromkeys(request.hash for request in requests))
        asked: set[str] = set()
        for walker, request in zip(active, requests, strict=True):
            row = rows.get((walker.run_id, number))
            if row is None:
                raise InputError(f"run {walker.run_id} ends before its invocation {number} with no reason to")
            start = distinct.index(request.hash) // settings.batch_size * settings.batch_size
            size = len(distinct[start : start + settings.batch_size])
            batches.append({"run_id": walker.run_id, "sequence_number": number, "batch_size": size})
            walker.advance(
                node,
                request,
                answer_of(row, pictures) | {"__key__": request.hash},
                number,
                (number + 1) % len(nodes),
                request.hash in asked,
            )
            asked.add(request.hash)
    wanted = pl.DataFrame([row for w in walkers for row in w.finished()], schema=SCHEMA)
    study.agree("trajectories", file, table, wanted)
    check_truncated(study, file, table)
    if timing is not None:
        schema = {name: timing.schema[name] for name in TIMING.split() if name not in ("seconds", "batch_size")}
        kept = [{name: row[name] for name in schema} for w in walkers for row in w.timing]
        study.agree("trajectories", clock, timing, pl.DataFrame(kept, schema=schema), file)
        sizes = {(row["run_id"], row["sequence_number"]): row["batch_size"] for row in batches}
        order = [sizes[row["run_id"], row["sequence_number"]] for row in kept]
        study.agree("trajectories", clock, timing, pl.DataFrame({"batch_size": order}, {"batch_size": pl.Int64}), file)
        positive(study, "trajectories", clock, timing, ["seconds"], file)


def answer_of(row: dict[str, Any], pictures: dict[str, np.ndarray]) -> dict[str, Any]:
    """What an invocation answered, as `Walker.advance` takes it, from its row; keys are those of texts and pixels."""
    from ditscope.core.shards import png_bytes
    from ditscope.trajectories.invocations import state_key

    cost = {"seconds": 0.0, "batch_size": 0, "input_truncated": row["input_truncated"]}
    if row["type"] == "TEXT":
        text = row["output_text"]
        if text is None:
            raise InputError(f"run {row['run_id']}: no text at {row['sequence_number']} (column `output_text`)")
        return {"txt": text.encode(), "json": cost | {"output_key": state_key(text)}}
    if row["output_key"] not in pictures:
        where = f"run {row['run_id']}, sequence number {row['sequence_number']}"
        raise InputError(f"{where}: its image is not in the shard (columns `type`, `output_key`)")
    return {"png": png_bytes(pictures[row["output_key"]]), "json": cost | {"output_key": row["output_key"]}}


def check_truncated(study: Study, file: str, table: pl.DataFrame) -> None:
    """Whether a text was cut is known of every generator and no captioner, alike for one text and model.

    Of a request that an image shard has as well, it is what that says.
    """
    known = {request: row for rows in image_rows(study).values() for request, row in rows.items()}
    found: dict[tuple, bool | None] = {}
    for row in table.filter(pl.col("sequence_number") >= 0).iter_rows(named=True):
        cut, where = row["input_truncated"], f"run {row['run_id']}, sequence number {row['sequence_number']}"
        if (cut is None) != (row["type"] == "TEXT"):
            study.note("trajectories", file, f"{where}: column `input_truncated` is of generators alone")
        wanted = found.setdefault((row["model"], row["input_key"]), cut)
        wanted = known[row["request_hash"]]["prompt_truncated"] if row["request_hash"] in known else wanted
        if cut != wanted:
            study.note("trajectories", file, f"{where}: column `input_truncated` is {cut}, elsewhere {wanted}")


def chosen_runs(study: Study) -> list[dict[str, Any]] | None:
    """The runs that start a trajectory; None where a prompt shard cannot be read."""
    tables = prompt_tables(study)
    if len(tables) != len(study.targets("prompts")):
        return None
    runs = [row for table in tables for row in table.to_dicts()]
    prompts = list(dict.fromkeys(run["prompt_id"] for run in runs))[: study.config.trajectories.prompts or None]
    return [run for run in runs if run["prompt_id"] in set(prompts)]


def check_embed(study: Study) -> None:
    """Every state of an embedder's modality has one vector of length 1, equal states equal ones, all of one size."""
    trajectories = states(study)
    dimensions: dict[str, int] = {}
    for file in study.targets("embed"):
        table = study.table("embed", file, "embeddings", EMBEDDINGS)
        if table is None:
            continue
        _, embedder, shard = file.split("/")
        network, _, number = shard.removesuffix(".parquet").rpartition("-")
        entry = study.config.embedders[embedder]
        source = trajectories.get(f"trajectories/{network}/shard-{number}.parquet")
        names = pl.DataFrame({"embedder": [embedder], "network": [network], "modality": [entry.modality]})
        study.agree("embed", file, table, pl.concat([names] * len(table)) if len(table) else names.clear())
        if wrong := set(table["embedder"]) - {embedder}:
            study.note("embed", file, f"holds vectors of {wrong.pop()}")
        kept = None
        if source is not None:
            kept = source.filter(pl.col("type") == entry.modality.upper())
            found = table.select("run_id", "sequence_number").rows()
            wanted = kept.select("run_id", "sequence_number").rows()
            study.same_rows("embed", file, found, wanted, "states of the trajectories")
        lengths = set(table["vector"].list.len())
        if lengths and lengths != {dimensions.setdefault(embedder, min(lengths))}:
            study.note("embed", file, f"vectors of {sorted(lengths)} numbers; others of {embedder} have another length")
            continue
        if len(table):
            x = np.stack([np.asarray(vector, np.float64) for vector in table["vector"]])
            check_vectors(study, file, x, kept if kept is not None and len(kept) == len(table) else None, embedder)


def check_vectors(study: Study, file: str, x: np.ndarray, kept: pl.DataFrame | None, embedder: str) -> None:
    """Vectors (n, d) are none of zeros and of length 1, those of equal states equal; the control is its own walk."""
    from ditscope.embed.stage import walk_vectors

    entry = study.config.embedders[embedder]
    norms = np.linalg.norm(x, axis=1)
    if (norms == 0).any():
        study.note("embed", file, f"{(norms == 0).sum()} of {len(x)} vectors are zero")
    elif entry.family != RANDOM_WALK and (wrong := np.flatnonzero(abs(norms - 1) > NORM)).size:
        study.note("embed", file, f"{len(wrong)} of {len(x)} vectors are not of length 1, as row {wrong[0] + 1}")
    if kept is None:
        return
    if entry.family == RANDOM_WALK:
        wanted = study.once(f"walk {file}", lambda: walk_vectors(kept, entry.dimension).astype(np.float64))
        if wanted.shape != x.shape or not np.allclose(x, wanted, rtol=1e-4, atol=1e-5):
            study.note("embed", file, "is not the random walk of its runs")
        return
    first: dict[str, int] = {}
    for row, key in enumerate(kept["output_key"]):
        if not np.array_equal(x[first.setdefault(key, row)], x[row]):
            return study.note("embed", file, f"rows {first[key] + 1} and {row + 1} are one state with two vectors")


def check_analyses(study: Study) -> None:
    """Analyses are what the embeddings and trajectories give, state by state."""
    inputs = {stage: study.targets(stage) for stage in ("embed", "trajectories")}
    tables = states(study)
    paths = [study.results / file for file in [*inputs["embed"], *tables]]
    complete = len(tables) == sum(file.endswith(".parquet") for file in inputs["trajectories"])
    complete = complete and all(path.exists() for path in paths)
    for stage, folder in (("drift", "drift"), ("cluster", "clusters"), ("topology", "topology")):
        found = {}
        for file in study.targets(stage):
            if file in ANALYSES:
                found[file] = study.table(stage, file, ANALYSES[file], "")
        if not any(table is not None for table in found.values()) or not complete:
            continue
        if stage == "cluster":
            check_map(study, found.get("clusters/map.parquet"))
            check_states(study, found, tables)
        gives: dict[str, pl.DataFrame] = {}
        with study.noting(stage, study.targets(stage)[0]):
            gives = study.once(stage, lambda: AGAIN[stage](study, list(tables)))  # noqa: B023
        for file, table in found.items():
            wanted = gives.get(Path(file).stem)
            if table is not None and wanted is not None:
                study.agree(stage, file, table, wanted, "", 1e-5, ROUNDING[folder])


def analysed(study: Study, stage: Callable[..., None], trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables that an analysis stage leaves in a folder of its own, by name."""
    embeddings = [study.results / file for file in study.targets("embed")]
    with tempfile.TemporaryDirectory() as folder:
        stage(embeddings, [study.results / file for file in trajectories], Path(folder))
        return {path.stem: pl.read_parquet(path) for path in Path(folder).glob("*.parquet")}


def drift_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of drift, computed again."""
    from ditscope.drift.stage import drift

    return analysed(study, partial(drift, settings=study.config.drift), trajectories)


def topology_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of topology, computed again."""
    from ditscope.topology.stage import topology

    return analysed(study, partial(topology, settings=study.config.topology), trajectories)


def cluster_again(study: Study, trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables of clusters, computed again; of the map all but its coordinates, which rounding moves far."""
    from ditscope.cluster import sequences
    from ditscope.cluster.stage import cluster_labels, label_states
    from ditscope.embed.states import by_embedder, read_states, unit, vectors

    embeddings = [study.results / file for file in study.targets("embed")]
    settings, labelled, maps = study.config.cluster, [], []
    for _, part in by_embedder(read_states(embeddings, [study.results / file for file in trajectories])):
        part = part.filter(pl.col("position") >= 0)
        u = unit(vectors(part))
        labels, reason = cluster_labels(u, settings)
        labelled.append(label_states(part, u, labels, reason))
        maps.append(part.drop("text", "vector", "seed"))
    clusters = pl.concat(labelled)
    runs = sequences.run_lengths(clusters, settings.drop_outliers)
    return {
        "clusters": clusters,
        "map": pl.concat(maps),
        "run_lengths": runs,
        "longest_runs": sequences.longest_runs(runs),
        "transitions": sequences.transitions(clusters, settings.drop_outliers),
        "label_phases": sequences.label_phases(clusters),
        "returns": sequences.returns(clusters),
        "outliers": sequences.outliers(clusters),
        "agreement": sequences.agreement(clusters),
    }


AGAIN: dict[str, Callable[[Study, list[str]], dict[str, pl.DataFrame]]] = {
    "drift": drift_again,
    "cluster": cluster_again,
    "topology": topology_again,
}


def check_map(study: Study, table: pl.DataFrame | None) -> None:
    """A state has both coordinates, or a reason for having none, and so have all states of its embedder."""
    from ditscope.cluster.stage import FEWEST

    if table is None:
        return
    for (embedder,), part in table.partition_by("embedder", as_dict=True).items():
        few = len(part) < FEWEST
        reason = f"{len(part)} states, a map needs {FEWEST}" if few else None
        if part["reason"].to_list() != [reason] * len(part):
            study.note("cluster", "clusters/map.parquet", f"{embedder}: column `reason` is not {reason!r}")
        if any((part[axis].is_null() != few).any() for axis in "xy"):
            study.note("cluster", "clusters/map.parquet", f"{embedder}: states without coordinates or with too few")


def check_states(study: Study, found: dict[str, pl.DataFrame | None], tables: dict[str, pl.DataFrame]) -> None:
    """Labels and coordinates are there of every generated state of an embedder's modality."""
    keys = ["network", "run_id", "sequence_number"]
    for file in STATES:
        table = found.get(file)
        if table is not None:
            wanted = generated(study, tables, keys)
            study.same_rows(
                "cluster",
                file,
                sorted(table.select("embedder", *keys).rows(), key=str),
                sorted(wanted, key=str),
                "states",
            )


def generated(study: Study, tables: dict[str, pl.DataFrame], keys: list[str]) -> set[tuple]:
    """Embedder and `keys` of every generated state of the embedder's modality."""
    steps = pl.concat([table.select("network", "run_id", "sequence_number", "type") for table in tables.values()])
    steps = steps.filter(pl.col("sequence_number") >= 0)
    return {
        (embedder, *row)
        for embedder in study.config.embed.embedders
        for row in steps.filter(pl.col("type") == study.config.embedders[embedder].modality.upper()).select(keys).rows()
    }


def states(study: Study) -> dict[str, pl.DataFrame]:
    """The tables `trajectories` that can be read; their defects are noted by `check_trajectories`."""
    files = [file for file in study.targets("trajectories") if file.endswith(".parquet")]
    quiet = study.quiet()
    tables = {file: quiet.table("trajectories", file, "trajectories", TRAJECTORIES) for file in files}
    return {file: table for file, table in tables.items() if table is not None}
