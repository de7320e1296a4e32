"""Step caching: a denoising step takes over what the blocks did in an earlier one where little has changed since.

By diffusers' own hooks on the transformer's blocks. What a step adds to its input (the residual) is kept, and a step
that is skipped adds it again. The methods differ in what tells that little has changed:

- `first-block`: the relative L1 change of the first block's residual since the last full step (First Block Cache);
- `teacache`: the relative L1 change of the first block's modulated input, through a polynomial fitted to the change of
  the blocks' output, summed over the steps since the last full one (TeaCache, arXiv 2411.19108, equations 4 to 7); as
  in `first-block`, the first block always runs, and so does the first step;
- `magcache`: the ratio of the residual's magnitude to that of the step before, known beforehand for every step, whose
  accumulated deviation from 1 is summed (MagCache, arXiv 2506.09045).

Ratios and polynomial belong to a model and a number of steps: they are taken from a few runs before the first picture
of each number of steps (`Profile`), on the quantized model that they are for.
"""

import inspect
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    ModelHook,
    apply_first_block_cache,
    apply_mag_cache,
)
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK, FBCHeadBlockHook
from diffusers.hooks.hooks import CacheContext
from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.models.loading import Generator
from ditscope.models.sampling import sample, transformers_of

NEVER = -1.0  # a threshold that no change is below: what a threshold of 0 means, bit for bit
PROFILE_SEEDS = range(4)  # of the runs that a profile is taken from, with an empty prompt
DEGREE = 4  # of TeaCache's polynomial, where there are PER_DEGREE steps for each power: it is fitted to 50 in the paper
PER_DEGREE = 5
OUR_HOOKS = ("ditscope_head", "ditscope_tail", "ditscope_root")
THEIR_HOOKS = (_FBC_LEADER_BLOCK_HOOK, _FBC_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK, _MAG_CACHE_BLOCK_HOOK)


@dataclass(frozen=True)
class Profile:
    """What is known of a model's steps before any of them is skipped."""

    ratios: list[float]  # (steps,) magnitude of the residual over that of the step before, mean over tokens
    coefficients: list[float]  # of the polynomial, highest power first: change of the output of that of the input
    input_change: list[float]  # (steps,) relative L1 change of the first block's modulated input
    output_change: list[float]  # (steps,) relative L1 change of the output of the blocks

    def change(self, of_input: float) -> float:
        """The change of the output that a change of the input stands for; beyond what was seen, that at its border."""
        seen = self.input_change[1:]
        within = min(max(of_input, min(seen)), max(seen))
        return max(0.0, float(np.polyval(self.coefficients, within)))


class Watch(ModelHook):
    """Closest to a block: sees what goes in and comes out of it where it really runs."""

    def __init__(self, cache: "StepCache", metadata: Any) -> None:
        super().__init__()
        self.cache, self.metadata, self.text = cache, metadata, None

    def argument(self, name: str, args: Any, options: Any) -> Any:
        """An argument of the block by name."""
        return self.metadata._get_parameter_from_args_kwargs(name, args, options)


