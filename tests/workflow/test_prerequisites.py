"""The check of prerequisites says what is so on this machine; the clean-up removes this project's caches only."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ditscope.cli import main
from ditscope.config import Config
from ditscope.config_files import read_config
from ditscope.core.caches import cache_folders, clean_caches
from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.models import hardware
from ditscope.workflow import prerequisites
from ditscope.workflow.prerequisites import compile_states, machine, models, schemes


def by_name(findings):
    return {f.name: f for f in findings}


def test_a_host_without_gpu(monkeypatch):
    monkeypatch.setattr(prerequisites, "nvidia_gpus", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    named = by_name(machine())
    for name in ("GPU", "driver", "capability", "CUDA", "GPU memory"):
        assert not named[name].good, name
    assert named["Python"].good and named["torch"].text == torch.__version__.partition("+")[0]
    assert named["processor"].text.endswith("GB memory")


def test_a_hopper_host(monkeypatch):
    monkeypatch.setattr(prerequisites, "nvidia_gpus", lambda: [{"name": "NVIDIA H200", "driver": "570.86"}])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=141 * 10**9))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    named = by_name(machine())
    assert all(named[name].good for name in ("GPU", "driver", "capability", "CUDA", "GPU memory"))
    assert named["driver"].text == "570.86" and named["GPU memory"].text.startswith("141.0 GB")
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    old = by_name(machine())
    assert not old["CUDA"].good and not old["capability"].good
    chosen = {
        "fp8": {"kind": "fp8-dynamic-row"},
        "int4": {"kind": "int4-weight-only"},
        "x": {"kind": "sparse-2-4-int8"},
    }
    said = by_name(schemes(decode(Config, {"schemes": chosen})))
    assert not said["fp8"].good and "8.9; this GPU has 8.0" in said["fp8"].text
    assert said["int4"].good and not said["x"].good


def test_a_driver_too_old_for_torch(monkeypatch):
    monkeypatch.setattr(prerequisites, "nvidia_gpus", lambda: [{"name": "NVIDIA A100", "driver": "535.104.05"}])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "torch_build", lambda: ("2.13.0+cu130", "13.0"))
    driver = by_name(machine())["driver"]
    expected = "535.104.05: torch 2.13.0+cu130 (CUDA 13.0) needs driver 580 or later, this one is 535.104.05"
    assert not driver.good and driver.text == expected


def test_tokens_are_never_shown(monkeypatch, tmp_path, capsys):
    for name in prerequisites.SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    assert not by_name(machine())["hub token"].good
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    assert by_name(machine())["hub token"].good
    prerequisites.check(read_config([]))
    assert "secret" not in capsys.readouterr().out
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("anything")
    assert by_name(machine())["hub token"].good


def test_schemes_of_the_demo_on_a_cpu(monkeypatch):
    monkeypatch.setattr(prerequisites, "device_at_hand", lambda: "cpu")
    said = by_name(schemes(read_config([])))
    assert said["int8-dynamic"].good and said["int4"].text == "intx-weight-only, 4 bit, on `cpu`"
    gpu = by_name(schemes(decode(Config, {"schemes": {"row": {"kind": "fp8-dynamic-row"}}})))["row"]
    assert not gpu.good and gpu.text == "fp8-dynamic-row needs CUDA compute capability 8.9; this device is `cpu`"


def test_models_that_are_here_and_that_are_not(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "w.safetensors").write_bytes(b"0" * 5_000_000)
    registry = {
        "here": {"family": "flux", "source": str(tmp_path / "here")},
        "gone": {"family": "flux", "source": str(tmp_path / "gone")},
        "hub": {"family": "flux", "source": "a/b", "revision": "0123456789abcdef"},
        "unused": {"family": "flux", "source": "c/d"},
    }
    said = by_name(models(decode(Config, {"models": registry, "generate": {"models": ["here", "gone", "hub"]}})))
    assert list(said) == ["here", "gone", "hub"]
    assert said["here"].good and said["here"].text == "generator, 0.01 GB of weights"
    assert not said["gone"].good and "set `source`" in said["gone"].text
    assert "the first run fetches a/b at 01234567" in said["hub"].text


def test_compile_states_say_what_is_missing(monkeypatch):
    def no_compiler():
        raise RuntimeError("no g++")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    said = by_name(compile_states())
    assert said["eager"].good and not said["full"].good and "g++" in said["full"].text


def project(folder: Path) -> Path:
    (folder / "resources/.cache/features").mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "resources/.cache/features/a.safetensors").write_bytes(b"1" * 100)
    (folder / "resources/.cache/b.json").write_bytes(b"1" * 23)
    for kept in ("resources/models/m/w.safetensors", "results/demo/x.parquet", "scripts/a.py"):
        (folder / kept).parent.mkdir(parents=True, exist_ok=True)
        (folder / kept).write_bytes(b"1")
    (folder / "scripts/__pycache__").mkdir()
    (folder / "scripts/__pycache__/a.pyc").write_bytes(b"1" * 7)
    return folder


def test_clean_caches_removes_caches_only_and_counts_bytes(tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "precious").write_text("mine")
    folder = project(tmp_path / "p")
    (folder / "resources/.cache/link").symlink_to(home)  # inside a cache: the link goes, what it leads to stays
    (folder / ".mypy_cache").symlink_to(home)  # a cache that is a link is left alone
    length = (folder / "resources/.cache/link").lstat().st_size
    clean_caches(folder, dry_run=True)
    assert (folder / "resources/.cache/b.json").exists()
    clean_caches(folder)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{130 + length} bytes in all"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "config.yaml", "resources/models/m/w.safetensors", "results/demo/x.parquet", "scripts/a.py",
    ]  # fmt: skip
    assert (home / "precious").read_text() == "mine" and (folder / ".mypy_cache").is_symlink()
    clean_caches(folder)
    assert capsys.readouterr().out == "0 bytes in all\n"


def test_a_linked_parent_is_not_followed(tmp_path):
    outside = project(tmp_path / "outside")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "config.yaml").touch()
    (folder / "resources").symlink_to(outside / "resources")
    assert cache_folders(folder) == []
    with pytest.raises(InputError, match="no folder of a study"):
        clean_caches(tmp_path)


def test_the_commands_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path / "p"))
    assert main(["clean-caches"]) == 0
    assert "removed resources/.cache: 123 bytes" in capsys.readouterr().out
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert "Machine\n" in out and "Schemes\n" in out and "Compilation\n" in out
