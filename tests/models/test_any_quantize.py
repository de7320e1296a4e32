"""Schemes on any transformer: they quantize the layers that they say, and pictures stay pictures."""

import pytest
import torch
from torch import nn

from any_pipelines import PIPELINES, SLOWER, tiny_generator
from ditscope.core.errors import InputError
from ditscope.models.prepare import prepare
from ditscope.models.quantize import coverage, nominal_bytes, stored_bytes
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import Scheme
from ditscope.models.structure import layer_kinds

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
