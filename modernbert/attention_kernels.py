"""The attention backends of GPUs: which of them can run, and their kernels.

They give the results of `torch_attention`, which "sdpa" (every CPU) and "eager" (the plain formula)
are.

Shapes: T packed tokens, B sequences, N heads, H head dim.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from modernbert import gpu
from modernbert.torch_attention import Window

BACKENDS = ("flash_attn_3", "torch_varlen", "flash_attn", "flash_attn_4", "sdpa", "eager")
"""The attention backends, in the order in which "auto" tries them; on GPUs of compute capability
10.0 and above, which flash-attn 4 is written for, that one comes first.
"""
TORCH_BACKENDS = ("sdpa", "eager")
"""The backends of every device, which have no kernel of their own."""
_MODULES = {
    "flash_attn_3": "flash_attn_interface",
    "flash_attn": "flash_attn",
    "flash_attn_4": "flash_attn.cute",
}
FLASH_ATTN_2 = ("torch_varlen", "flash_attn")
"""The backends whose kernels are flash-attn 2's, which start blocks that find nothing to do."""
_BLOCK_QUERIES = 128  # of flash-attn 2
BLOCKS_PER_LAUNCH = 1200
"""How many idle blocks take as long as a launch (an estimate)."""


def started_blocks(sequences: int, longest: int) -> int:
    """Return the blocks of queries that flash-attn 2 starts for a head."""
    return sequences * -(-longest // _BLOCK_QUERIES)


def run_kernel(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    longest: int,
    window: Window,
    dropout: float,
    deterministic: bool,
) -> Tensor:
    """Compute `attention.varlen_attention` by the kernel of a GPU backend; `longest`: the tokens of
    the longest sequence.
    """
    bound = _bound(longest, window)
    kernel = _kernel(backend)
    no_window = (None, None) if backend == "flash_attn_4" else (-1, -1)
    window_size = window or no_window
    if backend == "torch_varlen":
        out: Tensor = kernel(q, k, v, cu_seqlens, cu_seqlens, bound, bound, window_size=window_size)
        return out

    options: dict[str, Any] = {}  # they differ between the packages
    if backend == "flash_attn":
        options["dropout_p"] = dropout
        options["deterministic"] = deterministic
    else:
        # The keys of a query are never split by what else the GPU has to do.
        options["num_splits"] = 1
    result = kernel(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=bound,
        max_seqlen_k=bound,
        window_size=window_size,
        **options,
    )
    # Some versions return the log-sum-exp as well.
    out = result[0] if isinstance(result, tuple) else result
    return out


def kernel_that_writes(backend: str) -> Callable[..., None] | None:
    """Return a kernel of a backend that writes into a tensor that it is given; None where there is
    none, or gradients are wanted.

    Its arguments: the result (T, N, H), queries, keys, values, cu_seqlens, `longest`, `window`.
    """
    if backend != "torch_varlen" or torch.is_grad_enabled():
        return None
    kernel = _varlen_attn_out()
    if kernel is None:
        return None

    def write(
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        *,
        longest: int,
        window: Window,
    ) -> None:
        bound = _bound(longest, window)
        window_size = window or (-1, -1)
        kernel(out, q, k, v, cu_seqlens, cu_seqlens, bound, bound, window_size=window_size)

    return write


def _bound(longest: int, window: Window) -> int:
    """Return the bound of lengths that kernels are given.

    They ignore a window that covers the bound: one above both keeps to one code path for every
    batch.
    """
    whole_blocks = -(-longest // _BLOCK_QUERIES) * _BLOCK_QUERIES
    return max(_BLOCK_QUERIES, whole_blocks, window[1] + 2 if window else 0)


@cache
def _varlen_attn_out() -> Callable[..., Any] | None:
    """Import torch's varlen kernel that writes into a given tensor; None before torch 2.13."""
    try:
        from torch.nn.attention.varlen import varlen_attn_out
    except ImportError:
        return None
    return varlen_attn_out


@cache
def resolve_backend(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool = False
) -> str:
    """Return the attention backend that `name` stands for.

    Args:
        name: one of BACKENDS, or "auto" for the first of them that can run.
        device: where the model runs.
        dtype: the dtype of queries, keys and values.
        head_dim: H, the width of a head.
        dropout: whether the backend must be able to drop attention weights.

    Raises:
        ValueError: for an unknown name, and for a backend that cannot run here; the message says
            what it needs.

    Example:
        >>> resolve_backend("auto", torch.device("cpu"), torch.float32, 64)
        'sdpa'
    """
    if name not in (*BACKENDS, "auto"):
        raise ValueError(
            f"attention backend {name!r} is unknown; known are auto, {', '.join(BACKENDS)}"
        )
    if name == "auto":
        available = (
            backend
            for backend in _order(device)
            if not _missing(backend, device, dtype, head_dim, dropout)
        )
        return next(available)
    if missing := _missing(name, device, dtype, head_dim, dropout):
        raise ValueError(
            f"attention backend {name!r} {missing}; 'auto' would take the best one there is"
        )
    return name


def _order(device: torch.device) -> tuple[str, ...]:
    """Return BACKENDS in the order in which "auto" tries them."""
    if device.type != "cuda" or gpu.compute_capability(device) < (10, 0):
        return BACKENDS
    others = [backend for backend in BACKENDS if backend != "flash_attn_4"]
    return ("flash_attn_4", *others)


def _missing(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool
) -> str:
    """Return what a backend lacks to run here, or an empty text."""
    if backend in TORCH_BACKENDS:
        return ""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return f"needs a CUDA device and float16 or bfloat16, not {device.type} and {dtype}"
    capability = gpu.compute_capability(device)
    if capability < (8, 0) or (backend == "flash_attn_3" and capability != (9, 0)):
        needed = "9.0" if backend == "flash_attn_3" else "8.0 or above"
        return f"needs a GPU of compute capability {needed}, not {capability[0]}.{capability[1]}"
    if head_dim % 8 or head_dim > 256:
        return f"needs heads whose width is a multiple of 8 and at most 256, not {head_dim}"
    if dropout and backend != "flash_attn":
        return "has no dropout, which attention_dropout asks for in training"
    # Packages fail in any way: they are not there, built for another torch or another GPU.
    try:
        _kernel(backend)
    except Exception as error:
        return f"cannot be imported ({_first_line(error)})"
    try:
        _try_kernel(backend, device, dtype, head_dim)
    except Exception as error:
        return f"does not run here ({_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@torch.no_grad()
def _try_kernel(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Run a kernel on one token, global and in a window: builds without windows exist."""
    q = torch.zeros(1, 1, head_dim, dtype=dtype, device=device)
    starts = torch.arange(2, dtype=torch.int32, device=device)
    for window in (None, (64, 64)):
        run_kernel(
            backend,
            q,
            q,
            q,
            starts,
            longest=1,
            window=window,
            dropout=0.0,
            deterministic=False,
        )


@cache
def _kernel(backend: str) -> Callable[..., Any]:  # a tensor, or a tuple that begins with it
    """Import the function of a GPU backend; an error where its package lacks or cannot load it."""
    if backend == "torch_varlen":
        if torch.__version__ < "2.11":
            raise ImportError(f"torch 2.11 or newer is needed, this is {torch.__version__}")
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn
    module = importlib.import_module(_MODULES[backend])
    try:
        function: Callable[..., Any] = module.flash_attn_varlen_func
    except AttributeError as error:  # the folder of another package
        raise ImportError(f"{_MODULES[backend]} has no flash_attn_varlen_func") from error
    return function
