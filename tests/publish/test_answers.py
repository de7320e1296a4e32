"""Answers of stages, the front page, and captions: true to the tables, honest where these are poor, deaf to markup."""

import re
from html.parser import HTMLParser

import duckdb
import jinja2
import polars as pl
import pytest
from docutils.core import publish_parts
from PIL import Image

from ditscope.core.answer import cut, listed, measured
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import read_table
from ditscope.publish.answers import answer_of, answers_table
from ditscope.publish.captions import facts, front_text, rst, write_captions
from ditscope.publish.figures import ANSWERING, FIGURES
from ditscope.publish.front_page import front_page
from ditscope.publish.tables import ANSWERS
from loose_tables import write_loosely
from workflow import ROOT

HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "{% for x in y %}", "{# gone #}", "$x^$", "`a <b>`__ |c|",
    ".. raw:: html\n\n   <script>alert(1)</script>", "*bold* **strong** ``code``", "\u202eright to left\u202c مرحبا",
    "http://example.org", "1. one", "- two", "x\x00y\x1bz", "a\\b", "'\"&amp;", ":math:`x`", "=====\nTitle\n=====",
)  # fmt: skip


@pytest.fixture(scope="module")
def left(study):
    """What each stage of the tiny study left."""
    targets = read_plan(study / "results/tiny")["targets"]
    return {stage: [study / file for file in files] for stage, files in targets.items() if files and stage != "publish"}


