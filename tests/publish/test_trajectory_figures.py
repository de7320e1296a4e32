"""Figures of the analyses of trajectories: pages that stay legible, every table drawn, what is poor named."""

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from ditscope.cluster.settings import Cluster
from ditscope.cluster.stage import cluster
from ditscope.core.schema import tables_of
from ditscope.core.tables import read_table
from ditscope.drift.stage import drift
from ditscope.publish.draw import function_of
from ditscope.publish.figures import FIGURES
from ditscope.style import WIDTH, chunks, facets, legend, save, short, tell, write_counts
from ditscope.topology.stage import topology
from loose_tables import write_loosely
from state_tables import DERIVED, write_states

NETWORKS = ("moving", "still", "jumping")
EMBEDDERS = {"words": "text", "pixels": "image"}
CAPTIONS = ("a red ring", "two $towers$ at dusk & <b>", "a very long caption of a bicycle against a wall of old bricks")
ANALYSES = ("drift", "cluster", "topology")
SUMMED_UP = {"drift.lifetimes"}  # by drift.survival
SHOWN = [name for name, figure in FIGURES.items() if figure.category == "Trajectories" and name != "trajectory-strips"]


def runs(rng, network, length=10, d=5):
    """States of a run: walking, still, or hopping between three places."""
    if network == "still":
        return np.repeat(np.eye(d)[:1], length, axis=0)
    if network == "moving":
        return 1 + rng.normal(size=(length, d)).cumsum(axis=0)
    return np.eye(d)[(rng.random(length) < 0.4).cumsum() % 3] + 0.02 * rng.normal(size=(length, d))


def written(folder, vectors):
    """What the stages leave of trajectories with these vectors, whose texts are CAPTIONS."""
    rng = np.random.default_rng(0)
    embeddings, trajectories = write_states(folder, vectors, EMBEDDERS)
    for path in trajectories:
        table = pl.read_parquet(path)
        texts = pl.Series([CAPTIONS[i % 3] for i in range(len(table))])
        told = pl.when(pl.col("output_text").is_not_null()).then(texts).alias("output_text")
        write_loosely(table.with_columns(told), path, "trajectories")
        invocations = table.filter(pl.col("sequence_number") >= 0)
        clock = invocations.select("network", "run_id", "sequence_number").with_columns(
            pl.lit("m:int8").alias("entry"), pl.lit("IMAGE").alias("type"), pl.lit(4).alias("batch_size"),
            pl.lit(False).alias("shared"), pl.Series("seconds", rng.random(len(invocations)) + 0.1, pl.Float64),
        )  # fmt: skip
        write_loosely(clock, path.with_suffix(".timing.parquet"), "trajectories.timing")
    for stage, function in (("drift", drift), ("cluster", cluster), ("topology", topology)):
        settings = {"settings": Cluster(min_cluster_size=4)} if stage == "cluster" else {}
        function(embeddings, trajectories, folder / stage, **settings)
    left = {stage: sorted((folder / stage).glob("*.parquet")) for stage in ANALYSES}
    return left | {"embed": embeddings, "trajectories": trajectories}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the stages leave of three networks, one of them degenerate, under a text and an image embedder."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    vectors = {(e, n, f"p{p}/{s}"): runs(rng, n)
               for e in EMBEDDERS for n in NETWORKS for p in range(4) for s in range(2)}  # fmt: skip
    return written(folder, vectors)


def drawn(name, files):
    return function_of(name)({stage: files[stage] for stage in FIGURES[name].stages})


def words(figure):
    """Everything that is written in a figure."""
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text()]


