"""Names of a model's blocks, before any weight is read."""

import diffusers
from accelerate import init_empty_weights

from ditscope.models import family_of, require_blocks, transformer_config
from ditscope.settings import Model


def block_names(name: str, entry: Model) -> list[str]:
    """Every block of a model of the registry in network order, as its transformer's config describes it."""
    require_blocks("blocks", name, entry)
    family = family_of(name, entry)
    config = transformer_config(name, entry)
    with init_empty_weights():
        transformer = getattr(diffusers, config["_class_name"]).from_config(config)
    return list(family.blocks(transformer))
