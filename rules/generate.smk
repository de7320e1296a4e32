# Images. Needs: prompt shards and a generator. Leaves: <results>/images/<model>/shard-*: a WebDataset tar (png, json,
# latent), the table `images` (one row per run) and the table `images.timing`.


rule generate:
    input:
        image_shards(*CONFIG.generate.models),


rule image_shard:
    input:
        prompts="<results>/prompts/shard-{shard}.parquet",
        weights=lambda w: model_files(w.model),
    output:
        images="<results>/images/{model}/shard-{shard}.tar",
        manifest="<results>/images/{model}/shard-{shard}.parquet",
        timing="<results>/images/{model}/shard-{shard}.timing.parquet",
    log:
        "<logs>/generate/{model}/{shard}.log",
    benchmark:
        "<benchmarks>/generate/{model}/{shard}.tsv"
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: heaviest([w.model], [[name] for name in CONFIG.generate.models])),
        runtime=scaled(120),
    params:
        code=code("generate.stage"),
        model=lambda w: model_params(w.model),
        settings=stage("generate"),
    script:
        "../scripts/image_shard.py"
