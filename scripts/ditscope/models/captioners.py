"""Captioners: image to text by transformers' own classes, behind one pair of functions."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.models.families.common import DTYPES
from ditscope.models.folders import resolve_source
from ditscope.models.loading import default_device
from ditscope.models.registry import CAPTIONERS
from ditscope.models.settings import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioner:
    """A loaded image-to-text model."""

    name: str
    entry: Model
    model: Any
    processor: Any
    device: torch.device


def load_captioner(name: str, entry: Model, device: str | None = None) -> Captioner:
    """Load a captioner of the registry onto one device, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if entry.family not in CAPTIONERS:
        raise InputError(f"models.{name}.family: `{entry.family}` is not a captioner; valid: {', '.join(CAPTIONERS)}")
    folder = str(resolve_source(name, entry))
    options = {"local_files_only": True, "trust_remote_code": entry.allow_remote_code}
    kind, expected = AutoConfig.from_pretrained(folder, **options).model_type, CAPTIONERS[entry.family]
    if kind != expected:
        raise InputError(
            f"{folder}: a model of type `{kind}`, but models.{name}.family is `{entry.family}` (`{expected}`)"
        )
    target = torch.device(device or default_device())
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=DTYPES[entry.dtype], use_safetensors=True, device_map={"": target}, **options
    ).eval()
    log.info("loaded %s (%s, %s) on %s", name, entry.family, entry.dtype, target)
    return Captioner(name, entry, model, AutoProcessor.from_pretrained(folder, **options), target)


@torch.no_grad()
def caption(captioner: Captioner, images: list[Image.Image]) -> list[str]:
    """Caption a batch of RGB images by greedy or beam search, with white space collapsed.

    Nothing is drawn at random, so an image determines its caption.
    """
    entry = captioner.entry
    task = {"text": [entry.caption_task] * len(images)} if entry.family == "florence2" else {}
    inputs = captioner.processor(images=images, return_tensors="pt", **task).to(captioner.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(DTYPES[entry.dtype])
    tokens = captioner.model.generate(
        **inputs, max_new_tokens=entry.max_new_tokens, num_beams=entry.num_beams, do_sample=False
    )
    return [" ".join(t.split()) for t in captioner.processor.batch_decode(tokens, skip_special_tokens=True)]
