"""Schemes on any transformer: they quantize the layers that they say, and pictures stay pictures."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from any_pipelines import PIPELINES, SLOWER, save_tiny, tiny_generator
from ditscope.benchmark.checkpoints import load_checkpoint, quantize, save_checkpoint
from ditscope.config import Config, check_schemes
from ditscope.core.errors import InputError
from ditscope.core.identity import scheme_id
from ditscope.models.prepare import prepare
from ditscope.models.quantize import coverage, nominal_bytes, stored_bytes
from ditscope.models.sampling import decode, sample, transformers_of
from ditscope.models.settings import Model, Scheme
from ditscope.models.structure import blocks, layer_kinds
from ditscope.models.text_encoders import (
    encoder_bytes,
    encoder_configs,
    nominal_encoder_bytes,
    quantize_encoders,
    text_encoders,
)

FEW = ("flux2-klein", "z-image", "pixart-sigma", "wan")
ALL = [name if name in FEW else pytest.param(name, marks=SLOWER) for name in PIPELINES]
RUN = ["a red ring"], ["dull"], [3]


@pytest.mark.parametrize("kind", ["int8-weight-only", "int8-dynamic"])
@pytest.mark.parametrize("name", ALL)
def test_a_scheme_quantizes_what_it_says(name, kind):
    model = tiny_generator(name)
    transformer, own = model.pipe.transformer, decode(model, sample(model, *RUN))
    kinds = layer_kinds(transformer)
    scheme = Scheme(kind, skip_layers=["kind:embedding"])
    configs, left = coverage(transformer, scheme)
    linear = {path for path, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    assert configs.keys() | left.keys() == linear and not configs.keys() & left.keys()
    assert {path for path in linear if kinds[path] == "embedding"} == left.keys()
    promised, before = nominal_bytes(transformer, scheme), stored_bytes(transformer)
    assert prepare(model, scheme, "eager", None) == ""
    weights = dict(transformer.named_modules())
    assert {path for path in linear if type(weights[path].weight.data) is not torch.Tensor} >= configs.keys()
    assert stored_bytes(transformer) < before and promised < before
    made = decode(model, sample(model, *RUN))
    assert made.shape == own.shape and not torch.equal(made, own)


def test_kinds_that_are_not_there_are_refused():
    transformer = tiny_generator("wan").pipe.transformer
    with pytest.raises(InputError, match=r"`kind:mlpp` matches none of the \d+ linear layers.*`kind:mlp`"):
        coverage(transformer, Scheme("int8-weight-only", skip_layers=["kind:mlpp"]))


def test_fusing_where_diffusers_cannot_is_a_reason():
    model = tiny_generator("lumina2")
    assert "has no fuse_qkv_projections" in prepare(model, Scheme("int8-weight-only", fuse_qkv=True), "eager", None)


def test_of_two_transformers_both_are_quantized(tmp_path):
    model, scheme = tiny_generator("wan22"), Scheme("int8-weight-only")
    assert prepare(model, scheme, "eager", None) == ""
    for transformer in transformers_of(model.pipe):
        configs, _ = coverage(tiny_generator("wan").pipe.transformer, scheme)
        kinds = {name: type(transformer.get_submodule(name).weight.data) for name in configs}
        assert torch.Tensor not in kinds.values() and len(kinds) > 10
    entry = Model("dit", str(save_tiny("wan22", tmp_path / "m")), width=32, height=32, frames=5, steps=1)
    with pytest.raises(InputError, match="has two transformers, and a checkpoint holds one"):
        quantize("m", entry, scheme, tmp_path / "q.safetensors")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOWER) for name in FEW])
def test_compiled_block_by_block_it_predicts_what_it_does_eager(name):
    """The blocks that were found, each compiled alone, and no more than there are kinds of them."""
    model = tiny_generator(name)
    own = sample(model, *RUN, steps=2)
    assert prepare(model, Scheme("base"), "regional", None) == ""
    compiled = [m for m in model.pipe.transformer.modules() if m._compiled_call_impl is not None]
    assert compiled == list(blocks(model.pipe.transformer).values())
    torch.testing.assert_close(sample(model, *RUN, steps=2), own, rtol=1e-3, atol=1e-3)


# Text encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8-weight-only", "int8-dynamic", "intx-weight-only"])
@pytest.mark.parametrize("name", ALL)
def test_text_encoders_are_quantized_by_choice(name, kind):
    model, own = tiny_generator(name), tiny_generator(name)
    scheme = Scheme(kind, bits=4, text_encoders=True)
    encoders = text_encoders(model.pipe)
    assert encoders.keys() == {n for n in model.pipe.components if n.startswith("text_encoder")}
    before, promised = encoder_bytes(model.pipe), nominal_encoder_bytes(model.pipe, scheme)
    wanted = {part: encoder_configs(encoder, scheme) for part, encoder in encoders.items()}
    assert promised < before and all(wanted.values())
    assert prepare(model, scheme, "eager", None) == ""
    for part, encoder in encoders.items():
        for path, module in encoder.named_modules():
            if isinstance(module, nn.Linear):
                quantized = type(module.weight.data) is not torch.Tensor
                assert quantized == (path in wanted[part]) and (quantized or "lm_head" in path), path
    assert encoder_bytes(model.pipe) < before == encoder_bytes(own.pipe)
    assert nominal_encoder_bytes(own.pipe, Scheme(kind, bits=4)) == before  # not chosen: as they are
    assert prepare(own, Scheme(kind, bits=4), "eager", None) == "" and encoder_bytes(own.pipe) == before
    made = sample(model, *RUN)
    assert made.isfinite().all() and not torch.equal(made, sample(own, *RUN))


def test_a_scheme_that_leaves_text_encoders_is_identified_as_before():
    plain, chosen = (asdict(Scheme("int8-dynamic", text_encoders=choice)) for choice in (False, True))
    before = {key: value for key, value in plain.items() if key != "text_encoders"}
    assert scheme_id(plain) == scheme_id(before) != scheme_id(chosen)


def test_what_says_nothing_of_text_encoders_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"schemes\.s\.text_encoders: `base` says nothing of text encoders"):
        check_schemes(Config(schemes={"s": Scheme("base", text_encoders=True)}))
    with pytest.raises(NotImplementedError, match="prunes the transformer alone"):
        quantize_encoders(tiny_generator("z-image").pipe, Scheme("sparse-2-4", text_encoders=True))
    entry = Model("dit", str(save_tiny("z-image", tmp_path / "m")), width=16, height=16, steps=1)
    with pytest.raises(InputError, match="a checkpoint holds the transformer alone"):
        quantize("m", entry, Scheme("int8-weight-only", text_encoders=True), tmp_path / "q.safetensors")


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_is_saved_and_loaded(name, tmp_path):
    model, scheme = tiny_generator(name), Scheme("int8-weight-only")
    assert prepare(model, scheme, "eager", None) == ""
    save_checkpoint(model.pipe.transformer, scheme, tmp_path / "q.safetensors")
    expected = sample(model, *RUN)
    model.pipe.transformer = load_checkpoint(tmp_path / "q.safetensors")
    assert torch.equal(sample(model, *RUN), expected)
