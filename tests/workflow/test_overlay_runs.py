"""Every study in experiments/ for real: hub models by stand-ins, every stage, and the doctor finds nothing.

Keys of a second config file cut what costs time and nothing else: prompts, sizes, repeats, training steps, and where a
benchmark judges several models all but one. Schemes, networks, block and step patterns stay the study's own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import stand_ins
import workflow
from ditscope.config import Config
from ditscope.config_files import read_config
from ditscope.core.tables import read_table
from ditscope.models.loading import default_device
from ditscope.models.prepare import uncompilable
from ditscope.models.quantize import unsupported

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]


def sized(side: int, *names: str, **more: Any) -> dict[str, Any]:
    """Registry entries of pictures of `side` pixels."""
    return {name: {"width": side, "height": side} | more for name in names}


def judged(images: int = 2, **more: Any) -> dict[str, Any]:
    """A benchmark of a few images, each batch timed once."""
    once = {"batches": [1], "repeats": 1, "warmup": 0, "num_images": images}
    return once | {"flat_field_steps": [1, 2], "flat_field_seeds": 1} | more


FEW = {"prompts": {"limit": 2}, "publish": {"formats": ["svg"]}}


def benchmarked(model: str, **more: Any) -> dict[str, Any]:
    """Calibration, sensitivity, plans and benchmark of one model of a study."""
    return {
        "prompts": {"limit": 2, "num_seeds": 1},
        "calibrate": {"models": [model], "num_images": 2, "num_steps": 3, "shard_size": 1},
        "sensitivity": {"models": [model], "max_images": 1, "step_stride": 1, "layer_groups": 2, "probes": 8},
        "benchmark": judged(models=[model], **more),
    }


REFINED = {
    "codes": 2, "mae_steps": 3, "mae_batch": 4, "mae_width": 8, "steps": 3, "width": 32, "depth": 2, "heads": 2,
    "classes_per_step": 2, "generated_per_class": 2, "positives": 2, "unconditional": 2, "checkpoint_every": 2,
}  # fmt: skip
CURRENT = ("flux2-klein", "flux2-dev", "qwen-image", "z-image-turbo", "sd3.5-medium", "sd3.5-large", "chroma")
SHRUNK: dict[str, dict[str, Any]] = {
    # Of the benchmarks each judges one kind of model: SD3, FLUX, FLUX on MLX, SD3 on MLX, distilled FLUX.
    "benchmark-full": benchmarked("shapes-sd3", compiled=["base"]),
    "benchmark-hub": {"models": sized(64, "flux-schnell")} | benchmarked("flux-schnell", compiled=["base"]),
    "benchmark-mlx": benchmarked("shapes-flux-mlx"),
    "current-images": {
        "models": sized(32, *CURRENT, steps=3),
        "prompts": {"limit": 2},
        "capture": {"sets": {"all": {"generations": 1}}},
        "calibrate": {"num_images": 2, "shard_size": 1},
        "sensitivity": {"max_images": 1, "layer_groups": 2, "probes": 8},
        "benchmark": judged(models=["z-image-turbo"], compiled=["base"]),
    },
    "current-videos": {
        "models": sized(64, "wan2.2-5b", "ltx-video", steps=2, frames=9),
        "prompts": {"limit": 2},
        "capture": {"sets": {"all": {"generations": 1}}},
    },
    "flux-dev": {
        "models": sized(64, "flux-dev"),
        "capture": {"sets": {"all": {"generations": 1}, "landmarks": {"generations": 1}}},
    },
    "flux-schnell": {
        "models": sized(64, "flux-schnell", steps=2),  # each of 57 blocks is ablated twice
        "capture": {"sets": {"all": {"generations": 1}}},
        "ablate": {"generations": 1},
    },
    "formats": benchmarked("shapes-flux"),
    "refiner-image": {"models": sized(128, "flux-schnell"), "prompts": {"limit": 2, "num_seeds": 4}, "refine": REFINED},
    "refiner-video": {
        "models": sized(64, "wan2.1-1.3b", steps=2),
        "prompts": {"limit": 2, "num_seeds": 4},
        "refine": REFINED,
    },
    "sd3-apple": {"models": sized(64, "sd3-medium", steps=2)} | benchmarked("sd3-medium"),
    "torchao-h100": {
        "models": sized(64, "flux-dev", steps=2),
        "prompts": {"limit": 2, "seeds": [0]},
        "benchmark": judged(models=["flux-dev"], compile=["eager", "regional"], compiled=["base"]),  # full: minutes
    },
    "trajectories": {
        "models": sized(64, "flux-schnell", "sd3-medium", "sdxl-turbo", steps=2)
        | {name: {"max_new_tokens": 6} for name in ("blip2", "florence2")},
        "prompts": {"limit": 2, "seeds": [0]},
        "trajectories": {"max_length": 5},
    },
}


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two maps, merged key by key; what is not a map is the second's."""
    both = {k: merged(first[k], second[k]) for k in first.keys() & second.keys() if isinstance(second[k], dict)}
    return first | second | both


def unexplained(results: Path, config: Config) -> list[str]:
    """Reasons in place of numbers that benchmark runs left, other than what this machine is known not to run."""
    lines = []
    for table in ("benchmark", "benchmark.timing"):
        for row in (
            read_table(results / "benchmarks" / f"{table}.parquet", table).filter(pl.col("reason") != "").to_dicts()
        ):
            model = config.models[row["model"]]
            device = "mlx" if model.backend == "mlx" else default_device()
            scheme, state = config.schemes[row["scheme"]], row["compile"]
            if row["reason"] != (unsupported(scheme, device, model.dtype) or uncompilable(state, device)):
                lines.append(f"{row['model']} {row['scheme']} {row['compile']}: {row['reason']}")
    return lines


@pytest.mark.parametrize("name", sorted(SHRUNK))
def test_study_runs_on_stand_ins(name, tmp_path):
    folder = workflow.checkout(tmp_path)
    (folder / "shrunk.yaml").write_text(yaml.safe_dump(merged(FEW, SHRUNK[name])))
    files = [folder / "experiments" / f"{name}.yaml", folder / "shrunk.yaml"]
    config = read_config(files)
    stand_ins.put(config, folder)
    done = workflow.snakemake(
        folder, "--cores", "2", "--set-threads", "benchmark_run=1", "--show-failed-logs", "--configfile",
        *map(str, files), root=folder, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    results = folder / "results" / config.experiment
    assert "## Overall progress: 100 %" in (results / "progress.md").read_text()
    ran = subprocess.run(
        [sys.executable, "-m", "ditscope.cli", "doctor", "--results", str(results)],
        cwd=folder, env=os.environ | {"PYTHONPATH": "scripts"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if config.benchmark.models and default_device() != "cuda":  # there a kernel's package may be missing
        assert unexplained(results, config) == []
