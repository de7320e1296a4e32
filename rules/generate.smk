# Images. Needs: prompt shards and a generator. Leaves: <results>/images/<model>/shard-*: a WebDataset tar (png, json,
# latent), the table `images` (one row per run) and the table `images.timing`.


rule generate:
    input:
        image_shards(*CONFIG.generate.models),


# Pictures that the user gives, in place of sampled ones.
rule import_images:
    input:
        source=lambda w: ancient(CONFIG.generate.sources[w.model]),
        weights=lambda w: model_files(w.model),
    output:
        images="<results>/images/{model}/shard-00000.tar",
        manifest="<results>/images/{model}/shard-00000.parquet",
        timing="<results>/images/{model}/shard-00000.timing.parquet",
    log:
        "<logs>/generate/{model}/source.log",
    wildcard_constraints:
        model=any_of(CONFIG.generate.sources),
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: [w.model]),
        runtime=scaled(60),
    params:
        code=code("generate.source"),
        model=lambda w: model_params(w.model),
        source=lambda w: source_digest_of("generate", w.model),
    script:
        "../scripts/import_images.py"


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
    wildcard_constraints:
        model=any_of(set(CONFIG.models) - set(CONFIG.generate.sources)),
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        gpu_mem_mb=memory(4000, lambda w: [w.model]),
        mlx=lambda w: on_mlx(w.model),
        mem_mb=memory(4000, lambda w: heaviest([w.model], [[name] for name in CONFIG.generate.models])),
        runtime=scaled(120),
    params:
        code=code("generate.stage"),
        model=lambda w: model_params(w.model),
        settings=stage("generate"),
    script:
        "../scripts/image_shard.py"
