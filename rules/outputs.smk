# Paths of what each stage leaves, and what the workflow knows of itself.
import re
from functools import cache
from itertools import accumulate, product
from pathlib import Path

from snakemake.io import strip_wildcard_constraints

from ditscope.publish.catalog import table_files
from ditscope.config import STAGES, of_backends
from ditscope.benchmark.cases import benchmark_cases
from ditscope.capture.files import decodes_of, generations_in
from ditscope.publish.figures import ANSWERING, INDEX, PAPER_TABLES, available, own_figures
from ditscope.models.hardware import filed_under, hardware_id
from ditscope.core.identity import file_digest
from ditscope.core.schema import STAGE_OF, tables_of
from ditscope.prompts.files import least, read_prompts
from ditscope.sensitivity.files import PARTS, format_file, part_files
from ditscope.models.settings import backends_of
from ditscope.video.settings import FORMATS

TEXTS = Path(workflow.current_basedir.join("../report").get_path_or_uri(secret_free=True))  # how to read figures
FILM = FORMATS[CONFIG.video.output_format]  # suffix of films


def made_by(*names):
    """Patterns of all outputs of rules, once these have been read."""
    return [strip_wildcard_constraints(str(path)) for name in names for path in workflow.get_rule(name).output]


def run_slice(part):
    """The table of the runs that a capture set or a shard of trajectories is made of."""
    return f"{RESULTS}/prompts/runs-{slice_name(part)}.parquet"


@cache
def prompt_shards():
    return expand(f"{RESULTS}/prompts/shard-{{shard}}.parquet", shard=SHARDS)


def image_shards(*models, suffix="tar"):
    """Shards of each model's images: one per prompt shard, or a single one of pictures that the user gives."""
    shards = {model: ["00000"] if model in CONFIG.generate.sources else SHARDS for model in models}
    return [f"{RESULTS}/images/{model}/shard-{shard}.{suffix}" for model in models for shard in shards[model]]


def storyboard_shards(wildcards, suffix):
    """The shards of the pictures that a storyboard takes of a model; nothing where it names files."""
    told = storyboard_of(wildcards)
    return image_shards(told.model, suffix=suffix) if told.prompts else []


def sets_of(model):
    """Names of a model's capture sets: the config's, or that of the captures that the user gives."""
    return [OWN_SET] if model in CONFIG.capture.sources else list(CONFIG.capture.sets)


def capture_sets(*models):
    return [f"{RESULTS}/captures/{model}/{capture}" for model in models for capture in sets_of(model)]


def block_tables(*models):
    """Tables of what the captured blocks do, one for each question."""
    folders = [f"{RESULTS}/analysis/{model}/{capture}" for model in models for capture in sets_of(model)]
    return [f"{folder}/{table.stem}.parquet" for folder in folders for table in tables_of("blocks")]


def ablations(*models):
    """The table and the pictures of each model."""
    return expand(made_by("ablation"), model=models)


def capture_videos(*models):
    """Films and contact sheets of the capture sets that have decoded pictures."""

    def decoded(model, capture):
        if model in CONFIG.capture.sources:
            return all(
                CONFIG.video.decode in decodes_of(path) for path in generations_in(CONFIG.capture.sources[model])
            )
        return CONFIG.capture.sets[capture].should_decode_intermediates

    return [
        f"{RESULTS}/videos/captures/{model}/{capture}{suffix}"
        for model in models
        for capture in sets_of(model)
        if decoded(model, capture)
        for suffix in (FILM, ".html", f"-denoising{FILM}", "-sheets")
    ]


def trajectory_videos():
    """The film of all networks, and folders of a sheet for each."""
    names = [f"trajectories{FILM}", "trajectories.html", "timelines", "strips"] if CONFIG.trajectories.networks else []
    return [f"{RESULTS}/videos/{name}" for name in names]


def jump_tables():
    """The table of semantic jumps, where the study has it."""
    tables = analysis_tables("drift") if "drift" in CONFIG.asked() else []
    return [path for path in tables if Path(path).name == "jumps.parquet"]


def trajectory_shards(*networks, suffix="parquet"):
    return expand(
        f"{RESULTS}/trajectories/{{network}}/shard-{{shard}}.{suffix}", network=networks, shard=TRAJECTORY_SHARDS
    )


