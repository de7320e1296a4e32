"""Quantization schemes: sizes by hand, errors within their bound, what cannot run and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torchao.quantization.granularity import PerRow
from torchao.quantization.quantize_.workflows.float8 import float8_sparse_2x4_2d_data_2d_metadata_tensor as sparse_fp8
from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs

from ditscope.benchmark.checkpoints import quantize as save_quantized
from ditscope.benchmark.stage import benchmark
from ditscope.core.errors import InputError
from ditscope.models import quantize
from ditscope.models.quantize import (
    apply_scheme,
    coverage,
    fuse_qkv,
    is_simulated,
    kind_of,
    label,
    layer_configs,
    mean_bits,
    nominal_bytes,
    stored_bytes,
    unsupported,
)
from ditscope.models.schemes import kind as kinds
from ditscope.models.schemes import sparse_2_4_fp8
from ditscope.models.settings import SCHEMES, Scheme
from tiny_models import ENTRIES, tiny_generator

ON_CPU = ["int8-weight-only", "int8-dynamic", "fp8-weight-only", "intx-weight-only", "int8-dynamic-intx"]
BIASES = 32 * 4  # bytes of the first layer's bias, which no scheme touches


def two_layers(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 32), nn.LayerNorm(32, elementwise_affine=False), nn.Linear(32, 48, bias=False)
    ).to(dtype)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    document = {"schema_version": "1", "group_size": 32, "layers": {"0": 2, "2": 8}}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    return tmp_path / "plan.json"


def test_every_registered_kind_has_a_file_of_its_own_and_no_file_is_left_over():
    folder = Path(kinds.__file__).parent
    files = {f"ditscope.models.schemes.{path.stem}" for path in folder.glob("*.py")}
    files -= {"ditscope.models.schemes.__init__", "ditscope.models.schemes.kind"}
    assert set(SCHEMES.values()) == files and all(isinstance(kind_of(Scheme(kind)), kinds.Kind) for kind in SCHEMES)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Scheme("base"), 64 * 32 * 4 + BIASES + 32 * 48 * 4),
        (Scheme("int8-weight-only"), 64 * 32 + 32 * 2 + BIASES + 32 * 48 + 48 * 2),  # a 16-bit scale a row
        (Scheme("int8-dynamic"), 64 * 32 + 32 * 2 + BIASES + 32 * 48 + 48 * 2),
        (Scheme("fp8-weight-only"), 64 * 32 + 32 * 2 + BIASES + 32 * 48 + 48 * 2),
        (Scheme("int8-weight-only", group_size=16), 64 * 32 + 32 * 4 * 2 + BIASES + 32 * 48 + 48 * 2 * 2),
        (Scheme("intx-weight-only", bits=4, group_size=32), 64 * 32 // 2 + 64 * 2 + BIASES + 32 * 48 // 2 + 48 * 2),
        (Scheme("int8-dynamic-intx", bits=3), 64 * 32 * 3 // 8 + 32 * 2 + BIASES + 32 * 48 * 3 // 8 + 48 * 2),
        (Scheme("intx-weight-only", bits=4, group_size=64), 64 * 32 // 2 + 32 * 2 + BIASES + 32 * 48 * 4),  # 64 > 32
        (Scheme("fp8-dynamic-tensor"), 64 * 32 + 2 + BIASES + 32 * 48 + 2),
        # int4: scale 16 bits and zero point 4 bits per group
        (Scheme("int4-weight-only", group_size=32), 64 * 32 // 2 + 64 * 20 // 8 + BIASES + 32 * 48 // 2 + 48 * 20 // 8),
    ],
)  # fmt: skip
def test_nominal_bytes_by_hand(scheme, expected):
    assert nominal_bytes(two_layers(), scheme) == expected


def test_nominal_bytes_of_a_plan_and_of_sparsity_by_hand(plan_file):
    first = (64 * 32 * 2 + 64 * (16 + 2)) // 8  # 64 groups of 32, each with a 16-bit scale and a 2-bit zero point
    second = (32 * 48 * 8 + 48 * (16 + 8)) // 8
    assert nominal_bytes(two_layers(), Scheme("plan", plan="b"), plan_file) == first + BIASES + second
    assert mean_bits(two_layers(), Scheme("plan", plan="b"), plan_file) == 8 * (first + second) / (64 * 32 + 32 * 48)
    square = nn.Linear(64, 64, bias=False).bfloat16()  # two of four 16-bit values, and 2 bits for the place of each
    assert nominal_bytes(nn.Sequential(square), Scheme("sparse-2-4")) == 64 * 64 // 2 * 2 + 64 * 64 // 2 * 2 // 8
    assert mean_bits(two_layers(), Scheme("base")) is None


@pytest.mark.parametrize("kind", ON_CPU)
def test_a_scheme_changes_the_output_a_little_and_the_stored_size_a_lot(kind):
    exact, quantized = two_layers(), two_layers()
    apply_scheme(quantized, Scheme(kind, group_size=0))
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    expected, output = exact(x), quantized(x)
    relative = ((output - expected).norm() / expected.norm()).item()
    assert 0 < relative < 0.05
    assert stored_bytes(quantized) < 0.4 * stored_bytes(exact)


def test_int8_weights_are_within_half_a_step():
    exact, quantized = two_layers(), two_layers()
    apply_scheme(quantized, Scheme("int8-weight-only"))
    weight = exact[0].weight.detach()
    step = weight.abs().amax(1, keepdim=True) / 127.5  # symmetric: -128 to 127
    error = (quantized[0].weight.dequantize() - weight).abs()
    assert (error <= step * 0.5 * 1.02).all() and error.max() > 0.25 * step.min()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_intx_weights_take_few_values_in_a_group_and_lie_in_int8(bits):
    model = two_layers()
    apply_scheme(model, Scheme("intx-weight-only", bits=bits, group_size=32))
    values = [len(group.unique()) for group in model[0].weight.dequantize().reshape(-1, 32)]
    assert max(values) <= 2**bits
    scales = zeros = 64 * 32 // 32 + 32 * 48 // 32
    assert stored_bytes(model) == 64 * 32 + 32 * 48 + 4 * scales + zeros + BIASES  # one byte a weight at any width


def test_layers_that_the_group_does_not_divide_stay_exact():
    model = two_layers()
    apply_scheme(model, Scheme("intx-weight-only", bits=4, group_size=64))
    assert list(layer_configs(two_layers(), Scheme("intx-weight-only", bits=4, group_size=64))) == ["0"]
    assert torch.equal(model[2].weight, two_layers()[2].weight)
    with pytest.raises(
        NotImplementedError, match="quantizes none of the 2 linear layers: 2 with sides that the kernel"
    ):
        layer_configs(two_layers(), Scheme("sparse-2-4"))  # 32 is no multiple of its tile


def test_filters_leave_layers_exact(plan_file):
    for scheme, expected in (
        (Scheme("int8-weight-only", skip_layers=["2"]), ["0"]),
        (Scheme("int8-weight-only", skip_layers=["[01]"]), ["2"]),
        (Scheme("int8-weight-only", min_weights=2048), ["0"]),  # 64 x 32, and 32 x 48
        (Scheme("plan", plan="b", skip_layers=["0"]), ["2"]),
    ):
        plan = plan_file if scheme.kind == "plan" else None
        assert list(layer_configs(two_layers(), scheme, plan)) == expected
        model = two_layers()
        apply_scheme(model, scheme, plan)
        for name in ("0", "2"):
            same = type(model.get_submodule(name).weight.data) is torch.Tensor
            assert same == (name not in expected)
    half = nominal_bytes(two_layers(), Scheme("int8-weight-only", skip_layers=["2"]))
    assert half == 64 * 32 + 32 * 2 + BIASES + 32 * 48 * 4


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Scheme("int8-weight-only", min_weights=2049), "none of the 2 linear layers: 2 below min_weights 2049 .as `0`"),
        (Scheme("intx-weight-only", bits=4, group_size=48), "2 with rows that group_size does not divide"),
        (Scheme("int8-weight-only", skip_layers=["*"]), "2 named by skip_layers"),
        (Scheme("int4-weight-only", group_size=128, skip_layers=["2"]), "1 with rows .*, 1 named by skip_layers"),
        (Scheme("plan", plan="b", skip_layers=["[02]"]), "2 named by skip_layers"),
        (Scheme("int8-weight-only", skip_layers=["2", "to_q*"]), "skip_layers: `to_q.` matches none of the 2 linear"),
        (
            Scheme("base", skip_layers=["norm"]),
            "skip_layers: `norm` matches none of the 2 linear layers, .* as `0`, `2`",
        ),
    ],
)
def test_a_scheme_that_quantizes_nothing_is_refused(scheme, message, plan_file):
    model = two_layers()
    with pytest.raises(InputError, match=f"^schemes: .*{message}") as error:
        apply_scheme(model, scheme, plan_file if scheme.kind == "plan" else None)
    assert "\n" not in str(error.value)
    assert all(type(layer.weight.data) is torch.Tensor for layer in (model[0], model[2])), "nothing was changed"


def test_every_linear_layer_is_quantized_or_left_with_a_reason(plan_file):
    scheme = Scheme("intx-weight-only", bits=4, group_size=64)
    configs, left = coverage(two_layers(), scheme)
    assert (list(configs), left) == (["0"], {"2": "with rows that group_size does not divide"})
    configs, left = coverage(two_layers(), Scheme("plan", plan="b", min_weights=2000), plan_file)
    assert (list(configs), left) == (["0"], {"2": "below min_weights 2000"})
    assert coverage(two_layers(), Scheme("base")) == ({}, {})


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_fused_projections_hold_the_same_weights(kind):
    generator = tiny_generator(kind)
    transformer = generator.pipe.transformer
    separate = {
        name: m.weight.clone() for name, m in transformer.named_modules() if name.endswith(("to_q", "to_k", "to_v"))
    }
    before = stored_bytes(transformer)
    fuse_qkv(transformer)
    assert stored_bytes(transformer) == before
    fused = [name for name, _ in transformer.named_modules() if name.endswith("to_qkv")]
    assert len(fused) == len(separate) / 3 > 0
    for name in fused:
        parts = [separate[name.removesuffix("qkv") + part] for part in "qkv"]
        assert torch.equal(transformer.get_submodule(name).weight, torch.cat(parts))
    fuse_qkv(transformer)  # again: nothing to do


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
@pytest.mark.parametrize("dual", [(), (0, 1)])  # blocks with a second attention over the image alone: SD3.5 medium
def test_fused_sd3_computes_the_same(qk_norm, dual):
    """The fused attention of diffusers leaves out the norms of SD3.5: its output would differ."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=8, qk_norm=qk_norm, dual_attention_layers=dual,
    ).double().eval()  # fmt: skip
    for parameter in transformer.parameters():  # norms start as the identity
        torch.nn.init.normal_(parameter, std=0.3)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    inputs = (draw(2, 4, 8, 8), draw(2, 5, 24), draw(2, 20), torch.tensor([500.0, 500.0]))
    with torch.no_grad():
        before = transformer(*inputs, return_dict=False)[0]
        fuse_qkv(transformer)
        assert not any(hasattr(module, "to_q") for module in transformer.modules())
        after = transformer(*inputs, return_dict=False)[0]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_sparse_fp8_nominal_bytes_by_hand_and_sparse_int8_is_never():
    square = nn.Sequential(nn.Linear(64, 128, bias=False).bfloat16())
    kept = 64 * 128 // 2  # one byte each, with a 2-bit place; a 16-bit scale a row
    assert nominal_bytes(square, Scheme("sparse-2-4-fp8")) == kept + kept * 2 // 8 + 128 * 2
    assert "only its fp8 config" in unsupported(Scheme("sparse-2-4-int8"), "cuda")
    assert label(Scheme("base", fuse_qkv=True, compile_vae=True)) == "base+fuse_qkv+compile_vae"


