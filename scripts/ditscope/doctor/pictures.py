"""Checks of the refiner, of videos and of what is published: readable, complete, of this study."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import polars as pl

from ditscope.catalog import files_by_name, table_files
from ditscope.checksums import files_of
from ditscope.config import plain
from ditscope.doctor.books import beside
from ditscope.doctor.images import IMAGES, check_picture
from ditscope.doctor.study import Study
from ditscope.errors import InputError
from ditscope.models import check_safetensors

REFINE = {
    "assignments": "key prompt_id prompt seed code distance",
    "training": "network step metric value",
    "diagnostics": "group metric value",
    "neighbours": "key rank neighbour_key distance code neighbour_code",
    "tsne": "key prompt_id code x y",
}


def check_refine(study: Study) -> None:
    """Networks are whole, tables cover every image and step, the record repeats the config's settings."""
    settings = study.config.refine
    for file in study.targets("refine"):
        _, model, name = file.split("/")
        path = study.results / file
        if not path.exists():
            continue
        stem = name.rpartition(".")[0]
        if name.endswith(".safetensors"):
            with study.noting("refine", file):
                check_safetensors(path)
        elif name.endswith(".png"):
            with study.noting("refine", file):
                check_picture(path)
        elif name == "record.json":
            check_record(study, file, model)
        elif stem in REFINE:
            table = study.table("refine", file, f"refine.{stem}", REFINE[stem])
            if table is not None and stem in ("assignments", "tsne"):
                keys = image_keys(study, model)
                if keys is not None:
                    study.same_rows("refine", file, sorted(table["key"]), sorted(keys), "images")
            if table is not None and stem == "training":
                steps = table.group_by("network").agg(pl.col("step").n_unique().alias("steps")).sort("network").rows()
                wanted = sorted([("latent_mae", settings.mae_steps), ("refiner", settings.steps)])
                study.same_rows("refine", file, steps, wanted, "networks with all their steps")


def check_record(study: Study, file: str, model: str) -> None:
    """The record of a training names the model and the settings of the config."""
    record = study.json("refine", file)
    if record is None:
        return
    with study.noting("refine", file):
        study.same("refine", file, record["header"], {"model": model, "seed": study.config.refine.seed})
        wanted = {key: value for key, value in plain(study.config.refine).items() if key in record["settings"]}
        study.same("refine", file, record["settings"], wanted)


def image_keys(study: Study, model: str) -> list[str] | None:
    """Keys of a model's images; None where a manifest cannot be read."""
    quiet = Study(study.results, study.plan, study.config)
    shards = [tar for tar in study.targets("generate") if tar.split("/")[1] == model]
    tables = [quiet.table("generate", beside(tar)[0], "images", IMAGES) for tar in shards]
    if not tables or any(table is None for table in tables):
        return None
    return [key for table in tables if table is not None for key in table["key"]]


def check_video(study: Study) -> None:
    """Videos can be decoded to their last frame (GIF), or are of their kind (MP4); contact sheets are pictures."""
    for file in study.targets("video"):
        path = study.results / file
        if not path.exists():
            continue
        with study.noting("video", file):
            if path.is_dir():  # contact sheets
                for sheet in files_of(path):
                    check_picture(sheet)
            elif path.suffix == ".gif":
                check_picture(path)
                if not path.read_bytes().endswith(b";"):
                    raise InputError("truncated GIF (no trailer)")
            elif b"ftyp" not in path.read_bytes()[:16]:
                raise InputError("not an MP4 file")


def check_publish(study: Study) -> None:
    """Figures, tables and pages are whole; the catalog has every table of the study."""
    for file in study.targets("publish"):
        path = study.results / file
        if not path.exists():
            continue
        with study.noting("publish", file):
            if path.suffix in READABLE:
                READABLE[path.suffix](path)
            elif path.suffix == ".duckdb":
                check_catalog(study, path)


def check_svg(path: Path) -> None:
    """An SVG is well-formed XML with the right root."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"not well-formed XML ({error})") from None
    if not root.tag.endswith("svg"):
        raise InputError(f"not an SVG but <{root.tag}>")


def check_csv(path: Path) -> None:
    """A CSV has a header and as many fields in every row."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise InputError("rows have different numbers of fields")


def check_text(path: Path) -> None:
    """A Markdown or LaTeX table is UTF-8 and ends with a whole line."""
    if not path.read_text(encoding="utf-8").endswith("\n"):
        raise InputError("does not end with a whole line")


def check_html(path: Path) -> None:
    """A page reaches its end."""
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise InputError("truncated: does not end with </html>")


def check_pdf(path: Path) -> None:
    """A PDF has head and tail."""
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-64:]:
        raise InputError("not a whole PDF")


READABLE = {
    ".svg": check_svg,
    ".csv": check_csv,
    ".md": check_text,
    ".tex": check_text,
    ".html": check_html,
    ".pdf": check_pdf,
    ".png": check_picture,
}


def check_catalog(study: Study, path: Path) -> None:
    """The DuckDB file has every table of the study with all its rows."""
    import duckdb

    planned = table_files({stage: study.targets(stage) for stage in study.plan["targets"]})
    files = files_by_name(study.results / file for file in planned if (study.results / file).exists())
    rows = {name: sum(pl.scan_parquet(p).select(pl.len()).collect().item() for p in files[name]) for name in files}
    try:
        with duckdb.connect(str(path), read_only=True) as database:
            names = [name for (name,) in database.execute("SHOW TABLES").fetchall()]
            counts = [database.execute(f'SELECT count(*) FROM "{name}"').fetchall() for name in names]
    except duckdb.Error as error:
        raise InputError(f"not a readable DuckDB file ({error})") from None
    found = {name: count for name, ((count,),) in zip(names, counts, strict=True)}
    for name, count in rows.items():
        if found.get(name) != count:
            raise InputError(f"table {name} has {found.get(name, 0)} rows of {count}")
