"""Transformers of diffusers pipelines that compute on MLX."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.models.families.common import DTYPES
from ditscope.models.mlx.gradients import Differentiable, Weights
from ditscope.models.mlx.network import MMDiT, build, inexpressible, load, read_weights, velocity
from ditscope.models.mlx.observe import hooked, watched
from ditscope.models.mlx.tensors import to_mlx_array, to_torch
from ditscope.models.settings import Model

MLX_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class OnMlx(nn.Module):
    """What makes a diffusers transformer compute on MLX. As a torch module it has names and shapes, but no memory."""

    mmdit: MMDiT
    source: Path  # the diffusers folder of its weights
    host: torch.device  # of the rest of the pipeline
    predict: Callable[..., mx.array]  # of the MMDiT, perhaps compiled
    wanted: Sequence[str] = ()  # paths of the weights whose gradients `gather` gets, row by row
    gather: Callable[[Weights], None] | None = None

    @property
    def device(self) -> torch.device:
        """Where its inputs come from and its outputs go: diffusers asks the pipeline's first component."""
        return self.host

    def run(self, x: Tensor, text: Tensor, pooled: Tensor, *times: Tensor) -> Tensor:
        """The prediction for latents `x` (batch, height, width, channels); `times` are timestep and guidance."""
        dtype = mx_dtype(self)
        inputs = [to_mlx_array(t).astype(dtype) for t in (x, text, pooled)] + [to_mlx_array(t) for t in times]
        if torch.is_grad_enabled() and (x.requires_grad or self.gather):
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            out: Tensor = Differentiable.apply(leaf, self, inputs)
            return out
        if not hooked(self):
            return to_torch(self.predict(*inputs), x)
        with watched(self, self.mmdit):  # not compiled: a traced layer is called once and for all
            return to_torch(velocity(self.mmdit, *inputs), x)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Let MLX compile the whole transformer; its weights must not change after."""
        self.predict = mx.compile(lambda *inputs: velocity(self.mmdit, *inputs))


class MlxFlux(OnMlx, FluxTransformer2DModel):
    """FLUX on MLX; called as diffusers' own."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Velocity of packed latents (batch, rows * columns, channels), whose places `img_ids` tells."""
        rows, columns = (int(n) + 1 for n in img_ids[:, 1:].amax(0))
        grid = hidden_states.unflatten(1, (rows, columns))
        times = [timestep] if guidance is None else [timestep, guidance]
        thousandths = [t.to(hidden_states.dtype) * 1000 for t in times]
        out = self.run(grid, encoder_hidden_states, pooled_projections, *thousandths)
        return (out.flatten(1, 2),)


class MlxSD3(OnMlx, SD3Transformer2DModel):
    """Stable Diffusion 3 on MLX; called as diffusers' own."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Velocity of latents (batch, channels, height, width)."""
        side, largest = max(hidden_states.shape[-2:]), self.config.pos_embed_max_size
        if side > largest:
            raise InputError(f"latents of {side} on a side; DiffusionKit's MMDiT takes at most {largest} on MLX")
        out = self.run(hidden_states.movedim(1, -1), encoder_hidden_states, pooled_projections, timestep)
        return (out.movedim(-1, 1),)


CLASSES: dict[str, type[OnMlx]] = {"FluxTransformer2DModel": MlxFlux, "SD3Transformer2DModel": MlxSD3}


def load_transformer(folder: Path, name: str, entry: Model, host: torch.device) -> OnMlx:
    """The transformer of a diffusers pipeline's folder, on MLX's default device."""
    source = folder / "transformer"
    config = json.loads((source / "config.json").read_text())
    transformer = empty(config, f"models.{name}.backend", DTYPES[entry.dtype], host)
    transformer.source = source
    load(transformer.mmdit, read_weights(source), MLX_DTYPES[entry.dtype])
    return transformer


def empty(config: dict[str, Any], where: str, dtype: torch.dtype, host: torch.device) -> OnMlx:
    """A transformer of a diffusers config, still without weights. Raises InputError where the MMDiT cannot be it."""
    if reason := inexpressible(config):
        raise InputError(f"{where}: DiffusionKit's MMDiT cannot express {reason}; take `backend: torch`")
    with init_empty_weights(include_buffers=True):
        transformer = CLASSES[config["_class_name"]].from_config(public(config))
    nn.Module.to(transformer, dtype)
    transformer.mmdit, transformer.host = build(config), host
    transformer.predict = lambda *inputs: velocity(transformer.mmdit, *inputs)
    return transformer.requires_grad_(False).eval()


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without its notes on class and version."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def mx_dtype(transformer: OnMlx) -> mx.Dtype:
    """MLX's name of a transformer's type of weights."""
    return MLX_DTYPES[str(transformer.dtype).removeprefix("torch.")]