class Head(Watch):
    """At the first block: notes its input."""

    def pre_forward(self, module: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
        """See `Watch`."""
        if self.cache.recorded is not None:
            hidden = self.argument(self.metadata.hidden_states_argument_name, args, options)
            modulated = modulated_input(module, hidden, options) if can_modulate(module) else None
            self.cache.recorded.append([hidden, modulated, None])
        return args, options


class Tail(Watch):
    """At the last block: counts the steps in full, and passes the text on where the block gives none."""

    def pre_forward(self, module: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
        """See `Watch`."""
        if self.metadata.return_encoder_hidden_states_index is not None:
            self.text = self.argument(self.metadata.encoder_hidden_states_argument_name, args, options)
        return args, options

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """See `Watch`."""
        self.cache.computed += 1
        text, index = self.metadata.return_encoder_hidden_states_index, self.metadata.return_hidden_states_index
        if isinstance(output, tuple) and text is not None and output[text] is None:  # the last block of SD3
            output = tuple(self.text if i == text else value for i, value in enumerate(output))
        if self.cache.recorded is not None:
            self.cache.recorded[-1][2] = output[index] if isinstance(output, tuple) else output
        return output


class Root(ModelHook):
    """At the transformer: counts its calls and names those that the pipeline does not name."""

    def __init__(self, cache: "StepCache") -> None:
        super().__init__()
        self.cache = cache

    def pre_forward(self, module: nn.Module, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Raises InputError where a pipeline calls the transformer twice in a step without telling the calls apart."""
        self.cache.calls += 1
        states = self.cache.leader.state_manager
        if states._context is None:
            states.set_context(CacheContext("unnamed"))
        timestep = options.get("timestep")
        now = (states._context.name, timestep.max().item() if isinstance(timestep, Tensor) else timestep)
        if now == self.cache.last and timestep is not None:
            raise InputError(
                f"{self.cache.model}: its pipeline calls the transformer twice in a step and does not name the calls, "
                "so that a step cache would mix them; leave out what asks for the second (`call` of the model's entry)"
            )
        self.cache.last = now
        return args, options


class TeaCacheHead(FBCHeadBlockHook):
    """First Block Cache's hook with TeaCache's rule."""

    def __init__(self, state_manager: Any, threshold: float) -> None:
        super().__init__(state_manager, threshold)
        self.profile: Profile | None = None
        self.before: dict[str, Tensor] = {}  # by context: modulated input of the step before
        self.summed: dict[str, float] = {}  # by context: estimated change since the last full step

    def new_forward(self, module: nn.Module, *args: Any, **options: Any) -> Any:
        """See diffusers."""
        hidden = self._metadata._get_parameter_from_args_kwargs("hidden_states", args, options)
        self.modulated = modulated_input(module, hidden, options)
        return super().new_forward(module, *args, **options)

    @torch.compiler.disable
    def _should_compute_remaining_blocks(self, hidden_states_residual: Tensor) -> bool:
        context = self.state_manager.context.name
        before, self.before[context] = self.before.get(context), self.modulated
        if before is None or self.profile is None:
            return True
        change = self.profile.change(relative_change(self.modulated, before))
        self.summed[context] = self.summed.get(context, 0.0) + change
        if self.summed[context] > self.threshold:
            self.summed[context] = 0.0
            return True
        return False

    def reset_state(self, module: nn.Module) -> nn.Module:
        """See diffusers."""
        self.before, self.summed = {}, {}
        return super().reset_state(module)


class StepCache:
    """The cache of one transformer: its hooks, what it knows of the model's steps, and what it has skipped."""

    def __init__(self, model: str, transformer: nn.Module, method: str, threshold: float) -> None:
        self.model, self.transformer, self.method = model, transformer, method
        self.threshold = threshold if threshold > 0 else NEVER
        self.profiles: dict[int, Profile] = {}
        self.recorded: list[list[Any]] | None = None  # while a profile is taken: input, modulated input, output
        self.calls = self.computed = 0
        self.last: Any = None
        blocks = cached_blocks(transformer)
        for block, kind, name in ((blocks[0], Head, OUR_HOOKS[0]), (blocks[-1], Tail, OUR_HOOKS[1])):
            hook = kind(self, TransformerBlockRegistry.get(type(block)))
            HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, name)
        if method == "magcache":
            self.config = MagCacheConfig(NEVER, num_inference_steps=1, mag_ratios=[1.0])
            apply_mag_cache(transformer, self.config)
            self.leader = blocks[0]._diffusers_hook.get_hook(_MAG_CACHE_LEADER_BLOCK_HOOK)
        else:
            apply_first_block_cache(transformer, FirstBlockCacheConfig(NEVER))
            self.leader = blocks[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)
        if method == "teacache":
            registry, states = blocks[0]._diffusers_hook, self.leader.state_manager
            registry.remove_hook(_FBC_LEADER_BLOCK_HOOK, recurse=False)
            self.leader = TeaCacheHead(states, NEVER)
            registry.register_hook(self.leader, _FBC_LEADER_BLOCK_HOOK)
        root = HookRegistry.check_if_exists_or_initialize(transformer)
        root.register_hook(Root(self), OUR_HOOKS[2])
        root.invalidate_child_registries_cache()

    def start(self, generator: Generator, steps: int) -> None:
        """Empty the cache before a run of `steps`; before the first of that many, take the profile that it goes by."""
        if self.recorded is None and self.method != "first-block" and steps not in self.profiles:
            self.profiles[steps] = self.profile(generator, steps)
        self.set(NEVER if self.recorded is not None else self.threshold, steps)
        self.transformer._diffusers_hook.reset_stateful_hooks()
        self.last = None

    def set(self, threshold: float, steps: int) -> None:
        """Have diffusers' hooks go by a threshold and the profile of a number of steps."""
        profile = self.profiles.get(steps)
        if self.method == "magcache":
            self.config.threshold, self.config.num_inference_steps = threshold, steps
            self.config.mag_ratios = torch.tensor(profile.ratios if profile else [1.0] * steps)
            return
        self.leader.threshold = threshold
        if self.method == "teacache":
            self.leader.profile = profile

    def profile(self, generator: Generator, steps: int) -> Profile:
        """Watch runs of `steps` in full: an empty prompt with each of PROFILE_SEEDS. They are not counted."""
        counted, runs = (self.calls, self.computed), []
        for seed in PROFILE_SEEDS:
            self.recorded = []
            try:
                sample(generator, [""], [""], [seed], steps=steps)
                runs.append(self.recorded)
            finally:
                self.recorded = None
        self.calls, self.computed = counted
        return profile_of([run[:: len(run) // steps] for run in runs])

    def remove(self) -> None:
        """Take the hooks off the transformer."""
        registry = self.transformer._diffusers_hook
        for name in (*THEIR_HOOKS, *OUR_HOOKS):
            registry.remove_hook(name)
        registry.invalidate_child_registries_cache()
        del self.transformer.step_cache

    @property
    def skipped(self) -> int:
        """Calls of the transformer that were answered from the cache."""
        return self.calls - self.computed


def enable(generator: Generator, method: str, threshold: float) -> str:
    """Have a generator skip steps; the reason if diffusers cannot do that to its transformer, else an empty string."""
    transformers = transformers_of(generator.pipe)
    if len(transformers) > 1:
        return "its pipeline has two transformers, which take turns: a step cache would start anew with each"
    if reason := refusal(transformers[0], method):
        return reason
    transformers[0].step_cache = StepCache(generator.name, transformers[0], method, threshold)
    return ""


def refusal(transformer: nn.Module, method: str) -> str:
    """Why diffusers' cache hooks cannot be put on a transformer; empty where they can."""
    name, version = type(transformer).__name__, f"diffusers {diffusers.__version__}"
    if hasattr(transformer, "mmdit"):
        return "step caching is by diffusers' hooks on torch's blocks; MLX runs the transformer here"
    blocks = cached_blocks(transformer)
    if len(blocks) < 2:
        return f"{version} finds no list of blocks in {name} to put its cache hooks on"
    for kind in {type(block): None for block in blocks}:
        try:
            metadata = TransformerBlockRegistry.get(kind)
        except ValueError:
            return f"{version} has no cache hooks for {kind.__name__}, a block of {name}"
        if method != "magcache" and metadata.hidden_states_argument_name != "hidden_states":
            return f"{version}'s First Block Cache does not know the arguments of {kind.__name__}; take magcache"
    if method == "teacache" and not can_modulate(blocks[0]):
        return f"teacache reads `norm1(hidden_states, emb=temb)` of the first block, which {name}'s has not"
    return ""


def cached_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks that diffusers' cache hooks take for those of a transformer, in their order."""
    lists = [m for n, m in transformer.named_children() if n in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS]
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]


def can_modulate(block: nn.Module) -> bool:
    """Whether a block modulates its input by `norm1(hidden_states, emb=temb)`, as those of FLUX.1 and SD3 do."""
    norm = getattr(block, "norm1", None)
    takes_time = "temb" in inspect.signature(type(block).forward).parameters
    return norm is not None and takes_time and "emb" in inspect.signature(type(norm).forward).parameters


def modulated_input(block: Any, hidden: Tensor, options: dict[str, Any]) -> Tensor:
    """The first block's input (batch, tokens, channels) after its modulation by the time."""
    out = block.norm1(hidden, emb=options["temb"])
    return out[0] if isinstance(out, tuple) else out


def relative_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference of two tensors over the mean absolute value of the earlier (TeaCache, equation 4)."""
    return float((now - before).abs().mean() / before.abs().mean())


def profile_of(runs: list[list[list[Any]]]) -> Profile:
    """The profile of runs that were watched in full: of each step the input, the modulated input and the output."""
    ratios, inputs, outputs = [], [], []
    for run in runs:
        residuals = [out[:, -hidden.shape[1] :] - hidden for hidden, _, out in run]
        norms = [r.float().norm(dim=-1) for r in residuals]
        ratios.append([1.0] + [float((b / (a + 1e-8)).mean()) for a, b in pairwise(norms)])
        pairs = list(pairwise(run))
        inputs.append([0.0] + [math.nan if b[1] is None else relative_change(b[1], a[1]) for a, b in pairs])
        outputs.append([0.0] + [relative_change(b[2], a[2]) for a, b in pairs])
    x, y = np.array(inputs)[:, 1:], np.array(outputs)[:, 1:]
    fits = x.size and np.isfinite(x).all()
    degree = min(DEGREE, len(runs[0]) // PER_DEGREE)
    coefficients = np.polyfit(x.ravel(), y.ravel(), degree).tolist() if fits else []
    ratio, input_change, output_change = (np.mean(values, axis=0).tolist() for values in (ratios, inputs, outputs))
    return Profile(ratio, coefficients, input_change, output_change)
