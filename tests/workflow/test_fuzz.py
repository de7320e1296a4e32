"""Whatever is in a file, its reader reads it or refuses it with one line; it writes, runs and unpickles nothing.

`DITSCOPE_FUZZ_SECONDS` sets the seconds of each reader (3), `DITSCOPE_FUZZ_SEED` the mutations.
"""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import fuzz
from ditscope.calibrate.files import load_calibration, read_sample
from ditscope.capture.files import read_metadata
from ditscope.config_files import read_config
from ditscope.core.checksums import read_record
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import write_table
from ditscope.models.folders import check_safetensors
from ditscope.prompts.files import read_prompts
from ditscope.refine.dataset import open_dataset
from ditscope.refine.shard_index import entries
from ditscope.refine.tables import SAMPLES
from ditscope.workflow.doctor import open_study
from ditscope.workflow.progress import stages_of
from workflow import ROOT

SECONDS = float(os.environ.get("DITSCOPE_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("DITSCOPE_FUZZ_SEED", "1"))

pytestmark = pytest.mark.timeout(600 + 20 * SECONDS)


def written(write, *arguments) -> bytes:
    """The bytes that a writer leaves in a file."""
    path = Path(write.__name__ + ".seed")
    write(*arguments, path)
    data = path.read_bytes()
    path.unlink()
    return data


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


SAMPLE = {
    "x": np.zeros((1, 4, 4, 2), np.float32),
    "timestep": np.float32(1000),
    "sigma": np.float32(1),
    "conditioning": np.zeros((1, 3, 4), np.float32),
    "pooled_conditioning": np.zeros((1, 4), np.float32),
    "step_index": np.int64(0),
    "image_id": np.int64(0),
}
PACKED = {key: value for key, value in SAMPLE.items() if key in ("conditioning", "pooled_conditioning", "image_id")} | {
    "xs": np.zeros((1, 4, 4, 2), np.float32),
    "timesteps": np.full(1, 1000, np.float32),
    "sigmas": np.ones(1, np.float32),
    "step_indices": np.zeros(1, np.int64),
}
MANIFEST = {"schema_version": "1", "n_completed": 1, "num_steps": 1, "sample_files": ["0.npz"]}
PLAN = {
    "schema_version": "1",
    "targets": {"prompts": ["results/x/prompts/shard-00000.parquet"]},
    "rules": {"prompt_shard": {"benchmarks": [], "outputs": ["prompts/shard-*.parquet"], "gpu": False}},
    "config": {"experiment": "x", "models": {"m": {"family": "flux", "source": "s"}}},
}
METADATA = {"schema_version": "1", "request_hash": "00" * 16, "files": {"step_000.safetensors": {"bytes": 1}}}
RECORD = {"schema_version": "1", "rule": "r", "files": {"a/b.tar": {"sha256": "0" * 64, "bytes": 3}}}
TENSORS = json.dumps({"__metadata__": {"a": "b"}, "w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()


CLIP = {"__key__": "k", "json": {"a": 1}, "prompt.txt": b"p", "embed.npy": np.zeros((2, 3), np.float16)}
DATA = {
    "kind": "refine.data", "schema_version": "1", "folder": "", "shape": [2, 4, 4], "mean": [0.0, 0.5],
    "std": [1.0, 2.0], "samples": {"train": 0, "held-out": 0}, "words": 0, "text_width": 0, "dtype": "float16",
    "text_dtype": "", "adapter": {"kind": "pixels"}, "text": {},
}  # fmt: skip


def tensor() -> bytes:
    import torch

    torch.save(torch.zeros(2, 3), buffer := io.BytesIO())
    return buffer.getvalue()


def read_data(file: Path) -> None:
    samples = file.parent.parent / "samples.parquet"
    if not samples.exists():
        write_table(pl.DataFrame(schema=SAMPLES.schema()), samples, SAMPLES)
    open_dataset(samples, file)


def read_samples(file: Path) -> None:
    for reference in load_calibration(file.parent).samples:
        read_sample(reference)


def read_whole_plan(file: Path) -> None:
    read_plan(file.parent)
    stages_of(file.parent)
    open_study(file.parent)


# name: (file, reader, seeds)
TARGETS = {
    "prompt CSV": (
        "prompts.csv",
        read_prompts,
        lambda: [
            b"prompt\na cat\n",
            'prompt_id,prompt,seed,family,negative_prompt\r\na,"a, b",-1,f,n\r\nb,\u00e9,7,,\r\n'.encode("utf-8-sig"),
            (ROOT / "prompts/tiny.csv").read_bytes(),
        ],
    ),
    "NPZ": ("0.npz", read_samples, lambda: [npz(**SAMPLE), npz(**PACKED), npz(is_final=np.bool_(False), **SAMPLE)]),
    "calibration manifest": ("manifest.json", read_samples, lambda: [json.dumps(MANIFEST).encode()]),
    "tar shard": (
        "s.tar",
        lambda file: list(read_tar(file)),
        lambda: [
            written(
                write_tar,
                [{"__key__": "k", "png": b"p" * 700, "json": {"a": 1}, "latent.npy": np.zeros((2, 3), np.float32)}],
            )
        ],
    ),
    "shard of a refiner's data": (
        "s.tar",
        lambda file: list(entries(file)),
        lambda: [written(write_tar, [CLIP]), written(write_tar, [CLIP | {"latent.pth": tensor()}])],
    ),
    "data.json of a refiner": ("data.json", read_data, lambda: [json.dumps(DATA).encode()]),
    "config YAML": (
        "c.yaml",
        lambda file: read_config([file]),
        lambda: [path.read_bytes() for path in sorted((ROOT / "experiments").glob("*.yaml"))] + [b"experiment: x\n"],
    ),
    "plan JSON": ("plan.json", read_whole_plan, lambda: [json.dumps(PLAN).encode()]),
    "safetensors header": (
        "w.safetensors",
        check_safetensors,
        lambda: [struct.pack("<Q", len(TENSORS)) + TENSORS + bytes(8)],
    ),
    "capture metadata": (
        "metadata.json",
        lambda file: read_metadata(file.parent),
        lambda: [json.dumps(METADATA).encode()],
    ),
    "record of checksums": ("r.json", read_record, lambda: [json.dumps(RECORD).encode()]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_reader_reads_or_refuses_in_one_line(name, tmp_path, monkeypatch, record_property):
    filename, read, seeds = TARGETS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    inputs = seeds()
    if name == "calibration manifest":
        (folder / "0.npz").write_bytes(npz(**SAMPLE))
    outcome = fuzz.fuzz(read, folder / filename, inputs, SECONDS, SEED, "" if name == "config YAML" else str(folder))
    print(f"fuzz: {name}: {outcome.executions} inputs, {outcome.read} read, {outcome.refused} refused (seed {SEED})")
    record_property("executions", outcome.executions)
    assert outcome.refused > 0, "no mutation was refused: this reader checks nothing"


def test_the_watch_sees_what_readers_must_not_do(tmp_path):
    import pickle
    import subprocess

    def careless(file: Path) -> None:
        if file.read_bytes() != b"seed":
            {0: lambda: (tmp_path / "out").write_text("x"), 1: lambda: subprocess.run(["true"], check=True)}.get(
                file.stat().st_size % 3, lambda: pickle.loads(b"cos\ngetcwd\n(tR.")
            )()

    (tmp_path / "f").mkdir()
    with pytest.raises(AssertionError, match=r"open|subprocess|pickle"):
        fuzz.fuzz(careless, tmp_path / "f" / "i", [b"seed"], 5, 1)


def test_the_fuzzer_fails_on_any_other_exception(tmp_path):
    def brittle(file: Path) -> None:
        if file.read_bytes() != b"seed":
            raise ValueError("no")

    (tmp_path / "f").mkdir()
    with pytest.raises(AssertionError, match="ValueError"):
        fuzz.fuzz(brittle, tmp_path / "f" / "i", [b"seed"], 5, 1)
    assert (tmp_path / "broken-i").exists()


@pytest.mark.parametrize(
    "text", ["[1, 2]", "experiment: [", "a: !!python/object/apply:os.system [id]", "- " * 3000, "? {a: b}\n: c", "\x00"]
)
def test_hostile_configs_are_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        read_config([tmp_path / "c.yaml"])
    assert "\n" not in str(refused.value)
