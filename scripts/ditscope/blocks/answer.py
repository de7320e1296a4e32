"""What the stage `blocks` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "When is the picture there?"
FIGURE = "decodability"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The first step at which a block's clean estimate is near the picture: the model that is there first."""
    tables = {
        name: concat_tables(named(files, "blocks", f"{name}.parquet"), f"blocks.{name}")
        for name in ("decodability", "decodable")
    }
    decoded, near = tables["decodability"], tables["decodable"].filter(pl.col("first"), criterion="psnr_db")
    asked = decoded["generation_id"].n_unique()
    if near.is_empty():
        told = "Nobody can tell" if decoded.is_empty() else "At no step does a block's clean estimate come near"
        return Answer(QUESTION, f"{told} (n = {counted(asked, 'generation')}).", FIGURE, asked, "generation")
    steps = decoded.group_by("model").agg(pl.col("step").n_unique(), pl.col("generation_id").n_unique().alias("all"))
    firsts = near.group_by("model").agg(
        pl.col("step").median().alias("first"),
        pl.col("block").sort_by("depth").first(),
        pl.col("threshold").first(),
        pl.col("generation_id").n_unique().alias("n"),
    )
    best = firsts.join(steps, on="model").sort("first", "model").row(0, named=True)
    return Answer(
        QUESTION,
        f"In {best['model']} a block's own estimate first comes within {best['threshold']:g} dB (PSNR) of the finished "
        f"picture at step {best['first'] + 1:g} of {best['step']} (median; earliest block: {best['block']}), in "
        f"{best['n']} of {counted(best['all'], 'generation')}.",
        FIGURE,
        best["all"],
        "generation",
        best["first"] + 1,
        caveats=() if best["n"] == best["all"] else (f"{best['all'] - best['n']} never come near",),
    )
