"""Diagnostics against plain loops and closed forms, and the diagnose stage on a random VAE."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.settings import Embedder, Model
from ditscope.refine import diagnostics as metrics
from ditscope.refine.codebook import build_codebook
from ditscope.refine.data_settings import Source
from ditscope.refine.diagnose import diagnose
from ditscope.refine.figures import refiner_controls_table, refiner_evaluation, refiner_gains, refiner_training
from ditscope.refine.gallery import draw_grid
from ditscope.refine.pictures import node_of_frame
from ditscope.refine.prepare import prepare
from ditscope.refine.settings import Refine
from ditscope.refine.train import train
from refine_latents import TINY, drifting_discs, write_discs, write_latents
from workflow import ROOT

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
    keyframes -= keyframes.mean(0)
    rows, distances = metrics.nearest(x, 3)
    table = metrics.neighbour_table([f"k{i}" for i in range(30)], rows, distances, codes, text, keyframes)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    hits, agreements, pairs, chance = [], [], [], []
    for i in range(30):
        order = sorted((j for j in range(30) if j != i), key=lambda j: np.linalg.norm(x[i] - x[j]))
        of_key = table.filter(pl.col("key") == f"k{i}").sort("rank")
        assert of_key["neighbour_key"].to_list() == [f"k{j}" for j in order[:3]]
        hits += [codes[j] == codes[i] for j in order[:3]]
        agreements += [cosine(text[i], text[j]) for j in order[:3]]
        pairs += [cosine(keyframes[i], keyframes[j]) for j in range(30) if j != i]
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


NAMES = {
    "diagnostics": "diagnostics.parquet",
    "neighbours": "neighbours.parquet",
    "tsne": "tsne.parquet",
    "evaluation": "evaluation.parquet",
    "gallery": "gallery.parquet",
    "pictures": "gallery",
    "overview": "overview.png",
    "exemplars": "exemplars.png",
    "record": "record.json",
    "record_timing": "record.timing.json",
    "page": "record.html",
}
TRAINED = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
EMBEDDERS = {"judge": Embedder("clip", source=str(ROOT / "models/shapes-clip"), modality="image")}


def trained(folder: Path, shard: Path, model: Model, settings: Refine) -> Path:
    """A refiner trained on the latents of a shard, which a model's VAE decodes; some are held out."""
    source = Source(
        kind="generated", model="tiny", adapter="latents", text_encoder="", held_out=0.4, held_out_by="sample",
        dtype="float32",
    )  # fmt: skip
    data = folder / "samples.parquet", folder / "data.json"
    prepare({"tiny": model}, *data, folder / "data", images=[shard], source=source)
    codes = folder / "codebook.safetensors", folder / "assignments.parquet"
    build_codebook(*data, *codes, settings)
    train(*data, *codes, *[folder / name for name in TRAINED], settings=settings)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A trained tiny refiner and a VAE of random weights for its latents (4, 8, 8)."""
    folder = tmp_path_factory.mktemp("refine") / "tiny"
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, shift_factor=0.1,
    )  # fmt: skip
    vae.save_pretrained(folder / "model" / "vae")
    (folder / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    model = Model("flux", str(folder / "model"), width=16, height=16)
    return trained(folder, write_discs(folder / "images" / "shard-00000.tar"), model, TINY)


def run(study: Path, out: Path, settings: Refine = TINY) -> dict[str, bytes]:
    """Judge a refiner; the bytes of what is left, but for date and place."""
    out.mkdir(exist_ok=True, parents=True)
    inputs = [study / name for name in ("samples.parquet", "data.json", "assignments.parquet", *TRAINED)]
    places = {name: out / file for name, file in NAMES.items()}
    diagnose("tiny", *inputs, **places, models={}, embedders=EMBEDDERS, settings=settings)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != NAMES["record_timing"]]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_diagnose_repeats_and_says_what_the_contract_asks_for(study, tmp_path):
    assert run(study, tmp_path / "a") == run(study, tmp_path / "b")
    table = read_table(tmp_path / "a" / "diagnostics.parquet", "refine.diagnostics")
    groups = set(table["group"])
    assert {"separation condition", "separation latent_mae", "separation latents", "retrieval latent_mae"} <= groups
    assert {"occupancy", "occupancy judged", "code 0", "code 3", "kernel map0.mean R=0.05"} <= groups
    judged = read_table(tmp_path / "a" / "evaluation.parquet", "refine.evaluation")
    errors = judged.filter(method="interpolated", metric="missing_error").sort("level")["value"]
    assert errors[0] < errors[2]  # fewer keys, larger error
    samples = read_table(study / "samples.parquet", "refine.samples")
    held = samples.filter(split="held-out")
    assert set(judged["samples"]) == {len(held)}
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["data"]["samples"] == {"train": 24 - len(held), "held-out": len(held)}
    assert record["header"]["refiner"] == "tiny" and record["model"]["encoder_frozen"] is True
    checks = record["results"]["criteria"]
    assert record["results"]["decision"] == ("keep" if all(c["passed"] for c in checks.values()) else "drop")
    for level in (1, 2, 3):  # every level, not the hardest one alone
        gain = judged.filter(level=level, method="refined", metric="missing_error")["gain_low"][0]
        assert checks[f"missing_error gains at level {level}"] == {
            "value": gain, "must_be_above": 0.0, "passed": gain is not None and gain > 0,
        }  # fmt: skip
    assert {f"drifting field weakens at R={radius:g}" for radius in TINY.radii} <= checks.keys()
    page = (tmp_path / "a" / "record.html").read_text()
    assert f"Refiner tiny: {record['results']['decision']}" in page and "missing_error gains at level 3" in page
    width, height = Image.open(tmp_path / "a" / "overview.png").size
    assert ((width - 154) // 100, (height - 4) // 100) == (4, 3 * 3 + 1)  # keys, both methods by level; the truth


def test_date_place_and_cost_stand_beside_the_record(study, tmp_path):
    run(study, tmp_path, replace(TINY, gallery=0))
    told = json.loads((tmp_path / "record.timing.json").read_text())
    assert {"date", "host", "command", "branch", "commit", "judged_on", "training"} <= told.keys()
    timing = read_table(study / "training.timing.parquet", "refine.training.timing")
    assert told["training"]["device"] == timing["device"][0]
    assert told["training"]["peak_memory_bytes"] > 10**7
    assert told["training"]["samples_per_second"] > 0
    record = (tmp_path / "record.json").read_text()
    assert all(word not in record for word in ("date", "host", "commit", "seconds"))


def test_the_gallery_has_a_picture_per_sample_level_and_method_and_may_be_empty(study, tmp_path):
    run(study, tmp_path, replace(TINY, gallery=2))
    table = read_table(tmp_path / "gallery.parquet", "refine.gallery")
    assert len(table) == 2 * 3 * 5  # samples, levels; keys, interpolated, refined, coarse to fine, truth
    assert {f"gallery/{path.name}" for path in (tmp_path / "gallery").iterdir()} == set(table["picture"])
    held = read_table(study / "samples.parquet", "refine.samples").filter(split="held-out")
    assert set(table["key"]) <= set(held["key"])
    run(study, tmp_path / "none", replace(TINY, gallery=0))
    assert len(read_table(tmp_path / "none" / "gallery.parquet", "refine.gallery")) == 0
    assert not list((tmp_path / "none" / "gallery").iterdir())


def test_a_video_refiner_is_judged_by_the_same_code(tmp_path):
    """Wan's own VAE decodes the gallery, four frames to a frame of latents but the first."""
    torch.manual_seed(0)
    settings = replace(TINY, keys="frames", levels=2, min_keys=2, gallery=1, evaluated=1, interpolation="linear")
    AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(tmp_path / "tiny" / "model" / "vae")
    (tmp_path / "tiny" / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    shard = write_latents(tmp_path / "tiny" / "images" / "shard-00000.tar", *drifting_discs(12))
    model = Model("wan", str(tmp_path / "tiny" / "model"), width=64, height=64, frames=17)
    left = run(trained(tmp_path / "tiny", shard, model, settings), tmp_path / "out", settings)
    judged = read_table(tmp_path / "out" / "evaluation.parquet", "refine.evaluation")
    assert judged.select("level", "keys").unique().sort("level").rows() == [(1, 3), (2, 2)]
    assert {"warp_error", "flicker", "missing_error"} <= set(judged["metric"])
    assert any(name.endswith("film.gif") for name in left)
    assert node_of_frame(17, 5).tolist() == [0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4]
    assert node_of_frame(5, 5).tolist() == [0, 1, 2, 3, 4]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["data"]["shape"] == [4, 5, 8, 8]
    assert record["results"]["decision"] == "drop"  # one sample gives no interval


def test_a_collapsed_codebook_is_dropped(study, tmp_path, monkeypatch):
    monkeypatch.setattr("ditscope.refine.record.MOST_DOMINANT", 0.01)
    run(study, tmp_path, replace(TINY, gallery=0))
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert results["decision"] == "drop"
    assert "no class dominates" in results["why"]


def test_diagnostics_follow_their_settings_and_a_judge(study, tmp_path):
    first, second = run(study, tmp_path / "a"), run(study, tmp_path / "b", replace(TINY, top_k=2, levels=1, patch=4))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"diagnostics.parquet", "neighbours.parquet"}  # levels and patch are the refiner's own
    run(study, tmp_path / "c", replace(TINY, judge="judge", evaluated=3, gallery=0))
    tables = [read_table(tmp_path / n / "evaluation.parquet", "refine.evaluation") for n in ("a", "c")]
    assert set(tables[1]["samples"]) == {3}
    assert set(tables[0]["metric"]) == set(tables[1]["metric"])
    for setting, said in (({"judge": "none"}, "judge"), ({"generator": "none"}, "generator")):
        with pytest.raises(InputError, match=f"refine.{said}: `none`"):
            run(study, tmp_path / "d", replace(TINY, **setting))


