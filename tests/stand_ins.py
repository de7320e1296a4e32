"""Stand-ins for hub models: the same classes, schedulers, text lengths and depth, random weights of tiny width.

Those of the family `dit` are the pipelines of `any_pipelines` made as deep; they read a text byte by byte.

A stand-in is saved where the download of its hub model would lie, so a study of hub models runs without a hub. Text
encoders, captioners and embedders, whose depth nothing reads, have two layers. Generators can be had shallow as well:
the time of a sensitivity grows with the square of the depth. Pictures and captions mean nothing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
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
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartTokenizer,
    BertTokenizer,
    BitImageProcessorPil,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GemmaTokenizer,
    GPT2Tokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    NomicBertConfig,
    NomicBertModel,
    OPTConfig,
    PixtralVisionConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

import any_pipelines
from ditscope.config import Config
from ditscope.models.folders import source_folder
from ditscope.models.settings import Embedder, Model
from tiny_captioners import CHAT
from workflow import ROOT

SHAPES = ROOT / "models/shapes-flux"  # whose tokenizers read any text, rare words letter by letter
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LETTERS = ["\u0120", *map(chr, range(33, 127))]  # of byte-level tokenizers, which write a space as U+0120


# Parts of pipelines --------------------------------------------------------------------------------------------------


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer class at the length of every CLIP text encoder, 77."""
    return AutoTokenizer.from_pretrained(SHAPES / "tokenizer", model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer class at the length of FLUX's, SD3's and Wan's, 512."""
    return AutoTokenizer.from_pretrained(SHAPES / "tokenizer_2", model_max_length=512)


def clip_config(**changes: Any) -> CLIPTextConfig:
    """The config of a CLIP text encoder of width 32 that reads `clip_tokenizer`."""
    tokenizer = clip_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPTextConfig(
        **TOWER | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 32} | changes
    )


