# Sensitivity. Needs: a calibration set (the calibrate stage's, or a folder of your own) and the generator. Leaves:
# <results>/sensitivity/<model>/layers-<group>.parquet, the same layers in fast mode in fast-<group>.parquet, and
# <results>/sensitivity/sensitivity.parquet (table `sensitivity`) and agreement.parquet (table `sensitivity.agreement`).


rule sensitivity:
    input:
        lambda w: sensitivity_table(),


rule sensitivity_layers:
    input:
        calibration=lambda w: calibration_inputs(w.model),
        weights=lambda w: model_files(w.model),
    output:
        layers="<results>/sensitivity/{model}/layers-{group}.parquet",
        fast="<results>/sensitivity/{model}/fast-{group}.parquet",
    log:
        "<logs>/sensitivity/{model}/{group}.log",
    benchmark:
        "<benchmarks>/sensitivity/{model}/{group}.tsv"
    wildcard_constraints:
        group=r"\d{3}",
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: heaviest([w.model], [[name] for name in CONFIG.sensitivity.models]), float32=True),
        runtime=scaled(480),
    params:
        code=lambda w: sensitivity_code(w.model),
        model=lambda w: model_params(w.model),
        settings=stage("sensitivity"),
        groups=CONFIG.sensitivity.layer_groups,
        calibration=lambda w: calibration_folder(w.model),
        own=lambda w: source_digest_of("calibrate", w.model),
    script:
        "../scripts/sensitivity_layers.py"


rule sensitivity_formats:
    input:
        calibration=lambda w: calibration_inputs(w.model),
        weights=lambda w: model_files(w.model),
    output:
        formats="<results>/sensitivity/{model}/formats-000.parquet",
        timing="<results>/sensitivity/{model}/formats-000.timing.parquet",
    log:
        "<logs>/sensitivity/{model}/formats.log",
    benchmark:
        "<benchmarks>/sensitivity/{model}/formats.tsv"
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: heaviest([w.model], [[name] for name in CONFIG.sensitivity.models]), float32=True),
        runtime=scaled(480),
    params:
        code=lambda w: code("sensitivity.formats") + plugin(module_of_scores(CONFIG.models[w.model])),
        model=lambda w: model_params(w.model),
        settings=stage("sensitivity"),
        formats=lambda w: {name: scheme_params(name, w.model) for name in budget_formats()},
        calibration=lambda w: calibration_folder(w.model),
        own=lambda w: source_digest_of("calibrate", w.model),
    script:
        "../scripts/sensitivity_formats.py"


rule sensitivity_table:
    input:
        layers=sensitivity_layers(*CONFIG.sensitivity.models),
        fast=sensitivity_layers(*CONFIG.sensitivity.models, name="fast"),
    output:
        table="<results>/sensitivity/sensitivity.parquet",
        agreement="<results>/sensitivity/agreement.parquet",
    log:
        "<logs>/sensitivity/table.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    params:
        code=code("sensitivity.scores"),
    script:
        "../scripts/sensitivity_table.py"
