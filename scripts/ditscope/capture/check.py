"""What `ditscope doctor` checks of the stage `capture`."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.capture.files import (
    IMAGE_FORMATS,
    drawn_files,
    film_file,
    generation_name,
    has_frames,
    intermediates_of,
    is_video,
    read_metadata,
)
from ditscope.capture.tables import FRAMES, PLACE, STATISTICS
from ditscope.core.checksums import files_of
from ditscope.core.errors import InputError
from ditscope.core.identity import BASE, file_digest
from ditscope.core.patterns import block_index, block_type, select_blocks, select_indices
from ditscope.core.picture_file import check_mp4
from ditscope.core.study import Study, alike, check_picture
from ditscope.generate.check import ENTRY, RUN, check_requests, image_rows, read_by, request_of
from ditscope.models.block_names import block_names
from ditscope.models.folders import check_safetensors, weights_of
from ditscope.models.loading import settled
from ditscope.prompts.check import prompt_tables

TABLES = {table.stem: table for table in (STATISTICS, FRAMES)}
STATISTIC = 1e-4  # float32 sums of a GPU against those of a CPU


def requests_of(study: Study, model: str, count: int) -> list[dict[str, Any]]:
    """What the first `count` (0: all) runs of the prompt shards ask of a model, with their request hashes."""
    entry = settled(study.config.models[model])
    runs = [row for table in prompt_tables(study) for row in read_by(entry, table.select(RUN)).to_dicts()]
    common = {"model": model, "scheme": BASE, "weights": weights_of(entry)}
    common |= {key: getattr(entry, key) for key in ENTRY}
    return [run | common | {"request_hash": request_of(entry, run | common)} for run in runs[: count or None]]


def blocks_of(study: Study, model: str) -> list[str]:
    """Every block of a model in the order of its network."""
    return study.once(f"blocks of {model}", lambda: block_names(model, study.config.models[model]))


def check_capture(study: Study) -> None:
    """Every capture set has its generations, each complete and made as its model's images are."""
    images = image_rows(study)
    for output in study.targets("capture"):
        folder = study.results / output
        if not folder.is_dir():
            continue
        _, model, name = output.split("/")
        if model in study.config.capture.sources:  # checked as they were brought in
            continue
        settings = study.config.capture.sets[name]
        wanted = requests_of(study, model, settings.generations)
        hashes: list[str] = []
        for stray in files_of(folder):
            if stray.parent == folder:
                study.note("capture", stray.relative_to(study.results).as_posix(), "not a file of a capture", output)
        for generation in sorted(p for p in folder.iterdir() if p.is_dir()):
            file = generation.relative_to(study.results).as_posix()
            with study.noting("capture", file, output):
                metadata = read_metadata(generation)
                hashes.append(metadata["request_hash"])
                check_metadata(study, file, metadata, settings, images.get(model, {}), output)
                check_generation(study, generation, metadata, model, output)
                if generation.name != generation_name(metadata["request_hash"], settings):
                    study.note("capture", file, "not named by its request and settings", output)
                asked = [r for r in wanted if r["request_hash"] == metadata["request_hash"]]
                runs = [{key: r[key] for key in ("prompt_id", "seed", "derived_seed")} for r in asked]
                told = {key: metadata.get(key) for key in RUN}
                if asked and (metadata["runs"] != runs or told != {key: asked[0][key] for key in RUN}):
                    study.note("capture", file, "its runs are not those of the prompt shards", output)
        distinct = {request["request_hash"] for request in wanted}
        if wanted and len(hashes) != len(distinct):
            study.note("capture", output, f"holds {len(hashes)} generations of {len(distinct)}")
        if wanted and (unknown := set(hashes) - distinct):
            study.note("capture", output, f"captured {len(unknown)} requests that nothing asked for")
        if model in images and (unknown := set(hashes) - images[model].keys()):
            study.note("capture", output, f"captured {len(unknown)} requests that no image of {model} has")


def check_metadata(
    study: Study, file: str, metadata: dict[str, Any], settings: Any, images: dict[str, dict[str, Any]], output: str
) -> None:
    """metadata.json says what the config asks for, and of the request what its image's row says."""
    model = metadata["model"]
    entry = study.config.models[model]
    sigmas = metadata["sigmas"]
    wanted = {
        "num_steps": entry.steps,
        "generation_id": generation_name(metadata["request_hash"], settings),
        "captured_steps": select_indices(settings.steps, entry.steps, "steps"),
        "captured_blocks": select_blocks(settings.blocks, blocks_of(study, model), "blocks"),
        "store": settings.store,
        "decoded": list(settings.decode) if settings.should_decode_intermediates else [],
    }
    image = images.get(metadata["request_hash"], {})
    wanted |= {key: image[key] for key in ("prompt_tokens", "prompt_truncated") if key in image}
    study.same("capture", file, metadata, wanted, output)
    falling = all(after < before for before, after in pairwise(sigmas))
    if len(sigmas) != entry.steps + 1 or sigmas[-1] != 0 or not falling:
        study.note("capture", file, "its sigmas are not one per step, falling to 0", output)
    told = metadata["timesteps"]
    if entry.family != "dit" and not alike(told, [1000 * sigma for sigma in sigmas[:-1]]):
        study.note("capture", file, "its timesteps are not 1000 sigma", output)
    positions = study.once(f"positions {output}", lambda: positions_of(study, output))
    if len(positions) > 1 and sorted(positions.values()) != list(range(len(positions))):
        study.note("capture", file, "the positions of its set are not 0, 1, 2, ...", output)
    if len(positions) == 1 and metadata["position"] != 0:
        study.note("capture", file, f"its position is {metadata['position']}, and it is the only one", output)


