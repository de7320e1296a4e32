"""What blocks do: measures against float64 definitions, rows against tensors, ablation against a network without it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from ditscope.ablate import stage as ablation
from ditscope.ablate.figures import ablation_effects
from ditscope.ablate.settings import Ablate
from ditscope.ablate.stage import Ablation, ablate, mean
from ditscope.blocks import figures
from ditscope.blocks import stage as analysis
from ditscope.blocks.settings import Blocks
from ditscope.blocks.stage import (
    blocks,
    decodability_rows,
    decodable_rows,
    linear_cka,
    relative_l2,
    residual,
    token_cosine,
)
from ditscope.capture.files import captures_in, decoded_file
from ditscope.capture.load import load_capture
from ditscope.capture.settings import CaptureSet
from ditscope.capture.stage import capture
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table
from ditscope.models.loading import load_generator
from ditscope.models.sampling import sample
from ditscope.models.settings import Embedder, Model
from ditscope.style import GAP
from loose_tables import write_loosely
from tiny_models import tiny_generator

ROOT = Path(__file__).resolve().parents[2]
FLUX = Model("flux", str(ROOT / "models" / "shapes-flux"), width=64, height=64, steps=3)
SD3 = Model("sd3", str(ROOT / "models" / "shapes-sd3"), width=64, height=64, steps=3, guidance=3.0)
CLIP = {"shapes-clip": Embedder("clip", str(ROOT / "models" / "shapes-clip"), modality="image")}


# Measures ------------------------------------------------------------------------------------------------------------


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The biased estimator by its definition: tr(K H M H) / (n - 1)^2, H the centring matrix (Gretton et al. 2005)."""
    n = len(k)
    centre = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ centre @ m @ centre) / (n - 1) ** 2)


@pytest.mark.parametrize(("n", "d", "e"), [(6, 20, 9), (50, 7, 4), (12, 12, 12), (9, 3, 30)])
def test_cka_is_hsic_over_its_own_norms(n, d, e):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, d)) + 3
    y = x[:, :1] @ rng.standard_normal((1, e)) + 0.5 * rng.standard_normal((n, e)) - 2
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


def test_cka_sees_no_rotation_scale_or_shift_and_tells_noise_apart():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.randn(400, 8, generator=torch.Generator().manual_seed(2))) < 0.1
    assert np.isnan(linear_cka(torch.ones(5, 3), x[:5]))


