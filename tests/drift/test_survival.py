"""How long things last: Kaplan-Meier against scipy, planted changes of rendered scenes, quantized pairs."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from ditscope.core.errors import InputError
from ditscope.core.shards import png_bytes, write_tar
from ditscope.drift.lifetimes import ONE_PROMPT, UNNAMED, Readings, Trajectories, lifetimes, readings
from ditscope.drift.stage import drift
from ditscope.drift.survival import ALIKE, UNPAIRED, difference, kaplan_meier, quantized, reference, survival
from ditscope.drift.tables import PROMPT
from ditscope.shapes.world import ATTRIBUTES, Scene, render
from loose_tables import write_loosely
from state_tables import MODALITY, write_states


def drawn(rng, prompts, runs, hazard, states):
    """Runs whose chance of a change at each state varies by prompt, cut at different lengths."""
    each = rng.beta(2, 2 / hazard - 2, size=(prompts, 1)).repeat(runs, axis=1).ravel()
    when = rng.geometric(each) - 1
    cut = rng.integers(states // 2, states + 1, size=len(when))
    return np.minimum(when, cut), when < cut, np.repeat(np.arange(prompts), runs)


def test_survival_is_that_of_scipy():
    lasted, changed, prompts = drawn(np.random.default_rng(0), 9, 4, 0.2, 10)
    curve = kaplan_meier(lasted, changed, prompts)
    # A change at state t is one after t states; a run that is cut after n was last seen unchanged at state n - 1.
    data = stats.CensoredData(uncensored=lasted[changed], right=lasted[~changed] - 1)
    expected = stats.ecdf(data).sf
    np.testing.assert_allclose(curve["survival"], expected.evaluate(curve["position"]))
    assert curve["at_risk"][0] == 36 and curve["changes"].sum() == changed.sum()
    assert curve["censored"].sum() == (~changed).sum()
    np.testing.assert_array_equal(np.diff(curve["at_risk"]), -(curve["changes"] + curve["censored"])[:-1])


@pytest.mark.parametrize("prompts", [8, 24])
def test_the_interval_of_survival_covers(prompts):
    rng = np.random.default_rng(1)
    truth = kaplan_meier(*drawn(rng, 20_000, 1, 0.15, 10))["survival"]
    covered, known = np.zeros((2, 300, 5), bool)
    for row, there in zip(covered, known, strict=True):
        curve = kaplan_meier(*drawn(rng, prompts, 2, 0.15, 10))
        low, high = curve["low"][:5], curve["high"][:5]
        row[:], there[:] = (low <= truth[:5]) & (high >= truth[:5]), ~np.isnan(low)
    assert known.mean() > (0.4 if prompts == 8 else 0.99), "fewer than 8 prompts at risk have none"
    assert covered[known].mean() > 0.95 - 3 * np.sqrt(0.95 * 0.05 / known.sum()) - 0.01


def test_few_prompts_have_no_interval():
    curve = kaplan_meier(np.array([1, 2, 3]), np.array([True, True, False]), np.arange(3))
    assert curve["survival"].tolist() == pytest.approx([1, 2 / 3, 1 / 3]) and np.isnan(curve["low"]).all()


# Rendered scenes -----------------------------------------------------------------------------------------------------

RED_RING = Scene("ring", "red", "large", "left", "white")
BLUE_STAR = Scene("star", "blue", "small", "top", "black")
SCENES = {  # by network, prompt and seed: a scene for each image
    ("flux", "a red ring", 0): [RED_RING, RED_RING, Scene("ring", "green", "large", "left", "white")],
    ("flux", "a small blue star", 0): [BLUE_STAR, BLUE_STAR, BLUE_STAR],
    ("flux:int4", "a red ring", 0): [Scene("star", "red", "large", "left", "white"), RED_RING, RED_RING],
    ("flux:int4", "a small blue star", 0): [BLUE_STAR, BLUE_STAR, BLUE_STAR],
}


@pytest.fixture
def study(tmp_path):
    """Trajectories and images of SCENES; the captions are those of the image's number, or `odd` under int4 at 3."""
    rng = np.random.default_rng(0)
    tables, tars = [], []
    for network in ("flux", "flux:int4"):
        rows, samples = [], {}
        for (name, prompt, seed), scenes in SCENES.items():
            if name != network:
                continue
            run = {"network": network, "run_id": f"{network}:{prompt}", "prompt_id": prompt, "prompt": prompt}
            run |= {"seed": seed, "derived_seed": False, "loop_length": 2 if "star" in prompt else None}
            rows.append(run | {"sequence_number": -1, "type": "TEXT", "output_text": prompt, "output_key": prompt})
            for number, scene in enumerate(scenes):
                key = f"{network}{prompt}{number}".replace(" ", "-").replace(":", "-")
                samples[key] = {"__key__": key, "png": png_bytes(np.asarray(render(scene, rng)))}
                entry = {"entry": network, "model": "flux", "scheme": network.partition(":")[2] or "base"}
                rows.append(run | entry | {"sequence_number": 2 * number, "type": "IMAGE", "output_key": key})
                text = "odd" if number == 1 and "int4" in network and "ring" in prompt else f"caption {number}"
                entry = {"entry": "blip", "model": "blip", "scheme": "base", "output_text": text, "output_key": text}
                rows.append(run | entry | {"sequence_number": 2 * number + 1, "type": "TEXT"})
        tables.append(tmp_path / f"{network}.parquet")
        types = {"sequence_number": pl.Int32, "loop_length": pl.Int32}
        names = dict.fromkeys(("entry", "model", "scheme", "output_text"), pl.String)
        write_loosely(
            pl.DataFrame(rows, schema_overrides=types | names, infer_schema_length=None), tables[-1], "trajectories"
        )
        tars.append(tmp_path / f"{network}.tar")
        write_tar(samples.values(), tars[-1])
    return tables, tars


