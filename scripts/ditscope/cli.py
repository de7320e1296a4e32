"""The command line: `ditscope STAGE`, generated from the stages' functions and their settings."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import ditscope
from ditscope.config import ROOT, json_schema, load_config, reference, unknown
from ditscope.errors import IncompleteError, InputError, machine_error
from ditscope.job import logged
from ditscope.ranges import check_ranges
from ditscope.settings import Config, Embedder, Model, Scheme
from ditscope.yaml_file import read_yaml

# name: (module and function, one line for `ditscope --help`); the function's own signature makes the options.
COMMANDS = {
    "prompts": ("prompts:write_shard", "split a prompt CSV into a shard of runs"),
    "generate": ("generate:generate", "sample the images of a prompt shard"),
    "capture": ("capture:capture", "record and decode what every block puts out at every denoising step"),
    "blocks": ("blocks:blocks", "describe what each block of captured generations does"),
    "ablate": ("ablate:ablate", "leave out one block at a time and measure what becomes of the picture"),
    "calibrate": ("calibrate:calibrate", "record the transformer's inputs along sampling trajectories"),
    "check-calibration": (
        "calibration_set:validate_calibration",
        "read a whole calibration set and name the first thing that is wrong with it",
    ),
    "sensitivity": ("sensitivity:sensitivity", "quantize one layer at a time and measure the change of the velocity"),
    "plan": ("plan:plan", "choose bits for every layer under a size budget"),
    "trajectories": ("trajectories:trajectories", "follow runs around a network of generators and captioners"),
    "embed": ("embed:embed", "embed the texts or the images of trajectories"),
    "benchmark": ("benchmark:benchmark", "time, weigh and judge a model under a quantization scheme"),
    "quantize": ("checkpoints:quantize", "save a model's quantized transformer as one safetensors file"),
    "drift": ("drift:drift", "distances of the states of trajectories to their first one"),
    "cluster": ("cluster:cluster", "cluster the states of trajectories and describe how they move between clusters"),
    "topology": ("topology:topology", "persistent homology of the states of trajectories"),
    "video": ("video:create_visualization", "draw the decoded blocks of a captured generation as a GIF or MP4"),
    "trajectory-video": ("mosaic:trajectory_video", "draw trajectories side by side in one film"),
    "refine-codebook": ("refine.codebook:build_codebook", "quantize prompts and kept patches to pseudo-classes"),
    "refine-train": ("refine.train:train", "train the feature encoder and the one-step refiner"),
    "refine-diagnose": ("refine.diagnose:diagnose", "measure what the refiner learnt"),
    "check": ("prerequisites:check", "what this machine has, and which schemes can run on it"),
    "clean-caches": ("caches:clean_caches", "remove this project's caches and say how many bytes"),
    "publish": ("publish:publish", "every figure and table that a study's finished stages allow"),
    "estimate": ("estimate:estimate", "jobs, hours and disk that a study will take"),
    "resume": ("resume:resume", "go on with a SLURM run whose main process was killed"),
    "progress": ("progress:progress", "how complete every study is"),
    "doctor": ("doctor.examine:doctor", "verify everything that a study left, and say what to run again"),
}
REGISTRIES = {Model: "models", Scheme: "schemes", Embedder: "embedders"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends with its one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="ditscope", description=ditscope.__doc__)
    parser.add_argument("--version", action="version", version=ditscope.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, (target, what) in COMMANDS.items():
        sub = commands.add_parser(name, help=what, argument_default=argparse.SUPPRESS, allow_abbrev=False)
        if argv[:1] == [name]:  # a stage's module may import torch: only the one that is asked for
            add_function(sub, function_of(target), has_models(name))
    commands.add_parser("schema", help="print the config's JSON Schema")
    commands.add_parser("reference", help="print the config reference")
    options = vars(parser.parse_args(argv))
    command = options.pop("command")
    try:
        if command == "schema":
            import json

            print(json.dumps(json_schema(), indent=2))
        elif command == "reference":
            print(reference(), end="")
        else:
            with logged():
                call(function_of(COMMANDS[command][0]), options, command)
    except InputError as error:
        print(f"ditscope {command}: {error}", file=sys.stderr)
        return 2
    except IncompleteError as error:
        print(f"ditscope {command}: {error}", file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        if not (reason := machine_error(error)):
            raise
        print(f"ditscope {command}: {reason}", file=sys.stderr)
        return 1
    return 0


def function_of(target: str) -> Callable[..., Any]:
    """The function that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(import_module(f"ditscope.{module}"), name)


def has_models(command: str) -> bool:
    """Whether the config lists models for this stage, so that `--model` may be left out."""
    stage = get_type_hints(Config).get(command)
    return is_dataclass(stage) and any(f.name == "models" for f in fields(stage))


