"""Which GPU holds which component of a pipeline: no torch, for whoever only plans."""

from collections.abc import Sequence

from ditscope.core.errors import InputError

COMPONENTS = ("t5", "clip", "transformer", "vae_encoder", "vae_decoder")
# The GPU of each component, by the fewest GPUs that a row needs. The transformer, largest by far, never shares where
# there are two; the last row is the layout published for eight GPUs.
PLACES = {
    1: (0, 0, 0, 0, 0),
    2: (0, 0, 1, 0, 0),
    3: (0, 0, 1, 2, 2),
    4: (0, 1, 2, 3, 3),
    5: (0, 1, 2, 3, 4),
    7: (0, 1, 2, 5, 6),
}


def place(components: Sequence[str], n_gpus: int) -> dict[str, int]:
    """The GPU, 0 to n_gpus - 1, of each of `components` (some of COMPONENTS)."""
    if n_gpus < 1:
        raise InputError("multi_gpu: no GPU is visible; leave the option out, or set CUDA_VISIBLE_DEVICES")
    row = dict(zip(COMPONENTS, PLACES[max(n for n in PLACES if n <= n_gpus)], strict=True))
    return {component: row[component] for component in components}


def component_of(attribute: str, cls: str) -> str:
    """The component that an attribute of a pipeline is, by its name and its class; empty for what has no weights."""
    if attribute.startswith(("transformer", "unet")):
        return "transformer"
    if attribute.startswith("text_encoder"):
        return "clip" if cls.startswith("CLIP") else "t5"
    return "vae_encoder" if attribute == "vae" else ""
