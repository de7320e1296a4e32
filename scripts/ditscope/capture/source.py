"""Captures of the user's own: generation folders left elsewhere, and single .pt files of the original program."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditscope.capture.files import (
    DECODED,
    ORIGINAL_DECODE,
    generations_in,
    is_original,
    pt_files,
    read_metadata,
    step_file,
    write_metadata,
)
from ditscope.capture.tables import STATISTICS
from ditscope.capture.verify import verify
from ditscope.core.atomic import link_or_copy
from ditscope.core.errors import InputError, parsing
from ditscope.core.identity import file_digest
from ditscope.core.names import check_name
from ditscope.core.paths import OutputFolder
from ditscope.core.tables import write_table
from ditscope.core.tensor_files import save_tensors
from ditscope.models.block_names import known_blocks
from ditscope.models.settings import Model

KINDS = ("double", "joint", "single")


def import_captures(name: str, model: Model, source: Path, out: OutputFolder) -> None:
    """Bring captures of the user's own into the study as a capture set of the model `name`.

    `source` is a generation folder, a single .pt file of the original program, or a folder of these. Generations of
    `capture` are linked (copied, where the file system cannot) once they are found whole; a .pt file is unpacked into
    the same form: tensors a step, pooled statistics, metadata, and its pictures where they lie beside it. Raises
    InputError for what is no capture, damaged, or of another model.
    """
    generations = generations_in(source)
    if not generations:
        raise InputError(f"{source}: holds no capture; give generation folders or .pt files")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for position, generation in enumerate(generations):
        if is_original(generation):
            unpack(name, model, generation, partial, position)
            continue
        about = read_metadata(generation)
        if about["model"] != name:
            raise InputError(
                f"{generation}: captured from `{about['model']}`, not `{name}`; give it under its own name"
            )
        if problems := verify(generation):
            raise InputError(problems[0])
        shutil.copytree(generation, partial / generation.name, copy_function=link_or_copy)
    os.replace(partial, out)


def unpack(name: str, model: Model, generation: Path, out: Path, position: int) -> None:
    """Write a capture of the original program as a generation folder below `out`."""
    from ditscope.capture.load import load_single_file

    file = generation if generation.is_file() else pt_files(generation)[0]
    data = load_single_file(file)
    damaged = "not a capture of the original program ({}); give another file"
    with parsing(file, damaged, (TypeError, AttributeError)):
        tensors, about = tensors_of(data, name, model, file), metadata_of(data, name, file, position)
    check_name(f"{file}: generation_id", about["generation_id"])
    folder = out / about["generation_id"]
    if folder.exists():
        raise InputError(f"{file}: a second capture with the generation id {folder.name}; leave one out")
    write_generation(tensors, about, model, folder)
    if generation.is_dir():
        for picture in sorted(generation.glob("img_0.*")):
            link_or_copy(picture, folder / picture.name)
        if (decoded := generation / "intermediates" / DECODED["x0"]).is_dir():
            shutil.copytree(decoded, folder / "intermediates" / DECODED[ORIGINAL_DECODE], copy_function=link_or_copy)


def tensors_of(data: dict[str, Any], name: str, model: Model, file: Path) -> list[dict[str, Any]]:
    """Each step's tensors by their names in a step file, blocks in network order."""
    context = data["denoising_context"]
    blocks = {f"{kind}_block_{key.rpartition('_')[2]}": steps for kind in KINDS
              for key, steps in data.get(f"{kind}_blocks", {}).items()}  # fmt: skip
    order = known_blocks(model) or list(blocks)
    if other := [block for block in blocks if block not in order]:
        raise InputError(f"{file}: holds the block {other[0]}, which `{name}` has not; give it under its own name")
    steps: list[dict[str, Any]] = []
    for index, latents in enumerate(context["img_state"]):
        step: dict[str, Any] = {}
        for block in sorted(blocks, key=order.index):
            stored = blocks[block][index]
            if isinstance(stored, (tuple, list)):
                streams = zip(("img", "txt"), stored, strict=True)
                step |= {f"{block}.{stream}": tokens for stream, tokens in streams if tokens is not None}
            else:
                step[block] = stored
        steps.append(step | {"context.latents": latents, "context.pooled": context["y"][index]})
    return steps


def metadata_of(data: dict[str, Any], name: str, file: Path, position: int) -> dict[str, Any]:
    """What metadata.json says of a capture of the original program; what that did not record is empty."""
    context, about = data["denoising_context"], data.get("metadata", {})
    pairs = [tuple(map(float, pair)) for pair in context["timestep_pairs"]]
    sigmas = [first for first, _ in pairs] + [pairs[-1][1]]
    gid = str(about.get("generation_id") or file_digest(file, 40))
    run = {"prompt_id": gid, "seed": int(about.get("seed", 0)), "derived_seed": False}
    return run | {
        "generation_id": gid, "request_hash": file_digest(file), "model": name, "position": position,
        "prompt": str(about.get("prompt", "")), "negative_prompt": "", "runs": [run], "num_steps": len(pairs),
        "guidance": float(context.get("guidance") or 0), "sigmas": sigmas,
        "timesteps": [1000 * sigma for sigma in sigmas[:-1]], "captured_steps": list(range(len(pairs))),
        "store": "tensors", "txt_seq_len": int(context["txt_seq_len"][0]),
    }  # fmt: skip


def write_generation(steps: Sequence[dict[str, Any]], about: dict[str, Any], model: Model, folder: Path) -> None:
    """Write tensors, pooled statistics and metadata of a capture as `capture` does."""
    from ditscope.capture.statistics import Stream, arrays, pool_streams, statistics_table

    intermediates = folder / "intermediates"
    intermediates.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {}
    blocks = list(dict.fromkeys(key.partition(".")[0] for key in steps[0] if not key.startswith("context.")))
    order, text = known_blocks(model) or blocks, about["txt_seq_len"]
    pooled = []
    for index, tensors in enumerate(steps):
        streams: list[Stream] = []
        for key, tensor in tensors.items():
            block, _, stream = key.partition(".")
            if block != "context":
                parts = {stream: tensor} if stream else {"txt": tensor[:, :text], "img": tensor[:, text:]}
                streams += [(index, block, of, tokens) for of, tokens in parts.items()]
        pooled += [arrays(part, about["model"]) for part in pool_streams(streams)]
        path = intermediates / step_file(index)
        save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        files[path.name] = {"sha256": file_digest(path, 256), "bytes": path.stat().st_size}
    table = statistics_table(pooled, about, about["sigmas"], {block: i for i, block in enumerate(order)})
    write_table(table, folder / "statistics.parquet", STATISTICS)
    write_metadata(about | {"captured_blocks": blocks, "files": files, "decoded": []}, intermediates)