def test_a_plan_gives_each_layer_its_bits(plan_file):
    model = two_layers()
    apply_scheme(model, Scheme("plan", plan="b"), plan_file)
    groups = model[0].weight.dequantize().reshape(-1, 32)
    assert max(len(g.unique()) for g in groups) <= 4
    assert max(len(g.unique()) for g in model[2].weight.dequantize().reshape(-1, 32)) > 16


def test_simulated_means_fewer_bits_than_a_byte_in_a_byte(plan_file):
    model = two_layers()
    assert is_simulated(model, Scheme("intx-weight-only", bits=4))
    assert is_simulated(model, Scheme("int8-dynamic-intx", bits=7))
    assert is_simulated(model, Scheme("plan", plan="b"), plan_file)
    assert not is_simulated(model, Scheme("intx-weight-only", bits=8))
    assert not is_simulated(model, Scheme("int8-dynamic"))
    assert not is_simulated(model, Scheme("base"))


def test_sparsity_keeps_the_two_largest_of_four(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64).bfloat16())
    before = model[0].weight.detach().clone()
    monkeypatch.setattr(quantize, "quantize_", lambda *args, **kwargs: None)  # the sparse layout needs CUDA
    apply_scheme(model, Scheme("sparse-2-4"))
    kept = model[0].weight.detach().reshape(-1, 4)
    before = before.reshape(-1, 4)
    assert ((kept == 0).sum(1) == 2).all() and ((kept == 0) | (kept == before)).all()
    assert torch.equal(kept.abs().sum(1), before.abs().topk(2).values.sum(1))  # by size: ties may fall either way


