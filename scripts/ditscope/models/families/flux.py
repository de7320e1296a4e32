"""FLUX.1 (Black Forest Labs, 2024): double-stream then single-stream blocks over 2x2-packed latents."""

from torch import Tensor, nn

from ditscope.models.families.common import vae_decode, vae_encode

T5 = "tokenizer_2"
decode, encode = vae_decode, vae_encode


def pack(x: Tensor) -> Tensor:
    """(batch, c, 2h, 2w) -> (batch, h w, 4c)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(batch, h w, 4c) -> (batch, c, 2h, 2w), the inverse of `pack`."""
    batch, _, channels = tokens.shape
    x = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name (`double_block_0`, ..., `single_block_0`, ...), in network order."""
    doubles = {f"double_block_{i}": b for i, b in enumerate(transformer.transformer_blocks)}
    return doubles | {f"single_block_{i}": b for i, b in enumerate(transformer.single_transformer_blocks)}


def block_streams(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """(image tokens, text tokens) of a block's output; diffusers returns the text stream first."""
    text, image = output
    return image, text


def project(transformer: nn.Module, image_tokens: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
    """Read a block's image tokens as if it were the last: final norm and projection, to a velocity like `latents`."""
    tokens = transformer.proj_out(transformer.norm_out(image_tokens, temb))
    return unpack(tokens, *latents.shape[-2:])
