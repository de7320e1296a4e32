"""Stable Diffusion XL and its distillation SDXL-Turbo (Sauer et al. 2023): a U-Net, which generates only."""

from torch import nn

from ditscope.models.families.common import vae_decode, vae_encode

T5 = ""
decode, encode = vae_decode, vae_encode


def blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """Every transformer block by its place in the U-Net; what regional compilation compiles."""
    from diffusers.models.attention import BasicTransformerBlock

    return {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
