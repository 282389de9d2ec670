"""Attention within each sequence of a packed batch, global or in a sliding window.

The backends give the same results: torch's varlen kernel and three generations of flash-attn on
GPUs, "sdpa" (every CPU; sequences of equal length together, a sliding window in tiles) and "eager"
(the plain formula, for tests and attention maps).

Shapes: T packed tokens, B sequences, L tokens of one sequence, R sequences of one length, N heads,
H head dim, G tiles, Q queries a tile, K keys a tile.
"""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert import gpu
from modernbert.packing import PackedBatch

Window = tuple[int, int] | None
"""(left, right): the keys that a query sees on each side, both ends inclusive; None: all keys of
its sequence.
"""
BACKENDS = ("flash_attn_3", "torch_varlen", "flash_attn", "flash_attn_4", "sdpa", "eager")
"""The attention backends, in the order in which "auto" asks for them."""
_MODULES = {
    "flash_attn_3": "flash_attn_interface",
    "flash_attn": "flash_attn",
    "flash_attn_4": "flash_attn.cute",
}
_FLASH_ATTN_2 = ("torch_varlen", "flash_attn")  # the same kernels
AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(queries (R, N, Q, H), keys and values (R, N, K, H), additive mask or None, dropout) -> (R, N, Q,
H).
"""
_LENGTH_CLASSES = (128, 512, 2048)  # the upper bounds of all classes of lengths but the last
_SCORES_IN_CACHE = 1_200_000  # scores computed at a time, of as many sequences or tiles as fit
# query rows computed at a time, head by head, where one sequence has more than twice those scores
_ROWS_PER_STEP = 512


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
    if (
        backend not in _FLASH_ATTN_2
        or seqlens[-1] <= _LENGTH_CLASSES[0]
        or list(seqlens) != sorted(seqlens)
    ):
        return whole
    cuts = sorted({0, *(bisect_right(seqlens, bound) for bound in _LENGTH_CLASSES), len(seqlens)})
    saved = _blocks(seqlens) - sum(_blocks(seqlens[first:stop]) for first, stop in pairwise(cuts))
    # Estimated, in idle blocks: a launch takes as long as 1,200 of them, putting the results
    # together as 0.35 a token
    # of 12 heads.
    if saved * heads < 1200 * (len(cuts) - 2) + 0.03 * heads * sum(seqlens):
        return whole
    classes, start = [], 0
    for first, stop in pairwise(cuts):
        rows = slice(start, start + sum(seqlens[first:stop]))
        starts = batch.cu_seqlens[first : stop + 1]
        classes.append(LengthClass(rows, starts - start if start else starts, seqlens[first:stop]))
        start = rows.stop
    return classes


def _blocks(seqlens: Sequence[int]) -> int:
    """Return the blocks of 128 queries a head that flash-attn 2 starts for ascending lengths."""
    return len(seqlens) * -(-seqlens[-1] // 128)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    classes: list[LengthClass],
    window: Window,
    backend: str,
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
    if backend not in ("sdpa", "eager"):
        # Kernels ignore a window that covers the bound: one above both keeps to one code path for
        # every batch.
        bound = max(128, -(-max(seqlens) // 128) * 128, window[1] + 2 if window else 0)
        kernel = _kernel(backend)
        if backend == "torch_varlen":
            return kernel(
                q, k, v, cu_seqlens, cu_seqlens, bound, bound, window_size=window or (-1, -1)
            )
        options: dict[str, Any] = {
            "window_size": window or ((None, None) if backend == "flash_attn_4" else (-1, -1))
        }
        if backend == "flash_attn":
            options |= {"dropout_p": dropout, "deterministic": deterministic}
        else:
            options |= {
                "num_splits": 1
            }  # the keys of a query are never split by what else the GPU has to do
        result = kernel(
            q,
            k,
            v,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=bound,
            max_seqlen_k=bound,
            **options,
        )
        return (
            result[0] if isinstance(result, tuple) else result
        )  # some versions return the log-sum-exp as well
    attention_fn = _eager if backend == "eager" else _sdpa if dropout or _use_sdpa(q) else _matmul
    out, start = [], 0
    for length, run in groupby(seqlens):
        rows = length * len(list(run))
        q_RLNH, k_RLNH, v_RLNH = (
            x[start : start + rows].unflatten(0, (-1, length)) for x in (q, k, v)
        )
        out.append(
            _equal_lengths(q_RLNH, k_RLNH, v_RLNH, window, attention_fn, dropout).flatten(0, 1)
        )
        start += rows
    return torch.cat(out)


def visible_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    seqlens: Sequence[int],
    visible: Sequence[int],
    window: Window,
    dropout: float = 0.0,
    deterministic: bool = False,  # noqa: ARG001
) -> Tensor:
    """Compute `varlen_attention` where queries see the first `visible` tokens of their sequence,
    and no others.

    For short sequences: the scores of all tokens are computed. Each token must see one.
    """
    out, start = [], 0
    for length, run in groupby(zip(seqlens, visible, strict=True), lambda pair: pair[0]):
        seen_R = torch.tensor([seen for _, seen in run], device=q.device)
        rows = length * len(seen_R)
        q_RNLH, k_RNLH, v_RNLH = (
            x[start : start + rows].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v)
        )
        places = torch.arange(length, device=q.device)
        mask_RLL = (places < seen_R[:, None])[:, None, :].expand(-1, length, -1)
        if window:
            offset_LL = places - places[:, None]
            mask_RLL = mask_RLL & (offset_LL >= -window[0]) & (offset_LL <= window[1])
        y_RNLH = F.scaled_dot_product_attention(
            q_RNLH, k_RNLH, v_RNLH, attn_mask=mask_RLL[:, None], dropout_p=dropout
        )
        out.append(y_RNLH.transpose(1, 2).flatten(0, 1))
        start += rows
    return torch.cat(out)


def attention_maps(
    q: Tensor, k: Tensor, seqlens: tuple[int, ...], window: Window, dropout: float = 0.0
) -> tuple[Tensor, ...]:
    """Compute the attention weights of each sequence by the plain formula.

    Args:
        q: queries (T, N, H), after RoPE.
        k: keys, of the shape and dtype of `q`, after RoPE.
        seqlens: tokens in each sequence, with the sum T.
        window: keys that a query sees to its left and right, both ends inclusive; None: its whole
            sequence.
        dropout: the probability of dropping a weight.

    Returns:
        (N, L, L) for each sequence of L tokens, after softmax and dropout.
    """
    maps = []
    for q_LNH, k_LNH in zip(q.split(seqlens), k.split(seqlens), strict=True):
        length = len(q_LNH)
        mask = _band_mask(length, length, window, q.dtype, q.device) if window else None
        maps.append(
            F.dropout(_weights(q_LNH.transpose(0, 1), k_LNH.transpose(0, 1), mask), dropout)
        )
    return tuple(maps)


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
        return next(
            backend
            for backend in BACKENDS
            if not _missing(backend, device, dtype, head_dim, dropout)
        )
    if missing := _missing(name, device, dtype, head_dim, dropout):
        raise ValueError(
            f"attention backend {name!r} {missing}; 'auto' would take the best one there is"
        )
    return name


def _missing(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, dropout: bool
) -> str:
    """Return what a backend lacks to run here, or an empty text."""
    if backend in ("sdpa", "eager"):
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
def _kernel(backend: str) -> Callable[..., Tensor]:
    """Import the function of a GPU backend, which a package of its name may lack or be unable to
    load.
    """
    if backend == "torch_varlen":
        if torch.__version__ < "2.11":
            raise ImportError(f"torch 2.11 or newer is needed, this is {torch.__version__}")
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn  # type: ignore[return-value]
    module = importlib.import_module(_MODULES[backend])
    try:
        return module.flash_attn_varlen_func
    except AttributeError as error:  # the folder of another package
        raise ImportError(f"{_MODULES[backend]} has no flash_attn_varlen_func") from error


def _use_sdpa(q: Tensor) -> bool:
    """Return whether torch's fused kernel is the fastest: always, except in half-precision
    inference on CPUs.
    """
    return q.device.type != "cpu" or q.dtype == torch.float32 or torch.is_grad_enabled()


def _sdpa(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(q_RNQH, k_RNKH, v_RNKH, attn_mask=mask, dropout_p=dropout)


def _matmul(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, _dropout: float
) -> Tensor:
    """Compute the plain formula for as many sequences, tiles or rows at a time as keep their scores
    in cache.
    """
    count, heads, queries, dim = q_RNQH.shape
    each = heads * queries * k_RNKH.shape[2]
    out_RNQH = q_RNQH.new_empty(count, queries, heads, dim).transpose(1, 2)
    if mask is None and each > 2 * _SCORES_IN_CACHE:
        for r in range(count):
            for n in range(heads):
                for i in range(0, queries, _ROWS_PER_STEP):
                    rows = slice(i, i + _ROWS_PER_STEP)
                    scores_1QK = _scaled_product(q_RNQH[r, n, None, rows], k_RNKH[r, n, None])
                    out_RNQH[r, n, rows] = _softmax(scores_1QK[0]) @ v_RNKH[r, n]
        return out_RNQH
    step = max(1, _SCORES_IN_CACHE // each)
    for r in range(0, count, step):
        chunk = slice(r, r + step)
        q_XQH, k_XKH, v_XKH = (x[chunk].flatten(0, 1) for x in (q_RNQH, k_RNKH, v_RNKH))
        scores_XQK = _scaled_product(q_XQH, k_XKH)
        if mask is not None:
            scores_XQK.unflatten(0, (-1, heads)).add_(mask[chunk] if len(mask) == count else mask)
        out_RNQH[chunk] = torch.bmm(_softmax(scores_XQK), v_XKH).unflatten(0, (-1, heads))
    return out_RNQH


def _scaled_product(q_XQH: Tensor, k_XKH: Tensor) -> Tensor:
    """Compute q k^T / sqrt(H), scaled within the product."""
    return torch.baddbmm(
        q_XQH.new_empty(1), q_XQH, k_XKH.transpose(1, 2), beta=0, alpha=q_XQH.shape[-1] ** -0.5
    )


def _softmax(scores: Tensor) -> Tensor:
    """Compute softmax in fp32, which is faster on CPUs than the half-precision kernel."""
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


def _eager(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    return F.dropout(_weights(q_RNQH, k_RNKH, mask), dropout) @ v_RNKH


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(H) + mask)."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return _softmax(scores if mask is None else scores + mask)


def _equal_lengths(
    q: Tensor, k: Tensor, v: Tensor, window: Window, attention_fn: AttentionFn, dropout: float
) -> Tensor:
    """Compute attention for R sequences of one length, (R, L, N, H); the path depends on L, never
    on R.
    """
    length = q.shape[1]
    tile = 32 if attention_fn is _sdpa else 64
    if (
        window and attention_fn is not _eager and 10 * length > 13 * (tile + sum(window))
    ):  # measured: tiles are faster
        return torch.stack(
            [_tiles(*x, window, tile, attention_fn, dropout) for x in zip(q, k, v, strict=True)]
        )
    mask = None
    if window and length > min(window) + 1:
        mask = _band_mask(length, length, window, q.dtype, q.device)[None]
    return attention_fn(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, dropout
    ).transpose(1, 2)


def _tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    tile: int,
    attention_fn: AttentionFn,
    dropout: float,
) -> Tensor:
    """Compute sliding-window attention for one sequence (L, N, H): tiles of queries against the
    keys around them.

    The tiles start at the first token of the sequence, so that its bits do not depend on its
    position in the batch.
    """
    length = len(q)
    left, right = window
    missing = -length % tile
    q_GNQH = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, tile)).transpose(1, 2)
    k_GNKH, v_GNKH = (
        F.pad(x, (0, 0, 0, 0, left, right + missing))
        .unfold(0, left + tile + right, tile)
        .transpose(-1, -2)
        for x in (k, v)
    )
    mask = _tile_mask(length, window, tile, q.dtype, q.device)
    return (
        attention_fn(q_GNQH, k_GNKH, v_GNKH, mask, dropout).transpose(1, 2).flatten(0, 1)[:length]
    )


@lru_cache(maxsize=32)
def _tile_mask(
    length: int, window: tuple[int, int], tile: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask (G, 1, Q, K) of a sequence's tiles; rows past its end see all keys,
    to stay finite.
    """
    left, right = window
    starts_G11 = torch.arange(0, length, tile)[:, None, None]
    keys_GQK = starts_G11 - left + torch.arange(left + tile + right)
    queries_GQK = starts_G11 + torch.arange(tile)[:, None]
    visible_GQK = (keys_GQK >= queries_GQK - left) & (keys_GQK <= queries_GQK + right)
    visible_GQK = visible_GQK & (keys_GQK >= 0) & (keys_GQK < length) | (queries_GQK >= length)
    return _additive(visible_GQK, dtype, device)[:, None]


@lru_cache(maxsize=256)
def _band_mask(
    queries: int, keys: int, window: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask (1, Q, K) of a window around the diagonal."""
    offset_QK = torch.arange(keys) - torch.arange(queries)[:, None]
    return _additive((offset_QK >= -window[0]) & (offset_QK <= window[1]), dtype, device)[None]


def _additive(visible: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Turn a mask of visible keys into one that is added to scores: 0 where visible, -inf
    elsewhere.
    """
    with torch.inference_mode(
        False
    ):  # masks are cached, and training may use one made in inference
        return (
            torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf")).to(device)
        )
