# Helper functions of every rules file: the checked config, paths of what stages leave, parameters that make them stale.
import re
import sys
from pathlib import Path

sys.path.insert(0, f"{workflow.basedir}/scripts")

from snakemake.exceptions import WorkflowError
from snakemake.io import strip_wildcard_constraints

from ditscope.config import load_config, plain
from ditscope.errors import InputError
from ditscope.models import check_model_folder, is_generator, source_folder
from ditscope.progress import write_plan, write_progress
from ditscope.prompts import shard_index
from ditscope.staleness import cached, code_digest, source_digest

CACHE = Path("resources/.cache")

try:
    CONFIG = load_config(config)
    SHARD_INDEX = cached(
        "shards",
        [source_digest(CONFIG.prompts.csv, CACHE), plain(CONFIG.prompts), CONFIG.experiment],
        lambda: shard_index(CONFIG.prompts, CONFIG.experiment),
        CACHE,
    )
    for name in CONFIG.selected_models():
        if not CONFIG.models[name].revision:
            check_model_folder(Path(CONFIG.models[name].source))
except InputError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{CONFIG.experiment}"
SHARDS = [f"{i:05d}" for i in range(len(SHARD_INDEX))]


wildcard_constraints:
    shard=r"\d{5}",
    model="|".join(CONFIG.models) or "none",
    network="|".join(CONFIG.networks) or "none",
    embedder="|".join(CONFIG.embedders) or "none",
    scheme="|".join(CONFIG.schemes) or "none",
    budget="|".join(CONFIG.plan.budgets) or "none",
    capture="|".join(CONFIG.capture.sets) or "none",


# Parameters ---------------------------------------------------------------------------------------------------------


def code(module):
    """Digest of a library module and all it imports: editing either makes the rule stale."""
    return code_digest(f"ditscope.{module}", CONFIG.staleness)


def stage(name):
    """The settings of a stage as plain data."""
    return plain(getattr(CONFIG, name))


def model_params(name):
    """A registry entry and the digest of its weights: what a job must know of a model, and what makes it stale."""
    entry = CONFIG.models[name]
    return plain(entry) | {"digest": entry.revision or source_digest(entry.source, CACHE)}


def model_files(*names):
    """Inputs of a job that loads models: nothing for local folders, the download's mark for hub models."""
    folders = [source_folder(CONFIG.models[name]) for name in names if CONFIG.models[name].revision]
    return [f"{folder}/model_index.json" for folder in folders]


# What stages leave --------------------------------------------------------------------------------------------------


def prompt_shards():
    return expand(f"{RESULTS}/prompts/shard-{{shard}}.parquet", shard=SHARDS)


def image_shards(*models, suffix="tar"):
    return expand(f"{RESULTS}/images/{{model}}/shard-{{shard}}.{suffix}", model=models, shard=SHARDS)


# What the workflow knows of itself ---------------------------------------------------------------------------------


def targets():
    """What each stage leaves under this config, in pipeline order."""
    return {
        "prompts": prompt_shards(),
        "generate": image_shards(*CONFIG.generate.models),
    }


def rule_patterns():
    """Globs of each rule's benchmark files and outputs below the study's results, for `ditscope estimate`."""

    def globs(paths):
        below = [str(path).removeprefix(f"{RESULTS}/") for path in paths if str(path).startswith(RESULTS)]
        return sorted({re.sub(r"\{[^}]*\}", "*", strip_wildcard_constraints(path)) for path in below})

    return {
        r.name: {
            "benchmarks": globs([r.benchmark] if r.benchmark else []),
            "outputs": globs(r.output),
            "gpu": "gpu" in r.resources,
        }
        for r in workflow.rules
        if r.output
    }
