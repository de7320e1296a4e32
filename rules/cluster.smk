# Clusters. Needs: all trajectories and their embeddings. Leaves: <results>/clusters/: the tables `clusters` (a label for
# each state), `clusters.map` (t-SNE) and those of the label sequences: run_lengths, longest_runs, dwell_times,
# transitions, label_phases, returns, outliers, agreement; and stability, medoids.


rule cluster:
    input:
        embeddings=embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        trajectories=trajectory_shards(*CONFIG.trajectories.networks),
    output:
        analysis_tables("cluster"),
    log:
        "<logs>/cluster.log",
    benchmark:
        "<benchmarks>/cluster.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=scaled(8000),
        runtime=scaled(240),
    params:
        code=code("cluster.stage"),
        settings=stage("cluster"),
        max_length=CONFIG.trajectories.max_length,
    script:
        "../scripts/cluster.py"
