"""Tiny pipelines of many families of diffusion transformers: real classes, random weights, tokenizers of bytes.

`PIPELINES` has a way to build each; `tiny(name)` gives one, and `CALLS` what its call takes beside the common settings.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ditscope.models.families import dit
from ditscope.models.loading import Generator
from ditscope.models.settings import Model

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] if m['content'] is string else "
    "m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 256 + len(SPECIAL)
FLOW = d.FlowMatchEulerDiscreteScheduler
SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def shifted() -> Any:
    """The scheduler of FLUX: its shift depends on the number of tokens."""
    return FLOW(use_dynamic_shifting=True, **SHIFT)


def bytes_tokenizer(length: int = 512, end: bool = True) -> t.PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, with the special tokens and a chat template as language models have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        model_max_length=length, chat_template=CHAT,
    )  # fmt: skip


def t5(width: int = 32) -> t.T5EncoderModel:
    """A T5 of one layer."""
    return t.T5EncoderModel(
        t.T5Config(vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def umt5(width: int = 16) -> t.UMT5EncoderModel:
    """A UMT5 of one layer."""
    return t.UMT5EncoderModel(
        t.UMT5Config(vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def clip(projected: bool = False, width: int = 16) -> Any:
    """A CLIP text encoder of two layers, with or without its projection."""
    config = t.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=2, eos_token_id=1, pad_token_id=0, max_position_embeddings=77,
    )  # fmt: skip
    return t.CLIPTextModelWithProjection(config) if projected else t.CLIPTextModel(config)


def language(kind: str, width: int = 16, layers: int = 2, headed: bool = False) -> Any:
    """A language model of transformers: `Qwen3`, `Gemma2`, `Llama`, `Glm`, ..."""
    config = getattr(t, f"{kind}Config")(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, pad_token_id=0,
        bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    return getattr(t, f"{kind}ForCausalLM" if headed else f"{kind}Model")(config)


def qwen_vl(width: int = 16) -> Any:
    """A Qwen2.5-VL of two layers."""
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text = {
        "vocab_size": VOCABULARY, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope, "rope_theta": 1e6, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 1024,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    config = t.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=7, video_token_id=7, vision_start_token_id=6
    )
    return t.Qwen2_5_VLForConditionalGeneration(config)


def vae(channels: int = 4, halvings: int = 1, **options: Any) -> d.AutoencoderKL:
    """A VAE of some channels that halves the sides."""
    blocks = halvings + 1
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks, latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        **{"scaling_factor": 0.36, "shift_factor": 0.12} | options,
    )  # fmt: skip


def qwen_vae() -> d.AutoencoderKLQwenImage:
    """The VAE of Qwen-Image; halves the sides twice."""
    return d.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[1.5] * 4,
    )  # fmt: skip


def flux1() -> Any:
    transformer = d.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return d.FluxPipeline(
        FLOW(use_dynamic_shifting=True, **SHIFT),
        vae(),
        clip(),
        bytes_tokenizer(77),
        t5(),
        bytes_tokenizer(),
        transformer,
    )


def flux2_klein() -> Any:
    transformer = d.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    coder = d.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    scheduler = shifted()
    return d.Flux2KleinPipeline(
        scheduler, coder, language("Qwen3", headed=True), bytes_tokenizer(end=False), transformer
    )


def sd3(dual: tuple[int, ...] = ()) -> Any:
    transformer = d.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=8, dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    short = bytes_tokenizer(77)
    return d.StableDiffusion3Pipeline(
        transformer, FLOW(shift=3.0), vae(), clip(True), short, clip(True), short, t5(), bytes_tokenizer()
    )


def qwen_image() -> Any:
    transformer = d.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    scheduler = shifted()
    return d.QwenImagePipeline(scheduler, qwen_vae(), qwen_vl(), bytes_tokenizer(end=False), transformer)


def z_image() -> Any:
    transformer = d.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[512, 32, 32],
    )  # fmt: skip
    scheduler = FLOW(use_dynamic_shifting=False, shift=3.0)
    return d.ZImagePipeline(scheduler, vae(), language("Qwen3"), bytes_tokenizer(end=False), transformer)


def chroma() -> Any:
    transformer = d.ChromaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return d.ChromaPipeline(FLOW(), vae(), t5(), bytes_tokenizer(), transformer)


def dc_vae() -> d.AutoencoderDC:
    """The deep-compression autoencoder of Sana."""
    return d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4,
    )  # fmt: skip


def sana() -> Any:
    transformer = d.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    return d.SanaPipeline(bytes_tokenizer(), language("Gemma2"), dc_vae(), transformer, FLOW(shift=7.0))


def pixart() -> Any:
    transformer = d.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=16, sample_size=8, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return d.PixArtSigmaPipeline(
        bytes_tokenizer(), t5(), vae(shift_factor=None), transformer, d.DDIMScheduler(clip_sample=False)
    )


def lumina2() -> Any:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=3, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(512, 64, 64), cap_feat_dim=16,
    )  # fmt: skip
    return d.Lumina2Pipeline(transformer, FLOW(), vae(halvings=3), language("Gemma2"), bytes_tokenizer())


def hunyuan_image() -> Any:
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=32, rope_axes_dim=(8, 8),
        patch_size=(1, 1), guidance_embeds=False,
    )  # fmt: skip
    coder = d.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32), layers_per_block=1,
        scaling_factor=0.47, spatial_compression_ratio=4, sample_size=32,
    )  # fmt: skip
    guider = d.guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    ocr = d.guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    return d.HunyuanImagePipeline(
        FLOW(), coder, qwen_vl(), bytes_tokenizer(end=False), t5(), bytes_tokenizer(), transformer, guider, ocr
    )


def auraflow() -> Any:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pos_embed_max_size=256,
    )  # fmt: skip
    return d.AuraFlowPipeline(bytes_tokenizer(), umt5(32), vae(shift_factor=None), transformer, FLOW())


def cogview4() -> Any:
    transformer = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4, rope_axes_dim=(8, 8),
    )  # fmt: skip
    scheduler = FLOW(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True)
    return d.CogView4Pipeline(bytes_tokenizer(), language("Glm"), vae(), transformer, scheduler)


def wan(stages: int = 1) -> Any:
    def transformer() -> Any:
        return d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
        )  # fmt: skip

    coder = d.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    two = {"transformer_2": transformer(), "boundary_ratio": 0.875} if stages == 2 else {}
    return d.WanPipeline(bytes_tokenizer(), umt5(), coder, scheduler, transformer(), **two)


def ltx() -> Any:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=3, caption_channels=32, patch_size=1, patch_size_t=1,
    )  # fmt: skip
    coder = d.AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    scheduler = FLOW(use_dynamic_shifting=True, base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1)
    return d.LTXPipeline(scheduler, coder, t5(), bytes_tokenizer(), transformer)


def cogvideox() -> Any:
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=3, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    coder = d.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    return d.CogVideoXPipeline(bytes_tokenizer(), t5(), coder, transformer, d.CogVideoXDDIMScheduler())


def hunyuan_video() -> Any:
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    coder = d.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, scaling_factor=0.47, spatial_compression_ratio=8, temporal_compression_ratio=4,
    )  # fmt: skip
    return d.HunyuanVideoPipeline(
        language("Llama", layers=4), bytes_tokenizer(), transformer, coder, FLOW(shift=7.0), clip(), bytes_tokenizer(77)
    )


def mochi() -> Any:
    transformer = d.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=16,
        in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, activation_fn="swiglu",
        max_sequence_length=16,
    )  # fmt: skip
    coder = d.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
    )  # fmt: skip
    return d.MochiPipeline(FLOW(), coder, t5(), bytes_tokenizer(), transformer)


def ovis_image() -> Any:
    transformer = d.OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = shifted()
    return d.OvisImagePipeline(scheduler, vae(), language("Qwen3"), bytes_tokenizer(end=False), transformer)


def longcat_image() -> Any:
    transformer = d.LongCatImageTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    scheduler = shifted()
    processor = t.Qwen2VLProcessor(
        t.Qwen2VLImageProcessor(), bytes_tokenizer(end=False), t.Qwen2VLVideoProcessor(), chat_template=CHAT
    )
    return d.LongCatImagePipeline(scheduler, vae(16), qwen_vl(), bytes_tokenizer(end=False), processor, transformer)


def bria() -> Any:
    transformer = d.BriaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=False,
    )  # fmt: skip
    return d.BriaPipeline(transformer, FLOW(), vae(), t5(), bytes_tokenizer())


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline, and what it is called with."""

    build: Callable[[], Any]
    size: int = 16  # pixels of a side
    frames: int = 1
    length: int = 16  # of the text, where the pipeline takes it
    guidance: float = 3.0
    call: dict[str, Any] = field(default_factory=dict)


