"""The command line: `ditscope STAGE`, generated from the stages' functions and their settings.

Without --configfile a command is that of the programs that it follows, with their defaults; with it, the config's
stage and registries apply. What is typed wins over both.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import ditscope
from ditscope.capture.settings import CaptureSet
from ditscope.config import Config
from ditscope.config_files import read_config
from ditscope.core.errors import IncompleteError, InputError, machine_error
from ditscope.core.names import unknown
from ditscope.core.paths import PathKind, check_apart, check_path
from ditscope.core.ranges import check_ranges
from ditscope.core.settings import default_of
from ditscope.models.settings import Embedder, Model, Scheme
from ditscope.plan.settings import Budget
from ditscope.workflow.job import logged
from ditscope.workflow.reference import json_schema, reference

# name: (module and function, one line for `ditscope --help`); the function's own signature makes the options.
COMMANDS = {
    "prompts": ("prompts.stage:write_shard", "split a prompt CSV into a shard of runs"),
    "generate": ("generate.stage:generate", "sample the images of a prompt shard"),
    "capture": ("capture.stage:capture", "record and decode what every block puts out at every denoising step"),
    "blocks": ("blocks.stage:blocks", "describe what each block of captured generations does"),
    "ablate": ("ablate.stage:ablate", "leave out one block at a time and measure what becomes of the picture"),
    "calibrate": ("calibrate.stage:calibrate", "record the transformer's inputs along sampling trajectories"),
    "check-calibration": (
        "calibrate.files:validate_calibration",
        "read a whole calibration set and name the first thing that is wrong with it",
    ),
    "sensitivity": (
        "sensitivity.stage:sensitivity",
        "quantize one layer at a time and measure the change of the velocity",
    ),
    "sensitivity-formats": (
        "sensitivity.formats:sensitivity_formats",
        "measure every layer in every format: schemes of the config, by part of the schedule",
    ),
    "plan": ("plan.stage:plan", "choose bits or formats for every layer under a size budget"),
    "export": ("plan.export:export", "write a plan for torchao, sdnq, stable-diffusion.cpp, ComfyUI, vLLM or MLX"),
    "trajectories": ("trajectories.stage:trajectories", "follow runs around a network of generators and captioners"),
    "embed": ("embed.stage:embed", "embed the texts or the images of trajectories"),
    "benchmark": ("benchmark.stage:benchmark", "time, weigh and judge a model under a quantization scheme"),
    "caching": ("benchmark.caching:caching", "how many steps a step cache skips, what it saves and what images lose"),
    "culprit": (
        "benchmark.culprit:culprit",
        "find the fewest layers that a failing scheme must leave, and prove that it took effect",
    ),
    "quantize": ("benchmark.checkpoints:quantize", "save a model's quantized transformer as one safetensors file"),
    "drift": ("drift.stage:drift", "distances of the states of trajectories to their first one"),
    "cluster": (
        "cluster.stage:cluster",
        "cluster the states of trajectories and describe how they move between clusters",
    ),
    "topology": ("topology.stage:topology", "persistent homology of the states of trajectories"),
    "video": ("video.stage:create_visualization", "draw the decoded blocks of a captured generation as a GIF or MP4"),
    "trajectory-video": ("video.mosaic:trajectory_video", "draw trajectories side by side in one film"),
    "timeline": ("video.timeline:timeline", "draw trajectories on one sheet, and one of them as a strip"),
    "refine-data": ("refine.prepare:prepare", "make or index the samples that a refiner is trained on"),
    "refine-codebook": ("refine.codebook:build_codebook", "quantize prompts and kept patches to pseudo-classes"),
    "refine-assign": ("refine.codebook:assign_codes", "give new samples the pseudo-classes of a codebook"),
    "refine-train": ("refine.train:train", "train the feature encoder and the one-step refiner"),
    "refine-diagnose": ("refine.diagnose:diagnose", "judge a refiner on what was held out of its training"),
    "refine-apply": ("refine.use:refine_apply", "complete a storyboard, a picture or a path by a trained refiner"),
    "download": ("workflow.download:download", "get a model of the hub, after saying its size, licence and gating"),
    "model": ("workflow.described:model", "what a generator is made of: blocks, streams, layers, schedule, guidance"),
    "pipelines": (
        "workflow.pipelines_page:pipelines",
        "which pipelines of diffusers are driven, and why others are not",
    ),
    "check": (
        "workflow.prerequisites:check",
        "what this machine has, which schemes can run on it, and whether it can hold a model",
    ),
    "clean-caches": ("core.caches:clean_caches", "remove this project's caches and say how many bytes"),
    "analyse": ("analyse.stage:analyse", "run an analysis of your own on a finished study"),
    "figures": ("publish.printing:figures", "the figures and tables of a study for print, from what its stages left"),
    "paper": ("publish.paper:paper", "compile the figures, tables and captions of a study into a PDF, by Typst"),
    "publish": ("publish.stage:publish", "every figure and table that a study's finished stages allow"),
    "estimate": ("workflow.estimate:estimate", "jobs, hours and disk that a study will take"),
    "new": ("workflow.new:new", "write a commented overlay for a study of your own model and prompts"),
    "compare": (
        "workflow.compare.command:compare",
        "two experiments side by side: settings, tables and figures that differ",
    ),
    "reproduce": (
        "workflow.reproduce.command:reproduce",
        "run a published table of quantized models again, and compare",
    ),
    "verdict": (
        "workflow.verdict.command:verdict",
        "whether one run of the benchmark is as good as another, as a table for a pull request",
    ),
    "resume": ("workflow.resume:resume", "go on with a SLURM run whose main process was killed"),
    "experiment": ("workflow.experiment:experiment", "list experiments, say how far one is, delete one"),
    "progress": ("workflow.progress:progress", "how complete every study is"),
    "doctor": ("workflow.doctor:doctor", "verify everything that a study left, and say what to run again"),
}
REGISTRIES = {Model: "models", Scheme: "schemes", Embedder: "embedders"}
# The models that the seeds' own programs work on, and `generate`, which is no seed's, with them.
MODELS = {
    **dict.fromkeys(("generate", "capture", "ablate"), "flux-schnell"),
    **dict.fromkeys(("calibrate", "sensitivity", "benchmark", "caching"), "sd3-medium"),
}
# Settings of which the config has several by name: its stage, the key there, and the option that names one.
NAMED = {CaptureSet: ("capture", "sets", "capture_set"), Budget: ("plan", "budgets", "budget_name")}
# Options, and the value at which they mean what the model's entry says.
OF_THE_MODEL = {"num_steps": 0, "guidance": -1.0, "cfg_scale": -1.0, "width": 0, "height": 0}
RULE = (
    "Which value wins: what is typed, else the files of --configfile (merged over config.yaml), else the default "
    "that is shown. With --configfile this help shows the values of those files."
)


@dataclass(frozen=True)
class Option:
    """One option of a command: a parameter of its function, or a field of the settings that it takes."""

    name: str
    kind: Any  # int, float, str, bool or Path
    default: Any = inspect.Parameter.empty  # empty: it must be given
    help: str = ""
    choices: tuple = ()
    many: bool = False
    path: PathKind | None = None
    by_place: bool = False

    @property
    def spellings(self) -> list[str]:
        """`--num-steps` and `--num_steps`; the bare name of what is given by its place."""
        if self.by_place:
            return [self.name]
        return [f"--{self.name.replace('_', '-')}"] + ([f"--{self.name}"] if "_" in self.name else [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends with its one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="ditscope", description=ditscope.__doc__)
    parser.add_argument("--version", action="version", version=ditscope.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    argv = list(sys.argv[1:] if argv is None else argv)
    overlays = overlays_of(argv)
    try:
        for overlay in overlays:
            check_path(overlay, PathKind.INPUT_FILE, "--configfile")
        for name, (target, what) in COMMANDS.items():
            sub = commands.add_parser(name, help=what, argument_default=argparse.SUPPRESS, allow_abbrev=False)
            if argv[:1] == [name]:  # a stage's module may import torch: only the one that is asked for
                add_function(sub, function_of(target), name, read_config(overlays) if overlays else None)
                if {"-h", "--help"} & set(argv):
                    sub.epilog = f"{RULE}{models_own(name, read_config(overlays), bool(overlays))}"
        commands.add_parser("schema", help="print the config's JSON Schema")
        commands.add_parser("reference", help="print the config reference")
        options = vars(parser.parse_args(argv))
        command = options.pop("command")
        if command == "schema":
            import json

            print(json.dumps(json_schema(), indent=2))
        elif command == "reference":
            print(reference(), end="")
        else:
            with logged():
                call(function_of(COMMANDS[command][0]), options, command)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as under `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(f"ditscope {argv[0]}: {error}", file=sys.stderr)
        return 2
    except IncompleteError as error:
        print(f"ditscope {argv[0]}: {error}", file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        if not (reason := machine_error(error)):
            raise
        print(f"ditscope {argv[0]}: {reason}", file=sys.stderr)
        return 1
    return 0


def function_of(target: str) -> Callable[..., Any]:
    """The function that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(import_module(f"ditscope.{module}"), name)


