"""From text to a refined film or picture: a generator's pictures of prompts are the keys that a refiner completes."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import polars as pl

from ditscope.core.atomic import make_folder, write_text
from ditscope.core.errors import InputError
from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table
from ditscope.refine.adapter import load_adapter
from ditscope.refine.record_page import STYLE, figure
from ditscope.refine.refiner_file import load_refiner
from ditscope.refine.settings import Storyboard
from ditscope.refine.use import Named, complete, film_of, picture_of, read_picture, show

FPS = 6.0


def complete_storyboard(
    refiner: Path,
    images: Sequence[Path],
    manifests: Sequence[Path],
    folder: Path,
    page: Path,
    storyboard: Storyboard,
    film_format: str = "gif",
) -> None:
    """Complete the pictures that a model made of the storyboard's prompts, and show what became of them on a page.

    `images` are the shards of `generate` with their tables `manifests`, or none where the storyboard names pictures.
    For a refiner of films the pictures are key
    frames of one; for one of pictures `keep` patches of each are known. Raises InputError where a prompt has no
    picture.
    """
    trained = load_refiner(refiner)
    adapter = load_adapter(trained.adapter)
    axes = trained.network.config.axes
    read = prompted(images, manifests, storyboard.prompts) if storyboard.prompts else given_in(storyboard)
    make_folder(folder)
    if axes == 3:
        frames, positions = storyboard.frames, storyboard.positions
        given = {"film": film_of(trained, adapter, [p for p, _ in read], storyboard.prompt, frames, positions)}
    elif axes == 2:
        keep = str(storyboard.keep)
        given = {p.name: picture_of(trained, adapter, p, prompt, keep, seed) for seed, (p, prompt) in enumerate(read)}
    else:
        raise InputError("storyboards: this refiner completes paths, of which generators make no pictures")
    parts = []
    for name, sample in given.items():
        place = folder / name
        make_folder(place)
        show(trained, adapter, sample, complete(trained, sample), place, FPS, film_format)
        film = axes == 3 and film_format == "gif"
        drawn = {"compared.gif": "as a film"} if film else {}
        drawn |= {"compared.png": "frame by frame; a blue bar marks what was given" if axes == 3 else name}
        figures = "".join(figure(place / file, caption) for file, caption in drawn.items())
        parts.append(f"<h2>{escape(sample.prompt or name)}</h2>{figures}")
    head = f'<meta charset="utf-8"><title>Storyboard</title><style>{STYLE}</style>'
    write_text(page, f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n')


def given_in(storyboard: Storyboard) -> list[tuple[Named, str]]:
    """The pictures that the storyboard names, each with what it says of all."""
    read = [Named(Path(file).stem, read_picture(Path(file))) for file in storyboard.pictures]
    return [(one, storyboard.prompt) for one in read]


def prompted(images: Sequence[Path], manifests: Sequence[Path], prompts: Sequence[str]) -> list[tuple[Named, str]]:
    """Of each prompt, in order, the picture of its first run, by name, and its text."""
    table = pl.concat([read_table(path, "images").select("prompt_id", "prompt", "key") for path in manifests])
    runs = {row["prompt_id"]: row for row in table.reverse().iter_rows(named=True)}
    if missing := [name for name in prompts if name not in runs]:
        raise InputError(f"storyboards: no picture of the prompt `{missing[0]}`; its prompts are those of the CSV")
    wanted = {runs[name]["key"] for name in prompts}
    pngs = {s["__key__"]: s["png"] for path in images for s in read_tar(path) if s["__key__"] in wanted}
    return [(Named(name, pixels(pngs[runs[name]["key"]]).copy()), runs[name]["prompt"]) for name in prompts]
