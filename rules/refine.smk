# Refiner. Needs: what a refiner's source names: all image shards of a model, a folder, or nothing. Leaves:
# <results>/refine/<refiner>/: shards of samples with the table `refine.samples` and data.json, codebook, latent_mae and
# refiner (safetensors), the tables `refine.assignments`, `refine.training` (and its timing), `refine.diagnostics`,
# `refine.evaluation`, `refine.neighbours`, `refine.tsne`, `refine.gallery` with its pictures, the experiment's record (json,
# its date and place beside it, and a page), two picture grids, and a folder and a page for each storyboard.


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
        samples="<results>/refine/{refiner}/samples.parquet",
        about="<results>/refine/{refiner}/data.json",
        data="<results>/refine/{refiner}/data",
        start=lambda w: refiner_start(w.refiner),
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
        start=refiner_start_digest,
        settings=refiner_settings(*CODEBOOK),
    script:
        "../scripts/refine_codebook.py"


rule refine_train:
    input:
        samples="<results>/refine/{refiner}/samples.parquet",
        about="<results>/refine/{refiner}/data.json",
        data="<results>/refine/{refiner}/data",
        assignments="<results>/refine/{refiner}/assignments.parquet",
        codebook="<results>/refine/{refiner}/codebook.safetensors",
        start=lambda w: refiner_start(w.refiner),
        encoder=lambda w: refiner_encoder(w.refiner),
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
        start=refiner_start_digest,
        settings=refiner_settings(without=("top_k", "gallery", "evaluated", "judge", "generator")),
    script:
        "../scripts/refine_train.py"


rule refine_diagnose:
    input:
        samples="<results>/refine/{refiner}/samples.parquet",
        about="<results>/refine/{refiner}/data.json",
        data="<results>/refine/{refiner}/data",
        codebook="<results>/refine/{refiner}/codebook.safetensors",
        assignments="<results>/refine/{refiner}/assignments.parquet",
        latent_mae="<results>/refine/{refiner}/latent_mae.safetensors",
        refiner="<results>/refine/{refiner}/refiner.safetensors",
        training="<results>/refine/{refiner}/training.parquet",
        timing="<results>/refine/{refiner}/training.timing.parquet",
        encoder=lambda w: refiner_encoder(w.refiner),
        weights=lambda w: model_files(*judges(w.refiner)),
        embedder=lambda w: [file for name in refiner_judge(w.refiner) for file in embedder_files(name)],
    output:
        diagnostics="<results>/refine/{refiner}/diagnostics.parquet",
        neighbours="<results>/refine/{refiner}/neighbours.parquet",
        tsne="<results>/refine/{refiner}/tsne.parquet",
        evaluation="<results>/refine/{refiner}/evaluation.parquet",
        gallery="<results>/refine/{refiner}/gallery.parquet",
        pictures=directory("<results>/refine/{refiner}/gallery"),
        overview="<results>/refine/{refiner}/overview.png",
        exemplars="<results>/refine/{refiner}/exemplars.png",
        record="<results>/refine/{refiner}/record.json",
        record_timing="<results>/refine/{refiner}/record.timing.json",
        page=report(
            "<results>/refine/{refiner}/record.html",
            caption="../report/refiner-record.rst",
            category=category("refine"),
            labels={"record": "{refiner}"},
        ),
    log:
        "<logs>/refine/{refiner}/diagnose.log",
    benchmark:
        "<benchmarks>/refine/{refiner}/diagnose.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: judges(w.refiner), lambda w: refiner_judge(w.refiner)),
        runtime=scaled(60),
    params:
        code=code("refine.diagnose"),
        interpolation=interpolation_digest,
        encoder=encoder_digest,
        models=lambda w: {name: model_params(name) for name in judges(w.refiner)},
        embedders=lambda w: {name: embedder_params(name) for name in refiner_judge(w.refiner)},
        settings=refiner_settings(),
    script:
        "../scripts/refine_diagnose.py"


rule refine_storyboard:
    input:
        refiner=storyboard_refiner,
        pictures=lambda w: [ancient(file) for file in storyboard_of(w).pictures],
        images=lambda w: storyboard_shards(w, "tar"),
        manifests=lambda w: storyboard_shards(w, "parquet"),
        weights=lambda w: model_files(*filter(None, [refiner_model(w.refiner)])),
    output:
        folder=directory("<results>/refine/{refiner}/storyboards/{storyboard}"),
        page=report(
            "<results>/refine/{refiner}/storyboards/{storyboard}.html",
            caption="../report/refiner-storyboard.rst",
            category=category("refine"),
            labels={"storyboard": "{refiner}: {storyboard}"},
        ),
    log:
        "<logs>/refine/{refiner}/storyboard-{storyboard}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: list(filter(None, [refiner_model(w.refiner)]))),
        runtime=scaled(60),
    params:
        code=code("refine.storyboard"),
        interpolation=storyboard_interpolation,
        given=lambda w: [digest_of(file) for file in storyboard_files(w)],
        storyboard=lambda w: plain(storyboard_of(w)),
        film=CONFIG.video.output_format,
    script:
        "../scripts/refine_storyboard.py"
