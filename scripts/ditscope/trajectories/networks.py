"""Networks: cycles of models that alternate text and image, and the runs that start trajectories through them.

Light on purpose: the workflow checks networks and counts runs whenever it reads its config.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ditscope.core.errors import InputError
from ditscope.core.identity import digest
from ditscope.models.registry import has_weights, is_generator
from ditscope.models.settings import Model, Scheme, calibrated_on
from ditscope.prompts.files import check_shards, least, read_prompts, runs_of
from ditscope.prompts.settings import Prompts
from ditscope.trajectories.settings import Trajectories


@dataclass(frozen=True)
class Entry:
    """One model of a network: a generator (text to image), perhaps quantized, or a captioner (image to text)."""

    label: str  # as the network names it: `shapes-flux` or `shapes-flux:int4`
    name: str  # the model in the registry
    model: Model
    variant: str = "base"  # the scheme or the plan's budget
    scheme: Scheme | None = None

    @property
    def makes(self) -> str:
        """IMAGE or TEXT."""
        return "IMAGE" if is_generator(self.model) else "TEXT"


def resolve_network(
    network: str, labels: list[str], models: dict[str, Model], schemes: dict[str, Scheme]
) -> list[Entry]:
    """The entries of a network, checked: it starts with a generator and alternates generators and captioners.

    What stands behind a colon is a scheme of `schemes` (or what stands there under the whole label), or else the budget
    of a bit plan.
    """
    where = f"networks.{network}"
    entries = []
    for label in labels:
        name, _, variant = label.partition(":")
        if name not in models:
            raise InputError(f"{where}: `{name}` is not in the config's `models`; valid: {', '.join(models)}")
        model = models[name]
        if variant and not is_generator(model):
            raise InputError(
                f"{where}: `{label}`: `{name}` is a captioner and only generators are quantized; write `{name}`"
            )
        if variant and not has_weights(model):
            raise InputError(f"{where}: `{label}`: `{name}` has no weights to quantize; write `{name}`")
        scheme = schemes.get(label, schemes.get(variant, Scheme(kind="plan", plan=variant))) if variant else None
        entries.append(Entry(label, name, model, variant or "base", scheme))
    kinds = [entry.makes for entry in entries]
    if not kinds or kinds[0] != "IMAGE":
        raise InputError(f"{where}: a network starts with a generator, since it starts from a prompt; got {labels}")
    for i, entry in enumerate(entries):
        if kinds[i] == kinds[i - 1]:
            kind, other = ("generator", "captioner") if kinds[i] == "IMAGE" else ("captioner", "generator")
            raise InputError(
                f"{where}: generators and captioners alternate around the cycle, but the {kind} `{entry.label}` "
                f"follows the {kind} `{entries[i - 1].label}`; put a {other} between"
            )
    return entries


def on_sets(entries: list[Entry], made: Callable[[str], Path | str]) -> list[Entry]:
    """The entries, each scheme with the folder of the calibration set that it is solved from.

    `made(name)` is a model's set of the calibrate stage, or the user's own in its place.
    """
    return [
        replace(entry, scheme=calibrated_on(entry.scheme, entry.name, made(entry.name))) if entry.scheme else entry
        for entry in entries
    ]


def plan_file(plans: Path | str, entry: Entry) -> Path | None:
    """The bit plan under `plans` that an entry is quantized by, if it is quantized by one."""
    if entry.scheme is None or entry.scheme.kind != "plan":
        return None
    return Path(plans) / entry.name / f"{entry.scheme.plan}.json"


def chosen(prompts: int, settings: Trajectories) -> slice:
    """Which of so many prompts start trajectories: the first or the last ones."""
    count = settings.prompts or prompts
    return slice(max(0, prompts - count), prompts) if settings.from_end else slice(count)


def trajectory_index(prompts: Prompts, settings: Trajectories, experiment: str) -> list[dict]:
    """What the workflow must know of each shard of trajectories.

    start: the number of its first run; count: how many they are; digest: of the runs. Raising `trajectories.prompts` or
    appending to the CSV changes the last unfilled shard only (not where they are taken from the end of the list).
    """
    rows = read_prompts(prompts.csv, least(prompts.limit, 0 if settings.from_end else settings.prompts))
    starting = rows[chosen(len(rows), settings)]
    before, runs = (runs_of(part, prompts.all_seeds(), experiment) for part in (rows[: -len(starting)], starting))
    check_shards("trajectories", len(runs), settings.shard_size, prompts.max_shards)
    index = []
    for start in range(0, len(runs), settings.shard_size):
        part = runs[start : start + settings.shard_size]
        index.append({"start": len(before) + start, "count": len(part), "digest": digest(part)})
    return index