def told(study, max_length=12):
    tables, tars = study
    runs = Trajectories(tables, max_length)
    states = pl.DataFrame(schema={"embedder": pl.String})
    read = list(readings(runs, states, ["flux", "flux:int4"], tars))
    return lifetimes(runs, read), runs, read


NAMED = (pl.col("network") == "flux", pl.col("against") == PROMPT, pl.col("by").cast(pl.String) == "oracle")


def one(table, **what):
    return table.filter(pl.col(name).cast(pl.String) == value for name, value in what.items()).row(0, named=True)


def test_first_changes_of_rendered_scenes_are_read(study):
    table = told(study)[0]
    ring = {"prompt_id": "a red ring", "against": PROMPT, "by": "oracle"}
    colour = one(table, network="flux", what="colour", **ring)
    assert (colour["lasted"], colour["changed"], colour["became"], colour["named"]) == (2, True, "green", "red")
    shape = one(table, network="flux", what="shape", **ring)
    assert (shape["lasted"], shape["changed"], shape["followed"], shape["became"]) == (3, False, 3, None)
    assert one(table, network="flux:int4", what="shape", **ring)["became"] == "star"
    size = one(table, network="flux", what="size", **ring)
    assert size["reason"] == UNNAMED and size["lasted"] is None
    star = one(table, network="flux", what="colour", **ring | {"prompt_id": "a small blue star"})
    assert star["followed"] == 6, "its loop goes on for ever"


def test_what_no_prompt_names_is_held_against_the_first_picture(study):
    ring = {"prompt_id": "a red ring", "against": PROMPT, "by": "picture", "network": "flux"}
    table, _, read = told(study)
    states = {reader.what: reader.states for reader in read if reader.by == "picture"}
    for what in ATTRIBUTES:
        row = one(table, what=what, **ring)
        shown = states[what][row["run_id"]]
        assert row["named"] == shown[0] and row["reason"] is None
        assert row["lasted"] == next((i for i, value in enumerate(shown) if value != shown[0]), len(shown))
    assert set(table.filter(pl.col("by") == "picture")["against"]) == {PROMPT}, "pairs with the base are told once"


def test_survival_of_attributes_counts_what_is_left_out(study):
    table = survival(*told(study))
    colour = table.filter(pl.col("what") == "colour", *NAMED)
    assert colour["survival"].to_list() == [1, 1, 0.5, 0.5, 0.5, 0.5]
    assert colour["at_risk"].to_list() == [2, 2, 2, 1, 1, 1] and colour["changes"].sum() == 1
    assert colour["reference"].to_list() == [0] * 6, "what the other prompt named is never there"
    size = table.filter(pl.col("what") == "size", *NAMED)
    assert size["runs"].to_list() == [1] * 6 and size["left_out"].to_list() == [1] * 6


def test_a_quantized_network_is_held_against_its_base(study):
    table, runs, _ = told(study)
    assert runs.pairs() == [("flux:int4", "flux")]
    caption = one(table, against="flux", by="caption", prompt_id="a red ring")
    assert (caption["lasted"], caption["changed"], caption["network"]) == (1, True, "flux:int4")
    assert one(table, against="flux", what="shape", prompt_id="a red ring")["lasted"] == 0
    compared = quantized(table, runs)
    shape = one(compared, what="shape", by="oracle")
    counts = [shape[name] for name in ("pairs", "left_out", "horizon", "base_lasted", "lasted")]
    assert counts == [1, 1, 6, 6, 6], "the ring's run was not followed as far as the star's"
    assert one(compared, what="background", by="oracle")["reason"] == UNPAIRED
    assert one(compared, what="size", by="oracle")["reason"] == ALIKE