def t5_config(kind: type[T5Config] | type[UMT5Config] = T5Config) -> T5Config | UMT5Config:
    """The config of a T5 (or UMT5) encoder of width 64 that reads `t5_tokenizer`."""
    return kind(
        vocab_size=len(t5_tokenizer()), d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


def vae(channels: int, scale: float, shift: float | None = None, quant_conv: bool = False) -> AutoencoderKL:
    """An AutoencoderKL of 8 x 8 pixels a latent, as FLUX, SD3 and SDXL have."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), latent_channels=channels, norm_num_groups=2, layers_per_block=2,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=quant_conv, use_post_quant_conv=quant_conv,
    )  # fmt: skip


# Generators ----------------------------------------------------------------------------------------------------------


def flux(folder: Path, guidance_embeds: bool, doubles: int, **scheduler: Any) -> None:
    """FLUX.1: twice as many single as double blocks, bfloat16, the transformer in several files."""
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=doubles, num_single_layers=2 * doubles, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=32, guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5, max_shift=1.15, **scheduler
        ),
        vae(16, 0.3611, 0.1159), CLIPTextModel(clip_config()), clip_tokenizer(), T5EncoderModel(t5_config()),
        t5_tokenizer(), transformer,
    )  # fmt: skip
    pipe.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")


def flux_schnell(folder: Path, doubles: int = 19) -> None:
    """FLUX.1-schnell: no guidance embedding, no time shift."""
    flux(folder, guidance_embeds=False, doubles=doubles, shift=1.0, use_dynamic_shifting=False)


def flux_dev(folder: Path, doubles: int = 19) -> None:
    """FLUX.1-dev and FLUX.1-Krea-dev: distilled guidance, time shift by the number of image tokens."""
    flux(folder, guidance_embeds=True, doubles=doubles, shift=3.0, use_dynamic_shifting=True)


def sd3_medium(folder: Path, blocks: int = 24, **more: Any) -> None:
    """Stable Diffusion 3 medium: joint blocks, two CLIP encoders and T5, float16, static shift of 3."""
    transformer = SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, num_layers=blocks, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=16,
        **{"pos_embed_max_size": 192} | more,
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(clip_config(hidden_act=act)) for act in ("quick_gelu", "gelu")]
    pipe = StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(16, 1.5305, 0.0609), encoders[0],
        clip_tokenizer(), encoders[1], clip_tokenizer(), T5EncoderModel(t5_config()), t5_tokenizer(),
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(folder)
    pipe.text_encoder_3.save_pretrained(folder / "text_encoder_3", max_shard_size="100KB")


def sd35_medium(folder: Path, blocks: int = 24) -> None:
    """Stable Diffusion 3.5 medium: norms of query and key, a second attention in the first half of the blocks."""
    sd3_medium(folder, blocks, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm", pos_embed_max_size=384)


def dit(name: str, folder: Path, text: Any = None, pipeline: type | None = None, **depth: int) -> None:
    """A pipeline of `any_pipelines` in bfloat16 with transformers as deep as the hub model's.

    `text` is its text encoder, and `pipeline` its class, where these are others than the tiny one's.
    """
    pipe = any_pipelines.PIPELINES[name].build()
    for part in ("transformer", "transformer_2"):
        if (network := getattr(pipe, part, None)) is not None:
            deep = type(network).from_config(network.config | depth)
            for key, weights in deep.named_parameters():  # some classes leave theirs uninitialised
                scale = key.endswith("weight") and weights.ndim == 1
                weights.data = torch.randn(weights.shape) * 0.05 + float(scale)
            pipe.register_modules(**{part: deep})
    if text is not None:
        pipe.register_modules(text_encoder=text())
    pipe = (pipeline or type(pipe))(**pipe.components)
    pipe.to(torch.bfloat16).save_pretrained(folder)


def mistral3() -> Mistral3ForConditionalGeneration:
    """The text encoder of FLUX.2 [dev], which reads its layers 10, 20 and 30."""
    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"head_dim": 8, "num_hidden_layers": 31, "vocab_size": any_pipelines.VOCABULARY}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config=MistralConfig(**text), vision_config=PixtralVisionConfig(**vision, image_size=32, patch_size=16)
        )
    )


def qwen3() -> Any:
    """The text encoder of FLUX.2 [klein], which reads its layers 9, 18 and 27."""
    return any_pipelines.language("Qwen3", layers=28, headed=True)


def sdxl_turbo(folder: Path) -> None:
    """SDXL-Turbo: a U-Net of three levels, sampled by ancestral Euler steps of trailing spacing."""
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(8, 16, 32), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, cross_attention_dim=64,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="trailing"
    )
    encoders = CLIPTextModel(clip_config()), CLIPTextModelWithProjection(clip_config(hidden_act="gelu"))
    pipe = StableDiffusionXLPipeline(
        vae(4, 0.13025, quant_conv=True), *encoders, clip_tokenizer(), clip_tokenizer(), unet, scheduler
    )
    pipe.save_pretrained(folder)


def wan(folder: Path) -> None:
    """Wan 2.1 T2V 1.3B: 30 blocks, the video VAE in float32, UniPC steps of the flow at a shift of 3."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=32, ffn_dim=64, num_layers=30, cross_attn_norm=True,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    encoder = UMT5EncoderModel(t5_config(UMT5Config))
    pipe = WanPipeline(t5_tokenizer(), encoder, AutoencoderKLWan(base_dim=4, num_res_blocks=1), scheduler, transformer)
    pipe.save_pretrained(folder, max_shard_size="1MB")


# Captioners ----------------------------------------------------------------------------------------------------------


def louder(model: torch.nn.Module, factor: float) -> torch.nn.Module:
    """The model with its matrices scaled up, so that what it says depends on what it sees."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not any(part in name for part in ("embed_tokens", "shared", "word_embeddings")):
                parameter.mul_(factor)
    return model


def blip2(folder: Path) -> None:
    """BLIP-2 with OPT: 32 query tokens of a picture of 224 pixels, byte-level words."""
    special = ["</s>", "<pad>", "<image>"]
    tokenizer = GPT2Tokenizer(
        vocab={token: i for i, token in enumerate([*special, *LETTERS])}, merges=[], unk_token="</s>", bos_token="</s>",
        eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    opt = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, word_embed_proj_dim=32, pad_token_id=1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=TOWER | {"image_size": 224, "patch_size": 14},
        qformer_config=TOWER | {"encoder_hidden_size": 32, "vocab_size": 8},
        text_config=opt.to_dict(), num_query_tokens=32, image_token_index=2,
    )  # fmt: skip
    model = louder(Blip2ForConditionalGeneration(config), 20)
    torch.nn.init.normal_(model.query_tokens)  # at first all are zero, and so ask nothing of the picture
    model.half().save_pretrained(folder, max_shard_size="300KB")
    images = BlipImageProcessorPil(size={"height": 224, "width": 224})
    Blip2Processor(images, tokenizer, num_query_tokens=32).save_pretrained(folder)


def florence2(folder: Path) -> None:
    """Florence-2 large: DaViT of four stages over 768 pixels, 577 image tokens, an encoder and decoder of BART."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]
    tokenizer = BartTokenizer(
        vocab={token: i for i, token in enumerate([*special, *LETTERS])}, merges=[], model_max_length=1024,
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    bart = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=1024,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_bos_token_id=0,
        forced_eos_token_id=2,
    )  # fmt: skip
    davit = {"depths": [1, 1, 9, 1], "embed_dim": [4, 8, 16, 32], "num_heads": [1, 2, 4, 8], "num_groups": [1, 2, 4, 8]}
    config = Florence2Config(
        text_config=bart.to_dict(), vision_config=davit | {"window_size": 12, "projection_dim": 32}, image_token_id=5
    )
    louder(Florence2ForConditionalGeneration(config), 10).half().save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 768, "width": 768}, do_center_crop=False, image_seq_length=577)
    Florence2Processor(images, tokenizer, num_additional_image_tokens=1).save_pretrained(folder)