def overlays_of(argv: Sequence[str]) -> list[Path]:
    """The files of --configfile, read before the other options: they hold the defaults that `--help` shows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", nargs="*", type=path, default=[])
    return parser.parse_known_args(argv)[0].configfile


def add_function(
    parser: argparse.ArgumentParser, function: Callable[..., Any], command: str = "", config: Config | None = None
) -> None:
    """Give `parser` an option for each parameter of `function` and each field of its settings.

    Defaults are those of `config`, where there is one, else the function's own.
    """
    parser.description = inspect.getdoc(function)
    parser.epilog = RULE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--configfile", nargs="+", type=path, metavar="YAML", help="overlays over config.yaml")
    options = options_of(function, command, config)
    values = values_of(function, command, config, {}) if config else {}
    for option in options:
        add_option(parser, replace(option, default=values.get(option.name, option.default)))


def options_of(function: Callable[..., Any], command: str = "", config: Config | None = None) -> list[Option]:
    """The options of a command in the order of its function's parameters, each name once."""
    hints, extras = get_type_hints(function), get_type_hints(function, include_extras=True)
    options: dict[str, Option] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind, name = hints[parameter.name], parameter.name
        if registry_of(kind) or kind is Config or name == "configfile":
            continue
        if kind in REGISTRIES:
            default = default_model(command, config) if kind is Model else inspect.Parameter.empty
            what = f"an entry of the config's `{REGISTRIES[kind]}`"
            options.setdefault(kind.__name__.lower(), Option(kind.__name__.lower(), str, default, what))
        elif is_dataclass(kind):
            if kind in NAMED:
                _, key, option = NAMED[kind]
                what = f"which of the `{key}` of --configfile; empty: the first"
                options.setdefault(option, Option(option, str, "", what))
            types = get_type_hints(kind)
            for f in fields(kind):
                if not f.metadata["config_only"] and get_origin(types[f.name]) is not dict:
                    about = f.metadata["help"], () if f.metadata["importable"] else f.metadata["choices"]
                    options.setdefault(
                        f.name, option_of(f.name, types[f.name], default_of(f, inspect.Parameter.empty), *about)
                    )
        elif not (name == "name" and any(k in REGISTRIES for k in hints.values())):
            simple = option_of(name, extras[name], parameter.default)
            options[name] = replace(simple, by_place=by_place(parameter))
    return list(options.values())


