"""The tensors of a capture: one safetensors file per step, written as the step ends and read lazily.

A step file holds, each in the type that the model computes in:
  <block>.img, <block>.txt   tokens of a double or joint block (batch, tokens, width); a block without text has no .txt
  <block>                    tokens of a single block, text first
  <block>.prediction         the velocity that the model would predict if the block were its last, after guidance
  embedding.img, .txt        tokens that the network's first block is given, where that block is captured
  context.latents, context.velocity, context.pooled, context.temb
Under classifier-free guidance tokens, pooled and temb have a batch of two: conditional, then unconditional.

Of a model of the family `dit` every block has its streams, <block>.img, .txt, or .joint where their places in it are
not known; embedding has the streams of the first block; there is no pooled and no temb. Where the halves of guidance
have texts of unequal length, <block>.txt is the conditional half alone and <block>.txt.uncond the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, overload

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ditscope.capture.files import EMBEDDING, intermediates_of, read_metadata
from ditscope.core.errors import InputError, parsing
from ditscope.core.patterns import block_index, block_type
from ditscope.models.folders import check_safetensors

CONTEXT = {
    "y": "context.pooled",
    "img_state": "context.latents",
    "velocity": "context.velocity",
    "temb": "context.temb",
}


class Steps(Sequence):
    """One tensor, or one tuple of tensors, for each captured step; read from its mapped file when it is asked for."""

    def __init__(self, files: Sequence[Path], keys: tuple[str | tuple[str, ...] | None, ...]) -> None:
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
            tensors = tuple(read(file, key) for key in self.keys)
        return tensors if len(tensors) > 1 else tensors[0]


def read(file: Any, key: str | tuple[str, ...] | None) -> Any:
    """The tensor of a key, a list of those of several keys, or None."""
    return file.get_tensor(key) if isinstance(key, str) else [file.get_tensor(one) for one in key] if key else None


def streams_in(keys: set[str], block: str) -> tuple[str | tuple[str, ...] | None, ...]:
    """The keys of a block's image and text tokens, and of its joint ones where it has those."""
    names = [f"{block}.{stream}" for stream in ("img", "txt", "joint")]
    found = tuple(
        (name, f"{name}.uncond") if f"{name}.uncond" in keys else name if name in keys else None for name in names
    )
    return found if found[-1] else found[:-1]


def load_capture(path: Path | str) -> dict[str, Any]:
    """Load a capture: a generation folder, the `intermediates` folder in it, or a single .pt file.

    Returns `double_blocks` and `joint_blocks` (`block_i`: a sequence of (img, txt), one a captured step),
    `single_blocks` (`block_i`: a sequence of tensors, text first), `embedding` (a sequence of (img, txt), what the
    first block is given), `predictions` (block name: a sequence of velocities), `denoising_context` (`y`, `img_state`,
    `velocity`, `temb` a step; `timestep_pairs`, `txt_seq_len`, `guidance`) and `metadata`; kinds that the capture lacks
    are absent. Tensors of a folder are mapped when asked for.
    """
    path = Path(path)
    if path.is_file():
        return load_single_file(path)
    folder = intermediates_of(path)
    metadata = read_metadata(folder)
    if single := sorted(folder.glob("capture_*.pt")):
        return load_single_file(single[0])
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
        elif any(streams := streams_in(keys, block)):
            capture.setdefault(of_kind, {})[name] = Steps(files, streams)
        if f"{block}.prediction" in keys:
            capture.setdefault("predictions", {})[block] = Steps(files, (f"{block}.prediction",))
    if any(streams := streams_in(keys, EMBEDDING)):
        capture["embedding"] = Steps(files, streams)
    sigmas = metadata["sigmas"]
    context: dict[str, Any] = {name: Steps(files, (key,)) for name, key in CONTEXT.items() if key in keys}
    context |= {
        "timestep_pairs": [(sigmas[i], sigmas[i + 1]) for i in metadata["captured_steps"]],
        "txt_seq_len": [metadata["txt_seq_len"]] * len(files),
        "guidance": metadata["guidance"],
    }
    return capture | {"denoising_context": context, "metadata": metadata}


