"""The explorer's data: whole, within its budget, escaped, and honest about what is missing.

The page itself is tried in a browser by test_explorer_page.py.
"""

import base64
import io
import json
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image

import workflow
from ditscope.core.schema import table_named
from ditscope.core.shards import png_bytes, write_tar
from ditscope.core.study_plan import read_plan
from ditscope.publish.explorer import PAGE, READS, study_of, write_explorer
from ditscope.publish.explorer_pictures import (
    FORMS,
    Source,
    first_of_each,
    refiner_sources,
    state_sources,
    thumbnails,
)
from ditscope.publish.explorer_tables import SHOWN, gather, packed
from loose_tables import write_loosely

HOSTILE = '</script><img src=x onerror=alert(1)> & "quotes" <!-- $x^$ \u2028 \u05d0\u05d1'
DTYPES = {"u1": "u1", "u2": "<u2", "u4": "<u4", "b": "u1", "f4": "<f4", "f8": "<f8"}


def data_in(page: str, name: str) -> dict:
    """The data of a page under a name."""
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    return json.loads(text)


def unpacked(column: dict) -> list:
    """The values of a column, as the page reads them."""
    values = np.frombuffer(base64.b64decode(column["v"]), DTYPES[column["k"]])
    if "d" in column:
        return [column["d"][i - 1] if i else None for i in values]
    if column["k"] == "b":
        return [None if v == 2 else bool(v) for v in values]
    return [None if np.isnan(v) else float(v) for v in values]


def states_of(runs: int, states: int) -> pl.DataFrame:
    """A map of states of runs."""
    numbers = np.arange(runs * states)
    return pl.DataFrame(
        {"embedder": "e", "network": "n", "run_id": [f"run{i}" for i in numbers // states]}
        | {"sequence_number": (numbers % states).astype("i4"), "position": numbers % states}
        | {"x": numbers * 1.0, "y": numbers * 2.0, "reason": pl.Series([None] * len(numbers), dtype=pl.String)}
    )


def picture(seed: int, side: int = 64) -> bytes:
    return png_bytes(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, HOSTILE, "a"], "u1"),
        ([f"{i}" for i in range(300)], "u2"),
        ([True, None, False], "b"),
        ([0.5, None, -1.25], "f4"),
        ([1, 2**24, None], "f4"),
        ([2**40 + 1, None], "f8"),
    ],
)
def test_columns_are_read_back_as_they_were(values, kind):
    column = packed(pl.Series("c", values))
    assert column["k"] == kind and unpacked(column) == values


def test_every_shown_column_is_declared():
    for shown in SHOWN:
        declared = table_named(shown.name)
        for name in shown.columns.replace("*", "").split():
            assert declared.column(name) or name in declared.places, (shown.name, name)


def test_stages_read_what_their_rules_do():
    """The arrows of the page against the demo's rule graph, which is made from the rules."""
    stage_of = {}
    for file in (workflow.ROOT / "rules").glob("*.smk"):
        stage_of |= dict.fromkeys(re.findall(r"^rule (\w+):", file.read_text(), re.M), file.stem)
    stage_of |= {"block_analysis": "blocks", "ablation": "ablate"}  # their rules stand in capture.smk
    graph = (workflow.ROOT / "docs/how-it-fits.md").read_text()
    arrows = {tuple(stage_of[rule] for rule in pair) for pair in re.findall(r"(\w+) --> (\w+)", graph)}
    assert set(READS) == {stage for stage in stage_of.values() if stage in READS}

    def above(stage: str) -> set[str]:
        return {stage, *(further for read in READS[stage] for further in above(read))}

    between = {(a, b) for a, b in arrows if a != b and a in READS and b in READS}
    assert between and {(a, b) for a, b in between if a not in above(b)} == set()


def test_no_caption_can_close_the_data(tmp_path):
    table = pl.DataFrame({"prompt_id": ["p"], "prompt": [HOSTILE * 900], "negative_prompt": "", "family": ""})
    path = tmp_path / "prompts/shard-00000.parquet"
    write_loosely(table.with_columns(seed=pl.lit(0), derived_seed=pl.lit(False)), path, "prompts")
    write_explorer({"prompts": [path]}, tmp_path / "e.html")
    page = (tmp_path / "e.html").read_text()
    assert "</script><img" not in page and page.rstrip().endswith("</html>")
    assert data_in(page, "study")["tables"]["prompts"]["columns"]["prompt"]["d"] == [HOSTILE * 900]


