"""Pooled statistics of block outputs: many small tensors at once, away from the thread that samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ditscope.core.patterns import block_index, block_type

STATISTICS = ("mean", "std", "rms", "absmax", "mean_token_norm")
FRAME_STATISTICS = (*STATISTICS, "cosine_to_previous")
HALVES = ("cond", "uncond")
TOGETHER_BYTES = 512_000  # of streams pooled in one call: few calls, and what they read stays in a core's cache
# Step, block, stream (img, txt, joint, or txt@uncond: that half alone), tokens (batch, tokens, width).
Stream = tuple[int, str, str, Tensor]
# Step, block, half (uncond: that half alone; else empty); tokens; FRAME_STATISTICS (batch, frames, 6) in host memory.
FrameArrays = tuple[tuple[int, str, str], int, Tensor]
Arrays = tuple[list[tuple[int, str, str]], np.ndarray, np.ndarray]  # step, block, stream; values; norms of tokens


@dataclass(frozen=True)
class Pooled:
    """Statistics of streams of one shape; complete once the copies to the host have come."""

    streams: list[tuple[int, str, str]]  # step, block and stream
    values: Tensor  # (streams, batch, 5) in host memory
    norms: Tensor  # (streams, batch, tokens)


def pool(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """STATISTICS of tokens (batch, tokens, width), as (batch, 5), and the norm of each token, as (batch, tokens).

    In float32; std divides by n. Written with the reductions that are vectorized on a CPU: `std` and `aminmax` are not.
    """
    tokens = tokens.float()
    flat, norms = tokens.flatten(1), torch.linalg.vector_norm(tokens, dim=2)
    mean, root = flat.mean(1), flat.shape[1] ** 0.5
    std = torch.linalg.vector_norm(flat - mean[:, None], dim=1) / root
    rms = torch.linalg.vector_norm(norms, dim=1) / root
    return torch.stack([mean, std, rms, flat.abs().amax(1), norms.mean(1)], dim=1), norms


def pool_frames(tokens: Tensor, frames: int) -> Tensor:
    """FRAME_STATISTICS (batch, frames, 6) of image tokens (batch, tokens, width) that are of `frames` in turn.

    The last is the mean over places of the cosine between a token and the one of the frame before; 0 of the first.
    """
    parted = tokens.float().unflatten(1, (frames, -1))
    values, _ = pool(parted.flatten(0, 1))
    cosines = torch.cosine_similarity(parted[:, 1:], parted[:, :-1], dim=3).mean(2)
    return torch.cat([values.unflatten(0, (-1, frames)), torch.nn.functional.pad(cosines, (1, 0))[..., None]], dim=2)


def pool_streams(streams: Sequence[Stream], copies: Any = None) -> list[Pooled]:
    """Pool streams, small ones of one shape together; `copies` is the CUDA stream that results are copied on."""
    shapes: dict[tuple[int, ...], list[Stream]] = {}
    for stream in streams:
        shapes.setdefault(tuple(stream[3].shape), []).append(stream)
    pooled = []
    for (batch, *_), alike in shapes.items():
        size = max(1, TOGETHER_BYTES // max(1, alike[0][3].nbytes))
        for group in (alike[i : i + size] for i in range(0, len(alike), size)):
            tokens = group[0][3] if len(group) == 1 else torch.cat([t for *_, t in group])
            values, norms = (t.unflatten(0, (len(group), batch)) for t in pool(tokens))
            pooled.append(Pooled([stream[:3] for stream in group], to_host(values, copies), to_host(norms, copies)))
    return pooled


def arrays(pooled: Pooled, model: str) -> Arrays:
    """Streams, values and norms; stops the run where a block put out NaN or Inf."""
    # Copies: what stays is allocated on this thread, the one that writes. Small blocks that stay among the model's own
    # tensors would leave holes that nothing fits, and glibc's heap would grow from step to step.
    values, norms = pooled.values.numpy().copy(), pooled.norms.numpy().copy()
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        step, block, _ = pooled.streams[int(finite.argmin())]
        raise FloatingPointError(f"{model}: {block} put out NaN or Inf at step {step}")
    return pooled.streams, values, norms


def statistics_table(
    pooled: Sequence[Arrays],
    record: dict,
    sigmas: Sequence[float],
    depths: dict[str, int],
) -> pl.DataFrame:
    """The table `capture_statistics` of a run: a row for each step, block, stream and half of the batch."""
    rows: list[dict[str, Any]] = []
    norms: list[np.ndarray] = []
    for streams, values, token_norms in pooled:
        for (step, block, stream), halves, lengths in zip(streams, values, token_norms, strict=True):
            stream, _, alone = stream.partition("@")  # one half, whose tokens are not as many as the other's
            for half, numbers, length in zip([alone] if alone else HALVES, halves, lengths, strict=False):
                rows.append(
                    place_of(record, sigmas, step, block, depths[block])
                    | {"stream": stream, "half": half, "tokens": len(length)}
                    | dict(zip(STATISTICS, numbers.tolist(), strict=True))
                )
                norms.append(length)
    table = pl.DataFrame(rows).with_columns(pl.Series("token_norms", norms).cast(pl.List(pl.Float32)))
    return table.sort("step", "depth", "stream", "half")


def frames_table(
    pooled: Sequence[FrameArrays], record: dict, sigmas: Sequence[float], blocks: Sequence[str]
) -> pl.DataFrame:
    """The table `capture_frames` of a run: a row for each step, block, half of the batch and latent frame."""
    rows: list[dict[str, Any]] = []
    for (step, block, alone), tokens, values in pooled:
        place = place_of(record, sigmas, step, block, blocks.index(block))
        for half, frames in zip([alone] if alone else HALVES, values.tolist(), strict=False):
            for frame, numbers in enumerate(frames):
                own = dict(zip(FRAME_STATISTICS, numbers, strict=True))
                own["cosine_to_previous"] = own["cosine_to_previous"] if frame else None
                rows.append(place | {"half": half, "frame": frame, "tokens": tokens // len(frames)} | own)
    return pl.DataFrame(rows, infer_schema_length=None).sort("step", "depth", "half", "frame")


def place_of(record: dict, sigmas: Sequence[float], step: int, block: str, depth: int) -> dict[str, Any]:
    """Where in a run and in the network a row is."""
    return {
        "generation_id": record["generation_id"],
        "prompt_id": record["prompt_id"],
        "model": record["model"],
        "step": step,
        "sigma": sigmas[step],
        "block": block,
        "block_type": block_type(block),
        "block_index": block_index(block),
        "depth": depth,
    }


def to_host(tensor: Tensor, stream: Any = None) -> Tensor:
    """A copy of a tensor in host memory.

    From the GPU of `stream` it is made on that stream, into pinned memory, while the GPU goes on computing: it is whole
    once the stream has come so far.
    """
    if stream is None or tensor.device != stream.device:
        return tensor.to("cpu", copy=True)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return host
