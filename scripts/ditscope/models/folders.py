"""Model folders: where the weights of a registry entry lie, and whether they are whole and safe to read."""

import json
import os
import re
from pathlib import Path
from typing import Any

from ditscope.core.errors import MALFORMED, InputError
from ditscope.core.identity import digest, weights_id
from ditscope.models.registry import ANY, CAPTIONERS, FAMILIES, facts_of, is_generator
from ditscope.models.settings import Embedder, Model

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SHIPPED = dict.fromkeys(CAPTIONERS, "shapes-blip") | {"sd3": "shapes-sd3"}  # what to try instead; else shapes-flux
INDEX = "model_index.json"
MODULAR = "modular_model_index.json"
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)(?=[.-])")
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def weights_of(entry: Model) -> str:
    """What identifies a model's weights: its revision or its folder's digest, and that of each LoRA with its scale.

    Empty where some of them are not at hand.
    """
    own = weights_id(entry.source, entry.revision)
    fused = [(weights_id(file, ""), scale) for file, scale in entry.loras.items()]
    if not fused:
        return own
    return digest([own, fused], 64) if own and all(file for file, _ in fused) else ""


def config_at_hand(entry: Model, part: str = "transformer/config.json") -> dict[str, Any]:
    """A JSON file of a model's folder, by default its transformer's config; empty where it is not here."""
    file = source_folder(entry) / part
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a config in JSON ({error}); fetch or copy it again") from None
    return config if isinstance(config, dict) else {}


def resolve_source(name: str, entry: Model | Embedder, registry: str = "models") -> Path:
    """The local folder of a model: its own, or where a hub id was downloaded to; checked before anything loads."""
    folder = source_folder(entry)
    where = f"{registry}.{name}"
    if entry.revision and not download_mark(entry).is_file():
        shipped = SHIPPED.get(entry.family, "shapes-flux")
        instead = f", or try a model that ships: `--model {shipped}`" if registry == "models" else ""
        state = "are not all here" if folder.is_dir() else "are not here"
        raise InputError(
            f"{where}: the weights of {entry.source} {state}; `ditscope download {name}` gets them{instead}"
        )
    if not folder.is_dir():
        if HUB_ID.fullmatch(entry.source):
            raise InputError(
                f"{where}: no folder {folder}; if `{entry.source}` is a hub id, set `revision` to its commit "
                f"(`ditscope download {name}` says which), else `source` to an existing folder"
            )
        raise InputError(f"{where}.source: no folder {folder}; set `source` to an existing folder")
    check_model_folder(folder)
    if isinstance(entry, Model):
        check_pipeline(name, entry)
    return folder


def transformer_config(name: str, entry: Model) -> dict[str, Any]:
    """The diffusers config of a model's transformer, read without its weights."""
    config: dict[str, Any] = json.loads((resolve_source(name, entry) / "transformer" / "config.json").read_text())
    return config


def source_folder(entry: Model | Embedder) -> Path:
    """Where the weights lie: `source` itself, or resources/models/<id>@<revision> for a hub id."""
    if not entry.revision:
        return Path(entry.source).expanduser()
    return Path("resources/models") / f"{entry.source.replace('/', '--')}@{entry.revision}"


def download_mark(entry: Model | Embedder) -> Path:
    """The file of a downloaded model that comes last: where it is, the download is whole."""
    pipeline = isinstance(entry, Model) and is_generator(entry)
    return source_folder(entry) / ("model_index.json" if pipeline else "config.json")


def check_revision(where: str, revision: str) -> None:
    """Refuse a branch or a tag as the revision of a hub id: it moves, and results could not be made again.

    `where` names the key. An empty revision is left to whoever wants one.
    """
    if revision and not COMMIT.fullmatch(revision):
        raise InputError(
            f"{where}: `{revision}` is no commit, and may move; give the 40 hex digits of one, which the "
            "repository's page on the hub lists under `History`"
        )


