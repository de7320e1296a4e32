"""The images that a benchmark run leaves beside its table."""

import logging
from pathlib import Path
from typing import Any

from ditscope.benchmark.settings import Benchmark
from ditscope.core.errors import InputError, again
from ditscope.core.picture_file import check_sums
from ditscope.core.shards import samples_of_runs
from ditscope.models.settings import Model

log = logging.getLogger(__name__)

Images = dict[tuple[str, int], dict]  # WebDataset samples by (prompt_id, seed)
FLOOR = "floor.png"  # of the eager base: the same picture, sampled in another batch
MADE_WITH = ("steps", "guidance", "width", "height")  # the same, and of one model, in images that are compared


def read_images(table: Path) -> Images:
    """The WebDataset samples beside a run's table by (prompt_id, seed). Raises InputError where one is damaged."""
    images: Images = {}
    for sample in samples_of_runs(table.with_suffix(".tar")):
        where = f"{table.with_suffix('.tar')}: the image `{sample['__key__']}`"
        verified(sample["png"], where, again(table, "run the benchmark again"))
        images[sample["json"]["prompt_id"], sample["json"]["seed"]] = sample
    return images


def verified(png: bytes, where: str, fix: str) -> bytes:
    """The bytes of a PNG whose checksums are right; raises InputError, with what to do, for a damaged one."""
    try:
        check_sums(png)
    except InputError as error:
        raise InputError(f"{where} is damaged ({error}); {fix}") from None
    return png


def is_of_a_set(folder: Path) -> bool:
    """Whether a reference folder is a calibration set, or the folder of images of one, and no benchmark's."""
    return (folder / "manifest.json").exists() or (
        (folder.parent / "manifest.json").exists() and not any(folder.glob("*-eager.parquet"))
    )


def check_made_with(made: dict[str, Any], name: str, model: Model, where: Path) -> None:
    """Refuse a reference of another model, step count, guidance or size: metrics would measure that.

    What a foreign manifest does not say (None) is not compared, and that is said.
    """
    for key, wanted in {"model": name, **{key: getattr(model, key) for key in MADE_WITH}}.items():
        if made[key] is None:
            log.warning("%s does not say its %s, which is not compared with this run's %s", where, key, wanted)
        elif made[key] != wanted:
            raise InputError(
                f"{where}: the reference was made with {key} {made[key]}, this run has {wanted}; use the same "
                "settings, or --skip-metrics"
            )


def check_batch(made: dict[str, Any], batch: int | None, where: Path) -> None:
    """Refuse a reference whose images were sampled in other batches: a difference would be the batch's as well."""
    if made.get("quality_batch") != batch:
        raise InputError(
            f"{where}: the reference's images were sampled in batches of {made.get('quality_batch')}, this run's in "
            f"batches of {batch}; make both with one `quality_batch`, or --skip-metrics"
        )


def check_kid_subset(settings: Benchmark, images: int, where: Path | str) -> None:
    """Refuse subsets for the kernel distance that are larger than the set of images they are drawn from."""
    if settings.kid_subset_size > images:
        raise InputError(
            f"benchmark.kid_subset_size: {settings.kid_subset_size} is more than the {images} images of {where}; "
            "make it smaller"
        )