def test_token_measures_match_loops():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 11, 6)).astype(np.float32)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    cosine = [x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)) for x, y in zip(a64, b64, strict=True)]
    assert token_cosine(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(np.mean(cosine), rel=1e-9)
    distance = np.sqrt(((b64 - a64) ** 2).sum()) / np.sqrt((a64**2).sum())
    assert relative_l2(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(distance, rel=1e-9)
    measures = residual(torch.from_numpy(a), torch.from_numpy(b))
    update = b64 - a64
    along = [x @ u / (np.sqrt(x @ x) * np.sqrt(u @ u)) for x, u in zip(a64, update, strict=True)]
    expected = [distance, np.mean(along), np.sqrt((a64**2).mean()), np.sqrt((update**2).mean())]
    np.testing.assert_allclose(list(measures.values()), expected, rtol=1e-9)


def test_a_residual_in_closed_form():
    """A block that doubles its input adds all of it along itself; one that turns it adds at right angles."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert residual(x, 2 * x) == pytest.approx(
        {"relative_update": 1, "update_cosine": 1, "input_rms": 1.25**0.5, "update_rms": 1.25**0.5}
    )
    assert residual(x, x + torch.tensor([[0.0, 1.0], [2.0, 0.0]]))["update_cosine"] == pytest.approx(0)


# Tables of a capture -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> Path:
    """One captured generation of each family below <folder>/<family>."""
    folder = tmp_path_factory.mktemp("captures")
    for entry in (FLUX, SD3):
        capture("tiny", entry, folder / entry.family, prompt="a large red ring", seed=1, settings=CaptureSet())
    return folder


@pytest.mark.parametrize("family", ("flux", "sd3"))
def test_tables_of_a_capture(family, captured, tmp_path):
    blocks(captured / family, tmp_path / "a", {})
    blocks(captured / family, tmp_path / "b", {})
    tables = {name: read_table(tmp_path / "a" / f"{name}.parquet", f"blocks.{name}") for name in analysis.TABLES}
    for name in tables:
        assert (tmp_path / "a" / f"{name}.parquet").read_bytes() == (tmp_path / "b" / f"{name}.parquet").read_bytes()
    (folder,) = captures_in(captured / family)
    data = load_capture(folder)
    depth, halves = len(data["metadata"]["captured_blocks"]), 1 if family == "flux" else 2
    streams = 2 * depth - (family == "sd3")  # SD3's last block puts out no text
    assert tables["similarity"].height == tables["residual"].height == 3 * streams * halves
    assert tables["text_drift"].height == 3 * halves * (streams - depth + 1)
    assert tables["decodability"].height == 3 * depth
    # one row by hand, across the border of double and single blocks where there is one
    last = {"block": "single_block_0", "previous": "double_block_1"}
    last = last if family == "flux" else {"block": "joint_block_2", "previous": "joint_block_1"}
    (row,) = (
        tables["similarity"].filter(step=1, stream="txt", half="cond" if halves == 1 else "uncond", **last).to_dicts()
    )
    if family == "flux":
        before, after = (
            data["double_blocks"]["block_1"][1][1],
            data["single_blocks"]["block_0"][1][:, : data["metadata"]["txt_seq_len"]],
        )
    else:
        before, after = data["joint_blocks"]["block_1"][1][1][1:], data["joint_blocks"]["block_2"][1][1][1:]
    x, y = before[0].double().numpy(), after[0].double().numpy()
    k, m = x @ x.T, y @ y.T
    assert row["linear_cka"] == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=1e-6)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    assert row["cosine"] == pytest.approx(((x * y).sum(1) / norms).mean(), rel=1e-6)
    (same,) = tables["residual"].filter(step=1, stream="txt", half=row["half"], **last).to_dicts()
    assert same["relative_update"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-6)
    # text: nothing has moved where it starts, and the first captured step is its own reference
    start = tables["text_drift"].filter(depth=-1)
    assert start["block"].unique().to_list() == ["embedding"] and start["cosine_distance"].abs().max() < 1e-9
    assert tables["text_drift"].filter(step=0)["step_relative_l2"].abs().max() == 0
    assert tables["text_drift"].filter(pl.col("depth") > 0)["cosine_distance"].min() > 1e-3
    # the last block's estimate at the last step is the generated picture
    (final,) = tables["decodability"].filter(step=2, depth=depth - 1).to_dicts()
    assert final["psnr_db"] == 100 and tables["decodability"]["psnr_db"].arg_max() == tables["decodability"].height - 1


def test_features_give_a_distance(captured, tmp_path):
    blocks(captured / "flux", tmp_path, CLIP, Blocks(features="shapes-clip"))
    table = read_table(tmp_path / "decodability.parquet", "blocks.decodability")
    distance = table["feature_cosine_distance"]
    assert distance[-1] == pytest.approx(0, abs=1e-6) and distance.is_between(-1e-6, 2).all() and distance.max() > 0.01
    assert set(read_table(tmp_path / "decodable.parquet", "blocks.decodable")["criterion"]) == {
        "psnr_db",
        "feature_cosine_distance",
    }
    with pytest.raises(InputError, match=r"blocks\.features: `shapes-clop`"):
        blocks(captured / "flux", tmp_path, CLIP, Blocks(features="shapes-clop"))
    with pytest.raises(InputError, match="holds no finished capture"):
        blocks(tmp_path, tmp_path, {})


def test_what_a_capture_lacks_leaves_its_tables_empty(tmp_path):
    settings = CaptureSet(store="statistics", should_decode_intermediates=False)
    capture("tiny", FLUX, tmp_path / "statistics", prompt="a ring", num_steps=1, settings=settings)
    settings = CaptureSet(blocks="double:1,single:1", should_decode_intermediates=False)
    capture("tiny", FLUX, tmp_path / "gap", prompt="a ring", num_steps=1, settings=settings)
    for name, drift in (("statistics", 0), ("gap", 2)):
        blocks(tmp_path / name, tmp_path / f"{name}-tables", {})
        heights = {
            t: read_table(tmp_path / f"{name}-tables" / f"{t}.parquet", f"blocks.{t}").height for t in analysis.TABLES
        }
        assert heights == {"similarity": 0, "residual": 0, "text_drift": drift, "decodability": 0, "decodable": 0}


def test_the_first_decodable_block_by_hand(tmp_path):
    """Pictures of a known distance to the final one: PSNR 20 log10(255 / difference)."""
    metadata = {"generation_id": "g", "prompt_id": "p", "model": "m", "sigmas": [1.0, 0.5, 0.0]}
    metadata |= {"captured_steps": [0, 1], "captured_blocks": ["double_block_0", "double_block_1", "single_block_0"]}
    differences = {(0, "double_block_0"): 200, (0, "double_block_1"): 80, (0, "single_block_0"): 30}
    differences |= {(1, "double_block_0"): 60, (1, "double_block_1"): 10, (1, "single_block_0"): 0}
    for (step, block), difference in differences.items():
        file = decoded_file(tmp_path, "x0", step, block)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (difference,) * 3).save(file.with_suffix(".png"))
        file.with_suffix(".png").rename(file)  # exact pixels under the name that is looked for
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "img_0.png")
    rows = decodability_rows(tmp_path, metadata, {b: i for i, b in enumerate(metadata["captured_blocks"])})
    expected = [20 * np.log10(255 / d) if d else 100 for d in differences.values()]
    np.testing.assert_allclose([row["psnr_db"] for row in rows], expected)
    decodable = list(decodable_rows(rows, Blocks(psnr_db=15.0)))
    assert [(r["step"], r["block"], r["first"]) for r in decodable] == [
        (0, "single_block_0", True),
        (1, "double_block_1", False),
    ]
    assert [r["block"] for r in decodable_rows(rows, Blocks(psnr_db=10.0))] == ["double_block_1", "double_block_0"]
    assert not list(decodable_rows(rows, Blocks(psnr_db=101.0)))


# Ablation ------------------------------------------------------------------------------------------------------------


def final(model, observers=()) -> torch.Tensor:
    return sample(model, ["a ring"], [""], [1], observers)


@pytest.mark.parametrize(
    ("kind", "block", "where"),
    [
        ("flux", "double_block_1", ("transformer_blocks", 1)),
        ("flux", "single_block_0", ("single_transformer_blocks", 0)),
        ("sd3", "joint_block_0", ("transformer_blocks", 0)),
        ("sd3", "joint_block_1", ("transformer_blocks", 1)),
    ],
)
def test_skipping_a_block_is_a_network_without_it(kind, block, where):
    model = tiny_generator(kind)
    without = replace(model, pipe=copy.copy(model.pipe))
    transformer = copy.deepcopy(model.pipe.transformer)
    without.pipe.transformer = transformer
    del getattr(transformer, where[0])[where[1]]
    model_own = final(model)
    skipped = final(model, [Ablation(block, "skip", range(9))])
    assert torch.equal(skipped, final(without)) and not torch.equal(skipped, model_own)
    assert torch.equal(final(model), model_own), "the hook is gone"
    assert torch.equal(final(model, [Ablation(block, "skip", [])]), model_own)
    late = final(model, [Ablation(block, "skip", [4])])
    assert 0 < (late - model_own).norm() < (skipped - model_own).norm()


def test_mean_ablation_adds_the_same_to_every_token():
    given, made = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    added = mean(given, made) - given
    expected = np.stack([(made - given)[b].numpy().mean(axis=0) for b in range(2)])
    for token in range(7):
        np.testing.assert_allclose(added[:, token], expected, atol=1e-12)


def write_csv(folder: Path) -> Path:
    csv = folder / "prompts.csv"
    csv.write_text("prompt_id,prompt,seed\na,a large red ring,1\nb,a small blue star,2\nc,a green square,3\n")
    return csv


def test_table_of_effects(tmp_path, monkeypatch):
    settings = Ablate(generations=2, blocks="double:0,single:-1", features="shapes-clip")
    calls, sampled = [], ablation.sampled

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sampled(*arguments)

    arguments = {"prompts": [write_csv(tmp_path)], "embedders": CLIP, "settings": settings}
    monkeypatch.setattr(ablation, "sampled", failing)
    with pytest.raises(KeyboardInterrupt):
        ablate("shapes-flux", FLUX, out=tmp_path / "a.parquet", partial=tmp_path / "partial", **arguments)
    ablate("shapes-flux", FLUX, out=tmp_path / "a.parquet", partial=tmp_path / "partial", **arguments)
    assert len(calls) == 4 + 1 + 2, "the block that was done is not sampled again"
    ablate("shapes-flux", FLUX, out=tmp_path / "b.parquet", **arguments)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    table = read_table(tmp_path / "a.parquet", "ablation")
    assert table.select("block", "kind", "prompt_id").rows() == [
        (block, kind, prompt)
        for block in ("double_block_0", "single_block_3")
        for kind in ("mean", "skip")
        for prompt in ("a", "b")
    ]
    assert table["depth"].to_list() == [0] * 4 + [5] * 4 and table["latent_relative_l2"].min() > 0
    # one effect by hand
    model = load_generator("shapes-flux", FLUX, "cpu")
    pair = [
        sample(model, ["a large red ring", "a small blue star"], ["", ""], [1, 2], o)[0].double()
        for o in ([], [Ablation("double_block_0", "skip", range(3))])
    ]
    (row,) = table.filter(block="double_block_0", kind="skip", prompt_id="a").to_dicts()
    assert row["latent_relative_l2"] == pytest.approx(((pair[1] - pair[0]).norm() / pair[0].norm()).item(), rel=1e-5)
    pictures = list(read_tar(tmp_path / "a.tar"))
    assert [(s["json"]["block"], s["json"]["kind"]) for s in pictures] == [
        ("none", "none"),
        *((block, kind) for block in ("double_block_0", "single_block_3") for kind in ("skip", "mean")),
    ]
    assert {s["json"]["prompt_id"] for s in pictures} == {"a"} and json.dumps(pictures[0]["json"])


def test_bad_ablations_are_refused_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "load_generator", lambda *_: pytest.fail("a model was loaded"))
    csv = write_csv(tmp_path)
    for settings, message in (
        (Ablate(kinds=["zero"]), "ablate.kinds: `zero` is not a kind of ablation"),
        (Ablate(steps="9"), "there are 0-2"),
        (Ablate(features="x"), "ablate.features: `x`"),
        (Ablate(blocks="joint:*"), "matches no block; there are double:0-1, single:0-3"),
    ):
        with pytest.raises(InputError, match=message):
            ablate("shapes-flux", FLUX, [csv], tmp_path / "a.parquet", {}, settings=settings)


# Figures -------------------------------------------------------------------------------------------------------------


def made_table(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / f"{name}.parquet"
    write_loosely(pl.DataFrame(rows, schema=analysis.TABLES[name].schema()), path, f"blocks.{name}")
    return path


def test_figures_draw_means_over_generations(tmp_path):
    place = {"prompt_id": "p", "model": "m", "step": 0, "sigma": 1.0, "half": "cond", "stream": "img"}
    rows, decoded = [], []
    for generation, shift in (("g", 0.0), ("h", 0.2)):
        for depth, block in enumerate(("double_block_0", "single_block_0")):
            about = place | {"generation_id": generation, "block": block, "block_type": block[:6], "depth": depth}
            about |= {"block_index": 0, "previous": "x", "cosine": 0.1 * depth + shift, "linear_cka": 0.5}
            rows += [about, about | {"half": "uncond", "cosine": -1.0}]
            decoded.append(about | {"psnr_db": 10.0 * (1 + depth) + 100 * shift})
    names = {"similarity": rows, "decodability": decoded, "decodable": decoded[1:2], "residual": [], "text_drift": []}
    near = {"criterion": "psnr_db", "threshold": 20.0, "distance": 20.0, "first": True}
    names["decodable"] = [row | near for row in names["decodable"]]
    columns = {name: set(analysis.TABLES[name].columns) for name in names}
    files = {
        "blocks": [
            made_table(tmp_path, name, [{k: v for k, v in row.items() if k in columns[name]} for row in entries])
            for name, entries in names.items()
        ]
    }
    figure, data = figures.block_similarity(files)
    assert data.select("block", "cosine").rows() == [
        ("double_block_0", pytest.approx(0.1)),
        ("single_block_0", pytest.approx(0.2)),
    ]
    lines = figure.axes[0].get_lines()
    assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([0.1, 0.2])]
    figure, data = figures.decodability(files)
    assert data["psnr_db"].to_list() == pytest.approx([20, 30])
    (frame,) = (patch for patch in figure.axes[0].patches)
    assert frame.get_xy() == (0.5, -0.5), "around the second block of the first step"
    for function in (figures.residual_contribution, figures.text_drift):
        drawn, data = function(files)
        assert data.is_empty() and not drawn.axes and drawn.texts, "a note that says why"


def test_figure_of_ablation_shows_every_effect(tmp_path):
    settings = Ablate(generations=1, blocks="double:*")
    ablate("shapes-flux", FLUX, [write_csv(tmp_path)], tmp_path / "shapes-flux.parquet", {}, settings=settings)
    files = {"ablate": [tmp_path / "shapes-flux.parquet", tmp_path / "shapes-flux.tar"]}
    figure, data = ablation_effects(files)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    table = read_table(tmp_path / "shapes-flux.parquet", "ablation")
    assert sorted(heights) == pytest.approx(sorted(table["latent_relative_l2"])) and data["runs"].to_list() == [1] * 4
    _, unchanged, ablated = figure.axes
    assert [len(axis.images) for axis in (unchanged, ablated)] == [1, 1], "an axis per picture takes minutes"
    side = FLUX.width + GAP
    assert ablated.images[0].get_array().shape == (2 * side, 2 * side, 3), "two kinds by two blocks"
    assert [label.get_text() for label in unchanged.get_yticklabels()] == ["skip", "mean"]
