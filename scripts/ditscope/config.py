"""The whole config: its closed set of keys, and what is checked across sections."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ditscope.ablate.settings import Ablate
from ditscope.analyse.settings import Analyse
from ditscope.benchmark.settings import Benchmark
from ditscope.blocks.settings import Blocks
from ditscope.calibrate.settings import Calibrate
from ditscope.capture.settings import Capture
from ditscope.cluster.settings import Cluster
from ditscope.core.errors import InputError
from ditscope.core.names import check_apart, check_name, unknown
from ditscope.core.patterns import select_blocks, select_indices
from ditscope.core.settings import decode, setting
from ditscope.drift.settings import Drift
from ditscope.embed.settings import Embed
from ditscope.generate.settings import Generate
from ditscope.models.block_names import known_blocks
from ditscope.models.folders import check_revision
from ditscope.models.registry import (
    check_backend,
    check_captioning,
    check_frames,
    check_loras,
    check_remote_code,
    check_source,
    is_generator,
    require_blocks,
    require_weights,
)
from ditscope.models.settings import BACKENDS, EMULATED, Embedder, Model, Scheme, backends_of, calibration_of
from ditscope.plan.settings import Plan
from ditscope.prompts.settings import Prompts
from ditscope.publish.settings import Publish
from ditscope.refine.data_settings import check_source_of, has_pictures
from ditscope.refine.settings import Refine, Refiner, settings_of
from ditscope.sensitivity.buckets import bucket_of_step
from ditscope.sensitivity.settings import Sensitivity
from ditscope.topology.settings import Topology
from ditscope.trajectories.networks import resolve_network
from ditscope.trajectories.settings import Trajectories
from ditscope.video.settings import Video

ROOT = Path(__file__).resolve().parents[2]
STATES = ("trajectories.networks", "embed.embedders")
# What a stage works on, by settings that list it. `prompts` has its CSV; `video` and `publish` draw what others leave.
WORKS_ON = {
    "generate": ("generate.models",),
    "capture": ("capture.models", "capture.sets"),
    "blocks": ("capture.models", "capture.sets"),
    "ablate": ("ablate.models",),
    "calibrate": ("calibrate.models",),
    "sensitivity": ("sensitivity.models",),
    "plan": ("sensitivity.models", "plan.budgets"),
    "benchmark": ("benchmark.models", "benchmark.schemes"),
    "trajectories": ("trajectories.networks",),
    "embed": STATES,
    "drift": STATES,
    "cluster": STATES,
    "topology": STATES,
    "refine": ("refine.refiners",),
    "analyse": ("analyse.analyses",),
}


STAGES = (
    "prompts", "generate", "capture", "blocks", "ablate", "calibrate", "sensitivity", "plan", "benchmark",
    "trajectories", "embed", "drift", "cluster", "topology", "refine", "video", "analyse",
    "publish",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The whole study."""

    experiment: str = setting("demo", "Name of the study: its results are in results/<experiment>/")
    backends: list[str] = setting(
        ["torch"],
        "Back ends that `all` asks for: models on others are left out, until `snakemake mlx` makes them",
        choices=BACKENDS,
    )
    stages: list[str] = setting(
        [],
        "Stages that `all` asks for; what they need of the others is made too. Empty: every stage that lists something",
        choices=STAGES,
    )
    staleness: str = setting(
        "code", "What makes results stale: the library's code, or only a new release", choices=("code", "release")
    )
    warm_starts: bool = setting(
        True,
        "Jobs that load models start from one process that has imported their libraries; only where jobs run locally",
    )
    models: dict[str, Model] = setting({}, "Generators and captioners by name")
    schemes: dict[str, Scheme] = setting({}, "Quantization schemes by name")
    embedders: dict[str, Embedder] = setting({}, "Embedders by name")
    networks: dict[str, list[str]] = setting(
        {}, "Cycles of models by name; an entry may be `model:scheme` or `model:budget`"
    )
    refiners: dict[str, Refiner] = setting({}, "Refiners by name: their samples and their own settings of `refine`")
    prompts: Prompts = setting(Prompts(), "")
    generate: Generate = setting(Generate(), "")
    capture: Capture = setting(Capture(), "")
    blocks: Blocks = setting(Blocks(), "")
    ablate: Ablate = setting(Ablate(), "")
    calibrate: Calibrate = setting(Calibrate(), "")
    sensitivity: Sensitivity = setting(Sensitivity(), "")
    plan: Plan = setting(Plan(), "")
    benchmark: Benchmark = setting(Benchmark(), "")
    trajectories: Trajectories = setting(Trajectories(), "")
    embed: Embed = setting(Embed(), "")
    drift: Drift = setting(Drift(), "")
    cluster: Cluster = setting(Cluster(), "")
    topology: Topology = setting(Topology(), "")
    refine: Refine = setting(Refine(), "")
    video: Video = setting(Video(), "")
    analyse: Analyse = setting(Analyse(), "")
    publish: Publish = setting(Publish(), "")

    def selected_models(self) -> list[str]:
        """Names of the models that some stage uses, in the registry's order."""
        names = {name for stage in self.by_stage().values() for name in getattr(stage, "models", [])}
        names |= {entry.partition(":")[0] for network in self.trajectories.networks for entry in self.networks[network]}
        names |= {self.refiners[name].source.model for name in self.refine.refiners}
        return [name for name in self.models if name in names]

    def quantized(self) -> list[tuple[str, str]]:
        """Models and the schemes of the registry that they run under, in benchmarks and networks."""
        pairs = [(model, scheme) for model in self.benchmark.models for scheme in self.benchmark.schemes]
        pairs += [(model, scheme) for model in self.benchmark.models for scheme in self.benchmark.checkpoints]
        for network in self.trajectories.networks:
            labels = [entry.partition(":") for entry in self.networks[network]]
            pairs += [(model, scheme) for model, _, scheme in labels if scheme in self.schemes]
        return list(dict.fromkeys(pairs))

    def asked(self) -> tuple[str, ...]:
        """Names of the stages that `all` asks for."""
        return tuple(self.stages) or STAGES

    def by_stage(self) -> dict[str, Any]:
        """The settings of each stage by the stage's name, in pipeline order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in STAGES}


def load_config(data: Mapping[str, Any]) -> Config:
    """Decode and cross-check a config (keys that Snakemake itself adds are ignored).

    What only stages that it does not select work on is left out: see `of_stages`.
    """
    config = of_stages(decode(Config, {k: v for k, v in data.items() if k != "pathvars"}))
    check(config)
    return config


def check(config: Config) -> None:
    """Check what types cannot: names that refer to registry entries, sizes, exclusive options."""
    check_names(config)
    check_models(config)
    check_selections(config)
    check_analyses(config)
    check_networks(config)
    check_refiners(config)
    check_schemes(config)
    check_budgets(config)
    check_benchmark(config)
    check_remote(config)
    check_captures(config)
    check_patterns(config)


def check_names(config: Config) -> None:
    """Check names that become parts of paths."""
    check_name("experiment", config.experiment)
    registries: dict[str, Mapping[str, Any]] = {
        "models": config.models,
        "schemes": config.schemes,
        "embedders": config.embedders,
        "networks": config.networks,
        "refiners": config.refiners,
        "capture.sets": config.capture.sets,
        "plan.budgets": config.plan.budgets,
        "benchmark.targets": config.benchmark.targets,
        "analyse.analyses": config.analyse.analyses,
    }
    for registry, entries in registries.items():
        for name in entries:
            check_name(registry, name)
        check_apart(registry, entries)
    if config.benchmark.hardware:
        check_name("benchmark.hardware", config.benchmark.hardware)
    if braces := set(config.prompts.csv) & set("{}<>"):
        raise InputError(
            f"prompts.csv: `{config.prompts.csv}` has a {min(braces)}, by which Snakemake marks wildcards; rename it"
        )


def check_models(config: Config) -> None:
    """Check the entries of the registries `models` and `embedders`."""
    for name, model in config.models.items():
        for side in ("width", "height"):
            if getattr(model, side) % 16:
                raise InputError(f"models.{name}.{side}: {getattr(model, side)} is not a multiple of 16")
        check_frames(name, model)
        check_backend(name, model)
        check_source(name, model)
        check_loras(name, model)
        check_captioning(name, model)
        check_revisions(f"models.{name}", model)
    for name, embedder in config.embedders.items():
        check_revisions(f"embedders.{name}", embedder)


def check_revisions(where: str, entry: Model | Embedder) -> None:
    """Refuse a revision of an entry's repository, or of one that its code reads, which is no commit."""
    check_revision(f"{where}.revision", entry.revision)
    for repository, revision in entry.code_revisions.items():
        check_revision(f"{where}.code_revisions.{repository}", revision or "nothing")


