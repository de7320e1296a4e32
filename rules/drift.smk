# Drift. Needs: all trajectories and their embeddings, and with `drift.oracle` images. Leaves: <results>/drift/: the
# table `drift` (distances of each state), and one for each claim about runs beside its null (docs/outputs/drift.md).


rule drift:
    input:
        embeddings=embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        trajectories=trajectory_shards(*CONFIG.trajectories.networks),
        images=trajectory_shards(*oracle_networks(), suffix="tar"),
    output:
        analysis_tables("drift"),
    log:
        "<logs>/drift.log",
    benchmark:
        "<benchmarks>/drift.tsv"
    priority: 1  # what leads to the figures of drift, the last that a study draws, goes first
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
