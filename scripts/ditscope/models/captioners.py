"""Captioners: image to text by transformers' own classes, or by a module of the user's own, behind two functions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.models.families.common import DTYPES
from ditscope.models.folders import config_at_hand, resolve_source
from ditscope.models.loading import default_device
from ditscope.models.registry import (
    CAPTIONERS,
    check_captioning,
    check_remote_code,
    check_source,
    is_generator,
    module_of_family,
)
from ditscope.models.remote_code import allowed_code
from ditscope.models.settings import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioner:
    """A loaded image-to-text model."""

    name: str
    entry: Model
    model: Any
    processor: Any  # None where the model is a function from images to texts
    device: torch.device


def load_captioner(name: str, entry: Model, device: str | None = None) -> Captioner:
    """Load a captioner of the registry onto one device, in evaluation mode."""
    if is_generator(entry):
        raise InputError(f"models.{name}.family: `{entry.family}` is not a captioner; valid: {', '.join(CAPTIONERS)}")
    check_source(name, entry)
    check_captioning(name, entry)
    check_remote_code(f"models.{name}", entry)
    target = torch.device(device or default_device())
    if module := module_of_family(entry):
        answer = import_module(module).load(name, entry, str(target))
        log.info("loaded %s (%s) on %s", name, entry.family, target)
        return Captioner(name, entry, answer, None, target)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = str(captioner_folder(name, entry))
    options = {"local_files_only": True, "trust_remote_code": entry.allow_remote_code}
    with allowed_code(f"models.{name}", entry):
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=DTYPES[entry.dtype], use_safetensors=True, device_map={"": target}, **options
        ).eval()
        processor = AutoProcessor.from_pretrained(folder, **options)
    log.info("loaded %s (%s, %s) on %s", name, entry.family, entry.dtype, target)
    return Captioner(name, entry, model, processor, target)


def captioner_folder(name: str, entry: Model) -> Path:
    """The folder of a captioner, checked; InputError where its config is of another family. No code of it is run."""
    folder = resolve_source(name, entry)
    kind, expected = config_at_hand(entry, "config.json").get("model_type"), CAPTIONERS[entry.family].model_type
    if kind != expected:
        raise InputError(
            f"{folder}: a model of type `{kind}`, but models.{name}.family is `{entry.family}` (`{expected}`)"
        )
    return folder


@torch.no_grad()
def caption(captioner: Captioner, images: list[Image.Image], seeds: Sequence[int] = ()) -> list[str]:
    """Caption a batch of RGB images, without the `caption_prompt` that they go on from; white space is collapsed.

    At temperature 0 by greedy or beam search: an image determines its caption. Above, each token is drawn, for each
    image by a CPU generator of its own seed (`seeds`, one per image), whatever else is in the batch. A function of a
    plug-in is given the seeds at a temperature alone.
    """
    entry, processor = captioner.entry, captioner.processor
    if processor is None:
        given = (images, seeds) if entry.temperature else (images,)
        return [" ".join(text.split()) for text in captioner.model(*given)]
    florence = entry.family == "florence2"  # its task stands where others have a text to go on from
    text = entry.caption_task if florence else entry.caption_prompt
    texts = {"text": [text] * len(images)} if text or florence else {}
    inputs = processor(images=images, return_tensors="pt", **texts).to(captioner.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(DTYPES[entry.dtype])
    drawn = {"logits_processor": drawing(entry, seeds)} if entry.temperature else {}
    tokens = captioner.model.generate(
        **inputs, max_new_tokens=entry.max_new_tokens, num_beams=entry.num_beams, do_sample=False, **drawn
    )
    captions = [" ".join(t.split()) for t in processor.batch_decode(tokens, skip_special_tokens=True)]
    if not entry.caption_prompt:
        return captions
    given = processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)  # as the tokenizer writes the prompt
    return [c.removeprefix(" ".join(g.split())).strip() for c, g in zip(captions, given, strict=True)]


def drawing(entry: Model, seeds: Sequence[int]) -> list[Any]:
    """Logits processors under which the most probable token is a draw at the entry's temperature and `top_p`."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    nucleus = [TopPLogitsWarper(entry.top_p)] if entry.top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(entry.temperature), *nucleus, GumbelNoise(seeds)])


class GumbelNoise:
    """Adds Gumbel noise to the scores: their maximum is then a draw from their softmax (Gumbel, 1954).

    transformers' own sampling draws a whole batch from one generator, so that a caption depends on its neighbours.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocabulary) with noise, row i from generator i."""
        if len(scores) != len(self.generators):
            raise ValueError(f"{len(scores)} captions to draw, but {len(self.generators)} seeds")
        rows = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators]
        exponential = torch.stack(rows).clamp_min(torch.finfo(torch.float32).tiny)  # -log of it is Gumbel's
        return scores - exponential.log().to(scores)
