"""Tiny transformers of the families that diffusers runs, of random weights, each with the arguments of a call."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tiny:
    """A transformer by module and class below diffusers.models.transformers, its config, and the call's arguments."""

    module: str
    name: str
    config: dict[str, Any]
    arguments: Callable[[], dict[str, Any]]

    def build(self) -> nn.Module:
        """The model, its weights drawn wide enough that no block is nearly the identity."""
        torch.manual_seed(0)
        model = self.cls(**self.config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.1)
        return model

    @property
    def cls(self) -> type[nn.Module]:
        """The class of diffusers."""
        return getattr(import_module(f"diffusers.models.transformers.{self.module}"), self.name)

    def call(self, seed: int = 1) -> dict[str, Any]:
        """Arguments of one call, of this seed."""
        torch.manual_seed(seed)
        return self.arguments() | {"return_dict": False}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape)


def grid(tokens: int, axes: int = 3) -> Tensor:
    """Ids (tokens, axes) of an image of two tokens a row."""
    index = torch.arange(tokens)
    return torch.stack([torch.zeros(tokens)] * (axes - 2) + [index // 2, index % 2], 1).float()


def half() -> Tensor:
    return torch.tensor([0.5])


HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
PACKED = {"in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 32, **HEADS}
FLUX = PACKED | {"axes_dims_rope": (4, 4, 8)}
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32,
    "pos_embed_max_size": 8,
}  # fmt: skip


def tokens(text: int = 5, width: int = 32, axes: int = 3, **more: Tensor) -> dict[str, Any]:
    """A call on 16 image tokens and `text` text tokens of a model that is told where they stand."""
    ids = {"img_ids": grid(16, axes), "txt_ids": torch.zeros(text, axes)}
    call = {"hidden_states": draw(1, 16, 4), "encoder_hidden_states": draw(1, text, width), "timestep": half()}
    return call | ids | more


def maps(text: int = 5, width: int = 32, time: float = 500.0, **more: Any) -> dict[str, Any]:
    """A call on latents of 8 x 8 and `text` text tokens."""
    call = {"hidden_states": draw(1, 4, 8, 8), "encoder_hidden_states": draw(1, text, width)}
    return call | {"timestep": torch.tensor([time])} | more


def films(text: int, channels: int, shape: tuple[int, ...] = (1, 4, 2, 8, 8), **more: Any) -> dict[str, Any]:
    """A call on latents of a video."""
    call = {"hidden_states": draw(*shape), "encoder_hidden_states": draw(1, text, channels)}
    return call | {"timestep": torch.tensor([500])} | more


TINY = {
    "FLUX.1": Tiny(
        "transformer_flux", "FluxTransformer2DModel", FLUX | {"patch_size": 1, "pooled_projection_dim": 32},
        lambda: tokens(pooled_projections=draw(1, 32)),
    ),
    "FLUX.2": Tiny(
        "transformer_flux2", "Flux2Transformer2DModel",
        PACKED | {"timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: tokens(axes=4, guidance=torch.tensor([3.5])),
    ),
    "FLUX.3": Tiny(
        "transformer_flux3", "Flux3Transformer2DModel",
        PACKED | {"cond_in_channels": 4, "timestep_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: tokens(axes=4),
    ),
    "SD3": Tiny("transformer_sd3", "SD3Transformer2DModel", SD3, lambda: maps(pooled_projections=draw(1, 32))),
    "SD3.5 medium": Tiny(
        "transformer_sd3", "SD3Transformer2DModel", SD3 | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        lambda: maps(pooled_projections=draw(1, 32)),
    ),
    "Qwen-Image": Tiny(
        "transformer_qwenimage", "QwenImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)}
        | HEADS,
        lambda: {
            "hidden_states": draw(1, 16, 16), "encoder_hidden_states": draw(1, 7, 16), "timestep": half(),
            "encoder_hidden_states_mask": torch.ones(1, 7).long(), "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "Z-Image": Tiny(
        "transformer_z_image", "ZImageTransformer2DModel",
        {
            "in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 16, "axes_dims": [8, 4, 4], "axes_lens": [64, 32, 32],
        },
        lambda: {"x": [draw(4, 1, 8, 8)], "t": half(), "cap_feats": [draw(7, 16)]},
    ),
    "Chroma": Tiny(
        "transformer_chroma", "ChromaTransformer2DModel",
        FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}, tokens,
    ),
    "Sana": Tiny(
        "sana_transformer", "SanaTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 8, "sample_size": 8,
        },
        lambda: maps(width=8),
    ),
    "PixArt-Sigma": Tiny(
        "pixart_transformer_2d", "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
            "cross_attention_dim": 16, "sample_size": 8, "caption_channels": 8, "use_additional_conditions": False,
        },
        lambda: maps(width=8, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "Lumina2": Tiny(
        "transformer_lumina2", "Lumina2Transformer2DModel",
        {
            "sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1,
            "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 64, 64), "cap_feat_dim": 16,
        },
        lambda: maps(width=16, time=0.5, encoder_attention_mask=torch.ones(1, 5).bool()),
    ),
    "HunyuanImage": Tiny(
        "transformer_hunyuanimage", "HunyuanImageTransformer2DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1,
            "text_embed_dim": 16, "rope_axes_dim": (8, 8),
        } | HEADS,
        lambda: maps(width=16, encoder_attention_mask=torch.ones(1, 5)) | {"hidden_states": draw(1, 4, 4, 4)},
    ),
    "AuraFlow": Tiny(
        "auraflow_transformer_2d", "AuraFlowTransformer2DModel",
        {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
            "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 32,
            "caption_projection_dim": 32, "pos_embed_max_size": 64,
        },
        lambda: maps(time=0.5),
    ),
    "CogView4": Tiny(
        "transformer_cogview4", "CogView4Transformer2DModel",
        {
            "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 4,
            "num_attention_heads": 4, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4,
            "rope_axes_dim": (8, 8),
        },
        lambda: maps(
            width=8, original_size=torch.full((1, 2), 8.0), target_size=torch.full((1, 2), 8.0),
            crop_coords=torch.zeros(1, 2),
        ),
    ),
    "Krea2": Tiny(
        "transformer_krea2", "Krea2Transformer2DModel",
        {
            "in_channels": 4, "num_layers": 3, "num_key_value_heads": 1, "intermediate_size": 32,
            "timestep_embed_dim": 16, "text_hidden_dim": 32, "num_text_layers": 2, "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2, "text_intermediate_size": 32, "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6),
        } | HEADS,
        lambda: {
            "hidden_states": draw(1, 16, 4), "encoder_hidden_states": draw(1, 5, 2, 32), "timestep": half(),
            "position_ids": torch.cat([torch.zeros(5, 3), grid(16)]),
        },
    ),
    "Ovis-Image": Tiny("transformer_ovis_image", "OvisImageTransformer2DModel", FLUX | {"out_channels": 4}, tokens),
    "LongCat-Image": Tiny(
        "transformer_longcat_image", "LongCatImageTransformer2DModel", FLUX | {"pooled_projection_dim": 32}, tokens
    ),
    "PRX": Tiny(
        "transformer_prx", "PRXTransformer2DModel",
        {
            "in_channels": 4, "patch_size": 2, "context_in_dim": 16, "hidden_size": 16, "mlp_ratio": 2, "num_heads": 2,
            "depth": 3, "axes_dim": [4, 4],
        },
        lambda: maps(width=16, time=0.5),
    ),
    "Wan 2.x": Tiny(
        "transformer_wan", "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 3,
            "cross_attn_norm": True, "rope_max_seq_len": 32,
        },
        lambda: films(5, 16),
    ),
    "CogVideoX": Tiny(
        "cogvideox_transformer_3d", "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
            "time_embed_dim": 2, "text_embed_dim": 8, "num_layers": 3, "sample_width": 8, "sample_height": 8,
            "sample_frames": 8, "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 8,
        },
        lambda: films(8, 8, (1, 2, 4, 8, 8)),
    ),
    "LTX-Video": Tiny(
        "transformer_ltx", "LTXVideoTransformer3DModel",
        {
            "in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 8,
            "cross_attention_dim": 32, "num_layers": 3, "caption_channels": 32,
        },
        lambda: films(
            5, 32, (1, 8, 8), encoder_attention_mask=torch.ones(1, 5).bool(), num_frames=2, height=2, width=2
        ),
    ),
    "Mochi": Tiny(
        "transformer_mochi", "MochiTransformer3DModel",
        {
            "patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
            "pooled_projection_dim": 16, "in_channels": 4, "qk_norm": "rms_norm", "text_embed_dim": 16,
            "time_embed_dim": 4, "activation_fn": "swiglu", "max_sequence_length": 16,
        },
        lambda: films(8, 16, encoder_attention_mask=torch.ones(1, 8).bool()),
    ),
    "HunyuanVideo": Tiny(
        "transformer_hunyuan_video", "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
            "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1,
            "guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
        },
        lambda: films(
            5, 16, (1, 4, 1, 4, 4), pooled_projections=draw(1, 8), encoder_attention_mask=torch.ones(1, 5),
            guidance=torch.tensor([6000]),
        ),
    ),
}  # fmt: skip
