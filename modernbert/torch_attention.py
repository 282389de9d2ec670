"""Attention by torch's own operations, on every device: sequences of one length together, and a
sliding window in tiles.

The path depends on the length of a sequence, never on what else is in the batch.

Shapes: T packed tokens, L tokens of one sequence, R sequences of one length, N heads, H head dim,
G tiles, Q queries and K keys of a tile, X tiles or sequences of all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert import native

Window = tuple[int, int] | None
"""(left, right): the keys that a query sees on each side, both ends inclusive; None: all keys of
its sequence.
"""
AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(queries (R, N, Q, H), keys and values (R, N, K, H), additive mask or None, dropout) -> (R, N, Q,
H).
"""


class CpuWay(NamedTuple):
    """How attention is computed: which of the ways is fastest depends on the processor."""

    product: str
    """One of PRODUCTS, or that of NATIVE."""
    tile: int
    """The queries of a tile of a sliding window."""


FUSED = CpuWay("sdpa", 32)
"""The way on GPUs and in training, and on CPUs unless another one is faster there."""
NATIVE = CpuWay("native", 24)
"""By the library of modernbert/csrc, in fp32, whether there is a window or not."""
_SCORES_IN_CACHE = 1_200_000  # scores computed at a time, of as many sequences or tiles as fit
# Query rows computed at a time, head by head, where one sequence has more than twice those scores.
_ROWS_PER_STEP = 512


def torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqlens: Sequence[int],
    window: Window,
    dropout: float,
    *,
    plain: bool,
    way: CpuWay = FUSED,
) -> Tensor:
    """Compute `attention.varlen_attention` by torch's operations.

    Args:
        q: queries (T, N, H).
        k: keys, of the shape and dtype of `q`.
        v: values, of the shape and dtype of `q`.
        seqlens: the tokens in each sequence.
        window: keys that a query sees to its left and right; None: its whole sequence.
        dropout: the probability of dropping an attention weight.
        plain: whether to compute the plain formula, with all scores of a sequence at once.
        way: how it is computed otherwise.

    Returns:
        (T, N, H).
    """
    if way == NATIVE and not plain and not dropout:
        return native.attention(q, k, v, seqlens, window)
    attention_fn = _sdpa if way == NATIVE else PRODUCTS[way.product]
    if plain:
        attention_fn = _eager
    elif dropout:
        attention_fn = _sdpa
    out = []
    start = 0
    # Neighbours of one length are computed together.
    for length, run in groupby(seqlens):
        rows = slice(start, start + length * len(list(run)))
        q_RLNH = q[rows].unflatten(0, (-1, length))
        k_RLNH = k[rows].unflatten(0, (-1, length))
        v_RLNH = v[rows].unflatten(0, (-1, length))
        y_RLNH = _equal_lengths(q_RLNH, k_RLNH, v_RLNH, window, way.tile, attention_fn, dropout)
        out.append(y_RLNH.flatten(0, 1))
        start = rows.stop
    return torch.cat(out)


def visible_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    seqlens: Sequence[int],
    visible: Tensor,
    window: Window,
    dropout: float = 0.0,
) -> Tensor:
    """Compute `varlen_attention` where only the first `visible` (B,) tokens of a sequence are seen.

    For short sequences: the scores of all tokens are computed. Each token must see one.
    """
    out = []
    start = 0
    sequence = 0
    for length, run in groupby(seqlens):
        sequences = slice(sequence, sequence + len(list(run)))
        seen_R = visible[sequences]
        sequence = sequences.stop
        rows = slice(start, start + length * len(seen_R))
        q_RNLH = q[rows].unflatten(0, (-1, length)).transpose(1, 2)
        k_RNLH = k[rows].unflatten(0, (-1, length)).transpose(1, 2)
        v_RNLH = v[rows].unflatten(0, (-1, length)).transpose(1, 2)
        places_L = torch.arange(length, device=q.device)
        seen_RL = places_L < seen_R[:, None]
        mask_RLL = seen_RL[:, None, :].expand(-1, length, -1)
        if window:
            offset_LL = places_L - places_L[:, None]
            mask_RLL = mask_RLL & (offset_LL >= -window[0]) & (offset_LL <= window[1])
        y_RNLH = F.scaled_dot_product_attention(
            q_RNLH, k_RNLH, v_RNLH, attn_mask=mask_RLL[:, None], dropout_p=dropout
        )
        out.append(y_RNLH.transpose(1, 2).flatten(0, 1))
        start = rows.stop
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
        mask = band_mask(length, length, window, q.dtype, q.device) if window else None
        weights_NLL = _weights(q_LNH.transpose(0, 1), k_LNH.transpose(0, 1), mask)
        maps.append(F.dropout(weights_NLL, dropout))
    return tuple(maps)


