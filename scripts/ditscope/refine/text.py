"""Text tokens of prompts: the last hidden state of a text encoder, each distinct prompt encoded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.models.folders import resolve_source
from ditscope.models.loading import default_device
from ditscope.models.settings import Model

BATCH = 64
MAX_WORDS = 512
REMEMBERED = 65536  # prompts; those of a set are mostly few wordings of few things


@dataclass
class TextEncoder:
    """Prompts to their tokens (words, width) float16, start and end token with them and padding without."""

    model: Any
    tokenizer: Any
    longest: int  # tokens that the model reads
    remembered: dict[str, np.ndarray] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)  # prompts of more tokens

    def __call__(self, prompts: Sequence[str]) -> list[np.ndarray]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.remembered]
        if len(self.remembered) + len(new) > REMEMBERED:
            self.remembered.clear()
            new = list(dict.fromkeys(prompts))
        for start in range(0, len(new), BATCH):
            self.encode(new[start : start + BATCH])
        return [self.remembered[prompt] for prompt in prompts]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> None:
        """Encode prompts and remember them."""
        lengths = [len(ids) for ids in self.tokenizer(prompts, verbose=False)["input_ids"]]
        self.cut |= {prompt for prompt, length in zip(prompts, lengths, strict=True) if length > self.longest}
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        device = default_device()
        states = self.model(**{k: tokens[k].to(device) for k in ("input_ids", "attention_mask")}).last_hidden_state
        for prompt, state, mask in zip(prompts, states, tokens["attention_mask"].bool(), strict=True):
            self.remembered[prompt] = state.cpu()[mask].numpy().astype(np.float16)


def load_text_encoder(about: Mapping[str, Any]) -> TextEncoder:
    """The text encoder in the folder `about["folder"]` of the model `about["model"]` (entry `about["entry"]`)."""
    import transformers

    entry = decode(Model, about["entry"], f"models.{about['model']}")
    source, part = resolve_source(about["model"], entry), about["folder"]
    if not (source / part / "config.json").is_file():
        raise InputError(f"source.text_encoder: {source} has no folder {part} of a text encoder; name one that it has")
    config = transformers.AutoConfig.from_pretrained(source / part, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(source / part, dtype=torch.float32, local_files_only=True).to(default_device()).eval()
    folder = source / part.replace("text_encoder", "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", MAX_WORDS), MAX_WORDS)
    return TextEncoder(model, tokenizer, longest)
