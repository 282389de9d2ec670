"""Attention within each sequence of a packed batch, global or in a sliding window.

The backends give the same results: torch's varlen kernel and three generations of flash-attn on
GPUs, "sdpa" (every CPU) and "eager" (the plain formula), which `torch_attention` has.

Shapes: T packed tokens, B sequences, N heads, H head dim.
"""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modernbert import gpu
from modernbert.packing import PackedBatch
from modernbert.torch_attention import FUSED, CpuWay, Window, torch_attention

BACKENDS = ("flash_attn_3", "torch_varlen", "flash_attn", "flash_attn_4", "sdpa", "eager")
"""The attention backends, in the order in which "auto" asks for them."""
_TORCH_BACKENDS = ("sdpa", "eager")  # on every device, without a kernel of their own
_MODULES = {
    "flash_attn_3": "flash_attn_interface",
    "flash_attn": "flash_attn",
    "flash_attn_4": "flash_attn.cute",
}
_FLASH_ATTN_2 = ("torch_varlen", "flash_attn")  # the same kernels
_BLOCK_QUERIES = 128  # of flash-attn 2
_LENGTH_CLASSES = (128, 512, 2048)  # the upper bounds of all classes of lengths but the last
# Estimated, in idle blocks: what a launch, and putting a token's results together, take as long as.
_BLOCKS_PER_LAUNCH = 1200
_BLOCKS_PER_TOKEN_AND_HEAD = 0.03


class LengthClass(NamedTuple):
    """Neighbouring sequences of a packed batch whose attention is computed in one call."""

    rows: slice
    """Their tokens in the batch."""
    cu_seqlens: Tensor
    """(B+1,) int32, where each of them starts, counted from the first of their tokens, with the end
    of the last.
    """
    seqlens: Sequence[int]
    """The tokens in each of them, on the host."""


class Attention(Protocol):
    """`packed_attention` with the classes and the backend bound."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: Window,
        dropout: float,
        deterministic: bool,
    ) -> Tensor: ...


def length_classes(batch: PackedBatch, heads: int, backend: str) -> list[LengthClass]:
    """Cut a packed batch into the calls of `varlen_attention` that are fastest: one, unless
    flash-attn 2 runs it.

    That kernel starts as many blocks for each sequence as the longest one needs. Where sequences
    are in the order of their lengths, and enough of those blocks would find nothing to do, classes
    of lengths are computed one by one.

    Args:
        batch: the packed batch.
        heads: N, the heads of the model.
        backend: one of BACKENDS.
    """
    seqlens = batch.seqlens
    whole = [LengthClass(slice(None), batch.cu_seqlens, seqlens)]
    if backend not in _FLASH_ATTN_2 or seqlens[-1] <= _LENGTH_CLASSES[0]:
        return whole
    if list(seqlens) != sorted(seqlens):
        return whole

    # The sequences [first, stop) of each class, as far as there are some.
    bounds = {bisect_right(seqlens, longest) for longest in _LENGTH_CLASSES}
    cuts = sorted({0, *bounds, len(seqlens)})
    spans = list(pairwise(cuts))
    saved_blocks = _blocks(seqlens) - sum(_blocks(seqlens[first:stop]) for first, stop in spans)
    more_launches = len(spans) - 1
    cost = _BLOCKS_PER_LAUNCH * more_launches + _BLOCKS_PER_TOKEN_AND_HEAD * heads * sum(seqlens)
    if saved_blocks * heads < cost:
        return whole

    classes = []
    start = 0
    for first, stop in spans:
        tokens = sum(seqlens[first:stop])
        starts_B = batch.cu_seqlens[first : stop + 1]
        if start:
            starts_B = starts_B - start
        classes.append(LengthClass(slice(start, start + tokens), starts_B, seqlens[first:stop]))
        start += tokens
    return classes


def _blocks(seqlens: Sequence[int]) -> int:
    """Return the blocks of queries that flash-attn 2 starts for a head, for ascending lengths."""
    return len(seqlens) * -(-seqlens[-1] // _BLOCK_QUERIES)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    classes: list[LengthClass],
    window: Window,
    backend: str,
    way: CpuWay = FUSED,
    dropout: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """Compute `varlen_attention` of each class of a batch, (T, N, H), with its other arguments."""
    out = [
        varlen_attention(
            q[rows],
            k[rows],
            v[rows],
            cu_seqlens,
            seqlens,
            window,
            backend=backend,
            way=way,
            dropout=dropout,
            deterministic=deterministic,
        )
        for rows, cu_seqlens, seqlens in classes
    ]
    return out[0] if len(out) == 1 else torch.cat(out)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seqlens: Sequence[int],
    window: Window = None,
    *,
    backend: str = "auto",
    way: CpuWay = FUSED,
    dropout: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """Compute softmax(q k^T / sqrt(H)) v within each sequence of a packed batch.

    Args:
        q: queries (T, N, H), after RoPE.
        k: keys, of the shape and dtype of `q`, after RoPE.
        v: values, of the shape and dtype of `q`.
        cu_seqlens: (B+1,) int32, where each sequence starts, with T at the end.
        seqlens: the tokens in each sequence, on the host.
        window: keys that a query sees to its left and right, both ends inclusive; None: its whole
            sequence.
        backend: one of BACKENDS, or "auto" for the best one available (`resolve_backend`).
        way: how "sdpa" computes it (`cpu_attention.fastest_way`).
        dropout: the probability of dropping an attention weight.
        deterministic: passed to flash-attn, for a deterministic backward pass.

    Returns:
        (T, N, H). The result of a sequence does not depend on its neighbours in the batch. Memory
        grows with T, never with the square of a length, except with "eager".

    Example:
        >>> q, k, v = torch.randn(3, 5, 12, 64)  # a sequence of 2 tokens and one of 3
        >>> starts = torch.tensor([0, 2, 5], dtype=torch.int32)
        >>> varlen_attention(q, k, v, starts, (2, 3), window=(64, 64)).shape
        torch.Size([5, 12, 64])
    """
    if backend == "auto":
        backend = resolve_backend("auto", q.device, q.dtype, q.shape[-1])
    if backend in _TORCH_BACKENDS:
        plain = backend == "eager"
        return torch_attention(q, k, v, seqlens, window, dropout, plain=plain, way=way)

    return _run_kernel(
        backend,
        q,
        k,
        v,
        cu_seqlens,
        longest=max(seqlens),
        window=window,
        dropout=dropout,
        deterministic=deterministic,
    )


def _run_kernel(
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
    """Compute `varlen_attention` by the kernel of a GPU backend; `longest`: the tokens of the
    longest sequence.
    """
    # Kernels ignore a window that covers the bound: one above both keeps to one code path for every
    # batch.
    whole_blocks = -(-longest // _BLOCK_QUERIES) * _BLOCK_QUERIES
    bound = max(_BLOCK_QUERIES, whole_blocks, window[1] + 2 if window else 0)
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
            for backend in BACKENDS
            if not _missing(backend, device, dtype, head_dim, dropout)
        )
        return next(available)
    if missing := _missing(name, device, dtype, head_dim, dropout):
        raise ValueError(
            f"attention backend {name!r} {missing}; 'auto' would take the best one there is"
        )
    return name


def _missing(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool
) -> str:
    """Return what a backend lacks to run here, or an empty text."""
    if backend in _TORCH_BACKENDS:
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
    try:
        _kernel(backend)
    except (ImportError, OSError, RuntimeError) as error:  # not there, or built for another torch
        return f"cannot be imported ({error})"
    return ""


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
