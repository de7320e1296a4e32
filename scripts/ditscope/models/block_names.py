"""Names of a model's blocks, before any weight is read."""

from collections.abc import Mapping
from typing import Any

from ditscope.core.errors import InputError
from ditscope.models.folders import config_at_hand, resolve_source
from ditscope.models.registry import ANY, facts_of, require_blocks
from ditscope.models.settings import Model

FLUX = {"num_layers": 19, "num_single_layers": 38}
HUB = {  # the depth of checkpoints that may not be here yet
    "black-forest-labs/FLUX.1-dev": FLUX,
    "black-forest-labs/FLUX.1-schnell": FLUX,
    "black-forest-labs/FLUX.1-Krea-dev": FLUX,
    "stabilityai/stable-diffusion-3-medium-diffusers": {"num_layers": 24},
    "stabilityai/stable-diffusion-3.5-medium": {"num_layers": 24},
    "stabilityai/stable-diffusion-3.5-large": {"num_layers": 38},
    "stabilityai/stable-diffusion-3.5-large-turbo": {"num_layers": 38},
}


def block_names(name: str, entry: Model) -> list[str]:
    """Every block of a model of the registry in network order, as its transformer's config describes it."""
    require_blocks("blocks", name, entry)
    folder = resolve_source(name, entry)
    names = named(entry, config_at_hand(entry))
    if not names:
        raise InputError(f"{folder / 'transformer/config.json'}: says no number of blocks; fetch or copy it again")
    return names


def known_blocks(entry: Model) -> list[str]:
    """Every block as far as it is known without weights: by the config, if it is here, or by the hub id; else none."""
    return named(entry, config_at_hand(entry) or HUB.get(entry.source, {}))


def found(config: Mapping[str, Any]) -> list[str]:
    """Names of the blocks that a transformer of diffusers has by its config, built without weights."""
    import diffusers

    from ditscope.models.structure import blocks, on_meta

    return list(blocks(on_meta(getattr(diffusers, config["_class_name"]), config)))


def named(entry: Model, config: Mapping[str, Any]) -> list[str]:
    """Block names of a transformer's config; none where it lacks a number."""
    if facts_of(entry.family).pipeline == ANY:
        return found(config) if config else []
    counts = {kind: config.get(key) for kind, key in facts_of(entry.family).blocks.items()}
    known = {kind: count for kind, count in counts.items() if isinstance(count, int)}
    return [f"{kind}_block_{i}" for kind, count in known.items() for i in range(count)] if known == counts else []