class Text(HTMLParser):
    """The text of a page, and the tags that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def text(self) -> str:
        return " ".join("".join(self.said).split())


# Answers --------------------------------------------------------------------------------------------------------------


def test_every_answer_of_a_study_names_a_figure_of_it_and_its_n(left):
    table = answers_table(left, ("random-walk",))
    assert table["stage"].to_list() == list(ANSWERING) and not list(ANSWERS.faults(table))
    for row in table.iter_rows(named=True):
        assert set(FIGURES[row["figure"]].stages) <= left.keys() and row["question"].endswith("?")
        assert row["answer"].endswith(".") and "nan" not in row["answer"].lower() and "None" not in row["answer"]
        assert re.search(r"\d", row["answer"]) and row["n"] >= 0


def test_a_stage_that_is_not_there_answers_nothing(left):
    table = answers_table({stage: left[stage] for stage in ("plan", "generate")})
    assert table["stage"].to_list() == ["generate", "plan"]
    assert answers_table({}).schema == pl.Schema(ANSWERS.schema())


@pytest.mark.parametrize(
    ("stage", "query"),
    [
        ("generate", "SELECT count(*) FROM images"),
        (
            "ablate",
            "SELECT max(effect) FROM (SELECT avg(latent_relative_l2) AS effect FROM ablation WHERE kind = 'skip' "
            "GROUP BY model, block)",
        ),
        ("calibrate", "SELECT max(outlier_ratio) FROM calibration_activations"),
        (
            "sensitivity",
            "SELECT max(value) FROM sensitivity WHERE metric = 'image_rms' AND bucket = 'all' AND bits = 2",
        ),
        (
            "benchmark",
            "SELECT quality_loss FROM benchmark WHERE kind NOT IN ('base', 'noise floor') AND compile = 'eager' "
            "AND quality_loss <= quality_bound ORDER BY nominal_bytes LIMIT 1",
        ),
        (
            "trajectories",
            "SELECT avg((stop_reason = 'repeat')::INT) FROM trajectories WHERE sequence_number = -1",
        ),
    ],
)
def test_numbers_are_what_the_catalog_gives(study, left, stage, query):
    """The same number by SQL over the catalog, a second way to it."""
    with duckdb.connect(study / "results/tiny/catalog.duckdb", read_only=True) as database:
        assert answer_of(stage, left).value == pytest.approx(database.execute(query).fetchone()[0])


def nulls(tmp_path, rows):
    """What the stage drift leaves of the claim `walk`, with these cells in its rows."""
    common = {"claim": "walk", "runs": 8, "prompts": 8, "draws": 999, "null_low": 1.0, "null_high": 2.0, "reason": None}
    frame = pl.DataFrame([{"embedder": "e", "network": "n", "degenerate": None} | common | row for row in rows])
    write_loosely(frame, tmp_path / "nulls.parquet", "drift.nulls")
    return {"drift": [tmp_path / "nulls.parquet"]}


def test_drift_counts_what_chance_does_not_give_and_leaves_out_controls_and_degenerate_runs(tmp_path):
    rows = [
        {"network": "far", "statistic": 3.0, "p_holm": 0.01},
        {"network": "near", "statistic": 0.5, "p_holm": 0.02},
        {"network": "chance", "statistic": 1.5, "p_holm": 1.0},
        {"network": "poor", "statistic": 9.0, "p_holm": 0.001, "degenerate": "all states are equal"},
        {"embedder": "control", "statistic": 9.0, "p_holm": 0.001},
    ]
    said = answer_of("drift", nulls(tmp_path, rows), ("control",))
    assert said.sentence.startswith("Further in 1, less far in 1 of 3 tests: far under e is 3 from its start")
    assert "1 to 2 (95 %; p = 0.01 after Holm, n = 8 prompts)" in said.sentence
    assert said.caveats == ("1 of 4 degenerate, left out",) and said.value == 3.0
    poor = answer_of("drift", nulls(tmp_path, rows[3:4]))
    assert poor.sentence == "Nobody can tell: all states are equal." and poor.value is None


def evaluation(tmp_path, rows):
    """What the stage refine leaves of one refiner: errors on missing tokens, with these cells in its rows."""
    common = {"metric": "missing_error", "keys": 4, "samples": 32, "units": 16, "low": None, "high": None}
    bounds = dict.fromkeys(("gain", "gain_low", "gain_high"))
    frame = pl.DataFrame([common | bounds | row for row in rows], infer_schema_length=None)
    write_loosely(frame, tmp_path / "mine" / "evaluation.parquet", "refine.evaluation")
    return {"refine": [tmp_path / "mine" / "evaluation.parquet"]}


def test_the_refiner_is_judged_where_least_is_known(tmp_path):
    gain = {"gain": 0.1, "gain_low": 0.05, "gain_high": 0.15}
    rows = [
        {"level": 1, "method": "refined", "value": 0.1, "gain": 0.9},
        {"level": 2, "method": "interpolated", "value": 0.4},
        {"level": 2, "method": "refined", "value": 0.3} | gain,
        {"level": 2, "method": "no text", "value": 0.2, "gain": 0.2},
    ]
    said = answer_of("refine", evaluation(tmp_path, rows))
    assert "mine, with 4 keys known: mean squared error of missing tokens 0.3 after the step, 0.4" in said.sentence
    assert said.sentence.endswith("gain 0.1 (95 % interval 0.05 to 0.15, n = 16 units).") and said.value == 0.1
    assert answer_of("refine", {"refine": []}).value is None


def test_an_interval_is_told_only_where_there_is_one():
    assert measured(0.5, 0.4, 0.6, 8, "prompt") == "0.5 (95 % interval 0.4 to 0.6, n = 8 prompts)"
    assert measured(0.5, None, None, 1, "prompt") == "0.5 (n = 1 prompt, no interval)"
    assert measured(0.5, float("nan"), float("nan"), 3, "run") == "0.5 (n = 3 runs, no interval)"


def test_lists_and_texts_are_short():
    assert listed(["a"]) == "a" and listed(["a", "b"]) == "a and b" and listed("abcde") == "a, b, c and 2 more"
    long = cut("word " * 14_000)
    assert len(long) <= 60 and " … " in long and cut("two\n lines") == "two lines"


# Front page -----------------------------------------------------------------------------------------------------------


def row(**cells):
    """A row of the table `answers`."""
    common = {"stage": "s", "question": "What?", "answer": "This.", "figure": "image-grid", "n": 1, "unit": "prompt"}
    return pl.DataFrame([common | dict.fromkeys(("value", "low", "high", "caveats")) | cells], ANSWERS.schema())


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_text_on_the_front_page(text, tmp_path):
    page = Text(front_page(text, row(answer=text, caveats=text), tmp_path))
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script"]
    assert page.text().count(" ".join(text.split())) >= 3  # title, heading, answer, caveat; braces are no fields


def test_the_front_page_is_one_file_with_small_pictures(tmp_path):
    Image.effect_noise((1400, 5000), 90).save(tmp_path / "image-grid.png")
    page = front_page("demo", row(), tmp_path)
    assert len(page) < 400_000
    sources = [attributes["src"] for tag, attributes in Text(page).tags if "src" in attributes]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://", page)


def test_the_front_page_of_nothing_says_so(tmp_path):
    assert "No stage of this study answers a question yet" in front_page("x", answers_table({}), tmp_path)


# Captions -------------------------------------------------------------------------------------------------------------


def rendered(text: str, **given) -> Text:
    """A caption as Snakemake's report shows it: a template of Jinja, then reStructuredText."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return Text(publish_parts(environment.from_string(text).render(given), writer_name="html")["body"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("capture-video", "One generation of 3 that the set all captures: an example, not a sample"),
        ("trajectory-video", "Networks a, b; 5 prompts, the last of the list; at most 8 states of a run"),
        ("timelines", "6 pictures, evenly spaced"),
        ("refiner-record", "at most 40 held-out samples"),
        ("refiner-storyboard", "completed by the refiner of mine"),
    ],
)
def test_captions_of_films_say_of_how_many_they_are(name, said):
    job = {
        "wildcards": {"model": "m", "capture": "all", "refiner": "mine"},
        "params": {"settings": {"timeline_images": 6}},
        "config": {
            "capture": {"sets": {"all": {"generations": 3}}},
            "trajectories": {"networks": ["a", "b"], "prompts": 5, "from_end": True},
            "refine": {"evaluated": 40},
        },
    }
    text = " ".join(rendered((ROOT / f"report/{name}.rst").read_text(), snakemake=job).text().split())
    assert said in text and ("interval" in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_text_in_captions(text):
    page = rendered(rst(text))
    said = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert page.text() == said and {tag for tag, _ in page.tags} <= {"p"}


@pytest.mark.parametrize("text", ["long " * 14_200, "ß$" * 35_500], ids=["words", "one word"])
def test_a_text_of_71_kilobytes_is_cut_in_a_caption(text):
    page = rendered(rst(text))
    assert text[:100] in page.text() and " … " in page.text() and len(page.text()) <= 4000


def test_answers_are_text_in_the_report():
    page = rendered(front_text(row(answer=HOSTILE[0], caveats=HOSTILE[1])))
    assert HOSTILE[0] in page.text() and HOSTILE[1] in page.text()
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["answers.html", "explorer.html"]


def test_captions_say_samples_uncertainty_and_caveats():
    numbers = pl.DataFrame(
        {
            "network": ["a", "a", "b"], "embedder": ["e"] * 3, "runs": [16, 16, 4], "low": [0.1, 0.2, None],
            "high": [0.3, 0.2, None], "p_holm": [0.01, 1.0, None], "degenerate": [None, None, "all states are equal"],
            "reason": ["", None, "no run"], "scheme": ["x", "y", "y"], "simulated": [False, True, True],
            "verdict": ["quiet", "noisy", None], "noisy_because": ["", "load", None],
        }
    )  # fmt: skip
    assert list(facts(numbers)) == [
        "Networks a and b. Embedder e. Schemes x and y. 4 to 16 runs per number.",
        "1 of 3 numbers have an interval; the others rest on fewer than 8 units, or have none.",
        "In 1 of 2 tests p < 0.05, corrected by Holm.",
        "Degenerate, so that they show nothing: b under e.",
        "Noisy: 1 of 2 timings; no verdict rests on these.",
        "Simulated, stored or computed in more bits here: y.",
        "Without a number: 1 row, as no run.",
    ]
    assert list(facts(pl.DataFrame({"x": [1]}))) == ["No intervals."]


def test_every_figure_of_a_study_has_a_caption_with_its_numbers(study, left, tmp_path):
    results = study / "results/tiny"
    texts = {path.stem: path.read_text() for path in (ROOT / "report").glob("*.rst")}
    drawn = [figure for name, figure in FIGURES.items() if (results / f"figures/{name}.csv").exists()]
    answers = read_table(results / "answers.parquet", "answers")
    write_captions(texts, drawn, left, results / "figures", answers, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.rst")} == {"workflow", *(figure.name for figure in drawn)}
    for figure in drawn:
        caption = (tmp_path / f"{figure.name}.rst").read_text()
        added = caption.removeprefix(texts[figure.caption].rstrip())
        assert (len(added) < len(caption) and "interval" in added) or "Bands" in added, figure.name
        assert rf"ditscope figures results\/tiny \-\-only {rst(figure.name)}" in added
    assert "2 networks" not in (tmp_path / "workflow.rst").read_text().partition("Study **")[2]