def _sdpa(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(q_RNQH, k_RNKH, v_RNKH, attn_mask=mask, dropout_p=dropout)


def _sdpa_in_fp32(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    if mask is not None:
        mask = mask.float()
    y_RNQH = _sdpa(q_RNQH.float(), k_RNKH.float(), v_RNKH.float(), mask, dropout)
    return y_RNQH.to(q_RNQH.dtype)


def _matmul(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, _dropout: float
) -> Tensor:
    """Compute the plain formula for as many sequences, tiles or rows at a time as keep their scores
    in cache.
    """
    count, heads, queries, dim = q_RNQH.shape
    keys = k_RNKH.shape[2]
    scores_each = heads * queries * keys
    out_RNQH = q_RNQH.new_empty(count, queries, heads, dim).transpose(1, 2)
    if mask is None and scores_each > 2 * _SCORES_IN_CACHE:
        for r in range(count):
            for n in range(heads):
                _matmul_rows(q_RNQH[r, n], k_RNKH[r, n], v_RNKH[r, n], out_RNQH[r, n])
        return out_RNQH

    step = max(1, _SCORES_IN_CACHE // scores_each)
    for r in range(0, count, step):
        chunk = slice(r, r + step)
        q_XQH = q_RNQH[chunk].flatten(0, 1)
        k_XKH = k_RNKH[chunk].flatten(0, 1)
        v_XKH = v_RNKH[chunk].flatten(0, 1)
        scores_XQK = _scaled_product(q_XQH, k_XKH)
        if mask is not None:
            scores_RNQK = scores_XQK.unflatten(0, (-1, heads))
            # Tiles have a mask each, sequences of one length share theirs.
            scores_RNQK.add_(mask[chunk] if len(mask) == count else mask)
        y_XQH = torch.bmm(_softmax(scores_XQK), v_XKH)
        out_RNQH[chunk] = y_XQH.unflatten(0, (-1, heads))
    return out_RNQH


def _matmul_rows(q_QH: Tensor, k_KH: Tensor, v_KH: Tensor, out_QH: Tensor) -> None:
    """Compute one head of one sequence into `out_QH`, some rows at a time."""
    for start in range(0, len(q_QH), _ROWS_PER_STEP):
        rows = slice(start, start + _ROWS_PER_STEP)
        scores_1QK = _scaled_product(q_QH[None, rows], k_KH[None])
        out_QH[rows] = _softmax(scores_1QK[0]) @ v_KH


def _scaled_product(q_XQH: Tensor, k_XKH: Tensor) -> Tensor:
    """Compute q k^T / sqrt(H), scaled within the product."""
    ignored = q_XQH.new_empty(1)
    scale = q_XQH.shape[-1] ** -0.5
    return torch.baddbmm(ignored, q_XQH, k_XKH.transpose(1, 2), beta=0, alpha=scale)


def _softmax(scores: Tensor) -> Tensor:
    """Compute softmax in fp32, which is faster on CPUs than the half-precision kernel."""
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


PRODUCTS: dict[str, AttentionFn] = {
    "sdpa": _sdpa,
    "sdpa_in_fp32": _sdpa_in_fp32,
    "matmul": _matmul,
}
"""How queries, keys and values are multiplied: by torch's fused kernel, by the same in fp32, or by
two products with a softmax between them.
"""


def _eager(
    q_RNQH: Tensor, k_RNKH: Tensor, v_RNKH: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    weights_RNQK = _weights(q_RNQH, k_RNKH, mask)
    return F.dropout(weights_RNQK, dropout) @ v_RNKH


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(H) + mask)."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return _softmax(scores if mask is None else scores + mask)


def _equal_lengths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    tile: int,
    attention_fn: AttentionFn,
    dropout: float,
) -> Tensor:
    """Compute attention for R sequences of one length, (R, L, N, H); the path depends on L, never
    on R.
    """
    length = q.shape[1]
    # Measured: above this length tiles are faster.
    if window and attention_fn is not _eager and 10 * length > 13 * (tile + sum(window)):
        out = []
        for q_LNH, k_LNH, v_LNH in zip(q, k, v, strict=True):
            out.append(_tiles(q_LNH, k_LNH, v_LNH, window, tile, attention_fn, dropout))
        return torch.stack(out)
    mask = None
    if window and length > min(window) + 1:
        mask = band_mask(length, length, window, q.dtype, q.device)[None]
    y_RNLH = attention_fn(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, dropout)
    return y_RNLH.transpose(1, 2)


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
    missing = -length % tile
    q_GQNH = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(0, (-1, tile))
    k_GNKH = _tiles_of_keys(k, window, tile, missing)
    v_GNKH = _tiles_of_keys(v, window, tile, missing)
    mask = tile_mask(length, window, tile, q.dtype, q.device)
    y_GNQH = attention_fn(q_GQNH.transpose(1, 2), k_GNKH, v_GNKH, mask, dropout)
    return y_GNQH.transpose(1, 2).flatten(0, 1)[:length]


def _tiles_of_keys(x_LNH: Tensor, window: tuple[int, int], tile: int, missing: int) -> Tensor:
    """Return the keys, or values, around each tile of queries, (G, N, K, H): a view, no copy."""
    left, right = window
    padded_SNH = F.pad(x_LNH, (0, 0, 0, 0, left, right + missing))
    x_GNHK = padded_SNH.unfold(0, left + tile + right, tile)
    return x_GNHK.transpose(-1, -2)


@lru_cache(maxsize=32)
def tile_mask(
    length: int, window: tuple[int, int], tile: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask (G, 1, Q, K) of a sequence's tiles; rows past its end see all keys,
    to stay finite.
    """
    left, right = window
    starts_G11 = torch.arange(0, length, tile)[:, None, None]
    keys_GQK = starts_G11 - left + torch.arange(left + tile + right)
    queries_GQK = starts_G11 + torch.arange(tile)[:, None]
    in_window = (keys_GQK >= queries_GQK - left) & (keys_GQK <= queries_GQK + right)
    in_sequence = (keys_GQK >= 0) & (keys_GQK < length)
    visible_GQK = in_window & in_sequence | (queries_GQK >= length)
    return _additive(visible_GQK, dtype, device)[:, None]


@lru_cache(maxsize=256)
def band_mask(
    queries: int, keys: int, window: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the additive mask (1, Q, K) of a window around the diagonal."""
    left, right = window
    offset_QK = torch.arange(keys) - torch.arange(queries)[:, None]
    visible_QK = (offset_QK >= -left) & (offset_QK <= right)
    return _additive(visible_QK, dtype, device)[None]


def _additive(visible: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a mask of visible keys as one that is added to scores: 0 where visible, else -inf."""
    # Masks are cached, and training may use one made in inference.
    with torch.inference_mode(False):
        mask = torch.zeros(visible.shape, dtype=dtype)
        mask.masked_fill_(~visible, float("-inf"))
        return mask.to(device)
