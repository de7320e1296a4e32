"""Moondream 2 (Korrapati 2025): a small captioner whose class is code of its own repository.

Its releases are written for transformers 4, which made a model where it stays. transformers 5 makes models without
memory first, and would lose the tables that this one computes as it is made; so it is made and filled here.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ditscope.models.captioners import captioner_folder
from ditscope.models.families.common import DTYPES
from ditscope.models.remote_code import instance
from ditscope.models.settings import Model


def load(name: str, entry: Model, device: str) -> Callable[..., list[str]]:
    """The function from images, and from the seeds of each at a temperature, to captions, one image after another.

    Captions are its short ones; a `caption_prompt` is asked of it instead. It draws from torch's own generators, which
    each image's seed sets and which are put back after it.
    """
    model = instance(f"models.{name}", entry, captioner_folder(name, entry), "AutoModelForCausalLM")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[entry.dtype])
    model = model.to(device).eval()
    settings = {"temperature": entry.temperature, "top_p": entry.top_p, "max_tokens": entry.max_new_tokens}
    used = [torch.device(device)] if torch.device(device).type == "cuda" else []

    def say(image: Image.Image) -> str:
        if entry.caption_prompt:
            return str(model.query(image, entry.caption_prompt, settings=settings)["answer"])
        return str(model.caption(image, length="short", settings=settings)["caption"])

    @torch.no_grad()
    def caption(images: list[Image.Image], seeds: Sequence[int] = ()) -> list[str]:
        texts = []
        for image, seed in zip(images, seeds or [0] * len(images), strict=True):
            with torch.random.fork_rng(used):
                torch.manual_seed(seed)
                texts.append(say(image))
        return texts

    return caption
