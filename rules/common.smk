# Helper functions of every rules file: the checked config, and parameters that make jobs stale.
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path

sys.path.insert(0, f"{workflow.basedir}/scripts")

from ditscope.workflow.array_task import go_on_as_own_task
from ditscope.workflow.orphans import announce_workflow

go_on_as_own_task()
announce_workflow()

from snakemake.exceptions import WorkflowError

from ditscope.config import load_config, of_backends
from ditscope.core.settings import plain
from ditscope.core.errors import InputError
from ditscope.models.memory import host_memory_mb
from ditscope.models.folders import download_mark, resolve_source, source_folder
from ditscope.trajectories.networks import plan_file, resolve_network, trajectory_index
from ditscope.prompts.files import first_runs, shard_index, slice_name
from ditscope.core.plugins import module_of
from ditscope.models.registry import ON_MLX, module_of_family
from ditscope.models.settings import CALIBRATE, EMBEDDER_FAMILIES, SCHEMES, backends_of, calibrated_on, calibration_of
from ditscope.refine.data_settings import ADAPTERS, SOURCES, adapter_of
from ditscope.refine.files import header
from ditscope.refine.settings import CODEBOOK, ENCODERS, INTERPOLATIONS, settings_of
from ditscope.sensitivity.back_ends import module_of as module_of_scores
from ditscope.workflow.sources import check_sources
from ditscope.workflow.staleness import SCRIPTS, code_digest, defines, prefer_this_library
from ditscope.workflow.warm_worker import start_worker
from ditscope.core.digests import cached, folder_stamp, source_digest
from ditscope.core.yaml_file import read_yaml

CACHE = Path("resources/.cache")
prefer_this_library()

asked = workflow.deployment_settings
if (
    workflow.is_main_process
    and {str(method) for method in asked.deployment_method} == {"conda"}
    and not (asked.conda_base_path or shutil.which("conda"))
):
    raise WorkflowError(
        "`conda` is not on PATH, and this profile or --sdm wants a conda environment per rule; load conda (on "
        "clusters often `module load conda`), or, where this virtual environment is to run the rules, add `--sdm "
        "env-modules`; see docs/slurm.md"
    )


@cache
def digest_of(path):
    """Digest of a source file or folder, looked at once a run however many jobs need it."""
    return source_digest(path, CACHE)


def indexed(name, module, compute, *settings):
    """`compute()` over the prompt CSV, remembered between runs: every cluster job reads the rules again."""
    prompts = CONFIG.prompts
    key = [digest_of(prompts.csv), code_digest(f"ditscope.{module}"), plain(prompts), CONFIG.experiment, *settings]
    return cached(f"{CONFIG.experiment} {name}", key, compute, CACHE)


try:
    for file in workflow.configfiles:
        read_yaml(file)  # refuses what Snakemake's reader takes otherwise than it looks
    WHOLE = load_config(config)
    CONFIG = of_backends(WHOLE, WHOLE.backends)  # what `all` asks for; the targets `cuda` and `mlx` each ask for a half
    SHARD_INDEX = indexed("shards", "prompts.stage", lambda: shard_index(CONFIG.prompts, CONFIG.experiment))
    TRAJECTORY_INDEX = indexed(
        "trajectories",
        "trajectories.networks",
        lambda: trajectory_index(CONFIG.prompts, CONFIG.trajectories, CONFIG.experiment),
        plain(CONFIG.trajectories),
    )
    CAPTURE_RUNS = {
        name: indexed(
            f"capture {name}",
            "prompts.stage",
            lambda: first_runs(CONFIG.prompts, CONFIG.experiment, captured.generations),
            captured.generations,
        )
        for name, captured in CONFIG.capture.sets.items()
    }
    ABLATED_RUNS = indexed(
        "ablate",
        "prompts.stage",
        lambda: first_runs(CONFIG.prompts, CONFIG.experiment, CONFIG.ablate.generations),
        CONFIG.ablate.generations,
    )
    NETWORKS = {
        name: resolve_network(name, WHOLE.networks[name], WHOLE.models, WHOLE.schemes)
        for name in WHOLE.trajectories.networks
    }
    for name in CONFIG.selected_models():
        if CONFIG.models[name].source and not CONFIG.models[name].revision:  # a dummy has none
            resolve_source(name, CONFIG.models[name])
    check_sources(CONFIG)
