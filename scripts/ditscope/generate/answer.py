"""What the stage `generate` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.schema import tables_with
from ditscope.core.tables import Files, concat_tables

QUESTION = "What was drawn?"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """How many pictures, of how many prompts, and how many prompts the text encoders had to cut."""
    paths = [path for tar in files["generate"] for path in tables_with("generate", str(tar)) if ".timing" not in path]
    images = concat_tables(dict.fromkeys(paths), "images")
    prompts = images["prompt_id"].n_unique()
    cut = images.filter(pl.col("prompt_truncated"))["prompt_id"].n_unique()
    read = f"; a text encoder cut {cut} of the prompts" if cut else ", every prompt read whole"
    models = images["model"].n_unique()
    return Answer(
        QUESTION,
        f"{counted(len(images), 'picture')} of {counted(prompts, 'prompt')} by {counted(models, 'model')}{read}.",
        "image-grid",
        prompts,
        "prompt",
        float(len(images)),
        caveats=(f"{counted(cut, 'prompt')} cut",) if cut else (),
    )
