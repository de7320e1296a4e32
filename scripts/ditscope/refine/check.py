"""What `ditscope doctor` checks of the stage `refine`."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.settings import plain
from ditscope.core.study import Study, alike, check_picture, positive
from ditscope.models.folders import check_safetensors
from ditscope.refine.data_check import check_data
from ditscope.refine.measures import HIGHER_IS_BETTER
from ditscope.refine.record import without_diagnostics
from ditscope.refine.settings import Refine, settings_of

INTERPOLATED = "interpolated"
TRAINED = 1e-2  # of what networks give: another device adds up in another order, and the refiner's kernel is steep


def check_refine(study: Study) -> None:
    """Networks are whole, tables are what they and the samples give, the record repeats the config's settings."""
    targets = study.targets("refine")
    for folder in sorted({"/".join(file.split("/")[:2]) for file in targets}):
        refiner = folder.split("/")[1]
        settings = refiner_settings(study, refiner)
        files = [file for file in targets if file.rpartition("/")[0] == folder]
        tables, whole = read_files(study, files)
        check_data(study, folder, refiner)
        check_training(study, folder, tables.get("training"), settings)
        samples = tables.get("samples")
        if (assignments := tables.get("assignments")) is not None and samples is not None:
            name = f"{folder}/assignments.parquet"
            study.same_rows("refine", name, assignments["key"].to_list(), samples["key"].to_list(), "samples")
        if whole and samples is not None:
            with study.noting("refine", f"{folder}/codebook.safetensors"):
                check_refined(study, folder, tables, settings)
        check_page(study, f"{folder}/record.html")
        if f"{folder}/record.json" in files:
            check_record(study, f"{folder}/record.json", refiner, tables)
            check_record_timing(study, f"{folder}/record.timing.json", refiner, tables)
        for board in study.config.refiners[refiner].storyboards:
            check_storyboard(study, f"{folder}/storyboards/{board}")


def read_files(study: Study, files: list[str]) -> tuple[dict[str, pl.DataFrame | None], bool]:
    """The tables among a refiner's files by stem, and whether its networks are whole; pictures are decoded."""
    tables: dict[str, pl.DataFrame | None] = {}
    whole = True
    for file in files:
        path, name = study.results / file, file.rpartition("/")[2]
        stem = name.rpartition(".")[0]
        before = len(study.findings)
        if not path.exists():
            whole = whole and not name.endswith(".safetensors")
        elif name.endswith(".safetensors"):
            with study.noting("refine", file):
                check_safetensors(path)
            whole = whole and len(study.findings) == before
        elif name.endswith(".png"):
            with study.noting("refine", file):
                check_picture(path)
        elif name.endswith(".parquet") and not name.endswith(".timing.parquet"):
            tables[stem] = study.table("refine", file, f"refine.{stem}")
    return tables, whole


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
        positive(study, "refine", clock, timing, ["seconds", "world_size", "peak_memory_bytes"], file)
        for column in ("world_size", "device", "peak_memory_bytes"):
            if timing[column].n_unique() != 1:
                study.note("refine", clock, f"column `{column}` is not the same at every step", file)


def logged_steps(steps: int, every: int) -> list[int]:
    """The steps that have rows in the training table: each `every`-th, and the last."""
    return sorted({*range(every, steps + 1, every), steps})


def check_refined(study: Study, folder: str, tables: dict[str, pl.DataFrame | None], settings: Refine) -> None:
    """Pseudo-classes, neighbours, diagnostics and errors by level are what samples, codebook and networks give."""
    assignments = tables.get("assignments")
    wanted = study.once(f"codes {folder}", lambda: assigned(study, folder))
    if assignments is not None:
        study.agree("refine", f"{folder}/assignments.parquet", assignments, wanted)
    if any(f.file == f"{folder}/assignments.parquet" for f in study.findings):
        return  # the rest would only repeat it
    again, gallery = study.once(f"measured {folder}", lambda: measured(study, folder, wanted, settings))
    drawn = ["x", "y", "umap_x", "umap_y"]
    compared = {"diagnostics": again.diagnostics, "neighbours": again.neighbours, "tsne": again.points.drop(drawn)}
    for stem, gives in compared.items():
        if (table := tables.get(stem)) is not None:
            study.agree("refine", f"{folder}/{stem}.parquet", table, gives, "", TRAINED, 1e-4)
    if (table := tables.get("evaluation")) is not None:
        check_evaluation(study, f"{folder}/evaluation.parquet", table, again.evaluation)
        if (pictures := tables.get("gallery")) is not None:
            check_gallery(study, f"{folder}/gallery.parquet", pictures, gallery(table))


