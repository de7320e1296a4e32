# Topology. Needs: all trajectories and their embeddings. Leaves: <results>/topology/: the tables `topology.diagrams` (a
# row per bar), `topology.entropy` (a row per run and dimension) and `topology.distances` (pairs of runs).


rule topology:
    input:
        embeddings=embedding_shards(CONFIG.embed.embedders, CONFIG.trajectories.networks),
        trajectories=trajectory_shards(*CONFIG.trajectories.networks),
    output:
        analysis_tables("topology"),
    log:
        "<logs>/topology.log",
    benchmark:
        "<benchmarks>/topology.tsv"
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=scaled(4000),
        runtime=scaled(240),
    params:
        code=code("topology.stage"),
        settings=stage("topology"),
    script:
        "../scripts/topology.py"
