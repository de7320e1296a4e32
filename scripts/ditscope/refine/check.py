"""What `ditscope doctor` checks of the stage `refine`."""

from pathlib import Path
from typing import Any

import polars as pl

from ditscope.core.settings import plain
from ditscope.core.study import Study, alike, beside, check_picture, positive
from ditscope.models.folders import check_safetensors
from ditscope.refine.data_check import check_data
from ditscope.refine.settings import Refine, settings_of

TRAINED = 1e-2  # of what networks give: another device adds up in another order, and the refiner's kernel is steep


def check_refine(study: Study) -> None:
    """Networks are whole, tables are what they and the images give, the record repeats the config's settings."""
    folders = sorted({file.rpartition("/")[0] for file in study.targets("refine")})
    for folder in folders:
        refiner = folder.split("/")[1]
        model, settings = study.config.refiners[refiner].source.model, refiner_settings(study, refiner)
        files = [file for file in study.targets("refine") if file.rpartition("/")[0] == folder]
        tables: dict[str, pl.DataFrame | None] = {}
        whole = True
        for file in files:
            path, name = study.results / file, file.rpartition("/")[2]
            stem = name.rpartition(".")[0]
            before = len(study.findings)
            if not path.exists():
                whole = whole and not name.endswith(".safetensors")
                continue
            if name.endswith(".safetensors"):
                with study.noting("refine", file):
                    check_safetensors(path)
                whole = whole and len(study.findings) == before
            elif name.endswith(".png"):
                with study.noting("refine", file):
                    check_picture(path)
            elif name.endswith(".parquet"):
                tables[stem] = study.table("refine", file, f"refine.{stem}")
        check_data(study, folder, refiner)
        check_training(study, folder, tables.get("training"), settings)
        keys = image_keys(study, model)
        for stem in ("assignments", "tsne"):
            table = tables.get(stem)
            if table is not None and keys is not None:
                name = f"{folder}/{stem}.parquet"
                study.same_rows("refine", name, sorted(table["key"], key=str), sorted(keys), "images")
        if whole:
            with study.noting("refine", f"{folder}/codebook.safetensors"):
                check_refined(study, folder, model, tables, settings)
        if f"{folder}/record.json" in files:
            check_record(study, f"{folder}/record.json", model, tables, settings)


def check_training(study: Study, folder: str, table: pl.DataFrame | None, settings: Refine) -> None:
    """Both networks have every step with the same metrics, and a time for each step."""
    file = f"{folder}/training.parquet"
    clock = f"{folder}/training.timing.parquet"
    timing = study.table("refine", clock, "refine.training.timing", file)
    wanted = {"latent_mae": settings.mae_steps, "refiner": settings.steps}
    steps = [(network, step) for network, count in wanted.items() for step in range(1, count + 1)]
    if table is not None:
        trained = table.group_by("network").agg(pl.col("step").n_unique().alias("steps")).sort("network").rows()
        study.same_rows("refine", file, trained, sorted(wanted.items()), "networks with all their steps")
        for (network,), part in table.partition_by("network", as_dict=True).items():
            metrics = part["metric"].unique(maintain_order=True).to_list()
            rows = [(step, metric) for step in range(1, wanted.get(network, 0) + 1) for metric in metrics]
            study.same_rows(
                "refine", file, part.select("step", "metric").rows(), rows, f"steps and metrics of {network}"
            )
    if timing is not None:
        study.same_rows("refine", clock, timing.select("network", "step").rows(), steps, "steps", file)
        positive(study, "refine", clock, timing, ["seconds", "world_size"], file)
        if timing["world_size"].n_unique() != 1:
            study.note("refine", clock, "column `world_size` is not the same at every step", file)


