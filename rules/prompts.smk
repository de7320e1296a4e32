# Prompts. Needs: the prompt CSV. Leaves: <results>/prompts/shard-*.parquet (table `prompts`, one row a run).


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
        code=code("prompts"),
        runs=lambda w: SHARD_INDEX[int(w.shard)]["digest"],
        settings=lambda w: plain(CONFIG.prompts) | {"limit": SHARD_INDEX[int(w.shard)]["end"], "max_shards": 0},
        experiment=CONFIG.experiment,
    script:
        "../scripts/prompt_shard.py"