def option_of(name: str, kind: Any, default: Any, help: str = "", choices: tuple = ()) -> Option:
    """An option of the type `kind`: plain, a list, optional, or `Annotated` with what a path must be."""
    if get_origin(kind) in (UnionType, Union):
        kind = next(k for k in get_args(kind) if k is not type(None))
    many = get_origin(kind) in (list, Sequence)
    kind = get_args(kind)[0] if many else kind
    extra = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    kind = get_args(kind)[0] if extra else kind
    place = next((e for e in extra if isinstance(e, PathKind)), None)
    help = " ".join([*(e for e in extra if isinstance(e, str)), *([place.value] if place else []), help]).strip()
    return Option(name, kind, default, help, choices, many, place)


def default_model(command: str, config: Config | None) -> Any:
    """The model of a command that names none: the first of the config's stage, or the one of MODELS."""
    if command not in MODELS:
        return inspect.Parameter.empty
    return MODELS[command] if config is None else next(iter(getattr(config, command).models), None)


def registry_of(kind: Any) -> str | None:
    """The config's registry that a `dict[str, Model]` (or Scheme, Embedder) parameter takes whole."""
    if get_origin(kind) is dict and get_args(kind)[1] in REGISTRIES:
        return REGISTRIES[get_args(kind)[1]]
    return None


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add one option under both spellings, `--num-steps` and `--num_steps`."""
    required = option.default is inspect.Parameter.empty
    help = option.help + ("" if required else f" (default: {shown(option)})")
    extra: dict[str, Any] = {"help": help.replace("%", "%%").strip()}
    extra |= {} if option.by_place else {"dest": option.name, "required": required}
    if option.by_place and not required:
        extra["nargs"] = "?"
    if option.choices:
        extra["choices"] = option.choices
    kind = {bool: boolean, Path: path}.get(option.kind, option.kind)
    name = option.name.upper() if option.by_place else option.kind.__name__.upper()
    if option.kind is bool:
        parser.add_argument(*option.spellings, nargs="?", const=True, type=kind, metavar="True|False", **extra)
    elif option.many:
        count = "+" if required or option.default else "*"  # what is empty by default can be told to be empty
        parser.add_argument(*option.spellings, nargs=count, type=kind, metavar=name, **extra)
    else:
        extra |= {} if option.choices else {"metavar": name}
        parser.add_argument(*option.spellings, type=kind, **extra)


def shown(option: Option) -> str:
    """A default as `--help` says it."""
    if option.name in OF_THE_MODEL and option.default == OF_THE_MODEL[option.name]:
        return "the model's own"
    if isinstance(option.default, (list, tuple)):
        return " ".join(map(str, option.default)) or "none"
    return "none" if option.default in (None, "") else str(option.default)


def models_own(command: str, config: Config, applied: bool) -> str:
    """What "the model's own" means of the model that a command takes by default, for `--help`."""
    name = default_model(command, config if applied else None)
    if not isinstance(name, str) or name not in config.models:
        return ""
    entry = config.models[name]
    own = {"steps": entry.steps, "guidance": entry.guidance, "size": f"{entry.width} x {entry.height}"}
    return f"\n\nOf the model {name}: " + ", ".join(f"{key} {value}" for key, value in own.items())


def path(text: str) -> Path:
    """A path as it is typed; `~` is the home folder also where the shell leaves it, as in `--out=~/x`."""
    return Path(text).expanduser()


def boolean(text: str) -> bool:
    """True or False from `True`, `false`, `1`, `no`..."""
    if text.lower() in ("true", "yes", "1", "on"):
        return True
    if text.lower() in ("false", "no", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"`{text}` is neither True nor False")


def values_of(function: Callable[..., Any], command: str, config: Config, typed: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of a command's options, by name: its stage's settings, its prompt CSV and its experiment."""
    values: dict[str, Any] = {"experiment": config.experiment, "max_length": config.trajectories.max_length}
    for kind in get_type_hints(function).values():
        if (settings := settings_of(kind, config, typed)) is not None:
            values |= {f.name: getattr(settings, f.name) for f in fields(kind) if not f.metadata["config_only"]}
        if kind in NAMED:
            values[NAMED[kind][2]] = chosen_name(kind, config, typed)
    csv = Path(config.prompts.csv).expanduser()
    for option in options_of(function, command, config):
        if option.name in ("csv", "prompt_csv", "prompts") and command != "capture":  # that takes a prompt or tables
            values[option.name] = [csv] if option.many else csv
    return values