def positions_of(study: Study, output: str) -> dict[str, int]:
    """The place of each generation of a set among its runs; without those whose metadata is damaged."""
    positions: dict[str, int] = {}
    for generation in sorted((study.results / output).iterdir()):
        with study.quiet().noting("capture", output):
            if generation.is_dir():
                positions[generation.name] = read_metadata(generation)["position"]
    return positions


def check_generation(study: Study, folder: Path, metadata: dict[str, Any], model: str, output: str) -> None:
    """One captured run: its tensors by digest, its decoded pictures, its statistics, its settings."""
    inside, base = intermediates_of(folder), folder.relative_to(study.results).as_posix()
    check_requests(study, "capture", base, [metadata], model, output)
    whole = True
    for name, entry in metadata["files"].items():
        file = inside / name
        where = file.relative_to(study.results).as_posix()
        before = len(study.findings)
        with study.noting("capture", where, output):
            if not file.exists():
                raise InputError("missing from the capture")
            if file.suffix == ".safetensors":
                check_safetensors(file)
            if file.stat().st_size != entry["bytes"] or file_digest(file, 256) != entry["sha256"]:
                raise InputError("not the file that was captured (sha256)")
        whole = whole and len(study.findings) == before
    pictures = drawn_files(folder, metadata)
    finals = [file for kind in IMAGE_FORMATS if (file := folder / f"img_0.{kind}").exists()]
    if not finals:
        study.note("capture", f"{base}/img_0.jpg", "missing", output)
    pictures += [film_file(file) for file in finals if is_video(metadata)]
    for image in [*pictures, *finals]:
        where = image.relative_to(study.results).as_posix()
        with study.noting("capture", where, output):
            if not image.exists():
                raise InputError("missing from the capture")
            if image.suffix == ".mp4":
                check_film(image, metadata["frames"])
            else:
                check_picture(image)
    tables = {folder / f"{name}.parquet" for name in ("statistics", *(["frames"] if has_frames(metadata) else []))}
    known = {inside / name for name in metadata["files"]} | {*pictures, *finals, *tables}
    for file in files_of(folder):
        if file not in known and not file.name.startswith("metadata"):
            where = file.relative_to(study.results).as_posix()
            study.note("capture", where, "not among the files of metadata.json", output)
    read = {}
    for path in sorted(tables, reverse=True):
        name = path.relative_to(study.results).as_posix()
        if not path.exists():
            study.note("capture", name, "missing", output)
        read[path.stem] = study.table("capture", name, TABLES[path.stem].name, output)
    table, frames = read[STATISTICS.stem], read.get(FRAMES.stem)
    if table is not None:
        check_statistics(study, f"{base}/statistics.parquet", table, metadata, folder if whole else None, output)
        if frames is not None:
            check_frames(study, f"{base}/frames.parquet", frames, table, metadata, folder if whole else None, output)


def check_film(path: Path, frames: int) -> None:
    """Refuse a film that is not whole, or has not as many frames as the capture says."""
    from imageio_ffmpeg import count_frames_and_secs

    check_mp4(path.read_bytes())
    if (count := count_frames_and_secs(path)[0]) != frames:
        raise InputError(f"a film of {count} frames, and of {frames} in the metadata")


