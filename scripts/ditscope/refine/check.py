"""What `ditscope doctor` checks of the stage `refine`."""

from typing import Any

import polars as pl

from ditscope.core.settings import plain
from ditscope.core.study import Study, alike, check_picture, positive
from ditscope.models.folders import check_safetensors
from ditscope.refine.data_check import check_data
from ditscope.refine.settings import Refine, settings_of

TRAINED = 1e-2  # of what networks give: another device adds up in another order, and the refiner's kernel is steep


def check_refine(study: Study) -> None:
    """Networks are whole, tables are what they and the images give, the record repeats the config's settings."""
    folders = sorted({file.rpartition("/")[0] for file in study.targets("refine")})
    for folder in folders:
        refiner = folder.split("/")[1]
        settings = refiner_settings(study, refiner)
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
        samples = tables.get("samples")
        table = tables.get("assignments")
        if table is not None and samples is not None:
            name = f"{folder}/assignments.parquet"
            study.same_rows("refine", name, table["key"].to_list(), samples["key"].to_list(), "samples")
        if whole:
            with study.noting("refine", f"{folder}/codebook.safetensors"):
                check_refined(study, folder, tables, settings)
        if f"{folder}/record.json" in files:
            check_record(study, f"{folder}/record.json", refiner, tables, settings)


def check_training(study: Study, folder: str, table: pl.DataFrame | None, settings: Refine) -> None:
    """Both networks have every step with the same metrics, and a time for each step."""
    file = f"{folder}/training.parquet"
    clock = f"{folder}/training.timing.parquet"
    timing = study.table("refine", clock, "refine.training.timing", file)
    wanted = {"latent_mae": settings.mae_steps, "refiner": settings.steps}
    logged = {network: logged_steps(count, settings.log_every) for network, count in wanted.items()}
    steps = [(network, step) for network, numbers in logged.items() for step in numbers]
    if table is not None:
        trained = table.group_by("network").agg(pl.col("step").n_unique().alias("steps")).sort("network").rows()
        counts = sorted((network, len(numbers)) for network, numbers in logged.items())
        study.same_rows("refine", file, trained, counts, "networks with all their logged steps")
        for (network,), part in table.partition_by("network", as_dict=True).items():
            metrics = part["metric"].unique(maintain_order=True).to_list()
            rows = [(step, metric) for step in logged.get(network, []) for metric in metrics]
            study.same_rows(
                "refine", file, part.select("step", "metric").rows(), rows, f"steps and metrics of {network}"
            )
    if timing is not None:
        study.same_rows("refine", clock, timing.select("network", "step").rows(), steps, "steps", file)
        positive(study, "refine", clock, timing, ["seconds", "world_size"], file)
        if timing["world_size"].n_unique() != 1:
            study.note("refine", clock, "column `world_size` is not the same at every step", file)


def logged_steps(steps: int, every: int) -> list[int]:
    """The steps that have rows in the training table: each `every`-th, and the last."""
    return sorted({*range(every, steps + 1, every), steps})


def check_refined(study: Study, folder: str, tables: dict[str, pl.DataFrame | None], settings: Refine) -> None:
    """Pseudo-classes, neighbours and diagnostics are what images, codebook and networks give."""
    assignments = tables.get("assignments")
    wanted = study.once(f"codes {folder}", lambda: assigned(study, folder))
    if assignments is not None:
        study.agree("refine", f"{folder}/assignments.parquet", assignments, wanted)
    if (tsne := tables.get("tsne")) is not None:
        file = f"{folder}/tsne.parquet"
        study.agree("refine", file, tsne, wanted[judged(study, folder)].select("key", "prompt_id", "code"))
    if study.findings and any(f.file == f"{folder}/assignments.parquet" for f in study.findings):
        return  # the rest would only repeat it
    again = study.once(f"measured {folder}", lambda: measured(study, folder, wanted, settings))
    for stem, gives in (("diagnostics", again.diagnostics), ("neighbours", again.neighbours)):
        if (table := tables.get(stem)) is not None:
            study.agree("refine", f"{folder}/{stem}.parquet", table, gives, "", TRAINED, 1e-4)


def refiner_settings(study: Study, name: str) -> Refine:
    """The settings of a refiner of the study."""
    return settings_of(name, study.config.refiners[name], study.config.refine)


def data_of(study: Study, folder: str) -> Any:
    """The data set of a refiner."""
    from ditscope.refine.dataset import open_dataset

    return open_dataset(study.results / folder / "samples.parquet", study.results / folder / "data.json")


def assigned(study: Study, folder: str) -> pl.DataFrame:
    """The table of pseudo-classes that a codebook gives the samples of its refiner."""
    from ditscope.refine.codebook import assignments_of, conditions_of, load_codebook

    data = data_of(study, folder)
    codebook = load_codebook(study.results / folder / "codebook.safetensors")
    return assignments_of(codebook, data, conditions_of(codebook, data))


def judged(study: Study, folder: str) -> Any:
    """Rows of the samples that a refiner's codebook and encoder are judged on."""
    from ditscope.refine.representation import judged_rows

    return judged_rows(data_of(study, folder))


def measured(study: Study, folder: str, codes: pl.DataFrame, settings: Refine) -> Any:
    """What the networks of a refiner give of its samples."""
    from ditscope.refine.diagnose import measure

    place = study.results / folder
    codebook, encoder, refiner = (place / f"{name}.safetensors" for name in ("codebook", "latent_mae", "refiner"))
    return measure(data_of(study, folder), codes["code"].to_numpy(), codebook, encoder, refiner, settings)


def check_record(
    study: Study, file: str, refiner: str, tables: dict[str, pl.DataFrame | None], settings: Refine
) -> None:
    """The record of a training names the model and the settings of the config, and what the tables give."""
    record = study.json("refine", file)
    if record is None:
        return
    folder = file.rpartition("/")[0]
    with study.noting("refine", file):
        study.same("refine", file, record["header"], {"refiner": refiner, "seed": settings.seed})
        wanted = {key: value for key, value in plain(settings).items() if key in record["settings"]}
        study.same("refine", file, record["settings"], wanted)
        whole = {name: table for name, table in tables.items() if table is not None}
        if not {"diagnostics", "training"} <= whole.keys():
            return
        gives = recorded(study, folder, refiner, whole, settings)
        for key, value in gives.items():
            told = record[key] if key != "header" else record[key] | {"ditscope": value["ditscope"]}
            if not alike(told, value):
                study.note("refine", file, f"its `{key}` is not what the tables and the config give")


def recorded(
    study: Study, folder: str, refiner: str, tables: dict[str, pl.DataFrame], settings: Refine
) -> dict[str, Any]:
    """The record of a refiner from its tables, the config, and the number of processes that its timing tells."""
    from ditscope.refine.record import experiment_record

    rows = tables["diagnostics"].rows()
    record = experiment_record(refiner, data_of(study, folder), settings, rows, tables["training"])
    clock = f"{folder}/training.timing.parquet"
    timing = study.quiet().table("refine", clock, "refine.training.timing")
    processes = 1 if timing is None or not len(timing) else timing["world_size"][0]
    return record | {"runtime": record["runtime"] | {"batch": record["runtime"]["batch"] * processes}}
