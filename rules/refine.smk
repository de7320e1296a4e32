# Refiner. Needs: all image shards of the model whose latents a refiner works on. Leaves: <results>/refine/<refiner>/: codebook, latent_mae and refiner
# (safetensors), the tables `refine.assignments`, `refine.training` (and its timing), `refine.diagnostics`,
# `refine.neighbours`, `refine.tsne`, the experiment's record.json and two picture grids.


rule refine:
    input:
        lambda w: refinements(*CONFIG.refine.refiners),


rule refine_data:
    input:
        images=lambda w: refiner_images(w.refiner),
        weights=lambda w: model_files(*filter(None, [refiner_model(w.refiner)])),
    output:
        samples="<results>/refine/{refiner}/samples.parquet",
        about="<results>/refine/{refiner}/data.json",
        data=directory("<results>/refine/{refiner}/data"),
    log:
        "<logs>/refine/{refiner}/data.log",
    benchmark:
        "<benchmarks>/refine/{refiner}/data.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=lambda w: int(bool(refiner_model(w.refiner))),
        mem_mb=memory(4000, lambda w: list(filter(None, [refiner_model(w.refiner)]))),
        runtime=scaled(240),
    params:
        code=code("refine.prepare"),
        source=refiner_source,
    script:
        "../scripts/refine_data.py"


rule refine_codebook:
    input:
        images=lambda w: image_shards(refiner_model(w.refiner)),
    output:
        codebook="<results>/refine/{refiner}/codebook.safetensors",
        assignments="<results>/refine/{refiner}/assignments.parquet",
    log:
        "<logs>/refine/{refiner}/codebook.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(60),
    params:
        code=code("refine.codebook"),
        settings=refiner_settings("seed", "patch", "keys", "min_anchors", "codes", "keyframe_weight"),
    script:
        "../scripts/refine_codebook.py"


rule refine_train:
    input:
        images=lambda w: image_shards(refiner_model(w.refiner)),
        assignments="<results>/refine/{refiner}/assignments.parquet",
    output:
        latent_mae="<results>/refine/{refiner}/latent_mae.safetensors",
        refiner="<results>/refine/{refiner}/refiner.safetensors",
        training="<results>/refine/{refiner}/training.parquet",
        timing="<results>/refine/{refiner}/training.timing.parquet",
    log:
        "<logs>/refine/{refiner}/train.log",
    benchmark:
        "<benchmarks>/refine/{refiner}/train.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=scaled(4000),
        runtime=scaled(720),
    params:
        code=code("refine.train"),
        interpolation=interpolation_digest,
        encoder=encoder_digest,
        settings=refiner_settings(without=("top_k", "gallery")),
    script:
        "../scripts/refine_train.py"


rule refine_diagnose:
    input:
        images=lambda w: image_shards(refiner_model(w.refiner)),
        codebook="<results>/refine/{refiner}/codebook.safetensors",
        assignments="<results>/refine/{refiner}/assignments.parquet",
        latent_mae="<results>/refine/{refiner}/latent_mae.safetensors",
        refiner="<results>/refine/{refiner}/refiner.safetensors",
        training="<results>/refine/{refiner}/training.parquet",
        weights=lambda w: model_files(refiner_model(w.refiner)),
    output:
        diagnostics="<results>/refine/{refiner}/diagnostics.parquet",
        neighbours="<results>/refine/{refiner}/neighbours.parquet",
        tsne="<results>/refine/{refiner}/tsne.parquet",
        record="<results>/refine/{refiner}/record.json",
        samples="<results>/refine/{refiner}/samples.png",
        exemplars="<results>/refine/{refiner}/exemplars.png",
    log:
        "<logs>/refine/{refiner}/diagnose.log",
    benchmark:
        "<benchmarks>/refine/{refiner}/diagnose.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: [refiner_model(w.refiner)]),
        runtime=scaled(60),
    params:
        code=code("refine.diagnose"),
        interpolation=interpolation_digest,
        encoder=encoder_digest,
        name=lambda w: refiner_model(w.refiner),
        model=lambda w: model_params(refiner_model(w.refiner)),
        settings=refiner_settings(),
    script:
        "../scripts/refine_diagnose.py"