def add_function(parser: argparse.ArgumentParser, function: Callable[..., Any], models: bool = False) -> None:
    """Give `parser` an option for each parameter of `function` and each field of its settings.

    `models` where the config's stage lists models, whose first is the default of `--model`.
    """
    parser.description = inspect.getdoc(function)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--configfile", nargs="+", type=Path, metavar="YAML", help="overlays over config.yaml")
    hints = get_type_hints(function)
    taken: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if registry_of(kind) or kind is Config or parameter.name == "configfile":
            continue
        if kind in REGISTRIES:
            names = f"--{kind.__name__.lower()}"
            optional = models and kind is Model
            what = f"an entry of the config's `{REGISTRIES[kind]}`"
            what += " (default: the first one of this stage)" if optional else ""
            parser.add_argument(names, required=not optional, metavar="NAME", help=what)
        elif is_dataclass(kind):
            for f in fields(kind):
                if not f.metadata["config_only"] and f.name not in taken:
                    add_option(
                        parser,
                        f.name,
                        get_type_hints(kind)[f.name],
                        default_of(f),
                        f.metadata["help"],
                        f.metadata["choices"],
                    )
                    taken.add(f.name)
        elif not (parameter.name == "name" and any(k in REGISTRIES for k in hints.values())):
            add_option(parser, parameter.name, kind, parameter.default)
            taken.add(parameter.name)


def registry_of(kind: Any) -> str | None:
    """The config's registry that a `dict[str, Model]` (or Scheme, Embedder) parameter takes whole."""
    if get_origin(kind) is dict and get_args(kind)[1] in REGISTRIES:
        return REGISTRIES[get_args(kind)[1]]
    return None


def default_of(f: Field) -> Any:
    """A field's default, or Parameter.empty where it has none."""
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else inspect.Parameter.empty


def add_option(
    parser: argparse.ArgumentParser, name: str, kind: Any, default: Any, help: str = "", choices: tuple = ()
) -> None:
    """Add one option under both spellings, `--num-steps` and `--num_steps`."""
    if get_origin(kind) is dict:
        return
    if isinstance(kind, UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    required = default is inspect.Parameter.empty
    spellings = [f"--{name.replace('_', '-')}"] + ([f"--{name}"] if "_" in name else [])
    help = (help + ("" if required or default is None else f" (default: {default})")).replace("%", "%%").strip()
    extra: dict[str, Any] = {"dest": name, "required": required, "help": help}
    if choices:
        extra["choices"] = choices
    if kind is bool:
        parser.add_argument(*spellings, nargs="?", const=True, type=boolean, metavar="True|False", **extra)
    elif isinstance(kind, GenericAlias):
        parser.add_argument(*spellings, nargs="+", type=get_args(kind)[0], metavar=name.upper(), **extra)
    else:
        parser.add_argument(*spellings, type=kind, **({} if choices else {"metavar": kind.__name__.upper()}), **extra)


def boolean(text: str) -> bool:
    """True or False from `True`, `false`, `1`, `no`..."""
    if text.lower() in ("true", "yes", "1", "on"):
        return True
    if text.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"`{text}` is neither True nor False")


def call(function: Callable[..., Any], options: dict[str, Any], command: str = "") -> None:
    """Call `function` with parsed options; a model that was not given is the first of the config's stage `command`."""
    overlays = options.pop("configfile", [])
    hints = get_type_hints(function)
    config: Config | None = None
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind, name = hints[parameter.name], parameter.name
        if registry_of(kind) or kind in REGISTRIES or kind is Config or name == "configfile":
            config = config or read_config(overlays)
        if name == "configfile":
            arguments[name] = overlays
        elif registry := registry_of(kind):
            arguments[name] = getattr(config, registry)
        elif kind is Config:
            arguments[name] = config
        elif kind in REGISTRIES:
            entries = getattr(config, REGISTRIES[kind])
            chosen = options.get(kind.__name__.lower()) or next(iter(getattr(config, command).models), None)
            if chosen is None:
                raise InputError(
                    f"--model: the config's stage `{command}` lists no models; give one of {', '.join(entries)}"
                )
            if chosen not in entries:
                raise InputError(
                    unknown(f"--{kind.__name__.lower()}", chosen, entries, f"in the config's `{REGISTRIES[kind]}`")
                )
            arguments[name] = entries[chosen]
            if "name" in hints:
                arguments.setdefault("name", chosen)
        elif isinstance(kind, type) and is_dataclass(kind):
            given = {f.name: options[f.name] for f in fields(kind) if f.name in options}
            check_ranges(kind, given, lambda name: f"--{name.replace('_', '-')}")
            arguments[name] = kind(**given)
        elif name in options:
            arguments[name] = options[name]
    function(**arguments)


def read_config(overlays: Sequence[Path]) -> Config:
    """The project's config.yaml with overlays merged over it, key by key."""
    from snakemake.utils import update_config

    data: dict[str, Any] = {}
    for path in [ROOT / "config.yaml", *overlays]:
        update_config(data, read_yaml(path))
    return load_config(data)


if __name__ == "__main__":
    sys.exit(main())