def check_remote(config: Config) -> None:
    """Refuse a selected model that is code of its repository where its entry does not allow that."""
    embedders = [*config.embed.embedders, config.blocks.features, config.ablate.features]
    if config.benchmark.models:
        embedders += [config.benchmark.features, *config.benchmark.cosines]
    for name in config.selected_models():
        check_remote_code(f"models.{name}", config.models[name])
    for name in filter(config.embedders.get, embedders):
        check_remote_code(f"embedders.{name}", config.embedders[name])


def check_selections(config: Config) -> None:
    """Check what stages select of the registries, and that a stage can read the blocks of its models where it must."""
    for stage, registry in (
        ("generate", "models"),
        ("capture", "models"),
        ("ablate", "models"),
        ("calibrate", "models"),
        ("sensitivity", "models"),
        ("benchmark", "models"),
        ("refine", "refiners"),
        ("benchmark", "schemes"),
        ("trajectories", "networks"),
        ("embed", "embedders"),
    ):
        check_known(f"{stage}.{registry}", getattr(getattr(config, stage), registry), config, registry)
    for section in ("blocks", "ablate"):
        features = getattr(config, section).features
        check_known(f"{section}.features", [features] if features else [], config, "embedders")
    check_known("drift.oracle", config.drift.oracle, config, "networks")
    for stage in ("generate", "capture", "calibrate"):
        check_known(f"{stage}.sources", getattr(config, stage).sources, config, "models")
    for stage in ("capture", "ablate", "calibrate", "sensitivity"):
        for name in getattr(config, stage).models:
            backends = ("torch", "mlx") if stage in ("calibrate", "sensitivity") else ("torch",)
            require_blocks(f"{stage}.models", name, config.models[name], backends)
    for name in config.benchmark.models:
        require_weights("benchmark.models", name, config.models[name])


