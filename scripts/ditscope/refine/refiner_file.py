"""The file of a refiner: weights, and all that using them needs.

That is: settings of the corruption, codebook, statistics of the values, adapter and text encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditscope.core.errors import InputError
from ditscope.core.settings import decode, plain
from ditscope.core.tensor_files import save_tensors
from ditscope.refine.codebook import Codebook, codebook_from, codebook_parts
from ditscope.refine.dataset import Dataset
from ditscope.refine.files import describe, read_described
from ditscope.refine.refiner import Refiner, RefinerConfig
from ditscope.refine.settings import Refine


@dataclass(frozen=True)
class Trained:
    """A refiner and all that using it needs."""

    network: Refiner
    settings: Refine
    mean: np.ndarray  # (channels,) of the values, before they were standardised
    std: np.ndarray  # (channels,)
    codebook: Codebook
    adapter: dict[str, Any]  # how pictures become values, as in data.json
    text: dict[str, Any]  # how prompts become tokens


def save_refiner(network: Refiner, settings: Refine, data: Dataset, codebook: Codebook, path: Path) -> None:
    """Write averaged weights and what they go with to one safetensors file."""
    about, arrays = codebook_parts(codebook)
    dtype = getattr(torch, settings.stored_dtype)
    tensors = {f"network.{name}": value.to("cpu", dtype) for name, value in network.state_dict().items()}
    tensors |= {f"codebook.{name}": torch.from_numpy(value) for name, value in arrays.items()}
    tensors |= {"mean": torch.from_numpy(data.mean), "std": torch.from_numpy(data.std)}
    told = {"adapter": data.adapter, "text": data.text, "codebook": about}
    own = plain(replace(settings, refiners=[]))
    save_tensors(tensors, path, describe("refiner", config=asdict(network.config), settings=own, **told))


def load_refiner(path: Path) -> Trained:
    """Read what `save_refiner` wrote, the network in evaluation mode.

    Raises InputError where the file is another or of another version, or its weights do not fit its own configuration.
    """
    about, tensors = read_described(path, "refiner", "pt")
    network = Refiner(RefinerConfig(**about["config"]))
    load_weights(network, part(tensors, "network."), path)
    return Trained(
        network=network.eval().requires_grad_(False),
        settings=decode(Refine, about["settings"], f"{path}: settings"),
        mean=tensors["mean"].numpy(),
        std=tensors["std"].numpy(),
        codebook=codebook_from(about["codebook"], {k: v.numpy() for k, v in part(tensors, "codebook.").items()}),
        adapter=about["adapter"],
        text=about["text"],
    )


def load_weights(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network. Raises InputError where a name or a shape is another."""
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        shapes = [tuple(t[name].shape) if name in t else None for t in (tensors, wanted)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{path}: `{name}` has the shape {shapes[0]}, this refiner {shapes[1]}; set its sizes alike"
            )
    network.load_state_dict(dict(tensors))


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
