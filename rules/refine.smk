# Refiner. Needs: all image shards of a model. Leaves: <results>/refine/<model>/: codebook, latent_mae and refiner
# (safetensors), the tables `refine.assignments`, `refine.training` (and its timing), `refine.diagnostics`,
# `refine.neighbours`, `refine.tsne`, the experiment's record.json and two picture grids.


rule refine:
    input:
        lambda w: refinements(*CONFIG.refine.models),


rule refine_codebook:
    input:
        images=lambda w: image_shards(w.model),
    output:
        codebook="<results>/refine/{model}/codebook.safetensors",
        assignments="<results>/refine/{model}/assignments.parquet",
    log:
        "<logs>/refine/{model}/codebook.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(60),
    params:
        code=code("refine.codebook"),
        settings={k: stage("refine")[k] for k in ("seed", "patch", "keys", "min_anchors", "codes", "keyframe_weight")},
    script:
        "../scripts/refine_codebook.py"


rule refine_train:
    input:
        images=lambda w: image_shards(w.model),
        assignments="<results>/refine/{model}/assignments.parquet",
    output:
        latent_mae="<results>/refine/{model}/latent_mae.safetensors",
        refiner="<results>/refine/{model}/refiner.safetensors",
        training="<results>/refine/{model}/training.parquet",
        timing="<results>/refine/{model}/training.timing.parquet",
    log:
        "<logs>/refine/{model}/train.log",
    benchmark:
        "<benchmarks>/refine/{model}/train.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=scaled(4000),
        runtime=scaled(720),
    params:
        code=code("refine.train"),
        interpolation=interpolation_digest(),
        settings={k: v for k, v in stage("refine").items() if k not in ("top_k", "gallery")},
    script:
        "../scripts/refine_train.py"


rule refine_diagnose:
    input:
        images=lambda w: image_shards(w.model),
        codebook="<results>/refine/{model}/codebook.safetensors",
        assignments="<results>/refine/{model}/assignments.parquet",
        latent_mae="<results>/refine/{model}/latent_mae.safetensors",
        refiner="<results>/refine/{model}/refiner.safetensors",
        training="<results>/refine/{model}/training.parquet",
        weights=lambda w: model_files(w.model),
    output:
        diagnostics="<results>/refine/{model}/diagnostics.parquet",
        neighbours="<results>/refine/{model}/neighbours.parquet",
        tsne="<results>/refine/{model}/tsne.parquet",
        record="<results>/refine/{model}/record.json",
        samples="<results>/refine/{model}/samples.png",
        exemplars="<results>/refine/{model}/exemplars.png",
    log:
        "<logs>/refine/{model}/diagnose.log",
    benchmark:
        "<benchmarks>/refine/{model}/diagnose.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: [w.model]),
        runtime=scaled(60),
    params:
        code=code("refine.diagnose"),
        interpolation=interpolation_digest(),
        model=lambda w: model_params(w.model),
        settings=stage("refine"),
    script:
        "../scripts/refine_diagnose.py"