def test_a_refiner_trained_without_drifting_is_judged_and_drawn_without_its_field(study, tmp_path):
    settings = replace(TINY, objective="paired")
    place = tmp_path / "tiny"
    place.mkdir()
    inputs = [study / name for name in ("samples.parquet", "data.json", "codebook.safetensors", "assignments.parquet")]
    train(*inputs, *[place / name for name in TRAINED], settings=settings)
    for name in ("samples.parquet", "data.json", "assignments.parquet"):
        shutil.copy(study / name, place / name)
    shutil.copytree(study / "data", place / "data")
    run(place, tmp_path / "out", replace(settings, gallery=0))
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["model"]["objective"] == "paired"
    assert not any("field" in name for name in record["results"]["criteria"])
    figure, table = refiner_training({"refine": [place / "training.parquet"]})
    drawn = [bool(axis.lines) for axis in figure.axes if axis.get_visible()]
    assert drawn.count(True) == 2  # the autoencoder's loss and the errors; no field
    assert set(table["refiner"]) == {"tiny"}


def test_figures_of_levels_and_gains_say_on_how_many_units(study, tmp_path):
    run(study, tmp_path / "refine" / "tiny", replace(TINY, gallery=0))
    files = {"refine": [tmp_path / "refine" / "tiny" / "evaluation.parquet"]}
    table = read_table(files["refine"][0], "refine.evaluation")
    figure, drawn = refiner_evaluation(files)
    assert f"{table['samples'][0]} held-out samples of {table['units'][0]} units" in figure.axes[0].get_title("left")
    assert set(drawn["method"]) == set(table["method"])
    gains, _ = refiner_gains(files)
    assert [label.get_text() for label in gains.axes[0].get_yticklabels()] == [
        f"tiny (n = {table['units'][0]}):\n{method}" for method in ("refined", "coarse to fine")
    ]
    assert len(refiner_controls_table(files)) == len(table)
