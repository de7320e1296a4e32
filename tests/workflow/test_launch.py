"""Stages in several processes: their options are the call's arguments, and they do share the work."""

import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ditscope import cli
from ditscope.refine.settings import Refine
from ditscope.workflow import launch
from refine_latents import data_files, write_discs

FILES = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")


def test_options_give_back_the_arguments(monkeypatch):
    given = {
        "samples": Path("a b.parquet"),
        "assignments": Path("assignments.parquet"),
        **{name: Path(file) for name, file in zip(("latent_mae", "refiner", "training", "timing"), FILES, strict=True)},
        "settings": Refine(seed=3, ema=0.1 + 0.2, clamp_keys=True, radii=[0.02, 1e-9], features=["global"]),
    }
    got = {}

    def train(
        samples: Path,
        assignments: Path,
        latent_mae: Path,
        refiner: Path,
        training: Path,
        timing: Path,
        settings: Refine = Refine(),
        partial: Path | None = None,
    ) -> None:
        got.update({name: value for name, value in locals().items() if name not in ("got", "partial")})

    monkeypatch.setattr(cli, "function_of", lambda target: train)
    assert cli.main(["refine-train", *launch.options(**given, partial=None)]) == 0
    assert got == given


def test_failed_processes_fail_the_job(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ditscope")
    with pytest.raises(subprocess.CalledProcessError):
        launch.torchrun("refine-train", 1, samples=tmp_path / "none.parquet")
    assert "the following arguments are required: --about" in caplog.text


@pytest.mark.system
def test_two_processes_train_one_refiner(tmp_path, caplog):
    from ditscope.refine.codebook import build_codebook

    caplog.set_level(logging.INFO, "ditscope")
    data = data_files(write_discs(tmp_path / "shard.tar", samples=24), tmp_path)
    settings = replace(Refine(), codes=4, mae_steps=2, steps=2, mae_batch=4, width=32, depth=1, heads=2)
    codebook = tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet"
    build_codebook(*data, *codebook, settings)
    given = dict(zip(("samples", "about", "codebook", "assignments"), (*data, *codebook), strict=True))
    names = ("latent_mae", "refiner", "training", "timing")
    left = {name: tmp_path / "out" / file for name, file in zip(names, FILES, strict=True)}
    launch.torchrun("refine-train", 2, **given, **left, settings=settings)
    assert all(path.exists() for path in left.values())
    assert {f"process {i} of 2" in caplog.text for i in (1, 2)} == {True}
