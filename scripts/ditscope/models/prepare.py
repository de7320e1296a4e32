"""Quantize and compile a model, or say why that cannot be done here."""

import logging
import os
from pathlib import Path

import torch
from torchao.quantization.utils import recommended_inductor_config_setter

from ditscope.core.errors import first_line
from ditscope.models.by_step import follow, schedule_of
from ditscope.models.emulate.inputs import Measure
from ditscope.models.loading import Generator
from ditscope.models.quantize import apply_scheme, unsupported, unsupported_plan
from ditscope.models.sampling import transformers_of
from ditscope.models.settings import Scheme
from ditscope.models.step_cache import enable
from ditscope.models.text_encoders import quantize_encoders

log = logging.getLogger(__name__)

MODES = ("reduce-overhead", "max-autotune")  # of torch.compile, over the whole transformer, with CUDA graphs
AUTOTUNE_PROCESSORS = 68  # fewer: inductor times no matrix kernels of its own (torch._inductor.utils.is_big_gpu)


def prepare(
    generator: Generator, scheme: Scheme, compile: str, plan: Path | None, measure: Measure | None = None
) -> str:
    """Quantize and compile the transformer in place; the reason if that is not possible here, else an empty string.

    Of a pipeline with two of them (Wan 2.2), both. Text encoders are quantized where the scheme says so, and not
    compiled. `measure` runs the calibration set of a scheme that needs one.
    """
    transformers = transformers_of(generator.pipe)
    on_mlx = generator.computes_on == "mlx"
    reason = unsupported(scheme, generator.computes_on, generator.entry.dtype)
    if plan and not reason:
        reason = unsupported_plan(plan, generator.computes_on, generator.entry.dtype)
    if reason := reason or uncompilable(compile, generator.computes_on):
        return reason
    try:
        for transformer in transformers:
            apply_scheme(transformer, scheme, plan, measure)
        quantize_encoders(generator.pipe, scheme)
    except (RuntimeError, NotImplementedError, ImportError, AssertionError) as error:  # a kernel that is not there
        log.exception("%s cannot be quantized", generator.name)
        return first_line(error)
    for transformer in transformers:
        if schedule := schedule_of(transformer):
            follow(generator.pipe.scheduler, schedule)
    if scheme.cache and (reason := enable(generator, scheme.cache, scheme.cache_threshold)):
        return reason
    if compile == "eager":
        return ""
    if on_mlx:
        generator.pipe.transformer.compile()
        return ""
    mode = {"mode": compile} if compile in MODES else {}
    if scheme.compile_vae:
        generator.pipe.vae.decoder.compile(dynamic=False, **mode)
    recommended_inductor_config_setter()  # torchao's settings, for the base as well
    # Static shapes: the batch sizes are few, and one graph for all of them would be slower than one for each.
    for transformer in transformers:
        if compile != "regional":
            transformer.compile(dynamic=False, **mode)
        else:
            for block in generator.family.blocks(transformer).values():
                block.compile(dynamic=False)
    return ""


def uncompilable(compile: str, computes_on: str) -> str:
    """Why a compile state cannot run on cuda, mps, cpu or mlx here; empty where it can.

    Sets torch.compile's caches inside the project.
    """
    if compile == "eager" or (computes_on == "mlx" and compile == "full"):
        return ""
    if computes_on == "mlx":
        return "MLX compiles the whole transformer at once, in one way; take `compile: full`"
    if compile == "reduce-overhead" and computes_on != "cuda":
        return f"reduce-overhead is CUDA graphs, which {computes_on} has not; take `compile: full`"
    if compile == "max-autotune" and computes_on == "mps":
        return "inductor has no kernels to choose from on mps; take `compile: full`"
    if compile == "max-autotune" and computes_on == "cuda":
        processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        if processors < AUTOTUNE_PROCESSORS:
            least = f"{AUTOTUNE_PROCESSORS} multiprocessors, this GPU has {processors}"
            return f"max-autotune chooses matrix kernels from {least}; take `compile: reduce-overhead`"
    cache = Path("resources/.cache").absolute()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return "torch.compile needs a C++ compiler (g++); install one or set CXX"
    return ""
