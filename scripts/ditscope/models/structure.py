"""What a transformer of diffusers is made of, found in its modules: blocks, their streams, kinds of layers.

Nothing here needs weights: a model built from its config on the meta device has the same structure. What cannot be
found stands in `models.facts`. `found` describes the blocks by their code alone; `trace` watches one call, which also
says in which order they run and how many tokens belong to the image.

A block's name is `{kind}_block_{i}`: `double` and `single` where a model has both, `joint` for a lone list of blocks
over two streams, `main` for one of blocks over one, else the list's own name.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.models.facts.facts import Facts, facts_of_class

STREAMS = ("img", "txt", "joint")
KINDS = (  # of layers
    "attention_q", "attention_k", "attention_v", "attention_qkv", "attention_gate", "attention_out", "mlp",
    "modulation", "embedding", "norm", "output",
)  # fmt: skip
TEXT = re.compile(r"encoder|context|caption|cap_|txt|text|prompt|und_seq")  # in the name of an argument that holds text
MODULATION = re.compile(
    r"(^|[._])(mod|adaln|ada_ln|norm\d*|distilled_guidance)([._]|$)|modulation|(^|[._])time_(mod_)?proj$"
)
OUTPUT = re.compile(r"^(proj_out|norm_out\.linear_2|(all_)?final_layer\b.*\blinear)$")
# In the name of a projection of an attention: to_q, add_k_proj, to_qkv_mlp_proj, to_query.
QKV = re.compile(r"(?:^|_)w?(qkv|kv|q(?=uery)|k(?=ey)|v(?=alue)|q|k|v)(?:uery|ey|alue)?(?=_|$)")


@dataclass(frozen=True)
class Stream:
    """One output of a block."""

    name: str  # img, txt or joint; empty: none of them, or absent
    argument: str | None  # of the block's `forward`, which it continues; None: it continues none


@dataclass(frozen=True)
class Block:
    """A block: its name, its place in the module tree, and what it returns."""

    name: str  # double_block_0
    path: str  # transformer_blocks.0
    streams: tuple[Stream, ...]
    bare: bool = False  # it returns a tensor, not a tuple of one

    def argument(self, stream: str) -> str:
        """The argument that holds a stream. Raises InputError where the block has no such stream."""
        names = [s.name for s in self.streams if s.argument]
        if stream not in names:
            raise InputError(unknown(f"stream of {self.name}", stream, names, "a stream of this block"))
        return next(s.argument for s in self.streams if s.name == stream and s.argument)

    def passed(self, arguments: Mapping[str, Any]) -> Any:
        """What the block returns if it changes nothing: the arguments, by name, that its outputs continue."""
        kept = tuple(arguments.get(s.argument) if s.argument else None for s in self.streams)
        return kept[0] if self.bare else kept


@dataclass(frozen=True)
class Trace:
    """The blocks of a transformer in the order in which one call ran them."""

    blocks: tuple[Block, ...]
    image_tokens: int  # of a joint stream; 0: unknown, or there is none
    text: str  # where text tokens stand in a joint stream: first or last; empty: unknown, or there is none

    def split(self, block: Block, output: Any) -> dict[str, Tensor]:
        """The streams of a block's output, (batch, tokens, channels) each; a joint one parted as img and txt.

        A joint stream stays whole, as `joint`, where its positions are not known.
        """
        outputs = (output,) if block.bare else output
        streams = {s.name: x for s, x in zip(block.streams, outputs, strict=True) if s.name and x is not None}
        joint = streams.get("joint")
        if joint is not None and self.text:
            del streams["joint"]
            parts = joint.shape[1] - self.image_tokens, self.image_tokens
            first, last = joint.split(parts if self.text == "first" else parts[::-1], dim=1)
            streams |= {"img": last, "txt": first} if self.text == "first" else {"img": first, "txt": last}
        return streams


# Blocks ---------------------------------------------------------------------------------------------------------------


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of blocks by their place in the module tree, in the order in which they run.

    Lists of modules with an attention, of the transformer itself or of a dictionary of its own; what lies within an
    embedder (refiners of text) belongs to that.
    """
    lists = {}
    for path, child in transformer.named_children():
        inner = child.items() if isinstance(child, nn.ModuleDict) else [("", child)]
        for key, value in inner:
            if isinstance(value, nn.ModuleList) and len(value) and all(map(has_attention, value)):
                lists[f"{path}.{key}".rstrip(".")] = value
    order = facts(transformer).order
    return {path: lists[path] for path in sorted(lists, key=lambda p: order.index(p) if p in order else len(order))}