def settings_of(kind: Any, config: Config, typed: Mapping[str, Any]) -> Any:
    """The config's settings of the dataclass `kind`; of several by name the chosen ones; None where it has none."""
    if kind in NAMED:
        stage, key, _ = NAMED[kind]
        named = getattr(getattr(config, stage), key)
        name = chosen_name(kind, config, typed)
        if kind is CaptureSet and name and name not in named:
            raise InputError(unknown("--capture-set", name, named, f"in the config's `{stage}.{key}`"))
        given = any(f.name in typed for f in fields(kind))  # of a budget exactly one size counts: the typed one
        return None if name not in named or (kind is Budget and given) else named[name]
    return next((s for s in config.by_stage().values() if type(s) is kind), None)


def chosen_name(kind: Any, config: Config, typed: Mapping[str, Any]) -> str:
    """The name among the config's several settings of `kind` that is typed, else the first."""
    stage, key, option = NAMED[kind]
    return typed.get(option) or next(iter(getattr(getattr(config, stage), key)), "")


def call(function: Callable[..., Any], typed: dict[str, Any], command: str = "") -> None:
    """Call `function` with parsed options; what is not typed is the config's where --configfile names one."""
    overlays = typed.pop("configfile", [])
    hints = get_type_hints(function)
    needed = [k for n, k in hints.items() if registry_of(k) or k in REGISTRIES or k is Config or n == "configfile"]
    config: Any = read_config(overlays) if needed or overlays else None
    applied = config if overlays else None
    values = (values_of(function, command, config, typed) if overlays else {}) | typed
    options = options_of(function, command, applied)
    check_paths(options, values)
    first = {option.name: option.default for option in options}
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind, name = hints[parameter.name], parameter.name
        if name == "configfile":
            arguments[name] = overlays
        elif registry := registry_of(kind):
            arguments[name] = getattr(config, registry)
        elif kind is Config:
            arguments[name] = config
        elif kind in REGISTRIES:
            option = kind.__name__.lower()
            chosen = typed.get(option, first[option])
            arguments[name] = entry_of(option, chosen, getattr(config, REGISTRIES[kind]), REGISTRIES[kind], command)
            if "name" in hints:
                arguments.setdefault("name", chosen)
        elif isinstance(kind, type) and is_dataclass(kind):
            given = {f.name: typed[f.name] for f in fields(kind) if f.name in typed}
            check_ranges(kind, given, lambda name: f"--{name.replace('_', '-')}")
            base = settings_of(kind, applied, typed) if applied else None
            arguments[name] = kind(**given) if base is None else replace(base, **given)
        elif name in values:
            arguments[name] = values[name]
    places = [p for p in inspect.signature(function).parameters.values() if by_place(p)]
    positional = [arguments.pop(p.name, p.default) for p in places]
    function(*positional, **arguments)


