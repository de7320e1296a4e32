"""Pseudo-classes of a data set: what they are made of, what a new sample gets, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_rand_score

from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.refine.codebook import (
    Codebook,
    assign,
    assign_codes,
    build_codebook,
    condition,
    conditions_of,
    embed,
    fit_codebook,
    key_means,
    load_codebook,
    parts_of,
)
from ditscope.refine.data_settings import Source
from ditscope.refine.dataset import Dataset, open_dataset, read_text, read_values
from ditscope.refine.prepare import prepare
from ditscope.refine.quantizers import QUANTIZERS
from ditscope.refine.settings import Refine

SETTINGS = replace(Refine(), codes=8, min_keys=2, vq_steps=150)


def made(folder: Path, **source) -> Dataset:
    """Samples of 8 classes, which their texts and values tell."""
    fake = Source(kind="fake", count=160, shape=[3, 4, 4], **source)
    prepare({}, folder / "samples.parquet", folder / "data.json", folder / "data", source=fake)
    return open_dataset(folder / "samples.parquet", folder / "data.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fake")


@pytest.fixture(scope="module")
def data(folder) -> Dataset:
    return made(folder)


def by_kind(data: Dataset, kind: str) -> Dataset:
    """The same samples with their tokens, with prompts alone, or with neither."""
    if kind == "tokens":
        return data
    samples = data.samples if kind == "words" else data.samples.with_columns(prompt=pl.lit(""))
    return replace(data, words=0, text_width=0, samples=samples)


@pytest.mark.parametrize("kind", ["tokens", "words", "none"])
@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
def test_classes_that_text_and_keys_tell_are_found(data, kind, quantizer):
    settings = replace(SETTINGS, quantizer=quantizer, keyframe_weight=1.0 if kind == "none" else 0.3)
    book, conditions = fit_codebook(by_kind(data, kind), settings)
    codes, distances = assign(book, conditions)
    labels = data.samples["label"].to_list()
    chance = adjusted_rand_score(labels, np.random.default_rng(0).permutation(codes))
    assert adjusted_rand_score(labels, codes) > (0.9 if (kind, quantizer) == ("tokens", "kmeans") else 0.3) > chance
    assert book.text == kind
    assert book.codes == 8
    assert len(np.unique(codes[data.rows("train")])) == 8
    assert (distances >= 0).all()


def test_both_parts_have_unit_spread_over_the_training_split(data):
    book, conditions = fit_codebook(data, replace(SETTINGS, keyframe_weight=2.0))
    embedding = embed(book, conditions)[data.rows("train")].astype(np.float64)
    text, keyframes = np.split(embedding, [parts_of(book, conditions)[0].shape[1]], 1)
    np.testing.assert_allclose(embedding.mean(0), 0, atol=2e-3)  # conditions are float16, as tokens are stored
    assert (text**2).sum(1).mean() == pytest.approx(1, rel=1e-3)
    assert (keyframes**2).sum(1).mean() == pytest.approx(4, rel=1e-3)
    tokens, there = read_text(data, np.arange(len(data)))
    text, keyframes = parts_of(book, conditions)
    mean = [t[w].mean(0) for t, w in zip(tokens, there, strict=True)]
    np.testing.assert_array_equal(text, np.float16(mean))
    values = read_values(data, np.arange(len(data)))
    np.testing.assert_array_equal(keyframes, np.float16(key_means(values, book.arrays["keys"], 2)))


def test_files_hold_all_that_a_new_sample_needs(folder, data, tmp_path):
    """Held-out samples are assigned; the command gives the codes that fitting gave, and to one sample alone its own."""
    paths = [folder / "samples.parquet", folder / "data.json"]
    build_codebook(*paths, tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet", SETTINGS)
    assign_codes(*paths, tmp_path / "codebook.safetensors", tmp_path / "again.parquet")
    first = (tmp_path / "assignments.parquet").read_bytes()
    assert (tmp_path / "again.parquet").read_bytes() == first
    table = read_table(tmp_path / "assignments.parquet", "refine.assignments")
    assert table["key"].to_list() == data.samples["key"].to_list()
    book = load_codebook(tmp_path / "codebook.safetensors")
    assert [(t["codes"], t["kept"]) for t in book.tried] == [(8, True)]
    for row in (0, 77, 159):
        rows = np.array([row])
        one = condition(book, read_values(data, rows), [data.samples["prompt"][row]], *read_text(data, rows))
        code, distance = assign(book, one)
        assert code[0] == table["code"][row]
        assert distance[0] == pytest.approx(table["distance"][row])
    new = made(tmp_path / "new", seed=0)
    np.testing.assert_array_equal(assign(book, conditions_of(book, new))[0], table["code"])
    build_codebook(*paths, tmp_path / "b.safetensors", tmp_path / "b.parquet", SETTINGS)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "codebook.safetensors").read_bytes()


def test_fewer_codes_where_the_first_choice_is_too_sparse(data):
    book, _ = fit_codebook(data, replace(SETTINGS, codes=100, fallback_codes=8))
    assert book.codes == 8
    assert [t["codes"] for t in book.tried] == [100, 8]
    assert book.tried[0]["occupancy"]["singleton_or_empty_fraction"] > 0.25


def test_what_cannot_be_quantized_is_refused(data):
    train = len(data.rows("train"))
    with pytest.raises(InputError, match=rf"refine.codes: 999 pseudo-classes from {train} samples"):
        fit_codebook(data, replace(SETTINGS, codes=999))
    with pytest.raises(InputError, match="a single sample has no neighbours"):
        fit_codebook(replace(data, samples=data.samples.filter(pl.col("split") == "train").head(1)), SETTINGS)
    assert isinstance(fit_codebook(data, SETTINGS)[0], Codebook)
