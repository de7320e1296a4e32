# Paths of what each stage leaves, and what the workflow knows of itself.
import re
from functools import cache
from itertools import accumulate, product
from pathlib import Path

from snakemake.io import strip_wildcard_constraints

from ditscope.publish.catalog import table_files
from ditscope.config import STAGES, of_backends
from ditscope.benchmark.cases import benchmark_cases
from ditscope.publish.figures import PAPER_TABLES, available
from ditscope.models.hardware import filed_under, hardware_id
from ditscope.core.identity import file_digest
from ditscope.prompts.files import least, read_prompts
from ditscope.models.settings import backends_of


def run_slice(part):
    """The table of the runs that a capture set or a shard of trajectories is made of."""
    return f"{RESULTS}/prompts/runs-{part['start']}-{part['count']}.parquet"


@cache
def prompt_shards():
    return expand(f"{RESULTS}/prompts/shard-{{shard}}.parquet", shard=SHARDS)


def image_shards(*models, suffix="tar"):
    return expand(f"{RESULTS}/images/{{model}}/shard-{{shard}}.{suffix}", model=models, shard=SHARDS)


def capture_sets(*models):
    return expand(f"{RESULTS}/captures/{{model}}/{{capture}}", model=models, capture=CONFIG.capture.sets)


def block_tables(*models):
    """Tables of what the captured blocks do, one for each question."""
    pattern = f"{RESULTS}/analysis/{{model}}/{{capture}}/{{name}}.parquet"
    return expand(pattern, model=models, capture=CONFIG.capture.sets, name=BLOCK_TABLES)


def ablations(*models, suffix="parquet"):
    return expand(f"{RESULTS}/ablation/{{model}}.{suffix}", model=models)


def capture_videos(*models):
    """Films and contact sheets of the capture sets that have decoded pictures."""
    kind = CONFIG.video.output_format
    decoded = [name for name, captured in CONFIG.capture.sets.items() if captured.should_decode_intermediates]
    return expand(
        f"{RESULTS}/videos/captures/{{model}}/{{capture}}{{suffix}}",
        model=models,
        capture=decoded,
        suffix=[f".{kind}", f"-denoising.{kind}", "-sheets"],
    )


def trajectory_videos():
    return [f"{RESULTS}/videos/trajectories.{CONFIG.video.output_format}"] if CONFIG.trajectories.networks else []


def trajectory_shards(*networks, suffix="parquet"):
    return expand(
        f"{RESULTS}/trajectories/{{network}}/shard-{{shard}}.{suffix}", network=networks, shard=TRAJECTORY_SHARDS
    )


def embedding_shards(embedders, networks):
    pattern = f"{RESULTS}/embeddings/{{embedder}}/{{network}}-{{shard}}.parquet"
    return expand(pattern, embedder=embedders, network=networks, shard=TRAJECTORY_SHARDS)


def analysis_tables(folder):
    """Tables of drift/, clusters/ or topology/; none where nothing is embedded."""
    tables = {
        "drift": ["drift", "similarity", "autoregression", "normality"],
        "clusters": [
            "clusters",
            "map",
            "run_lengths",
            "longest_runs",
            "transitions",
            "label_phases",
            "returns",
            "outliers",
            "agreement",
        ],
        "topology": ["diagrams", "entropy", "distances"],
    }
    embedded = CONFIG.embed.embedders and CONFIG.trajectories.networks
    return expand(f"{RESULTS}/{folder}/{{table}}.parquet", table=tables[folder]) if embedded else []


@cache
def left_by_stages():
    """What each stage leaves, less the stages that this config leaves out."""
    return {name: files for name, files in targets(publish=False).items() if files}


def figure_inputs(w=None):
    """What the figures read, by stage."""
    left = left_by_stages()
    drawn = {name for figure in available(set(left)) for name in figure.stages}
    return {name: files for name, files in left.items() if name in drawn}


def explorer_inputs(w=None):
    """What the explorer reads, by stage."""
    return {name: files for name, files in figure_inputs().items() if name in ("cluster", "drift", "benchmark")}


def paper_table_inputs(w=None):
    """What the paper tables read, by stage."""
    return {name: files for name, files in figure_inputs().items() if name in PAPER_TABLES.values()}


def paper_table_files():
    names = [name for name, needed in PAPER_TABLES.items() if needed in paper_table_inputs()]
    return expand(f"{RESULTS}/tables/{{name}}.{{kind}}", name=names, kind=["csv", "md", "tex"])


def figure_rooms():
    """The stages whose `figures.py` draws something."""
    return list(dict.fromkeys(figure.stages[0] for figure in available(set(figure_inputs()))))


def figure_files():
    """Every figure in the other formats than the report's, and its data."""
    kinds = [*(kind for kind in CONFIG.publish.formats if kind != report_format()), "csv"]
    names = [figure.name for figure in available(set(figure_inputs()))]
    return expand(f"{RESULTS}/figures/{{name}}.{{kind}}", name=names, kind=kinds)


