"""The doctor cannot be fooled: every column of every table, and every kind of file, is falsified in turn.

What jobs recorded of their files is left out of it: only what the contents say counts. What cannot be seen in them is
listed here with the reason, and no more than that.
"""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from ditscope.core.study import Finding, Study
from ditscope.core.tables import read_table
from ditscope.workflow.doctor import CHECKS, open_study
from loose_tables import write_loosely
from mutations import column_mutants, copy_over, empty, flip, other_number, row_mutants, truncate

# The check of each folder of a study.
CHECK_OF = {
    "prompts": "prompts", "images": "generate", "captures": "capture", "analysis": "blocks", "ablation": "ablate",
    "calibration": "calibrate", "sensitivity": "sensitivity", "plans": "plan", "benchmarks": "benchmark",
    "trajectories": "trajectories", "embeddings": "embed", "drift": "drift", "clusters": "cluster",
    "topology": "topology", "refine": "refine", "answers.parquet": "publish",
}  # fmt: skip
MEASURED = "a measured time: only that it is above 0 can be checked"
PLACED = "t-SNE moves far with rounding: another machine's coordinates are others"
# Columns that a falsified value can stand in, by table and kind of file, each with the reason.
UNSEEN: dict[tuple[str, str, str], str] = {
    ("images.timing", "", "seconds"): MEASURED,
    ("trajectories.timing", "", "seconds"): MEASURED,
    ("refine.training.timing", "", "seconds"): MEASURED,
    ("clusters.map", "", "x"): PLACED,
    ("clusters.map", "", "y"): PLACED,
    ("refine.tsne", "", "x"): PLACED,
    ("refine.tsne", "", "y"): PLACED,
    ("refine.tsne", "", "umap_x"): PLACED,
    ("refine.tsne", "", "umap_y"): PLACED,
    ("blocks.decodability", "", "feature_cosine_distance"): "needs the embedder; those that `decodable` names are seen",
    ("trajectories", "", "input_truncated"): "needs the tokenizer; of requests that an image shard has it is seen",
    ("refine.training", "", "value"): "needs the training; the ends of the curves that the record names are seen",
}


@pytest.fixture(scope="module")
def results(study, tmp_path_factory) -> Path:
    """A copy of the tiny study's results, which each test leaves as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        yield Path(shutil.copytree(study / "results/tiny", tmp_path_factory.mktemp("falsified") / "tiny"))


@pytest.fixture(scope="module")
def computed() -> dict:
    """What the stages' inputs give, computed once for all tests: the inputs stay."""
    return {}


def role(path: Path) -> str:
    """Kind of a file among those of its table: sensitivity's joined table, its layers and its fast parts."""
    top = path.parts[0]
    if top in ("sensitivity", "prompts"):
        return re.split(r"[-.]", path.name)[0]
    return "joined" if top == "benchmarks" and len(path.parts) == 2 else ""


def narrowed(study: Study, path: Path) -> dict:
    """The plan with the targets of the file's own model alone, where its check keeps them apart."""
    top, targets = path.parts[0], study.plan["targets"]
    stages = {"images": "generate", "captures": "capture", "analysis": "blocks", "calibration": "calibrate"}
    if top not in stages:
        return study.plan
    kept = [target for target in targets[stages[top]] if f"/{path.parts[1]}/" in target]
    return study.plan | {"targets": targets | {stages[top]: kept}}


def tables(results: Path) -> dict[tuple[str, str], Path]:
    """The first file of each table and kind, relative to the results."""
    first: dict[tuple[str, str], Path] = {}
    for path in sorted(results.rglob("*.parquet")):
        relative = path.relative_to(results)
        first.setdefault((pl.read_parquet_metadata(path)["table"], role(relative)), relative)
    return first


def test_every_falsified_column_is_found(results, computed):
    sound = open_study(results)
    known: dict[Path, pl.DataFrame] = {}

    def check(file: Path) -> list[Finding]:
        """The findings of the file's own stage; every other table is read once for all."""

        def read(path: Path, name: str) -> pl.DataFrame:
            if path == results / file:
                return read_table(path, name)
            if path not in known:
                known[path] = read_table(path, name)
            return known[path]

        study = Study(results, narrowed(sound, file), sound.config, read=read, computed=computed)
        CHECKS[CHECK_OF[file.parts[0]]](study)
        return study.findings

    unseen = set()
    for (name, kind), file in tables(results).items():
        path = results / file
        table, whole = pl.read_parquet(path), path.read_bytes()
        assert check(file) == []
        mutants = [(column, *mutant) for column in table.columns for mutant in column_mutants(table, column)]
        mutants += [("", *mutant) for mutant in row_mutants(table)]
        for column, what, mutant in mutants:
            write_loosely(mutant, path, name)
            findings = check(file)
            assert all("\n" not in finding.problem for finding in findings)
            if not findings:
                unseen.add((name, kind, column))
                print(f"{name} ({file}), {column}: {what}: not found")
        path.write_bytes(whole)
    assert unseen == UNSEEN.keys()


# Files ----------------------------------------------------------------------------------------------------------------