WALK = 1 + np.random.default_rng(1).normal(size=(9, 4)).cumsum(axis=0)
POOR = {
    "only a prompt": {("words", "n", "p0/0"): WALK[:1]},
    "one picture": {("pixels", "n", "p0/0"): WALK[:1]},
    "one run of two states": {("words", "n", "p0/0"): WALK[:3]},
    "networks of one embedder each": {("words", "n", "p0/0"): WALK, ("pixels", "m", "p1/0"): WALK},
    "fixed and derived seeds": {("words", "n", f"p{i % 2}/{seed}"): WALK[i:] for i, seed in enumerate((0, 1, DERIVED))},
    "equal states": {("words", "n", f"p{i}/0"): np.ones((5, 3)) for i in range(4)},
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("case", POOR)
def test_figures_of_next_to_nothing_are_drawn(case, tmp_path):
    files = written(tmp_path, POOR[case])
    for name in SHOWN:
        figure, data = drawn(name, files)
        save(figure, data, tmp_path / name, ["png"], 40)
        assert words(figure), name


@pytest.mark.parametrize("name", SHOWN)
def test_figures_are_drawn_and_say_of_how_many_and_of_what_is_poor(name, files, tmp_path):
    figure, data = drawn(name, files)
    save(figure, data, tmp_path / name, ["png", "pdf"], 60)
    text = " ".join(words(figure))
    if name.startswith("quantized-"):
        assert data.is_empty() and "quantized" in text, "there is none"
        return
    assert not data.is_empty() and (tmp_path / f"{name}.csv").stat().st_size > 0
    assert " of " in text or "n = " in text or "(" in text
    if name not in ("invocation-times", "cluster-map"):
        assert "degenerate" in text or name in ("cluster-stability", "drift-jumps", "drift-divergence")


def test_every_table_of_the_analyses_is_read_by_a_figure(files, monkeypatch):
    read = set()

    def reading(path, name):
        read.add(name)
        return read_table(path, name)

    monkeypatch.setattr("ditscope.core.tables.read_table", reading)
    for name in SHOWN:
        drawn(name, files)
    declared = {table.name for stage in ANALYSES for table in tables_of(stage)}
    assert declared - SUMMED_UP <= read


def test_clusters_are_called_by_the_caption_of_their_medoid(files):
    for name in ("cluster-transitions", "run-lengths", "label-phases", "cluster-stability"):
        figure, _ = drawn(name, files)
        assert any(word.startswith("a red ring  ") for word in words(figure)), name


def test_never_left_and_never_seen_are_told_apart(files):
    figure, data = drawn("cluster-transitions", files)
    text = words(figure)
    assert any("never left" in word for word in text) and any("never seen" in word for word in text)
    assert f"{data['count'].max()}" in text


def cells_of(embedders, networks):
    rows = [(f"embedder-{e}", f"network-{n}", 1.0) for e in range(embedders) for n in range(networks)]
    return pl.DataFrame(rows, schema=["embedder", "network", "x"], orient="row")


@pytest.mark.parametrize(("embedders", "networks", "pages"), [(1, 1, 1), (2, 3, 1), (5, 6, 4), (1, 7, 3)])
def test_facets_are_paged_so_that_each_is_as_large(embedders, networks, pages, tmp_path):
    figure, cells = facets(cells_of(embedders, networks), xlabel="x", ylabel="y", sharex=True, sharey="row")
    assert len(cells) == embedders * networks and len(figure.subfigs) == pages
    assert figure.get_size_inches()[0] <= WIDTH
    for axis in cells.values():
        axis.plot([0, 1], [0, 1], label="line")
    legend(cells)
    save(figure, cells_of(1, 1), tmp_path / "f", ["pdf"], 60)
    sizes = [axis.get_position() for axis in cells.values()]
    wide = [size.width * axis.figure.bbox.width / figure.dpi for size, axis in zip(sizes, cells.values(), strict=True)]
    assert min(wide) > 1.2, "inches"
    assert (tmp_path / "f.pdf").read_bytes().count(b"/Type /Page /") == pages


def test_pages_of_a_pdf_are_reproducible_and_laid_out_as_a_png(tmp_path):
    places = []
    for copy, kind in (("a", "pdf"), ("b", "pdf"), ("c", "png")):
        figure, cells = facets(cells_of(1, 4), xlabel="x", sharex=True, sharey="row")
        for axis in cells.values():
            axis.plot([0, 1])
            tell(axis, "a title of several words " * 5)
        save(figure, cells_of(1, 1), tmp_path / copy, [kind], 60)
        places.append([axis.get_position().bounds for axis in cells.values()])
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    np.testing.assert_allclose(places[0], places[2], atol=0.01)  # of another resolution


def test_cells_without_rows_say_so():
    figure, cells = facets(cells_of(2, 2).head(3))
    assert len(cells) == 3 and "nothing to show" in words(figure)


def test_parts():
    assert chunks(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert short("a  long\ncaption", 8) == "a long\u2026" and short(None, 5) == ""


def test_counts_are_written_where_they_change_and_can_be_read():
    _, cells = facets(cells_of(1, 1))
    (axis,) = cells.values()
    write_counts(axis, range(40), [16] * 20 + list(range(15, 5, -1)) + [5] * 10)
    texts = [text.get_text() for text in axis.texts]
    assert texts[0] == "n = 16" and texts[-1] == "5" and 3 <= len(texts) <= 7


def test_titles_are_plain_text_and_wrapped():
    _, cells = facets(cells_of(1, 1))
    (axis,) = cells.values()
    tell(axis, "p = $0.05 & " * 10)
    assert axis.get_title().count("\n") > 1 and not axis.title.get_parse_math()