def test_a_missing_image_is_named(study):
    tables, tars = study
    for given in (tars[:1], []):
        with pytest.raises(
            InputError, match=r"drift\.oracle: no image .*png, .* in \d tars; give those of all networks"
        ):
            told((tables, given))


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_vectors_leave_their_start_beyond_half_the_distance_of_prompts(tmp_path):
    x = np.zeros((2, 6, 4))
    x[0, :, 0], x[1, :, 1] = 1, 1
    x[0, 3:, 0], x[0, 3:, 2] = 0.4, 1  # cosine with its start 0.37; between the prompts 0, so half of it is 0.5
    vectors = {("text-a", "net-a", f"p{p}/0"): x[p] for p in range(2)}
    embeddings, trajectories = write_states(tmp_path, vectors, MODALITY)
    drift(embeddings, trajectories, tmp_path / "drift")
    table = pl.read_parquet(tmp_path / "drift/lifetimes.parquet").filter(pl.col("by").cast(pl.String) == "embedding")
    assert table["threshold"].to_list() == [0.5, 0.5]
    assert table["lasted"].to_list() == [2, 5] and table["changed"].to_list() == [True, False]
    alone = write_states(tmp_path / "alone", {("text-a", "net-a", "p0/0"): x[0]}, MODALITY)
    drift(*alone, tmp_path / "one")
    reasons = pl.read_parquet(tmp_path / "one/lifetimes.parquet").filter(pl.col("what") == "text-a")["reason"]
    assert reasons.to_list() == [ONE_PROMPT]
    assert pl.read_parquet(tmp_path / "one/survival.parquet").is_empty()


def test_a_gap_ends_what_is_known():
    reader = Readings("embedding", "e", {"r": np.eye(3)[[0, 0]]}, {"r": np.eye(3)[0]}, 0.5)
    assert reader.lasted("r", np.eye(3)[0]) == (2, False) and reader.lasted("r", np.eye(3)[1]) == (0, True)
    assert np.isnan(reference([], 3)).all() and reference([(0, True)], 3).tolist() == [0, 0, 0]


# Differences ----------------------------------------------------------------------------------------------------------


def pairs(rng, prompts, longer, seeds=2):
    """Lifetimes of a network and its base, of which the first last longer by so many states on the average."""
    rows = []
    for p in range(prompts):
        common = rng.integers(2, 6)
        for s in range(seeds):
            for network, extra in (("flux:int4", longer), ("flux", 0)):
                lasted = int(common + rng.poisson(1) + rng.poisson(extra))
                rows.append(("n" if network == "flux" else "q", f"p{p}", s, "fixed", "oracle", "shape", 30, lasted))
    names = ["network", "prompt_id", "seed", "seeds", "by", "what", "followed", "lasted"]
    return pl.DataFrame(rows, schema=names, orient="row")


CELL = {"network": "q", "base": "n", "seeds": "fixed", "by": "oracle", "what": "shape"}


@pytest.mark.parametrize(("prompts", "longer"), [(8, 0), (8, 1), (20, 1)])
def test_the_interval_of_a_difference_covers_and_its_null_errs_at_its_rate(prompts, longer):
    rng = np.random.default_rng(2)
    rows = [difference(pairs(rng, prompts, longer), CELL, 99, 1) for _ in range(300)]
    rows = [row for row in rows if row.get("low") is not None]
    covered = np.mean([row["low"] <= longer <= row["high"] for row in rows])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / len(rows)) + 0.01)
    rejected = np.mean([row["p_value"] <= 0.05 for row in rows])
    assert rejected > 0.15 if longer else rejected < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(rows))
    assert all(row["horizon"] == 30 and row["pairs"] == 2 * prompts for row in rows)


def test_one_gap_costs_one_pair():
    whole = pairs(np.random.default_rng(3), 20, 1)
    cut = whole.with_columns(pl.when(pl.int_range(pl.len()) == 0).then(1).otherwise("followed").alias("followed"))
    row = difference(cut, CELL, 999, 1)
    assert (row["pairs"], row["left_out"], row["horizon"], row["prompts"]) == (39, 1, 30, 20)
    assert row["difference"] == pytest.approx(difference(whole, CELL, 999, 1)["difference"], abs=0.1)


@pytest.mark.parametrize(("prompts", "tests", "told"), [(4, 1, False), (6, 1, True), (8, 5, True), (8, 7, False)])
def test_a_test_that_could_never_find_anything_is_none(prompts, tests, told):
    """Signs of n prompts have 2^n ways, so that no two-sided p-value is below 2 / 2^n."""
    row = difference(pairs(np.random.default_rng(4), prompts, 9), CELL, 9999, tests)
    assert (row["p_value"] is not None) == told and (row["reason"] is None) == told
    assert told or f"{prompts} prompts" in row["reason"]
