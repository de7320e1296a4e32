"""Model folders with code of their own, as on the hub: random weights behind Moondream's and Jina's functions."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from ditscope.models.remote_code import cached_copy
from tiny_captioners import WORDS

COMMITS = {"owner/words": "1" * 40, "owner/towers": "2" * 40}  # repositories that the code reads

MOONDREAM = """
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .layers import features


class HfConfig(PretrainedConfig):
    model_type = "moondream1"


class Inner(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.tokenizer = Tokenizer.from_pretrained("owner/words")
        self.see = nn.Linear(12, 8)
        self.say = nn.Linear(8, words)
        self.register_buffer("table", torch.arange(1.0, 9.0) / 4, persistent=False)

    def answer(self, image, start, settings):
        state, tokens = self.see(features(image)) + start, []
        for step in range(settings["max_tokens"]):
            scores = self.say(torch.tanh(state * self.table + step))
            if settings["temperature"] == 0:
                token = int(scores.argmax())
            else:
                chances, order = torch.softmax(scores / settings["temperature"], -1).sort(descending=True)
                chances[chances.cumsum(0) - chances > settings["top_p"]] = 0
                token = int(order[torch.multinomial(chances, 1)])
            if token == 0:
                break
            tokens.append(token)
        return self.tokenizer.decode(tokens)


class HfMoondream(PreTrainedModel):
    config_class = HfConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Inner(config.words)

    def caption(self, image, length="normal", stream=False, settings=None):
        assert length == "short" and not stream
        return {"caption": self.model.answer(image, 0.0, settings)}

    def query(self, image=None, question=None, stream=False, settings=None):
        return {"answer": self.model.answer(image, float(len(question)), settings)}
"""
LAYERS = """
import numpy as np
import torch


def features(image):
    return torch.tensor(np.asarray(image.resize((2, 2))).ravel() / 64 - 2, dtype=torch.float32)
"""
JINA = """
import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class TowersConfig(PretrainedConfig):
    model_type = "jina_clip"


class Towers(PreTrainedModel):
    config_class = TowersConfig

    def __init__(self, config):
        super().__init__(config)
        self.project = nn.Linear(12, 6)
        self.post_init()

    def encode_image(self, images, batch_size=32):
        return self.encoded([np.asarray(image.resize((2, 2))).ravel() / 255 for image in images])

    def encode_text(self, texts, batch_size=32):
        return self.encoded([[text.count(c) for c in "abcdefghijkl"] for text in texts])

    def encoded(self, rows):
        return self.project(torch.tensor(np.array(rows), dtype=torch.float32)).numpy()
"""


def cached(repository: str, **files: str) -> None:
    """Put a repository into the project's cache, as `ditscope download` leaves it: below the working folder."""
    folder = cached_copy(repository, COMMITS[repository])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_py", ".py").replace("_json", ".json")).write_text(text)


def words_repository() -> None:
    """The tokenizer that Moondream's stand-in reads from another repository."""
    vocabulary = {word: i for i, word in enumerate(["<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    cached("owner/words", tokenizer_json=tokenizer.to_str())


def towers_repository() -> None:
    """The code that Jina's stand-in reads from another repository."""
    cached("owner/towers", towers_py=JINA)


def fake_moondream(folder: Path) -> Path:
    """A folder whose class is its own code, in two files, with a table that no file of weights holds."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"AutoConfig": "hf_moondream.HfConfig", "AutoModelForCausalLM": "hf_moondream.HfMoondream"}
    config = {"model_type": "moondream1", "architectures": ["HfMoondream"], "auto_map": names, "words": len(WORDS) + 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_moondream.py").write_text(MOONDREAM)
    (folder / "layers.py").write_text(LAYERS)
    draw = torch.Generator().manual_seed(0)
    shapes = {"see.weight": (8, 12), "see.bias": (8,), "say.weight": (len(WORDS) + 1, 8), "say.bias": (len(WORDS) + 1,)}
    save_file({f"model.{k}": torch.randn(s, generator=draw) for k, s in shapes.items()}, folder / "model.safetensors")
    return folder


def fake_jina(folder: Path) -> Path:
    """A folder whose class is the code of another repository."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"AutoConfig": "owner/towers--towers.TowersConfig", "AutoModel": "owner/towers--towers.Towers"}
    (folder / "config.json").write_text(json.dumps({"model_type": "jina_clip", "auto_map": names}))
    draw = torch.Generator().manual_seed(0)
    weights = {"project.weight": torch.randn((6, 12), generator=draw), "project.bias": torch.randn(6, generator=draw)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
