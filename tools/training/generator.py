"""shapes-flux and shapes-sd3: rectified-flow transformers in the latent space of the shapes VAE."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ditscope.refine.loop import LoopSettings
from ditscope.shapes.world import TEMPLATES, caption, train_scenes
from training.clip import text_towers
from training.data import base_folder, cached_tensors
from training.loop import load_average, train
from training.text import MAX_TEXT, free_text
from training.vae import cached_latents

SETTINGS = {
    "flux": LoopSettings(steps=3600, batch=64, lr=1.5e-3, warmup=100, decay=0.35, ema=0.998, seed=15, muon=True),
    "sd3": LoopSettings(steps=2400, batch=64, lr=1.5e-3, warmup=100, decay=0.35, ema=0.998, seed=16, muon=True),
}
LATENT_CHANNELS, LATENT_SIZE = 8, 16
FREE_TEXTS = 5
DROP_PROMPT = {"flux": 0.05, "sd3": 0.1}
DROP_T5 = 0.15


def build(stage: str) -> torch.nn.Module:
    """The untrained transformer: 2 double and 4 single blocks (flux) or 5 joint blocks (sd3), width 128."""
    torch.manual_seed(SETTINGS[stage].seed)
    if stage == "flux":
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * LATENT_CHANNELS,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=128,
            pooled_projection_dim=64,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )


def assemble(stage: str, out: Path, transformer: torch.nn.Module) -> DiffusionPipeline:
    """The pipeline of a transformer with the VAE and the text encoders trained before it, all float32."""
    plain, projected = text_towers(out / "cliptext")
    t5 = T5EncoderModel.from_pretrained(out / "text", dtype=torch.float32)
    clip_tokens = CLIPTokenizer.from_pretrained(out / "cliptext")
    t5_tokens = T5Tokenizer.from_pretrained(out / "text")
    common = {
        "transformer": transformer,
        "vae": AutoencoderKL.from_pretrained(out / "decoder", torch_dtype=torch.float32),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        "tokenizer": clip_tokens,
    }
    if stage == "flux":
        return FluxPipeline(**common, text_encoder=plain, text_encoder_2=t5, tokenizer_2=t5_tokens)
    return StableDiffusion3Pipeline(
        **common,
        text_encoder=projected,
        text_encoder_2=text_towers(out / "cliptext")[1],
        tokenizer_2=clip_tokens,
        text_encoder_3=t5,
        tokenizer_3=t5_tokens,
    )


@torch.no_grad()
def encode_prompts(
    pipeline: DiffusionPipeline, prompts: list[str], length: int = MAX_TEXT
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline's own encode_prompt gives: sequences (N, T, 128) and pooled vectors (N, P).

    T is `length` (flux), or the tokens of CLIP and `length` more (sd3).
    """
    sequences, pooled = [], []
    for start in range(0, len(prompts), 128):
        part = prompts[start : start + 128]
        if isinstance(pipeline, FluxPipeline):
            sequence, vector, _ = pipeline.encode_prompt(part, max_sequence_length=length)
        else:
            sequence, _, vector, _ = pipeline.encode_prompt(
                part, None, None, do_classifier_free_guidance=False, max_sequence_length=length
            )
        sequences.append(sequence)
        pooled.append(vector)
    return torch.cat(sequences), torch.cat(pooled)


def training_prompts(seed: int) -> list[str]:
    """For each training scene every template and some free texts, scene after scene."""
    rng = np.random.default_rng(seed)
    prompts = []
    for scene in train_scenes():
        prompts += [caption(scene, template) for template in range(len(TEMPLATES))]
        prompts += [free_text(scene, rng)[0] for _ in range(FREE_TEXTS)]
    return prompts


