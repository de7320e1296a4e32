"""What is found in a transformer's modules: 23 families of diffusers, tiny and random."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.models import structure
from ditscope.models.facts.facts import TABLES, Facts
from ditscope.models.structure import Block, Stream, Trace, blocks, check_order, found, layer_kinds, trace
from tiny_transformers import TINY, Tiny

# The lists of blocks of each family as its page in the model's documentation or its code has them, as they run.
LISTS = {
    "FLUX.1": {"transformer_blocks": "double", "single_transformer_blocks": "single"},
    "FLUX.3": {
        "txt_mode_blocks": "txt_mode", "mode_blocks.image": "mode_image", "mode_blocks.image_cond": "mode_image_cond",
        "single_transformer_blocks": "single",
    },
    "SD3": {"transformer_blocks": "joint"},
    "Z-Image": {"noise_refiner": "noise_refiner", "context_refiner": "context_refiner", "layers": "main"},
    "Lumina2": {"context_refiner": "context_refiner", "noise_refiner": "noise_refiner", "layers": "main"},
    "AuraFlow": {"joint_transformer_blocks": "joint", "single_transformer_blocks": "single"},
    "PRX": {"blocks": "main"},
}  # fmt: skip
# Streams of the first and of the last block.
STREAMS = {
    "FLUX.1": (["txt", "img"], ["txt", "img"]),
    "FLUX.2": (["txt", "img"], ["joint"]),
    "SD3": (["txt", "img"], ["", "img"]),
    "Qwen-Image": (["txt", "img"], ["txt", "img"]),
    "Z-Image": (["img"], ["joint"]),
    "Chroma": (["txt", "img"], ["joint"]),
    "Lumina2": (["txt"], ["joint"]),
    "HunyuanImage": (["img", "txt"], ["img", "txt"]),
    "AuraFlow": (["txt", "img"], ["joint"]),
    "Krea2": (["joint"], ["joint"]),
    "Wan 2.x": (["img"], ["img"]),
    "CogVideoX": (["img", "txt"], ["img", "txt"]),
}
every = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)


def watch(tiny: Tiny) -> tuple[nn.Module, Trace]:
    model = tiny.build()
    with torch.no_grad():
        return model, trace(model, lambda: model(**tiny.call()))


def flat(output: Any) -> Tensor:
    output = output[0]
    return torch.cat([x.flatten() for x in output]) if isinstance(output, list) else output.flatten()


def answered(model: nn.Module, tiny: Tiny, answers: dict[str, Callable[..., Any]]) -> Tensor:
    """The model's output where these blocks answer otherwise."""
    modules = blocks(model)
    hooks = [modules[name].register_forward_hook(answer, with_kwargs=True) for name, answer in answers.items()]
    try:
        with torch.no_grad():
            return flat(model(**tiny.call()))
    finally:
        for hook in hooks:
            hook.remove()


@every
def test_blocks_are_found_as_they_run_and_their_streams_pass_through_the_model_s_own_tail(tiny):
    model, seen = watch(tiny)
    ran, described = [b.name for b in seen.blocks], {b.name: b for b in found(model)}
    assert ran == [name for name in described if name in ran] and len(ran) >= 3
    assert all("image_cond" in name for name in described if name not in ran)  # FLUX.3 without a picture to go by
    assert all(
        any(s.name in ("img", "joint") for s in b.streams) or "refiner" in b.name or "txt" in b.name
        for b in seen.blocks
    )
    kept: dict[str, Any] = {}
    plain = answered(model, tiny, {n: lambda m, a, k, o, n=n: kept.update({n: o}) for n in ran})
    last = {n: lambda m, a, k, o, n=n: kept[n] for n in ran}
    assert torch.equal(answered(model, tiny, last), plain)
    passing = {b.name: lambda m, a, k, o, b=b: b.passed(structure.bound(m, a, k)) for b in seen.blocks[1:]}
    early = answered(model, tiny, passing)
    assert early.shape == plain.shape and early.isfinite().all() and not torch.equal(early, plain)


@pytest.mark.parametrize("family", LISTS)
def test_lists_of_blocks_have_names_and_an_order(family):
    model = TINY[family].build()
    assert list(structure.kinds_of_lists(model).items()) == list(LISTS[family].items())
    assert [b.path.rpartition(".")[0] for b in found(model) if b.path.endswith(".0")] == list(LISTS[family])