def check_known(where: str, names: Collection[str], config: Config, registry: str) -> None:
    """Refuse a name that is in no entry of a registry."""
    entries = getattr(config, registry)
    for name in names:
        if name not in entries:
            raise InputError(unknown(where, name, entries, f"in the config's `{registry}`"))


def check_analyses(config: Config) -> None:
    """Check the analyses of the user's own: a module of a package, and stages that come before."""
    for name, analysis in config.analyse.analyses.items():
        where = f"analyse.analyses.{name}"
        if "." not in analysis.module:
            raise InputError(f"{where}.module: `{analysis.module}` names no package; write package.module")
        for stage in analysis.stages:
            if stage not in STAGES[: STAGES.index("analyse")]:
                raise InputError(unknown(f"{where}.stages", stage, STAGES, "a stage that comes before"))


def check_refiners(config: Config) -> None:
    """Check the refiners of the registry: their own settings, and the models that their samples come from."""
    for name, entry in config.refiners.items():
        own = settings_of(name, replace(entry, start=""), config.refine)  # that file is looked at by the workflow
        if name in config.refine.refiners:
            check_source_of(f"refiners.{name}.source", entry.source)
            if model := entry.source.model:
                check_known(f"refiners.{name}.source.model", [model], config, "models")
                require_weights(f"refiners.{name}.source.model", model, config.models[model])
            check_known("refine.judge", [own.judge] if own.judge else [], config, "embedders")
            if own.judge and not has_pictures(entry.source):
                raise InputError(
                    f"refiners.{name}: its values are no pictures to judge; set `judge: ''` in its settings"
                )
            check_known("refine.generator", [own.generator] if own.generator else [], config, "models")
            for board, told in entry.storyboards.items():
                makers = [told.model] if told.prompts else []
                check_known(f"refiners.{name}.storyboards.{board}.model", makers, config, "models")


