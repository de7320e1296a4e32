"""Host memory that a model's weights take, from its registry entry or its files; no torch, cheap at a parse."""

import json
from functools import cache
from math import ceil, prod
from pathlib import Path

from ditscope.models.folders import INDEX, download_mark, source_folder
from ditscope.models.settings import Embedder, Model

MB = 1_000_000
T5, VARIANTS = "T5EncoderModel", (".fp16", ".bf16")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def host_memory_mb(entry: Model | Embedder, dtype: str = "") -> int:
    """Megabytes of a model's weights: the entry's `memory_mb`, else what its files hold in the type they are loaded as.

    Where a model is loaded as another `dtype` than its entry says, `memory_mb` grows with the bytes of a weight. Raises
    FileNotFoundError with the name of the index file for a hub model that is still to be downloaded.
    """
    own = entry.dtype if isinstance(entry, Model) else "float32"
    itemsize = BYTES[dtype or own]
    if entry.memory_mb or not entry.source:
        return entry.memory_mb * itemsize // BYTES[own]
    index, source = download_mark(entry), Path(entry.source)
    if not entry.revision and not index.is_file():  # of a family of the user's own: what its files take
        files = source.rglob("*") if source.is_dir() else [source]
        return ceil(sum(file.stat().st_size for file in files if file.is_file()) / MB)
    return ceil(weight_bytes(index, itemsize, getattr(entry, "use_t5", True)) / MB)


@cache
def weight_bytes(index: Path, itemsize: int, with_t5: bool = True) -> int:
    """Bytes of the weights beside an index file as values of `itemsize` bytes, or as stored where that is more.

    Of a diffusers folder the components that its index names, of any other all. Half-precision variants
    (`*.fp16.safetensors`) lie beside the weights that are loaded, and do not count.
    """
    parts = [index.parent / part for part in components(index, with_t5)] if index.name == INDEX else [index.parent]
    files = [file for part in parts for file in weights_in(part)]
    return sum(max(file.stat().st_size, values(file) * itemsize) for file in files)


def parameters(entry: Model) -> dict[str, float]:
    """Millions of parameters by component: of its files, where they are here, else as its entry says."""
    index = source_folder(entry) / INDEX
    if not index.is_file():
        return {part: n for part, n in entry.parameters.items() if entry.use_t5 or part != "text_encoder_3"}
    parts = {part: weights_in(index.parent / part) for part in components(index, entry.use_t5)}
    return {part: sum(map(values, files)) / 1e6 for part, files in parts.items() if files}


def components(index: Path, with_t5: bool = True) -> list[str]:
    """The components that a model_index.json names, some of which have weights."""
    names = json.loads(index.read_text())
    return [key for key, what in names.items() if isinstance(what, list) and (with_t5 or what[1] != T5)]


def weights_in(folder: Path) -> list[Path]:
    """The files of weights in a component's folder; half-precision variants lie beside those that are loaded."""
    return [file for file in sorted(folder.glob("*.safetensors")) if not file.stem.endswith(VARIANTS)]


def values(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
