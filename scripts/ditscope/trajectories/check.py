"""What `ditscope doctor` checks of the stage `trajectories`."""

from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.picture_file import decode_picture
from ditscope.core.study import Study, beside, positive
from ditscope.generate.check import image_rows
from ditscope.prompts.check import prompt_tables
from ditscope.trajectories.networks import chosen
from ditscope.trajectories.tables import TIMING, TRAJECTORIES


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
    table = study.table("trajectories", file, "trajectories")
    timing = study.table("trajectories", clock, "trajectories.timing", file)
    samples = study.tar("trajectories", tar)
    if table is None:
        return
    if unknown := set(table["entry"].drop_nulls()) - set(study.config.networks.get(network, [])):
        study.note("trajectories", file, f"invoked {unknown.pop()}, which is not in the network {network}")
    for rows in table.partition_by("run_id", maintain_order=True):
        if rows["sequence_number"].to_list() != list(range(-1, len(rows) - 1)):
            study.note("trajectories", file, f"run {rows['run_id'][0]} has gaps or doubled states")
    if runs is not None:
        prompts = table["prompt_id"].unique(maintain_order=True).to_list()
        wanted = list(dict.fromkeys(run["prompt_id"] for run in runs))
        study.same_rows("trajectories", file, sorted(prompts, key=str), sorted(wanted), "prompts")
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
    from ditscope.trajectories.networks import on_sets, plan_file, resolve_network
    from ditscope.trajectories.stage import Walker

    config, settings = study.config, study.config.trajectories
    entries = on_sets(
        resolve_network(network, config.networks[network], config.models, config.schemes),
        lambda name: config.calibrate.sources.get(name, study.results / "calibration" / name),
    )
    nodes = [node_of(entry, plan_file(study.results / "plans", entry), settings) for entry in entries]
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
    wanted = pl.DataFrame([row for w in walkers for row in w.finished()], schema=TRAJECTORIES.schema())
    study.agree("trajectories", file, table, wanted)
    check_truncated(study, file, table)
    if timing is not None:
        schema = {name: timing.schema[name] for name in TIMING.columns if name not in ("seconds", "batch_size")}
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
    first: dict[tuple, bool | None] = {}
    for row in table.filter(pl.col("sequence_number") >= 0).iter_rows(named=True):
        cut, where = row["input_truncated"], f"run {row['run_id']}, sequence number {row['sequence_number']}"
        if (cut is None) != (row["type"] == "TEXT"):
            study.note("trajectories", file, f"{where}: column `input_truncated` is of generators alone")
        wanted = first.setdefault((row["model"], row["input_key"]), cut)
        wanted = known[row["request_hash"]]["prompt_truncated"] if row["request_hash"] in known else wanted
        if cut != wanted:
            study.note("trajectories", file, f"{where}: column `input_truncated` is {cut}, elsewhere {wanted}")


def chosen_runs(study: Study) -> list[dict[str, Any]] | None:
    """The runs that start a trajectory; None where a prompt shard cannot be read."""
    tables = prompt_tables(study)
    if not tables or len(tables) < len(study.asked("prompts")):
        return None
    runs = [row for table in tables for row in table.to_dicts()]
    prompts = list(dict.fromkeys(run["prompt_id"] for run in runs))
    starting = set(prompts[chosen(len(prompts), study.config.trajectories)])
    return [run for run in runs if run["prompt_id"] in starting]


def states(study: Study) -> dict[str, pl.DataFrame]:
    """The tables `trajectories` that can be read; their defects are noted by `check_trajectories`."""
    files = [file for file in study.targets("trajectories") if file.endswith(".parquet")]
    quiet = study.quiet()
    tables = {file: quiet.table("trajectories", file, "trajectories") for file in files}
    return {file: table for file, table in tables.items() if table is not None}
