"""Read a config into `settings.Config`: strict types, no unknown keys, the nearest valid key in every refusal."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from datetime import date, datetime
from functools import cache
from math import isfinite
from os.path import expanduser
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from ditscope.core.errors import InputError
from ditscope.core.patterns import select_blocks, select_indices
from ditscope.core.ranges import INT64, check_ranges
from ditscope.models.block_names import known_blocks
from ditscope.models.registry import check_backend, check_frames, check_revision, is_generator, require_blocks
from ditscope.settings import STAGES, Benchmark, Config, Model, Scheme
from ditscope.trajectories.networks import resolve_network

NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")
ROOT = Path(__file__).resolve().parents[2]
type_hints = cache(get_type_hints)


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
                if choices and item not in choices:
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
    """A path, or a map of them, in which `~` is the home folder."""
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
        if kind is int:
            return f"; write {int(number)}, without quotes" if number.is_integer() else ""
        plain = f"{number:e}" if "e" in value.lower() and isfinite(number) else value
        return f"; write {plain}, without quotes"
    if kind is bool and isinstance(value, (str, int)):
        return "; write true or false, without quotes"
    return ""


def as_read(value: Any) -> str:
    """What YAML took a value for, as `no` for False."""
    names = {bool: "a truth value", int: "an integer", float: "a number", datetime: "a time", date: "a date"}
    shown = {True: "true (or yes, on)", False: "false (or no, off)"}[value] if isinstance(value, bool) else str(value)
    return f"YAML reads {shown} as {names.get(type(value), 'nothing' if value is None else 'another type')}"


def check_name(where: str, name: str) -> None:
    """Refuse a name that is to be part of paths and patterns, unless it is plain: the one rule for every registry."""
    if not NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{where}: `{name}` is not a plain name; use letters, digits and . _ + - (not first a dot, no two dots)"
        )


def unknown(where: str, name: Any, valid: Any, what: str) -> str:
    """One line that refuses `name` and offers the nearest valid one."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), valid, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"valid: {', '.join(valid) or 'none'}"
    return f"{where}: `{name}` is not {what}; {hint}"


def load_config(data: Mapping[str, Any]) -> Config:
    """Decode and cross-check a config (keys that Snakemake itself adds are ignored)."""
    config = decode(Config, {k: v for k, v in data.items() if k != "pathvars"})
    check(config)
    return config


def check(config: Config) -> None:
    """Check what types cannot: names that refer to registry entries, sizes, exclusive options."""
    check_name("experiment", config.experiment)
    registries: dict[str, Mapping[str, Any]] = {
        "models": config.models,
        "schemes": config.schemes,
        "embedders": config.embedders,
        "networks": config.networks,
        "capture.sets": config.capture.sets,
        "plan.budgets": config.plan.budgets,
        "benchmark.targets": config.benchmark.targets,
    }
    for registry, entries in registries.items():
        for name in entries:
            check_name(registry, name)
    if found := set(config.prompts.csv) & set("{}<>"):
        raise InputError(
            f"prompts.csv: `{config.prompts.csv}` has a {min(found)}, by which Snakemake marks wildcards; rename it"
        )
    if config.benchmark.hardware:
        check_name("benchmark.hardware", config.benchmark.hardware)
    for name, model in config.models.items():
        for side in ("width", "height"):
            if getattr(model, side) % 16:
                raise InputError(f"models.{name}.{side}: {getattr(model, side)} is not a multiple of 16")
        check_frames(name, model)
        check_backend(name, model)
        check_revision(f"models.{name}", model.revision)
    for name, embedder in config.embedders.items():
        check_revision(f"embedders.{name}", embedder.revision)
    for stage, registry, valid in (
        ("generate", "models", config.models),
        ("capture", "models", config.models),
        ("ablate", "models", config.models),
        ("calibrate", "models", config.models),
        ("sensitivity", "models", config.models),
        ("benchmark", "models", config.models),
        ("refine", "models", config.models),
        ("benchmark", "schemes", config.schemes),
        ("trajectories", "networks", config.networks),
        ("embed", "embedders", config.embedders),
    ):
        for name in getattr(getattr(config, stage), registry):
            if name not in valid:
                raise InputError(unknown(f"{stage}.{registry}", name, valid, f"in the config's `{registry}`"))
    for stage in ("capture", "ablate", "calibrate", "sensitivity"):
        for name in getattr(config, stage).models:
            backends = ("torch", "mlx") if stage in ("calibrate", "sensitivity") else ("torch",)
            require_blocks(f"{stage}.models", name, config.models[name], backends)
    for name in config.trajectories.networks:
        for entry in config.networks[name]:
            label, _, variant = entry.partition(":")
            if label not in config.models:
                raise InputError(unknown(f"networks.{name}", label, config.models, "in the config's `models`"))
            if variant and variant not in config.schemes and variant not in config.plan.budgets:
                variants = [*config.schemes, *config.plan.budgets]
                raise InputError(unknown(f"networks.{name}", variant, variants, "a scheme or a plan's budget"))
        resolve_network(name, config.networks[name], config.models, config.schemes)
    for name, scheme in config.schemes.items():
        if scheme.kind == "plan" and scheme.plan not in config.plan.budgets:
            raise InputError(unknown(f"schemes.{name}.plan", scheme.plan, config.plan.budgets, "a plan's budget"))
        if scheme.kind == "plan" and scheme.fuse_qkv:
            raise InputError(f"schemes.{name}.fuse_qkv: a plan names the separate layers; set it to false")
    for key in ("checkpoints", "compiled"):
        for name in getattr(config.benchmark, key):
            if name not in config.schemes:
                raise InputError(unknown(f"benchmark.{key}", name, config.schemes, "in the config's `schemes`"))
    bench = config.benchmark
    if bench.models and not bench.skip_metrics:
        chosen = [config.schemes[s] for s in bench.schemes]
        if "eager" not in bench.compile or not any(s == Scheme("base") for s in chosen):
            raise InputError(
                "benchmark: quality is judged against a scheme of kind `base` in eager mode; "
                "select both, or set skip_metrics: true"
            )
        for key, names in (("features", [bench.features]), ("cosines", bench.cosines)):
            for name in names:
                if name not in config.embedders:
                    raise InputError(unknown(f"benchmark.{key}", name, config.embedders, "in the config's `embedders`"))
        if bench.kid_subset_size > bench.num_images:
            raise InputError(
                f"benchmark.kid_subset_size: {bench.kid_subset_size} is more than benchmark.num_images, "
                f"{bench.num_images}; make it smaller"
            )
    for name, target in bench.targets.items():
        if target.model not in config.models:
            raise InputError(
                unknown(f"benchmark.targets.{name}.model", target.model, config.models, "in the config's `models`")
            )
    for section in ("blocks", "ablate"):
        features = getattr(config, section).features
        if features and features not in config.embedders:
            raise InputError(unknown(f"{section}.features", features, config.embedders, "in the config's `embedders`"))
    for name, capture in config.capture.sets.items():
        if capture.offload and capture.multi_gpu:
            raise InputError(f"capture.sets.{name}: `offload` and `multi_gpu` exclude each other; set one to false")
    check_patterns(config)