def oracle_networks():
    """The networks whose pictures the oracle of the shapes world reads."""
    return [network for network in CONFIG.trajectories.networks if network in CONFIG.drift.oracle]


def embedding_shards(embedders, networks):
    pattern = f"{RESULTS}/embeddings/{{embedder}}/{{network}}-{{shard}}.parquet"
    return expand(pattern, embedder=embedders, network=networks, shard=TRAJECTORY_SHARDS)


def analysis_tables(stage):
    """Tables of the stage drift, cluster or topology; none where nothing is embedded."""
    embedded = CONFIG.embed.embedders and CONFIG.trajectories.networks
    return [f"{RESULTS}/{table.file}" for table in tables_of(stage)] if embedded else []


def analyses():
    return expand(f"{RESULTS}/analysis/{{name}}.parquet", name=CONFIG.analyse.analyses)


def analysis_inputs(name):
    """The files of the stages that an analysis of the user's own reads, by stage."""
    files = {stage: every_stage()[stage] for stage in CONFIG.analyse.analyses[name].stages}
    if empty := [stage for stage, paths in files.items() if not paths]:
        raise WorkflowError(f"analyse.analyses.{name}.stages: `{empty[0]}` has nothing to work on in this study")
    return files


@cache
def left_by_stages():
    """What each stage leaves, less the stages that this config leaves out."""
    return {name: files for name, files in targets(publish=False).items() if files}


def figure_inputs(w=None):
    """What the figures read, by stage."""
    drawn = {stage for figure in figures() for stage in figure.stages}
    return {name: files for name, files in left_by_stages().items() if name in drawn}


@cache
def figures():
    """The figures of this study: the registry's as far as their stages go, and those of analyses of the user's own."""
    left = left_by_stages()
    return [*available(set(left)), *own_figures(own_drawings())]


def own_drawings():
    """The analyses of the user's own that have a figure, with their modules."""
    named = CONFIG.analyse.analyses.items() if "analyse" in left_by_stages() else ()
    return {name: analysis.module for name, analysis in named if defines(analysis.module, "figure")}


def explorer_inputs(w=None):
    """What the explorer shows, by stage: all that there is, and the answers."""
    return (left := left_by_stages()) and left | {"publish": [f"{RESULTS}/answers.parquet"]}


def explored():
    """What the explorer tells of the study: its plan, without what changes no result."""
    config = {k: v for k, v in plain(CONFIG).items() if k not in ("staleness", "warm_starts")}
    models = {name: determining(CONFIG.models[name]) for name in CONFIG.selected_models()}
    return {
        "targets": left_by_stages() | {"publish": [path for path in publications() if explorable(path)]},
        "config": config | {"models": models},
        "configfiles": [os.path.relpath(path) for path in workflow.overwrite_configfiles],  # not where the study lies
    }


def explorable(path):
    """Whether the explorer reads or names a file that is published."""
    return "figures" in Path(path).parts or Path(path).name == "answers.parquet"


def paper_table_inputs(w=None):
    """What the paper tables read, by stage."""
    return {name: files for name, files in figure_inputs().items() if name in PAPER_TABLES.values()}


def declarations():
    """Digests of the modules that declare the tables of all stages: keys of the catalog, and what columns mean."""
    return [code(f"{name}.tables") for name in dict.fromkeys(STAGE_OF.values())]


def paper_table_files():
    names = [name for name, needed in PAPER_TABLES.items() if needed in paper_table_inputs()]
    return expand(f"{RESULTS}/tables/{{name}}.{{kind}}", name=names, kind=["csv", "md", "tex"])


def figure_rooms():
    """The modules that draw something."""
    return list(dict.fromkeys(figure.source for figure in available(set(figure_inputs()))))


def figure_files():
    """Every figure in the other formats than the report's, and its data."""
    kinds = [*(kind for kind in CONFIG.publish.formats if kind != report_format()), "csv"]
    drawn = expand(f"{RESULTS}/figures/{{name}}.{{kind}}", name=[figure.name for figure in figures()], kind=kinds)
    return [*drawn, f"{RESULTS}/figures/{INDEX}"]


def report_format():
    """The format of the figures that the report shows: SVG, else PNG, else PDF."""
    return next(kind for kind in ("svg", "png", "pdf") if kind in CONFIG.publish.formats)