def test_equal_studies_give_equal_pages_of_all_stages(study, tmp_path, monkeypatch):
    monkeypatch.chdir(study)
    files, about = study_of(read_plan("results/tiny"))
    for name in "ab":
        write_explorer(files, tmp_path / name, about)
    page = (tmp_path / "a").read_text()
    assert (tmp_path / "b").read_text() == page
    data, pictures = data_in(page, "study"), data_in(page, "pictures")
    left = [file for paths in files.values() for path in paths for file in [path, *path.glob("**/*.parquet")]]
    names = {pl.read_parquet_metadata(file).get("table") for file in left if file.suffix == ".parquet"}
    assert {shown.name for shown in SHOWN} & names == set(data["tables"]) - {"drift.summary"}
    assert not any(data["problems"].values()) and not data["sampled"] and not pictures["notes"]
    assert {name.split("/")[0] for name in pictures["places"]} == {
        "ablation", "benchmark", "capture", "image", "refine", "state",
    }  # fmt: skip
    states = {(s["network"], s["output_key"]) for s in rows(data, "trajectories") if s["type"] == "IMAGE"}
    assert {f"state/{network}/{key}" for network, key in states} <= set(pictures["places"])
    assert all(stage["there"] == stage["files"] for stage in data["stages"])


def rows(data: dict, name: str) -> list[dict]:
    """Rows of a table of the page."""
    columns = {key: unpacked(column) for key, column in data["tables"][name]["columns"].items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_a_large_table_keeps_whole_runs_and_says_so(tmp_path):
    path = tmp_path / "clusters/map.parquet"
    write_loosely(states_of(2000, 10), path, "clusters.map")
    labels = states_of(2000, 10).drop("x", "y", "position").with_columns(label=pl.lit(0), is_medoid=pl.lit(False))
    write_loosely(labels, path.with_name("clusters.parquet"), "clusters")
    gathered = gather({"cluster": [path, path.with_name("clusters.parquet")]}, most_rows=4000)
    kept = gathered.tables["clusters.map"]
    assert 2000 < kept.height <= 6000 and (kept["run_id"].value_counts()["count"] == 10).all()
    assert set(gathered.tables["clusters"]["run_id"]) == set(kept["run_id"])
    assert any(f"{kept.height:,} of 20,000 rows" in note for note in gathered.sampled)
    one = gather({"cluster": [path]}, most_rows=20_000)
    assert one.tables["clusters.map"].height == 20_000 and not one.sampled


def test_the_page_keeps_to_its_bytes(tmp_path):
    path, tar = tmp_path / "clusters/map.parquet", tmp_path / "trajectories/n/shard-00000.tar"
    write_loosely(states_of(1500, 10), path, "clusters.map")
    tar.parent.mkdir(parents=True)
    write_tar(({"__key__": f"{i:032x}", "png": picture(i)} for i in range(60)), tar)
    sizes = {}
    for budget in (900_000, 6_000_000):
        write_explorer({"cluster": [path], "trajectories": [tar]}, tmp_path / "e.html", most_bytes=budget)
        page = (tmp_path / "e.html").read_text()
        assert len(page.encode()) <= budget
        pictures = data_in(page, "pictures")
        sizes[budget] = len(pictures["places"]), pictures["side"]
        left_out = pictures["notes"] + data_in(page, "study")["sampled"]
        assert bool(left_out) == (budget < 6_000_000)
    assert sizes[6_000_000] == (60, FORMS[0][0]) and sizes[900_000] < sizes[6_000_000]


def test_what_cannot_be_read_is_told_and_the_rest_shown(tmp_path):
    good, other = tmp_path / "prompts/shard-00000.parquet", tmp_path / "prompts/shard-00001.parquet"
    table = pl.DataFrame({"prompt_id": ["p"], "prompt": "x", "negative_prompt": "", "family": ""})
    table = table.with_columns(seed=pl.lit(0), derived_seed=pl.lit(False))
    write_loosely(table, good, "prompts")
    table.write_parquet(other, metadata={"table": "prompts", "schema_version": "0"})
    short = tmp_path / "clusters/map.parquet"
    write_loosely(states_of(1, 2).drop("x"), short, "clusters.map")
    torn = tmp_path / "images/m/shard-00000.tar"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"no tar")
    files = {
        "prompts": [good, other],
        "cluster": [short],
        "generate": [torn],
        "drift": [tmp_path / "drift/drift.parquet"],
    }
    write_explorer(files, tmp_path / "e.html")
    data = data_in((tmp_path / "e.html").read_text(), "study")
    assert data["tables"]["prompts"]["rows"] == 1 and "clusters.map" not in data["tables"]
    assert "schema version 0" in data["problems"]["prompts"][0] and "has no column x" in data["problems"]["cluster"][0]
    assert "not a readable tar" in data["problems"]["generate"][0]
    assert {s["name"]: (s["there"], s["files"]) for s in data["stages"]}["drift"] == (0, 1)


