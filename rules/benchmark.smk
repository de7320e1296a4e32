# Benchmark. Needs: prompt shards, a generator, bit plans for schemes of kind `plan`, calibration sets for calibrated ones, the feature embedder. Leaves under
# <results>/benchmarks/<model>/<hardware>/: <scheme>-<compile>.parquet (sizes), .timing.parquet (latency, memory), .tar
# (images) and .flat.parquet (flat field) of each run, quality.parquet of all; their joins and recommendation.md in
# <results>/benchmarks/; and the quantized weights that are asked for, in <results>/checkpoints/<model>/.
from ditscope.benchmark.settings import COMPILE_STATES


wildcard_constraints:
    compile="|".join(COMPILE_STATES),
    hardware=r"[^/]+",


# Settings that only the judging of images reads: changing them times nothing again.
JUDGING = ("features", "cosines", "classes", "kid_subset_size")
EMBEDDERS = list(dict.fromkeys([CONFIG.benchmark.features, *CONFIG.benchmark.cosines]))


rule benchmark:
    input:
        lambda w: benchmark_tables(),


# Takes every core, and on a cluster a whole node, so that nothing else runs beside it: a timed job that shares the machine
# measures its neighbours.
rule benchmark_run:
    input:
        prompts=benchmark_prompts(),
        plan=lambda w: scheme_plan(w.model, w.scheme),
        calibration=lambda w: scheme_calibration(w.model, w.scheme),
        weights=lambda w: model_files(w.model),
    output:
        table="<results>/benchmarks/{model}/{hardware}/{scheme}-{compile}.parquet",
        timing="<results>/benchmarks/{model}/{hardware}/{scheme}-{compile}.timing.parquet",
        images="<results>/benchmarks/{model}/{hardware}/{scheme}-{compile}.tar",
        flat="<results>/benchmarks/{model}/{hardware}/{scheme}-{compile}.flat.parquet",
    log:
        "<logs>/benchmark/{model}/{hardware}/{scheme}-{compile}.log",
    benchmark:
        "<benchmarks>/benchmark/{model}/{hardware}/{scheme}-{compile}.tsv"
    conda:
        MODEL_ENVIRONMENT
    threads: all_cores()
    resources:
        gpu=1,
        cpus_per_task=all_cores(),
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: [w.model]),
        runtime=scaled(120),
        slurm_extra="--exclusive",
    params:
        code=code("benchmark.run"),
        model=lambda w: model_params(w.model),
        scheme=lambda w: scheme_params(w.scheme, w.model),
        auto_hardware=CONFIG.benchmark.hardware == "auto",
        settings={k: v for k, v in stage("benchmark").items() if k not in ("hardware", *JUDGING)},
    script:
        "../scripts/benchmark_run.py"


rule benchmark_quality:
    input:
        runs=lambda w: benchmark_runs(w.model, hardware=w.hardware),
        images=lambda w: benchmark_runs(w.model, hardware=w.hardware, suffix="tar"),
        weights=lambda w: [file for name in EMBEDDERS for file in embedder_files(name)],
    output:
        quality="<results>/benchmarks/{model}/{hardware}/quality.parquet",
    log:
        "<logs>/benchmark/{model}/{hardware}/quality.log",
    benchmark:
        "<benchmarks>/benchmark/{model}/{hardware}/quality.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, embedders=EMBEDDERS),
        runtime=scaled(60),
    params:
        code=code("benchmark.quality"),
        settings={k: stage("benchmark")[k] for k in JUDGING},
        embedders=lambda w: {name: embedder_params(name) for name in EMBEDDERS},
    script:
        "../scripts/benchmark_quality.py"


rule benchmark_table:
    input:
        runs=benchmark_runs(*CONFIG.benchmark.models),
        timings=benchmark_runs(*CONFIG.benchmark.models, suffix="timing.parquet"),
        qualities=benchmark_qualities(*CONFIG.benchmark.models),
        flat_fields=benchmark_runs(*CONFIG.benchmark.models, suffix="flat.parquet"),
    output:
        table="<results>/benchmarks/benchmark.parquet",
        timing="<results>/benchmarks/benchmark.timing.parquet",
        quality="<results>/benchmarks/quality.parquet",
        flat_field="<results>/benchmarks/flat_field.parquet",
        targets="<results>/benchmarks/targets.parquet",
        recommendation="<results>/benchmarks/recommendation.md",
    log:
        "<logs>/benchmark/table.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    params:
        code=code("benchmark.join"),
        elsewhere=lambda w: {
            name: benchmark_elsewhere(suffix)
            for name, suffix in {
                "runs": "parquet",
                "timings": "timing.parquet",
                "qualities": "quality.parquet",
                "flat_fields": "flat.parquet",
            }.items()
        },
        settings={k: plain(CONFIG.benchmark)[k] for k in ("quality_bound", "targets")},
    script:
        "../scripts/benchmark_table.py"


rule quantized_checkpoint:
    input:
        plan=lambda w: scheme_plan(w.model, w.scheme),
        calibration=lambda w: scheme_calibration(w.model, w.scheme),
        weights=lambda w: model_files(w.model),
    output:
        checkpoint="<results>/checkpoints/{model}/{scheme}.safetensors",
    log:
        "<logs>/checkpoints/{model}/{scheme}.log",
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: [w.model]),
        runtime=scaled(60),
    params:
        code=code("benchmark.checkpoints"),
        model=lambda w: model_params(w.model),
        scheme=lambda w: scheme_params(w.scheme, w.model),
    script:
        "../scripts/quantized_checkpoint.py"
