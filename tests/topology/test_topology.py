"""Topology against closed forms: circle, square, octahedron, equal bars, matchings of small diagrams by brute force."""

from itertools import combinations, permutations

import numpy as np
import polars as pl
import pytest
from persim.persistent_entropy import persistent_entropy

from ditscope.core.tables import read_table
from ditscope.embed.files import RUN
from ditscope.topology.figures import diagram_distances
from ditscope.topology.settings import Topology
from ditscope.topology.stage import (
    DIAGRAMS,
    DIMENSION,
    compare,
    diagram_table,
    duplicates,
    entropy,
    persistence,
    related_runs,
    sorted_length_l1,
    topology,
)
from state_tables import DERIVED, MODALITY, random_states, write_states

TABLES = ["diagrams", "distances", "entropy"]


def circle(n):
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("n", [12, 13, 24])
def test_a_circle_has_one_long_loop(n):
    h0, h1, h2 = persistence(circle(n), 2)
    side = 2 * np.sin(np.pi / n)
    assert len(h0) == n and np.isinf(h0[:, 1]).sum() == 1
    np.testing.assert_allclose(h0[:-1], [[0, side]] * (n - 1), rtol=1e-6)
    # Adamaszek & Adams 2017: the loop closes with the polygon's side and fills with the first triangle that holds the
    # centre, whose longest side spans ceil(n / 3) sides; at that scale n / 3 - 1 spheres appear if n / 3 is whole.
    np.testing.assert_allclose(h1, [[side, 2 * np.sin(np.pi * np.ceil(n / 3) / n)]], rtol=1e-6)
    assert len(h2) == (n // 3 - 1 if n % 3 == 0 else 0)


def test_a_square_and_an_octahedron():
    square = np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    np.testing.assert_allclose(persistence(square, 1)[1], [[1, np.sqrt(2)]], rtol=1e-6)
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])
    _, h1, h2 = persistence(octahedron, 2)
    assert len(h1) == 0
    np.testing.assert_allclose(h2, [[np.sqrt(2), 2]], rtol=1e-6)
    assert [len(d) for d in persistence(octahedron, 0)] == [6]


def test_one_point_and_equal_points():
    assert [d.tolist() for d in persistence(np.ones((1, 3)), 2)] == [[[0, np.inf]], [], []]
    h0, h1 = persistence(np.ones((5, 3)), 1)
    assert np.isinf(h0[:, 1]).sum() == 1 and (h0[np.isfinite(h0[:, 1])] == 0).all() and len(h1) == 0