except InputError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{CONFIG.experiment}"
SHARDS = [f"{i:05d}" for i in range(len(SHARD_INDEX))]
RUN_SLICES = {slice_name(part): part["digest"] for part in [*TRAJECTORY_INDEX, *CAPTURE_RUNS.values(), ABLATED_RUNS]}
OWN_SET = "source"  # name of the capture set of captures that the user gives
TRAJECTORY_SHARDS = [f"{i:05d}" for i in range(len(TRAJECTORY_INDEX))]


def any_of(names):
    """A regular expression for a wildcard that is one of these names."""
    return "|".join(map(re.escape, names)) or "none"


wildcard_constraints:
    shard=r"\d{5}",
    slice=r"\d+-\d+",
    model=any_of(CONFIG.models),
    network=any_of(CONFIG.networks),
    refiner=any_of(CONFIG.refiners),
    storyboard=any_of([board for entry in CONFIG.refiners.values() for board in entry.storyboards]),
    embedder=any_of(CONFIG.embedders),
    scheme=any_of(CONFIG.schemes),
    budget=any_of(CONFIG.plan.budgets),
    capture=any_of([*CONFIG.capture.sets, OWN_SET]),


# Parameters ---------------------------------------------------------------------------------------------------------


def code(module):
    """Digest of a library module and all it imports: editing either makes the rule stale."""
    return code_digest(f"ditscope.{module}", CONFIG.staleness)


def plugin(module):
    """Digest of a plug-in's code, given its whole path: the library's or the user's own."""
    return code_digest(module, CONFIG.staleness)


def stage(name):
    """The settings of a stage that its jobs read: what it selects and how it shards is the workflow's business."""
    settings = getattr(CONFIG, name)
    kept = [f.name for f in fields(settings) if not f.metadata["config_only"]]
    return {key: plain(settings)[key] for key in kept}


def model_params(name):
    """A registry entry and the digest of its weights: what a job must know of a model, and what makes it stale."""
    entry = CONFIG.models[name]
    weights = entry.revision or (digest_of(source_folder(entry)) if entry.source else "")
    weights += "".join(digest_of(Path(file).expanduser()) for file in entry.loras)
    family = plugin(module) if (module := module_of_family(entry)) else ""
    mlx = "".join(map(plugin, ON_MLX.values())) if entry.backend == "mlx" else ""
    return determining(entry) | {"digest": weights + family + mlx}


def scheme_params(name, model):
    """A model's quantization scheme, with the folder of its calibration set, and the digest of the code of its kind."""
    scheme = calibrated_on(CONFIG.schemes[name], model, calibration_folder(model))
    code = plugin(module_of(scheme.kind, SCHEMES, "schemes", "a kind of scheme"))
    given = scheme.calibration and scheme.calibration != f"{RESULTS}/calibration/{model}"
    return plain(scheme) | {"digest": code + (digest_of(scheme.calibration) if given else "")}


def determining(entry):
    """A registry entry as a job's parameter: not the memory that is asked for, which changes no result."""
    return {key: value for key, value in plain(entry).items() if key != "memory_mb"}


def on_mlx(*names):
    """1 for a job that loads a model on MLX, else 0: its resource `mlx`, by which a profile or a site can tell it."""
    return int(any(CONFIG.models[name].backend == "mlx" for name in names))


# The conda environment of jobs that load a model: one per study, which Snakemake must know without wildcards to put it into
# a container image.
MODEL_ENVIRONMENT = "../envs/mlx.yaml" if on_mlx(*WHOLE.selected_models()) else "../envs/torch.yaml"


def model_files(*names):
    """Inputs of a job that loads models: nothing for local folders, the download's mark for hub models."""
    entries = [CONFIG.models[name] for name in dict.fromkeys(names) if CONFIG.models[name].revision]
    return [download_mark(entry) for entry in entries]


def embedder_params(name):
    """An embedder's registry entry and the digest of its weights, where they are not a package's."""
    entry = CONFIG.embedders[name]
    weights = entry.revision or (digest_of(source_folder(entry)) if entry.source else "")
    family = module_of(entry.family, EMBEDDER_FAMILIES, f"embedders.{name}.family", "a family of embedders")
    return determining(entry) | {"digest": weights + plugin(family)}