def answer_inputs(w=None):
    """What the answers are made of, by stage."""
    return {name: files for name, files in left_by_stages().items() if name in ANSWERING}


def caption_of(name):
    """The caption of a figure, made from its numbers, as the rules' folder reaches it."""
    return str(Path(RESULTS).absolute() / "captions" / f"{name}.rst")


def caption_texts():
    """What says how to read each figure, and the whole report, by name."""
    names = dict.fromkeys([*(figure.caption for figure in figures()), "workflow"])
    return {name: (TEXTS / f"{name}.rst").read_text(encoding="utf-8") for name in names}


def caption_files():
    return [f"{RESULTS}/captions/{name}.rst" for name in [*(figure.name for figure in figures()), "workflow"]]


def category(stage):
    """The report's category of a stage: numbered, since the report sorts them by name."""
    return f"{0 if stage == 'answers' else 1 + STAGES.index(stage):02d} {stage}"


def shown_figures():
    """Every figure in the format of the report."""
    return [f"{RESULTS}/figures/{figure.name}.{report_format()}" for figure in figures()]


def publications():
    pages = [f"{RESULTS}/explorer.html"] if explorer_inputs() else []
    told = [f"{RESULTS}/answers.parquet", f"{RESULTS}/answers.html", *caption_files()]
    return [*shown_figures(), *figure_files(), *paper_table_files(), *told, f"{RESULTS}/catalog.duckdb", *pages]


@cache
def calibration_index():
    """The images of each calibration shard: appending prompts beyond the first `num_images` changes nothing."""

    def read():
        from ditscope.calibrate.files import by_shard, calibration_images

        prompts = read_prompts(CONFIG.prompts.csv, least(CONFIG.prompts.limit, CONFIG.calibrate.num_images))
        images = calibration_images(prompts, CONFIG.calibrate.num_images, CONFIG.calibrate.seed)
        return by_shard(images, CONFIG.calibrate.shard_size)

    return indexed("calibration", "calibrate.files", read, plain(CONFIG.calibrate))


def calibration_shards(model):
    return expand(f"{RESULTS}/calibration/{model}/shards/{{shard}}", shard=calibration_index())


def calibration_manifests(*models):
    return expand(f"{RESULTS}/calibration/{{model}}/manifest.json", model=models)


def calibration_tables(*models):
    """Of each calibration set that is made here its manifest and its activation statistics."""
    made = [model for model in models if model not in CONFIG.calibrate.sources]
    return expand(made_by("calibration_manifest"), model=made)


def calibration_folder(model):
    return CONFIG.calibrate.sources.get(model, f"{RESULTS}/calibration/{model}")


def calibration_inputs(model):
    if model in CONFIG.calibrate.sources:
        return [ancient(CONFIG.calibrate.sources[model])]
    return [*calibration_manifests(model), *calibration_shards(model)]


def sensitivity_layers(*models, name="layers"):
    return [f"{RESULTS}/{file}" for model in models for file in part_files(model, name, CONFIG.sensitivity)]


def budget_formats():
    """The formats that plans choose from, each once."""
    return list(dict.fromkeys(name for budget in CONFIG.plan.budgets.values() for name in budget.formats))


def sensitivity_formats(*models):
    return [f"{RESULTS}/{format_file(model)}" for model in models] if budget_formats() else []


def plan_tables(model, budget):
    """What a plan is made from: sensitivity by bits, or by format."""
    return sensitivity_formats(model) if CONFIG.plan.budgets[budget].formats else sensitivity_layers(model)


def plan_timings(model, budget):
    """Measured times of layers, which a plan over formats says the time of."""
    tables = sensitivity_formats(model) if CONFIG.plan.budgets[budget].formats else []
    return [table.replace(".parquet", ".timing.parquet") for table in tables]


def sensitivity_table():
    """The table of all models, and how far its modes agree."""
    return made_by("sensitivity_table") if CONFIG.sensitivity.models else []


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
    (pattern,) = made_by("quantized_checkpoint")
    weights = [pattern.format(model=model, scheme=scheme) for model, scheme in checkpoints()]
    return [*made_by("benchmark_table"), *benchmark_runs(*CONFIG.benchmark.models, suffix="tar"), *weights]


