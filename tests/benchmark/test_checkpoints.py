"""Quantized checkpoints: what is saved loads again, on nothing but the file, and paints the same picture to the bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ditscope.benchmark import checkpoints
from ditscope.benchmark.checkpoints import load_checkpoint, quantize, save_checkpoint
from ditscope.core.errors import InputError
from ditscope.models.emulate.inputs import measured
from ditscope.models.quantize import apply_scheme, stored_bytes
from ditscope.models.sampling import sample
from ditscope.models.settings import Scheme
from tiny_models import tiny_generator

SCHEMES = {
    "base": Scheme("base"),
    "int8": Scheme("int8-weight-only"),
    "int8-dynamic": Scheme("int8-dynamic", fuse_qkv=True),
    "fp8": Scheme("fp8-weight-only"),
    "int3": Scheme("intx-weight-only", bits=3, group_size=8),
    "int4-dynamic": Scheme("int8-dynamic-intx", bits=4, group_size=8),
    "partly": Scheme("int8-weight-only", min_weights=1000),
    "plan": Scheme("plan", plan="b"),
    "nearest": Scheme("nearest", bits=4, group_size=8, activations="int4"),
    "svdquant": Scheme("svdquant", bits=4, group_size=8, rank=2, activations="int8"),
}


def uniform_inputs(layers, hessian):
    """What a calibration set would tell of layers whose inputs are all alike."""
    return {name: measured(torch.ones(3, layer.in_features), hessian) for name, layer in layers.items()}


def picture(generator):
    return sample(generator, ["a", "b"], ["", ""], [1, 2])


@pytest.mark.parametrize("kind", ["flux", "sd3"])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_checkpoint_gives_identical_output(kind, name, tmp_path):
    generator, scheme, plan = tiny_generator(kind), SCHEMES[name], tmp_path / "plan.json"
    block = "transformer_blocks.0.attn.to_q"
    plan.write_text(json.dumps({"schema_version": "1", "group_size": 8, "layers": {block: 3, "proj_out": 6}}))
    apply_scheme(generator.pipe.transformer, scheme, plan if name == "plan" else None, uniform_inputs)
    before, size = picture(generator), stored_bytes(generator.pipe.transformer)
    save_checkpoint(generator.pipe.transformer, scheme, tmp_path / "w.safetensors")
    generator.pipe.transformer = load_checkpoint(tmp_path / "w.safetensors")
    assert torch.equal(picture(generator), before)
    assert stored_bytes(generator.pipe.transformer) == size
    save_checkpoint(generator.pipe.transformer, scheme, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_the_stage_quantizes_and_saves(tmp_path, monkeypatch):
    generator = tiny_generator("flux")
    monkeypatch.setattr(checkpoints, "load_generator", lambda name, model: generator)
    quantize("tiny", generator.entry, SCHEMES["int8"], tmp_path / "new" / "w.safetensors")
    assert torch.equal(
        load_checkpoint(tmp_path / "new" / "w.safetensors").proj_out.weight.qdata,
        generator.pipe.transformer.proj_out.weight.qdata,
    )
    with pytest.raises(InputError, match=r"models\.tiny: fp8-dynamic-row needs CUDA"):
        quantize("tiny", generator.entry, Scheme("fp8-dynamic-row"), tmp_path / "no.safetensors")


def test_layers_that_stay_are_named_and_a_file_in_full_precision_is_not_written(tmp_path, monkeypatch):
    generator, file = tiny_generator("flux"), tmp_path / "w.safetensors"
    monkeypatch.setattr(checkpoints, "load_generator", lambda name, model: generator)
    for scheme, message in (
        (Scheme("intx-weight-only", bits=4, group_size=48), "quantizes none of the .* rows that group_size does not"),
        (Scheme("int8-weight-only", min_weights=10**9), "quantizes none of the .* below min_weights 1000000000"),
        (Scheme("int8-weight-only", skip_layers=["*nrom*"]), "skip_layers: `.nrom.` matches none of the"),
        (Scheme("base"), "`base` quantizes nothing"),
    ):
        with pytest.raises(InputError, match=f"^schemes: .*{message}"):
            quantize("tiny", generator.entry, scheme, file)
        assert not file.exists()
    quantize("tiny", generator.entry, Scheme("intx-weight-only", bits=4, group_size=32), file)
    with safe_open(file, "pt") as opened:
        left = json.loads(opened.metadata()["ditscope"])["full_precision"]
    linear = [m for m in generator.pipe.transformer.named_modules() if isinstance(m[1], nn.Linear)]
    assert left == [name for name, layer in linear if layer.in_features % 32] and 0 < len(left) < len(linear)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no quantized checkpoint of ditscope"):
        load_checkpoint(path)
    generator = tiny_generator("flux")
    apply_scheme(generator.pipe.transformer, SCHEMES["int8"])
    save_checkpoint(generator.pipe.transformer, SCHEMES["int8"], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="truncated safetensors"):
        load_checkpoint(path)
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    record = json.loads(metadata["ditscope"])
    for change, message in (({"schema_version": "0"}, "schema version 0"), ({"class": "Linear"}, "no transformer")):
        save_file(tensors, path, {"ditscope": json.dumps(record | change)})
        with pytest.raises(InputError, match=message):
            load_checkpoint(path)
