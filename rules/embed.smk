# Embeddings. Needs: trajectories and an embedder. Leaves: <results>/embeddings/<embedder>/<network>-<shard>.parquet
# (table `embeddings`, one row per text or image).


rule embed:
    input:
        embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),


rule embedding_shard:
    input:
        table="<results>/trajectories/{network}/shard-{shard}.parquet",
        images="<results>/trajectories/{network}/shard-{shard}.tar",
        weights=lambda w: embedder_files(w.embedder),
    output:
        table="<results>/embeddings/{embedder}/{network}-{shard}.parquet",
    log:
        "<logs>/embed/{embedder}/{network}-{shard}.log",
    benchmark:
        "<benchmarks>/embed/{embedder}/{network}-{shard}.tsv"
    priority: 1  # what leads to the figures of drift, the last that a study draws, goes first
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=lambda w: embedder_gpus(w.embedder),
        gpu_mem_mb=memory(2000, embedders=lambda w: [w.embedder]),
        mem_mb=memory(3000, embedders=lambda w: [w.embedder]),
        runtime=scaled(60),
    params:
        code=code("embed.stage"),
        embedder=lambda w: embedder_params(w.embedder),
        settings=stage("embed"),
    script:
        "../scripts/embedding_shard.py"