def refinements(*refiners):
    """What is left of refiners, and what becomes of their storyboards."""
    trained = expand(made_by("refine_data", "refine_codebook", "refine_train", "refine_diagnose"), refiner=refiners)
    boards = [(name, board) for name in refiners for board in CONFIG.refiners[name].storyboards]
    films = [p.format(refiner=name, storyboard=board) for name, board in boards for p in made_by("refine_storyboard")]
    return [*trained, *films]


def refined_models():
    """The models whose generated images refiners are trained on, or complete."""
    entries = [CONFIG.refiners[name] for name in CONFIG.refine.refiners]
    trained = [entry.source.model for entry in entries if entry.source.kind == "generated"]
    boards = [board for entry in entries for board in entry.storyboards.values()]
    return list(dict.fromkeys([*trained, *(board.model for board in boards if board.prompts)]))


# What the workflow knows of itself ---------------------------------------------------------------------------------


@cache
def targets(publish=True):
    """What each stage that this config asks for leaves, in pipeline order."""
    left = every_stage() | ({"publish": publications()} if publish else {})
    return {name: files if name in CONFIG.asked() else [] for name, files in left.items()}


@cache
def every_stage():
    """What each stage but `publish` leaves of what this config lists, asked for or not, in pipeline order."""
    return {
        "prompts": prompt_shards(),
        "generate": image_shards(*CONFIG.generate.models),
        "capture": capture_sets(*CONFIG.capture.models),
        "blocks": block_tables(*CONFIG.capture.models),
        "ablate": ablations(*CONFIG.ablate.models),
        "calibrate": calibration_tables(*CONFIG.calibrate.models),
        "sensitivity": [*sensitivity_table(), *sensitivity_formats(*CONFIG.sensitivity.models)],
        "plan": bit_plans(*CONFIG.sensitivity.models),
        "benchmark": benchmark_tables(),
        "trajectories": [
            path
            for kind in ("parquet", "tar")
            for path in trajectory_shards(*CONFIG.trajectories.networks, suffix=kind)
        ],
        "embed": embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        "drift": analysis_tables("drift"),
        "cluster": analysis_tables("cluster"),
        "topology": analysis_tables("topology"),
        "refine": refinements(*CONFIG.refine.refiners),
        "video": [*capture_videos(*CONFIG.capture.models), *trajectory_videos()],
        "analyse": analyses(),
    }


@cache
def upstream():
    """What is made on the way to `targets` of stages that are not asked for, or of models that these do not name."""
    plans = [path for network in CONFIG.trajectories.networks for path in network_plans(network)]
    pairs = list(product(CONFIG.benchmark.models, CONFIG.benchmark.schemes))
    plans = list(dict.fromkeys([*plans, *(path for pair in pairs for path in scheme_plan(*pair))]))
    sets = [path for network in CONFIG.trajectories.networks for path in network_calibration(network)]
    sets += [path for pair in pairs for path in scheme_calibration(*pair)]
    scored = list(dict.fromkeys([*CONFIG.sensitivity.models, *(Path(plan).parent.name for plan in plans)]))
    measured = CONFIG.sensitivity.models if "sensitivity" in CONFIG.asked() else []
    if CONFIG.generate.models or refined_models():
        prompts = prompt_shards()
    else:
        prompts = benchmark_prompts() if CONFIG.benchmark.models else []
    made = {
        "prompts": prompts,
        "generate": image_shards(*refined_models()),
        "capture": capture_sets(*CONFIG.capture.models),
        "calibrate": [
            *calibration_manifests(*(name for name in scored if name not in CONFIG.calibrate.sources)),
            *(path for path in sets if Path(path).name == "manifest.json"),
        ],
        "sensitivity": [
            path
            for part in PARTS
            for path in sensitivity_layers(*(name for name in scored if name not in measured), name=part)
        ]
        + sensitivity_formats(*(name for name in scored if name not in measured)),
        "plan": plans,
        "trajectories": [
            path
            for kind in ("parquet", "tar")
            for path in trajectory_shards(*CONFIG.trajectories.networks, suffix=kind)
        ],
        "embed": embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
    }
    if "analyse" in CONFIG.asked():
        for name in CONFIG.analyse.analyses:
            for stage, files in analysis_inputs(name).items():
                made[stage] = [*made.get(stage, []), *files]
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
    kinds = [pattern.rpartition("{compile}.")[2] for pattern in made_by("benchmark_run")]
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
        *refinements(*study.refine.refiners),
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
