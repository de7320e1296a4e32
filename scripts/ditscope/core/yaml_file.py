"""Config files in YAML, refused where YAML 1.1 reads something else than is written: doubled keys, other bases."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ditscope.core.errors import InputError, parsing

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What PyYAML raises beside YAMLError on explicit tags with values that are none, as `!!timestamp x`.
PYYAML = (yaml.YAMLError, AttributeError, TypeError)
OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9_]+(:[0-9_.]+)+")  # 010 is 8, 1:30 is 90


def read_yaml(path: Path | str) -> dict[Any, Any]:
    """The map of settings in a YAML file, empty where the file is.

    Raises InputError with file and line for a file that is missing, no YAML, or no map, for a key that is there twice
    (the last would win) and for a number that YAML reads in another base than 10.
    """
    path = Path(path)
    try:
        with parsing(path, "not YAML ({})", PYYAML):
            text = path.read_bytes().decode("utf-8-sig")
            loader = LOADER(text)
            root = loader.get_single_node()
            if root is None:
                return {}
            complaints = list(misread(root, set()))  # before the keys that `<<` brings are written into the nodes
            data = loader.construct_document(root)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a map of settings; write `key: value` lines")
    for number, complaint in complaints:
        raise InputError(f"{path}: line {number}: {complaint}")
    return data


def misread(node: Any, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Line and complaint of everything below a node that YAML reads otherwise than it looks."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        number = node.tag.rpartition(":")[2] in ("int", "float") and not node.style
        if number and OTHER_BASE.fullmatch(node.value):
            yield line, f"YAML reads {node.value} in another base than 10; write it in base 10, or in quotes as text"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from misread(item, seen)
    else:
        keys: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    where = key.start_mark.line + 1
                    yield where, f"the key `{key.value}` is already in line {keys[key.value]}; merge the two"
                keys[key.value] = key.start_mark.line + 1
            yield from misread(key, seen)
            yield from misread(value, seen)