def report_format():
    """The format of the figures that the report shows: SVG, else PNG, else PDF."""
    return next(kind for kind in ("svg", "png", "pdf") if kind in CONFIG.publish.formats)


def publications():
    shown = [f"{RESULTS}/figures/{figure.name}.{report_format()}" for figure in available(set(figure_inputs()))]
    pages = [f"{RESULTS}/explorer.html"] if explorer_inputs() else []
    return [*shown, *figure_files(), *paper_table_files(), f"{RESULTS}/catalog.duckdb", *pages]


@cache
def calibration_index():
    """The images of each calibration shard: appending prompts beyond the first `num_images` changes nothing."""

    def read():
        from ditscope.calibrate.files import calibration_images

        prompts = read_prompts(CONFIG.prompts.csv, least(CONFIG.prompts.limit, CONFIG.calibrate.num_images))
        images = calibration_images(prompts, CONFIG.calibrate.num_images, CONFIG.calibrate.seed)
        size = CONFIG.calibrate.shard_size
        return {f"{i // size:05d}": images[i : i + size] for i in range(0, len(images), size)}

    return indexed("calibration", "calibrate.files", read, plain(CONFIG.calibrate))


def calibration_shards(model):
    return expand(f"{RESULTS}/calibration/{model}/shards/{{shard}}", shard=calibration_index())


def calibration_manifests(*models):
    return expand(f"{RESULTS}/calibration/{{model}}/manifest.json", model=models)


def calibration_tables(*models):
    """Of each calibration set its manifest and its activation statistics."""
    pattern = f"{RESULTS}/calibration/{{model}}/{{file}}"
    return expand(pattern, model=models, file=["manifest.json", "activations.parquet"])


def calibration_folder(model):
    return CONFIG.sensitivity.calibrations.get(model, f"{RESULTS}/calibration/{model}")


def calibration_inputs(model):
    return (
        [] if model in CONFIG.sensitivity.calibrations else [*calibration_manifests(model), *calibration_shards(model)]
    )


def sensitivity_layers(*models, name="layers"):
    groups = [f"{i:03d}" for i in range(CONFIG.sensitivity.layer_groups)]
    return expand(f"{RESULTS}/sensitivity/{{model}}/{name}-{{group}}.parquet", model=models, group=groups)


def sensitivity_table():
    names = ["sensitivity", "agreement"] if CONFIG.sensitivity.models else []
    return expand(f"{RESULTS}/sensitivity/{{name}}.parquet", name=names)


def bit_plans(*models):
    return expand(f"{RESULTS}/plans/{{model}}/{{budget}}.json", model=models, budget=CONFIG.plan.budgets)


def benchmark_prompts():
    """The first prompt shards that together hold the benchmark's number of images."""
    totals = list(accumulate(shard["runs"] for shard in SHARD_INDEX))
    needed = 1 + sum(total < CONFIG.benchmark.num_images for total in totals[:-1])
    return prompt_shards()[:needed]


def benchmark_hardware(model):
    own = hardware_id() if CONFIG.benchmark.hardware == "auto" else CONFIG.benchmark.hardware
    return filed_under(Path(RESULTS) / "benchmarks" / model, own, CONFIG.models[model].backend)


def benchmark_runs(*models, hardware=None, suffix="parquet"):
    cases = ["-".join(case) for case in benchmark_cases(CONFIG.benchmark)]
    return [
        f"{RESULTS}/benchmarks/{model}/{host}/{case}.{suffix}"
        for model in models
        for host in ([hardware] if hardware else benchmark_hardware(model))
        for case in cases
    ]


def benchmark_elsewhere(suffix):
    """Tables that other machines made of this study, and their digests: joined as they came, never made again here."""
    cases = ["-".join(case) for case in benchmark_cases(CONFIG.benchmark)]
    files = [
        folder / name
        for model in CONFIG.benchmark.models
        for folder in sorted(Path(RESULTS, "benchmarks", model).glob("*/"))
        if folder.name not in benchmark_hardware(model)
        for name in ([suffix] if suffix == "quality.parquet" else [f"{case}.{suffix}" for case in cases])
    ]
    return {str(file): file_digest(file) for file in files if file.exists()}


def benchmark_qualities(*models):
    """Quality tables of models; none where the study leaves quality out."""
    judged = [] if CONFIG.benchmark.skip_metrics else models
    return [f"{RESULTS}/benchmarks/{m}/{host}/quality.parquet" for m in judged for host in benchmark_hardware(m)]


def checkpoints():
    """Models and schemes whose quantized weights are saved: a scheme of another back end has none."""
    pairs = product(CONFIG.benchmark.models, CONFIG.benchmark.checkpoints)
    return [(m, s) for m, s in pairs if CONFIG.models[m].backend in backends_of(CONFIG.schemes[s].kind)]


