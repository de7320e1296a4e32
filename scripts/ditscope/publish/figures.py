"""Figures and tables of the paper and the report: which there are, what they need, where they stand in the report.

Adding a figure: a line here, a function of its name in `figures.py` of its first stage (or in the module named here), a
caption report/<name>.rst.
Adding a table of the paper: a line here, a function of its name and `_table` in `figures.py` of its stage.
Adding an answer of the front page: its stage's name here, a function `answer` in `answer.py` of the stage.
"""

from collections.abc import Iterable
from dataclasses import dataclass

PAPER_TABLES = {  # the stage that each one sums up
    "sensitivity-ranking": "sensitivity",
    "bit-plans": "plan",
    "benchmark": "benchmark",
    "drift": "drift",
    "lifetimes": "drift",
    "clusters": "cluster",
    "refiner-controls": "refine",
}
ANSWERING = (  # stages that answer a question, in the order of the front page
    "generate", "blocks", "ablate", "calibrate", "sensitivity", "plan", "benchmark", "trajectories", "drift", "cluster",
    "topology", "refine",
)  # fmt: skip

INDEX = "index.csv"  # beside the figures: what each shows, of how many, and the command that makes it


@dataclass(frozen=True)
class Figure:
    """A figure: its file name, the stages whose results it needs, its category in the report, its stage's module."""

    name: str
    stages: tuple[str, ...]
    category: str
    module: str = "figures"
    shared_caption: str = ""

    @property
    def source(self) -> str:
        """The module below `ditscope` that draws it."""
        return f"{self.stages[0]}.{self.module}"

    @property
    def caption(self) -> str:
        """Name of the file below report/ that explains it."""
        return self.shared_caption or self.name


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("image-grid", ("generate",), "Images"),
        Figure("block-grid", ("capture",), "Captures"),
        Figure("decodability", ("blocks",), "Captures"),
        Figure("block-similarity", ("blocks",), "Captures"),
        Figure("residual-contribution", ("blocks",), "Captures"),
        Figure("text-drift", ("blocks",), "Captures"),
        Figure("ablation-effects", ("ablate",), "Captures"),
        Figure("activation-range", ("calibrate",), "Quantization"),
        Figure("activation-layers", ("calibrate",), "Quantization"),
        Figure("sensitivity-heatmap", ("sensitivity",), "Quantization"),
        Figure("sensitivity-layers", ("sensitivity",), "Quantization"),
        Figure("image-sensitivity", ("sensitivity",), "Quantization"),
        Figure("image-sensitivity-layers", ("sensitivity",), "Quantization"),
        Figure("sensitivity-ranking", ("sensitivity",), "Quantization"),
        Figure("bit-plan", ("plan",), "Quantization"),
        Figure("benchmark-quality", ("benchmark",), "Quantization"),
        Figure("benchmark-pareto", ("benchmark",), "Quantization"),
        Figure("benchmark-latency", ("benchmark",), "Quantization"),
        Figure("benchmark-batches", ("benchmark",), "Quantization"),
        Figure("benchmark-strips", ("benchmark",), "Quantization"),
        Figure("benchmark-flat-field", ("benchmark",), "Quantization"),
        Figure("trajectory-strips", ("trajectories",), "Trajectories"),
        Figure("drift-curves", ("drift",), "Trajectories"),
        Figure("invocation-times", ("trajectories",), "Trajectories"),
        Figure("distinct-states", ("embed", "trajectories"), "Trajectories"),
        Figure("drift-walks", ("drift",), "Trajectories"),
        Figure("autoregression", ("drift",), "Trajectories"),
        Figure("normal-quantiles", ("drift",), "Trajectories"),
        Figure("run-similarity", ("drift",), "Trajectories"),
        Figure("drift-displacement", ("drift",), "Trajectories", "claim_figures"),
        Figure("drift-jumps", ("drift",), "Trajectories", "claim_figures"),
        Figure("drift-memory", ("drift",), "Trajectories", "claim_figures"),
        Figure("drift-divergence", ("drift",), "Trajectories", "claim_figures"),
        Figure("attribute-survival", ("drift",), "Trajectories", "survival_figures"),
        Figure("quantized-survival", ("drift",), "Trajectories", "survival_figures"),
        Figure("quantized-difference", ("drift",), "Trajectories", "survival_figures"),
        Figure("cluster-map", ("cluster",), "Trajectories"),
        Figure("cluster-transitions", ("cluster",), "Trajectories"),
        Figure("run-lengths", ("cluster",), "Trajectories", "stay_figures"),
        Figure("dwell-times", ("cluster",), "Trajectories", "stay_figures"),
        Figure("longest-runs", ("cluster",), "Trajectories", "stay_figures"),
        Figure("label-phases", ("cluster",), "Trajectories"),
        Figure("returns", ("cluster",), "Trajectories", "stay_figures"),
        Figure("outliers", ("cluster",), "Trajectories"),
        Figure("agreement", ("cluster",), "Trajectories"),
        Figure("cluster-stability", ("cluster",), "Trajectories"),
        Figure("persistence-diagrams", ("topology",), "Trajectories"),
        Figure("persistence-entropy", ("topology",), "Trajectories"),
        Figure("diagram-distances", ("topology",), "Trajectories"),
        Figure("shape-nulls", ("topology",), "Trajectories"),
        Figure("refiner-training", ("refine",), "Refiner"),
        Figure("refiner-evaluation", ("refine",), "Refiner"),
        Figure("refiner-gains", ("refine",), "Refiner"),
    )
}


def available(stages: set[str]) -> list[Figure]:
    """The figures whose stages are all among `stages`, in order."""
    return [figure for figure in FIGURES.values() if set(figure.stages) <= stages]


def own_figures(analyses: Iterable[str]) -> list[Figure]:
    """The figures of analyses of the user's own: named as these, one caption for all."""
    return [Figure(name, ("analyse",), "Analyses", shared_caption="analysis") for name in analyses]
