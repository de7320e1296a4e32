"""Whole pipelines of random weights, saved as folders that any loader reads, each of a few thousand weights."""

from pathlib import Path

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLWan,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from workflow import ROOT

SHAPES = ROOT / "models/shapes-flux"  # whose tokenizers serve


def clip_and_t5() -> tuple[CLIPTextConfig, T5EncoderModel, AutoTokenizer, AutoTokenizer]:
    """The config of a CLIP text encoder, a T5, and the tokenizers of both."""
    clip, t5 = (AutoTokenizer.from_pretrained(SHAPES / name) for name in ("tokenizer", "tokenizer_2"))
    text = CLIPTextConfig(
        vocab_size=len(clip), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id,
        max_position_embeddings=clip.model_max_length,
    )  # fmt: skip
    return (
        text,
        T5EncoderModel(T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)),
        clip,
        t5,
    )


def small_vae(**options: float) -> AutoencoderKL:
    """A VAE of 4 channels that halves the sides."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, **options,
    )  # fmt: skip


def save_random_flux(folder: Path, guidance_embeds: bool = True) -> Path:
    """A FLUX pipeline; 32 x 32 pixels are latents of 16 x 16."""
    torch.manual_seed(0)
    text, t5, *tokenizers = clip_and_t5()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = small_vae(scaling_factor=0.36, shift_factor=0.12)
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, CLIPTextModel(text), tokenizers[0], t5, tokenizers[1], transformer
    ).save_pretrained(folder)
    return folder


def save_random_sd3(folder: Path) -> Path:
    """An SD3 pipeline; 32 x 32 pixels are latents of 16 x 16, the largest that it has places for."""
    torch.manual_seed(0)
    text, t5, clip_tokens, t5_tokens = clip_and_t5()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    encoders = CLIPTextModelWithProjection(text), CLIPTextModelWithProjection(text), t5
    StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), small_vae(scaling_factor=1.53, shift_factor=0.06),
        encoders[0], clip_tokens, encoders[1], clip_tokens, encoders[2], t5_tokens,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_tiny_flux(folder: Path) -> Path:
    """A FLUX pipeline with the shipped text encoders; 256 x 256 pixels are latents of 8 x 8, 16 tokens."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=128, pooled_projection_dim=64, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    FluxPipeline.from_pretrained(SHAPES, transformer=transformer, vae=tiny_vae()).save_pretrained(folder)
    return folder


def save_tiny_sd3(folder: Path) -> Path:
    """An SD3 pipeline with the shipped text encoders; 512 x 512 pixels are latents of 16 x 16, 64 tokens."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=128, caption_projection_dim=32, pooled_projection_dim=128,
        pos_embed_max_size=16,
    )  # fmt: skip
    source = ROOT / "models/shapes-sd3"
    StableDiffusion3Pipeline.from_pretrained(source, transformer=transformer, vae=tiny_vae()).save_pretrained(folder)
    return folder


def tiny_vae() -> AutoencoderKL:
    """An autoencoder that halves its images five times."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 6, up_block_types=("UpDecoderBlock2D",) * 6,
        block_out_channels=(2,) * 6, latent_channels=4, norm_num_groups=1, layers_per_block=1, shift_factor=0.1,
        scaling_factor=0.5, mid_block_add_attention=False,
    )  # fmt: skip


def save_tiny_sdxl(folder: Path) -> Path:
    """An SDXL pipeline with SDXL-Turbo's scheduler; 64 x 64 pixels are latents of 32 x 32."""
    torch.manual_seed(0)
    text, _, tokenizer, _ = clip_and_t5()
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=32, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
        cross_attention_dim=32, norm_num_groups=4,
    )  # fmt: skip
    vae = small_vae(scaling_factor=0.13)
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    StableDiffusionXLPipeline(vae, *encoders, tokenizer, tokenizer, unet, scheduler).save_pretrained(folder)
    return folder


def save_tiny_auraflow(folder: Path) -> Path:
    """An AuraFlow pipeline; 32 x 32 pixels are latents of 16 x 16."""
    torch.manual_seed(0)
    tokenizer = clip_and_t5()[-1]
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    transformer = AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pos_embed_max_size=256,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    AuraFlowPipeline(tokenizer, encoder, small_vae(scaling_factor=0.4), transformer, scheduler).save_pretrained(folder)
    return folder


def save_tiny_wan(folder: Path) -> Path:
    """A Wan pipeline with the scheduler of its hub repository; 32 x 32 pixels are latents of 4 x 4."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHAPES / "tokenizer_2")
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    WanPipeline(tokenizer, encoder, vae, scheduler, transformer).save_pretrained(folder)
    return folder
