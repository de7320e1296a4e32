"""Names of layers in the original checkpoints of FLUX.1 and SD3, which stable-diffusion.cpp and ComfyUI go by.

A layer there can be several of diffusers, one below the other: `img_attn.qkv` holds the rows of to_q, to_k and to_v.
Sources: diffusers 0.42.1, `loaders/single_file_utils.py` (`convert_flux_transformer_checkpoint_to_diffusers`,
`convert_sd3_transformer_checkpoint_to_diffusers`), which the tests hold these names against; stable-diffusion.cpp,
`src/name_conversion.cpp` (97d2990, August 2026).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError

Names = Mapping[str, tuple[str, ...]]  # a layer's original name -> its layers in diffusers, in the order of their rows


@dataclass(frozen=True)
class Originals:
    """How the layers of one class of transformers are named in its original checkpoint."""

    outside: Names
    blocks: Mapping[str, tuple[str, Names]]  # list of blocks in diffusers -> list in the original, and names within
    scale: str = "weight"  # what the weight of a normalization is called
    buffers: Mapping[str, str] = field(default_factory=dict)  # further tensors: diffusers -> original

    def original(self, layer: str) -> tuple[str, int] | None:
        """Where a layer of diffusers lies: the original layer, and which part of its rows; None where nowhere."""
        block = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
        if block is None or block[1] not in self.blocks:
            return place(self.outside, layer)
        there, names = self.blocks[block[1]]
        found = place(names, block[3])
        return found and (f"{there}.{block[2]}.{found[0]}", found[1])

    def diffusers(self, name: str) -> tuple[str, ...]:
        """The layers of diffusers that an original layer holds, in the order of their rows. Raises KeyError."""
        block = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", name)
        for here, (there, names) in self.blocks.items():
            if block and block[1] == there:
                return tuple(f"{here}.{block[2]}.{layer}" for layer in names[block[3]])
        return self.outside[name]


def place(names: Names, layer: str) -> tuple[str, int] | None:
    """The original name that holds a layer, and which of its parts it is."""
    return next(((name, layers.index(layer)) for name, layers in names.items() if layer in layers), None)


FLUX = Originals(
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    {
        "transformer_blocks": (
            "double_blocks",
            {
                "img_mod.lin": ("norm1.linear",),
                "txt_mod.lin": ("norm1_context.linear",),
                "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "img_attn.norm.query_norm": ("attn.norm_q",),
                "img_attn.norm.key_norm": ("attn.norm_k",),
                "txt_attn.norm.query_norm": ("attn.norm_added_q",),
                "txt_attn.norm.key_norm": ("attn.norm_added_k",),
                "img_attn.proj": ("attn.to_out.0",),
                "txt_attn.proj": ("attn.to_add_out",),
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                "modulation.lin": ("norm.linear",),
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
                "norm.query_norm": ("attn.norm_q",),
                "norm.key_norm": ("attn.norm_k",),
            },
        ),
    },
    scale="scale",
)
SD3 = Originals(
    {
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    {
        "transformer_blocks": (
            "joint_blocks",
            {
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
                "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                "x_block.attn.ln_q": ("attn.norm_q",),
                "x_block.attn.ln_k": ("attn.norm_k",),
                "context_block.attn.ln_q": ("attn.norm_added_q",),
                "context_block.attn.ln_k": ("attn.norm_added_k",),
                "x_block.attn2.ln_q": ("attn2.norm_q",),
                "x_block.attn2.ln_k": ("attn2.norm_k",),
                "x_block.attn.proj": ("attn.to_out.0",),
                "context_block.attn.proj": ("attn.to_add_out",),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
            },
        )
    },
    buffers={"pos_embed.pos_embed": "pos_embed"},
)
ORIGINALS = {"FluxTransformer2DModel": FLUX, "SD3Transformer2DModel": SD3}
SWAPPED = "AdaLayerNormContinuous"  # its scale and shift stand in the other order in the original


def originals(transformer: nn.Module, runtime: str) -> Originals:
    """The names of a transformer's original checkpoint. Raises InputError for a class whose names are not known."""
    name = type(transformer).__name__
    if name not in ORIGINALS:
        raise InputError(
            f"{runtime} goes by the names of a model's original checkpoint, which are known of {', '.join(ORIGINALS)}, "
            f"not of {name}; export to torchao, sdnq or vllm, which go by the names of diffusers"
        )
    return ORIGINALS[name]


def grouped(transformer: nn.Module, names: Originals) -> dict[str, tuple[str, ...]]:
    """Each original layer of a transformer with the layers of diffusers that it holds, in the order of the modules.

    Raises InputError where a layer has no original name, or an original layer lacks one of its parts.
    """
    layers = [name for name, module in transformer.named_modules() if [*module.parameters(recurse=False)]]
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        there = names.original(layer)
        if there is None or any(part not in layers for part in names.diffusers(there[0])):
            raise InputError(f"layer `{layer}` has no place in the original checkpoint of {type(transformer).__name__}")
        found.setdefault(there[0], names.diffusers(there[0]))
    return found


def original_state(transformer: nn.Module, names: Originals) -> dict[str, Tensor]:
    """The weights of a transformer as its original checkpoint has them, without a prefix."""
    modules, state = dict(transformer.named_modules()), {}
    swapped = {f"{name}.linear" for name, module in modules.items() if type(module).__name__ == SWAPPED}
    for name, layers in grouped(transformer, names).items():
        for parameter, _ in modules[layers[0]].named_parameters(recurse=False):
            values = [getattr(modules[layer], parameter).detach() for layer in layers]
            value = torch.cat(values) if len(values) > 1 else values[0]
            value = torch.cat([*value.chunk(2)][::-1]) if layers[0] in swapped else value
            plain = isinstance(modules[layers[0]], nn.Linear | nn.Conv2d)
            state[f"{name}.{parameter if plain else names.scale}"] = value
    return state | {there: transformer.get_buffer(here) for here, there in names.buffers.items()}
