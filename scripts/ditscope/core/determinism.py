"""The same bytes from every run on one GPU: deterministic kernels, where gradients are taken."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it with its first product: enter before a model computes


def on_cuda() -> bool:
    """Whether this process computes on a CUDA device; a CPU's kernels are deterministic anyway."""
    return torch.cuda.is_available()


@contextmanager
def deterministic() -> Iterator[None]:
    """Within the context, CUDA runs deterministic kernels only, and an operator that has none raises RuntimeError.

    By `torch.use_deterministic_algorithms`: without it, backward passes of attention and convolutions add in an order
    that changes from run to run. It takes time, so sampling, which has no such kernels, goes without.
    """
    if not on_cuda():
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Within the context, CUDA may round the factors of float32 matrix products to TF32, a mantissa of 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
