# Publication. Needs: what the other stages leave. Leaves: <results>/figures/ (each figure in every format, with its
# data as CSV), <results>/tables/, <results>/catalog.duckdb and <results>/explorer.html. `snakemake --report` makes
# the HTML report of what is marked here.


rule publish:
    input:
        publications(),


rule figures:
    input:
        unpack(figure_inputs),
    output:
        [
            report(
                f"<results>/figures/{figure.name}.{report_format()}",
                caption=f"../report/{figure.caption}.rst",
                category=figure.category,
                labels={"figure": figure.name},
            )
            for figure in figures()
        ],
        figure_files(),
    log:
        "<logs>/figures.log",
    benchmark:
        "<benchmarks>/figures.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 2
    params:
        code=[
            code("publish.draw"),
            *map(code, figure_rooms()),
            *map(plugin, own_drawings().values()),
        ],
        settings={k: v for k, v in stage("publish").items() if k != "explorer_bytes"},
        names=[figure.name for figure in figures()],
        own=own_drawings(),
        stages=figure_inputs(),
    script:
        "../scripts/figures.py"


rule paper_tables:
    input:
        unpack(paper_table_inputs),
    output:
        paper_table_files(),
    log:
        "<logs>/paper_tables.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=[code("publish.paper_tables"), *(code(f"{name}.figures") for name in paper_table_inputs())],
        stages=paper_table_inputs(),
    script:
        "../scripts/paper_tables.py"


rule catalog:
    input:
        tables=lambda w: table_files(left_by_stages()),
    output:
        catalog="<results>/catalog.duckdb",
    log:
        "<logs>/catalog.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=[code("publish.catalog"), *declarations()],
    script:
        "../scripts/catalog.py"


rule explorer:
    input:
        unpack(explorer_inputs),
    output:
        page="<results>/explorer.html",
    log:
        "<logs>/explorer.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=[code("publish.explorer"), *declarations()],
        page=digest_of(SCRIPTS / "ditscope/publish/explorer.html"),
        study=explored(),
        budget=CONFIG.publish.explorer_bytes,
    script:
        "../scripts/explorer.py"