@pytest.mark.parametrize(
    "kind", ["fp8-dynamic-row", "fp8-dynamic-tensor", "int4-weight-only", "sparse-2-4", "sparse-2-4-fp8"]
)
def test_schemes_for_gpus_say_why_a_cpu_cannot(kind):
    reason = unsupported(Scheme(kind), "cpu")
    assert kind in reason and "compute capability" in reason and "`cpu`" in reason


def test_reasons_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "needs CUDA compute capability 8.9; this GPU has 8.0" in unsupported(Scheme("fp8-dynamic-row"), "cuda")
    assert unsupported(Scheme("int4-weight-only"), "cuda") == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert unsupported(Scheme("fp8-dynamic-row"), "cuda", "bfloat16") == ""
    assert "bfloat16 weights; the model is loaded as float32" in unsupported(
        Scheme("fp8-dynamic-row"), "cuda", "float32"
    )
    assert unsupported(Scheme("fp8-dynamic-tensor"), "cuda", "float32") == ""
    assert "MPS" in unsupported(Scheme("fp8-weight-only"), "mps")
    assert all(unsupported(Scheme(kind), "cpu", "float32") == "" for kind in ["base", *ON_CPU])


def test_bad_schemes_are_refused():
    with pytest.raises(InputError, match="bits: 9; 1 to 8"):
        apply_scheme(two_layers(), Scheme("intx-weight-only", bits=9))
    with pytest.raises(InputError, match="give the plan's file"):
        apply_scheme(two_layers(), Scheme("plan", plan="4bit"))