# What the matrix tests of all of these are marked with, but for a few; minutes each.
SLOWER = [pytest.mark.system, pytest.mark.long]
PIPELINES = {
    "flux": Tiny(flux1),
    "flux2-klein": Tiny(flux2_klein, length=64, call={"text_encoder_out_layers": [1, 2]}),
    "sd3": Tiny(sd3),
    "sd35-medium": Tiny(lambda: sd3((0, 1))),
    "qwen-image": Tiny(qwen_image, length=400, call={"true_cfg_scale": 3.0}),
    "z-image": Tiny(z_image, length=64),
    "chroma": Tiny(chroma),
    "sana": Tiny(sana, size=32, call={"use_resolution_binning": False, "complex_human_instruction": None}),
    "pixart-sigma": Tiny(pixart, call={"use_resolution_binning": False, "clean_caption": False}),
    "lumina2": Tiny(lumina2, size=64, length=256),
    "hunyuan-image": Tiny(hunyuan_image),
    "auraflow": Tiny(auraflow),
    "cogview4": Tiny(cogview4),
    "wan": Tiny(wan, size=32, frames=5),
    "wan22": Tiny(lambda: wan(2), size=32, frames=5),
    "ltx": Tiny(ltx, size=32, frames=9),
    "cogvideox": Tiny(cogvideox, size=16, frames=9),
    "hunyuan-video": Tiny(hunyuan_video, frames=5),
    "mochi": Tiny(mochi, frames=7),
    "ovis-image": Tiny(ovis_image, length=256),
    "longcat-image": Tiny(longcat_image, call={"enable_prompt_rewrite": False}),
    "bria": Tiny(bria),
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline of `PIPELINES`; its weights are fixed, and large enough that no part of it is without effect."""
    torch.manual_seed(0)
    pipe = PIPELINES[name].build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for key, parameter in part.named_parameters():  # all of them: some classes leave theirs uninitialised
                scale = "norm" in key and key.endswith("weight") and parameter.ndim == 1
                drawn = torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.05)
                parameter.data = drawn + 1 if scale else drawn
            part.to(dtype).eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_generator(name: str, dtype: torch.dtype = torch.float32, **entry: Any) -> Generator:
    """A generator of the family `dit` on a pipeline of `PIPELINES`."""
    about = PIPELINES[name]
    model = Model(
        "dit", "tiny", dtype=str(dtype).removeprefix("torch."), width=about.size, height=about.size,
        frames=about.frames, steps=3, guidance=about.guidance, max_sequence_length=about.length, call=about.call,
    )  # fmt: skip
    return Generator(name, replace(model, **entry), dit, tiny(name, dtype), torch.device("cpu"))


def plain(model: Generator, prompts: list[str], negatives: list[str], seeds: list[int], output: str) -> Any:
    """What the pipeline's own `__call__` makes of the same prompts; some pipelines write into the lists they get."""
    known = inspect.signature(type(model.pipe).__call__).parameters
    entry = model.entry
    wanted = {
        "prompt": [*prompts], "negative_prompt": [*negatives], "height": entry.height, "width": entry.width,
        "num_frames": entry.frames, "num_inference_steps": entry.steps, "guidance_scale": entry.guidance,
        "max_sequence_length": entry.max_sequence_length,
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
    }  # fmt: skip
    taken = {key: value for key, value in wanted.items() if key in known} | entry.call
    return model.pipe(**taken, output_type=output, return_dict=False)[0]


def save_tiny(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A pipeline of `PIPELINES` as a folder."""
    tiny(name, dtype).save_pretrained(folder)
    return folder
