"""The plan of a study that the workflow writes as it starts: stages, targets, config."""

from pathlib import Path

from ditscope.core.errors import InputError, read_json
from ditscope.core.paths import fits_a_disk

PLAN = "plan.json"


def files_of_stage(plan: dict, stage: str) -> list[str]:
    """What a stage leaves: what it is asked for, and what is made of it on the way to other stages."""
    return [*plan["targets"].get(stage, []), *plan["upstream"].get(stage, [])]


def read_plan(results: Path | str) -> dict:
    """The plan of a study. Raises InputError where it never ran."""
    path = Path(results) / PLAN
    remedy = "not a plan in JSON; run the study again, which writes it anew"
    try:
        plan = read_json(path, remedy)
    except FileNotFoundError:
        raise InputError(f"{path}: this study has not been run yet; start it with snakemake") from None
    both = plan.get("targets"), plan.setdefault("upstream", {})  # older plans have no `upstream`
    lists = [files for named in both for files in (named.values() if isinstance(named, dict) else [None])]
    if not all(isinstance(files, list) and all(map(fits_a_disk, files)) for files in lists):
        raise InputError(f"{path}: {remedy}")
    return plan