def test_fp8_kernels_that_did_not_load_are_the_reason(monkeypatch):
    """A library built for CUDA 13 cannot be loaded beside a torch of CUDA 12; torchao only warns of it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert unsupported(Scheme("sparse-2-4-fp8"), "cuda") == "", "the locked wheels fit each other"
    torch.library.define("ditscope_test::without_kernel", "(Tensor x) -> Tensor")
    monkeypatch.setattr(sparse_2_4_fp8, "KIND", replace(sparse_2_4_fp8.KIND, operator="ditscope_test::without_kernel"))
    reason = unsupported(Scheme("sparse-2-4-fp8"), "cuda")
    assert "did not load" in reason and torch.__version__ in reason and "\n" not in reason


def test_sparse_fp8_layers_take_tokens_of_any_shape(monkeypatch):
    """Torchao's own layer around a stand-in for its CUDA kernel, which wants a scale for each row of its input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False).bfloat16())
    dense = model[0].weight.detach().float()

    def kernel(x, x_scale, weight, metadata, weight_scale, bias=None, out_dtype=None):
        assert x.ndim == 2 and x_scale.shape == x.shape[:-1] and weight_scale.shape == (64,)
        return ((x.float() * x_scale[:, None]) @ dense.T).to(out_dtype)

    def make_sparse(transformer, config, filter_fn):
        given = QuantizeTensorToFloat8Kwargs(granularity=PerRow())
        half = torch.zeros(64, 32, dtype=torch.float8_e4m3fn)
        parts = half, torch.zeros(64, 8, dtype=torch.uint8), torch.ones(64, 1)
        sparse = sparse_fp8.Float8Sparse2x4_2DData2DMetadataTensor(*parts, [1, 64], given, torch.bfloat16)
        transformer[0].weight = nn.Parameter(sparse, requires_grad=False)

    monkeypatch.setattr(sparse_fp8, "rowwise_scaled_linear_sparse_cutlass_f8f8", kernel)
    monkeypatch.setattr(quantize, "quantize_", make_sparse)
    monkeypatch.setattr(quantize, "apply_fake_sparsity", lambda *args, **kwargs: None)
    apply_scheme(model, Scheme("sparse-2-4-fp8"))
    for shape in ((5, 64), (2, 5, 64), (1, 5, 64), (2, 3, 5, 64)):
        x = torch.randn(shape).bfloat16()
        torch.testing.assert_close(model(x).float(), x.float() @ dense.T, rtol=0.1, atol=0.1)


