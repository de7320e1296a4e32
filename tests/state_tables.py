"""Tables `trajectories` and `embeddings` with vectors of the test's choosing."""

from pathlib import Path

import numpy as np
import polars as pl

from loose_tables import write_loosely

Paths = tuple[list[Path], list[Path]]


def write_states(
    folder: Path,
    vectors: dict[tuple[str, str, str], np.ndarray],
    modality: dict[str, str],
    loops: dict[tuple[str, str], int] | None = None,
    without: set[tuple[str, str, str, int]] = frozenset(),
    derived: set[str] = frozenset(),
) -> Paths:
    """Write the tables for `vectors` by (embedder, network, run as `prompt/seed`): arrays (states, d).

    Runs (network, run) of `loops` ended by coming back to the state so many invocations before; the others were cut.
    Runs `derived` (as `prompt/seed`) have derived seeds. The trajectories have the states `without` (embedder, network, run, sequence number), the embeddings do not. The
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
                row |= {"loop_length": (loops or {}).get((network, run)), "derived_seed": run in derived}
                trajectories.setdefault(network, []).append(key | row)
            record = {"embedder": embedder, "modality": kind, "vector": np.asarray(vector, np.float32).tolist()}
            if (embedder, network, run, number) not in without:
                embeddings.setdefault((embedder, network), []).append(key | record)
    tables, embedded = [], []
    for network, rows in trajectories.items():
        tables.append(folder / f"trajectories/{network}/shard-00000.parquet")
        types = {"sequence_number": pl.Int32, "output_text": pl.String, "loop_length": pl.Int32}
        write_loosely(pl.DataFrame(rows, schema_overrides=types), tables[-1], "trajectories")
    for (embedder, network), rows in embeddings.items():
        embedded.append(folder / f"embeddings/{embedder}/{network}-00000.parquet")
        types = {"sequence_number": pl.Int32, "vector": pl.List(pl.Float32)}
        write_loosely(pl.DataFrame(rows, schema_overrides=types), embedded[-1], "embeddings")
    return embedded, tables


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
