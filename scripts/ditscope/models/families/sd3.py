"""Stable Diffusion 3 (Esser et al. 2024): joint blocks over image and text, classifier-free guidance."""

from typing import Any

import torch
from torch import Tensor, nn

from ditscope.models.families.common import vae_decode, vae_encode

T5 = "tokenizer_3"
decode, encode = vae_decode, vae_encode


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name (`joint_block_0`, ...), in network order."""
    return {f"joint_block_{i}": b for i, b in enumerate(transformer.transformer_blocks)}


def block_streams(output: tuple[Tensor | None, Tensor]) -> tuple[Tensor, Tensor | None]:
    """(image tokens, text tokens) of a block's output; the last block has no text."""
    text, image = output
    return image, text


def project(transformer: nn.Module, image_tokens: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
    """Read a block's image tokens as if it were the last: final norm, projection, unpatchify.

    Returns a prediction (batch of the tokens, channels, height, width); `latents` gives height and width only.
    """
    tokens = transformer.proj_out(transformer.norm_out(image_tokens, temb))
    height, width = latents.shape[-2:]
    p = transformer.config.patch_size
    grid = tokens.reshape(tokens.shape[0], height // p, width // p, p, p, transformer.out_channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], transformer.out_channels, height, width)


class FusedJointAttention:
    """Joint attention (Esser et al., arXiv:2403.03206) of layers whose query, key and value are one projection.

    In place of diffusers' FusedJointAttnProcessor2_0, which leaves out the norms of query and key that SD3.5 has.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image tokens, and text tokens where there are any, after attention: (batch, tokens, width) each."""
        query, key, value = heads_of(attn, attn.to_qkv(hidden_states), attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            text = heads_of(attn, attn.to_added_qkv(encoder_hidden_states), attn.norm_added_q, attn.norm_added_k)
            query, key, value = (torch.cat(pair, dim=2) for pair in zip((query, key, value), text, strict=True))
        tokens = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        image = attn.to_out[1](attn.to_out[0](tokens[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image
        rest = tokens[:, hidden_states.shape[1] :]
        return image, rest if attn.context_pre_only else attn.to_add_out(rest)


def heads_of(
    attn: Any, joined: Tensor, norm_q: nn.Module | None, norm_k: nn.Module | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (batch, heads, tokens, width of a head), of joined projections (batch, tokens, 3 width)."""
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
    return norm_q(query) if norm_q else query, norm_k(key) if norm_k else key, value