def check_patterns(config: Config) -> None:
    """Check patterns of steps, and of blocks where a model's depth is known without weights."""
    for name in config.capture.models:
        for key, chosen in config.capture.sets.items():
            where = f"capture.sets.{key}"
            check_blocks(f"{where}.blocks", chosen.blocks, name, config.models[name])
            select_indices(chosen.steps, config.models[name].steps, f"{where}.steps (model `{name}`)")
    for name in config.ablate.models:
        check_blocks("ablate.blocks", config.ablate.blocks, name, config.models[name])
        select_indices(config.ablate.steps, config.models[name].steps, f"ablate.steps (model `{name}`)")
    for name in config.calibrate.models:
        steps = config.calibrate.num_steps or config.models[name].steps
        if config.calibrate.statistics:
            select_indices(config.calibrate.statistics, steps, f"calibrate.statistics (model `{name}`)")


def check_blocks(where: str, pattern: str, name: str, entry: Model) -> None:
    """Refuse a pattern of blocks that a part of matches no block of a model."""
    if blocks := known_blocks(entry):
        select_blocks(pattern, blocks, f"{where} (model `{name}`)")


def of_backends(config: Config, backends: Collection[str]) -> Config:
    """The study without the models and networks that run on other back ends than these."""

    def runs(entry: str) -> bool:
        model = config.models[entry.partition(":")[0]]
        return model.backend in backends or not is_generator(model)

    kept: dict[str, Any] = {
        name: replace(stage, models=[model for model in stage.models if runs(model)])
        for name, stage in config.stages().items()
        if hasattr(stage, "models")
    }
    networks = [n for n in config.trajectories.networks if all(map(runs, config.networks[n]))]
    return replace(config, **kept, trajectories=replace(config.trajectories, networks=networks))


def benchmark_cases(bench: Benchmark) -> list[tuple[str, str]]:
    """Scheme and compile state of every run: each scheme in eager mode, those to be compiled in the other states."""
    compiled = bench.compiled or bench.schemes
    return [(s, state) for s in bench.schemes for state in bench.compile if state == "eager" or s in compiled]


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as plain data, for Snakemake's params."""
    return asdict(settings)


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
                | _limits(hints[f.name], f.metadata["choices"], f.metadata["allowed"])
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
        return items | {"uniqueItems": True} | ({"minItems": 1} if allowed["filled"] else {})
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
        "Made from `scripts/ditscope/settings.py` by `ditscope reference`; do not edit.",
        "Numbers are finite and not negative, those that mean nothing at 0 above it; -1 may be given only where it",
        "means something else. A list names nothing twice.",
        "",
    ]
    hints = get_type_hints(Config)
    sections = [("(top level)", Config)]
    sections += [(f"{n}.<name>", get_args(hints[n])[1]) for n in ("models", "schemes", "embedders")]
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
            name = name.replace("ditscope.settings.", "")
            lines.append(f"| `{f.name}` | {name} | {default} | {f.metadata['help']}.{choices} |")
        lines.append("")
    return "\n".join(lines)
