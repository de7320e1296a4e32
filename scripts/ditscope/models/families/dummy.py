"""A generator without weights: a picture is a hash of its request, so that studies can be tested without models."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditscope.core.identity import derived_seed

T5 = ""
SQUARE = 8  # pixels of a side


class Words:
    """A tokenizer of words, of which it reads 77."""

    model_max_length = 77

    def __call__(self, text: str, verbose: bool = True) -> SimpleNamespace:
        """The words of a text, as `input_ids`."""
        return SimpleNamespace(input_ids=text.split())


class Pipeline:
    """Pictures of coloured squares, by the interface of diffusers' pipelines: what `models.sampling` asks of one."""

    vae_scale_factor = SQUARE

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.scheduler = SimpleNamespace(step=self.step)
        self.transformer = SimpleNamespace()
        self.tokenizer = Words()

    @staticmethod
    def step(model_output: Tensor, timestep: int, sample: Tensor) -> tuple[Tensor]:
        """The one step from noise to the picture."""
        return (sample + model_output,)

    def encode_prompt(self, prompts: Sequence[str]) -> Sequence[str]:
        """Texts as they are: nothing encodes them."""
        return prompts

    def __call__(
        self,
        prompt: Sequence[str],
        generator: Sequence[torch.Generator],
        height: int,
        width: int,
        negative_prompt: Sequence[str] | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float = 0.0,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        """Pictures (batch, 3, height, width) in [0, 1] or the squares alone, as latents; each by its own arguments."""
        negatives = negative_prompt if negative_prompt is not None and guidance_scale > 1 else [""] * len(prompt)
        squares = [
            np.random.default_rng(derived_seed("dummy", *asked, num_inference_steps, guidance_scale)).random(
                (3, height // SQUARE, width // SQUARE), np.float32
            )
            for asked in zip(prompt, negatives, [g.initial_seed() for g in generator], strict=True)
        ]
        drawn = torch.from_numpy(np.stack(squares))
        (latents,) = self.scheduler.step(drawn, 0, torch.zeros_like(drawn))
        if output_type == "latent":
            return (latents,)
        return (latents.repeat_interleave(SQUARE, -1).repeat_interleave(SQUARE, -2),)