def test_sparse_layers_of_sd3_get_contiguous_rows_at_batch_two(monkeypatch):
    """Torch's 2:4 linear takes `x.view(-1, channels)`, which a transposed tensor, as SD3 hands on, refuses."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 16, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 64),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([500.0, 500.0]),
    }

    def make_viewing(transformer, config, filter_fn):
        for name in config.fqn_to_config:
            layer = transformer.get_submodule(name)
            layer.forward = lambda x, layer=layer: nn.functional.linear(
                x.view(-1, x.shape[-1]), layer.weight, layer.bias
            ).view(*x.shape[:-1], -1)

    monkeypatch.setattr(quantize, "quantize_", make_viewing)
    monkeypatch.setattr(quantize, "apply_fake_sparsity", lambda *args, **kwargs: None)
    with torch.no_grad():
        expected = transformer(**inputs, return_dict=False)[0]
        apply_scheme(transformer, Scheme("sparse-2-4"))
        torch.testing.assert_close(transformer(**inputs, return_dict=False)[0], expected)


@pytest.mark.parametrize("kind", ["base", "int8-weight-only"])
def test_a_plan_is_refused_by_a_scheme_that_does_not_read_it(tmp_path, kind):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match=f"plan.json: a scheme of kind `{kind}` reads no plan"):
        save_quantized("tiny", ENTRIES["sd3"], Scheme(kind), tmp_path / "q", tmp_path / "plan.json")
    with pytest.raises(InputError, match=f"plan.json: a scheme of kind `{kind}` reads no plan"):
        benchmark("tiny", ENTRIES["sd3"], {"s": Scheme(kind)}, {}, tmp_path, [], "s", plan=tmp_path / "plan.json")
