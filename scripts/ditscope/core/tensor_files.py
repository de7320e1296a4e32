"""Writing tensors to safetensors files that a group can read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ditscope.core.atomic import give_usual_mode, replacing


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors, laid out contiguously, to one file that has the mode of any other new file."""
    with replacing(path) as partial:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        give_usual_mode(partial)
