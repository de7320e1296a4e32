"""`ditscope model NAME` and `ditscope check --model NAME`: without weights, and one line for what cannot be said."""

import json
from pathlib import Path

import pytest

from ditscope.cli import main
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.models.fit import Machine
from ditscope.models.settings import Model
from ditscope.workflow import described, holding
from ditscope.workflow.described import description, entry_of
from tiny_transformers import TINY
from workflow import ROOT

PIPELINES = {
    "FLUX.2": "Flux2Pipeline", "Z-Image": "ZImagePipeline", "SD3": "StableDiffusion3Pipeline",
    "Qwen-Image": "QwenImagePipeline", "Wan 2.x": "WanPipeline",
}  # fmt: skip
HUB = "Tongyi-MAI/Z-Image-Turbo"


def folder_of(family: str, folder: Path, **index: list) -> Path:
    """A folder with the configs of a tiny model, and no weights."""
    tiny = TINY[family]
    parts = {"transformer": ["diffusers", tiny.name], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    names = {"_class_name": PIPELINES[family]} | parts | {"text_encoder": ["transformers", "Qwen3Model"]} | index
    configs = {
        "model_index.json": names,
        "transformer/config.json": {"_class_name": tiny.name} | tiny.config,
        "scheduler/scheduler_config.json": {"shift": 3.0, "num_train_timesteps": 1000},
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    return folder


def said(family: str, folder: Path) -> str:
    return "\n".join(description("mine", Model("dit", str(folder), guidance=2.0, steps=9), folder_of(family, folder)))


def test_a_model_is_described_by_its_configs_alone(tmp_path):
    text = said("Z-Image", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    for line in (
        "ZImagePipeline", "driven (`family: dit`)",
        "noise_refiner:0-0  noise_refiner, ZImageTransformerBlock -> img",
        "context_refiner:0-0  context_refiner, ZImageTransformerBlock -> txt",
        "main:0-2  layers, ZImageTransformerBlock -> joint (image first)",
        "text is last in layers; the prediction is negated; time is 1 - sigma",
        "FlowMatchEulerDiscreteScheduler, 9 steps: shift 3.0, num_train_timesteps 1000",
        "classifier-free with negative prompts, `guidance_scale` 2.0", "text_encoder: Qwen3Model",
        "512 tokens at most (`max_sequence_length`)",
    ):  # fmt: skip
        assert line in text, text
    assert text.count("attention_q ") == 1 and "modulation" in text


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("FLUX.2", "single:0-1  single_transformer_blocks, Flux2SingleTransformerBlock -> joint (text first)"),
        ("FLUX.2", "embedded, `guidance_scale` 2.0"),
        ("SD3", "driven (`family: sd3` or `dit`)"),
        ("SD3", "joint:0-2  transformer_blocks, JointTransformerBlock -> txt, img"),
        ("Qwen-Image", "classifier-free with negative prompts, `true_cfg_scale` 4.0"),
        ("Wan 2.x", "told       nothing: all of it is found"),
    ],
)
def test_guidance_streams_and_what_is_told(family, line, tmp_path):
    assert line in said(family, tmp_path)


def test_both_transformers_are_described(tmp_path):
    folder_of("Wan 2.x", tmp_path)
    (tmp_path / "transformer_2").mkdir()
    config = (tmp_path / "transformer" / "config.json").read_text()
    (tmp_path / "transformer_2" / "config.json").write_text(config)
    two = folder_of("Wan 2.x", tmp_path, transformer_2=["diffusers", "WanTransformer3DModel"])
    text = "\n".join(description("mine", Model("dit", str(two)), two))
    assert "transformer_2  WanTransformer3DModel" in text and "`guidance_scale_2`" in text


def test_a_hub_model_s_configs_are_fetched_at_its_commit(tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(source: str, revision: str, cache_dir: Path, allow_patterns: list[str]) -> str:
        asked.append((source, revision))
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        return str(folder_of("Z-Image", tmp_path))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    monkeypatch.setattr(described, "snapshot_download", fetch)
    commit = read_config([]).models["z-image-turbo"].revision
    for name in ("z-image-turbo", HUB):
        assert main(["model", name]) == 0
    assert main(["model", "owner/other", "--revision", "0" * 40]) == 0
    assert asked == [(HUB, commit), (HUB, commit), ("owner/other", "0" * 40)]
    assert "z-image-turbo: Tongyi-MAI/Z-Image-Turbo at f332072a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        ("shapes-blip", "", "`blip` is a captioner; only models that make images are described"),
        ("shapes-flx", "", r"`shapes-flx` is not .* did you mean `shapes-flux`"),
        ("owner/name", "", "a hub id is described at a commit: give --revision"),
        ("owner/name", "main", "`main` is no commit"),
    ],
)
def test_names_that_are_no_model_to_describe(name, revision, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        entry_of(name, revision, read_config([]))
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_whole_pipeline(tmp_path):
    entry = Model("dit", str(tmp_path))
    with pytest.raises(InputError, match=r"no model_index.json in it; give the folder of a whole pipeline"):
        description("mine", entry, tmp_path)
    (tmp_path / "modular_model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"a modular pipeline"):
        description("mine", entry, tmp_path)
    folder_of("SD3", tmp_path)
    (tmp_path / "transformer" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"transformer/config.json: not a config in JSON"):
        description("mine", entry, tmp_path)
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "NoSuchModel"}')
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline", "transformer": ["diffusers", "X"]}')
    text = "\n".join(description("mine", entry, tmp_path))
    assert "the installed diffusers has no such pipeline" in text and "NoSuchModel: not in the installed" in text


def test_whether_a_machine_can_hold_a_model(monkeypatch, capsys):
    config = read_config([])
    monkeypatch.setattr(holding, "this_machine", lambda: Machine((24_000,), 64_000, 500_000))
    lines = holding.holding("z-image-turbo", config)
    assert lines[0] == ("z-image-turbo: Tongyi-MAI/Z-Image-Turbo at f332072a, licence apache-2.0, 32.9 GB of files")
    assert lines[-1] == "z-image-turbo: can be held int8 weights, on one GPU"
    assert any("yes  on disk" in line and "32.9 GB to download, 500.0 GB free" in line for line in lines)
    monkeypatch.setattr(holding, "this_machine", lambda: Machine((), 16_000, 10_000))
    lines = holding.holding("flux2-dev", config)
    assert "gated" in lines[0] and lines[-1].endswith("in any way; make room on the disk first")
    lines = holding.holding("flux-dev-krea", config)
    assert lines[0].endswith("33.7 GB of files, no `revision` is set, without which it is refused")
    assert any("33.7 GB to download" in line for line in lines)
    assert main(["check", "--model", "shapes-flux"]) == 0
    assert "shapes-flux: can be held on the CPU" in capsys.readouterr().out
    assert main(["check", "--model", "shapes-flx"]) == 2
    assert "did you mean `shapes-flux`" in capsys.readouterr().err


def test_a_model_of_unknown_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"its files are not here, and its entry says no `parameters`"):
        holding.holding(str(tmp_path), read_config([]))


def test_entries_of_the_hub_say_what_they_are():
    entries = {name: entry for name, entry in read_config([]).models.items() if entry.disk_mb}
    assert {"flux2-klein", "flux2-dev", "qwen-image", "z-image-turbo", "sd3.5-medium", "sd3.5-large", "chroma"} <= set(
        entries
    )
    for name, entry in entries.items():
        assert entry.licence and entry.parameters, name
        assert len(entry.revision) == 40 or name == "flux-dev-krea", name
        half = 2 * sum(n for part, n in entry.parameters.items())
        assert 0.95 * half <= entry.disk_mb <= 2.05 * half, name  # stored in two bytes or four
        without = half - (0 if entry.use_t5 else 2 * entry.parameters.get("text_encoder_3", 0))
        assert 0.95 * without <= entry.memory_mb <= 2.1 * half, name
