"""Diagnostics against plain loops and closed forms, and the diagnose stage on a random VAE."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from PIL import Image

from ditscope.core.tables import read_table
from ditscope.models.settings import Model
from ditscope.refine import diagnostics as metrics
from ditscope.refine.codebook import build_codebook
from ditscope.refine.diagnose import diagnose
from ditscope.refine.figures import refiner_training
from ditscope.refine.gallery import draw_grid
from ditscope.refine.train import train
from refine_latents import TINY, drifting_discs, write_discs, write_latents

RNG = np.random.default_rng(0)


def blobs(distance: float) -> tuple[np.ndarray, np.ndarray]:
    codes = np.repeat([0, 1, 2], 10)
    return np.random.default_rng(1).standard_normal((30, 4)) + distance * np.eye(4)[codes], codes


def test_separation_is_the_pairwise_means():
    x, codes = blobs(3.0)
    pairs = {True: [], False: []}
    for i in range(30):
        for j in range(30):
            if i != j:
                pairs[codes[i] == codes[j]].append(np.sqrt(((x[i] - x[j]) ** 2).sum()))
    separation = metrics.separation(x, codes)
    assert separation["intra_distance"] == pytest.approx(np.mean(pairs[True]))
    assert separation["inter_distance"] == pytest.approx(np.mean(pairs[False]))
    assert separation["intra_inter_ratio"] == pytest.approx(np.mean(pairs[True]) / np.mean(pairs[False]))
    scores = []
    for i in range(30):  # silhouette by its definition
        mean = [np.mean([np.linalg.norm(x[i] - x[j]) for j in np.flatnonzero(codes == c) if j != i]) for c in range(3)]
        a, b = mean[codes[i]], min(m for c, m in enumerate(mean) if c != codes[i])
        scores.append((b - a) / max(a, b))
    assert separation["silhouette"] == pytest.approx(np.mean(scores))
    far = metrics.separation(*blobs(30.0))
    assert far["intra_inter_ratio"] < separation["intra_inter_ratio"]
    assert far["davies_bouldin"] < separation["davies_bouldin"]


def test_separation_leaves_out_what_is_not_defined():
    x, _ = blobs(1.0)
    assert metrics.separation(x, np.zeros(30, int)) == pytest.approx(
        metrics.separation(x, np.zeros(30, int))
        | {"inter_distance": None, "intra_inter_ratio": None, "silhouette": None, "davies_bouldin": None}
    )
    assert metrics.separation(x, np.arange(30))["intra_distance"] is None


def test_occupancy_of_known_counts():
    occupancy = metrics.occupancy(np.repeat([0, 1, 3], [4, 4, 1]), 5)
    share = np.array([4, 4, 1]) / 9
    assert occupancy["non_empty_classes"] == 3
    assert occupancy["mean"] == pytest.approx(9 / 5)
    assert occupancy["median"] == 1
    assert occupancy["singleton_or_empty_fraction"] == pytest.approx(3 / 5)
    assert occupancy["entropy"] == pytest.approx(-(share * np.log(share)).sum())
    assert occupancy["max_class_share"] == pytest.approx(4 / 9)
    assert metrics.occupancy(np.arange(4), 4)["normalised_entropy"] == pytest.approx(1.0)


def test_neighbours_and_retrieval_are_the_brute_force_ones():
    x, codes = blobs(2.0)
    text, keyframes = RNG.random((30, 6)), RNG.standard_normal((30, 5))
    rows, distances = metrics.nearest(x, 3)
    table = metrics.neighbour_table([f"k{i}" for i in range(30)], rows, distances, codes, text, keyframes)
    centred = keyframes - keyframes.mean(0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    hits, agreements, pairs, chance = [], [], [], []
    for i in range(30):
        order = sorted((j for j in range(30) if j != i), key=lambda j: np.linalg.norm(x[i] - x[j]))
        of_key = table.filter(pl.col("key") == f"k{i}").sort("rank")
        assert of_key["neighbour_key"].to_list() == [f"k{j}" for j in order[:3]]
        hits += [codes[j] == codes[i] for j in order[:3]]
        agreements += [cosine(text[i], text[j]) for j in order[:3]]
        pairs += [cosine(centred[i], centred[j]) for j in range(30) if j != i]
        chance += [codes[i] == codes[j] for j in range(30) if j != i]
    retrieval = metrics.retrieval(table, codes, text, keyframes)
    assert retrieval["k"] == 3
    assert retrieval["topk_consistency"] == pytest.approx(np.mean(hits))
    assert retrieval["text_agreement"] == pytest.approx(np.mean(agreements))
    assert retrieval["chance_keyframe_agreement"] == pytest.approx(np.mean(pairs))
    assert retrieval["chance_consistency"] == pytest.approx(np.mean(chance))
    assert retrieval["chance_consistency"] < retrieval["topk_consistency"] <= 1


def test_errors_count_missing_tokens_apart():
    clean, prediction = np.zeros((2, 4, 3)), np.zeros((2, 4, 3))
    prediction[:, :2] = 2.0
    keys = np.array([[True, False, False, False], [False, False, True, True]])
    everywhere, missing = metrics.squared_errors(prediction, clean, keys)
    assert everywhere == pytest.approx(2.0)
    assert missing == pytest.approx(4 * 3 / 5)


@pytest.mark.parametrize("samples", [2, 5, 30])
def test_tsne_repeats_and_is_finite_for_any_number_of_samples(samples):
    x = blobs(20.0)[0][:samples]
    points = metrics.tsne(x, 0)
    assert points.shape == (samples, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, metrics.tsne(x, 0))


def test_grid_shows_every_image_at_its_place(tmp_path):
    small = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20)]
    draw_grid([("a", small), ("b", [np.full((200, 100, 3), 30, np.uint8)])], tmp_path / "grid.png", tile=50)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    values = [pixels[30, 170, 0], pixels[30, 230, 0], pixels[80, 170, 0], pixels[80, 230, 0]]
    assert values == [10, 20, 30, 255]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A trained tiny refiner and a VAE of random weights for its latents (4, 8, 8)."""
    folder = tmp_path_factory.mktemp("refine")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, shift_factor=0.1,
    )  # fmt: skip
    vae.save_pretrained(folder / "model" / "vae")
    (folder / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    shard = write_discs(folder / "images" / "tiny" / "shard-00000.tar")
    build_codebook([shard], folder / "codebook.safetensors", folder / "assignments.parquet", TINY)
    trained = [folder / f for f in ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "t.parquet")]
    train([shard], folder / "assignments.parquet", *trained, settings=TINY)
    return folder, shard, trained


