"""What `ditscope doctor` checks of the data of a refiner."""

from pathlib import Path

import numpy as np

from ditscope.core.study import Study, alike
from ditscope.refine.data_settings import MADE, Source
from ditscope.refine.dataset import Dataset, dataset, read_raw
from ditscope.refine.prepare import indexed, told_of
from ditscope.refine.samples import Damage

SEVERAL = 64  # samples whose values are compared together


def check_data(study: Study, folder: str, refiner: str) -> None:
    """The table of samples and data.json are what the shards and the config give; generated latents are the images'."""
    source = study.config.refiners[refiner].source
    file, about = f"{folder}/samples.parquet", f"{folder}/data.json"
    table, told = study.table("refine", file, "refine.samples"), study.json("refine", about)
    if table is None or told is None:
        return
    with study.noting("refine", f"{folder}/data", about):
        home = study.results / folder
        elsewhere = Path(told["folder"]) if told["folder"] else None
        places = [(elsewhere or home) / shard for shard in table["shard"].unique(maintain_order=True)]
        shards = sorted({*places, *(elsewhere or home / "data").rglob("*.tar")})
        damage = Damage(source.damaged)
        wanted, shared = indexed(shards, elsewhere or home, source, damage, elsewhere is not None)
        study.agree("refine", file, table, wanted)
        gives = told_of(wanted, shared, elsewhere, home, source, study.config.models)
        left = {"left_out": damage.noted, "short": damage.short} if elsewhere else {}
        for key, value in (gives | left).items():
            if not alike(told.get(key), value):
                study.note("refine", about, f"its `{key}` is not what the shards and the config give")
        lost = sum(noted["samples"] for noted in told["left_out"])
        if source.kind in MADE and len(table) + lost != source.count:
            study.note(
                "refine", file, f"{len(table)} samples and {lost} left out are not the {source.count} of the config"
            )
        if source.kind == "generated":
            check_latents(study, f"{folder}/data", dataset(wanted, gives, home), source)


def check_latents(study: Study, file: str, data: Dataset, source: Source) -> None:
    """The samples are the runs of the model's images, in their order, with the latents that these have."""
    from ditscope.core.shards import samples_of_runs

    shards = [tar for tar in study.targets("generate") if tar.split("/")[1] == source.model]
    runs = (run for shard in shards for run in samples_of_runs(study.results / shard) if "latent.npy" in run)
    for start in range(0, len(data), SEVERAL):
        rows = np.arange(start, min(start + SEVERAL, len(data)))
        for row, values in zip(data.samples[rows].iter_rows(named=True), read_raw(data, rows), strict=True):
            run = next(runs, {})
            wanted = run["json"] | {"key": run["__key__"]} if run else {}
            if any(row[name] != wanted.get(name) for name in ("key", "prompt_id", "prompt", "seed")):
                study.note("refine", file, f"sample {row['row']} is not the run that the images have there")
                return
            if not np.array_equal(values, run["latent.npy"].astype(source.dtype).astype(np.float32)):
                study.note("refine", file, f"the values of sample {row['row']} are not the latent of its image")
    if next(runs, None):
        study.note("refine", file, "lacks the last runs of the images")