# Files, one a kind, with what can be done to them that their contents do not tell, and why.
FILES: dict[str, set[str]] = {
    "images/*/shard-*.tar": set(),
    "captures/*/*/*/img_0.jpg": {"flip"},  # a JPEG has no checksum, and a flipped bit is a few pixels
    "captures/*/*/*/intermediates/metadata.json": set(),
    "captures/*/*/*/intermediates/step_*.safetensors": set(),
    "captures/*/*/*/intermediates/decoded/*/*.jpg": {"flip"},
    "calibration/*/manifest.json": set(),
    "calibration/*/shards/*/shard.json": set(),
    "calibration/*/shards/*/*.npz": set(),
    "calibration/*/shards/*/images/*.png": {"another"},
    "plans/*/*.json": set(),
    "ablation/*.tar": set(),
    "benchmarks/*/*/*.tar": set(),
    "benchmarks/recommendation.md": set(),
    "checkpoints/*/*.safetensors": {"flip"},
    "trajectories/*/*.tar": set(),
    "refine/*/data.json": {"flip"},  # the last digits of a mean are rounding
    "refine/*/data/*.tar": {"flip"},  # of the values it is seen; a bit of a text token needs the encoder
    "refine/*/codebook.safetensors": {"flip"},  # of one number of a centre that is far from all borders
    "refine/*/latent_mae.safetensors": {"flip"},  # a bit of one weight hardly moves what a network gives
    "refine/*/refiner.safetensors": {"flip"},
    "refine/*/record.json": set(),
    "refine/*/record.timing.json": {"flip", "number"},  # a date
    "refine/*/record.html": {"flip", "number"},
    "refine/*/*.png": {"another"},
    "refine/*/gallery/*.png": {"another"},
    "videos/captures/*/*.gif": {"flip", "another"},
    "videos/captures/*/*/*.png": {"another", "removed"},  # a folder of sheets, whose number its digests alone tell
    "videos/captures/*/*.html": {"flip", "number", "another"},
    "videos/trajectories.gif": {"flip"},
    "videos/trajectories.html": {"flip", "number"},
    "videos/timelines/*.png": {"another"},
    "videos/strips/*.png": {"another"},
    "figures/*.svg": {"flip", "another", "number"},
    "figures/*.csv": {"flip", "another", "number"},
    "tables/*.csv": {"number"},  # the last of sixteen digits is rounding
    "tables/*.md": set(),
    "tables/*.tex": set(),
    "catalog.duckdb": {"flip"},
    "explorer.html": {"flip", "number"},
    "answers.html": {"flip", "number"},  # its sentences are seen, its style is not
    "captions/*.rst": {"flip", "another"},
}
BY_CHANCE = {"flip", "number"}  # what a bit or a digit says differs from study to study: it may well be found
UPSTREAM = ("blocks of", "prompts", "prompt slices", "calibration prompts")  # what no falsified file changes


LAST = ("publish", "video")  # checks of files from which nothing is computed


def remembered(computed: dict, check: str) -> dict:
    """What the study's inputs gave that falsified files of a check cannot change."""
    if check in LAST:
        return computed
    return {name: value for name, value in computed.items() if name.startswith(UPSTREAM)}


@pytest.mark.parametrize("glob", FILES)
def test_every_falsified_file_is_found(results, computed, glob):
    sound = open_study(results)
    path, *others = sorted(results.glob(glob))
    file = path.relative_to(results)
    folder = {"videos": "video", "figures": "publish", "tables": "publish", "checkpoints": "benchmark"}
    check = CHECK_OF.get(file.parts[0]) or folder.get(file.parts[0], "publish")

    def findings() -> list[Finding]:
        study = Study(results, narrowed(sound, file), sound.config, computed=remembered(computed, check))
        for name in ("files", check, *(["blocks"] if check == "capture" else [])):
            CHECKS[name](study)
        return study.findings

    assert findings() == []
    ways = {"flip": flip, "half": truncate, "empty": empty, "removed": Path.unlink}
    if others:
        ways["another"] = lambda path: copy_over(path, others[-1])
    if path.suffix in (".json", ".csv", ".md", ".tex", ".svg", ".html"):
        ways["number"] = other_number
    whole, unseen = path.read_bytes(), set()
    for name, falsify in ways.items():
        falsify(path)
        problems = findings()
        assert all("\n" not in finding.problem for finding in problems)
        unseen |= set() if problems else {name}
        path.write_bytes(whole)
    assert unseen <= FILES[glob]
    assert unseen - BY_CHANCE == FILES[glob] & ways.keys() - BY_CHANCE


def test_files_of_every_kind_are_falsified(results):
    """Every file of the study is a table or of a kind in `FILES`."""
    own = ("logs", ".benchmarks", ".checksums", ".partial", "plan.json", "progress.md")
    files = [p.relative_to(results) for p in results.rglob("*") if p.is_file() and p.name != ".snakemake_timestamp"]
    kinds = {file for file in files if any(file.match(glob) for glob in FILES)}
    assert {f for f in files if f.parts[0] not in own and f.suffix != ".parquet"} == kinds


@pytest.mark.parametrize(
    "folder", sorted({*CHECK_OF, "figures", "tables", "captions", "videos/captures"} - {"answers.parquet"})
)
def test_a_stray_file_is_found(results, computed, folder):
    inside = next(path for path in sorted((results / folder).rglob("*")) if path.is_file()).parent
    stray = inside / "stray.bin"
    stray.write_bytes(b"x")
    sound, check = open_study(results), CHECK_OF.get(folder, "publish")
    study = Study(results, sound.plan, sound.config, computed=remembered(computed, check))
    for name in dict.fromkeys((check, "leftovers", "checksums")):
        CHECKS[name](study)
    stray.unlink()
    assert any("stray.bin" in finding.file for finding in study.findings)
