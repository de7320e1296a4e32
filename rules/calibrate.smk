# Calibration. Needs: the first rows of the prompt CSV and a generator. Leaves: <results>/calibration/<model>/shards/<id>/
# (*.npz, one per step or per image; images/*.png; activations/*.parquet; shard.json), and of the whole set
# <results>/calibration/<model>/manifest.json and activations.parquet (table `calibration.activations`).


rule calibrate:
    input:
        lambda w: calibration_tables(*CONFIG.calibrate.models),


rule calibration_shard:
    input:
        weights=lambda w: model_files(w.model),
    output:
        shard=directory("<results>/calibration/{model}/shards/{shard}"),
    log:
        "<logs>/calibrate/{model}/{shard}.log",
    benchmark:
        "<benchmarks>/calibrate/{model}/{shard}.tsv"
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: heaviest([w.model], [[name] for name in CONFIG.calibrate.models])),
        runtime=scaled(240),
    params:
        code=code("calibrate.stage"),
        model=lambda w: model_params(w.model),
        images=lambda w: calibration_index()[w.shard],
        settings={key: value for key, value in stage("calibrate").items() if key != "num_images"},
    script:
        "../scripts/calibration_shard.py"


rule calibration_manifest:
    input:
        shards=lambda w: calibration_shards(w.model),
    output:
        manifest="<results>/calibration/{model}/manifest.json",
        activations="<results>/calibration/{model}/activations.parquet",
    log:
        "<logs>/calibrate/{model}/manifest.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    params:
        code=[code("calibrate.files"), code("calibrate.activation_table")],
    script:
        "../scripts/calibration_manifest.py"
