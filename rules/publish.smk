# Publication. Needs: what the other stages leave. Leaves: <results>/figures/ (each figure in every format, with its
# data as CSV), <results>/tables/, <results>/catalog.duckdb, <results>/explorer.html, the front page <results>/answers.html
# with its table, and <results>/captions/. `snakemake --report` makes the HTML report of what is marked here.


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
                caption=caption_of(figure.name),
                category=category(figure.stages[0]),
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


rule answers:
    input:
        unpack(answer_inputs),
    output:
        table="<results>/answers.parquet",
    log:
        "<logs>/answers.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=[code("publish.answers"), *(code(f"{name}.answer") for name in answer_inputs()), *declarations()],
        controls=[name for name in CONFIG.embed.embedders if CONFIG.embedders[name].family == "random-walk"],
        stages=answer_inputs(),
    script:
        "../scripts/answers.py"


rule captions:
    input:
        unpack(figure_inputs),
        answers="<results>/answers.parquet",
        figures=[*figure_files(), *shown_figures()],
    output:
        caption_files(),
        page=report(
            "<results>/answers.html",
            caption="../report/answers.rst",
            category=category("answers"),
            labels={"page": "front page"},
        ),
    log:
        "<logs>/captions.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=[code("publish.captions"), code("publish.front_page"), *declarations()],
        texts=caption_texts(),
        experiment=CONFIG.experiment,
        own=list(own_drawings()),
        stages=figure_inputs(),
    script:
        "../scripts/captions.py"


rule paper_tables:
    input:
        unpack(paper_table_inputs),
    output:
        [
            report(
                file,
                caption="../report/paper-table.rst",
                category=category(PAPER_TABLES[Path(file).stem]),
                labels={"figure": f"table {Path(file).stem}"},
            )
            for file in paper_table_files()
            if file.endswith(".csv")
        ],
        [file for file in paper_table_files() if not file.endswith(".csv")],
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
        tables=lambda w: [*table_files(left_by_stages()), *made_by("answers")[:1]],
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
