"""A latent masked autoencoder that an earlier training left: its maps, of the refiner's values themselves."""

from pathlib import Path

from torch import nn

from ditscope.core.errors import InputError
from ditscope.refine.networks import load_network

SEES = "values"


def load(weights: str) -> nn.Module:
    """The autoencoder in the file `weights` (latent_mae.safetensors of a refiner)."""
    if not weights:
        raise InputError("refine.encoder_weights: name the latent_mae.safetensors of a refiner")
    network, *_ = load_network(Path(weights), "latent_mae")
    return network
