# Trajectories. Needs: the first runs, the models of each network, bit plans and calibration sets where an entry is quantized by one.
# Leaves: <results>/trajectories/<network>/shard-*: the table `trajectories` (one row per text or image), a tar of the
# images, and the table `trajectories.timing`.


rule trajectories:
    input:
        trajectory_shards(*CONFIG.trajectories.networks),


rule trajectory_shard:
    input:
        prompts=lambda w: run_slice(TRAJECTORY_INDEX[int(w.shard)]),
        weights=lambda w: model_files(*(entry.name for entry in NETWORKS[w.network])),
        plans=lambda w: network_plans(w.network),
        calibration=lambda w: network_calibration(w.network),
    output:
        table="<results>/trajectories/{network}/shard-{shard}.parquet",
        images="<results>/trajectories/{network}/shard-{shard}.tar",
        timing="<results>/trajectories/{network}/shard-{shard}.timing.parquet",
    log:
        "<logs>/trajectories/{network}/{shard}.log",
    benchmark:
        "<benchmarks>/trajectories/{network}/{shard}.tsv"
    priority: 1  # what leads to the figures of drift, the last that a study draws, goes first
    conda:
        MODEL_ENVIRONMENT
    resources:
        gpu=1,
        gpu_mem_mb=memory(4000, lambda w: network_models(w.network)),
        mlx=lambda w: on_mlx(*(entry.name for entry in NETWORKS[w.network])),
        mem_mb=memory(6000, lambda w: heaviest(network_models(w.network), [network_models(name) for name in NETWORKS])),
        runtime=scaled(240),
    params:
        code=code("trajectories.stage"),
        network=lambda w: network_params(w.network),
        plans=f"{RESULTS}/plans",
        settings=stage("trajectories"),
    script:
        "../scripts/trajectory_shard.py"