def blip_large(folder: Path) -> None:
    """BLIP large: pictures of 384 pixels, a BERT decoder that begins with a token of its own."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokens = [*special, *(form for c in map(chr, range(33, 127)) for form in (c, f"##{c}"))]
    text = TOWER | {"vocab_size": len(tokens), "encoder_hidden_size": 32, "max_position_embeddings": 512}
    text |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=TOWER | {"image_size": 384, "patch_size": 16})
    louder(BlipForConditionalGeneration(config), 20).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, extra_special_tokens=["[DEC]"])
    images = BlipImageProcessorPil(size={"height": 384, "width": 384})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL 2B: patches of 16 pixels, four of them a token, byte-level words, a chat template."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    marks += ["<|video_pad|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={t: i for i, t in enumerate([*marks, *LETTERS, "\u010a"])}, merges=[], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", additional_special_tokens=marks,
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = TOWER | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 16, "rope_parameters": rope}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = louder(Qwen3VLForConditionalGeneration(config), 20)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, eos_token_id=stop)
    model.bfloat16().save_pretrained(folder)
    sizes = {"patch_size": 16, "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}}
    images, videos = Qwen2VLImageProcessorPil(**sizes), Qwen3VLVideoProcessor(**sizes)
    Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT).save_pretrained(folder)


# Embedders -----------------------------------------------------------------------------------------------------------


def nomic(folder: Path) -> None:
    """nomic-embed-text 1.5: rotary BERT by transformers' own class, mean pooling, no normalisation of its own."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *(form for c in map(chr, range(33, 127)) for form in (c, f"##{c}"))]
    tokenizer = BertTokenizer(vocab={t: i for i, t in enumerate(tokens)}, model_max_length=8192)
    with TemporaryDirectory() as inner:
        NomicBertModel(NomicBertConfig(**TOWER, vocab_size=len(tokenizer))).save_pretrained(inner)
        tokenizer.save_pretrained(inner)
        words = Transformer(inner, max_seq_length=8192)
        model = SentenceTransformer(modules=[words, Pooling(32, pooling_mode="mean")], device="cpu")
        model.save(str(folder), safe_serialization=True)


