"""Agreement of labellings: scores against scikit-learn, and what labellings that know nothing of each other give."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from ditscope.cluster.agreement import agreement, contingency_scores, null_scores
from ditscope.core import nulls


def table_of(**labellings):
    """The table `clusters` of labellings (prompts, runs, length) by embedder."""
    parts = []
    for embedder, labels in labellings.items():
        prompt, run, position = (x.ravel() for x in np.indices(labels.shape))
        parts.append(pl.DataFrame({
            "embedder": embedder, "network": "n", "run_id": [f"{p}-{r}" for p, r in zip(prompt, run, strict=True)],
            "prompt_id": prompt.astype(str), "seed": run, "position": position, "label": labels.ravel(),
        }))  # fmt: skip
    return pl.concat(parts)


def kept(table):
    return agreement(table).row(by_predicate=pl.col("outliers") == "kept", named=True)


def sticky(rng, prompts=12, runs=1, length=20, labels=6):
    """Labellings that stay in a cluster of the run's own: alike within runs, unrelated between labellings."""
    start = rng.integers(labels, size=(prompts, runs, 1))
    return (start + (rng.random((prompts, runs, length)) < 0.1).cumsum(axis=2)) % labels


def test_scores_of_contingency_tables_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    a = rng.integers(4, size=90)
    b = np.stack([rng.permutation(np.where(rng.random(90) < 0.5, a, 1)) for _ in range(1)] * 3)
    b = np.stack([rng.permutation(b[0]) for _ in range(3)])  # of the same margins
    counts = np.array([[[np.sum((a == i) & (row == j)) for j in range(4)] for i in range(4)] for row in b])
    found = contingency_scores(counts)
    for score, reference in (("ari", adjusted_rand_score), ("ami", adjusted_mutual_info_score),
                             ("v_measure", v_measure_score)):  # fmt: skip
        np.testing.assert_allclose(found[score], [reference(a, row) for row in b], atol=1e-12)


def test_labellings_of_unrelated_runs_agree_and_are_no_more_than_chance(monkeypatch):
    """States of a run are alike, so that one labelling tells the other; whole runs must be permuted to see it."""
    monkeypatch.setattr(nulls, "DRAWS", 199)
    rng = np.random.default_rng(1)
    rows = [kept(table_of(a=sticky(rng), b=sticky(rng))) for _ in range(100)]
    p = np.array([row["ari_p"] for row in rows])
    assert np.mean([row["ari"] for row in rows]) > 0.05
    for score in ("ari", "ami", "v_measure"):
        p = np.array([row[f"{score}_p"] for row in rows])
        assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
        assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.16)


def test_runs_of_one_prompt_change_places_together(monkeypatch):
    """Copies of a prompt's run would pass for agreement if each run was permuted by itself."""
    monkeypatch.setattr(nulls, "DRAWS", 99)
    rng = np.random.default_rng(2)
    copies = [table_of(a=np.repeat(sticky(rng), 4, axis=1), b=np.repeat(sticky(rng), 4, axis=1)) for _ in range(60)]
    p = np.array([kept(table)["ari_p"] for table in copies])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    apart = [kept(table.with_columns(prompt_id=pl.col("run_id")))["ari_p"] for table in copies]
    assert np.mean(np.array(apart) <= 0.05) > 0.3


def test_labellings_that_agree_are_told():
    rng = np.random.default_rng(3)
    a = sticky(rng)
    other = np.where(rng.random(a.shape) < 0.3, rng.integers(6, size=a.shape), a)
    row = kept(table_of(a=a, b=other))
    assert row["ari_p"] == 1 / 1000 and row["ari"] > row["ari_null_high"] > row["ari_null_median"]
    assert (row["prompts"], row["draws"]) == (12, 999)


def test_p_values_are_corrected_for_the_pairs():
    rng = np.random.default_rng(4)
    table = agreement(table_of(**{name: sticky(rng) for name in "abcd"}))
    for outliers in ("kept", "excluded"):
        part = table.filter(outliers=outliers).sort("ari_p")
        corrected = np.maximum.accumulate([min(1, (6 - i) * p) for i, p in enumerate(part["ari_p"])])
        np.testing.assert_allclose(part["ari_p_holm"].sort(), corrected)


def test_outliers_are_left_out_after_runs_have_changed_places():
    rng = np.random.default_rng(5)
    a, b = (np.where(rng.random((8, 1, 10)) < 0.3, -1, sticky(rng, 8, 1, 10)) for _ in "ab")
    shared = table_of(a=a).with_columns(label_b=pl.Series(b.ravel())).sort("prompt_id", "seed", "run_id", "position")
    _, drawn, _ = null_scores(shared, 50, 0)
    assert set(drawn["kept"]) == {"ari", "ami", "v_measure"} and set(drawn["excluded"]) == {"ari", "v_measure"}
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (51, 1)), axis=1)
    order[0] = np.arange(8)  # the observed
    left, right = (shared[name].to_numpy().reshape(8, 10) for name in ("label", "label_b"))
    for draw in (0, 1, 50):
        moved = right[order[draw]]
        inside = (left != -1) & (moved != -1)
        assert drawn["excluded"]["ari"][draw] == pytest.approx(adjusted_rand_score(left[inside], moved[inside]))
        assert drawn["kept"]["ari"][draw] == pytest.approx(adjusted_rand_score(left.ravel(), moved.ravel()))


def test_prompts_of_unequal_lengths_cannot_change_places():
    rng = np.random.default_rng(6)
    table = table_of(a=sticky(rng), b=sticky(rng))
    table = table.filter(pl.col("position") < 5 + pl.col("prompt_id").cast(pl.Int64))
    row = kept(table)
    assert row["ari"] is not None and row["ari_p"] is None
    assert row["null_reason"] == "no two prompts have runs of equal lengths, so none can change places"