def check_networks(config: Config) -> None:
    """Check the networks that trajectories walk."""
    for name in config.trajectories.networks:
        for entry in config.networks[name]:
            label, _, variant = entry.partition(":")
            check_known(f"networks.{name}", [label], config, "models")
            if variant and variant not in config.schemes and variant not in config.plan.budgets:
                variants = [*config.schemes, *config.plan.budgets]
                raise InputError(unknown(f"networks.{name}", variant, variants, "a scheme or a plan's budget"))
        resolve_network(name, config.networks[name], config.models, config.schemes)


def check_schemes(config: Config) -> None:
    """Check the schemes that follow a plan, name formats, or are solved from a calibration set."""
    for model, name in config.quantized():
        entry = config.models[model]
        if calibration_of(config.schemes[name]) and entry.backend in backends_of(config.schemes[name].kind):
            require_blocks(f"schemes.{name}: solved from recorded inputs", model, entry, ("torch",))
    for name, scheme in config.schemes.items():
        check_formats(name, scheme)
        if scheme.kind == "plan" and scheme.plan not in config.plan.budgets:
            raise InputError(unknown(f"schemes.{name}.plan", scheme.plan, config.plan.budgets, "a plan's budget"))
        if scheme.kind == "plan" and scheme.fuse_qkv:
            raise InputError(f"schemes.{name}.fuse_qkv: a plan names the separate layers; set it to false")
        if scheme.text_encoders and scheme.kind in ("base", "plan"):
            raise InputError(
                f"schemes.{name}.text_encoders: `{scheme.kind}` says nothing of text encoders; take another kind"
            )
        if scheme.cache_threshold and not scheme.cache:
            raise InputError(f"schemes.{name}.cache_threshold: says nothing without `cache`; name a method there")


def check_formats(name: str, scheme: Scheme) -> None:
    """Refuse formats and calibration sets that the kind of a scheme does not read."""
    if scheme.kind in EMULATED or "." in scheme.kind:
        return
    for key in ("activations", "calibration", *(() if scheme.kind.startswith("mlx-") else ("format",))):
        if getattr(scheme, key) != getattr(Scheme(scheme.kind), key):
            raise InputError(
                f"schemes.{name}.{key}: `{scheme.kind}` does not read it; kinds that do: {', '.join(EMULATED)}"
            )


def check_budgets(config: Config) -> None:
    """Check the formats that plans choose from."""
    for name, budget in config.plan.budgets.items():
        where = f"plan.budgets.{name}.formats"
        check_known(where, budget.formats, config, "schemes")
        for key in budget.formats:
            scheme = config.schemes[key]
            several = scheme.kind == "plan" or scheme.fuse_qkv or scheme.cache or calibration_of(scheme)
            if several or scheme.kind.startswith(("mlx-", "sparse-")):
                raise InputError(f"{where}: `{key}` is no format of a single layer on torch; leave it out")


def check_benchmark(config: Config) -> None:
    """Check that a benchmark has what its images are judged by."""
    bench = config.benchmark
    for key in ("checkpoints", "compiled"):
        check_known(f"benchmark.{key}", getattr(bench, key), config, "schemes")
    for name, target in bench.targets.items():
        check_known(f"benchmark.targets.{name}.model", [target.model], config, "models")
    if not bench.models or bench.skip_metrics:
        return
    if "eager" not in bench.compile or not any(config.schemes[name] == Scheme("base") for name in bench.schemes):
        raise InputError(
            "benchmark: quality is judged against a scheme of kind `base` in eager mode; "
            "select both, or set skip_metrics: true"
        )
    check_known("benchmark.features", [bench.features], config, "embedders")
    check_known("benchmark.cosines", bench.cosines, config, "embedders")
    if bench.kid_subset_size > bench.num_images:
        raise InputError(
            f"benchmark.kid_subset_size: {bench.kid_subset_size} is more than benchmark.num_images, "
            f"{bench.num_images}; make it smaller"
        )