def test_a_damaged_picture_is_left_out_and_told():
    sources = [
        Source("a", "v", lambda: picture(0)),
        Source("b", "v", lambda: b"none"),
        Source("c", "v", lambda: picture(0)),
    ]
    shown = thumbnails(sources, 10**6)
    assert set(shown.places) == {"a", "c"} and len(shown.data) == 1, "equal pictures are there once"
    assert "1 pictures could not be read, first b" in shown.notes[0]
    with Image.open(io.BytesIO(base64.b64decode(shown.data[0]))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(Image.open(io.BytesIO(picture(0)))))


def test_a_sheet_keeps_its_width_however_high_it_is():
    sheet = io.BytesIO()
    Image.new("RGB", (900, 6000)).save(sheet, "PNG")
    shown = thumbnails([Source("sheet", "v", sheet.getvalue, sides=4)], 10**6)
    with Image.open(io.BytesIO(base64.b64decode(shown.data[0]))) as image:
        assert image.size == (900, 6000)


def test_every_view_keeps_some_of_its_pictures():
    sources = [Source(f"{view}{i}", view, bytes) for view, n in (("a", 100), ("b", 2), ("c", 50)) for i in range(n)]
    kept = first_of_each(sources, 42)
    counts = {view: sum(source.view == view for source in kept) for view in "abc"}
    assert counts == {"a": 20, "b": 2, "c": 20} and [s.name for s in kept if s.view == "b"] == ["b0", "b1"]


def test_states_are_named_by_network_and_key(tmp_path):
    tar = tmp_path / "trajectories/net/shard-00000.tar"
    tar.parent.mkdir(parents=True)
    write_tar([{"__key__": "k1", "png": picture(1)}, {"__key__": "k2", "png": picture(2)}], tar)
    sources = list(state_sources([tar, tmp_path / "missing.tar"]))
    assert [s.name for s in sources] == ["state/net/k1", "state/net/k2"] and sources[1].read() == picture(2)


def test_the_refiner_s_pictures_are_those_of_its_gallery_and_storyboards(tmp_path):
    folder = tmp_path / "refine/mine"
    board = folder / "storyboards/crossing"
    for place in (folder / "gallery", board / "film/refined"):
        place.mkdir(parents=True)
    (folder / "gallery/a.png").write_bytes(picture(1))
    (folder / "exemplars.png").write_bytes(picture(2))
    (board / "film/compared.png").write_bytes(picture(3))
    (board / "film/refined/0000.png").write_bytes(picture(4))
    row = {"key": "k", "prompt": "p", "level": 1, "keys": 8, "label": ""}
    names = {"truth": "a.png", "refined": "missing.png", "film": "a.gif"}
    table = pl.DataFrame([row | {"picture": f"gallery/{name}", "method": method} for method, name in names.items()])
    write_loosely(table, folder / "gallery.parquet", "refine.gallery")
    left = ["gallery.parquet", "gallery", "exemplars.png", "storyboards/crossing", "record.json"]
    read = {source.name: source.read() for source in refiner_sources([folder / name for name in left])}
    shown = {"1/k/truth": picture(1), "exemplars/whole": picture(2), "crossing-film/whole": picture(3)}
    assert read == {f"refine/mine/{name}": value for name, value in shown.items()}


def test_the_committed_page_is_one_file_without_an_address_to_ask():
    page = PAGE.read_text()
    assert len(page) < 800_000
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(?:https?:|//|\./)", page)
    assert "default-src 'none'" in page