def check_model_folder(folder: Path) -> None:
    """Refuse a missing folder, dangling links, pickled weights, lone variants and truncated safetensors."""
    if folder.is_file():
        raise InputError(
            f"{folder}: a single file; give the folder of a model in the format of diffusers or transformers "
            "(`from_single_file(...).save_pretrained(FOLDER)` of diffusers makes one of a checkpoint)"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; set the model's `source` to an existing one")
    files = sorted(folder.rglob("*"))
    for file in files:
        if file.is_symlink() and not file.exists():
            raise InputError(f"{file}: a link to {os.readlink(file)}, which is not there; copy or download the file")
    weights = [file for file in files if file.suffix == ".safetensors"]
    for file in files:
        if file.suffix in PICKLES:
            beside = any(other.parent == file.parent for other in weights)
            fix = "move it elsewhere, safetensors lie beside it" if beside else "convert the model to safetensors"
            raise InputError(f"{file}: pickled weights are refused; {fix}")
    for file in weights:
        check_safetensors(file)
        variant = VARIANT.search(file.name)
        if variant and not any(f.parent == file.parent and not VARIANT.search(f.name) for f in weights):
            plain = file.name.replace(f".{variant[1]}", "")
            raise InputError(
                f"{file}: only the variant `{variant[1]}` of these weights is here; rename the file to {plain} (in "
                f"index.json files too), or download {plain}; `dtype` says what weights are cast to"
            )
    if not weights:
        raise InputError(f"{folder}: holds no .safetensors weights")


def check_pipeline(name: str, entry: Model) -> None:
    """Refuse a generator's folder that is no pipeline of diffusers, one of another family, and too large pictures."""
    if not is_generator(entry):
        return
    folder, index = source_folder(entry), config_at_hand(entry, INDEX)
    if not index and (folder / MODULAR).is_file():
        raise InputError(
            f"models.{name}.source: {folder} is a modular pipeline ({MODULAR} alone), which has no `__call__` to "
            "watch; give the folder or hub id of a whole pipeline of the model"
        )
    if not index:
        alone = sorted(folder.glob("*.safetensors"))
        what = f"{alone[0].name} is a single-file checkpoint" if alone else "it is no pipeline of diffusers"
        raise InputError(
            f"models.{name}.source: {folder} has no {INDEX}; {what}: save the whole pipeline there with "
            "`from_single_file(...).save_pretrained(FOLDER)` of diffusers, or give its hub id"
        )
    wanted, pipeline = facts_of(entry.family).pipeline, index.get("_class_name")
    if wanted == ANY and not (index.get("transformer") or [None])[-1]:
        raise InputError(
            f"models.{name}.family: {folder} is a {pipeline}, which has no transformer; `{entry.family}` drives "
            "pipelines that denoise with a transformer"
        )
    if pipeline != wanted and wanted != ANY:
        fitting = [family for family, facts in FAMILIES.items() if facts.pipeline == pipeline]
        fix = f"set `family: {fitting[0]}`" if fitting else f"families: {', '.join(FAMILIES)}"
        raise InputError(f"models.{name}.family: {folder} is a {pipeline}, `{entry.family}` a {wanted}; {fix}")
    check_size(name, entry)


def check_size(name: str, entry: Model) -> None:
    """Refuse pictures that are larger than an SD3 transformer has places for."""
    config = config_at_hand(entry)
    most = config.get("pos_embed_max_size")
    channels = config_at_hand(entry, "vae/config.json").get("block_out_channels", [])
    if most and channels:
        pixels = most * config.get("patch_size", 2) * 2 ** (len(channels) - 1)
        for side in ("width", "height"):
            if getattr(entry, side) > pixels:
                raise InputError(
                    f"models.{name}.{side}: {getattr(entry, side)} is more than the {pixels} pixels that the model "
                    f"has places for (pos_embed_max_size {most}); take at most {pixels}"
                )


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file whose header and length do not agree."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if size >= 8 + length else None
            tensors = [tensor for key, tensor in (header or {}).items() if key != "__metadata__"]
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        except MALFORMED:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file (bad header); fetch or copy it again")
    if size != 8 + length + end:
        raise InputError(
            f"{file}: truncated safetensors ({size} bytes, its header says {8 + length + end}); copy it again"
        )
