"""Train the latent masked autoencoder, freeze it, and train the refiner."""

import logging
import resource
import sys
from contextlib import nullcontext
from functools import cache
from functools import partial as bound
from pathlib import Path
from typing import Any

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
from ditscope.models.hardware import hardware_id
from ditscope.refine.apply import apply
from ditscope.refine.batches import Batch, Samples, draw_batch, draw_latents, load_batches, samples_of, to_device
from ditscope.refine.codebook import load_codebook
from ditscope.refine.dataset import Dataset, open_dataset
from ditscope.refine.drifting import Targets, unconditional_weight
from ditscope.refine.encoder import Encoder, is_trained_here, load_encoder
from ditscope.refine.features import Features, check_features, features_of
from ditscope.refine.loop import LoopSettings, fit
from ditscope.refine.networks import LatentMAE, LatentMAEConfig, mae_loss, patch_mask, save_network
from ditscope.refine.objectives import OBJECTIVES, Step, by_class
from ditscope.refine.patches import unpatchify
from ditscope.refine.processes import process_group, rank, world_size
from ditscope.refine.refiner import Refiner, RefinerConfig
from ditscope.refine.refiner_file import load_refiner, load_weights, save_refiner
from ditscope.refine.settings import Refine
from ditscope.refine.tables import TIMING, TRAINING

log = logging.getLogger(__name__)


def train(
    samples: InputFile,
    about: InputFile,
    codebook: InputFile,
    assignments: InputFile,
    latent_mae: OutputFile,
    refiner: OutputFile,
    training: OutputFile,
    timing: OutputFile,
    settings: Refine = Refine(),
    start: str = "",
    partial: OutputFolder | None = None,
) -> None:
    """Train the feature encoder and the one-step refiner on the training split of a data set.

    Leaves `latent_mae` and `refiner` (safetensors that describe themselves, averaged weights), `training` (table
    `refine.training`: network, step, metric, value) and `timing` (table `refine.training.timing`). `start` is the file
    of a refiner to go on from. Checkpoints in `partial` are resumed from; under torchrun every process works on batches
    of its own and the first one writes.
    """
    check_settings(settings)
    data, book = open_dataset(samples, about), load_codebook(codebook)
    if book.codes > settings.codes:
        raise InputError(
            f"refine.codes: {settings.codes}, but {codebook} has {book.codes} pseudo-classes; set as many, or remake it"
        )
    drawn = samples_of(data, "train", read_codes(assignments, data), settings)
    began = [Path(start)] if start else []
    inputs = [file_digest(path) for path in (samples, about, codebook, assignments, *began)]
    parts = unfinished(partial, refiner, {"inputs": inputs, "settings": settings})
    torch.manual_seed(settings.seed)
    with deterministic(), tensor_cores(), process_group() as device:
        log.info("refine: %d samples on %s, process %d of %d", len(drawn.rows), device, rank() + 1, world_size())
        encoder, mae_history = train_latent_mae(drawn, settings, parts / "latent_mae", device)
        eyes = encoder_of(settings, data, encoder, device) if settings.objective != "paired" else encoder
        network, history = train_refiner(drawn, eyes, settings, start, parts / "refiner", device)
        if rank() != 0:
            return
        save_network(encoder, torch.from_numpy(data.mean), torch.from_numpy(data.std), latent_mae)
        save_refiner(network, settings, data, book, refiner)
        write_histories({"latent_mae": mae_history, "refiner": history}, training, timing)
        discard(parts)


def check_settings(settings: Refine) -> None:
    """Refuse settings that no training could follow, before anything loads."""
    check_features(settings.features)
    if settings.width % (2 * settings.heads):
        raise InputError(
            f"refine.heads: the width {settings.width} is no even multiple of {settings.heads} heads; choose a divisor"
        )
    if settings.mae_width % 8:
        raise InputError(f"refine.mae_width: {settings.mae_width} is not a multiple of 8 (the groups of its norms)")
    if settings.mask_ratio == 0:
        raise InputError("refine.mask_ratio: 0 hides nothing that the autoencoder could fill in; raise it")
    if settings.generated_per_class < 2:
        raise InputError("refine.generated_per_class: needs at least 2; generated samples repel each other")


def read_codes(assignments: Path, data: Dataset) -> np.ndarray:
    """Pseudo-class of every sample, (samples,); refuses a table of other samples."""
    table = read_table(assignments, "refine.assignments")
    if table["key"].to_list() != data.samples["key"].to_list():
        raise InputError(f"{assignments}: lists other samples than the data set; run refine-codebook again")
    return table["code"].to_numpy()


def train_latent_mae(
    samples: Samples, settings: Refine, folder: Path, device: torch.device
) -> tuple[LatentMAE, list[dict[str, float]]]:
    """The masked autoencoder of the values, frozen, and its history."""
    data = samples.data
    config = LatentMAEConfig(data.channels, len(data.space), settings.patch, settings.mae_width, settings.mae_scales)
    network = LatentMAE(config).to(device)

    def loss(forward: nn.Module, batch: tuple[Tensor, Tensor], logged: bool) -> tuple[Tensor, dict[str, float]]:
        latents, scores = (part.to(device) for part in batch)
        mask = patch_mask(scores, settings.mask_ratio, samples.grid, settings.patch)
        with autocast(settings, device):
            prediction = forward(latents, mask)
        return mae_loss(prediction.float(), latents, mask), {}

    loop = loop_settings(settings, settings.mae_steps, settings.mae_batch, settings.mae_learning_rate)
    batches = bound(load_batches, draw_latents, (samples, settings), settings.workers)
    history = fit("latent_mae", network, loss, loop, folder, settings.grad_accum, batches)
    return network.requires_grad_(False), history


