"""LoRA files fused into a model as it is loaded, in the formats of diffusers and kohya."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from any_pipelines import PIPELINES, save_tiny, tiny_generator
from ditscope.config import Config, check_models
from ditscope.core.errors import InputError
from ditscope.models.folders import weights_of
from ditscope.models.loading import load_generator
from ditscope.models.lora import fuse
from ditscope.models.prepare import prepare
from ditscope.models.quantize import nominal_bytes, stored_bytes
from ditscope.models.requests import request_key, request_of
from ditscope.models.sampling import sample
from ditscope.models.settings import Model, Scheme

RUN = ["a red ring"], ["dull"], [3]
ROW = {"prompt": "a", "negative_prompt": "", "seed": 0}


def lora_of(model, paths, rank=2, prefix="transformer."):
    """Random factors for some layers: the tensors of a file, and by path (A, B)."""
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for path in paths:
        layer = model.pipe.transformer.get_submodule(path)
        a = torch.randn(rank, layer.in_features, generator=generator) * 0.3
        factors[path] = a, torch.randn(layer.out_features, rank, generator=generator) * 0.3
    state = {f"{prefix}{path}.lora_{letter}.weight": t for path, pair in factors.items() for letter, t in
             zip("AB", pair, strict=True)}  # fmt: skip
    return state, factors


def some_layers(model, count=4):
    names = [name for name, m in model.pipe.transformer.named_modules() if isinstance(m, nn.Linear) and "att" in name]
    return names[:: max(1, len(names) // count)][:count]


@pytest.mark.parametrize("name", ["flux", "z-image", "qwen-image", "pixart-sigma"])
def test_a_fused_lora_is_the_branch_beside_each_layer(name, tmp_path):
    """Against the forward of Hu et al. (2021): W x + scale alpha / rank B (A x), by hooks on the layers."""
    model, beside = tiny_generator(name), tiny_generator(name)
    paths = some_layers(model)
    state, factors = lora_of(model, paths)
    about = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
    save_file(state, tmp_path / "l.safetensors", about)
    assert fuse(model.pipe, tmp_path / "l.safetensors", 0.5) == len(paths)

    def branch(a, b):
        return lambda module, args, output: output + 0.5 * (4 / 2) * (args[0] @ a.T @ b.T)

    for path, (a, b) in factors.items():
        beside.pipe.transformer.get_submodule(path).register_forward_hook(branch(a, b))
    with_lora, reference = sample(model, *RUN), sample(beside, *RUN)
    torch.testing.assert_close(with_lora, reference, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(with_lora, sample(tiny_generator(name), *RUN), atol=1e-2)


def test_a_lora_of_kohya_is_translated(tmp_path):
    """Its fused projection of query, key and value is parted, and its alpha counts."""
    model = tiny_generator("flux")
    layer = model.pipe.transformer.transformer_blocks[0].attn
    own = [layer.to_out[0].weight.clone(), layer.to_k.weight.clone()]
    width = layer.to_k.in_features
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    sides = {"img_attn_proj": width, "img_attn_qkv": 3 * width}
    state = {key: (drawn(2, width), drawn(side, 2)) for key, side in sides.items()}
    file = {}
    for key, (down, up) in state.items():
        name = f"lora_unet_double_blocks_0_{key}"
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(file, tmp_path / "kohya.safetensors")
    assert fuse(model.pipe, tmp_path / "kohya.safetensors") == 4
    down, up = state["img_attn_proj"]
    torch.testing.assert_close(layer.to_out[0].weight, own[0] + up @ down / 2, rtol=1e-4, atol=1e-4)
    down, up = state["img_attn_qkv"]
    torch.testing.assert_close(layer.to_k.weight, own[1] + (up @ down / 2)[width : 2 * width], rtol=1e-4, atol=1e-4)


def test_a_lora_of_a_text_encoder_is_fused_there(tmp_path):
    model = tiny_generator("flux")
    path = next(n for n, m in model.pipe.text_encoder.named_modules() if isinstance(m, nn.Linear) and "q_proj" in n)
    layer = model.pipe.text_encoder.get_submodule(path)
    own, (a, b) = layer.weight.clone(), (torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
    file, name = tmp_path / "t.safetensors", f"text_encoder.{path}"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, file)
    assert fuse(model.pipe, file) == 1
    torch.testing.assert_close(layer.weight, own + b @ a)


def shorter(matrix):
    return matrix[:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k.replace("layers.0", "layers.9"): v for k, v in s.items()}, "ZImagePipeline has no such layer"),
        (lambda s: {k: shorter(v) if "lora_A" in k else v for k, v in s.items()}, "made for another model"),
        (lambda s: {k: v for k, v in s.items() if "lora_B" not in k}, "has not the two matrices"),
        (lambda s: {k: shorter(v) if "lora_B" in k else v for k, v in s.items()}, "of rank 2 in A and 1 in B"),
        (lambda s: s | {"transformer.layers.0.attention.to_q.lora_magnitude_vector": torch.ones(3)}, "is of DoRA"),
        (lambda s: s | {"transformer.layers.0.attention.to_q.bias_of_mine": torch.ones(3)}, "is no factor of a LoRA"),
        (lambda s: {"a": torch.ones(1)}, "`a` is no factor of a LoRA"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_whole_is_refused_and_changes_nothing(change, words, tmp_path):
    model = tiny_generator("z-image")
    state, _ = lora_of(model, ["layers.0.attention.to_q", "layers.1.attention.to_q"])
    before = {k: v.clone() for k, v in model.pipe.transformer.state_dict().items()}
    save_file(change(state), tmp_path / "l.safetensors")
    with pytest.raises(InputError, match=words) as caught:
        fuse(model.pipe, tmp_path / "l.safetensors")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.pipe.transformer.state_dict().items())


def test_an_entry_with_loras_is_another_model_and_any_scheme_follows(tmp_path):
    about, folder = PIPELINES["z-image"], save_tiny("z-image", tmp_path / "m")
    plain = Model("dit", str(folder), width=about.size, height=about.size, steps=2, max_sequence_length=64)
    state, factors = lora_of(tiny_generator("z-image"), ["layers.0.attention.to_q"])
    save_file(state, tmp_path / "l.safetensors")
    entries = [plain] + [Model(**vars(plain) | {"loras": {str(tmp_path / "l.safetensors"): s}}) for s in (1.0, 0.5)]
    keys = {request_key(request_of("m", entry, ROW)) for entry in entries}
    assert len(keys) == 3 and len({weights_of(entry) for entry in entries}) == 3
    model, base = load_generator("m", entries[1], "cpu"), load_generator("m", plain, "cpu")
    layer, own = (m.pipe.transformer.layers[0].attention.to_q.weight for m in (model, base))
    a, b = factors["layers.0.attention.to_q"]
    torch.testing.assert_close(layer, own + b @ a)
    scheme = Scheme("int8-weight-only")
    promised = nominal_bytes(model.pipe.transformer, scheme)
    assert prepare(model, scheme, "eager", None) == ""
    assert stored_bytes(model.pipe.transformer) < stored_bytes(base.pipe.transformer) > promised
    quantized = model.pipe.transformer.layers[0].attention.to_q.weight.dequantize()
    assert (quantized - own - b @ a).norm() < 0.02 * own.norm()


def test_what_cannot_take_a_lora_is_refused_where_the_config_is_read():
    wrong = {"c": Model("blip", "x", loras={"a.safetensors": 1.0})}
    with pytest.raises(InputError, match=r"models\.c\.loras: only generators whose weights are loaded by torch"):
        check_models(Config(models=wrong))
    with pytest.raises(InputError, match=r"models\.c\.loras: `a\.pt` is no \.safetensors file"):
        check_models(Config(models={"c": Model("dit", "x", loras={"a.pt": 1.0})}))
    with pytest.raises(InputError, match=r"models\.c\.loras: only generators"):
        check_models(Config(models={"c": Model("flux", "x", backend="mlx", loras={"a.safetensors": 1.0})}))
