"""Train the latent masked autoencoder, freeze it, and train the refiner."""

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from ditscope.core.determinism import deterministic, tensor_cores
from ditscope.core.errors import InputError
from ditscope.core.identity import file_digest
from ditscope.core.paths import InputFile, OutputFile, OutputFolder
from ditscope.core.scratch import discard, unfinished
from ditscope.core.tables import read_table, write_table
from ditscope.refine.batches import Batch, RefinerInput, TrainingSet, draw_batch, training_set
from ditscope.refine.drifting import Targets, unconditional_weight
from ditscope.refine.features import Features, check_features, extract
from ditscope.refine.latents import LatentSet, read_latents
from ditscope.refine.loop import LoopSettings, fit
from ditscope.refine.networks import (
    LatentMAE,
    LatentMAEConfig,
    Refiner,
    RefinerConfig,
    mae_loss,
    patch_mask,
    save_network,
)
from ditscope.refine.objectives import OBJECTIVES, Step, by_class
from ditscope.refine.patches import unpatchify
from ditscope.refine.processes import process_group, rank, world_size
from ditscope.refine.settings import Refine
from ditscope.refine.tables import TIMING, TRAINING

log = logging.getLogger(__name__)


def train(
    images: list[InputFile],
    assignments: InputFile,
    latent_mae: OutputFile,
    refiner: OutputFile,
    training: OutputFile,
    timing: OutputFile,
    settings: Refine = Refine(),
    partial: OutputFolder | None = None,
) -> None:
    """Train the feature encoder and the one-step refiner on latents of generated images.

    Leaves `latent_mae` and `refiner` (safetensors that describe themselves, averaged weights), `training` (table
    `refine.training`: network, step, metric, value) and `timing` (table `refine.training.timing`). Checkpoints in
    `partial` are resumed from; under torchrun every process works on batches of its own and the first one writes.
    """
    check_settings(settings)
    latents = read_latents(images, settings.patch)
    data = training_set(latents, read_codes(assignments, latents), settings)
    inputs = [file_digest(path) for path in [*images, assignments]]
    parts = unfinished(partial, refiner, {"inputs": inputs, "settings": settings})
    torch.manual_seed(settings.seed)
    with deterministic(), tensor_cores(), process_group() as device:
        log.info("refine: %d latents on %s, process %d of %d", len(latents), device, rank() + 1, world_size())
        encoder, mae_history = train_latent_mae(data, settings, parts / "latent_mae", device)
        network, history = train_refiner(data, encoder, settings, parts / "refiner", device)
        if rank() != 0:
            return
        statistics = torch.from_numpy(latents.mean), torch.from_numpy(latents.std)
        save_network(encoder, *statistics, latent_mae)
        save_network(network, *statistics, refiner)
        write_histories({"latent_mae": mae_history, "refiner": history}, training, timing)
        discard(parts)


def check_settings(settings: Refine) -> None:
    """Refuse settings that no training could follow, before anything loads."""
    check_features(settings.features)
    if settings.width % settings.heads:
        raise InputError(f"refine.heads: {settings.heads} do not divide the width {settings.width}; choose a divisor")
    if settings.mae_width % 8:
        raise InputError(f"refine.mae_width: {settings.mae_width} is not a multiple of 8 (the groups of its norms)")
    if settings.generated_per_class < 2:
        raise InputError("refine.generated_per_class: needs at least 2; generated samples repel each other")


def read_codes(assignments: Path, latents: LatentSet) -> np.ndarray:
    """Pseudo-class of every latent, (samples,); refuses a table of other samples."""
    table = read_table(assignments, "refine.assignments")
    if table["key"].to_list() != [r["key"] for r in latents.records]:
        raise InputError(f"{assignments}: lists other samples than the image shards; run refine-codebook again")
    return table["code"].to_numpy()


