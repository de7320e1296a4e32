"""Captioners: every family through transformers' real classes, at small random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from ditscope.config import load_config
from ditscope.core.errors import InputError
from ditscope.models.captioners import caption, drawing, load_captioner
from ditscope.models.qwen3_vl import ASKED
from ditscope.models.settings import Model
from tiny_captioners import WORDS, tiny_blip, tiny_blip2, tiny_florence2, tiny_qwen3_vl

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "blip": tiny_blip, "blip2": tiny_blip2, "florence2": tiny_florence2, "qwen3-vl": tiny_qwen3_vl
}  # fmt: skip


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


def test_a_chat_s_greedy_caption_is_the_most_probable_word_after_word(tmp_path, pictures):
    """Qwen3-VL without `generate`, its chat written out, though its own folder asks for draws."""
    entry = Model("qwen3-vl", str(tiny_qwen3_vl(tmp_path)), max_new_tokens=5)
    model = Qwen3VLForConditionalGeneration.from_pretrained(entry.source).eval()
    processor = AutoProcessor.from_pretrained(entry.source)
    assert model.generation_config.do_sample
    chat = f"<|im_start|>user <|vision_start|><|image_pad|><|vision_end|>{ASKED}<|im_end|><|im_start|>assistant "
    for picture in pictures[:2]:
        inputs = processor(text=[chat], images=[picture], return_tensors="pt")
        words = []
        for _ in range(5):
            with torch.no_grad():
                token = model(**inputs).logits[:, -1:].argmax(-1)
            if token.item() == model.generation_config.eos_token_id:
                break
            words.append(processor.decode(token[0]))
            grown = {"input_ids": token, "attention_mask": token * 0 + 1, "mm_token_type_ids": token * 0}
            inputs |= {name: torch.cat([inputs[name], value], 1) for name, value in grown.items()}
        assert caption(load_captioner("c", entry, "cpu"), [picture])[0].split() == [w for w in words if w in WORDS]


def test_pictures_of_several_sizes_share_a_batch(tmp_path, pictures):
    captioner = load_captioner("c", Model("qwen3-vl", str(tiny_qwen3_vl(tmp_path)), max_new_tokens=6), "cpu")
    mixed = [pictures[0], pictures[1].resize((64, 40)), pictures[2].resize((40, 64)), pictures[3]]
    assert caption(captioner, mixed) == [caption(captioner, [picture])[0] for picture in mixed]


def test_a_chat_is_asked_its_prompt(tmp_path, pictures):
    entry = Model("qwen3-vl", str(tiny_qwen3_vl(tmp_path)), max_new_tokens=6)
    short, asked, same = (
        caption(load_captioner("c", replace(entry, caption_prompt=prompt), "cpu"), pictures)
        for prompt in ("", "the large black ring", ASKED)
    )
    assert short == same != asked


def test_a_folder_of_another_family_is_refused(tmp_path):
    folder = tiny_blip(tmp_path / "blip")
    with pytest.raises(InputError, match=r"a model of type `blip`, but models\.c\.family is `florence2`"):
        load_captioner("c", Model("florence2", str(folder)), "cpu")
    with pytest.raises(InputError, match=r"a model of type `blip`, but models\.c\.family is `qwen3-vl` \(`qwen3_vl`\)"):
        load_captioner("c", Model("qwen3-vl", str(folder)), "cpu")
    with pytest.raises(InputError, match=r"models\.c\.source: no folder .*missing; set `source`"):
        load_captioner("c", Model("blip", str(tmp_path / "missing")), "cpu")
    with pytest.raises(InputError, match=r"models\.c\.family: `flux` is not a captioner"):
        load_captioner("c", Model("flux", str(folder)), "cpu")


# Drawn captions -------------------------------------------------------------------------------------------------------


def test_a_drawn_caption_depends_on_its_image_and_seed_alone(entry, pictures):
    captioner = load_captioner("c", replace(entry, temperature=1.0), "cpu")
    seeds = [3, 1, 4, 1, 5]
    together = caption(captioner, pictures, seeds)
    assert [caption(captioner, [p], [s])[0] for p, s in zip(pictures, seeds, strict=True)] == together
    assert caption(captioner, pictures[::-1], seeds[::-1]) == together[::-1]
    assert len(set(caption(captioner, pictures[:1] * 8, range(8)))) > 1


def test_seeds_leave_greedy_captions_as_they_are(entry, pictures):
    captioner = load_captioner("c", entry, "cpu")
    assert caption(captioner, pictures, [3, 1, 4, 1, 5]) == caption(captioner, pictures)


def test_captions_are_drawn_by_their_probability(entry):
    """Against the softmax computed in numpy, for 4000 seeds: every share is within 4 standard errors."""
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0])
    probability = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    for top_p, kept in ((1.0, 5), (0.9, int(np.searchsorted(probability.cumsum(), 0.9)) + 1)):
        process = drawing(replace(entry, temperature=0.7, top_p=top_p), range(4000))
        scores = torch.tensor(logits, dtype=torch.float32).repeat(4000, 1)
        drawn = process(torch.zeros(4000, 1, dtype=torch.long), scores).argmax(-1)
        wanted = np.where(np.arange(5) < kept, probability, 0) / probability[:kept].sum()
        error = np.bincount(drawn, minlength=5) / 4000 - wanted
        assert (np.abs(error) <= 4 * np.sqrt(wanted * (1 - wanted) / 4000)).all()
    assert kept == 3


def test_as_many_seeds_as_captions(entry, pictures):
    captioner = load_captioner("c", replace(entry, temperature=1.0), "cpu")
    with pytest.raises(ValueError, match="5 captions to draw, but 1 seeds"):
        caption(captioner, pictures, [0])


@pytest.mark.parametrize(("family", "save"), [("blip", tiny_blip), ("blip2", tiny_blip2)])
def test_a_caption_goes_on_from_a_prompt_that_is_no_part_of_it(tmp_path, pictures, family, save):
    entry = Model(family, str(save(tmp_path)), max_new_tokens=6)
    captioner, prompted = (load_captioner("c", e, "cpu") for e in (entry, replace(entry, caption_prompt="the  small")))
    texts = caption(prompted, pictures)
    processor, model = captioner.processor, captioner.model
    for picture, text in zip(pictures, texts, strict=True):
        inputs = processor(images=picture, text="the small", return_tensors="pt")
        whole = processor.batch_decode(model.generate(**inputs, max_new_tokens=6, num_beams=1, do_sample=False))[0]
        words = [word for word in whole.split() if word in WORDS]
        assert words[:2] == ["the", "small"] and text == " ".join(words[2:])
    assert texts != caption(captioner, pictures)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"family": "flux", "source": "x", "temperature": 1.0}, r"temperature: `flux` makes images"),
        ({"family": "sd3", "source": "x", "caption_prompt": "a"}, r"caption_prompt: `sd3` makes images"),
        ({"family": "florence2", "source": "x", "caption_prompt": "a"}, r"caption_prompt: `florence2` does not read"),
        ({"family": "blip", "source": "x", "top_p": 0.9}, r"top_p: nothing is drawn at temperature 0"),
        ({"family": "blip", "source": "x", "temperature": 1.0, "num_beams": 3}, r"temperature: beams are not drawn"),
        ({"family": "dummy-captioner", "temperature": 1.0, "top_p": 0.9}, r"top_p: `dummy-captioner` does not read"),
        ({"family": "dummy-captioner", "num_beams": 2}, r"num_beams: `dummy-captioner` does not read"),
        ({"family": "moondream", "source": "x", "num_beams": 2}, r"num_beams: `moondream` does not read"),
        ({"family": "flux", "source": "x", "num_beams": 2}, r"num_beams: `flux` makes images"),
        ({"family": "blip"}, r": the required key `source` is missing"),
        ({"family": "dummy", "source": "x"}, r": `dummy` has no weights; leave out `source`"),
    ],
)
def test_settings_without_effect_are_refused_when_the_config_is_read(settings, complaint):
    with pytest.raises(InputError, match=rf"^models\.c\.?{complaint}"):
        load_config({"experiment": "x", "models": {"c": settings}})
