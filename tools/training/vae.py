"""The autoencoder that both generators share: AutoencoderKL, f = 4, 8 latent channels."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ditscope.refine.loop import LoopSettings
from training.data import cached_pictures, cached_tensors, to_pictures, to_tensor
from training.loop import load_average, train

SETTINGS = {
    "vae": LoopSettings(steps=1100, batch=16, lr=2e-3, warmup=50, decay=0.4, ema=0.99, seed=11),
    "decoder": LoopSettings(steps=1400, batch=16, lr=2e-3, warmup=50, decay=0.5, ema=0.99, seed=18),
}
KL_WEIGHT = 5e-5
SHAPE_WEIGHT = 5.0
LATENT_NOISE = 0.15
GRADIENT_WEIGHT = 0.5


def build() -> AutoencoderKL:
    """The untrained autoencoder; the posterior starts narrow and the norms see all channels.

    With posteriors as wide as the prior, or norms over pairs of channels, it loses the colours of small shapes.
    """
    torch.manual_seed(SETTINGS["vae"].seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        vae.encoder.conv_out.bias[8:] -= 4
        vae.encoder.conv_out.weight[8:] *= 0.1
    return vae


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + L2, heavier on the shape than on the corner's colour, plus L1 on differences of neighbours."""
    error = output - target
    shape = ((target - target[..., :1, :1]).abs().amax(1, keepdim=True) > 0.15).float()
    fit = ((1 + SHAPE_WEIGHT * shape) * (error.abs() + error.square())).mean()
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return fit + GRADIENT_WEIGHT * edges


def detail_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + L2 where the shape and its surroundings weigh as much as the rest, however small the shape is.

    Without the surroundings the gaps between a small star's points fill up.
    """
    error = output - target
    shape = ((target - target[..., :1, :1]).abs().amax(1, keepdim=True) > 0.15).float()
    near = F.max_pool2d(shape, 7, 1, 3)
    weight = 1 + near / near.mean((1, 2, 3), keepdim=True).clamp(min=0.01)
    return (weight * (error.abs() + error.square())).mean()


def loss_function(vae: AutoencoderKL, pictures: np.ndarray, settings: LoopSettings):
    """The loss of one step: reconstruction + KL (Kingma & Welling, arXiv:1312.6114), as `train` wants it."""

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (settings.batch,), generator=generator).numpy()
        images = to_tensor(pictures[np.sort(rows)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moments = vae.encoder(images)
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = vae.decoder(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        fit = reconstruction_loss(output.float(), images)
        return fit + KL_WEIGHT * kl, {"fit": fit.item(), "kl": kl.item(), "std": mean.std().item()}

    return loss


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: np.ndarray) -> tuple[float, float]:
    """The mean and standard deviation of sampled latents over all channels."""
    vae.eval()
    means, squares = [], []
    for start in range(0, len(pictures), 64):
        generator = torch.Generator().manual_seed(start)
        latent = vae.encode(to_tensor(pictures[start : start + 64])).latent_dist.sample(generator)
        means.append(latent.mean().item())
        squares.append(latent.square().mean().item())
    mean = float(np.mean(means))
    return mean, float(np.sqrt(np.mean(squares) - mean**2))


def finish(vae: AutoencoderKL, pictures: np.ndarray, folder: Path) -> None:
    """Round the weights to bfloat16, set scaling_factor and shift_factor from the data, and save."""
    vae.to(memory_format=torch.contiguous_format).to(torch.bfloat16).float()
    mean, std = latent_statistics(vae, pictures[:: max(len(pictures) // 1024, 1)])
    vae.register_to_config(scaling_factor=1 / std, shift_factor=mean)
    vae.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)


def run(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the autoencoder on renders of the training scenes and save it to out/vae."""
    pictures = cached_pictures(out / "data", 10, 101)
    vae = build()
    summary = train(vae, loss_function(vae, pictures, settings), settings, out / ".partial" / stage)
    finish(vae, pictures, out / stage)
    return summary


def export(stage: str, out: Path) -> dict:
    """Save the moving average of the last checkpoint to out/vae, without training on."""
    vae = build()
    state = load_average(vae, out / ".partial" / stage)
    finish(vae, cached_pictures(out / "data", 10, 101), out / stage)
    return state


def decoder_loss_function(vae: AutoencoderKL, latents: torch.Tensor, pictures: np.ndarray, settings: LoopSettings):
    """Reconstruction from scaled latents (N, 8, 16, 16) with a little noise, as a generator's will have."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (settings.batch,), generator=generator)
        clean = latents[rows].float()
        level = LATENT_NOISE * torch.rand(len(rows), 1, 1, 1, generator=generator)
        noisy = clean + level * torch.randn(clean.shape, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = vae.decoder(noisy / scale + shift)
        target = to_tensor(pictures[rows.numpy()])
        value = detail_loss(output.float(), target)
        return value, {"mae": 127.5 * (output.float() - target).abs().mean().item()}

    return loss


def run_decoder(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the decoder of out/vae on, its encoder frozen so that latents stay valid, and save to out/decoder."""
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)
    vae.encoder.requires_grad_(False)
    pictures = cached_pictures(out / "data", 10, 101)
    latents = cached_latents(out)
    loss = decoder_loss_function(vae, latents, pictures, settings)
    summary = train(vae, loss, settings, out / ".partial" / stage)
    vae.to(torch.bfloat16).save_pretrained(out / stage, safe_serialization=True)
    return summary


def cached_latents(out: Path) -> torch.Tensor:
    """Scaled latents of the generators' training pictures, (16320, 8, 16, 16) float16, made on first use."""

    def make() -> dict[str, torch.Tensor]:
        vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)
        return {"latents": encode(vae, cached_pictures(out / "data", 10, 101)).half()}

    return cached_tensors(out / "data" / "latents.safetensors", make)["latents"]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> torch.Tensor:
    """Scaled latent means of pictures, (N, 8, 16, 16) float32, as the pipelines scale them."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    parts = [
        (vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mode() - shift) * scale
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
    """Pictures passed through the autoencoder, (N, 64, 64, 3) uint8."""
    parts = [
        to_pictures(vae.decode(vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mode()).sample)
        for i in range(0, len(pictures), batch)
    ]
    return np.concatenate(parts)
