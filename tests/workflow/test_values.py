"""What depends on what: change one prompt, seed, step count or weight, and see which tables' values change."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.capture.settings import CaptureSet
from ditscope.capture.stage import capture
from ditscope.cluster.stage import cluster
from ditscope.config import ROOT
from ditscope.config_files import read_config
from ditscope.core.identity import derived_seed, file_digest
from ditscope.core.tables import read_table
from ditscope.drift.settings import Drift
from ditscope.drift.stage import drift
from ditscope.embed.stage import embed
from ditscope.generate.stage import generate
from ditscope.plan.settings import Budget
from ditscope.plan.stage import plan
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.refine.codebook import build_codebook
from ditscope.refine.data_settings import Source
from ditscope.refine.prepare import prepare
from ditscope.refine.settings import Refine
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import sensitivity
from ditscope.topology.stage import topology
from ditscope.trajectories.settings import Trajectories
from ditscope.trajectories.stage import trajectories

CONFIG = read_config([])
PROMPTS = [
    "a small red circle at the left on a white background",
    "a large blue square at the top on a black background",
    "a small yellow star at the bottom on a gray background",
]
NETWORK = ["shapes-flux", "shapes-blip"]


def study(folder: Path, prompts: list[str] = PROMPTS, name: str = "a", steps: int = 4, weights: str = "") -> Path:
    """Run the stages on one generator in this process, its seeds derived from the study's `name`; their folder."""
    flux = replace(CONFIG.models["shapes-flux"], steps=steps, source=weights or "models/shapes-flux")
    models = {"shapes-flux": flux, "shapes-blip": CONFIG.models["shapes-blip"]}
    folder.mkdir(parents=True, exist_ok=True)
    csv = folder / "prompts.csv"
    csv.write_text("prompt_id,prompt\n" + "".join(f"p{i},{text}\n" for i, text in enumerate(prompts)))
    runs, images = folder / "prompts.parquet", folder / "images.tar"
    write_shard(csv, 0, runs, Prompts(csv=str(csv), seeds=[-1]), name)
    generate("shapes-flux", flux, runs, images)
    capture("shapes-flux", flux, folder / "captures", prompts=[runs], settings=CaptureSet(generations=1, decode=[]))
    calibration = Calibrate(num_images=3, num_steps=steps, seed=derived_seed(name))
    calibrate("shapes-flux", flux, csv, folder / "calibration", calibration)
    probe = Sensitivity(bits=[3], max_images=3, step_stride=1, buckets="thirds")
    sensitivity("shapes-flux", flux, folder / "calibration", folder / "sensitivity.parquet", probe)
    plan("shapes-flux", [folder / "sensitivity.parquet"], folder / "plan.json", Budget(mean_bits=5.0))
    table, pictures = folder / "trajectories.parquet", folder / "trajectories.tar"
    rules = Trajectories(max_length=6)
    trajectories("n", NETWORK, models, {}, [runs], table, pictures, folder / "t.timing.parquet", settings=rules)
    vectors = []
    for name in ("minilm", "shapes-clip", "random-walk"):
        vectors.append(folder / f"{name}.parquet")
        embed(name, CONFIG.embedders[name], table, pictures, vectors[-1])
    drift(vectors, [table], folder, Drift(shuffles=1))
    cluster(vectors, [table], folder)
    topology(vectors, [table], folder)
    files = folder / "samples.parquet", folder / "data.json"
    prepare(models, *files, folder / "data", [images], Source(model="shapes-flux", held_out_by="sample"))
    build_codebook(*files, folder / "codebook.safetensors", folder / "assignments.parquet", Refine(codes=2))
    return folder


def values(folder: Path) -> dict[str, object]:
    """What the tables say: measured values, without the settings and names that say how they were made."""

    def table(file: str, name: str, *columns: str, where: str = "") -> list[tuple]:
        rows = read_table(folder / file, name)
        return (rows.filter(pl.col("prompt_id") == where) if where else rows).select(columns).rows()

    (statistics,) = folder.glob("captures/*/statistics.parquet")
    samples = sorted(folder.glob("calibration/shards/*/*.npz"))
    return {
        "prompts": table("prompts.parquet", "prompts", "prompt", "seed"),
        "image of p0": table("images.parquet", "images", "png_sha256", where="p0"),
        "image of p1": table("images.parquet", "images", "png_sha256", where="p1"),
        "capture of p0": read_table(statistics, "capture_statistics").select("mean", "std", "rms").rows(),
        "calibration": [file_digest(file) for file in samples],
        "sensitivity": table("sensitivity.parquet", "sensitivity", "layer", "bits", "bucket", "metric", "value"),
        "trajectory of p0": table("trajectories.parquet", "trajectories", "output_key", where="p0"),
        "trajectory of p1": table("trajectories.parquet", "trajectories", "output_key", where="p1"),
        "text embeddings": table("minilm.parquet", "embeddings", "vector"),
        "image embeddings": table("shapes-clip.parquet", "embeddings", "vector"),
        "random walk": table("random-walk.parquet", "embeddings", "vector"),
        "drift of p0": table("drift.parquet", "drift", "cosine_distance", where="p0"),
        "drift of p1": table("drift.parquet", "drift", "cosine_distance", where="p1"),
        "map": table("map.parquet", "clusters.map", "x", "y"),
        "topology": table("diagrams.parquet", "topology.diagrams", "birth", "death"),
        "codes": table("assignments.parquet", "refine.assignments", "distance"),
    }


def reweighted(folder: Path) -> str:
    """A copy of the generator in which one weight matrix of one block is scaled by 1.5."""
    model = folder / "shapes-flux"
    shutil.copytree(ROOT / "models/shapes-flux", model)
    file = model / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["single_transformer_blocks.0.proj_out.weight"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    return str(model)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, object]:
    """The values that the others are compared with."""
    return values(study(tmp_path_factory.mktemp("base")))


GENERATED = {"capture of p0", "calibration", "sensitivity", "image embeddings", "map", "topology", "codes"}
BOTH = {"image of p0", "image of p1", "trajectory of p0", "trajectory of p1", "drift of p0", "drift of p1"}
CHANGES: dict[str, tuple[Callable[[Path], dict], set[str]]] = {
    # The text embeddings hold the prompts and the captions: they follow a prompt, and else only a changed caption.
    "one prompt": (
        lambda folder: {"prompts": [PROMPTS[0], "a large green ring at the right on a gray background", PROMPTS[2]]},
        {"prompts", "image of p1", "trajectory of p1", "text embeddings", "random walk", "drift of p1"}
        | GENERATED - {"capture of p0"},
    ),
    "seed": (lambda folder: {"name": "b"}, {"prompts", "random walk"} | BOTH | GENERATED),
    "step count": (lambda folder: {"steps": 5}, BOTH | GENERATED),
    "one weight": (lambda folder: {"weights": reweighted(folder)}, BOTH | GENERATED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(change, base, tmp_path):
    arguments, expected = CHANGES[change]
    reached = values(study(tmp_path / "study", **arguments(tmp_path)))
    changed = {name for name in base if reached[name] != base[name]}
    assert changed - {"text embeddings"} == expected - {"text embeddings"}
    assert "text embeddings" in changed or "text embeddings" not in expected


def test_the_same_study_gives_the_same_values(base, tmp_path):
    assert values(study(tmp_path)) == base