def has_attention(module: nn.Module) -> bool:
    """Whether a module has, below it, one that projects queries and keys."""
    return any(is_attention(child) for child in module.modules() if child is not module)


def is_attention(module: nn.Module) -> bool:
    """Whether linear layers of a module itself project queries and keys, alone or together."""
    names = [name for name, child in module.named_children() if isinstance(child, nn.Linear)]
    letters = "".join(match for name in names for match in QKV.findall(name))
    return {"q", "k"} <= set(letters)


def kinds_of_lists(transformer: nn.Module) -> dict[str, str]:
    """The kind of each list of blocks, which its blocks' names begin with."""
    lists = block_lists(transformer)
    kinds = {path: re.sub(r"_?(transformer_|stream_)?(blocks|layers)", "", path).replace(".", "_") for path in lists}
    lone = "double" if "single" in kinds.values() else ""
    for path, kind in kinds.items():
        registered = registry_entry(type(lists[path][0]))
        two = registered is not None and registered.return_encoder_hidden_states_index is not None
        kinds[path] = kind or lone or ("joint" if two else "main")
    return kinds


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name, in the order in which they run. Raises InputError for a transformer without any."""
    kinds = kinds_of_lists(transformer)
    named = {f"{kinds[p]}_block_{i}": b for p, part in block_lists(transformer).items() for i, b in enumerate(part)}
    if not named:
        raise InputError(f"{type(transformer).__name__}: no list of blocks with attention was found in it")
    return named


def found(transformer: nn.Module) -> list[Block]:
    """Every block as its class describes it, without a call; a block of unknown outputs has no streams."""
    paths = {id(module): path for path, module in transformer.named_modules()}
    return [described(name, paths[id(b)], b, facts(transformer)) for name, b in blocks(transformer).items()]


def facts(transformer: nn.Module) -> Facts:
    """What is told of the transformer's class."""
    return facts_of_class(type(transformer).__name__)


# Streams --------------------------------------------------------------------------------------------------------------


def described(name: str, path: str, block: nn.Module, told: Facts) -> Block:
    """A block by its class: the names that its code returns say what its outputs continue, else diffusers' registry."""
    cls: Any = type(block)
    arguments = returned(cls) or registered_outputs(cls)
    return block_of(name, path, arguments, len(arguments) == 1, told)


def block_of(name: str, path: str, arguments: Sequence[str | None], bare: bool, told: Facts) -> Block:
    """A block whose outputs continue these arguments, its streams named."""
    where = path.rpartition(".")[0]
    alone = "joint" if where in told.joint else "txt" if TEXT.search(where) else "img"
    names = [("txt" if TEXT.search(a) else alone) if a else "" for a in arguments]
    return Block(name, path, tuple(Stream(n, a) for n, a in zip(names, arguments, strict=True)), bare)


def registry_entry(cls: type) -> Any:
    """What diffusers' own registry of blocks says of a class; None where it has none."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        return TransformerBlockRegistry.get(cls)
    except ValueError:
        return None


def registered_outputs(cls: Any) -> tuple[str | None, ...]:
    """The arguments that a block's outputs continue by diffusers' registry; empty where it has none."""
    entry = registry_entry(cls)
    if entry is None:
        return ()
    pairs = {entry.return_hidden_states_index: entry.hidden_states_argument_name}
    if entry.return_encoder_hidden_states_index is not None:
        pairs[entry.return_encoder_hidden_states_index] = entry.encoder_hidden_states_argument_name
    outputs = tuple(pairs.get(i) for i in range(max(pairs) + 1))
    return outputs if set(outputs) <= {*parameters(cls)} else ()  # of Z-Image it names an argument that is none


@cache
def returned(cls: Any) -> tuple[str | None, ...]:
    """The arguments that `forward` returns, by the names in its last `return`; empty where these tell nothing."""
    known = parameters(cls)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError):
        return ()
    returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    if not returns:
        return ()
    last = max(returns, key=lambda node: node.lineno)
    values = last.elts if isinstance(last, ast.Tuple) else [last]
    values = [
        value.left if isinstance(value, ast.BinOp) else value for value in values
    ]  # x + what the block adds to it
    names = [value.id if isinstance(value, ast.Name) and value.id in known else None for value in values]
    return tuple(names) if all(names) else ()


@cache
def parameters(cls: Any) -> tuple[str, ...]:
    """Names of the arguments of the `forward` of a class of modules."""
    return tuple(inspect.signature(cls.forward).parameters)[1:]


def bound(block: nn.Module, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call of a block by their names."""
    cls: Any = type(block)
    return dict(zip(parameters(cls), args, strict=False)) | dict(options)


