"""Images and videos: sample one for each run of a prompt shard, in slices that an interrupted job resumes at."""

import hashlib
import logging
import time
from pathlib import Path

import polars as pl
from tqdm import tqdm

from ditscope.core.counts import check_complete
from ditscope.core.paths import InputFile, OutputFile, OutputFolder, check_apart
from ditscope.core.scratch import discard, unfinished
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.tables import write_table
from ditscope.generate.settings import Generate
from ditscope.generate.tables import IMAGES, TIMING
from ditscope.models.loading import Generator, load_generator
from ditscope.models.requests import generate_slice, runs_by_picture, with_runs
from ditscope.models.settings import Model
from ditscope.prompts.files import read_runs

log = logging.getLogger(__name__)


def generate(
    name: str,
    model: Model,
    prompts: InputFile,
    images: OutputFile,
    manifest: OutputFile | None = None,
    timing: OutputFile | None = None,
    settings: Generate = Generate(),
    partial: OutputFolder | None = None,
) -> None:
    """Sample every run of `prompts` (a table or a CSV) with one model into a WebDataset shard and its manifest.

    Runs that ask for the same picture share it: the shard has it once, with its `runs` in the json.
    Leaves `images` (tar of png, json, latent), `manifest` (table `images`, one row per run) and `timing` (table
    `images.timing`: seconds of each slice), the last two beside the first where no path is given. Finished slices
    in `partial` are reused.
    """
    manifest, timing = manifest or beside(images, ".parquet"), timing or beside(images, ".timing.parquet")
    check_apart([prompts], [images, manifest, timing])
    runs = read_runs(prompts)
    groups = runs_by_picture(name, model, runs)
    slices = [groups[i : i + settings.slice_size] for i in range(0, len(groups), settings.slice_size)]
    parts = unfinished(partial, images, {"model": model, "runs": runs, "settings": settings})
    loaded: Generator | None = None
    seconds = []
    for number, part_groups in enumerate(tqdm(slices, desc=name, unit="slice", disable=None)):
        part = parts / f"{number:05d}.tar"
        began = time.perf_counter()
        if not part.exists():
            loaded = loaded or load_generator(name, model)
            write_tar(with_runs(generate_slice(loaded, [group[0] for group in part_groups]), part_groups), part)
        cost = {"images": len(part_groups), "seconds": time.perf_counter() - began}
        seconds.append({"model": name, "slice": number} | cost)
        log.info("%s: slice %d of %d done", name, number + 1, len(slices))
    samples = [made for number in range(len(slices)) for made in read_tar(parts / f"{number:05d}.tar")]
    records = {}
    for made in samples:
        about = {"key": made["__key__"], "png_sha256": hashlib.sha256(made["png"]).hexdigest()}
        for run in made["json"]["runs"]:
            records[run["prompt_id"], run["seed"]] = made["json"] | run | about
    asked = [(run["prompt_id"], run["seed"]) for run in runs]
    check_complete(images, "runs (prompt_id, seed)", asked, records)
    write_tar(samples, images)
    write_table(pl.DataFrame([records[run] for run in asked], schema=IMAGES.schema()), manifest, IMAGES)
    write_table(pl.DataFrame(seconds, schema=TIMING.schema()), timing, TIMING)
    discard(parts)


def beside(tar: Path, suffix: str) -> Path:
    """A file beside a tar, of its whole name: `run.1` and `run.2` are two stems, `shard.tar` is the stem `shard`."""
    return tar.with_name(tar.name.removesuffix(".tar") + suffix)