def check_evaluation(study: Study, file: str, table: pl.DataFrame, gives: pl.DataFrame) -> None:
    """The errors by level are what the networks give; of what is not computed again, whether the numbers agree.

    That is what the oracle, a generator or an embedder says.
    """
    key = ["level", "method", "metric"]
    known = table.join(gives, on=key, how="semi")
    study.agree("refine", file, known, gives, "", TRAINED, 1e-4)
    levels = [(level, keys, n, u) for level, keys, n, u in gives.select("level", "keys", "samples", "units").rows()]
    others = table.join(gives, on=key, how="anti")
    for row in others.iter_rows(named=True):
        where = f"{row['method']}, {row['metric']}, level {row['level']}"
        if (row["level"], row["keys"], row["samples"], row["units"]) not in levels:
            study.note("refine", file, f"{where}: is no level, or of other samples than the rest")
        for value, low, high in (("value", "low", "high"), ("gain", "gain_low", "gain_high")):
            bounds = row[low], row[value], row[high]
            if None not in bounds and not bounds[0] <= bounds[1] <= bounds[2]:
                study.note("refine", file, f"{where}: its `{value}` is outside its interval")
    check_gains(study, file, table)


def check_gains(study: Study, file: str, table: pl.DataFrame) -> None:
    """Each gain is the difference of two values, and every method has all metrics of the interpolation."""
    plain = {(r["level"], r["metric"]): r["value"] for r in table.filter(method=INTERPOLATED).iter_rows(named=True)}
    for (method,), part in table.group_by("method", maintain_order=True):
        found = part.select("level", "metric").rows()
        study.same_rows("refine", file, sorted(found), sorted(plain), f"levels and metrics of `{method}`")
        for row in part.iter_rows(named=True):
            start = plain.get((row["level"], row["metric"]))
            if method == INTERPOLATED or start is None:
                wanted = None
            else:
                wanted = row["value"] - start if row["metric"] in HIGHER_IS_BETTER else start - row["value"]
            if not alike(row["gain"], wanted, 1e-6, 1e-6):
                study.note(
                    "refine", file, f"{method}, {row['metric']}, level {row['level']}: its gain is not what values give"
                )


def check_gallery(study: Study, file: str, table: pl.DataFrame, gives: pl.DataFrame) -> None:
    """The gallery has a whole picture of each sample, level and method."""
    study.agree("refine", file, table, gives)
    home = file.rpartition("/")[0]
    places = {picture: study.results / home / picture for picture in gives["picture"]}
    missing = [picture for picture, place in places.items() if not place.exists()]
    if missing:
        study.note(
            "refine", f"{home}/gallery", f"lacks {len(missing)} of {len(places)} pictures, as {missing[0]}", file
        )
    for picture in places.keys() - missing:
        with study.noting("refine", f"{home}/gallery", file):
            check_picture(places[picture])


def check_storyboard(study: Study, folder: str) -> None:
    """Everything that a storyboard became is there and whole."""
    page = f"{folder}.html"
    check_page(study, page)
    if not (study.results / folder).exists():
        return
    found = sorted((study.results / folder).rglob("*"))
    with study.noting("refine", folder, page):
        if not any(path.name == "compared.png" for path in found):
            raise InputError("has no compared.png; its pictures are gone")
        for path in found:
            if path.suffix in (".png", ".gif"):
                check_picture(path)
            elif path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
                if not np.isfinite(values).all():
                    raise InputError(f"{path.name} has NaN or infinite values")