def matched(arguments: Mapping[str, Any], outputs: Sequence[Any]) -> tuple[str | None, ...]:
    """The arguments that a block's outputs continue, by their shapes; of several, the one that points most its way."""
    taken: list[str | None] = []
    for output in outputs:
        alike = [
            name
            for name, value in arguments.items()
            if isinstance(value, Tensor) and isinstance(output, Tensor) and value.shape == output.shape
            if name not in taken
        ]
        taken.append(max(alike, key=lambda name: cosine(arguments[name], output)) if alike else None)
    return tuple(taken)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors; 0 where they hold no numbers, as on the meta device."""
    if a.is_meta or b.is_meta:
        return 0.0
    return float(nn.functional.cosine_similarity(a.detach().float().flatten(), b.detach().float().flatten(), dim=0))


# A call ---------------------------------------------------------------------------------------------------------------


def trace(transformer: nn.Module, run: Callable[[], Any]) -> Trace:
    """The blocks in the order in which `run()`, one call of the transformer, goes through them, with their streams.

    Raises InputError for a block that runs twice in a call, and for one that returns no tensors.
    """
    seen, modules = Seen(facts(transformer)), blocks(transformer)

    def hook(block: Block) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
            if any(block.path == other.path for other in seen.blocks):
                raise InputError(f"{type(transformer).__name__}: {block.name} runs twice in one call")
            seen.add(block, module, bound(module, args, options), output)

        return look

    hooks = [modules[b.name].register_forward_hook(hook(b), with_kwargs=True) for b in found(transformer)]
    hooks.append(transformer.register_forward_pre_hook(seen.start, with_kwargs=True))
    try:
        run()
    finally:
        for handle in hooks:
            handle.remove()
    if not seen.blocks:
        raise InputError(f"{type(transformer).__name__}: the call went through none of its blocks")
    return Trace(tuple(seen.blocks), seen.image_tokens, seen.text)


class Seen:
    """What a call has shown so far: its blocks, and how a joint stream was put together."""

    def __init__(self, told: Facts) -> None:
        self.told = told
        self.blocks: list[Block] = []
        self.image_tokens = 0
        self.rows = 0  # of the batch that the transformer is given
        self.text = ""
        self.last: dict[str, Tensor] = {}  # of each stream, what the last block left

    def start(self, module: nn.Module, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Before the first block: latents that are tokens already say how many belong to the image."""
        given = args[0] if args else next(iter(options.values()), None)
        self.rows = len(given) if isinstance(given, (Tensor, list)) else 0
        if isinstance(given, Tensor) and given.ndim == 3:
            self.image_tokens = given.shape[1]

    def add(self, block: Block, module: nn.Module, arguments: Mapping[str, Any], output: Any) -> None:
        """After a block: its streams, and with the first joint one where text and image stand in it."""
        block = observed(block, module, arguments, output, self.told)
        if block.bare and self.is_joint(block, output):
            block = replace(block, streams=(Stream("joint", block.streams[0].argument),))
            self.text = self.text or self.place_of_text(block, arguments[block.streams[0].argument or ""])
        for stream, x in zip(block.streams, [output] if block.bare else output, strict=True):
            if stream.name and self.rows and len(x) != self.rows:
                raise InputError(
                    f"{block.name}: {type(module).__name__} works on {len(x)} rows where the batch has {self.rows}; "
                    "only blocks over (rows, tokens, channels) can be watched"
                )
            if stream.name == "img":
                self.image_tokens = x.shape[1]
            if stream.name:
                self.last[stream.name] = x
        self.blocks.append(block)

    def is_joint(self, block: Block, output: Tensor) -> bool:
        """Whether the one output of a block is a joint stream: told, or as long as both streams before it."""
        before = [self.last[name].shape[1] for name in ("img", "txt") if name in self.last]
        return block.streams[0].name == "joint" or (len(before) == 2 and sum(before) == output.shape[1])

    def place_of_text(self, block: Block, joint: Tensor) -> str:
        """Where text tokens stand in what the first joint block is given: told, or seen by where the image's are."""
        told, image = self.told.joint.get(block.path.rpartition(".")[0], ""), self.last.get("img")
        if told or image is None or image.is_meta or not torch.is_tensor(joint):
            return told
        n = image.shape[1]
        return "first" if torch.equal(joint[:, -n:], image) else "last" if torch.equal(joint[:, :n], image) else ""


