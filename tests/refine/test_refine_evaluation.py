"""Evaluation on held-out samples: what is looked at, what is compared, what it says."""

from dataclasses import replace

import numpy as np
import pytest

from ditscope.core.errors import InputError
from ditscope.refine import evaluate as stage
from ditscope.refine.adapter import load_adapter
from ditscope.refine.evaluate import (
    INTERPOLATED,
    NO_TEXT,
    OTHER_TEXT,
    OTHER_WAYS,
    PASTED,
    REFINED,
    Judge,
    evaluate,
    held_out,
)
from ditscope.refine.inference import conditions, pseudo_classes, refined
from ditscope.refine.keys import draw_orders, key_masks
from ditscope.refine.patches import patchify, token_grid
from ditscope.refine.refiner_file import load_refiner
from refine_refiners import CLIPS, FILMS, MAZES, PATHS, PICTURES, RENDERS, small_data, small_refiner


def flat(values: np.ndarray, pictures: np.ndarray | None) -> np.ndarray:
    """Features that are the values themselves."""
    return values.reshape(len(values), 1, -1)


def judged(folder, source, settings, most=8, gallery=1, **judge):
    trained = load_refiner(small_refiner(folder, source, settings))
    data = small_data(folder, source)
    return evaluate(trained, data, Judge(load_adapter(trained.adapter), flat, **judge), most, gallery, 0), trained, data


def test_pictures_are_judged_by_level_beside_controls(tmp_path):
    def generate(prompts, seeds):
        return np.full((len(prompts), 64, 64, 3), 255, np.uint8)

    (table, shown), _, data = judged(tmp_path, RENDERS, PICTURES, generate=generate)
    count = min(8, len(data.rows("held-out")))
    assert set(table["samples"]) == {count} and set(table["level"]) == {1, 2}
    finer = OTHER_WAYS["coarse-to-fine"]
    assert set(table["method"]) == {INTERPOLATED, REFINED, finer, PASTED}  # no text: nothing to leave out
    per_level = {"missing_error", "key_error", "psnr_db", "feature_distance", "oracle_all", "kid"}
    for (level, method), part in table.group_by("level", "method"):
        assert set(part["metric"]) == per_level, (level, method)
    untouched = table.filter(metric="key_error")
    assert untouched["value"].max() == 0
    errors = table.filter(metric="missing_error", method=INTERPOLATED).sort("level")["value"]
    assert errors[0] < errors[1]  # fewer keys, larger error
    assert [s.level for s in shown] == [1, 2]
    pasted = shown[0].pictures[PASTED]
    assert (pasted == 255).all(-1).mean() > 0.3 and pasted.shape == (64, 64, 3)


def test_interpolation_by_hand(tmp_path):
    """The error of the interpolation is that of its own tokens on missing patches, mean over samples."""
    (table, _), trained, data = judged(tmp_path, RENDERS, PICTURES, most=3, gallery=0, oracle=False)
    told = held_out(data, trained.settings, 3)
    clean = patchify(stage.read_values(data, told.rows), 16)
    orders = draw_orders(np.random.default_rng(0), 3, 16)
    keys = key_masks(orders, np.full(3, told.counts[0]))
    tokens = stage.interpolate(clean, keys, told.grid, trained.settings)
    wanted = [((tokens[i] - clean[i]) ** 2).mean(-1)[~keys[i]].mean() for i in range(3)]
    value = table.filter(level=1, method=INTERPOLATED, metric="missing_error")["value"][0]
    assert value == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_refiner_is_judged_in_both_ways_of_using_it(tmp_path):
    """Of the most keys both ways are one step; of fewer they differ, and which is `refined` the settings say."""
    (table, _), trained, data = judged(tmp_path, RENDERS, PICTURES, most=3, gallery=0, oracle=False)
    way = {"refinement": "coarse-to-fine"}
    turned = replace(trained, settings=replace(trained.settings, **way))
    other, _ = evaluate(turned, data, Judge(load_adapter(trained.adapter), flat, oracle=False), 3, 0, 0)

    def errors(table, method):
        return table.filter(method=method, metric="missing_error").sort("level")["value"].to_numpy()

    once, finer = errors(table, REFINED), errors(table, "coarse to fine")
    assert once[0] == finer[0] and once[1] != finer[1]
    np.testing.assert_array_equal(errors(other, REFINED), finer)
    np.testing.assert_array_equal(errors(other, "one step"), once)