def benchmark_tables():
    """The joined tables, what they recommend, the images of each run, and the quantized weights that are asked for."""
    if not CONFIG.benchmark.models:
        return []
    names = ["benchmark", "benchmark.timing", "quality", "flat_field", "targets"]
    left = [*expand(f"{RESULTS}/benchmarks/{{name}}.parquet", name=names), f"{RESULTS}/benchmarks/recommendation.md"]
    pattern = f"{RESULTS}/checkpoints/{{model}}/{{scheme}}.safetensors"
    weights = [pattern.format(model=model, scheme=scheme) for model, scheme in checkpoints()]
    return [*left, *benchmark_runs(*CONFIG.benchmark.models, suffix="tar"), *weights]


def refinements(*models):
    names = ["codebook.safetensors", "latent_mae.safetensors", "refiner.safetensors"]
    names += [f"{table}.parquet" for table in ("assignments", "training", "diagnostics", "neighbours", "tsne")]
    names += ["record.json", "samples.png", "exemplars.png"]
    return expand(f"{RESULTS}/refine/{{model}}/{{name}}", model=models, name=names)


# What the workflow knows of itself ---------------------------------------------------------------------------------


@cache
def targets(publish=True):
    """What each stage that this config asks for leaves, in pipeline order."""
    left = {
        "prompts": prompt_shards(),
        "generate": image_shards(*CONFIG.generate.models),
        "capture": capture_sets(*CONFIG.capture.models),
        "blocks": block_tables(*CONFIG.capture.models),
        "ablate": [*ablations(*CONFIG.ablate.models), *ablations(*CONFIG.ablate.models, suffix="tar")],
        "calibrate": calibration_tables(*CONFIG.calibrate.models),
        "sensitivity": sensitivity_table(),
        "plan": bit_plans(*CONFIG.sensitivity.models),
        "benchmark": benchmark_tables(),
        "trajectories": [
            path
            for kind in ("parquet", "tar")
            for path in trajectory_shards(*CONFIG.trajectories.networks, suffix=kind)
        ],
        "embed": embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        "drift": analysis_tables("drift"),
        "cluster": analysis_tables("clusters"),
        "topology": analysis_tables("topology"),
        "refine": refinements(*CONFIG.refine.models),
        "video": [*capture_videos(*CONFIG.capture.models), *trajectory_videos()],
    }
    left |= {"publish": publications()} if publish else {}
    return {name: files if name in CONFIG.asked() else [] for name, files in left.items()}


@cache
def upstream():
    """What is made on the way to `targets` of stages that are not asked for, or of models that these do not name."""
    plans = [path for network in CONFIG.trajectories.networks for path in network_plans(network)]
    pairs = product(CONFIG.benchmark.models, CONFIG.benchmark.schemes)
    plans = list(dict.fromkeys([*plans, *(path for pair in pairs for path in scheme_plan(*pair))]))
    scored = list(dict.fromkeys([*CONFIG.sensitivity.models, *(Path(plan).parent.name for plan in plans)]))
    measured = CONFIG.sensitivity.models if "sensitivity" in CONFIG.asked() else []
    if CONFIG.generate.models or CONFIG.refine.models:
        prompts = prompt_shards()
    else:
        prompts = benchmark_prompts() if CONFIG.benchmark.models else []
    made = {
        "prompts": prompts,
        "generate": image_shards(*CONFIG.refine.models),
        "capture": capture_sets(*CONFIG.capture.models),
        "calibrate": calibration_manifests(*(name for name in scored if name not in CONFIG.sensitivity.calibrations)),
        "sensitivity": [
            path
            for part in ("layers", "fast")
            for path in sensitivity_layers(*(name for name in scored if name not in measured), name=part)
        ],
        "plan": plans,
        "trajectories": [
            path
            for kind in ("parquet", "tar")
            for path in trajectory_shards(*CONFIG.trajectories.networks, suffix=kind)
        ],
        "embed": embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
    }
    return {name: sorted(set(files) - set(targets()[name])) for name, files in made.items()}


def refuse_stage(name):
    """An input function of a stage's target that says that the stage is not among `stages`, which `all` asks for."""

    def refuse(wildcards):
        raise WorkflowError(
            f"`{name}` is not among this study's `stages`; --config 'stages=[{name}]' asks for it alone"
        )

    return refuse


def half(backend):
    """What jobs that load models of one back end leave, up to where tables join models of both."""
    study = of_backends(WHOLE, [backend])
    benchmarked, networks = study.benchmark.models, study.trajectories.networks
    kinds = ("parquet", "timing.parquet", "tar", "flat.parquet")
    return [
        *image_shards(*study.generate.models),
        *capture_sets(*study.capture.models),
        *ablations(*study.ablate.models),
        *calibration_tables(*study.calibrate.models),
        *sensitivity_layers(*study.sensitivity.models),
        *(bit_plans(*study.sensitivity.models) if "plan" in study.asked() else []),
        *(path for kind in kinds for path in benchmark_runs(*benchmarked, suffix=kind)),
        *benchmark_qualities(*benchmarked),
        *trajectory_shards(*networks),
        *refinements(*study.refine.models),
    ]


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