def test_diagrams_do_not_depend_on_the_order_of_states():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    for a, b in zip(persistence(x, 2), persistence(rng.permutation(x), 2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(persistence(x, 2)[1]) > 0


def test_duplicates_are_counted():
    x = np.random.default_rng(1).normal(size=(6, 3))
    assert duplicates(x) == 0
    assert duplicates(np.concatenate([x, x[:2], x[:1], x[:1] + 1e-7])) == 4
    assert duplicates(x[:1]) == 0


def entropy_of(*bars, dimension=1):
    """The row of `entropy` of one run with the given bars."""
    diagrams = [np.zeros((0, 2))] * 3
    diagrams[dimension] = np.array(bars, float).reshape(-1, 2)
    key = ("e", "n", "r")
    runs = pl.DataFrame([dict(zip(RUN, key, strict=True)) | {"dimension": DIMENSION.categories[dimension]}],
                        schema_overrides={"dimension": DIMENSION})  # fmt: skip
    return entropy(runs, diagram_table(key, diagrams)).row(0, named=True)


@pytest.mark.parametrize("k", [2, 3, 17])
def test_the_entropy_of_equal_bars_is_the_log_of_their_number(k):
    row = entropy_of(*[(i, i + 0.25) for i in range(k)])
    assert row["bars"] == k and row["infinite_bars"] == 0
    assert row["entropy"] == pytest.approx(np.log(k))
    assert row["normalized_entropy"] == pytest.approx(1)
    assert (row["total_length"], row["longest"]) == (pytest.approx(0.25 * k), pytest.approx(0.25))


def test_entropy_equals_persim_and_is_not_moved_by_zero_length_or_infinite_bars():
    rng = np.random.default_rng(2)
    birth = rng.random(9)
    bars = np.stack([birth, birth + rng.exponential(size=9)], axis=1)
    plain = entropy_of(*bars)
    assert plain["entropy"] == pytest.approx(persistent_entropy(bars)[0])
    assert plain["normalized_entropy"] == pytest.approx(persistent_entropy(bars, normalize=True)[0])
    more = entropy_of(*bars, (0.5, 0.5), (0.1, 0.1), (0.0, np.inf))
    assert (more["bars"], more["infinite_bars"]) == (9, 1)
    assert more["entropy"] == pytest.approx(plain["entropy"])


@pytest.mark.parametrize(
    ("bars", "expected"),
    [((), None), ([(0, 0), (1, 1)], None), ([(0, np.inf)], None), ([(0, 2)], 0.0), ([(0, 2), (1, 1)], 0.0)],
)
def test_entropy_of_fewer_than_two_bars(bars, expected):
    row = entropy_of(*bars)
    assert row["entropy"] == expected and row["normalized_entropy"] is None


def brute_force(a, b, cost, total):
    """The least `total` of costs over all partial matchings of `a` and `b`; what is unmatched goes to the diagonal."""
    best = np.inf
    for k in range(min(len(a), len(b)) + 1):
        for left in combinations(range(len(a)), k):
            for right in permutations(range(len(b)), k):
                costs = [cost(a[i], b[j]) for i, j in zip(left, right, strict=True)]
                costs += [cost(p, np.full(2, p.mean())) for i, p in enumerate(a) if i not in left]
                costs += [cost(p, np.full(2, p.mean())) for j, p in enumerate(b) if j not in right]
                best = min(best, total(costs))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_diagram_distances_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    a, b = (np.sort(rng.random((rng.integers(1, 5), 2)), axis=1) for _ in range(2))
    wasserstein, bottleneck, _ = compare(a, b)
    assert wasserstein == pytest.approx(brute_force(a, b, lambda p, q: np.linalg.norm(p - q), sum))
    assert bottleneck == pytest.approx(brute_force(a, b, lambda p, q: np.abs(p - q).max(), max))
    assert compare(b, a) == pytest.approx(compare(a, b))
    assert compare(a, a) == pytest.approx((0, 0, 0), abs=1e-7)


def test_diagram_distances_of_single_bars_by_hand():
    bar, none = np.array([[1.0, 5.0]]), np.zeros((0, 2))
    # Moved along the diagonal: matched, sqrt(2) d and d. Far along it: both go to the diagonal, (2 + 2) sqrt(2) and 2.
    assert compare(bar, bar + 0.5) == pytest.approx((0.5 * np.sqrt(2), 0.5, 0))
    assert compare(bar, bar + 100) == pytest.approx((4 * np.sqrt(2), 2, 0))
    assert compare(bar, np.array([[1.0, 5.75]])) == pytest.approx((0.75, 0.75, 0.75))
    assert compare(bar, none) == pytest.approx((2 * np.sqrt(2), 2, 4))
    assert compare(none, none) == (0, 0, 0)


def test_sorted_length_l1_pads_with_zeros():
    assert sorted_length_l1(np.array([[0.0, 1], [2, 5]]), np.array([[1.0, 3]])) == pytest.approx(1 + 1)


def runs_table(kind="fixed"):
    rows = [
        (embedder, network, f"{network}:{prompt}/{seed}", prompt, seed, kind)
        for embedder in "ef"
        for network in "mn"
        for prompt in ("p0", "p1", "p2")
        for seed in (0, 1)
    ]
    return pl.DataFrame(rows, schema=[*RUN, "prompt_id", "seed", "seeds"], orient="row")


def test_related_runs_differ_in_the_one_thing():
    runs = runs_table()
    pairs = related_runs(runs, 0)
    names = [*RUN, "prompt_id", "seed"]
    related = {
        (row["relation"], *sorted(tuple(row[f"{name}_{side}"] for name in names) for side in "ab"))
        for row in pairs.iter_rows(named=True)
    }
    assert len(related) == pairs.height
    expected = set()
    for a, b in combinations(sorted(runs.select(names).rows()), 2):
        differ = {name for name, p, q in zip(names, a, b, strict=True) if p != q}
        if differ == {"embedder"}:
            expected.add(("other_embedder", a, b))
        elif a[0] == b[0] and a[1] == b[1]:
            expected.add(("other_prompt" if a[3] != b[3] else "other_seed", a, b))
        elif a[0] == b[0] and a[3] == b[3]:
            expected.add(("other_network", a, b))
    assert related == expected


def test_runs_of_fixed_and_of_derived_seeds_are_not_paired():
    """A network of both kinds of seeds is two by name, which does not make the one another network than the other."""
    both = pl.concat([
        kind.with_columns(pl.format("{} ({} seeds)", "network", "seeds").alias("network"))
        for kind in (runs_table(), runs_table("derived"))
    ])  # fmt: skip
    pairs = related_runs(both, 0)
    assert not pairs.filter(pl.col("network_a").str.extract(r"\((\w+)") != pl.col("seeds")).height
    assert not pairs.filter(pl.col("network_b").str.extract(r"\((\w+)") != pl.col("seeds")).height
    counts = related_runs(runs_table(), 0).group_by("relation").len().sort("relation")
    for kind in ("fixed", "derived"):
        assert pairs.filter(seeds=kind).group_by("relation").len().sort("relation").equals(counts)
    plain = pl.concat([runs_table().filter(network="m"), runs_table("derived").filter(network="n")])
    assert set(related_runs(plain, 0)["relation"]) == {"other_seed", "other_prompt", "other_embedder"}


def test_the_stage_and_its_figure_keep_kinds_of_seeds_apart(tmp_path):
    rng = np.random.default_rng(4)
    vectors = {
        ("image", network, f"p{prompt}/{seed}"): 1 + rng.normal(size=(6, 4)).cumsum(axis=0)
        for network, seeds in (("net-a", (0, 1, 1000, 1001)), ("net-b", (0, 1000)), ("net-c", (0,)))
        for prompt in range(2)
        for seed in seeds
    }
    table = run_topology(tmp_path, vectors, max_dimension=0)["distances"]
    derived = [pl.col(f"seed_{side}") >= DERIVED for side in "ab"]
    assert table.filter(derived[0] != derived[1]).is_empty()
    assert table.filter((pl.col("seeds") == "derived") != derived[0]).is_empty()
    # By hand, per prompt: fixed 2 x 1 (a, b) + 2 x 1 (a, c) + 1 (b, c), derived 2 x 1 (a, b).
    other = table.filter(relation="other_network").group_by("seeds").len().sort("seeds")
    assert other.rows() == [("fixed", 10), ("derived", 4)]
    figure, _ = diagram_distances({"topology": [tmp_path / "topology/distances.parquet"]})
    (axis,) = (axis for page in figure.subfigs for axis in page.axes)
    labels = [label.get_text() for label in axis.get_yticklabels()]
    pairs = dict(zip(labels, (int(text.get_text()) for text in axis.texts if text.get_text().isdigit()), strict=True))
    counted = {"other network, fixed": 10, "other network, derived": 4, "other seed, derived": 2}
    assert {name: pairs[name] for name in counted} == counted
    assert len(axis.collections) == len(labels) == 8


def test_pairs_are_cut_evenly_and_always_alike():
    group = ["relation", "embedder_a", "embedder_b", "network_a", "network_b"]
    every, cut = related_runs(runs_table(), 0), related_runs(runs_table(), 4)
    sizes = every.group_by(group).len().with_columns(pl.col("len").clip(upper_bound=4)).sort(group)
    assert cut.group_by(group).len().sort(group).equals(sizes)
    assert cut.join(every, on=every.columns, how="anti").is_empty()
    assert cut.equals(related_runs(runs_table().reverse(), 4))


def run_topology(tmp_path, vectors, out="topology", **settings):
    topology(*write_states(tmp_path, vectors, MODALITY), tmp_path / out, Topology(**settings))
    return {name: read_table(tmp_path / f"{out}/{name}.parquet", f"topology.{name}") for name in TABLES}


def test_the_stage_sees_the_loop_of_a_circular_trajectory(tmp_path):
    loop = 3 * circle(13)  # any length: states are compared by direction
    line = np.concatenate([np.ones((12, 1)), np.arange(12)[:, None]], axis=1)
    tables = run_topology(tmp_path, {("image", "net-a", "p0/0"): loop, ("image", "net-b", "p0/0"): line})
    assert dict(tables["diagrams"].schema) == DIAGRAMS.schema()
    loops = tables["diagrams"].filter(pl.col("dimension") == "H₁")
    assert loops["network"].to_list() == ["net-a"]
    length = 2 * np.sin(np.pi * 5 / 13) - 2 * np.sin(np.pi / 13)
    assert (loops["death"] - loops["birth"]).item() == pytest.approx(length, rel=1e-6)
    infinite = tables["diagrams"].filter(pl.col("death").is_null())
    assert infinite.select("network", "dimension").rows() == [("net-a", "H₀"), ("net-b", "H₀")]
    entropy = tables["entropy"].filter(network="net-a")
    assert entropy["dimension"].to_list() == ["H₀", "H₁", "H₂"]
    assert entropy["entropy"].to_list() == [pytest.approx(np.log(12)), 0.0, None]
    between = tables["distances"].filter(pl.col("dimension") == "H₁").row(0, named=True)
    assert (between["relation"], between["network_a"], between["network_b"]) == ("other_network", "net-a", "net-b")
    assert between["wasserstein"] == pytest.approx(length / np.sqrt(2), rel=1e-6)
    assert between["bottleneck"] == pytest.approx(length / 2, rel=1e-6)


def test_repeated_states_are_a_covariate(tmp_path):
    rng = np.random.default_rng(3)
    prompt, states = rng.normal(size=(1, 5)), rng.normal(size=(4, 5))
    x = np.concatenate([prompt, states, states[:3]])
    row = run_topology(tmp_path, {("text-a", "net-a", "p0/0"): x})["entropy"].row(0, named=True)
    assert (row["states"], row["duplicate_states"], row["bars"], row["infinite_bars"]) == (7, 3, 3, 1)


def test_the_stage_is_the_same_again_in_any_order_of_its_inputs(tmp_path):
    embeddings, trajectories = write_states(tmp_path, random_states(), MODALITY)
    settings = Topology(max_pairs=3)
    topology(embeddings, trajectories, tmp_path / "a", settings)
    topology(embeddings[::-1], trajectories[::-1], tmp_path / "b", settings)
    for name in TABLES:
        assert (tmp_path / f"a/{name}.parquet").read_bytes() == (tmp_path / f"b/{name}.parquet").read_bytes()


def test_single_states_and_the_highest_dimension(tmp_path):
    vectors = {("text-a", "net-a", "p0/0"): np.ones((2, 3)), ("image", "net-a", "p0/0"): circle(5)}
    tables = run_topology(tmp_path, vectors, max_dimension=1)
    assert tables["entropy"]["dimension"].to_list() == ["H₀", "H₁"] * 2
    assert tables["entropy"].filter(embedder="text-a")["entropy"].to_list() == [None, None]
    assert tables["distances"]["relation"].to_list() == ["other_embedder"] * 2
    empty = run_topology(tmp_path, {("text-a", "net-a", "p0/0"): np.ones((1, 3))}, out="empty")
    assert all(table.is_empty() for table in empty.values())


def test_of_many_runs_and_states_a_sample_has_diagrams(tmp_path):
    paths = write_states(tmp_path, random_states(length=12), MODALITY)
    topology(*paths, tmp_path / "t", Topology(max_dimension=1, max_runs=5, max_points=7))
    table = pl.read_parquet(tmp_path / "t/entropy.parquet")
    assert table.height == 3 * 5 * 2 and set(table["states"]) == {7}
    runs = table.group_by("embedder").agg(pl.col("run_id").unique().sort())
    assert runs["run_id"].n_unique() == 1, "the same runs of every embedder"