def check_captures(config: Config) -> None:
    """Check options of captures that exclude each other."""
    for name, capture in config.capture.sets.items():
        if capture.offload and capture.multi_gpu:
            raise InputError(f"capture.sets.{name}: `offload` and `multi_gpu` exclude each other; set one to false")


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
    for name in (name for name in config.sensitivity.models if name not in config.calibrate.sources):
        check_buckets(config, name, config.calibrate.num_steps or config.models[name].steps)


def check_buckets(config: Config, name: str, steps: int) -> None:
    """Refuse to look at so few of a model's calibration steps that a third of them has none."""
    stride = config.sensitivity.step_stride
    if config.sensitivity.buckets == "thirds" and len({bucket_of_step(i, steps) for i in range(0, steps, stride)}) < 3:
        raise InputError(
            f"sensitivity.step_stride: every {stride}th of {steps} steps (model `{name}`) leaves a third of them"
            " without a sample; set it lower, or `calibrate.num_steps` higher"
        )


def check_blocks(where: str, pattern: str, name: str, entry: Model) -> None:
    """Refuse a pattern of blocks that a part of matches no block of a model."""
    if blocks := known_blocks(entry):
        select_blocks(pattern, blocks, f"{where} (model `{name}`)")


def of_stages(config: Config) -> Config:
    """The study without the models, networks and embedders that none of its `stages` works on.

    Where it names no stages, it is as it was. Raises InputError for a stage that has nothing to work on.
    """
    if not config.stages:
        return config
    analysed = {stage for a in config.analyse.analyses.values() for stage in a.stages if "analyse" in config.stages}
    kept = {where for name in {*config.stages, *analysed} for where in WORKS_ON.get(name, ())}
    for name in config.stages:
        if lacking := [where for where in WORKS_ON.get(name, ()) if not value_at(config, where)]:
            raise InputError(f"stages: `{name}` has nothing to work on; set {' and '.join(f'`{w}`' for w in lacking)}")
    if "video" in config.stages and not kept & {"capture.models", "trajectories.networks"}:
        raise InputError("stages: `video` draws captures and trajectories; name `capture` or `trajectories` as well")
    if config.stages == ["publish"]:
        raise InputError("stages: `publish` draws what other stages leave; name these as well")
    dropped: dict[str, dict[str, list]] = {}
    for where in {where for places in WORKS_ON.values() for where in places} - kept:
        stage, _, key = where.partition(".")
        if isinstance(value_at(config, where), list):
            dropped.setdefault(stage, {})[key] = []
    return replace(config, **{stage: replace(getattr(config, stage), **keys) for stage, keys in dropped.items()})


def value_at(config: Config, where: str) -> Any:
    """The value of a stage's setting, as of `capture.models`."""
    stage, _, key = where.partition(".")
    return getattr(getattr(config, stage), key)


def of_backends(config: Config, backends: Collection[str]) -> Config:
    """The study without the models and networks that run on other back ends than these."""

    def runs(entry: str) -> bool:
        model = config.models[entry.partition(":")[0]]
        return model.backend in backends or not is_generator(model)

    kept: dict[str, Any] = {
        name: replace(stage, models=[model for model in stage.models if runs(model)])
        for name, stage in config.by_stage().items()
        if hasattr(stage, "models")
    }
    networks = [n for n in config.trajectories.networks if all(map(runs, config.networks[n]))]
    needed = {name: config.refiners[name].source.model for name in config.refine.refiners}
    refiners = [name for name, model in needed.items() if not model or runs(model)]
    return replace(
        config,
        **kept,
        trajectories=replace(config.trajectories, networks=networks),
        refine=replace(config.refine, refiners=refiners),
    )
