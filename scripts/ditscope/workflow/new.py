"""A commented overlay for a study of the user's own model and prompts."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from ditscope.config import STAGES, WORKS_ON, Config, value_at
from ditscope.config_files import config_with, read_config
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.names import check_name, unknown
from ditscope.core.paths import InputFile
from ditscope.core.settings import default_of
from ditscope.models.folders import HUB_ID, INDEX, config_at_hand, resolve_source
from ditscope.models.registry import FAMILIES, facts_of, is_generator
from ditscope.models.settings import Model
from ditscope.prompts.files import read_prompts

FOLDER = Path("experiments")
WIDTH = 116  # of comments
CAPTIONER = "blip2"  # of the cycle that a new study follows, an entry of config.yaml
SIDE = 512  # pixels, of a model whose folder names no size
# Stages that others read, whose settings a new study therefore shows as well.
READ_BY = {
    "blocks": ("capture",),
    "sensitivity": ("calibrate",),
    "plan": ("calibrate", "sensitivity"),
    "benchmark": ("calibrate", "sensitivity", "plan"),
    "embed": ("trajectories",),
    **dict.fromkeys(("drift", "cluster", "topology"), ("trajectories", "embed")),
    "refine": ("generate",),
}
# What a new study says where config.yaml suits its own demo and the stage's default suits no study.
INSTEAD: dict[str, Any] = {
    "capture.sets": {"all": {"generations": 2}},
    "calibrate.num_steps": 0,
    "benchmark.features": "dinov2",
    "embed.embedders": ["minilm", "siglip2", "random-walk"],
    "analyse.analyses": {"mine": {"module": "my_package.my_analysis", "stages": ["prompts"]}},
}
LISTS = {where for places in WORKS_ON.values() for where in places}  # what the stages work on
KEPT = ("plan.budgets", "benchmark.schemes")  # of config.yaml: they suit any model


def new(
    name: Annotated[str, "of the study: its overlay is experiments/NAME.yaml, its results are in results/NAME/"],
    /,
    stages: list[Annotated[str, "to ask for, as `capture,blocks`; prompts and publish are added"]],
    model: Annotated[str, "a folder in the format of diffusers, a hub id, or a name in config.yaml's `models`"],
    prompts: InputFile,
    family: Annotated[str, "of a hub id: dit, flux, sd3, sdxl or wan; a folder says itself"] = "",
    revision: Annotated[str, "of a hub id: its commit"] = "",
) -> None:
    """Write a commented overlay for a study of your own model and prompts: experiments/NAME.yaml.

    It has every setting of the stages with what it does. A line `#key: value` says what is so anyway. Never
    overwrites. Raises InputError for a name that is none, and for a model that a stage cannot work on.
    """
    check_name("name", name)
    path = FOLDER / f"{name}.yaml"
    if path.exists():
        raise InputError(f"{path}: is there already; give another name, or edit it")
    named = [stage.strip() for item in stages for stage in item.split(",") if stage.strip()]
    for stage in named:
        if stage not in STAGES:
            raise InputError(unknown("--stages", stage, STAGES, "a stage"))
    read_prompts(prompts, 1)
    write_text(path, overlay(name, named, model, str(prompts), family, revision))
    print(f"{path}: read it; `snakemake --profile local --configfile {path} -n` says what would run")


def overlay(name: str, named: Sequence[str], model: str, prompts: str, family: str = "", revision: str = "") -> str:
    """The text of an overlay; its settings are checked as the workflow checks them."""
    demo = read_config([])
    label, entry = model_entry(name, model, family, revision, demo)
    stages = [stage for stage in STAGES if stage in {"prompts", *named, "publish"}]
    read = {other for stage in stages for other in READ_BY.get(stage, ())}
    works_on = {where for stage in stages for where in WORKS_ON.get(stage, ())}
    data: dict[str, Any] = {"experiment": name, "stages": stages, "models": {label: entry}}
    if "trajectories.networks" in works_on:
        data["networks"] = {f"{label}-{CAPTIONER}": [label, CAPTIONER]}
    if "refine.refiners" in works_on:
        data["refiners"] = {label: {"source": {"kind": "generated", "model": label}}}
    for stage in (stage for stage in STAGES if stage in read or stage in stages):
        data[stage] = own_settings(stage, demo)
    for where in works_on:
        stage, _, key = where.partition(".")
        own = {"models": [label], **{key: list(data.get(key, {})) for key in ("networks", "refiners")}}
        if key in own or where in INSTEAD:
            data.setdefault(stage, {})[key] = own.get(key, INSTEAD.get(where))
    data["prompts"]["csv"] = prompts
    for stage in STAGES:
        if stage in data and not data[stage]:  # a key needs one below it
            first = next(f.name for f in fields(getattr(demo, stage)) if f"{stage}.{f.name}" not in {*LISTS, *KEPT})
            data[stage][first] = value_at(demo, f"{stage}.{first}")
    config = config_with(data)
    if "benchmark" in stages and not facts_of(config.models[label].family).blocks:
        fitting = [scheme for scheme in config.benchmark.schemes if config.schemes[scheme].kind != "plan"]
        data["benchmark"]["schemes"] = fitting  # there is no sensitivity to plan bits by
        config = config_with(data)
    if not config.models[label].revision:
        resolve_source(label, config.models[label])
    return "\n".join([*lines_of(data, config, label), ""])


def model_entry(name: str, source: str, family: str, revision: str, demo: Config) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a model that is given as a folder, a hub id, or an entry of config.yaml."""
    known = {entry.source: label for label, entry in demo.models.items()} | {label: label for label in demo.models}
    if source in known and not revision:
        label = known[source]
        if not is_generator(demo.models[label]):
            raise InputError(f"--model: `{source}` is a captioner; give a model that makes images")
        return label, {key: getattr(demo.models[label], key) for key in ("width", "height", "steps")}
    folder = Path(source).expanduser()
    if not folder.is_dir() and not (HUB_ID.fullmatch(source) and revision and family):
        if HUB_ID.fullmatch(source):
            what = "`--family`, and `--revision`, its commit"
            raise InputError(f"--model: no folder {source}; of a hub id give {what} too")
        raise InputError(unknown("--model", source, demo.models, "a folder, a hub id or in config.yaml's `models`"))
    label = re.sub(r"[^A-Za-z0-9_+-]+", "-", folder.name).strip("-").lower() or name
    label = f"{name}-{label}" if label in demo.models else label
    model = Model(family or family_in(folder), source, revision)
    side = side_of(model)
    said = {"family": model.family, "source": source} | ({"revision": revision} if revision else {})
    return label, said | {"dtype": "bfloat16", "width": side, "height": side, "steps": 28}