def by_place(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is given by its place, without `--name`."""
    return parameter.kind is inspect.Parameter.POSITIONAL_ONLY


def entry_of(option: str, chosen: str | None, entries: Mapping[str, Any], registry: str, command: str) -> Any:
    """The entry of a registry that an option names. Raises InputError where there is none, or nothing is chosen."""
    if chosen is None:
        valid = ", ".join(entries)
        raise InputError(f"--{option}: the config's stage `{command}` lists no models; give one of {valid}")
    if chosen not in entries:
        raise InputError(unknown(f"--{option}", chosen, entries, f"in the config's `{registry}`"))
    return entries[chosen]


def check_paths(options: Sequence[Option], given: Mapping[str, Any]) -> None:
    """Refuse the first path that is not what its option takes; a folder that is not named need not be there.

    No file is written over one that is read, nor over another.
    """
    files: dict[PathKind, list[Path]] = {PathKind.INPUT_FILE: [], PathKind.OUTPUT_FILE: []}
    for option in options:
        if option.path and (option.name in given or option.path is PathKind.INPUT_FILE):
            value = given.get(option.name, option.default)
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(item, Path):
                    check_path(item, option.path, option.spellings[0])
                    files.get(option.path, []).append(item)
    check_apart(files[PathKind.INPUT_FILE], files[PathKind.OUTPUT_FILE])


if __name__ == "__main__":
    sys.exit(main())
