"""A study's config from its files: apart from ditscope.config, since jobs have neither YAML nor Snakemake."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditscope.config import ROOT, Config, load_config
from ditscope.core.yaml_file import read_yaml


def read_config(overlays: Sequence[Path | str]) -> Config:
    """The project's config.yaml with overlays merged over it, key by key."""
    return config_with(*map(read_yaml, overlays))


def config_with(*overlays: Mapping[str, Any]) -> Config:
    """The project's config.yaml with the plain data of overlays merged over it, key by key."""
    from snakemake.utils import update_config

    data: dict[str, Any] = {}
    for overlay in (read_yaml(ROOT / "config.yaml"), *overlays):
        update_config(data, overlay)
    return load_config(data)
