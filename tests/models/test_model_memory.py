"""Host memory of jobs that load models: from the registry entry or the files, and asked for by every such rule."""

import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ditscope.models.memory import host_memory_mb, weight_bytes
from ditscope.models.settings import Embedder, Model
from workflow import ROOT

LOADS = ("model_files(", "model_params(", "embedder_files(", "embedder_params(", "chosen_embedders(")


def rules() -> dict[str, str]:
    """The text of each rule by name."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    parts = re.split(r"^rule (\w+):$", text, flags=re.MULTILINE)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: re.split(r"^(?=\S)", body.lstrip("\n"), flags=re.MULTILINE)[0] for name, body in bodies.items()}


def test_every_rule_that_loads_a_model_asks_for_its_memory():
    loading = {name: body for name, body in rules().items() if any(call in body for call in LOADS)}
    assert len(loading) >= 11 and "image_shard" in loading and "plan" not in loading
    assert {name for name, body in loading.items() if not re.search(r"mem_mb=.*memory\(", body)} == set()


def hub_entries() -> dict[str, dict]:
    """The hub models of the config and of every overlay over it, by overlay, registry and name."""
    entries = {}
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    for path in [ROOT / "config.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))]:
        overlay = yaml.safe_load(path.read_text())
        for registry in ("models", "embedders"):
            for name in base[registry] | (overlay.get(registry) or {}):
                entry = base[registry].get(name, {}) | (overlay.get(registry) or {}).get(name, {})
                if "revision" in entry:
                    entries[f"{path.stem} {registry}.{name}"] = entry
    return entries


def test_hub_models_say_what_they_take():
    """Before a download only the entry knows. Billions of parameters at two bytes or, as stored, four."""
    entries = hub_entries()
    assert len(entries) > 15 and all(entry.get("memory_mb") for entry in entries.values())
    bounds = {
        "FLUX.1": (33_000, 36_000),  # 11.9 + 4.8 + 0.1 billion at 2 bytes
        "stable-diffusion-3-medium": (5_500, 17_000),  # 2.1 + 0.8 billion, and T5's 4.8
        "blip2-opt-2.7b": (7_500, 16_000),  # 3.7 billion
        "sdxl-turbo": (7_000, 15_000),  # 3.5 billion
        "Wan2.1": (13_000, 30_000),  # 1.4 billion and UMT5's 5.7, stored at 4 bytes
    }
    for where, entry in entries.items():
        for part, (low, high) in bounds.items():
            if part in entry["source"]:
                assert low <= entry["memory_mb"] <= high, where
        if "diffusion-3" in entry["source"]:
            assert (entry["memory_mb"] > 15_000) == entry.get("use_t5", True), where


def test_memory_of_a_folder_is_that_of_what_is_loaded():
    entry = Model("sd3", str(ROOT / "models/shapes-sd3"))
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    numbers = {part: sum(t.numel() for t in weights(part).values()) for part in parts}
    everything, t5 = sum(numbers.values()), numbers["text_encoder_3"]
    stored = sum(p.stat().st_size for p in (ROOT / "models/shapes-sd3").rglob("*.safetensors"))
    folder = ROOT / "models/shapes-sd3"
    assert weight_bytes(folder / "model_index.json", 4) == pytest.approx(max(4 * everything, stored), rel=0.01)
    without = weight_bytes(folder / "model_index.json", 4, False)
    assert weight_bytes(folder / "model_index.json", 4) - without == pytest.approx(4 * t5, rel=0.01)
    assert host_memory_mb(entry) == -(-weight_bytes(folder / "model_index.json", 4) // 1_000_000)


def weights(part: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (ROOT / "models/shapes-sd3" / part).glob("*.safetensors")
    return load_file(file)


def test_half_precision_files_count_as_loaded_and_variants_not_at_all(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.zeros(1_000_000, dtype=torch.float16)}, tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(1_000_000, dtype=torch.float16)}, tmp_path / "model.fp16.safetensors")
    assert host_memory_mb(Model("blip", str(tmp_path), dtype="float32")) == 4
    assert host_memory_mb(Model("blip", str(tmp_path), dtype="float16")) == 3  # 2 MB and a header, rounded up
    assert host_memory_mb(Embedder("clip", str(tmp_path))) == 4
    assert host_memory_mb(Model("blip", str(tmp_path), memory_mb=700)) == 700
    assert host_memory_mb(Model("blip", str(tmp_path), dtype="float16", memory_mb=700), "float32") == 1400
    assert host_memory_mb(Model("blip", str(tmp_path), dtype="float16"), "float32") == 4
    assert host_memory_mb(Embedder("minilm")) == 0


def test_a_hub_model_that_is_not_there_names_the_file_that_its_download_makes(tmp_path, monkeypatch):
    """Snakemake then looks again before the job starts: it does so where the name is among the job's inputs."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        host_memory_mb(Model("flux", "org/name", revision="abc"))
    assert str(error.value.filename) == "resources/models/org--name@abc/model_index.json"