def source_digest_of(stage, model):
    """Digest of what the user gives of their own in place of a stage's product of a model; empty where nothing."""
    source = getattr(CONFIG, stage).sources.get(model)
    return digest_of(source) if source else ""


def sensitivity_code(model):
    """Digest of the library code that scores a model's layers: each back end has some of its own."""
    return code("sensitivity.stage") + plugin(module_of_scores(CONFIG.models[model]))


def chosen(name):
    """The name of an embedder that a setting chooses, as a list; empty where it chooses none."""
    return [name] if name else []


def chosen_embedders(name):
    """The registry of one embedder, as a job's parameter; empty where none is chosen."""
    return {name: embedder_params(name) for name in chosen(name)}


def embedder_files(name):
    """Input of a job that loads an embedder: the download's mark for a hub model, a table of the user's own vectors."""
    entry = CONFIG.embedders[name]
    if entry.family == "vectors":
        return [ancient(entry.source)]
    return [download_mark(entry)] if entry.revision else []


def embedder_gpus(name):
    """GPUs of a job that embeds: none for the control and for vectors that are there, which have no model."""
    return 0 if CONFIG.embedders[name].family in ("random-walk", "vectors") else 1


def network_params(network):
    """What a job must know of the models and schemes of a network, and what makes it stale."""
    entries = NETWORKS[network]
    return {
        "entries": [e.label for e in entries],
        "models": {e.name: model_params(e.name) for e in entries},
        "schemes": {e.label: scheme_params(e.variant, e.name) for e in entries if e.variant in CONFIG.schemes},
    }


def network_models(network):
    """The model of each entry of a network; one that stands in it twice, under two schemes, is loaded twice."""
    return [entry.name for entry in NETWORKS[network]]


def network_plans(network):
    """The bit plans that a network's entries are quantized by."""
    plans = [plan_file(f"{RESULTS}/plans", entry) for entry in NETWORKS[network]]
    return sorted({plan for plan in plans if plan})


def scheme_plan(model, scheme):
    """The bit plan that a scheme of kind `plan` applies to a model; nothing for other kinds."""
    entry = CONFIG.schemes[scheme]
    return [f"{RESULTS}/plans/{model}/{entry.plan}.json"] if entry.kind == "plan" else []


def scheme_calibration(model, scheme):
    """The calibration set that a model's scheme is solved from; nothing for schemes that need none."""
    entry = CONFIG.schemes.get(scheme)
    runs = entry is not None and CONFIG.models[model].backend in backends_of(entry.kind)
    chosen = calibration_of(entry) if runs else ""
    if chosen == CALIBRATE:
        return calibration_inputs(model)
    return [ancient(chosen.replace("{model}", model))] if chosen else []


def network_calibration(network):
    """The calibration sets that a network's schemes are solved from."""
    return [path for entry in NETWORKS[network] for path in scheme_calibration(entry.name, entry.variant)]


def refiner_model(name):
    """The model that a refiner's samples come from."""
    return WHOLE.refiners[name].source.model


def refiner_source(wildcards):
    """Where a refiner's samples come from, the model that this takes, and what makes both stale."""
    source = WHOLE.refiners[wildcards.refiner].source
    kinds = (source.kind, SOURCES, "source.kind", "a source"), (adapter_of(source), ADAPTERS, "adapter", "an adapter")
    given = folder_stamp(source.folder) if source.folder else ""
    models = {source.model: model_params(source.model)} if source.model else {}
    return {"source": plain(source), "models": models, "digest": [given, *(plugin(module_of(*kind)) for kind in kinds)]}


def refiner_start(name):
    """The file of the refiner that one goes on from; nothing where it starts anew."""
    return ancient(WHOLE.refiners[name].start) if WHOLE.refiners[name].start else []


def refiner_encoder(name):
    """The file or folder of weights that the drifting loss looks through; nothing where it has none of its own."""
    weights = settings_of(name, WHOLE.refiners[name], WHOLE.refine).encoder_weights
    return ancient(weights) if weights else []


def refiner_judge(name):
    """The embedder that a refiner is judged with, as a list; empty where that is its own encoder."""
    return chosen(settings_of(name, WHOLE.refiners[name], WHOLE.refine).judge)


