"""Draw the registered figures: each function takes the files of its stages and gives the figure with its data."""

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.benchmark import figures as benchmark
from ditscope.blocks import figures as blocks
from ditscope.generate import figures as images
from ditscope.publish.figures import FIGURES, Files
from ditscope.publish.settings import Publish
from ditscope.refine import figures as refine
from ditscope.sensitivity import figures as quantization
from ditscope.style import save
from ditscope.trajectories import figures as trajectories

log = logging.getLogger(__name__)

FUNCTIONS: dict[str, Callable[[Files], tuple[Canvas, pl.DataFrame]]] = {
    "image-grid": images.image_grid,
    "block-grid": images.block_grid,
    "decodability": blocks.decodability,
    "block-similarity": blocks.block_similarity,
    "residual-contribution": blocks.residual_contribution,
    "text-drift": blocks.text_drift,
    "ablation-effects": blocks.ablation_effects,
    "activation-range": quantization.activation_range,
    "sensitivity-heatmap": quantization.sensitivity_heatmap,
    "image-sensitivity": quantization.image_heatmap,
    "sensitivity-ranking": quantization.sensitivity_ranking,
    "bit-plan": quantization.bit_plan,
    "benchmark-quality": benchmark.quality,
    "benchmark-pareto": benchmark.pareto,
    "benchmark-latency": benchmark.latency,
    "benchmark-batches": benchmark.batch_scaling,
    "benchmark-strips": benchmark.strips,
    "benchmark-flat-field": benchmark.flat_field,
    "trajectory-strips": trajectories.trajectory_strips,
    "drift-curves": trajectories.drift_curves,
    "cluster-map": trajectories.cluster_map,
    "cluster-transitions": trajectories.cluster_transitions,
    "run-lengths": trajectories.run_lengths,
    "persistence-diagrams": trajectories.persistence_diagrams,
    "persistence-entropy": trajectories.persistence_entropy,
    "refiner-training": refine.refiner_training,
    "refiner-diagnostics": refine.refiner_diagnostics,
}


def draw_figures(names: list[str], files: Files, out: Path, settings: Publish = Publish()) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV."""
    for name in names:
        figure, data = FUNCTIONS[name]({stage: files[stage] for stage in FIGURES[name].stages})
        save(figure, data, out / name, settings.formats, settings.dpi)
        log.info("drew %s (%d rows)", name, len(data))
