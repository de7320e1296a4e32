"""Safetensors files that say what they are: kind, schema version and configuration in one metadata entry."""

import json
from pathlib import Path
from typing import Any

from ditscope.core.errors import InputError, again, parsing

SCHEMA_VERSION = "2"


def describe(kind: str, **about: Any) -> dict[str, str]:
    """Metadata of a file of `kind`; one entry, since safetensors writes several in an order that changes."""
    return {"ditscope": json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION} | about, sort_keys=True)}


def header(path: Path, kind: str) -> dict[str, Any]:
    """What `describe` said of a file, without its tensors and without safetensors: also where a config is read."""
    check_there(path)
    refusal = f"not a readable safetensors file ({{}}); {again(path)}"
    with parsing(path, refusal, (ValueError, OverflowError)), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is cut")
        about = json.loads(json.loads(file.read(size)).get("__metadata__", {}).get("ditscope", "{}"))
    check_kind(path, about, kind)
    return about


def check_there(path: Path) -> None:
    """Refuse a file that is not there."""
    if not path.exists():
        raise InputError(f"{path}: no such file; run the refine stage that writes it first")


def check_kind(path: Path, about: dict[str, Any], kind: str) -> None:
    """Refuse a file of another kind or version."""
    made_as = about.get("kind"), about.get("schema_version")
    if made_as != (kind, SCHEMA_VERSION):
        raise InputError(f"{path}: holds {made_as[0]} of schema version {made_as[1]}, not {kind} of {SCHEMA_VERSION}")


def read_described(path: Path, kind: str, framework: str, prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """What `describe` said of a file, and its tensors (`framework`: pt or np) whose names begin so.

    Refuses another kind or version.
    """
    from safetensors import SafetensorError, safe_open

    check_there(path)
    with (
        parsing(path, f"not a readable safetensors file ({{}}); {again(path)}", (SafetensorError,)),
        safe_open(path, framework) as file,
    ):
        about = json.loads((file.metadata() or {}).get("ditscope", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    check_kind(path, about, kind)
    return about, tensors
