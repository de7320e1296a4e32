"""What a model is made of, said without a weight: `ditscope model NAME`."""

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import snapshot_download

from ditscope.config import Config
from ditscope.core.errors import MALFORMED, InputError
from ditscope.core.names import unknown
from ditscope.models.folders import COMMIT, HUB_ID, INDEX, MODULAR, check_revision, source_folder
from ditscope.models.registry import FAMILIES, has_weights, is_generator
from ditscope.models.remote_code import hub_cache
from ditscope.models.settings import Model
from ditscope.workflow.download import hub_errors

CONFIGS = (INDEX, MODULAR, "*/config.json", "*/scheduler_config.json", "config.json")
# Settings of a scheduler's config that say which noise levels it takes.
SCHEDULE = (
    "shift", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal", "time_shift_type", "flow_shift",
    "prediction_type", "beta_schedule", "num_train_timesteps",
)  # fmt: skip


def model(
    name: Annotated[str, "an entry of the config's `models`, a folder in the format of diffusers, or a hub id"],
    /,
    config: Config,
    revision: Annotated[str, "of a hub id: its commit"] = "",
) -> None:
    """Say what a generator is made of: blocks, streams, kinds of layers, schedule, guidance, text length.

    No weights are needed: where a model is not here, its configs alone are fetched. What is told of its class in
    `models/facts`, and not found, is marked so.
    """
    label, entry = entry_of(name, revision, config)
    folder = configs_of(entry, label)
    print("\n".join(description(label, entry, folder)))


def entry_of(name: str, revision: str, config: Config) -> tuple[str, Model]:
    """The name and the entry of a model that is given as an entry of the config, a folder or a hub id.

    Raises InputError for what is none of these, and for a model that makes no pictures or has no weights.
    """
    known = {entry.source: label for label, entry in config.models.items()}
    label = name if name in config.models else known.get(name, "") if not revision else ""
    if label:
        entry = config.models[label]
        if not is_generator(entry):
            raise InputError(f"{label}: `{entry.family}` is a captioner; only models that make images are described")
        if not has_weights(entry):
            raise InputError(f"{label}: `{entry.family}` has no weights, and nothing to describe")
        return label, entry
    if Path(name).expanduser().is_dir():
        return Path(name).name, Model("dit", str(Path(name).expanduser()))
    if not HUB_ID.fullmatch(name):
        raise InputError(
            unknown("model", name, config.models, "an entry of the config's `models`, a folder or a hub id")
        )
    if not revision:
        raise InputError(f"{name}: a hub id is described at a commit: give --revision, its 40 hex digits")
    check_revision("--revision", revision)
    return name, Model("dit", name, revision)


def configs_of(entry: Model, label: str) -> Path:
    """The folder with a model's configs: its own, else they are fetched from the hub into the project's cache."""
    folder = source_folder(entry)
    if (folder / INDEX).is_file() or (folder / MODULAR).is_file() or not COMMIT.fullmatch(entry.revision):
        if not folder.is_dir():
            raise InputError(f"{label}: no folder {folder}; if it is a hub id, set `revision` to its commit")
        return folder
    with hub_errors(entry.source, entry.revision):
        return Path(
            snapshot_download(
                entry.source, revision=entry.revision, cache_dir=hub_cache(), allow_patterns=list(CONFIGS)
            )
        )


def description(label: str, entry: Model, folder: Path) -> list[str]:
    """The lines that say what the generator of a folder is made of."""
    index = read(folder / INDEX)
    if not index:
        what = f"a modular pipeline ({MODULAR} alone)" if (folder / MODULAR).is_file() else f"no {INDEX} in it"
        raise InputError(f"{label}: {folder}: {what}; give the folder of a whole pipeline of diffusers")
    rows = [("pipeline", *pipeline_lines(index))]
    for part in (key for key in index if key.startswith("transformer") and index[key][0]):
        rows += transformer_rows(part, read(folder / part / "config.json"))
    rows += [
        ("schedule", schedule_line(index, read(folder / "scheduler" / "scheduler_config.json"), entry)),
        ("guidance", guidance_line(index, read(folder / "transformer" / "config.json"), entry)),
        ("text", *text_lines(index, entry)),
    ]
    where = f"{entry.source}{f' at {entry.revision[:8]}' if entry.revision else ''}"
    width = max(len(row[0]) for row in rows)
    lines = [f"{label}: {where}"]
    for title, *texts in rows:
        lines += [f"  {title if i == 0 else '':<{width}}  {text}" for i, text in enumerate(texts)]
    return lines


def read(file: Path) -> dict[str, Any]:
    """A config in JSON; empty where it is not here."""
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except MALFORMED as error:
        raise InputError(f"{file}: not a config in JSON ({error}); fetch or copy it again") from None
    return config if isinstance(config, dict) else {}


def pipeline_class(index: Mapping[str, Any]) -> Any:
    """The class of diffusers of a model_index.json; None where the installed one has none of that name."""
    import diffusers

    return getattr(diffusers, str(index.get("_class_name")), None)


def pipeline_lines(index: Mapping[str, Any]) -> list[str]:
    """The pipeline, and whether it is driven."""
    from ditscope.models.pipelines import refusal

    cls = pipeline_class(index)
    if cls is None:
        return [str(index.get("_class_name")), "not driven: the installed diffusers has no such pipeline"]
    families = [name for name, facts in FAMILIES.items() if facts.pipeline == cls.__name__]
    reason = "" if families else refusal(cls)
    family = f"`family: {'` or `'.join([*families, 'dit'] if not refusal(cls) else families)}`"
    return [cls.__name__, f"not driven: {reason}" if reason else f"driven ({family})"]