def mpnet(folder: Path) -> None:
    """all-mpnet-base-v2: MPNet, mean pooling, unit vectors, 384 tokens."""
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    pieces = [form for c in map(chr, range(33, 127)) for form in (c, f"##{c}")]
    tokenizer = MPNetTokenizer(vocab={t: i for i, t in enumerate([*special, *pieces])}, model_max_length=384)
    config = MPNetConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=514)
    with TemporaryDirectory() as inner:
        MPNetModel(config).save_pretrained(inner)
        tokenizer.save_pretrained(inner)
        words = Transformer(inner, max_seq_length=384)
        model = SentenceTransformer(modules=[words, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
        model.save(str(folder), safe_serialization=True)


def siglip2(folder: Path) -> None:
    """SigLIP 2 base at 224 pixels: SigLIP's classes with Gemma's tokenizer, 64 tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = GemmaTokenizer(
        vocab={t: i for i, t in enumerate([*special, "\u2581", *map(chr, range(33, 127))])}, merges=[],
        model_max_length=64,
    )  # fmt: skip
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 224, "patch_size": 16})
    SiglipModel(config).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessorPil(size={"height": 224, "width": 224}), tokenizer).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    """DINOv2 base: patches of 14, positions of 518 pixels, pictures cropped to 224."""
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)


def clip_large(folder: Path) -> None:
    """CLIP ViT-L/14: patches of 14 of 224 pixels, 77 tokens."""
    vision = TOWER | {"image_size": 224, "patch_size": 14}
    config = CLIPConfig(text_config=clip_config().to_dict(), vision_config=vision, projection_dim=32)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer()).save_pretrained(folder)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "black-forest-labs/FLUX.1-schnell": flux_schnell,
    "black-forest-labs/FLUX.1-dev": flux_dev,
    "black-forest-labs/FLUX.1-Krea-dev": flux_dev,
    "stabilityai/stable-diffusion-3-medium-diffusers": sd3_medium,
    "stabilityai/sdxl-turbo": sdxl_turbo,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": wan,
    "black-forest-labs/FLUX.2-klein-4B": partial(
        dit, "flux2-klein", text=qwen3, num_layers=5, num_single_layers=20, joint_attention_dim=48
    ),
    "black-forest-labs/FLUX.2-dev": partial(
        dit,
        "flux2-klein",
        text=mistral3,
        pipeline=Flux2Pipeline,
        num_layers=8,
        num_single_layers=48,
        joint_attention_dim=48,
        guidance_embeds=True,
    ),
    "Qwen/Qwen-Image": partial(dit, "qwen-image", num_layers=60),
    "Tongyi-MAI/Z-Image-Turbo": partial(dit, "z-image", n_layers=30, n_refiner_layers=2),
    "stabilityai/stable-diffusion-3.5-medium": sd35_medium,
    "stabilityai/stable-diffusion-3.5-large": partial(sd3_medium, blocks=38, qk_norm="rms_norm"),
    "lodestones/Chroma1-HD": partial(dit, "chroma", num_layers=19, num_single_layers=38),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": partial(dit, "wan", num_layers=30),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": partial(dit, "wan22", num_layers=40),
    "Lightricks/LTX-Video": partial(dit, "ltx", num_layers=28),
    "Salesforce/blip2-opt-2.7b": blip2,
    "florence-community/Florence-2-large": florence2,
    "sentence-transformers/all-mpnet-base-v2": mpnet,
    "google/siglip2-base-patch16-224": siglip2,
    "facebook/dinov2-base": dinov2,
    "openai/clip-vit-large-patch14": clip_large,
    "Salesforce/blip-image-captioning-large": blip_large,
    "Qwen/Qwen3-VL-2B-Instruct": qwen3_vl,
    "nomic-ai/nomic-embed-text-v1.5": nomic,
}
SHALLOW: dict[str, Callable[[Path], None]] = {
    "black-forest-labs/FLUX.1-schnell": partial(flux_schnell, doubles=2),
    "black-forest-labs/FLUX.1-dev": partial(flux_dev, doubles=2),
    "stabilityai/stable-diffusion-3-medium-diffusers": partial(sd3_medium, blocks=3),
}


def save(source: str, folder: Path, shallow: bool = False) -> Path:
    """Save the stand-in of a hub model; each hub id has random weights of its own."""
    torch.manual_seed(list(STAND_INS).index(source))
    (STAND_INS | (SHALLOW if shallow else {}))[source](folder)
    return folder


def hub_entries(config: Config) -> list[Model | Embedder]:
    """Entries of the hub models and embedders that a study loads."""
    names = [*config.embed.embedders, config.blocks.features, config.ablate.features]
    if config.benchmark.models:
        names += [config.benchmark.features, *config.benchmark.cosines]
    entries = [config.models[name] for name in config.selected_models()]
    entries += [config.embedders[name] for name in dict.fromkeys(names) if name]
    return [entry for entry in entries if entry.revision]


def put(config: Config, checkout: Path) -> None:
    """Save the stand-in of each hub model of a study where its download would lie in a checkout.

    A study that looks into blocks gets generators of the whole depth, another one shallow ones.
    """
    shallow = not (config.capture.models or config.ablate.models)
    for entry in hub_entries(config):
        folder = checkout / source_folder(entry)
        if not folder.exists():
            save(entry.source, folder, shallow)
