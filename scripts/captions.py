"""Rule captions: what the report says of each figure, and the front page."""

from pathlib import Path

from ditscope.core.tables import read_table
from ditscope.publish.captions import write_captions
from ditscope.publish.figures import available, own_figures
from ditscope.publish.front_page import write_front_page
from ditscope.workflow.job import job

with job(snakemake):
    stages = {stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()}
    answers, figures = read_table(snakemake.input.answers, "answers"), Path(snakemake.output.page).parent / "figures"
    write_captions(
        snakemake.params.texts,
        [*available(set(stages)), *own_figures(snakemake.params.own)],
        stages,
        figures,
        answers,
        Path(snakemake.output[0]).parent,
    )
    write_front_page(snakemake.params.experiment, answers, figures, Path(snakemake.output.page))
