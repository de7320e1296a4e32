"""Where each layer of a diffusers transformer is in DiffusionKit's MMDiT, and what MLX packs; no MLX needed."""

import re
from dataclasses import dataclass

# Layers outside blocks, then those of a joint (double) block and of a single block: names in diffusers, then the MMDiT.
OUTSIDE = {
    "x_embedder": "x_embedder.proj",
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed": "x_pos_embedder.pos_embed",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.layers.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.layers.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.layers.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.layers.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.layers.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.layers.2",
    "norm_out.linear": "final_layer.adaLN_modulation.layers.1",
    "proj_out": "final_layer.linear",
}
JOINT = {
    "norm1.linear": "image_transformer_block.adaLN_modulation.layers.1",
    "norm1_context.linear": "text_transformer_block.adaLN_modulation.layers.1",
    "attn.to_q": "image_transformer_block.attn.q_proj",
    "attn.to_k": "image_transformer_block.attn.k_proj",
    "attn.to_v": "image_transformer_block.attn.v_proj",
    "attn.to_out.0": "image_transformer_block.attn.o_proj",
    "attn.add_q_proj": "text_transformer_block.attn.q_proj",
    "attn.add_k_proj": "text_transformer_block.attn.k_proj",
    "attn.add_v_proj": "text_transformer_block.attn.v_proj",
    "attn.to_add_out": "text_transformer_block.attn.o_proj",
    "attn.norm_q": "image_transformer_block.qk_norm.q_norm",
    "attn.norm_k": "image_transformer_block.qk_norm.k_norm",
    "attn.norm_added_q": "text_transformer_block.qk_norm.q_norm",
    "attn.norm_added_k": "text_transformer_block.qk_norm.k_norm",
    "ff.net.0.proj": "image_transformer_block.mlp.fc1",
    "ff.net.2": "image_transformer_block.mlp.fc2",
    "ff_context.net.0.proj": "text_transformer_block.mlp.fc1",
    "ff_context.net.2": "text_transformer_block.mlp.fc2",
}
SINGLE = {
    "norm.linear": "adaLN_modulation.layers.1",
    "attn.to_q": "attn.q_proj",
    "attn.to_k": "attn.k_proj",
    "attn.to_v": "attn.v_proj",
    "attn.norm_q": "qk_norm.q_norm",
    "attn.norm_k": "qk_norm.k_norm",
    "proj_mlp": "mlp.fc1",
}
MLX_BITS = (2, 3, 4, 5, 6, 8)  # that MLX packs
MLX_GROUPS = (32, 64, 128)  # weights of a row that can share a scale there
AFFINE = "affine"  # MLX's mode of integers with a scale and a bias per group
MLX_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # its modes of floats: bits, weights per 8-bit scale
BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class MlxConfig:
    """What MLX does to a linear layer: MLX_BITS with a scale and a bias per group, 16 (bfloat16), or of MLX_MODES."""

    bits: int
    group_size: int  # of MLX_GROUPS, or a mode's own; 0 with 16 bits
    mode: str = AFFINE


def mmdit_paths(layer: str) -> tuple[str, ...]:
    """Paths in the MMDiT of a diffusers layer: one, or two where the MMDiT splits it by its inputs.

    A single block's `proj_out` reads attention and MLP at once; the MMDiT has a layer for each and adds them. Raises
    KeyError for a layer that the MMDiT does not have.
    """
    block = BLOCK.fullmatch(layer)
    if block is None:
        return (OUTSIDE[layer],)
    single, number, inner = block.groups()
    if not single:
        return (f"multimodal_transformer_blocks.{number}.{JOINT[inner]}",)
    prefix = f"unified_transformer_blocks.{number}.transformer_block"
    if inner == "proj_out":
        return f"{prefix}.attn.o_proj", f"{prefix}.mlp.fc2"
    return (f"{prefix}.{SINGLE[inner]}",)


def row_lengths(layer: str, in_features: int, out_features: int) -> tuple[int, ...]:
    """Inputs of each part of a diffusers layer in the MMDiT: what a group of weights must divide."""
    return (in_features,) if len(mmdit_paths(layer)) == 1 else (out_features, in_features - out_features)