def train_latent_mae(
    data: TrainingSet, settings: Refine, folder: Path, device: torch.device
) -> tuple[LatentMAE, list[dict[str, float]]]:
    """The masked autoencoder of the latents, frozen, and its history."""
    channels = data.latents.shape[1]
    config = LatentMAEConfig(channels, len(data.grid), settings.patch, settings.mae_width, settings.mae_scales)
    network = LatentMAE(config).to(device)
    tokens = data.tokens.shape[1]

    def loss(forward: nn.Module, step: int, number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([settings.seed, step, number])
        rows = rng.integers(len(data.latents), size=settings.mae_batch)
        latents = torch.from_numpy(data.latents[rows]).to(device)
        scores = torch.from_numpy(rng.random((len(rows), tokens), dtype=np.float32)).to(device)
        mask = patch_mask(scores, settings.mask_ratio, data.grid, settings.patch)
        return mae_loss(forward(latents, mask), latents, mask), {}

    loop = loop_settings(settings, settings.mae_steps, settings.mae_batch, settings.mae_learning_rate)
    history = fit("latent_mae", network, loss, replace(loop, muon=False), folder, settings.grad_accum)
    return network.requires_grad_(False), history


def train_refiner(
    data: TrainingSet, encoder: LatentMAE, settings: Refine, folder: Path, device: torch.device
) -> tuple[Refiner, list[dict[str, float]]]:
    """The refiner, trained on the objective of the settings, and its history."""
    channels = data.latents.shape[1]
    shape = (settings.patch, settings.width, settings.depth, settings.heads, settings.codes, settings.levels)
    network = Refiner(RefinerConfig(channels, data.grid, *shape, settings.clamp_anchors)).to(device)

    def loss(forward: nn.Module, step: int, number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([settings.seed, step, number])
        batch = draw_batch(data, settings, rng)
        inputs = to_device(batch.inputs, device)
        refined = refine(forward, inputs)

        @cache
        def features() -> tuple[Features, dict[str, Targets]]:
            generated = extract(encoder, unpatchify(refined, data.grid, settings.patch), settings.features)
            return generated, real_targets(data, encoder, batch, settings, device)

        value, numbers = OBJECTIVES[settings.objective](Step(refined, inputs, features), settings)
        with torch.no_grad():
            numbers |= {
                **interpolation_errors(inputs),
                "mse_refined": float((refined - inputs.clean).square().mean()),
            }
        return value, numbers

    samples = settings.classes_per_step * settings.generated_per_class
    loop = loop_settings(settings, settings.steps, samples, settings.learning_rate)
    return network, fit("refiner", network, loss, loop, folder, settings.grad_accum)


def loop_settings(settings: Refine, steps: int, batch: int, learning_rate: float) -> LoopSettings:
    """The loop's settings for one of the networks: warm-up over a tenth of the steps, then constant."""
    return LoopSettings(
        steps=steps,
        batch=batch,
        lr=learning_rate,
        warmup=max(steps // 10, 1),
        decay=0.0,
        ema=settings.ema,
        clip=2.0,
        seed=settings.seed,
        checkpoint_every=settings.checkpoint_every,
        muon=settings.optimizer == "muon",
    )


def to_device(inputs: RefinerInput, device: torch.device) -> RefinerInput:
    """The same batch on another device."""
    return RefinerInput(**{name: tensor.to(device) for name, tensor in vars(inputs).items()})


def refine(network: nn.Module, inputs: RefinerInput) -> Tensor:
    """Refined tokens (batch, tokens, size) of corrupted ones."""
    return network(inputs.corrupted, inputs.anchors, inputs.classes, inputs.levels, inputs.alpha)


def interpolation_errors(inputs: RefinerInput) -> dict[str, float]:
    """Mean squared error of a corrupted batch to its clean tokens, over all of them and over the missing ones."""
    errors = (inputs.corrupted - inputs.clean).square().mean(-1)
    return {"interp/mse_all": float(errors.mean()), "interp/mse_missing": float(errors[~inputs.anchors].mean())}


@torch.no_grad()
def real_targets(
    data: TrainingSet, encoder: LatentMAE, batch: Batch, settings: Refine, device: torch.device
) -> dict[str, Targets]:
    """Features of the real samples of a batch by name, with the weight of the unconditional ones."""
    classes, positives = batch.positives.shape
    rows = np.concatenate([batch.positives.ravel(), batch.unconditional])
    features = extract(encoder, torch.from_numpy(data.latents[rows]).to(device), settings.features)
    weight = unconditional_weight(batch.alpha, settings.generated_per_class, len(batch.unconditional)).to(device)
    shared = np.broadcast_to(batch.unconditional, (classes, len(batch.unconditional)))
    sources = np.concatenate([shared, batch.positives], 1)
    own = torch.from_numpy(batch.rows[:, :, None] == sources[:, None]).to(device)
    return {
        name: Targets(
            by_class(f[classes * positives :].expand(classes, -1, -1, -1).flatten(0, 1), classes),
            by_class(f[: classes * positives], classes),
            weight,
            own,
            torch.from_numpy(sources).to(device),
        )
        for name, f in features.items()
    }


def write_histories(histories: dict[str, list[dict[str, float]]], training: Path, timing: Path) -> None:
    """Write the tables `refine.training` (network, step, metric, value) and `refine.training.timing`."""
    rows = [
        {"network": network, "step": record["step"], "metric": metric, "value": value}
        for network, history in histories.items()
        for record in history
        for metric, value in record.items()
        if metric not in ("step", "seconds")
    ]
    write_table(pl.DataFrame(rows, schema=TRAINING.schema()), training, TRAINING)
    seconds = [
        {"network": network, "step": record["step"], "seconds": record["seconds"], "world_size": world_size()}
        for network, history in histories.items()
        for record in history
    ]
    write_table(pl.DataFrame(seconds, schema=TIMING.schema()), timing, TIMING)