def check_refined(
    study: Study, folder: str, model: str, tables: dict[str, pl.DataFrame | None], settings: Refine
) -> None:
    """Pseudo-classes, neighbours and diagnostics are what images, codebook and networks give."""
    assignments = tables.get("assignments")
    wanted = study.once(f"codes {folder}", lambda: assigned(study, folder, model, settings))
    if assignments is not None:
        study.agree("refine", f"{folder}/assignments.parquet", assignments, wanted)
    if (tsne := tables.get("tsne")) is not None:
        file = f"{folder}/tsne.parquet"
        study.agree("refine", file, tsne, wanted.select("key", "prompt_id", "code"))
    if study.findings and any(f.file == f"{folder}/assignments.parquet" for f in study.findings):
        return  # the rest would only repeat it
    again = study.once(f"measured {folder}", lambda: measured(study, folder, model, wanted, settings))
    for stem, gives in (("diagnostics", again.diagnostics), ("neighbours", again.neighbours)):
        if (table := tables.get(stem)) is not None:
            study.agree("refine", f"{folder}/{stem}.parquet", table, gives, "", TRAINED, 1e-4)


def refiner_settings(study: Study, name: str) -> Refine:
    """The settings of a refiner of the study."""
    return settings_of(name, study.config.refiners[name], study.config.refine)


def shard_paths(study: Study, model: str) -> list[Path]:
    """The image shards of a model."""
    return [study.results / tar for tar in study.targets("generate") if tar.split("/")[1] == model]


def assigned(study: Study, folder: str, model: str, settings: Refine) -> pl.DataFrame:
    """The table of pseudo-classes that a codebook gives the images of its model."""
    from ditscope.refine.codebook import assignments_of, load_codebook
    from ditscope.refine.latents import read_latents

    latents = read_latents(shard_paths(study, model), settings.patch)
    codebook = load_codebook(study.results / folder / "codebook.safetensors")
    return assignments_of(codebook, latents, settings)


def measured(study: Study, folder: str, model: str, codes: pl.DataFrame, settings: Refine) -> Any:
    """What the networks of a refiner give of their images."""
    from ditscope.refine.diagnose import measure
    from ditscope.refine.latents import read_latents

    place = study.results / folder
    latents = read_latents(shard_paths(study, model), settings.patch)
    codebook, encoder, refiner = (place / f"{name}.safetensors" for name in ("codebook", "latent_mae", "refiner"))
    return measure(latents, codes["code"].to_numpy(), codebook, encoder, refiner, settings)


def check_record(study: Study, file: str, model: str, tables: dict[str, pl.DataFrame | None], settings: Refine) -> None:
    """The record of a training names the model and the settings of the config, and what the tables give."""
    record = study.json("refine", file)
    if record is None:
        return
    folder = file.rpartition("/")[0]
    with study.noting("refine", file):
        study.same("refine", file, record["header"], {"model": model, "seed": settings.seed})
        wanted = {key: value for key, value in plain(settings).items() if key in record["settings"]}
        study.same("refine", file, record["settings"], wanted)
        whole = {name: table for name, table in tables.items() if table is not None}
        if not {"diagnostics", "training"} <= whole.keys():
            return
        gives = recorded(study, folder, model, whole, settings)
        for key, value in gives.items():
            told = record[key] if key != "header" else record[key] | {"ditscope": value["ditscope"]}
            if not alike(told, value):
                study.note("refine", file, f"its `{key}` is not what the tables and the config give")


def recorded(
    study: Study, folder: str, model: str, tables: dict[str, pl.DataFrame], settings: Refine
) -> dict[str, Any]:
    """The record of a refiner from its tables, the config, and the number of processes that its timing tells."""
    from ditscope.refine.latents import read_latents
    from ditscope.refine.record import experiment_record

    paths = shard_paths(study, model)
    latents = read_latents(paths, settings.patch)
    rows = tables["diagnostics"].rows()
    record = experiment_record(model, paths, latents, settings, rows, tables["training"])
    clock = f"{folder}/training.timing.parquet"
    timing = study.quiet().table("refine", clock, "refine.training.timing")
    processes = 1 if timing is None or not len(timing) else timing["world_size"][0]
    return record | {"runtime": record["runtime"] | {"batch": record["runtime"]["batch"] * processes}}


def image_keys(study: Study, model: str) -> list[str] | None:
    """The key of each run's image of a model; None where a manifest cannot be read."""
    quiet = study.quiet()
    shards = [tar for tar in study.targets("generate") if tar.split("/")[1] == model]
    tables = [quiet.table("generate", beside(tar)[0], "images") for tar in shards]
    if not tables or any(table is None for table in tables):
        return None
    return [key for table in tables if table is not None for key in table["key"]]
