"""The closed JSON Schema of config.yaml, and references in Markdown: of the config, and of each table in its page."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from ditscope.config import STAGES, Config
from ditscope.core.atomic import write_text
from ditscope.core.ranges import INT64
from ditscope.core.schema import Table, table_named
from ditscope.refine.data_settings import Source
from ditscope.refine.settings import Refiner

# Where a page of docs/outputs shows a table: what is between these lines is made from its declaration.
TABLE = re.compile(r"<!-- table ([\w.]+) -->\n.*?<!-- end -->", re.S)


def json_schema() -> dict[str, Any]:
    """The closed JSON Schema of config.yaml."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ditscope config", **_schema(Config)}


def _schema(kind: Any) -> dict[str, Any]:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {
            "type": "object",
            "description": (kind.__doc__ or "").strip(),
            "properties": {
                f.name: _schema(hints[f.name])
                | ({"description": f.metadata["help"]} if f.metadata["help"] else {})
                | (
                    {"anyOf": [{"enum": list(f.metadata["choices"])}, {"pattern": r"\."}]}
                    if f.metadata["importable"]
                    else _limits(hints[f.name], f.metadata["choices"], f.metadata["allowed"])
                )
                for f in fields(kind)
            },
            "required": [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING],
            "additionalProperties": False,
        }
    if isinstance(kind, GenericAlias):
        inner = get_args(kind)
        if get_origin(kind) is list:
            return {"type": "array", "items": _schema(inner[0])}
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if kind is Any:
        return {}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}


def _limits(kind: Any, choices: tuple, allowed: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema of a setting, or of a list or map of them, says beside its type; see `ranges.complaint`."""
    if get_origin(kind) is list:
        items = {"items": _schema(get_args(kind)[0]) | _limits(get_args(kind)[0], choices, allowed)}
        return (
            items | ({} if allowed["again"] else {"uniqueItems": True}) | ({"minItems": 1} if allowed["filled"] else {})
        )
    if choices:
        return {"enum": list(choices)}
    if get_origin(kind) is dict and get_args(kind)[1] in (int, float):
        return {"additionalProperties": _schema(get_args(kind)[1]) | _limits(get_args(kind)[1], (), allowed)}
    if kind not in (int, float):
        return {}
    least = {"exclusiveMinimum": 0} if allowed["positive"] else {"minimum": -1 if allowed["signed"] else 0}
    most = allowed["most"] if allowed["most"] is not None else INT64 if kind is int else None
    return least | ({} if most is None else {"maximum": most})


def reference() -> str:
    """The config reference in Markdown, one table for each section."""
    lines = [
        "# Config reference",
        "",
        "Made from the `settings.py` of each stage by `ditscope reference`; do not edit.",
        "Numbers are finite and not negative, those that mean nothing at 0 above it; -1 may be given only where it",
        "means something else. A list names nothing twice.",
        "",
    ]
    hints = get_type_hints(Config)
    sections: list[tuple[str, Any]] = [("(top level)", Config)]
    sections += [(f"{n}.<name>", get_args(hints[n])[1]) for n in ("models", "schemes", "embedders")]
    sections += [("refiners.<name>", Refiner), ("refiners.<name>.source", Source)]
    for stage in STAGES:
        sections.append((stage, hints[stage]))
        for name, kind in get_type_hints(hints[stage]).items():
            if get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
                sections.append((f"{stage}.{name}.<name>", get_args(kind)[1]))
    for title, kind in sections:
        lines += [
            f"## `{title}`",
            "",
            (kind.__doc__ or "").strip(),
            "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
        ]
        kinds = get_type_hints(kind)
        for f in fields(kind):
            if is_dataclass(kinds[f.name]):
                continue
            if f.default_factory is not MISSING:
                default = f"`{f.default_factory()!r}`"
            else:
                default = "required" if f.default is MISSING else f"`{f.default!r}`"
            name = (
                kinds[f.name].__name__
                if isinstance(kinds[f.name], type) and not isinstance(kinds[f.name], GenericAlias)
                else str(kinds[f.name])
            )
            choices = f" One of {', '.join(f'`{c}`' for c in f.metadata['choices'])}." if f.metadata["choices"] else ""
            name = re.sub(r"ditscope\.\w+\.settings\.", "", name)
            lines.append(f"| `{f.name}` | {name} | {default} | {f.metadata['help']}.{choices} |")
        lines.append("")
    return "\n".join(lines)


def table_reference(table: Table) -> str:
    """A table's declaration in Markdown; neighbouring columns of one type and meaning share a line."""
    key = f" Primary key: {listed(table.key)}." if table.key else ""
    lines = [f"One row per {table.row}.{key}", "", "| column | type | meaning |", "|---|---|---|"]
    for column, names in groupby(table.columns, key=lambda name: table.columns[name]):
        kind = re.sub(r"Enum\((.*)\)", r"one of \1", column.type) + (" or null" if column.nullable else "")
        lines.append(f"| {listed(names)} | {kind} | {column.meaning} |")
    return "\n".join(lines)


def listed(names: Iterable[str]) -> str:
    """Names as code, with commas between them."""
    return ", ".join(f"`{name}`" for name in names)


def page_with_tables(page: str) -> str:
    """A page of docs/outputs with each table between its marks as it is declared."""
    return TABLE.sub(lambda m: f"<!-- table {m[1]} -->\n{table_reference(table_named(m[1]))}\n<!-- end -->", page)


if __name__ == "__main__":  # the pages that are given, in place
    for name in sys.argv[1:]:
        write_text(name, page_with_tables(Path(name).read_text(encoding="utf-8")))
