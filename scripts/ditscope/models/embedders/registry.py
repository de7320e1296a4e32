"""Embedders: texts or images to vectors; a module of this package per family."""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.plugins import load_plugin
from ditscope.models.loading import default_device
from ditscope.models.registry import check_remote_code
from ditscope.models.settings import EMBEDDER_FAMILIES, Embedder

log = logging.getLogger(__name__)

EmbedBatch = Callable[[list], np.ndarray]  # a batch of texts or of RGB images -> (batch, dimension) float32


def embedder_named(name: str, embedders: Mapping[str, Embedder], where: str) -> Embedder:
    """An entry of the config's `embedders`. Raises InputError where it is none; `where` names the setting."""
    if name not in embedders:
        raise InputError(unknown(where, name, embedders, "in the config's `embedders`"))
    return embedders[name]


def load_embedder(name: str, entry: Embedder, device: str | None = None) -> EmbedBatch:
    """Load an embedder of the registry onto one device; the function that it returns gives unit vectors.

    `load` of the family's module does it; its `MODALITIES` are what it can embed.
    """
    family = load_plugin(entry.family, EMBEDDER_FAMILIES, f"embedders.{name}.family", "a family of embedders")
    if not hasattr(family, "load"):
        raise InputError(
            f"embedders.{name}.family: `{entry.family}` is of states of trajectories alone, or has no `load`"
        )
    if entry.modality not in family.MODALITIES:
        raise InputError(
            f"embedders.{name}.modality: `{entry.family}` embeds {' or '.join(family.MODALITIES)}, not {entry.modality}"
        )
    check_remote_code(f"embedders.{name}", entry)
    embed = family.load(name, entry, device or default_device())
    log.info("loaded %s (%s)", name, entry.family)
    return embed