def load_single_file(path: Path) -> dict[str, Any]:
    """The nested structure in a .pt file, of ditscope or of the original program; refused where there is none."""
    unpickling = (RuntimeError, UnpicklingError, AttributeError, TypeError, AssertionError, ImportError)
    with parsing(path, "truncated, or no capture of tensors alone ({}); copy it again", unpickling):
        data = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(data, dict) or "denoising_context" not in data:
        raise InputError(f"{path}: holds no capture (no key `denoising_context`); give another file")
    return data


def in_memory(capture: Any) -> Any:
    """The nested structure of `load_capture` as plain lists, tuples and tensors of their own."""
    if isinstance(capture, Tensor):
        return capture.clone()  # a mapped tensor's storage is the whole file
    if isinstance(capture, Mapping):
        return {key: in_memory(value) for key, value in capture.items()}
    if isinstance(capture, tuple):
        return tuple(in_memory(value) for value in capture)
    return [in_memory(value) for value in capture] if isinstance(capture, (Steps, list)) else capture


def step_layout(
    transformer: nn.Module,
    blocks: Mapping[str, nn.Module],
    latents: Sequence[int],
    text_tokens: int,
    *,
    branches: int,
    store_tensors: bool,
    predictions: bool,
    embedding: bool,
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in one step's file, in the order in which a forward pass makes them.

    `latents` is (batch, channels, height, width), `branches` 2 under classifier-free guidance; `embedding` where the
    first block's input is kept. What the module docstring lists, from shapes alone.
    """
    config = transformer.config
    batch, channels, height, width = latents
    patch = config.in_channels * config.patch_size**2  # latent numbers that one image token carries
    image_tokens, rows = channels * height * width // patch, branches * batch

    def tokens(count: int) -> tuple[int, ...]:
        return rows, count, transformer.inner_dim

    layout: dict[str, tuple[int, ...]] = {}
    if store_tensors and embedding:
        layout |= {"embedding.img": tokens(image_tokens), "embedding.txt": tokens(text_tokens)}
    for name, block in blocks.items():
        if store_tensors and block_type(name) == "single":
            layout[name] = tokens(text_tokens + image_tokens)
        elif store_tensors:
            layout[f"{name}.img"] = tokens(image_tokens)
            if not getattr(block, "context_pre_only", False):
                layout[f"{name}.txt"] = tokens(text_tokens)
        if predictions:
            layout[f"{name}.prediction"] = batch, channels, height, width
    return layout | {
        "context.latents": (batch, channels, height, width),
        "context.velocity": (batch, channels, height, width),
        "context.pooled": (rows, config.pooled_projection_dim),
        "context.temb": (rows, transformer.inner_dim),
    }


def layout_bytes(layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of tensors of these shapes."""
    return sum(torch.Size(shape).numel() for shape in layout.values()) * dtype.itemsize


def tokens(capture: dict, block: str, position: int) -> dict[str, Any]:
    """Tokens (batch, n, d) of a block by stream at a captured step, by the step's position; none where not stored.

    A list of the two halves of guidance, (n, d) each, where their lengths differ.
    """
    if block == EMBEDDING:
        stored = capture[EMBEDDING][position]
    else:
        of_kind = capture.get(f"{block_type(block)}_blocks", {})
        name = f"block_{block_index(block)}"
        if name not in of_kind:
            return {}
        stored = of_kind[name][position]
    if isinstance(stored, Tensor):  # a single block: text first
        length = capture["denoising_context"]["txt_seq_len"][position]
        stored = stored[:, length:], stored[:, :length]
    named = zip(("img", "txt", "joint"), stored, strict=False)
    return {
        stream: [half[0] for half in value] if isinstance(value, list) else value
        for stream, value in named
        if value is not None
    }
