# Drift. Needs: all trajectories and their embeddings. Leaves: <results>/drift/: the tables `drift` (distances of each
# state), `drift.similarity` (pairs of runs), `drift.autoregression` and `drift.normality`.


rule drift:
    input:
        embeddings=embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        trajectories=trajectory_shards(*CONFIG.trajectories.networks),
    output:
        analysis_tables("drift"),
    log:
        "<logs>/drift.log",
    benchmark:
        "<benchmarks>/drift.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(60),
    params:
        code=code("drift.stage"),
        settings=stage("drift"),
        max_length=CONFIG.trajectories.max_length,
    script:
        "../scripts/drift.py"