@pytest.mark.parametrize("family", STREAMS)
def test_streams_of_the_first_and_the_last_block(family):
    _, seen = watch(TINY[family])
    assert tuple([s.name for s in b.streams] for b in (seen.blocks[0], seen.blocks[-1])) == STREAMS[family]


@every
def test_registry_code_and_shapes_name_the_same_arguments(tiny):
    model = tiny.build()
    seen: dict[type, tuple] = {}

    def hook(module: nn.Module, args: Any, options: Any, output: Any) -> None:
        outputs = [output] if isinstance(output, Tensor) else list(output)
        seen.setdefault(type(module), structure.matched(structure.bound(module, args, options), outputs))

    answered(model, tiny, dict.fromkeys(blocks(model), hook))
    for cls, shapes in seen.items():
        told = {structure.registered_outputs(cls), structure.returned(cls)} - {()}
        assert told == {shapes}, cls.__name__


@every
def test_no_weights_are_needed_to_describe_a_model(tiny):
    bare = structure.on_meta(tiny.cls, tiny.config)
    assert all(p.is_meta for p in bare.parameters())
    model = tiny.build()
    assert found(bare) == found(model) and layer_kinds(bare) == layer_kinds(model)


def test_facts_are_what_a_call_shows_where_it_can_show_it(monkeypatch):
    """Joint streams and the place of their text, without the table: all but Krea 2's, joined before the first block."""
    joint = {name: tiny for name, tiny in TINY.items() if tiny.name in TABLES and watch(tiny)[1].text}
    assert len(joint) == 6
    told = {name: watch(tiny)[1] for name, tiny in joint.items()}
    monkeypatch.setattr(structure, "facts", lambda transformer: Facts())
    for name, tiny in joint.items():
        _, seen = watch(tiny)
        assert name == "Krea2" or (seen.text, seen.image_tokens) == (told[name].text, told[name].image_tokens), name
        assert name in ("Krea2", "Lumina2") or seen.blocks == told[name].blocks, name  # Lumina2 runs in another order


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("QwenImage21Transformer2DModel", ""),
        ("Ideogram4Transformer2DModel", ""),
    ],
)
def test_joint_streams_without_one_place_stay_whole(name, place):
    """Of the real models, without weights."""
    import diffusers

    cls = getattr(diffusers, name)
    blocks_of = found(structure.on_meta(cls, {}))
    assert len(blocks_of) > 20 and all([s.name for s in b.streams] == ["joint"] for b in blocks_of)
    whole = torch.zeros(1, 7, 3)
    parts = Trace(tuple(blocks_of), 4, place).split(blocks_of[0], whole)
    assert list(parts) == ["joint"] and parts["joint"] is whole


@pytest.mark.parametrize(
    ("family", "image", "text"), [("FLUX.2", 16, 5), ("Z-Image", 32, 32), ("Krea2", 16, 5), ("SD3", 16, 5)]
)
def test_a_joint_stream_is_parted(family, image, text):
    model, seen = watch(TINY[family])
    kept = {}
    answered(
        model,
        TINY[family],
        {b.name: lambda m, a, k, o, b=b: kept.update({b.name: seen.split(b, o)}) for b in seen.blocks},
    )
    first, last = kept[seen.blocks[0].name], kept[seen.blocks[-1].name]
    assert last["img"].shape[1] == image
    assert ("txt" in last) == (family != "SD3") and "joint" not in last
    if family in ("FLUX.2", "SD3"):
        assert first["txt"].shape[1] == text


@every
def test_every_layer_has_a_kind(tiny):
    model = tiny.build()
    kinds = layer_kinds(model)
    layers = {p for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)}
    assert layers <= set(kinds) and set(kinds.values()) <= set(structure.KINDS)
    assert {kinds[p] for p in set(kinds) - layers} <= {"norm"}
    inside = [{p: k for p, k in kinds.items() if p.startswith(f"{b.path}.")} for b in found(model)]
    for layers_of_block in inside:
        count = [list(layers_of_block.values()).count(f"attention_{part}") for part in "qkv"]
        assert count[0] == count[1] == count[2]
        assert count[0] or "attention_qkv" in layers_of_block.values()
        assert "mlp" in layers_of_block.values() or any("mlp" in p for p in layers_of_block)
        assert not {"embedding", "output"} & set(layers_of_block.values())
    assert list(kinds.values()).count("output") == 1