def judges(name):
    """The models that judging a refiner loads: whose VAE decodes its values, and whose pictures are a control."""
    generator = settings_of(name, WHOLE.refiners[name], WHOLE.refine).generator
    return list(dict.fromkeys(filter(None, [refiner_model(name), generator])))


def storyboard_of(wildcards):
    """A refiner's storyboard."""
    return WHOLE.refiners[wildcards.refiner].storyboards[wildcards.storyboard]


def storyboard_files(wildcards):
    """The user's own files that a storyboard is made of: pictures, and a refiner."""
    told = storyboard_of(wildcards)
    return [*told.pictures, *filter(None, [told.refiner])]


def storyboard_refiner(wildcards):
    """The file of the refiner that completes a storyboard: the one that is trained here, or one that is there."""
    told = storyboard_of(wildcards)
    return ancient(told.refiner) if told.refiner else f"{RESULTS}/refine/{wildcards.refiner}/refiner.safetensors"


def storyboard_interpolation(wildcards):
    """Digest of the module that fills in what is missing of a storyboard, by the settings of its refiner."""
    told = storyboard_of(wildcards)
    if not told.refiner:
        return interpolation_digest(wildcards)
    name = header(Path(told.refiner), "refiner")["settings"]["interpolation"]
    return plugin(module_of(name, INTERPOLATIONS, "refine.interpolation", "an interpolation"))


def refiner_start_digest(wildcards):
    """Digest of that file; nothing where there is none."""
    start = WHOLE.refiners[wildcards.refiner].start
    return digest_of(start) if start else ""


def refiner_images(name):
    """The image shards that a refiner's samples are, where `generate` makes them."""
    source = WHOLE.refiners[name].source
    return image_shards(source.model) if source.kind == "generated" else []


def refiner_settings(*keys, without=()):
    """An input function: some of a refiner's settings, or all but some."""

    def settings(wildcards):
        entry = WHOLE.refiners[wildcards.refiner]
        values = plain(settings_of(wildcards.refiner, entry, WHOLE.refine))
        return {k: v for k, v in values.items() if k in keys or (not keys and k not in ("refiners", *without))}

    return settings


def interpolation_digest(wildcards):
    """Digest of the module that fills in what is missing, and of what it imports."""
    name = refiner_settings("interpolation")(wildcards)["interpolation"]
    return plugin(module_of(name, INTERPOLATIONS, "refine.interpolation", "an interpolation"))


def encoder_digest(wildcards):
    """Digest of the encoder that the drifting loss looks through: its module, what that imports, and its weights."""
    told = refiner_settings("encoder", "encoder_weights")(wildcards)
    own = plugin(module_of(told["encoder"], ENCODERS, "refine.encoder", "an encoder"))
    return own + (digest_of(told["encoder_weights"]) if told["encoder_weights"] else "")


def scaled(amount):
    """Memory or minutes of a job: more at each retry, for jobs that ended because they ran out of either."""
    return lambda wildcards, attempt: amount * attempt


def memory(amount, models=(), embedders=(), float32=False):
    """Host memory of a job in MB: `amount` of its own beside the weights that it loads; more at each retry.

    `models` and `embedders` are names in the registries, or functions of the wildcards that give names.
    """
    dtype = {"dtype": "float32"} if float32 else {}

    def asked(wildcards, attempt):
        choices = ((CONFIG.models, models), (CONFIG.embedders, embedders))
        loaded = [registry[n] for registry, names in choices for n in (names(wildcards) if callable(names) else names)]
        return (amount + sum(host_memory_mb(entry, **dtype) for entry in loaded)) * attempt

    return asked


def heaviest(own, others):
    """Of a job's own models and those of the rule's other jobs the ones that take most memory.

    For rules whose jobs are tasks of a SLURM array, all of which get what one of them asks for.
    """

    def held(names):
        return sum(host_memory_mb(CONFIG.models[name]) for name in names)

    def held_if_there(names):
        with suppress(FileNotFoundError):  # still to be downloaded
            return held(names)
        return 0

    most = max(others, key=held_if_there, default=own)
    return own if held(own) >= held_if_there(most) else most


def all_cores():
    """Threads of a job that must run alone: all that Snakemake was given; on a cluster 16, or what --set-threads says."""
    return 16 if workflow.remote_exec else workflow.resource_settings.cores or 16