def test_films_have_warp_error_and_flicker_and_paths_keep_off_walls(tmp_path):
    (films, shown), *_ = judged(tmp_path / "films", CLIPS, replace(FILMS, levels=1), most=1)
    assert {"warp_error", "flicker", "oracle_frames", "psnr_db"} <= set(films["metric"])
    assert shown[0].pictures["truth"].shape == (5, 64, 64, 3)
    (paths, shown), *_ = judged(tmp_path / "paths", MAZES, PATHS, most=9)
    assert {"in_walls", "off_walls"} <= set(paths["metric"]) and "psnr_db" not in set(paths["metric"])
    assert {NO_TEXT, OTHER_TEXT} <= set(paths["method"])  # the maze is the text
    assert shown[0].given is not None and shown[0].pictures["truth"].ndim == 3


def test_nothing_of_missing_nodes_is_looked_at(tmp_path):
    trained = load_refiner(small_refiner(tmp_path, MAZES, PATHS))
    data = small_data(tmp_path, MAZES)
    rows = data.rows("held-out")[:4]
    clean = patchify(stage.read_values(data, rows), 1)
    text, words = stage.read_text(data, rows)
    orders = draw_orders(np.random.default_rng(1), 4, 9, np.isin(np.arange(9), (0, 8)))
    keys = key_masks(orders, np.full(4, 4))
    prompts = data.samples["prompt"].gather(rows).to_list()
    hidden = np.where(keys[..., None], clean, 1e6)
    codes = [pseudo_classes(trained.codebook, prompts, text, words, x, keys) for x in (clean, hidden)]
    np.testing.assert_array_equal(*codes)
    for refinement in ("one-step", "coarse-to-fine"):
        using = replace(trained, settings=replace(trained.settings, refinement=refinement))
        told = conditions(text, words, codes[0])
        made = [refined(using, x, orders, 4, token_grid(data.space, 1), told) for x in (clean, hidden)]
        np.testing.assert_array_equal(*made)
        np.testing.assert_array_equal(made[0][keys], clean[keys])


def test_other_texts_are_of_other_units_and_samples_of_a_combination_are_one_unit(tmp_path):
    data = small_data(tmp_path, replace(MAZES, count=40))
    doubled = replace(data, samples=data.samples.with_columns(label=data.samples["key"].str.slice(0, 7)))  # tens
    told = held_out(doubled, PATHS, 100)
    labels = doubled.samples["label"].gather(told.rows).to_list()
    others = doubled.samples["label"].gather(told.other).to_list()
    assert all(a != b for a, b in zip(labels, others, strict=True))
    assert len(set(told.units)) == len(set(labels))


def test_a_refiner_of_other_data_is_refused(tmp_path):
    trained = load_refiner(small_refiner(tmp_path / "a", MAZES, PATHS))
    pictures = small_data(tmp_path / "b", RENDERS)
    with pytest.raises(InputError, match="trained on values with 2 channels, these have 3"):
        evaluate(trained, pictures, Judge(load_adapter(pictures.adapter), flat), 4, 0, 0)
    wide = replace(trained, settings=replace(trained.settings, patch=3))
    with pytest.raises(InputError, match="patches of 3"):
        evaluate(wide, small_data(tmp_path / "a", MAZES), Judge(load_adapter(trained.adapter), flat), 4, 0, 0)