def check_page(study: Study, file: str) -> None:
    """A page ends as one."""
    path = study.results / file
    if path.exists() and not path.read_bytes().rstrip().endswith(b"</html>"):
        study.note("refine", file, "is cut off: it does not end as a page")


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


def measured(study: Study, folder: str, codes: pl.DataFrame, settings: Refine) -> Any:
    """What the networks of a refiner give of its samples, and its gallery by the table of the evaluation.

    Without what takes other models, or long: oracle, generator, embedder.
    """
    from ditscope.refine.adapter import load_adapter
    from ditscope.refine.diagnose import gallery_of, measure, read_encoder
    from ditscope.refine.evaluate import Judge, pooled_by
    from ditscope.refine.refiner_file import load_refiner

    place, data = study.results / folder, data_of(study, folder)
    trained = load_refiner(place / "refiner.safetensors")
    encoder = read_encoder(place / "latent_mae.safetensors")
    adapter = load_adapter(trained.adapter)
    judge = Judge(adapter, None if settings.judge else pooled_by(encoder), oracle=False)
    again = measure(trained, data, codes["code"].to_numpy(), encoder, judge, settings)
    shown = settings if again.shown else replace(settings, gallery=0)
    return again, lambda evaluation: gallery_of(trained, data, evaluation, shown)


def check_record(study: Study, file: str, refiner: str, tables: dict[str, pl.DataFrame | None]) -> None:
    """The record of a training is what the tables, data.json and the refiner's file give."""
    record = study.json("refine", file)
    whole = {name: table for name, table in tables.items() if table is not None}
    if record is None or not {"diagnostics", "evaluation", "training", "samples"} <= whole.keys():
        return
    folder = file.rpartition("/")[0]
    with study.noting("refine", file):
        settings = without_diagnostics(refiner_settings(study, refiner))
        study.same("refine", file, record["header"], {"refiner": refiner, "seed": settings.seed})
        wanted = {key: value for key, value in plain(settings).items() if key in record["settings"]}
        study.same("refine", file, record["settings"], wanted)
        gives = recorded(study, folder, refiner, whole)
        for key, value in gives.items():
            told = record[key] if key != "header" else record[key] | {"ditscope": value["ditscope"]}
            if not alike(told, value):
                study.note("refine", file, f"its `{key}` is not what the tables and the config give")


def recorded(study: Study, folder: str, refiner: str, tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """The record of a refiner from its tables, data.json, its file, and the processes that its timing tells."""
    from ditscope.refine.dataset import read_about
    from ditscope.refine.record import experiment_record

    clock = f"{folder}/training.timing.parquet"
    timing = study.quiet().table("refine", clock, "refine.training.timing")
    processes = 1 if timing is None or not len(timing) else timing["world_size"][0]
    settings = without_diagnostics(refiner_settings(study, refiner))
    about, shards = read_about(study.results / folder / "data.json"), tables["samples"]["shard"].n_unique()
    measured = tables["diagnostics"], tables["evaluation"], tables["training"]
    return experiment_record(refiner, about, shards, settings, *measured, processes)


def check_record_timing(study: Study, file: str, refiner: str, tables: dict[str, pl.DataFrame | None]) -> None:
    """The record of date and place is of this refiner, and its costs are what the training's clock tells."""
    told = study.json("refine", file)
    clock = f"{file.rpartition('/')[0]}/training.timing.parquet"
    timing = study.quiet().table("refine", clock, "refine.training.timing")
    if told is None or timing is None or not len(timing):
        return
    with study.noting("refine", file):
        study.same("refine", file, told, {"refiner": refiner})
        wanted = {"device": timing["device"][-1], "peak_memory_bytes": timing["peak_memory_bytes"][-1]}
        wanted["seconds"] = float(timing["seconds"].sum())
        study.same("refine", file, told["training"], wanted)
