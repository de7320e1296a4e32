"""Captioners: every family through transformers' real classes, at small random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.models.captioners import caption, load_captioner
from ditscope.models.settings import Model
from tiny_captioners import WORDS, tiny_blip, tiny_blip2, tiny_florence2

FAMILIES: dict[str, Callable[[Path], Path]] = {"blip": tiny_blip, "blip2": tiny_blip2, "florence2": tiny_florence2}


@pytest.fixture(scope="module", params=FAMILIES)
def entry(request, tmp_path_factory) -> Model:
    """A captioner's registry entry."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return Model(request.param, str(folder), max_new_tokens=6)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Five random pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


def test_captions_are_plain_text(entry, pictures):
    captions = caption(load_captioner("c", entry, "cpu"), pictures)
    assert len(captions) == 5
    # At random weights BLIP's decoder says the same of every picture; the shipped one is tested on what it sees.
    assert len(set(captions)) > 1 or entry.family == "blip"
    for text in captions:
        assert text and set(text.split()) <= set(WORDS), "special tokens must not show"
        assert len(text.split()) <= entry.max_new_tokens


def test_captions_do_not_depend_on_the_batch_or_the_run(entry, pictures):
    captioner = load_captioner("c", entry, "cpu")
    together = caption(captioner, pictures)
    assert [caption(captioner, [picture])[0] for picture in pictures] == together
    assert caption(load_captioner("c", entry, "cpu"), pictures) == together


def test_the_greedy_caption_is_the_most_probable_word_after_word(tmp_path, pictures):
    """Step by step with the model's own forward pass, without `generate`."""
    captioner = load_captioner("c", Model("blip", str(tiny_blip(tmp_path)), max_new_tokens=5), "cpu")
    model, processor = captioner.model, captioner.processor
    seen = model.vision_model(**processor(images=pictures[0], return_tensors="pt"))[0]
    tokens = torch.tensor([[model.config.text_config.bos_token_id]])
    for _ in range(5):
        logits = model.text_decoder(input_ids=tokens, encoder_hidden_states=seen).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        if tokens[0, -1] == model.config.text_config.sep_token_id:
            break
    words = [processor.tokenizer.convert_ids_to_tokens(t) for t in tokens[0, 1:].tolist()]
    assert caption(captioner, pictures[:1]) == [" ".join(w for w in words if w in WORDS)]


def test_a_folder_of_another_family_is_refused(tmp_path):
    folder = tiny_blip(tmp_path / "blip")
    with pytest.raises(InputError, match=r"a model of type `blip`, but models\.c\.family is `florence2`"):
        load_captioner("c", Model("florence2", str(folder)), "cpu")
    with pytest.raises(InputError, match=r"models\.c\.source: no folder .*missing; set `source`"):
        load_captioner("c", Model("blip", str(tmp_path / "missing")), "cpu")
    with pytest.raises(InputError, match=r"models\.c\.family: `flux` is not a captioner"):
        load_captioner("c", Model("flux", str(folder)), "cpu")
