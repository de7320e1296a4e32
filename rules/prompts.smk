# Prompts. Needs: the prompt CSV. Leaves: <results>/prompts/shard-*.parquet (table `prompts`, one row per run), and
# runs-<start>-<count>.parquet, the same of the first runs, for stages that take no more of them.


rule prompts:
    input:
        prompt_shards(),


rule prompt_shard:
    input:
        csv=ancient(CONFIG.prompts.csv),
    output:
        shard="<results>/prompts/shard-{shard}.parquet",
    log:
        "<logs>/prompts/{shard}.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    params:
        code=code("prompts.stage"),
        runs=lambda w: SHARD_INDEX[int(w.shard)]["digest"],
        settings=lambda w: plain(CONFIG.prompts) | {"limit": SHARD_INDEX[int(w.shard)]["end"], "max_shards": 0},
        experiment=CONFIG.experiment,
    script:
        "../scripts/prompt_shard.py"


rule prompt_slice:
    input:
        csv=ancient(CONFIG.prompts.csv),
    output:
        runs="<results>/prompts/runs-{slice}.parquet",
    log:
        "<logs>/prompts/runs-{slice}.log",
    localrule: True
    conda:
        "../envs/tables.yaml"
    params:
        code=code("prompts.stage"),
        runs=lambda w: RUN_SLICES[w.slice],
        settings=plain(CONFIG.prompts) | {"shard_size": 1, "max_shards": 0},
        experiment=CONFIG.experiment,
    script:
        "../scripts/prompt_slice.py"