def run(study, out, settings=TINY, model=None):
    folder, shard, (latent_mae, refiner, training, _) = study
    out.mkdir(exist_ok=True)
    names = ("diagnostics.parquet", "neighbours.parquet", "tsne.parquet", "record.json", "samples.png", "exemplars.png")
    model = model or Model("flux", str(folder / "model"), width=16, height=16)
    inputs = (folder / "codebook.safetensors", folder / "assignments.parquet", latent_mae, refiner, training)
    diagnose("tiny", model, [shard], *inputs, *[out / name for name in names], settings)
    return {name: (out / name).read_bytes() for name in names}


def test_diagnose_repeats_and_says_what_the_contract_asks_for(study, tmp_path):
    assert run(study, tmp_path / "a") == run(study, tmp_path / "b")
    table = read_table(tmp_path / "a" / "diagnostics.parquet", "refine.diagnostics")
    assert table.columns == ["group", "metric", "value"]
    groups = set(table["group"])
    assert {"separation condition", "separation latent_mae", "separation latents", "retrieval latent_mae"} <= groups
    assert {"occupancy", "code 0", "code 3", "level 1", "level 2", "level 3", "kernel map0.mean R=0.05"} <= groups
    levels = {r["group"]: r["value"] for r in table.filter(pl.col("metric") == "mse_corrupted").to_dicts()}
    assert levels["level 1"] < levels["level 3"]  # fewer anchors, larger error
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["data"]["samples"] == 24
    assert record["data"]["pattern"] == ["images/tiny/shard-00000.tar"]
    assert record["model"]["encoder_frozen"] is True
    checks = record["results"]["criteria"]
    assert record["results"]["decision"] == ("keep" if all(c["passed"] for c in checks.values()) else "drop")
    for check in checks.values():
        assert check["passed"] == (check["value"] < check["must_be_below"])
    width, height = Image.open(tmp_path / "a" / "samples.png").size
    assert (width - 154) // 100 == 4  # the gallery's samples
    assert (height - 4) // 100 == 1 + 2 * 3  # clean, then interpolated and refined at each level


def test_a_video_refiner_is_judged_by_the_same_code(tmp_path):
    """Wan's own VAE decodes the gallery: its columns are frames along the first video."""
    torch.manual_seed(0)
    settings = replace(TINY, keys="frames", levels=2, min_anchors=2, gallery=3)
    AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(tmp_path / "model" / "vae")
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    shard = write_latents(tmp_path / "images" / "tiny" / "shard-00000.tar", *drifting_discs(12))
    build_codebook([shard], tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet", settings)
    trained = [tmp_path / f for f in ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "t.parquet")]
    train([shard], tmp_path / "assignments.parquet", *trained, settings=settings)
    model = Model("wan", str(tmp_path / "model"), width=64, height=64, frames=17)
    run((tmp_path, shard, trained), tmp_path / "out", settings, model)
    table = read_table(tmp_path / "out" / "diagnostics.parquet", "refine.diagnostics")
    kept = table.filter(pl.col("metric") == "anchors").sort("group")["value"]
    assert kept.to_list() == [3, 2]
    assert table.filter(pl.col("metric").str.starts_with("mse_"))["value"].is_finite().all()
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["data"]["latent_shape"] == [4, 5, 8, 8]
    width, height = Image.open(tmp_path / "out" / "samples.png").size
    assert ((width - 154) // 100, (height - 4) // 100) == (3, 1 + 2 * 2)


def test_a_collapsed_codebook_is_dropped(study, tmp_path, monkeypatch):
    monkeypatch.setattr("ditscope.refine.record.MOST_DOMINANT", 0.01)
    run(study, tmp_path)
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert results["decision"] == "drop"
    assert "no_class_dominates" in results["why"]


def test_diagnostics_follow_their_settings(study, tmp_path):
    first, second = run(study, tmp_path / "a"), run(study, tmp_path / "b", replace(TINY, top_k=2, gallery=2))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"diagnostics.parquet", "neighbours.parquet", "record.json", "samples.png"}


def test_a_refiner_trained_without_drifting_is_judged_and_drawn_without_its_field(study, tmp_path):
    folder, shard, _ = study
    settings = replace(TINY, objective="paired")
    place = tmp_path / "refine" / "tiny"
    names = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
    trained = [place / name for name in names]
    train([shard], folder / "assignments.parquet", *trained, settings=settings)
    run((folder, shard, trained), tmp_path / "out", settings)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["model"]["objective"] == "paired"
    assert "drifting_field_weakens" not in record["results"]["criteria"]
    figure, table = refiner_training({"refine": [trained[2]]})
    drawn = [bool(axis.lines) for axis in figure.axes if axis.get_visible()]
    assert drawn.count(True) == 2  # the autoencoder's loss and the errors; no field
    assert set(table["model"]) == {"tiny"}
