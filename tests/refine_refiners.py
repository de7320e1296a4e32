"""Refiners of random weights over tiny data sets of pixels and paths, for tests that do not ask for a trained one."""

from dataclasses import replace
from pathlib import Path

import torch

from ditscope.refine.codebook import fit_codebook
from ditscope.refine.data_settings import Source
from ditscope.refine.dataset import Dataset, open_dataset
from ditscope.refine.prepare import prepare
from ditscope.refine.refiner import Refiner
from ditscope.refine.refiner_file import save_refiner
from ditscope.refine.settings import Refine
from ditscope.refine.train import refiner_config

SMALL = replace(Refine(), codes=2, width=16, depth=1, heads=2, levels=2, min_keys=2, interpolation="linear")
PICTURES = replace(SMALL, patch=16)
FILMS = replace(SMALL, patch=16, keys="frames")
PATHS = replace(SMALL, patch=1, endpoints=True)
RENDERS = Source(kind="renders", adapter="pixels", text_encoder="", count=16, held_out=0.4, held_out_by="sample")
CLIPS = Source(kind="clips", adapter="pixels", text_encoder="", count=8, frames=5, held_out=0.4, held_out_by="sample")
MAZES = Source(kind="mazes", count=24, rooms=3, path_steps=9, held_out=0.4, held_out_by="sample")


def small_data(folder: Path, source: Source) -> Dataset:
    """Samples of a source."""
    files = folder / "samples.parquet", folder / "data.json"
    prepare({}, *files, folder / "data", source=source)
    return open_dataset(*files)


def small_refiner(folder: Path, source: Source, settings: Refine) -> Path:
    """The file of a refiner of random weights, its output layer among them, so that it changes what it is given."""
    data = small_data(folder, source)
    torch.manual_seed(0)
    network = Refiner(refiner_config(data, settings))
    torch.nn.init.normal_(network.head.weight, std=0.1)
    save_refiner(network, settings, data, fit_codebook(data, settings)[0], folder / "refiner.safetensors")
    return folder / "refiner.safetensors"
