"""Checks of trajectories, their embeddings, and the analyses of both: every state of every run, in every table."""

import polars as pl

from ditscope.doctor.books import beside
from ditscope.doctor.images import prompt_tables
from ditscope.doctor.study import Study
from ditscope.errors import InputError

TRAJECTORIES = (
    "network run_id prompt_id prompt seed sequence_number entry model scheme type output_key output_text stop_reason"
)
TIMING = "network run_id sequence_number seconds"
EMBEDDINGS = "embedder network run_id sequence_number modality vector"
# Table and columns of each file that an analysis leaves.
ANALYSES = {
    "drift/drift.parquet": ("drift", "embedder network run_id sequence_number control euclidean cosine_distance"),
    "drift/similarity.parquet": ("drift.similarity", "embedder network_a run_id_a network_b run_id_b mean_cosine"),
    "drift/autoregression.parquet": ("drift.autoregression", "embedder network control measure coefficient reason"),
    "drift/normality.parquet": ("drift.normality", "embedder network control measure test statistic p_value reason"),
    "clusters/clusters.parquet": ("clusters", "embedder network run_id sequence_number label is_medoid reason"),
    "clusters/map.parquet": ("clusters.map", "embedder network run_id sequence_number x y"),
    "clusters/run_lengths.parquet": ("clusters.run_lengths", "embedder network run_id stretch label length"),
    "clusters/longest_runs.parquet": ("clusters.longest_runs", "embedder network run_id scope label length"),
    "clusters/transitions.parquet": ("clusters.transitions", "embedder network source target count probability"),
    "clusters/label_phases.parquet": ("clusters.label_phases", "embedder network phase label states share"),
    "clusters/returns.parquet": ("clusters.returns", "embedder network run_id initial_label returns reason"),
    "clusters/outliers.parquet": ("clusters.outliers", "embedder network states clustered outliers clusters"),
    "clusters/agreement.parquet": ("clusters.agreement", "between embedder_a embedder_b ari ami v_measure"),
    "topology/diagrams.parquet": ("topology.diagrams", "embedder network run_id dimension birth death"),
    "topology/entropy.parquet": ("topology.entropy", "embedder network run_id dimension bars entropy"),
    "topology/distances.parquet": (
        "topology.distances",
        "relation embedder_a network_a run_id_a dimension wasserstein",
    ),
}
STATES = ("clusters/clusters.parquet", "clusters/map.parquet")  # a row a generated state
RUNS = ("drift/drift.parquet", "topology/entropy.parquet")


def check_trajectories(study: Study) -> None:
    """Runs are there for every chosen prompt, without a gap, and every image is in the shard."""
    networks = study.config.networks
    chosen = chosen_runs(study)
    found: dict[str, list[tuple[str, int]]] = {}
    for file in study.targets("trajectories"):
        if not file.endswith(".parquet"):
            continue
        _, network, _ = file.split("/")
        tar = file.removesuffix(".parquet") + ".tar"
        table = study.table("trajectories", file, "trajectories", TRAJECTORIES)
        study.table("trajectories", beside(tar)[1], "trajectories.timing", TIMING, file)
        samples = study.tar("trajectories", tar)
        if table is None:
            continue
        if unknown := set(table["entry"].drop_nulls()) - set(networks.get(network, [])):
            study.note("trajectories", file, f"invoked {unknown.pop()}, which is not in the network {network}")
        for rows in table.partition_by("run_id", maintain_order=True):
            first = rows.row(0, named=True)
            found.setdefault(network, []).append((first["prompt_id"], first["seed"]))
            if rows["sequence_number"].to_list() != list(range(-1, len(rows) - 1)):
                study.note("trajectories", file, f"run {first['run_id']} has gaps or doubled states")
        if samples is not None:
            named = set(table.filter(pl.col("type") == "IMAGE")["output_key"].drop_nulls())
            keys = [sample["__key__"] for sample in samples]
            study.same_rows("trajectories", tar, sorted(keys), sorted(named), "images of the table")
            for sample in samples:
                with study.noting("trajectories", tar):
                    if not sample["png"].startswith(b"\x89PNG"):
                        raise InputError(f"image {sample['__key__']} is not a PNG")
    for network, runs in found.items():
        if chosen is not None:
            wanted = sorted({prompt for prompt, _ in chosen})
            file = next(f for f in study.targets("trajectories") if f.split("/")[1] == network)
            study.same_rows("trajectories", file, sorted({prompt for prompt, _ in runs}), wanted, "prompts")
            if len(runs) != len(chosen):
                study.note("trajectories", file, f"{network}: {len(runs)} runs of {len(chosen)}")


def chosen_runs(study: Study) -> list[tuple[str, int]] | None:
    """(prompt_id, seed) of the runs that start a trajectory; None where a prompt shard cannot be read."""
    tables = prompt_tables(study)
    if len(tables) != len(study.targets("prompts")):
        return None
    runs = [row for table in tables for row in table.select("prompt_id", "seed").rows()]
    prompts = list(dict.fromkeys(prompt for prompt, _ in runs))[: study.config.trajectories.prompts or None]
    return [run for run in runs if run[0] in set(prompts)]


def check_embed(study: Study) -> None:
    """Every state of an embedder's modality has one vector, all of one length."""
    trajectories = states(study)
    dimensions: dict[str, int] = {}
    for file in study.targets("embed"):
        table = study.table("embed", file, "embeddings", EMBEDDINGS)
        if table is None:
            continue
        _, embedder, shard = file.split("/")
        network, _, number = shard.removesuffix(".parquet").rpartition("-")
        modality = study.config.embedders[embedder].modality.upper()
        source = trajectories.get(f"trajectories/{network}/shard-{number}.parquet")
        if source is not None:
            wanted = source.filter(pl.col("type") == modality).select("run_id", "sequence_number").rows()
            found = table.select("run_id", "sequence_number").rows()
            study.same_rows("embed", file, found, wanted, "states of the trajectories")
        if wrong := set(table["embedder"]) - {embedder}:
            study.note("embed", file, f"holds vectors of {wrong.pop()}")
        lengths = set(table["vector"].list.len())
        if lengths and lengths != {dimensions.setdefault(embedder, min(lengths))}:
            study.note("embed", file, f"vectors of {sorted(lengths)} numbers; others of {embedder} have another length")


def check_analyses(study: Study) -> None:
    """Analyses cover every embedder, network, run and generated state."""
    tables = states(study)
    complete = len(tables) == sum(file.endswith(".parquet") for file in study.targets("trajectories"))
    for stage in ("drift", "cluster", "topology"):
        for file in study.targets(stage):
            if file not in ANALYSES:
                continue
            table = study.table(stage, file, *ANALYSES[file])
            if table is None or not complete or file not in (*STATES, *RUNS):
                continue
            keys = ["network", "run_id", *(["sequence_number"] if file in STATES else [])]
            wanted = generated(study, tables, keys)
            found = set(table.select("embedder", *keys).rows())
            if file in RUNS:  # a run that has only its prompt is listed or not
                found &= wanted
            study.same_rows(stage, file, sorted(found), sorted(wanted), "runs" if file in RUNS else "states")


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
    quiet = Study(study.results, study.plan, study.config)
    files = [file for file in study.targets("trajectories") if file.endswith(".parquet")]
    tables = {file: quiet.table("trajectories", file, "trajectories", TRAJECTORIES) for file in files}
    return {file: table for file, table in tables.items() if table is not None}