def check_statistics(
    study: Study, file: str, table: pl.DataFrame, metadata: dict[str, Any], folder: Path | None, output: str
) -> None:
    """Statistics cover every captured step and block, and are those of the stored tensors, where there are any."""
    blocks = {(step, block) for step in metadata["captured_steps"] for block in metadata["captured_blocks"]}
    rows = set(table.select("step", "block").rows())
    study.same_rows("capture", file, sorted(rows), sorted(blocks), "steps and blocks", output)
    names, runs = blocks_of(study, metadata["model"]), metadata["runs"]
    places = table.select("step", "block").rows()
    norms = table["token_norms"]
    if len(table) % len(runs):
        study.note("capture", file, f"has not as many rows for each of its {len(runs)} runs", output)
    elif set(places) <= blocks:
        wanted = pl.DataFrame(
            {
                "generation_id": [metadata["generation_id"]] * len(table),
                "prompt_id": [run["prompt_id"] for run in runs for _ in range(len(table) // len(runs))],
                "model": [metadata["model"]] * len(table),
                "sigma": [metadata["sigmas"][step] for step, _ in places],
                "block_type": [block_type(block) for _, block in places],
                "block_index": [block_index(block) for _, block in places],
                "depth": [names.index(block) for _, block in places],
                "tokens": norms.list.len(),
                "mean_token_norm": norms.list.mean(),
            }
        )
        study.agree("capture", file, table, wanted, output, STATISTIC)
    if metadata["store"] == "tensors" and folder is not None:
        wanted = study.once(f"statistics of {file}", lambda: stored_statistics(folder))
        with study.noting("capture", file, output):
            study.agree("capture", file, table, pl.concat([wanted] * len(runs)), output, STATISTIC, STATISTIC)


def check_frames(
    study: Study,
    file: str,
    frames: pl.DataFrame,
    table: pl.DataFrame,
    metadata: dict[str, Any],
    folder: Path | None,
    output: str,
) -> None:
    """Statistics of frames are those of the image tokens of `table`, and of the stored tensors where there are any."""
    images, count = table.filter(stream="img"), metadata["latent_frames"]
    every_norm = images["token_norms"].explode().to_numpy().astype(float)
    if len(every_norm) % max(1, len(images) * count):
        return study.note("capture", file, f"its image tokens are not of {count} frames", output)
    norms = every_norm.reshape(len(images) * count, -1)
    every = [row for row in range(len(images)) for _ in range(count)]
    wanted = images.select(*PLACE, "half")[every].with_columns(
        frame=pl.Series([*range(count)] * len(images)),
        tokens=pl.Series([norms.shape[1]] * len(norms)),
        mean_token_norm=pl.Series(norms.mean(axis=1)),
    )
    study.agree("capture", file, frames, wanted, output, STATISTIC)
    if len(frames) != len(wanted):
        return
    mean, rms, std, absmax = (frames[name].to_numpy().reshape(-1, count) for name in ("mean", "rms", "std", "absmax"))
    whole = {"mean": mean.mean(1), "rms": (rms**2).mean(1) ** 0.5, "absmax": absmax.max(1)}
    whole |= {"std": ((std**2).mean(1) + mean.var(1)) ** 0.5}
    together = images.select(*whole).rename({name: f"{name} of all frames" for name in whole})
    given = pl.DataFrame({f"{name} of all frames": values for name, values in whole.items()})
    study.agree("capture", file, given, together, output, STATISTIC, STATISTIC)
    if (frames["cosine_to_previous"].is_null() != (frames["frame"] == 0)).any() or not within(frames):
        study.note("capture", file, "its cosines are not between -1 and 1, for all frames but the first", output)
    if metadata["store"] == "tensors" and folder is not None:
        stored = study.once(f"statistics of {file}", lambda: stored_frames(folder, count))
        of_runs = pl.concat([stored] * len(metadata["runs"]))
        study.agree("capture", file, frames, of_runs, output, STATISTIC, STATISTIC)


def within(frames: pl.DataFrame) -> bool:
    """Whether the cosines of a table of frames are ones."""
    return bool(frames["cosine_to_previous"].drop_nulls().is_between(-1 - STATISTIC, 1 + STATISTIC).all())


def stored_frames(folder: Path, count: int) -> pl.DataFrame:
    """Statistics of frames of a generation's stored tensors, in the order of its table."""
    from ditscope.capture.load import load_capture, tokens
    from ditscope.capture.statistics import frames_table, pool_frames

    capture = load_capture(folder)
    metadata, parts = capture["metadata"], []
    for position, step in enumerate(metadata["captured_steps"]):
        for block in metadata["captured_blocks"]:
            image = tokens(capture, block, position).get("img")
            if image is not None:
                parts.append(((step, block, ""), image.shape[1], pool_frames(image, count)))
    table = frames_table(parts, metadata, metadata["sigmas"], metadata["captured_blocks"])
    return table.drop(*PLACE, "half", "frame")


def stored_statistics(folder: Path) -> pl.DataFrame:
    """Statistics of a generation's stored tensors, in the order of its table."""
    from ditscope.capture.load import load_capture, tokens
    from ditscope.capture.statistics import HALVES, STATISTICS, pool

    capture = load_capture(folder)
    metadata = capture["metadata"]
    rows: list[dict[str, Any]] = []
    for position, step in enumerate(metadata["captured_steps"]):
        for block in metadata["captured_blocks"]:
            for stream, tensor in sorted(tokens(capture, block, position).items()):
                pooled = [pool(half[None]) for half in tensor] if isinstance(tensor, list) else [pool(tensor)]
                each = [
                    (v, n) for values, norms in pooled for v, n in zip(values.tolist(), norms.tolist(), strict=True)
                ]
                for half, (numbers, lengths) in zip(HALVES, each, strict=False):
                    place = {"step": step, "block": block, "stream": stream, "half": half, "tokens": len(lengths)}
                    rows.append(place | dict(zip(STATISTICS, numbers, strict=True)) | {"token_norms": lengths})
    return pl.DataFrame(rows, infer_schema_length=None)
