"""The tensors of a capture: one safetensors file a step, written as the step ends and read lazily.

A step file holds, each in the type that the model computes in:
  <block>.img, <block>.txt   tokens of a double or joint block (batch, tokens, width); a block without text has no .txt
  <block>                    tokens of a single block, text first
  <block>.prediction         the velocity that the model would predict if the block were its last, after guidance
  context.latents, context.velocity, context.pooled, context.temb
Under classifier-free guidance tokens, pooled and temb have a batch of two: conditional, then unconditional.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ditscope.capture_layout import intermediates_of, read_metadata
from ditscope.errors import InputError
from ditscope.identity import file_digest
from ditscope.models import check_safetensors
from ditscope.patterns import block_index, block_type

CONTEXT = {
    "y": "context.pooled",
    "img_state": "context.latents",
    "velocity": "context.velocity",
    "temb": "context.temb",
}


class Steps(Sequence):
    """One tensor, or one tuple of tensors, for each captured step; read from its mapped file when it is asked for."""

    def __init__(self, files: Sequence[Path], keys: tuple[str | None, ...]) -> None:
        self.files, self.keys = files, keys

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with safe_open(self.files[index], "pt") as file:
            tensors = tuple(file.get_tensor(key) if key else None for key in self.keys)
        return tensors if len(tensors) > 1 else tensors[0]


def write_step(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Write one step's tensors; what metadata.json says of the file: its sha256 and bytes."""
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return {"sha256": file_digest(path, 256), "bytes": path.stat().st_size}


def load_capture(path: Path | str) -> dict[str, Any]:
    """Load a capture: a generation folder, the `intermediates` folder in it, or a single .pt file.

    Returns `double_blocks` and `joint_blocks` (`block_i`: a sequence of (img, txt), one a captured step),
    `single_blocks` (`block_i`: a sequence of tensors, text first), `predictions` (block name: a sequence of
    velocities), `denoising_context` (`y`, `img_state`, `velocity`, `temb` a step; `timestep_pairs`, `txt_seq_len`,
    `guidance`) and `metadata`; kinds that the capture lacks are absent. Tensors of a folder are mapped when asked for.
    """
    path = Path(path)
    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True)
    folder = intermediates_of(path)
    metadata = read_metadata(folder)
    if single := sorted(folder.glob("capture_*.pt")):
        return torch.load(single[0], map_location="cpu", weights_only=True)
    files = [folder / name for name in metadata["files"]]
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: missing from the capture; capture it again")
        check_safetensors(file)
    with safe_open(files[0], "pt") as first:
        keys = set(first.keys())
    capture: dict[str, Any] = {}
    for block in metadata["captured_blocks"]:
        of_kind, name = f"{block_type(block)}_blocks", f"block_{block_index(block)}"
        if block in keys:
            capture.setdefault(of_kind, {})[name] = Steps(files, (block,))
        elif f"{block}.img" in keys:
            text = f"{block}.txt" if f"{block}.txt" in keys else None
            capture.setdefault(of_kind, {})[name] = Steps(files, (f"{block}.img", text))
        if f"{block}.prediction" in keys:
            capture.setdefault("predictions", {})[block] = Steps(files, (f"{block}.prediction",))
    sigmas = metadata["sigmas"]
    context: dict[str, Any] = {name: Steps(files, (key,)) for name, key in CONTEXT.items()}
    context |= {
        "timestep_pairs": [(sigmas[i], sigmas[i + 1]) for i in metadata["captured_steps"]],
        "txt_seq_len": [metadata["txt_seq_len"]] * len(files),
        "guidance": metadata["guidance"],
    }
    return capture | {"denoising_context": context, "metadata": metadata}


def in_memory(capture: Any) -> Any:
    """The nested structure of `load_capture` as plain lists, tuples and tensors of their own."""
    if isinstance(capture, Tensor):
        return capture.clone()  # a mapped tensor's storage is the whole file
    if isinstance(capture, Mapping):
        return {key: in_memory(value) for key, value in capture.items()}
    if isinstance(capture, tuple):
        return tuple(in_memory(value) for value in capture)
    return [in_memory(value) for value in capture] if isinstance(capture, (Steps, list)) else capture


def verify_capture(path: Path | str) -> int:
    """Check every tensor file against the metadata's sha256; the number of files. Raises InputError, naming one."""
    folder, files = intermediates_of(path), read_metadata(path)["files"]
    for name, expected in files.items():
        if not (folder / name).exists() or file_digest(folder / name, 256) != expected["sha256"]:
            raise InputError(f"{folder / name}: missing, or not the file that was captured; capture it again")
    return len(files)


def estimate_step_bytes(
    transformer: nn.Module,
    blocks: Mapping[str, nn.Module],
    latents: Sequence[int],
    text_tokens: int,
    *,
    branches: int,
    store_tensors: bool,
    predictions: bool,
) -> int:
    """Bytes of one step's file, headers aside, from shapes alone.

    `latents` is (batch, channels, height, width), `branches` 2 under classifier-free guidance. Counts exactly what
    the module docstring lists.
    """
    config = transformer.config
    batch, channels, height, width = latents
    latent_numbers = batch * channels * height * width
    patch = config.in_channels * config.patch_size**2  # latent numbers that one image token carries
    image_tokens = channels * height * width // patch
    numbers = 2 * latent_numbers + branches * batch * (config.pooled_projection_dim + transformer.inner_dim)
    for block in blocks.values():
        text = 0 if getattr(block, "context_pre_only", False) else text_tokens
        numbers += branches * batch * (image_tokens + text) * transformer.inner_dim * store_tensors
        numbers += latent_numbers * predictions
    return numbers * transformer.dtype.itemsize
