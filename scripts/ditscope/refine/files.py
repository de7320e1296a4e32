"""Safetensors files that say what they are: kind, schema version and configuration in one metadata entry."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ditscope.core.errors import InputError, again, parsing

SCHEMA_VERSION = "1"


def describe(kind: str, **about: Any) -> dict[str, str]:
    """Metadata of a file of `kind`; one entry, since safetensors writes several in an order that changes."""
    return {"ditscope": json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION} | about, sort_keys=True)}


def read_described(path: Path, kind: str, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `describe` said of a file, and its tensors (`framework`: pt or np); refuses another kind or version."""
    if not path.exists():
        raise InputError(f"{path}: no such file; run the refine stage that writes it first")
    with (
        parsing(path, f"not a readable safetensors file ({{}}); {again(path)}", (SafetensorError,)),
        safe_open(path, framework) as file,
    ):
        about = json.loads((file.metadata() or {}).get("ditscope", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    made_as = about.get("kind"), about.get("schema_version")
    if made_as != (kind, SCHEMA_VERSION):
        raise InputError(f"{path}: holds {made_as[0]} of schema version {made_as[1]}, not {kind} of {SCHEMA_VERSION}")
    return about, tensors
