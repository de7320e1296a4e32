"""Benchmark: time, weigh and sample a model under a scheme, and judge its images against a reference."""

from collections.abc import Sequence
from pathlib import Path

from ditscope.benchmark.images import check_batch, check_made_with, is_of_a_set, read_images
from ditscope.benchmark.quality import quality
from ditscope.benchmark.quality_of_sets import check_calibration, quality_of_sets
from ditscope.benchmark.run import Case, case_of, measure, wanted_runs
from ditscope.benchmark.settings import Benchmark
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, InputFolder, OutputFolder
from ditscope.core.tables import read_table
from ditscope.models.settings import Embedder, Model, Scheme


def benchmark(
    name: str,
    model: Model,
    schemes: dict[str, Scheme],
    embedders: dict[str, Embedder],
    output_dir: OutputFolder,
    prompts: Sequence[InputFile] = (Path("all_prompts.csv"),),
    config: str = "base",
    compile: str = "eager",
    plan: InputFile | None = None,
    calibration: InputFolder | None = None,
    reference_dir: InputFolder | None = None,
    settings: Benchmark = Benchmark(),
) -> None:
    """Time, weigh and sample a model under the scheme `config`, and judge its images against `reference_dir`.

    Leaves in `output_dir`, under `<config>-<compile>`: `.timing.parquet` (table `benchmark.run.timing`, a row per batch
    size: latency and memory), `.parquet` (table `benchmark.run`: what the scheme is and weighs), `.tar` (the images of
    the first `num_images` runs of `prompts`: tables, or CSVs whose prompts repeat with new seeds where they are fewer),
    `.flat.parquet` (table `benchmark.run.flat`: the noise on a flat field, a row per step count and seed).

    `config` is a scheme of the config, or fp32, fp16 or bf16: the base in that type; `calibration` the set that it is
    solved from, where it needs one and names no folder of its own. `reference_dir` holds such files
    of the base in eager mode, or is a calibration set or its folder of images, which are compared as a set; with it,
    and unless `skip_metrics`, `quality.parquet` is left as well.
    """
    case = case_of(name, model, schemes, config, compile, plan, settings, calibration)
    runs = wanted_runs(prompts, settings)
    if reference_dir is None or settings.skip_metrics:
        measure(case, runs, output_dir)
        return
    is_set, in_place = is_of_a_set(reference_dir), reference_dir.resolve() == output_dir.resolve()
    if is_set:
        check_calibration(reference_dir, name, case.model, settings)
    elif not (case.is_base and in_place):
        check_reference(reference_dir, case)
    measure(case, runs, output_dir)
    run, out = output_dir / f"{case.stem}.parquet", output_dir / "quality.parquet"
    if is_set:
        quality_of_sets(run, reference_dir, out, embedders, settings)
    else:
        theirs = sorted(reference_dir.glob("*-eager.parquet"))  # the first base among them is the reference
        quality(list(dict.fromkeys([run, *theirs] if in_place else [*theirs, run])), out, embedders, settings)


def check_reference(folder: Path, case: Case) -> None:
    """Refuse, before work, a reference of another model, size, steps, guidance or batch, or with a damaged image."""
    tables = {file: read_table(file, "benchmark.run").row(0, named=True) for file in folder.glob("*-eager.parquet")}
    base = next((file for file, run in tables.items() if run["kind"] == "base"), None)
    if base is None:
        raise InputError(f"{folder}: no run of the base scheme in eager mode to compare with; benchmark it first")
    check_made_with(tables[base], case.name, case.model, base)
    check_batch(tables[base], case.quality_batch, base)
    read_images(base)