def test_kinds_of_flux_and_of_chroma():
    kinds = layer_kinds(TINY["FLUX.1"].build())
    named = {
        "x_embedder": "embedding", "time_text_embed.text_embedder.linear_1": "embedding",
        "transformer_blocks.0.norm1.linear": "modulation", "transformer_blocks.0.attn.add_k_proj": "attention_k",
        "transformer_blocks.0.attn.norm_q": "norm", "transformer_blocks.0.attn.to_add_out": "attention_out",
        "transformer_blocks.0.ff.net.0.proj": "mlp", "single_transformer_blocks.1.proj_mlp": "mlp",
        "single_transformer_blocks.1.norm.linear": "modulation", "norm_out.linear": "modulation", "proj_out": "output",
    }  # fmt: skip
    assert {path: kinds[path] for path in named} == named
    assert layer_kinds(TINY["FLUX.2"].build())["single_transformer_blocks.0.attn.to_qkv_mlp_proj"] == "attention_qkv"
    assert layer_kinds(TINY["Chroma"].build())["distilled_guidance_layer.out_proj"] == "modulation"


class Odd(nn.Module):
    """A transformer of two blocks of some class."""

    def __init__(self, block: type[nn.Module], again: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(), block()])
        self.again = again

    def forward(self, x: Tensor) -> Any:
        for block in [*self.blocks, *(self.blocks if self.again else ())]:
            x = block(x)
        return x


class Turned(Odd):
    """A transformer whose blocks have tokens before rows."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.transpose(0, 1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()

    def forward(self, x: Any) -> Any:
        return x


@dataclass
class Answer:
    x: Tensor


class Wrapped(Plain):
    def forward(self, x: Any) -> Any:
        return Answer(x)


def test_what_cannot_be_watched_is_refused_in_a_line():
    x = torch.ones(1, 3, 4)
    with pytest.raises(InputError, match=r"^main_block_0: Wrapped returns `Answer`; only blocks that return tensors"):
        model = Odd(Wrapped)
        trace(model, lambda: model(x))
    with pytest.raises(InputError, match=r"^Odd: main_block_0 runs twice in one call$"):
        twice = Odd(Plain, again=True)
        trace(twice, lambda: twice(x))
    with pytest.raises(InputError, match=r"^Linear: no list of blocks with attention was found in it$"):
        blocks(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"^Odd: the call went through none of its blocks$"):
        idle = Odd(Plain)
        trace(idle, lambda: None)
    with pytest.raises(
        InputError, match=r"^main_block_0: Plain works on 3 rows where the batch has 1; only blocks over"
    ):
        turned = Turned(Plain)
        trace(turned, lambda: turned(x))
    with pytest.raises(InputError, match=r"another order at step 3 than at step 0 \(b where a ran\); blocks that"):
        check_order("m", ["a", "b"], ["b", "a"], 3)
    with pytest.raises(InputError, match=r"\(none where b ran\)"):
        check_order("m", ["a", "b"], ["a"], 1)
    check_order("m", ["a"], ["a"], 1)
    block = Block("main_block_0", "blocks.0", (Stream("img", "x"),), bare=True)
    assert block.argument("img") == "x"
    with pytest.raises(InputError, match=r"`txt`.*img"):
        block.argument("txt")


def test_nothing_is_left_behind_in_a_model_that_was_watched():
    model, _ = watch(TINY["FLUX.1"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("to_q", "q"), ("add_k_proj", "k"), ("to_query", "q"), ("to_key", "k"), ("to_value", "v"), ("wq", "q"),
        ("img_qkv_proj", "qkv"), ("txt_kv_proj", "kv"), ("to_qkv_mlp_proj", "qkv"), ("to_out", ""), ("norm_q", "q"),
        ("query_proj", "q"), ("queue", ""), ("keep", ""), ("qk_norm", ""),
    ],
)  # fmt: skip
def test_names_of_projections(name, letters):
    assert "".join(structure.QKV.findall(name)) == letters


@pytest.mark.system
@pytest.mark.long
def test_blocks_of_every_driven_pipeline_s_transformer_are_found():
    """Of the classes at their default configs, without weights; minutes, since some have a hundred blocks."""
    import inspect

    from ditscope.models.pipelines import pipelines, verdicts

    found_in, built = {}, 0
    for name in (name for name, reason in verdicts().items() if not reason):
        cls = inspect.signature(pipelines()[name].__init__).parameters["transformer"].annotation
        try:
            network = structure.on_meta(cls, {})
        except (TypeError, ValueError, AttributeError, NotImplementedError):  # its sizes have no defaults
            continue
        built += 1
        found_in[name] = len(found(network))
    assert built > 35 and all(count >= 8 for count in found_in.values()), found_in
