"""Qwen3-VL (Qwen team 2025, arXiv 2511.21631): a language model that sees, asked for a caption by its chat template."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from ditscope.models.captioners import captioner_folder, drawing
from ditscope.models.families.common import DTYPES
from ditscope.models.settings import Model

ASKED = "Describe this image in one short sentence."  # what a `caption_prompt` replaces


def load(name: str, entry: Model, device: str) -> Callable[..., list[str]]:
    """The function from images, and from the seeds of each at a temperature, to captions.

    Texts are padded on their left: images of several sizes, which are read as unequal numbers of tokens, may share a
    batch.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = str(captioner_folder(name, entry))
    dtype, places = DTYPES[entry.dtype], {"": torch.device(device)}
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, device_map=places, local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": entry.caption_prompt or ASKED}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )

    @torch.no_grad()
    def caption(images: list[Image.Image], seeds: Sequence[int] = ()) -> list[str]:
        inputs = processor(
            text=[chat] * len(images), images=images, padding=True, padding_side="left", return_tensors="pt"
        ).to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        drawn = {"logits_processor": drawing(entry, seeds)} if entry.temperature else {}
        tokens = model.generate(
            **inputs, max_new_tokens=entry.max_new_tokens, num_beams=entry.num_beams, do_sample=False, **drawn
        )
        answers: list[str] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers

    return caption
