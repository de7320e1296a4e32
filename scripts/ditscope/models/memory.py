"""Host memory that a model's weights take, from its registry entry or its files; no torch, cheap at a parse."""

import json
from functools import cache
from math import ceil, prod
from pathlib import Path

from ditscope.models.folders import download_mark
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
    names = json.loads(index.read_text())
    pipeline = [key for key, what in names.items() if isinstance(what, list) and (with_t5 or what[1] != T5)]
    parts = [index.parent / key for key in pipeline] if index.name == "model_index.json" else [index.parent]
    files = [file for part in parts for file in sorted(part.glob("*.safetensors"))]
    return sum(max(f.stat().st_size, values(f) * itemsize) for f in files if not f.stem.endswith(VARIANTS))


def values(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
