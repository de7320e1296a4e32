# Captures. Needs: the prompt shards of the first runs and a generator with blocks. Leaves: one folder
# <results>/captures/<model>/<capture>/ a capture set, in it <generation_id>/ a run: img_0.jpg, statistics.parquet
# (table `capture_statistics`), intermediates/ (step_*.safetensors, metadata.json, decoded/step_*/<block>.jpg).


rule capture:
    input:
        capture_sets(*CONFIG.capture.models),


rule capture_set:
    input:
        prompts=ancient(lambda w: [prompt_shards()[shard] for shard in CAPTURE_RUNS[w.capture]["shards"]]),
        weights=lambda w: model_files(w.model),
    output:
        captures=directory("<results>/captures/{model}/{capture}"),
    log:
        "<logs>/capture/{model}/{capture}.log",
    benchmark:
        "<benchmarks>/capture/{model}/{capture}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=scaled(4000),
        runtime=scaled(240),
    params:
        code=code("capture"),
        runs=lambda w: CAPTURE_RUNS[w.capture]["digest"],
        model=lambda w: model_params(w.model),
        settings=lambda w: plain(CONFIG.capture.sets[w.capture]),
    script:
        "../scripts/capture_set.py"
