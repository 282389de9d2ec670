"""Attention within each sequence of a packed batch, global or in a sliding window.

The backends give the same results: torch's varlen kernel and three generations of flash-attn on
GPUs, "sdpa" (every CPU) and "eager" (the plain formula), which `torch_attention` has.

Shapes: T packed tokens, B sequences, N heads, H head dim.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from modernbert import gpu
from modernbert.attention_kernels import (
    BLOCKS_PER_LAUNCH,
    FLASH_ATTN_2,
    TORCH_BACKENDS,
    kernel_that_writes,
    resolve_backend,
    run_kernel,
    started_blocks,
)
from modernbert.packing import PackedBatch
from modernbert.torch_attention import (
    FUSED,
    CpuWay,
    Window,
    torch_attention,
    visible_attention,
)

_LENGTH_CLASSES = (128, 512, 2048)  # the upper bounds of all classes of lengths but the last
# How many idle blocks take as long as putting a token's results together (an estimate).
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
    visible: Tensor | None = None
    """(B,), the first tokens of each that its tokens see; None: all."""


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
    """Cut a packed batch into the calls of attention that are fastest: one, unless flash-attn 2
    runs it, or a kernel of a GPU does and sequences have tokens that are not seen.

    flash-attn 2 starts as many blocks for each sequence as the longest one needs. Where sequences
    are in the order of their lengths, and enough of those blocks would find nothing to do, classes
    of lengths are computed one by one. No kernel hides tokens: neighbours that have such are
    computed by `visible_attention`.

    Args:
        batch: the packed batch.
        heads: N, the heads of the model.
        backend: one of BACKENDS.
    """
    seqlens = batch.seqlens
    whole = LengthClass(slice(None), batch.cu_seqlens, seqlens)
    if batch.visible is None:
        return _classes_of(whole, heads, backend)
    (visible_B,) = gpu.upload(batch.cu_seqlens.device, np.array(batch.visible, dtype=np.int32))
    if backend in TORCH_BACKENDS:
        return [whole._replace(visible=visible_B)]
    classes = []
    sequence = 0
    hides_tokens = [seen < length for seen, length in zip(batch.visible, seqlens, strict=True)]
    for hides, run in groupby(hides_tokens):
        stop = sequence + len(list(run))
        stretch = _part(whole, sequence, stop)
        if hides:
            classes.append(stretch._replace(visible=visible_B[sequence:stop]))
        else:
            classes += _classes_of(stretch, heads, backend)
        sequence = stop
    return classes


def _part(whole: LengthClass, first: int, stop: int) -> LengthClass:
    """Return the sequences [first, stop) of a class."""
    before = sum(whole.seqlens[:first])
    tokens = sum(whole.seqlens[first:stop])
    start = (whole.rows.start or 0) + before
    starts_B = whole.cu_seqlens[first : stop + 1]
    if before:
        starts_B = starts_B - before
    return LengthClass(slice(start, start + tokens), starts_B, whole.seqlens[first:stop])


def _classes_of(whole: LengthClass, heads: int, backend: str) -> list[LengthClass]:
    """Cut a class into classes of lengths where that is faster."""
    seqlens = whole.seqlens
    if backend not in FLASH_ATTN_2 or seqlens[-1] <= _LENGTH_CLASSES[0]:
        return [whole]
    if list(seqlens) != sorted(seqlens):
        return [whole]

    # The sequences [first, stop) of each class, as far as there are some.
    bounds = {bisect_right(seqlens, longest) for longest in _LENGTH_CLASSES}
    cuts = sorted({0, *bounds, len(seqlens)})
    spans = list(pairwise(cuts))
    blocks_of_spans = (started_blocks(stop - first, seqlens[stop - 1]) for first, stop in spans)
    saved_blocks = started_blocks(len(seqlens), seqlens[-1]) - sum(blocks_of_spans)
    more_launches = len(spans) - 1
    cost = BLOCKS_PER_LAUNCH * more_launches + _BLOCKS_PER_TOKEN_AND_HEAD * heads * sum(seqlens)
    if saved_blocks * heads < cost:
        return [whole]
    return [_part(whole, first, stop) for first, stop in spans]


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
    """Compute the attention of each class of a batch, (T, N, H); for the other arguments see
    `varlen_attention`.
    """

    def attention_of(each: LengthClass) -> Tensor:
        q_part, k_part, v_part = q[each.rows], k[each.rows], v[each.rows]
        if each.visible is not None:
            return visible_attention(
                q_part,
                k_part,
                v_part,
                seqlens=each.seqlens,
                visible=each.visible,
                window=window,
                dropout=dropout,
            )
        return varlen_attention(
            q_part,
            k_part,
            v_part,
            each.cu_seqlens,
            each.seqlens,
            window,
            backend=backend,
            way=way,
            dropout=dropout,
            deterministic=deterministic,
        )

    if len(classes) == 1:
        return attention_of(classes[0])
    write = kernel_that_writes(backend)
    out_TNH = q.new_empty(q.shape)
    for each in classes:
        rows = each.rows
        if write and each.visible is None:
            longest = max(each.seqlens)
            parts = (out_TNH[rows], q[rows], k[rows], v[rows])
            write(*parts, each.cu_seqlens, longest=longest, window=window)
        else:
            out_TNH[rows].copy_(attention_of(each))
    return out_TNH


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
    if backend in TORCH_BACKENDS:
        plain = backend == "eager"
        return torch_attention(q, k, v, seqlens, window, dropout, plain=plain, way=way)

    return run_kernel(
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
