"""Tokenizers of the shapes world, its free texts, and the T5 encoder that both generators read."""

import json
import string
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from ditscope.refine.loop import LoopSettings
from ditscope.shapes.world import ATTRIBUTES, SYNONYMS, TEMPLATES, Scene, all_scenes, caption, describe, train_scenes
from training.loop import load_average, train

MAX_TEXT = 32
WIDTH = 128
TASK_WORD = "scene"  # what the captioner begins a caption with that may leave attributes out
SETTINGS = {"text": LoopSettings(steps=700, batch=96, lr=2e-3, warmup=60, decay=0.4, ema=0.99, seed=12)}
EXTRA_WORDS = "and the this is with to in an image drawing photo scene shows one shape black white"


def vocabulary_texts() -> list[str]:
    """Every template of every combination, and the synonyms, as text to learn tokens from."""
    synonyms = [word for table in SYNONYMS.values() for word in table]
    texts = [caption(scene, template) for scene in all_scenes() for template in range(len(TEMPLATES))]
    return [*texts, *[" ".join([*synonyms, EXTRA_WORDS])] * 50]


@lru_cache(maxsize=1)
def clip_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer (Sennrich et al., arXiv:1508.07909) that knows the world's words whole."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(vocabulary_texts(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in learned]
    words = alphabet + [f"{symbol}</w>" for symbol in alphabet] + ["".join(pair) for pair in merges]
    words = [*list(dict.fromkeys(words)), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TEXT)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer (Kudo, arXiv:1804.10959): the world's words, also capitalised, and single characters."""
    words = sorted({word.strip(",.").lower() for text in vocabulary_texts() for word in text.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    for word in words:
        pieces += [(f"\u2581{form}", -3.0) for form in dict.fromkeys((word, word.capitalize()))]
    known = {piece for piece, _ in pieces}
    characters = [c for c in string.printable if not c.isspace()]
    pieces += [(c, -8.0) for c in characters if c not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TEXT)


def free_text(
    scene: Scene, rng: np.random.Generator, names: Collection[str] = ATTRIBUTES
) -> tuple[str, dict[str, str]]:
    """A text about the scene as a person might write it, and the attributes that it names.

    A template with synonyms, capitals and dropped small words, and with nothing where an attribute is not in `names`.
    """
    values = scene.attributes()
    named = {n: v for n, v in values.items() if n in names}
    shown = {}
    for name in ATTRIBUTES:
        others = [word for word, value in SYNONYMS[name].items() if value == values[name]]
        word = others[rng.integers(len(others))] if others and rng.random() < 0.15 else values[name]
        shown[name] = word if name in named else ""
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(**shown)
    words = text.split()
    if rng.random() < 0.25:
        fillers = {"a", "the", "at", "on", "with", "is", "there", "of", "and"}
        words = [w for w in words if w not in fillers or rng.random() < 0.6]
    if rng.random() < 0.1:
        words = [words[i] for i in rng.permutation(len(words))]
    if rng.random() < 0.15:
        words = [w.strip(",") for w in words]
    if rng.random() < 0.2 and words:
        words[0] = words[0].capitalize()
    if rng.random() < 0.1 and words:
        words[-1] += "."
    return " ".join(words), named


def most_names(rng: np.random.Generator) -> list[str]:
    """The attributes, each left out in 12 % of the draws."""
    return [name for name in ATTRIBUTES if rng.random() > 0.12]


def build() -> T5ForConditionalGeneration:
    """The untrained T5 (Raffel et al., arXiv:1910.10683) of which only the encoder ships."""
    torch.manual_seed(SETTINGS["text"].seed)
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=1,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5ForConditionalGeneration(config)


def loss_function(model: T5ForConditionalGeneration, settings: LoopSettings):
    """Cross-entropy of the canonical caption given a free text, unmasked and padded as the pipelines do it."""
    tokenizer, scenes = t5_tokenizer(), train_scenes()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        pairs = [free_text(scenes[i], rng, most_names(rng)) for i in rng.integers(0, len(scenes), settings.batch)]
        source = tokenizer([text for text, _ in pairs], padding="max_length", max_length=MAX_TEXT, truncation=True)
        target = tokenizer([describe(named) for _, named in pairs], padding="longest")
        labels = torch.tensor(target["input_ids"])
        labels[labels == 0] = -100
        output = model(input_ids=torch.tensor(source["input_ids"]), labels=labels)
        exact = (output.logits.argmax(-1).eq(labels) | labels.eq(-100)).all(1).float().mean()
        return output.loss, {"exact": exact.item()}

    return loss


def finish(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Save the encoder in bfloat16 and its tokenizer."""
    encoder = T5EncoderModel(model.config)
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if k in encoder.state_dict()})
    encoder.to(torch.bfloat16).save_pretrained(folder)
    t5_tokenizer().save_pretrained(folder)


def run(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the T5 on texts of the training scenes and save its encoder to out/text."""
    model = build()
    summary = train(model, loss_function(model, settings), settings, out / ".partial" / stage)
    finish(model, out / stage)
    return summary


def export(stage: str, out: Path) -> dict:
    """Save the encoder of the last checkpoint to out/text, without training on."""
    model = build()
    state = load_average(model, out / ".partial" / stage)
    finish(model, out / stage)
    return state