def observed(block: Block, module: nn.Module, arguments: Mapping[str, Any], output: Any, told: Facts) -> Block:
    """A block as one of its calls shows it; outputs that its class does not explain are matched to its arguments."""
    bare = isinstance(output, Tensor)
    if not bare and not isinstance(output, (tuple, list)):
        raise InputError(
            f"{block.name}: {type(module).__name__} returns `{type(output).__name__}`; only blocks that return tensors "
            "or tuples of them can be watched"
        )
    outputs = [output] if bare else list(output)
    explained = len(block.streams) == len(outputs)
    known = tuple(s.argument for s in block.streams) if explained else matched(arguments, outputs)
    streams = block_of(block.name, block.path, known, bare, told).streams
    absent = Stream("", None)  # as the text of SD3's last block
    kept = tuple(absent if x is None else s for s, x in zip(streams, outputs, strict=True))
    return replace(block, streams=kept, bare=bare)


def check_order(model: str, first: Sequence[str], now: Sequence[str], step: int) -> None:
    """Refuse a model whose blocks run in another order at a later step than at the first."""
    for was, block in zip_longest(first, now, fillvalue="none"):
        if was != block:
            raise InputError(
                f"{model}: its blocks run in another order at step {step} than at step 0 ({block} where {was} ran); "
                "blocks that change places cannot be captured"
            )


# Layers ---------------------------------------------------------------------------------------------------------------


def layer_kinds(transformer: nn.Module) -> dict[str, str]:
    """The kind, one of KINDS, of every layer with weights of its own by its path, in the order of the module tree."""
    inside = tuple(f"{path}." for path in block_lists(transformer))
    width = block_width(transformer)
    kinds = {}
    for path, module in transformer.named_modules():
        if "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False)):
            kinds[path] = "norm"
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            kinds[path] = (
                kind_in_block(transformer, path) if path.startswith(inside) else kind_outside(path, module, width)
            )
    return kinds


def kind_in_block(transformer: nn.Module, path: str) -> str:
    """The kind of a linear layer of a block."""
    parents = path.split(".")
    attention = next(
        (i for i in range(1, len(parents)) if is_attention(transformer.get_submodule(".".join(parents[:i])))), None
    )
    if attention is not None:
        return kind_in_attention(parents[attention])
    return "modulation" if MODULATION.search(path.lower()) else "mlp"


def kind_in_attention(name: str) -> str:
    """The kind of a layer of an attention by its name there: `to_q`, `add_k_proj`, `to_qkv_mlp_proj`, `to_out`."""
    letters = "".join(QKV.findall(name))
    if len(letters) > 1:
        return "attention_qkv"
    return f"attention_{letters}" if letters else "attention_gate" if "gate" in name else "attention_out"


def kind_outside(path: str, module: nn.Module, width: int) -> str:
    """The kind of a layer that is in no block: modulation for all of them, the last projection, or an embedding."""
    if OUTPUT.search(path):
        return "output"
    wide = isinstance(module, nn.Linear) and module.in_features == width < module.out_features
    if MODULATION.search(path.lower()) or (wide and module.out_features % width == 0):
        return "modulation"
    return "embedding"


def block_width(transformer: nn.Module) -> int:
    """Channels of the tokens that blocks work on: what most of their queries are projected from; 0 where unknown."""
    for part in block_lists(transformer).values():
        for module in part[0].modules():
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and "q" in "".join(QKV.findall(name)):
                    return child.in_features
    return 0


def on_meta(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A model of diffusers built from its config without weights."""
    with torch.device("meta"):
        model: nn.Module = cls.from_config(dict(config))
    return model.eval()