def training_tensors(stage: str, out: Path, pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """Latents (N, 8, 16, 16), prompt sequences and pooled vectors, and those of the empty prompt."""

    def prompts() -> dict[str, torch.Tensor]:
        sequences, pooled = encode_prompts(pipeline, [*training_prompts(SETTINGS[stage].seed), ""])
        return {"sequences": sequences.half(), "pooled": pooled.half()}

    cached = cached_tensors(out / "data" / f"prompts-{stage}.safetensors", prompts)
    return cached | {"latents": cached_latents(out)}


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, H/2 * W/2, 4C) in the order of FluxPipeline._pack_latents."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def velocity(stage: str, model: torch.nn.Module, noisy, t, sequences, pooled) -> torch.Tensor:
    """The transformer's velocity at (N, 8, 16, 16) latents and times t in [0, 1]; packed for flux."""
    if stage == "sd3":
        return model(
            hidden_states=noisy, timestep=1000 * t, encoder_hidden_states=sequences, pooled_projections=pooled
        ).sample
    half = LATENT_SIZE // 2
    return model(
        hidden_states=pack(noisy),
        timestep=t,
        guidance=None,
        encoder_hidden_states=sequences,
        pooled_projections=pooled,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, half, half, "cpu", torch.float32),
        txt_ids=torch.zeros(sequences.shape[1], 3),
    ).sample


def logit_normal(n: int, generator: torch.Generator, late: float = 0.0) -> torch.Tensor:
    """Logit-normal times (N,) (Esser et al., arXiv:2403.03206); a share `late` has logits 1.2 nearer to noise."""
    offset = 1.2 * (torch.rand(n, generator=generator) < late)
    return torch.sigmoid(torch.randn(n, generator=generator) + offset)


def flow_loss(
    stage: str,
    model: torch.nn.Module,
    clean: torch.Tensor,
    condition: torch.Tensor,
    pooled: torch.Tensor,
    t: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Conditional flow matching (Lipman et al., arXiv:2210.02747) at times `t` (N,), 0 for pictures and 1 for noise.

    `clean` (N, 8, 16, 16), `condition` (N, T, 128), `pooled` (N, P). sd3 sees zeros for T5 in a part of the samples.
    """
    n = len(clean)
    if stage == "sd3":
        condition = condition.clone()
        condition[torch.rand(n, generator=generator) < DROP_T5, MAX_TEXT:] = 0
    noise = torch.randn(clean.shape, generator=generator)
    weight = t[:, None, None, None]
    noisy, target = (1 - weight) * clean + weight * noise, noise - clean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = velocity(stage, model, noisy, t, condition, pooled)
    error = (output.float() - (pack(target) if stage == "flux" else target)).square().flatten(1).mean(1)
    return error.mean(), {"high": error[t > 0.7].mean().item(), "low": error[t < 0.3].mean().item()}


def loss_function(stage: str, model: torch.nn.Module, data: dict[str, torch.Tensor], settings: LoopSettings):
    """`flow_loss` on latents and prompts of the training scenes, with the empty prompt in a part of the samples."""
    latents, sequences, pooled = data["latents"], data["sequences"], data["pooled"]
    scenes = len(train_scenes())
    renders, texts = len(latents) // scenes, (len(sequences) - 1) // scenes

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        n = settings.batch
        scene = torch.randint(scenes, (n,), generator=generator)
        clean = latents[scene * renders + torch.randint(renders, (n,), generator=generator)].float()
        text = scene * texts + torch.randint(texts, (n,), generator=generator)
        text[torch.rand(n, generator=generator) < DROP_PROMPT[stage]] = len(sequences) - 1
        condition, vector = sequences[text].float(), pooled[text].float()
        return flow_loss(stage, model, clean, condition, vector, logit_normal(n, generator), generator)

    return loss


def finish(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save the whole pipeline in bfloat16, its tokenizers without the padding and truncation of their last call."""
    for tokenizer in (part for name, part in pipeline.components.items() if name.startswith("tokenizer")):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    pipeline.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)


def run(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the transformer on latents and prompts of the training scenes and save the pipeline to out/base."""
    model = build(stage)
    pipeline = assemble(stage, out, model)
    data = training_tensors(stage, out, pipeline)
    summary = train(model, loss_function(stage, model, data, settings), settings, out / ".partial" / stage)
    finish(pipeline, base_folder(out, stage))
    return summary


def export(stage: str, out: Path) -> dict:
    """Save the pipeline of the last checkpoint to out/base, without training on."""
    model = build(stage)
    state = load_average(model, out / ".partial" / stage)
    finish(assemble(stage, out, model), base_folder(out, stage))
    return state
