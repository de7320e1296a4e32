"""What `ditscope doctor` checks of the stage `ablate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.blocks.check import check_range
from ditscope.capture.check import blocks_of, requests_of
from ditscope.core.errors import InputError
from ditscope.core.patterns import block_index, block_type, select_blocks
from ditscope.core.study import Study, alike, check_png


def check_ablate(study: Study) -> None:
    """Every run has a row for each block and kind; the pictures of the first run give its numbers."""
    settings = study.config.ablate
    for file in study.targets("ablate"):
        if not file.endswith(".parquet"):
            continue
        model, tar = Path(file).stem, f"{file.removesuffix('.parquet')}.tar"
        table = study.table("ablate", file, "ablation")
        samples = study.tar("ablate", tar)
        if table is None:
            continue
        names = blocks_of(study, model)
        requests = requests_of(study, model, settings.generations)
        chosen = select_blocks(settings.blocks, names, "ablate.blocks")
        wanted = [
            {key: request[key] for key in ("request_hash", "model", "prompt_id", "seed")}
            | {"block": block, "block_type": block_type(block), "block_index": block_index(block)}
            | {"depth": names.index(block), "kind": kind, "ablated_steps": settings.steps}
            for block in chosen
            for kind in settings.kinds
            for request in requests
        ]
        if requests:
            order = ["depth", "kind", "prompt_id", "seed"]
            whole = pl.DataFrame(wanted, infer_schema_length=None)
            study.agree("ablate", file, table, whole.sort(order, maintain_order=True))
        check_range(study, "ablate", file, table, "latent_relative_l2", 0, float("inf"))
        if settings.features:
            check_range(study, "ablate", file, table, "feature_cosine_distance", 0, 2)
        if samples is not None:
            with study.noting("ablate", tar):
                check_ablated_pictures(study, file, tar, table, samples)


def check_ablated_pictures(
    study: Study, file: str, tar: str, table: pl.DataFrame, samples: list[dict[str, Any]]
) -> None:
    """The tar has the first run's own picture and one for each of its rows, which give the row's PSNR and SSIM."""
    pixels = {sample["__key__"]: picture_of(sample) for sample in samples}
    base = next((s for s in samples if s["json"]["kind"] == "none"), None)
    if base is None:
        raise InputError("lacks the picture that was made without ablation")
    request = base["json"]["request_hash"]
    rows = {f"{r['request_hash']}-{r['block']}-{r['kind']}": r for r in reversed(table.to_dicts())}
    of_request = [key for key, row in rows.items() if row["request_hash"] == request]
    study.same_rows(
        "ablate", tar, sorted(pixels), sorted([base["__key__"], *of_request]), "pictures of the table's first run"
    )
    measure = measures()
    for sample in samples:
        key, record = sample["__key__"], sample["json"]
        if key != f"{record['request_hash']}-{record['block']}-{record['kind']}":
            study.note("ablate", tar, f"picture {key} is not named by its record")
        if sample is base or key not in rows:
            continue
        unlike = [name for name, value in rows[key].items() if not alike(record.get(name), value)]
        unlike += [
            name for name, f in measure.items() if not alike(f(pixels[base["__key__"]], pixels[key]), rows[key][name])
        ]
        if unlike:
            problem = f"row {key}: column `{unlike[0]}` is not what its picture in the tar gives"
            study.note("ablate", file, problem)


def measures() -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Metrics of two pictures that need no model."""
    from ditscope.core.metrics import psnr, ssim

    return {"psnr_db": psnr, "ssim": ssim}


def picture_of(sample: dict[str, Any]) -> np.ndarray:
    """The pixels of a sample (height, width, 3)."""
    from ditscope.core.picture_file import pixels

    check_png(sample["png"], f"picture {sample['__key__']}")
    return pixels(sample["png"])
