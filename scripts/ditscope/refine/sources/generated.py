"""Pictures that `generate` left for a model, by the latents that it keeps of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ditscope.core.errors import InputError
from ditscope.core.shards import samples_of_runs
from ditscope.refine.data_settings import Source
from ditscope.refine.samples import Damage, Sample
from ditscope.shapes.world import ATTRIBUTES, Scene, caption, held_out, parse_caption

HELD_OUT_BY = "attributes"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """A sample for each run, in the order of the shards. A prompt that names a scene is held out where that is."""
    kept, runs = set(held_out()), set()
    if not images:
        raise InputError("source: no image shards were given; generate images first")
    for path in images:
        for made in samples_of_runs(path):
            if "latent.npy" not in made:
                damage.note(path, f"sample {made['__key__']} has no latent.npy")
                continue
            record = made["json"]
            run = record.get("request_hash"), record["prompt_id"], record["seed"]
            if run in runs:
                what = f"the run of prompt_id `{run[1]}`, seed {run[2]}"
                raise InputError(f"{path}: {what}, is there more than once; give each shard once")
            runs.add(run)
            named = parse_caption(record["prompt"])
            scene = None if None in named.values() else Scene(*(str(named[name]) for name in ATTRIBUTES))
            yield Sample(
                key=made["__key__"],
                prompt=record["prompt"],
                label=caption(scene) if scene else record["prompt"],
                prompt_id=record["prompt_id"],
                seed=record["seed"],
                held_out=scene in kept if scene else None,
                values=made["latent.npy"],
            )
