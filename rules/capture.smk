# Captures. Needs: the first runs and a generator with blocks. Leaves: one folder
# <results>/captures/<model>/<capture>/ a capture set, in it <generation_id>/ a run: img_0.jpg, statistics.parquet
# (table `capture_statistics`), intermediates/ (step_*.safetensors, metadata.json, decoded/step_*/<block>.jpg).
# What blocks do: <results>/analysis/<model>/<capture>/*.parquet, a table per question; <results>/ablation/<model>.parquet
# (table `ablation`) and .tar (pictures of the first run).


rule capture:
    input:
        capture_sets(*CONFIG.capture.models),


# Captures that the user gives, in place of capture sets.
rule import_captures:
    input:
        source=lambda w: ancient(CONFIG.capture.sources[w.model]),
    output:
        captures=directory(f"<results>/captures/{{model}}/{OWN_SET}"),
    log:
        f"<logs>/capture/{{model}}/{OWN_SET}.log",
    wildcard_constraints:
        model=any_of(CONFIG.capture.sources),
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=scaled(8000),
        runtime=scaled(60),
    params:
        code=code("capture.source"),
        model=lambda w: determining(CONFIG.models[w.model]),
        source=lambda w: source_digest_of("capture", w.model),
    script:
        "../scripts/import_captures.py"


rule capture_set:
    input:
        prompts=lambda w: run_slice(CAPTURE_RUNS[w.capture]),
        weights=lambda w: model_files(w.model),
    output:
        captures=directory("<results>/captures/{model}/{capture}"),
    log:
        "<logs>/capture/{model}/{capture}.log",
    benchmark:
        "<benchmarks>/capture/{model}/{capture}.tsv"
    wildcard_constraints:
        model=any_of(set(CONFIG.models) - set(CONFIG.capture.sources)),
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: [w.model]),
        runtime=scaled(240),
    params:
        code=code("capture.stage"),
        model=lambda w: model_params(w.model),
        settings=lambda w: plain(CONFIG.capture.sets[w.capture]),
    script:
        "../scripts/capture_set.py"


rule blocks:
    input:
        block_tables(*CONFIG.capture.models),


rule block_analysis:
    input:
        captures="<results>/captures/{model}/{capture}",
        weights=embedder_files(CONFIG.blocks.features) if CONFIG.blocks.features else [],
    output:
        [f"<results>/analysis/{{model}}/{{capture}}/{table.stem}.parquet" for table in tables_of("blocks")],
    log:
        "<logs>/blocks/{model}/{capture}.log",
    benchmark:
        "<benchmarks>/blocks/{model}/{capture}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=sum(map(embedder_gpus, chosen(CONFIG.blocks.features))),
        mem_mb=memory(4000, embedders=chosen(CONFIG.blocks.features)),
        runtime=scaled(120),
    params:
        code=code("blocks.stage"),
        embedders=chosen_embedders(CONFIG.blocks.features),
        settings=stage("blocks"),
    script:
        "../scripts/block_analysis.py"


rule ablate:
    input:
        lambda w: ablations(*CONFIG.ablate.models),


rule ablation:
    input:
        prompts=run_slice(ABLATED_RUNS),
        weights=lambda w: model_files(w.model),
        features=embedder_files(CONFIG.ablate.features) if CONFIG.ablate.features else [],
    output:
        table="<results>/ablation/{model}.parquet",
        images="<results>/ablation/{model}.tar",
    log:
        "<logs>/ablation/{model}.log",
    benchmark:
        "<benchmarks>/ablation/{model}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=memory(4000, lambda w: [w.model], chosen(CONFIG.ablate.features)),
        runtime=scaled(240),
    params:
        code=code("ablate.stage"),
        model=lambda w: model_params(w.model),
        embedders=chosen_embedders(CONFIG.ablate.features),
        settings=stage("ablate"),
    script:
        "../scripts/ablation.py"