def transformer_rows(part: str, config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a transformer is made of, by its config: size, blocks with their streams, layers by kind."""
    import diffusers

    from ditscope.models import structure

    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None:
        return [(part, f"{config.get('_class_name', 'its config is not here')}: not in the installed diffusers")]
    network = structure.on_meta(cls, config)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return [
        (part, f"{cls.__name__}, {millions:,.{0 if millions >= 100 else 2}f} million parameters"),
        ("  blocks", *block_lines(network)),
        ("  layers", *layer_lines(network)),
        ("  told", told(network)),
    ]  # fmt: skip


def block_lines(network: Any) -> list[str]:
    """A line per list of blocks, in running order: names, class, and the streams that come out."""
    from ditscope.core.patterns import block_type
    from ditscope.models import structure

    lists, joint = structure.block_lists(network), structure.facts(network).joint
    lines = []
    for kind, group in groupby(structure.found(network), lambda block: block_type(block.name)):
        blocks = list(group)
        where = blocks[0].path.rpartition(".")[0]
        streams = [s.name for s in blocks[0].streams]
        out = ", ".join(streams) or "seen at the first call"
        places = {"first": " (text first)", "last": " (image first)", "": " (text and image have no one place)"}
        out += places[joint[where]] if where in joint else ""
        lines.append(f"{kind}:0-{len(blocks) - 1}  {where}, {type(lists[where][0]).__name__} -> {out}")
    return lines


def layer_lines(network: Any) -> list[str]:
    """How many layers there are of each kind, and how many of the weights they hold."""
    from ditscope.models import structure

    kinds, weights = structure.layer_kinds(network), Counter[str]()
    for path, kind in kinds.items():
        weights[kind] += sum(p.numel() for p in network.get_submodule(path).parameters(recurse=False))
    counts, total = Counter(kinds.values()), sum(p.numel() for p in network.parameters())
    return [f"{kind:<15} {counts[kind]:>5}  {weights[kind] / total:6.1%}" for kind in structure.KINDS if counts[kind]]


def told(network: Any) -> str:
    """What the table of facts tells of a transformer's class, in words."""
    from ditscope.models import structure

    facts = structure.facts(network)
    parts = [f"order {', '.join(facts.order)}"] if facts.order else []
    parts += [
        f"text {f'is {place}' if place else 'has no one place'} in {where}" for where, place in facts.joint.items()
    ]
    parts += ["rows of a batch are joined each at its own text length"] if facts.ragged else []
    parts += ["the prediction is negated"] if facts.negated else []
    parts += [f"time is {facts.time}"] if facts.time else []
    return "; ".join(parts) or "nothing: all of it is found"


def schedule_line(index: Mapping[str, Any], config: Mapping[str, Any], entry: Model) -> str:
    """The scheduler, what its config says of the noise levels, and the entry's steps."""
    name = (index.get("scheduler") or ["", "none"])[1]
    said = [f"{key} {config[key]}" for key in SCHEDULE if config.get(key) is not None]
    return f"{name}, {entry.steps} steps{': ' if said else ''}{', '.join(said)}"


def guidance_line(index: Mapping[str, Any], config: Mapping[str, Any], entry: Model) -> str:
    """How the model is guided, by the config of its transformer and the arguments of its pipeline."""
    takes, embedded = defaults_of(index), reads_guidance(config)
    negative = "negative_prompt" in takes or "negative_prompt_embeds" in takes
    scale = "true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale" if not embedded else ""
    parts = [f"embedded, `guidance_scale` {value_of('guidance_scale', takes, entry)}"] if embedded else []
    if negative and scale in takes:
        value = value_of(scale, takes, entry)
        off = " (off at 1)" if isinstance(value, (int, float)) and value <= 1 else ""
        parts.append(f"classifier-free with negative prompts, `{scale}` {value}{off}")
    if "guidance_scale_2" in takes:
        parts.append(f"`guidance_scale_2` {value_of('guidance_scale_2', takes, entry)} of the second transformer")
    return "; ".join(parts) or "none"


def reads_guidance(config: Mapping[str, Any]) -> bool:
    """Whether a transformer embeds the guidance: by its config, else by its class's default."""
    import diffusers

    cls = getattr(diffusers, str(config.get("_class_name")), None)
    default = inspect.signature(cls.__init__).parameters.get("guidance_embeds") if cls else None
    return bool(config.get("guidance_embeds", default.default if default else False))


def value_of(scale: str, takes: Mapping[str, Any], entry: Model) -> Any:
    """The value of a scale: the entry's where it says one, else the pipeline's default."""
    own = entry.guidance if scale == "guidance_scale" and entry.guidance >= 0 else None
    return entry.call.get(scale, takes.get(scale) if own is None else own)


def defaults_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline's `__call__` takes, each with its default."""
    cls = pipeline_class(index)
    return {n: p.default for n, p in inspect.signature(cls.__call__).parameters.items()} if cls else {}


def text_lines(index: Mapping[str, Any], entry: Model) -> list[str]:
    """The text encoders, and how many tokens of a prompt they read."""
    encoders = [f"{key}: {index[key][1]}" for key in index if key.startswith("text_encoder") and index[key][0]]
    length = entry.max_sequence_length or defaults_of(index).get("max_sequence_length")
    return [", ".join(encoders) or "no text encoder", *lengths(length)]


def lengths(length: Any) -> Sequence[str]:
    """How many tokens are read, where the pipeline or the entry says it."""
    return [f"{length} tokens at most (`max_sequence_length`)"] if length else ["as many tokens as its tokenizer reads"]
