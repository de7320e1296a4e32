"""Captioners of transformers' real classes with small random weights, saved to folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

WORDS = ["a", "the", "red", "blue", "large", "small", "ring", "star", "left", "right", "white", "black", "of", "on"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PIXELS = {"image_size": 32, "patch_size": 16}


def save(model: PreTrainedModel, processor: object, folder: Path) -> Path:
    """Save a model, its random weights scaled up so that its output depends on its input."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tokens = any(part in name for part in ("word_embeddings", "embed_tokens", "shared"))
            parameter.mul_(20 if parameter.ndim > 1 and not tokens else 1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_blip(folder: Path) -> Path:
    """A random BlipForConditionalGeneration."""
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *WORDS]
    text = TOWER | {"vocab_size": len(vocabulary), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    text |= {"bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=TOWER | PIXELS, projection_dim=16)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, extra_special_tokens=["[DEC]"])
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return save(BlipForConditionalGeneration(config), BlipProcessor(images, tokenizer), folder)


def word_tokenizer(*special: str, **kwargs: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with some special tokens first."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", **kwargs)


def tiny_blip2(folder: Path) -> Path:
    """A random Blip2ForConditionalGeneration with an OPT decoder."""
    torch.manual_seed(1)
    tokenizer = word_tokenizer("<pad>", "</s>", "<unk>", "<image>", bos_token="</s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    opt = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=TOWER | PIXELS, qformer_config=TOWER | {"encoder_hidden_size": 32, "vocab_size": 8},
        text_config=opt.to_dict(), num_query_tokens=4, image_token_index=3,
    )  # fmt: skip
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    return save(Blip2ForConditionalGeneration(config), processor, folder)


def tiny_florence2(folder: Path) -> Path:
    """A random Florence2ForConditionalGeneration: DaViT at 64 px leaves 2 x 2 tokens and their mean."""
    torch.manual_seed(2)
    special = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = word_tokenizer("<s>", "<pad>", "</s>", "<unk>", "<image>", **special)
    bart = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    davit = {"depths": [1] * 4, "embed_dim": [8, 8, 16, 16], "num_heads": [1] * 4, "num_groups": [1] * 4}
    davit |= {"window_size": 2, "projection_dim": 32}
    config = Florence2Config(text_config=bart.to_dict(), vision_config=davit, image_token_id=4)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=5)
    return save(Florence2ForConditionalGeneration(config), Florence2Processor(images, tokenizer), folder)


# The form of Qwen's own: what the user says, with a place for each image, and the beginning of an answer.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tiny_qwen3_vl(folder: Path) -> Path:
    """A random Qwen3VLForConditionalGeneration; an image of 32 x 32 pixels is 4 tokens."""
    torch.manual_seed(3)
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = word_tokenizer("<pad>", "<unk>", *marks, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
        "pad_token_id": 0, "eos_token_id": 3,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.update(
        do_sample=True, temperature=0.7, top_k=2, eos_token_id=3, pad_token_id=0
    )  # as Qwen's
    sizes = {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}}
    images, videos = Qwen2VLImageProcessorPil(**sizes), Qwen3VLVideoProcessor(**sizes)
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT)
    return save(model, processor, folder)
