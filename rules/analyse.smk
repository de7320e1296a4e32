# Analyses of the user's own. Needs: what the stages that an analysis names leave. Leaves: <results>/analysis/<name>.parquet
# (table `analysis.<name>`) for each of the config's `analyse.analyses`; `publish` draws those whose module has a `figure`.


rule analyse:
    input:
        analyses(),


rule analysis:
    input:
        lambda w: [path for paths in analysis_inputs(w.analysis).values() for path in paths],
    output:
        table="<results>/analysis/{analysis}.parquet",
    log:
        "<logs>/analyse/{analysis}.log",
    benchmark:
        "<benchmarks>/analyse/{analysis}.tsv"
    wildcard_constraints:
        analysis=any_of(CONFIG.analyse.analyses),
    conda:
        "../envs/figures.yaml"
    resources:
        mem_mb=scaled(8000),
        runtime=scaled(240),
    params:
        code=lambda w: code("analyse.stage") + plugin(CONFIG.analyse.analyses[w.analysis].module),
        analysis=lambda w: plain(CONFIG.analyse.analyses[w.analysis]),
        stages=lambda w: analysis_inputs(w.analysis),
    script:
        "../scripts/analysis.py"
