"""Code of hub repositories: run where an entry allows it, from its folder and the project's own cache alone.

What an entry's code reads of further repositories (`code_revisions`) lies in that cache, where `main` of each is the
commit that the entry names: code that asks for no revision gets that one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError, line
from ditscope.models.registry import check_remote_code
from ditscope.models.settings import Embedder, Model

CACHE = Path("resources/.cache/huggingface")


def hub_cache() -> Path:
    """The project's own cache of hub repositories."""
    return (CACHE / "hub").absolute()


def cached_copy(repository: str, commit: str) -> Path:
    """Where the cache keeps a repository at a commit, as huggingface_hub lays it out."""
    return hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def pin(repository: str, commit: str) -> None:
    """Make `main` of a cached repository this commit."""
    write_text(cached_copy(repository, commit).parents[1] / "refs" / "main", commit, shared=True)


def missing_code(revisions: Mapping[str, str]) -> list[str]:
    """The repositories of `code_revisions` that are not in the cache at their commits."""
    return [repository for repository, commit in revisions.items() if not cached_copy(repository, commit).is_dir()]


@contextmanager
def allowed_code(where: str, entry: Model | Embedder) -> Iterator[None]:
    """Inside, transformers and the code that it runs look for nothing outside the project, and nothing on the hub.

    Without `allow_remote_code` nothing changes, and no such code runs. Raises InputError where the entry's family is
    nothing else, and where the code or what it imports is not here.
    """
    check_remote_code(where, entry)
    if not entry.allow_remote_code:
        yield
        return
    if missing := missing_code(entry.code_revisions):
        name = where.partition(".")[2]
        raise InputError(f"{where}.code_revisions: {missing[0]} is not here; `ditscope download {name}` gets it")
    for repository, commit in entry.code_revisions.items():
        pin(repository, commit)
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    inside = [
        (constants, "HF_HUB_CACHE", str(hub_cache())),
        (constants, "HF_HUB_OFFLINE", True),
        (dynamic_module_utils, "HF_MODULES_CACHE", str((CACHE / "modules").absolute())),
    ]
    outside = [(module, setting, getattr(module, setting)) for module, setting, _ in inside]
    for module, setting, value in inside:
        setattr(module, setting, value)
    try:
        yield
    except (ImportError, OSError) as error:
        raise InputError(
            f"{where}: the code of {entry.source} does not run here ({line(error)}); install the packages, and name "
            "the repositories in `code_revisions`, that it asks for"
        ) from error
    finally:
        for module, setting, value in outside:
            setattr(module, setting, value)


def instance(where: str, entry: Model | Embedder, folder: Path, auto: str) -> Any:
    """A model of the class that a folder's `auto_map` names for `auto`, made on the CPU and filled with its weights.

    Raises InputError where the folder names none, or its weights are not those of the class.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    named = config.get("auto_map", {})
    if not {"AutoConfig", auto} <= named.keys():
        raise InputError(f"{where}: {folder}/config.json names no code for {auto} (`auto_map`); copy the folder again")
    with allowed_code(where, entry):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        kinds = [get_class_from_dynamic_module(named[key], str(folder)) for key in ("AutoConfig", auto)]
        model = kinds[1](kinds[0](**config))
    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{where}: the weights in {folder} are not those of its code ({line(error)[:200]})") from None
    return model