def family_in(folder: Path) -> str:
    """The family of a pipeline of diffusers in a folder. Raises InputError where it is none that is known."""
    index = config_at_hand(Model("", str(folder)), INDEX)
    pipeline = index.get("_class_name")
    for name, facts in FAMILIES.items():
        if facts.pipeline == pipeline:
            return name
    what = f"its pipeline is {pipeline}" if pipeline else f"it has no {INDEX}"
    if pipeline:
        import diffusers

        from ditscope.models.pipelines import refusal

        cls = getattr(diffusers, pipeline, None)
        if cls and not (reason := refusal(cls)):
            return "dit"
        what += f", which {reason}" if cls else ", which the installed diffusers has not"
    raise InputError(f"--model: {folder}: {what}; families: {', '.join(FAMILIES)}; `--family` says which it is like")


def side_of(entry: Model) -> int:
    """The side in pixels of the pictures that a model was trained on, as far as its folder says."""
    for part in ("transformer", "unet"):
        latents = config_at_hand(entry, f"{part}/config.json").get("sample_size")
        if isinstance(latents, int):
            scales = config_at_hand(entry, "vae/config.json").get("block_out_channels", [0] * 4)
            return max(latents * 2 ** (len(scales) - 1) // 16 * 16, 16)
    return SIDE


def own_settings(stage: str, demo: Config) -> dict[str, Any]:
    """What a new study says of a stage: what config.yaml chose for its own demo, put back."""
    said = {}
    for f in fields(getattr(demo, stage)):
        where, default = f"{stage}.{f.name}", default_of(f)
        if where not in {*LISTS, *KEPT} and (where in INSTEAD or value_at(demo, where) != default):
            said[f.name] = INSTEAD.get(where, default)
    return said


# The text ------------------------------------------------------------------------------------------------------------


def lines_of(data: dict[str, Any], config: Config, label: str) -> Iterator[str]:
    """The lines of an overlay: what `data` says, each key after what it does, and beside it what is so anyway."""
    command = f"snakemake --profile local --configfile {FOLDER / data['experiment']}.yaml"
    yield f"# `{command}` makes {', '.join(data['stages'])}, and what these need."
    yield "# A line `#key: value` says what is so anyway: take its # away to change it. What is said here replaces what"
    yield "# config.yaml says; maps are merged with its own."
    yield ""
    top = [f for f in fields(Config) if f.name in ("experiment", "stages", "backends", "staleness")]
    for f in sorted(top, key=lambda f: f.name not in data):
        yield from setting_lines(f, data, getattr(config, f.name), str, "")
    yield from ("", "models:", f"  {label}:")
    for f in fields(Model):
        value, kind = getattr(config.models[label], f.name), get_type_hints(Model)[f.name]
        yield from setting_lines(f, data["models"][label], value, kind, "    ")
    hints = get_type_hints(Config)
    for registry in (f for f in fields(Config) if f.name in ("networks", "refiners") and f.name in data):
        yield ""
        yield from setting_lines(registry, data, {}, str, "")
    for stage in (stage for stage in STAGES if stage in data):
        kinds, settings = get_type_hints(hints[stage]), getattr(config, stage)
        yield ""
        yield from comment(hints[stage].__doc__ or "", "")
        hidden = LISTS - set(KEPT)  # of a stage that is only read: it works on what the others need
        shown = [f for f in fields(settings) if f.name in data[stage] or f"{stage}.{f.name}" not in hidden]
        yield f"{stage}:"
        for f in sorted(shown, key=lambda f: f.name not in data[stage]):
            yield from setting_lines(f, data[stage], getattr(settings, f.name), kinds[f.name], "  ")


def setting_lines(f: Field, said: dict[str, Any], value: Any, kind: Any, indent: str) -> Iterator[str]:
    """A setting after what it does: as `said`, else as a line that says its `value` and changes nothing."""
    choices = f.metadata["choices"] if f.name != "stages" else STAGES
    more = f" One of {', '.join(map(str, choices))}." if choices else ""
    yield from comment(f.metadata["help"] + ("." if more else "") + more, indent)
    if f.name not in said:
        yield f"{indent}#{f.name}: {flow(value)}"
        return
    inner = get_args(kind)[1] if get_origin(kind) is dict else None
    if not is_dataclass(inner):
        yield f"{indent}{f.name}: {flow(said[f.name])}"
        return
    yield f"{indent}{f.name}:"
    for name, entry in said[f.name].items():
        yield f"{indent}  {name}:"
        kinds = get_type_hints(inner)
        for g in sorted(fields(inner), key=lambda g: g.name not in entry):
            yield from setting_lines(g, entry, getattr(value[name], g.name), kinds[g.name], f"{indent}    ")


def comment(text: str, indent: str) -> list[str]:
    """A text as lines of comments."""
    return [f"{indent}# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH - len(indent))]


def flow(value: Any) -> str:
    """A value in one line of YAML; of settings within a map what is not as by default."""
    if isinstance(value, dict):
        value = {key: changed(item) if is_dataclass(item) else item for key, item in value.items()}
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def changed(settings: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not as by default."""
    return {f.name: v for f in fields(settings) if (v := getattr(settings, f.name)) != default_of(f)}
