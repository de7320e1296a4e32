"""Settings as frozen dataclasses: documented fields, decoded from plain data with strict types."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass
from datetime import date, datetime
from functools import cache
from math import isfinite
from os.path import expanduser
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.ranges import check_ranges

type_hints = cache(get_type_hints)


def default_of(f: Field, without: Any = MISSING) -> Any:
    """A field's default; `without` where it has none."""
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else without


def decode(kind: Any, value: Any, path: str = "") -> Any:
    """Turn plain YAML data into `kind`, or raise an InputError that names the key `path`."""
    where = path or "config"
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a map of settings, got {value!r}")
        hints = type_hints(kind)
        for key in value:
            if key not in hints:
                raise InputError(unknown(f"{path}.{key}" if path else str(key), str(key), hints, "a setting"))
        for f in fields(kind):
            if f.default is MISSING and f.default_factory is MISSING and f.name not in value:
                raise InputError(f"{where}: the required key `{f.name}` is missing ({f.metadata['help']})")
        decoded = {k: decode(hints[k], v, f"{path}.{k}" if path else k) for k, v in value.items()}
        for f in fields(kind):
            choices, given = f.metadata.get("choices"), decoded.get(f.name, [])
            for item in given if isinstance(given, list) else [given]:
                if choices and item not in choices and not (f.metadata.get("importable") and "." in str(item)):
                    what = f"one of {', '.join(map(str, choices))}"
                    raise InputError(unknown(f"{path}.{f.name}" if path else f.name, item, choices, what))
        check_ranges(kind, decoded, lambda name: f"{where}.{name}")
        decoded |= {
            f.name: at_home(decoded[f.name]) for f in fields(kind) if f.metadata.get("path") and f.name in decoded
        }
        return kind(**decoded)
    if kind is Any:
        return value
    if isinstance(kind, GenericAlias):
        origin, inner = get_origin(kind), get_args(kind)
        if origin is list and isinstance(value, (list, tuple)):
            return [decode(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
        if origin is dict and isinstance(value, Mapping):
            if (other := next((k for k in value if not isinstance(k, str)), None)) is not None:
                raise InputError(f"{where}: {as_read(other)}, not a name; write it in quotes")
            return {k: decode(inner[1], v, f"{path}.{k}") for k, v in value.items()}
        raise InputError(f"{where}: expected a {'list' if origin is list else 'map'}, got {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, got {value!r}{spelling(kind, value)}")
    return value


def at_home(path: Any) -> Any:
    """A path, or a map or list of them, in which `~` is the home folder."""
    if isinstance(path, list):
        return [expanduser(p) for p in path]
    return {k: expanduser(v) for k, v in path.items()} if isinstance(path, dict) else expanduser(path)


def spelling(kind: type, value: Any) -> str:
    """How to write a value in YAML that was read as another type; empty where it is something else altogether."""
    if kind is str and isinstance(value, (bool, int, float, date)):
        return f" ({as_read(value)}); write it in quotes"
    if kind in (int, float) and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        if not isfinite(number):
            return "; write a finite number"
        if kind is int:
            return f"; write {int(number)}, without quotes" if number.is_integer() else ""
        plain = f"{number:e}" if "e" in value.lower() else value
        return f"; write {plain}, without quotes"
    if kind is bool and isinstance(value, (str, int)):
        return "; write true or false, without quotes"
    return ""


def as_read(value: Any) -> str:
    """What YAML took a value for, as `no` for False."""
    names = {bool: "a truth value", int: "an integer", float: "a number", datetime: "a time", date: "a date"}
    shown = {True: "true (or yes, on)", False: "false (or no, off)"}[value] if isinstance(value, bool) else str(value)
    return f"YAML reads {shown} as {names.get(type(value), 'nothing' if value is None else 'another type')}"


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as plain data, for Snakemake's params."""
    return asdict(settings)


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: tuple = (),
    positive: bool = False,
    signed: bool = False,
    most: float | None = None,
    filled: bool = False,
    again: tuple = (),
    config_only: bool = False,
    path: bool = False,
    importable: bool = False,
) -> Any:
    """A documented dataclass field; `config_only` keeps it off the command line.

    `choices` are the values that are allowed, of a list its items. Numbers, also those in a list or map, are at least
    0, or -1 where `signed`, above 0 where `positive`, and at most `most` (integers 2^63 - 1). A `filled` list has at
    least one item, and only what is in `again` may be in a list more than once. In a `path`, or a map of them, `~` is
    the home folder. Where `importable`, a choice may also be the dotted path of a module of the user's own.
    """
    allowed = {"positive": positive, "signed": signed, "most": most, "filled": filled, "again": again}
    metadata = {"help": help, "choices": choices, "config_only": config_only, "allowed": allowed, "path": path}
    metadata["importable"] = importable
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
