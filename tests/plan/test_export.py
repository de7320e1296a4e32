"""Plans written for other runtimes: each read back, by the runtime's own reader or by its documented rules."""

import inspect
import json
from collections import Counter

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ditscope.cli import main
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.models.exports import comfyui, mlx, sdcpp, sdnq, vllm
from ditscope.models.exports.original_names import ORIGINALS, grouped, original_state
from ditscope.models.quantize import apply_scheme
from ditscope.models.settings import Scheme
from ditscope.models.structure import on_meta
from ditscope.plan.export import RUNTIMES, export, export_of
from workflow import ROOT

SHIPPED = {
    "shapes-flux": (diffusers.FluxTransformer2DModel, "convert_flux_transformer_checkpoint_to_diffusers"),
    "shapes-sd3": (diffusers.SD3Transformer2DModel, "convert_sd3_transformer_checkpoint_to_diffusers"),
}
# The transformers that are published, by what their configs say.
PUBLISHED = {
    "FLUX.1-dev": (
        diffusers.FluxTransformer2DModel,
        {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    ),
    "FLUX.1-schnell": (diffusers.FluxTransformer2DModel, {"num_layers": 19, "num_single_layers": 38}),
    "SD3-medium": (
        diffusers.SD3Transformer2DModel,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "SD3.5-medium": (
        diffusers.SD3Transformer2DModel,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "qk_norm": "rms_norm",
         "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return read_config([]).models


@pytest.fixture(scope="module")
def transformers():
    return {
        name: cls.from_pretrained(ROOT / "models" / name / "transformer", torch_dtype=torch.float32)
        for name, (cls, _) in SHIPPED.items()
    }


def plan_of(folder, model, bits=(4, 5, 8), group=32, every=1, layers=None):
    """A plan that gives the layers of a shipped model these bits in turn; every so many stays in full precision."""
    cls, _ = SHIPPED[model]
    config = json.loads((ROOT / "models" / model / "transformer/config.json").read_text())
    linear = [n for n, m in on_meta(cls, config).named_modules() if isinstance(m, nn.Linear)]
    chosen = layers or {n: bits[i % len(bits)] for i, n in enumerate(linear) if every == 1 or i % every}
    plan = {"schema_version": "1", "model": model, "backend": "torch", "budget": "b", "quantizer": "group"}
    path = folder / f"{model}.json"
    path.write_text(json.dumps(plan | {"group_size": group, "layers": chosen}))
    return path, chosen


@pytest.mark.parametrize("name", SHIPPED)
def test_original_weights_are_those_that_diffusers_converts_back(transformers, name):
    converter = getattr(single_file_utils, SHIPPED[name][1])
    source = inspect.getsource(converter).replace(
        "inner_dim = 3072", "inner_dim = 128"
    )  # FLUX.1's width is fixed there
    exec(source, scope := dict(vars(single_file_utils)))
    own = transformers[name].state_dict()
    back = scope[converter.__name__](original_state(transformers[name], ORIGINALS[type(transformers[name]).__name__]))
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


@pytest.mark.parametrize("published", PUBLISHED)
def test_names_map_both_ways(published):
    cls, config = PUBLISHED[published]
    transformer, names = on_meta(cls, config), ORIGINALS[cls.__name__]
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    places = {layer: names.original(layer) for layer in linear}
    assert len(set(places.values())) == len(linear)  # no two layers in one place
    assert all(names.diffusers(name)[part] == layer for layer, (name, part) in places.items())
    assert {part for parts in grouped(transformer, names).values() for part in parts} >= set(linear)


@pytest.mark.parametrize("name", SHIPPED)
def test_diffusers_reloads_the_torchao_checkpoint(tmp_path, models, transformers, name):
    path, _ = plan_of(tmp_path, name, bits=(3, 4, 8), every=4)
    export(path, models=models, to="torchao", out=tmp_path / "made")
    again = SHIPPED[name][0].from_pretrained(tmp_path / "made", torch_dtype=torch.float32)
    ours = SHIPPED[name][0].from_pretrained(ROOT / "models" / name / "transformer", torch_dtype=torch.float32)
    apply_scheme(ours, Scheme("plan"), path)
    torch.manual_seed(0)
    inputs = {
        "shapes-flux": {"hidden_states": torch.randn(1, 64, 32), "encoder_hidden_states": torch.randn(1, 8, 128),
                        "pooled_projections": torch.randn(1, 64), "timestep": torch.tensor([0.5]),
                        "img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(8, 3)},
        "shapes-sd3": {"hidden_states": torch.randn(1, 8, 16, 16), "encoder_hidden_states": torch.randn(1, 8, 128),
                       "pooled_projections": torch.randn(1, 128), "timestep": torch.tensor([500.0])},
    }[name]  # fmt: skip
    with torch.no_grad():
        a, b, full = (t(**inputs, return_dict=False)[0] for t in (again, ours, transformers[name]))
    assert torch.equal(a, b)
    assert not torch.equal(a, full)


@pytest.mark.parametrize("name", SHIPPED)
def test_rules_of_stable_diffusion_cpp_give_each_tensor_its_type(tmp_path, models, transformers, name):
    path, layers = plan_of(tmp_path, name)
    export(path, models=models, to="sdcpp", out=tmp_path / "rules.txt")
    names = ORIGINALS[type(transformers[name]).__name__]
    tensors = [f"model.diffusion_model.{key}" for key in original_state(transformers[name], names)]
    read = sdcpp.read((tmp_path / "rules.txt").read_text(), tensors)
    width = {4: "q4_1", 5: "q5_1", 8: "q8_0"}
    for tensor in tensors:
        layer = tensor.removeprefix("model.diffusion_model.").removesuffix(".weight")
        kept = any(part in tensor for part in sdcpp.NEVER) or not tensor.endswith(".weight") or ".norm." in tensor
        if kept or ".ln_" in tensor:
            assert tensor not in read
        else:  # a tensor of several layers has the widest type
            assert read[tensor] == width[max(layers[part] for part in names.diffusers(layer))]
    # Weights of separate files of diffusers are named as parts of the joined one.
    assert sdcpp.read((tmp_path / "rules.txt").read_text(), [f"{tensors[-1]}", "x.linear1.weight.1"]) == {}


def test_rules_keep_a_joined_tensor_that_the_plan_leaves_in_part(tmp_path, models):
    path, _ = plan_of(
        tmp_path, "shapes-flux", layers={"transformer_blocks.0.attn.to_q": 4, "transformer_blocks.0.ff.net.2": 4}
    )
    chosen, kept = sdcpp.types(export_of(path, models))
    assert (chosen, kept) == ({"double_blocks.0.img_mlp.2": "q4_1"}, ["transformer_blocks.0.attn.to_q"])


def test_arguments_of_sdnq(tmp_path, models):
    path, layers = plan_of(tmp_path, "shapes-flux", bits=(3, 4, 8), group=48, every=5)
    export(path, models=models, to="sdnq", out=tmp_path / "sdnq.json")
    made = json.loads((tmp_path / "sdnq.json").read_text())
    types = {weight: name for name, weights in made["modules_dtype_dict"].items() for weight in weights}
    assert types == {f"{layer}.weight": f"uint{bits}" for layer, bits in layers.items()}
    exported = export_of(path, models)
    assert made["modules_to_not_convert"] == [f"{layer}.weight" for layer in exported.left]
    assert made["group_size"] == -1  # of most layers, whose rows 48 does not divide
    rows = {layer: exported.transformer.get_submodule(layer).in_features for layer in layers}
    assert made["modules_quant_config"] == {
        f"{n}.weight": {"group_size": 48} for n, row in rows.items() if row % 48 == 0
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_comfyui_checkpoint_holds_what_its_header_says(tmp_path, models, transformers, name):
    path, layers = plan_of(tmp_path, name, bits=(8,), every=6)
    export(path, models=models, to="comfyui", out=tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        header = json.loads(file.metadata()[comfyui.METADATA])
    state, names = load_file(tmp_path / "c.safetensors"), ORIGINALS[type(transformers[name]).__name__]
    own = original_state(transformers[name], names)
    assert header["format_version"] == "1.0"
    assert header["layers"].keys() == {
        n
        for n in (k.removesuffix(".weight") for k in own if k.endswith(".weight"))
        if set(names.diffusers(n)) <= set(layers)
    }
    for key, value in own.items():
        layer = key.removesuffix(".weight")
        if layer not in header["layers"] or key == layer:
            assert torch.equal(state[key], value)
            continue
        assert json.loads(bytes(state[f"{layer}.comfy_quant"].tolist())) == header["layers"][layer]
        error = (state[key].double() * state[f"{layer}.weight_scale"].double() - value.double()).abs()
        assert state[key].dtype == torch.int8
        assert (
            error <= value.double().abs().amax(1, keepdim=True) / 254 * (1 + 1e-5)
        ).all()  # half a step of 127 to a side


def test_fp8_of_comfyui_against_its_formula():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    stored, scale = comfyui.fp8_by_tensor(weight)
    assert scale.ndim == 0 and stored.float().abs().max() == 448
    assert (
        (stored.double() * scale.double() - weight.double()).abs() <= weight.double().abs() / 16 + scale * 2**-10
    ).all()


def test_quantization_config_of_vllm(tmp_path, models):
    path, layers = plan_of(tmp_path, "shapes-flux", bits=(4, 8), group=32, every=7)
    export(path, models=models, to="vllm", out=tmp_path / "config.json")
    made = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert made["quant_method"] == "compressed-tensors" and made["format"] == "pack-quantized"
    read = {
        layer: (group["weights"]["num_bits"], group["weights"].get("group_size"))
        for group in made["config_groups"].values()
        for layer in group["targets"]
    }
    rows = {layer: export_of(path, models).transformer.get_submodule(layer).in_features for layer in layers}
    assert read == {layer: (bits, 32 if rows[layer] > 32 else None) for layer, bits in layers.items()}
    assert not set(made["ignore"]) & set(layers)
    assert len(made["ignore"]) + len(layers) == 60


def test_quantization_of_mlx(tmp_path, models):
    nn_mlx = pytest.importorskip("mlx.nn", reason="MLX is not installed")
    path, _ = plan_of(tmp_path, "shapes-flux", bits=(4, 8), group=32, every=7)
    made = mlx.quantization(export_of(path, models))
    usual = {key: made.pop(key) for key in ("group_size", "bits", "mode")}
    assert usual == {"group_size": 32, "bits": 8, "mode": "affine"}
    from ditscope.models.mlx.network import build

    config = json.loads((ROOT / "models/shapes-flux/transformer/config.json").read_text())
    network = build(config)
    nn_mlx.quantize(network, class_predicate=lambda p, m: made.get(p, False) if hasattr(m, "to_quantized") else False)
    bits = {p: m.bits for p, m in network.named_modules() if isinstance(m, nn_mlx.QuantizedLinear)}
    assert bits == {p: entry["bits"] for p, entry in made.items() if entry}
    assert Counter(bits.values()).keys() == {4, 8}


@pytest.mark.parametrize(
    ("to", "model", "bits", "says"),
    [
        ("sdcpp", "shapes-flux", 7, "7"),
        ("sdcpp", "shapes-flux", 3, "rows of"),
        ("comfyui", "shapes-sd3", 4, "int4"),
        ("vllm", "shapes-sd3", 5, "int5"),
        ("mlx", "shapes-flux", 7, "7 bits"),
    ],
)
def test_a_format_that_a_runtime_lacks(tmp_path, models, to, model, bits, says):
    layer = "transformer_blocks.1.ff.net.0.proj"
    path, _ = plan_of(tmp_path, model, layers={layer: bits})
    with pytest.raises(InputError, match=says) as error:
        export(path, models=models, to=to, out=tmp_path / "out")
    assert layer in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_input_of_export(tmp_path, models, capsys):
    path, _ = plan_of(tmp_path, "shapes-flux")
    for to, says in (("tensorrt", "tensorrt"), ("no.such.module", "cannot be imported")):
        with pytest.raises(InputError, match=says):
            export(path, models=models, to=to, out=tmp_path / "out")
    (tmp_path / "there").write_text("")
    for to in RUNTIMES:
        with pytest.raises(InputError, match="is there already"):
            export(path, models=models, to=to, out=tmp_path / "there")
    with pytest.raises(InputError, match="no layer `x_embedder`"):
        export(path, models=models, to="sdnq", out=tmp_path / "out", model="shapes-sd3")
    assert main(["export", str(path), "--to", "sdnq", "--out", str(tmp_path / "out"), "--model", "nobody"]) == 2
    assert capsys.readouterr().err.startswith("ditscope export: --model")
    assert main(["export", str(path), "--to", "vllm", "--out", str(tmp_path / "v.json")]) == 2  # 5 bits
    assert "int5" in capsys.readouterr().err
    assert sdnq.VERSION and vllm.VERSION