def train_refiner(
    samples: Samples,
    encoder: Encoder | LatentMAE,
    settings: Refine,
    start: str,
    folder: Path,
    device: torch.device,
) -> tuple[Refiner, list[dict[str, float]]]:
    """The refiner, trained on the objective of the settings, and its history."""
    network = Refiner(refiner_config(samples.data, settings)).to(device)
    if start:
        load_weights(network, load_refiner(Path(start)).network.state_dict(), Path(start))
    grid = samples.grid

    def loss(forward: nn.Module, batch: Batch, logged: bool) -> tuple[Tensor, dict[str, float]]:
        batch = to_device(batch, device)
        with autocast(settings, device):
            refined = apply(forward, batch.inputs, grid, settings.clamp_keys).float()

        @cache
        def features() -> tuple[Features, dict[str, Targets]]:
            generated = features_of(encoder, unpatchify(refined, grid, settings.patch), settings)
            return generated, real_targets(encoder, batch, settings)

        value, numbers = OBJECTIVES[settings.objective](Step(refined, batch, features, logged), settings)
        return value, numbers | (errors(batch, refined.detach()) if logged else {})

    size = settings.classes_per_step * settings.generated_per_class
    loop = loop_settings(settings, settings.steps, size, settings.learning_rate)
    batches = bound(load_batches, draw_batch, (samples, settings), settings.workers)
    return network, fit("refiner", network, loss, loop, folder, settings.grad_accum, batches)


def encoder_of(settings: Refine, data: Dataset, trained: LatentMAE, device: torch.device) -> Encoder | LatentMAE:
    """What the drifting loss looks through: the autoencoder trained here, or the encoder of the settings."""
    if is_trained_here(settings):
        return trained
    return load_encoder(settings, data.adapter, data.mean, data.std, device)


def refiner_config(data: Dataset, settings: Refine) -> RefinerConfig:
    """The shape of a refiner of a data set."""
    sizes = settings.width, settings.depth, settings.heads, settings.codes
    return RefinerConfig(data.channels, len(data.space), settings.patch, *sizes, data.text_width if data.words else 0)


def autocast(settings: Refine, device: torch.device) -> Any:
    """Networks in bfloat16 where the settings say so."""
    return torch.autocast(device.type, torch.bfloat16) if settings.dtype == "bfloat16" else nullcontext()


def loop_settings(settings: Refine, steps: int, batch: int, learning_rate: float) -> LoopSettings:
    """The loop's settings for one of the networks: warm-up over a tenth of the steps, at most 500."""
    return LoopSettings(
        steps=steps,
        batch=batch,
        lr=learning_rate,
        warmup=min(max(steps // 10, 1), 500),
        decay=settings.decay,
        ema=settings.ema,
        clip=2.0,
        seed=settings.seed,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        muon=settings.optimizer == "muon",
    )


@torch.no_grad()
def errors(batch: Batch, refined: Tensor) -> dict[str, float]:
    """Mean squared errors to the clean tokens of a batch, over all tokens and over the missing ones."""
    numbers: dict[str, float] = {}
    missing = ~batch.inputs.keys
    for name, tokens in (("interp/mse", batch.inputs.tokens), ("refined/mse", refined)):
        squared = (tokens - batch.clean).square().mean(-1)
        numbers |= {f"{name}_all": float(squared.mean()), f"{name}_missing": float(squared[missing].mean())}
    return numbers


@torch.no_grad()
def real_targets(encoder: Encoder | LatentMAE, batch: Batch, settings: Refine) -> dict[str, Targets]:
    """Features of the real samples of a batch by name, with the weight of the unconditional ones."""
    banks = batch.banks
    assert banks is not None  # drawn for every objective that asks for features
    classes = len(banks.alpha)
    features = features_of(encoder, torch.cat([banks.positives, banks.unconditional]), settings)
    weight = unconditional_weight(banks.alpha, settings.generated_per_class, len(banks.unconditional))
    split = len(banks.positives)
    return {
        name: Targets(
            by_class(f[split:].expand(classes, -1, -1, -1).flatten(0, 1), classes),
            by_class(f[:split], classes),
            weight,
            banks.own,
            banks.sources,
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
    made_on = {"world_size": world_size(), "device": hardware_id(), "peak_memory_bytes": peak_memory_bytes()}
    seconds = [
        {"network": network, "step": record["step"], "seconds": record["seconds"]} | made_on
        for network, history in histories.items()
        for record in history
    ]
    write_table(pl.DataFrame(seconds, schema=TIMING.schema()), timing, TIMING)


def peak_memory_bytes() -> int:
    """Most memory that this process held at once: what torch allocated of its GPU, else of the host's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
