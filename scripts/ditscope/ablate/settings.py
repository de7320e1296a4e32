"""Settings of the stage `ablate`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Ablate:
    """Leave out one block at a time, or blur what it adds, and measure what becomes of the picture."""

    models: list[str] = setting([], "Models to ablate", config_only=True)
    generations: int = setting(4, "How many runs (the first of the prompt list) are sampled for each block; 0: all")
    blocks: str = setting("*", "Blocks by pattern, as `double:0-5,single:*`")
    steps: str = setting("*", "Steps at which a block is ablated, by pattern, as `0,2,-1` or `0-3`")
    kinds: list[str] = setting(
        ["skip", "mean"], "skip: the block does nothing; mean: it adds its mean over tokens to each token"
    )
    features: str = setting("", "Embedder of images for a feature distance; empty: pixels and latents only")
    batch_size: int = setting(8, "Images sampled together", positive=True)
