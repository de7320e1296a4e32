"""Tables `trajectories` and `embeddings` with vectors of the test's choosing."""

from pathlib import Path

import numpy as np
import polars as pl

from ditscope.embed.tables import SEEDS
from loose_tables import write_loosely

DERIVED = 1000  # seeds of runs from here on are derived ones
Paths = tuple[list[Path], list[Path]]


def write_states(
    folder: Path,
    vectors: dict[tuple[str, str, str], np.ndarray],
    modality: dict[str, str],
    loops: dict[tuple[str, str], int] | None = None,
    without: set[tuple[str, str, str, int]] = frozenset(),
) -> Paths:
    """Write the tables for `vectors` by (embedder, network, run as `prompt/seed`): arrays (states, d).

    Runs (network, run) of `loops` ended by coming back to the state so many invocations before; the others were cut.
    The trajectories have the states `without` (embedder, network, run, sequence number), the embeddings do not. The
    states of a text embedder are the prompt (-1) and the captions (1, 3, ...), those of an image embedder 0, 2, ...
    """
    trajectories: dict[str, list[dict]] = {}
    embeddings: dict[tuple[str, str], list[dict]] = {}
    seen = set()
    for (embedder, network, run), x in vectors.items():
        prompt_id, seed = run.split("/")
        run_id = f"{network}:{run}"
        kind = modality[embedder]
        for i, vector in enumerate(x):
            number = 2 * i - (kind == "text")
            key = {"network": network, "run_id": run_id, "sequence_number": number}
            if (run_id, number) not in seen:
                seen.add((run_id, number))
                text = f"{prompt_id} {number}" if kind == "text" else None
                # An invocation may have a seed of its own; the run's is that of the prompt's row.
                row = {"prompt_id": prompt_id, "seed": int(seed) if i == 0 else 1000 + i, "output_text": text}
                row |= {"loop_length": (loops or {}).get((network, run)), "derived_seed": int(seed) >= DERIVED}
                row |= {"prompt": prompt_id, "type": kind.upper(), "output_key": f"{run_id} {number}"}
                row |= dict(zip(("entry", "model", "scheme"), entry_of(network, kind, number), strict=True))
                trajectories.setdefault(network, []).append(key | row)
            record = {"embedder": embedder, "modality": kind, "vector": np.asarray(vector, np.float32).tolist()}
            if (embedder, network, run, number) not in without:
                embeddings.setdefault((embedder, network), []).append(key | record)
    tables, embedded = [], []
    for network, rows in trajectories.items():
        tables.append(folder / f"trajectories/{network}/shard-00000.parquet")
        types = {"sequence_number": pl.Int32, "output_text": pl.String, "loop_length": pl.Int32}
        types |= dict.fromkeys(("entry", "model", "scheme"), pl.String)
        write_loosely(pl.DataFrame(rows, schema_overrides=types), tables[-1], "trajectories")
    for (embedder, network), rows in embeddings.items():
        embedded.append(folder / f"embeddings/{embedder}/{network}-00000.parquet")
        types = {"sequence_number": pl.Int32, "vector": pl.List(pl.Float32)}
        write_loosely(pl.DataFrame(rows, schema_overrides=types), embedded[-1], "embeddings")
    return embedded, tables


def entry_of(network: str, kind: str, number: int) -> tuple[str | None, str | None, str | None]:
    """Entry, model and scheme of a state: a network `x:int4` is quantized, with the generator of `x`."""
    if number < 0:
        return None, None, None
    model, _, scheme = network.partition(":")
    if kind == "text":
        return "captioner", "captioner", "base"
    return f"{model}:{scheme}" if scheme else model, model, scheme or "base"


def random_states(seed: int = 0, length: int = 8, d: int = 6) -> dict[tuple[str, str, str], np.ndarray]:
    """Random walks of two networks, three prompts and two seeds under two text embedders and one of images."""
    rng = np.random.default_rng(seed)
    return {
        (embedder, network, f"p{prompt}/{run}"): 1 + rng.normal(size=(length, d)).cumsum(axis=0)
        for embedder in ("text-a", "text-b", "image")
        for network in ("net-a", "net-b")
        for prompt in range(3)
        for run in range(2)
    }


MODALITY = {"text-a": "text", "text-b": "text", "image": "image"}


def grouped_states(x: np.ndarray, network: str = "n", kind: str = "fixed", embedder: str = "e") -> pl.DataFrame:
    """Generated states of runs (prompts, seeds, states, d), as the claims about groups of runs take them."""
    prompts, seeds, length, _ = x.shape
    places = [(p, s, t) for p in range(prompts) for s in range(seeds) for t in range(length)]
    p, s, t = np.array(places).T
    return pl.DataFrame(
        {
            "embedder": embedder, "network": network, "seeds": pl.Series([kind] * len(t), dtype=SEEDS.dtype()),
            "run_id": [f"{network}:p{a:03d}/{b:03d}" for a, b in zip(p, s, strict=True)],
            "prompt_id": [f"p{a:03d}" for a in p], "seed": s, "sequence_number": pl.Series(2 * t + 1, dtype=pl.Int32),
            "position": t, "continued": False, "vector": x.reshape(len(t), -1).astype(np.float32).tolist(),
        },
        schema_overrides={"vector": pl.List(pl.Float32)},
    )  # fmt: skip


def autoregressive(rng: np.random.Generator, *shape: int, phi: float = 0.7) -> np.ndarray:
    """Stationary series (..., states, d) of variance 1 and coefficient `phi`."""
    x = rng.normal(size=shape)
    for t in range(1, shape[-2]):
        x[..., t, :] = phi * x[..., t - 1, :] + np.sqrt(1 - phi**2) * x[..., t, :]
    return x
