"""Triton products of the encoder in half precision that go on with what follows them, so that it is
not read and written again: GeGLU behind the MLP's first product, RoPE behind that of queries, keys
and values.

Both start as many programs as the GPU holds at a time, each of which computes one tile of the
result after the other (persistent kernels). The weights are those of `F.linear`, in their order.
Sums are fp32, in an order that is the tile's alone, and results are rounded once: the bits of a row
depend on the row, the weight and the tile, never on what else is in the batch.

Shapes: T packed tokens, D hidden, F MLP width, N heads, H head dim, S positions.

In kernels, t, d and f are the indices along T, D and F of a tile, e those of queries, keys and
values. `x`, `weight` and `out` are tensor descriptors where the GPU copies whole tiles by itself
(TMA), else pointers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from modernbert.kernels import LAUNCH, gelu
from modernbert.tiles import Tile

_TMA_BYTES = 16
"""Rows that TMA copies begin at multiples of it."""
_ANY_BATCH = {"do_not_specialize": ["tokens"], "do_not_specialize_on_alignment": ["positions"]}


def gated_product(x_TD: Tensor, weight_FD: Tensor, tile: Tile) -> Tensor:
    """Compute `kernels.geglu(F.linear(x_TD, weight_FD))`.

    Args:
        x_TD: (T, D), contiguous.
        weight_FD: (2F, D), contiguous.
        tile: how it is cut.

    Returns:
        (T, F).
    """
    tokens, depth = x_TD.shape
    width = len(weight_FD) // 2
    out_TF = x_TD.new_empty(tokens, width)
    has_tma = _has_tma(tile, x_TD, weight_FD, out_TF)
    half_tile = tile.columns // 2
    with torch.cuda.device_of(x_TD):
        gated_product_kernel[_programs(tokens, 2 * width, tile, x_TD.device)](
            _operand(x_TD, tile.rows, tile.depth, has_tma),
            _operand(weight_FD, half_tile, tile.depth, has_tma),
            _operand(out_TF, tile.rows, half_tile, has_tma),
            tokens,
            WIDTH=width,
            DEPTH=depth,
            TMA=has_tma,
            BLOCK_T=tile.rows,
            BLOCK_F=half_tile,
            BLOCK_D=tile.depth,
            num_stages=tile.stages,
            **LAUNCH | {"num_warps": tile.warps},
        )
    return out_TF


def rotated_product(
    x_TD: Tensor,
    weight_ED: Tensor,
    cos_SH: Tensor,
    sin_SH: Tensor,
    positions_T: Tensor,
    tile: Tile,
) -> Tensor:
    """Compute queries, keys and values, `F.linear(x_TD, weight_ED)`, and `kernels.rotate_` the
    first two.

    Args:
        x_TD: (T, D), contiguous.
        weight_ED: (3D, D), contiguous: of queries, keys and values.
        cos_SH: (S, H/2) fp32, of `rope.rope_table`; H is a power of two.
        sin_SH: (S, H/2) fp32, of `rope.rope_table`.
        positions_T: (T,) int32 or int64, below S.
        tile: how it is cut; its columns are a multiple of H.

    Returns:
        (T, 3D).
    """
    tokens, depth = x_TD.shape
    width = len(weight_ED)
    out_TE = x_TD.new_empty(tokens, width)
    has_tma = _has_tma(tile, x_TD, weight_ED, out_TE)
    with torch.cuda.device_of(x_TD):
        rotated_product_kernel[_programs(tokens, width, tile, x_TD.device)](
            _operand(x_TD, tile.rows, tile.depth, has_tma),
            _operand(weight_ED, tile.columns, tile.depth, has_tma),
            _operand(out_TE, tile.rows, tile.columns, has_tma),
            cos_SH,
            sin_SH,
            positions_T,
            tokens,
            WIDTH=width,
            DEPTH=depth,
            HALF=cos_SH.shape[1],
            TMA=has_tma,
            BLOCK_T=tile.rows,
            BLOCK_E=tile.columns,
            BLOCK_D=tile.depth,
            num_stages=tile.stages,
            **LAUNCH | {"num_warps": tile.warps},
        )
    return out_TE


def _has_tma(tile: Tile, *matrices: Tensor) -> bool:
    """Return whether TMA copies tiles of these; bits are the same without it."""
    return tile.tma and not any(
        each.data_ptr() % _TMA_BYTES or each.shape[1] * each.element_size() % _TMA_BYTES
        for each in matrices
    )


def _operand(x: Tensor, rows: int, columns: int, has_tma: bool) -> Any:  # what a kernel takes
    return TensorDescriptor.from_tensor(x, [rows, columns]) if has_tma else x


def _programs(tokens: int, columns: int, tile: Tile, device: torch.device) -> tuple[int]:
    tiles = triton.cdiv(tokens, tile.rows) * triton.cdiv(columns, tile.columns)
    return (min(tiles, multiprocessors(device) * tile.programs),)


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has; in the interpreter 2."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _load(
    matrix,
    row,
    column,
    rows,
    COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Load the tile of a matrix (rows, COLUMNS) that begins at `row` and `column`; 0 outside."""
    if TMA:
        value = matrix.load([row, column])
    else:
        r = (row + tl.arange(0, BLOCK_R))[:, None]
        c = (column + tl.arange(0, BLOCK_C))[None, :]
        at = matrix + r.to(tl.int64) * COLUMNS + c
        value = tl.load(at, mask=(r < rows) & (c < COLUMNS), other=0.0)
    return value


@triton.jit
def _store(
    matrix,
    value,
    row,
    column,
    rows,
    COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Store a tile of a matrix (rows, COLUMNS), as far as it lies in it."""
    if TMA:
        matrix.store([row, column], value.to(matrix.dtype))
    else:
        r = (row + tl.arange(0, BLOCK_R))[:, None]
        c = (column + tl.arange(0, BLOCK_C))[None, :]
        at = matrix + r.to(tl.int64) * COLUMNS + c
        tl.store(at, value.to(matrix.dtype.element_ty), mask=(r < rows) & (c < COLUMNS))


@triton.jit(**_ANY_BATCH)
def gated_product_kernel(
    x,
    weight,
    out,
    tokens,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute tiles of BLOCK_F columns of the gated unit for BLOCK_T tokens."""
    # Tiles of the same tokens follow each other: all of the weight stays in the L2 cache.
    tiles_f = tl.cdiv(WIDTH, BLOCK_F)
    tiles = tl.cdiv(tokens, BLOCK_T) * tiles_f
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        t = tile // tiles_f * BLOCK_T
        f = tile % tiles_f * BLOCK_F
        # The weight has 2 * WIDTH rows: of what is activated, then of what it is multiplied by.
        a = tl.zeros((BLOCK_T, BLOCK_F), tl.float32)
        b = tl.zeros((BLOCK_T, BLOCK_F), tl.float32)
        for d in range(0, DEPTH, BLOCK_D):
            x_td = _load(x, t, d, tokens, DEPTH, TMA, BLOCK_T, BLOCK_D)
            a_fd = _load(weight, f, d, WIDTH, DEPTH, TMA, BLOCK_F, BLOCK_D)
            b_fd = _load(weight, WIDTH + f, d, 2 * WIDTH, DEPTH, TMA, BLOCK_F, BLOCK_D)
            a = tl.dot(x_td, a_fd.T, a)
            b = tl.dot(x_td, b_fd.T, b)
        _store(out, gelu(a) * b, t, f, tokens, WIDTH, TMA, BLOCK_T, BLOCK_F)


@triton.jit(**_ANY_BATCH)
def rotated_product_kernel(
    x,
    weight,
    out,
    cos,
    sin,
    positions,
    tokens,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    HALF: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute tiles of BLOCK_E columns of queries, keys and values for BLOCK_T tokens."""
    tiles_e = tl.cdiv(WIDTH, BLOCK_E)
    tiles = tl.cdiv(tokens, BLOCK_T) * tiles_e
    HEADS: tl.constexpr = BLOCK_E // (2 * HALF)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        t = tile // tiles_e * BLOCK_T
        e = tile % tiles_e * BLOCK_E
        y = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
        for d in range(0, DEPTH, BLOCK_D):
            x_td = _load(x, t, d, tokens, DEPTH, TMA, BLOCK_T, BLOCK_D)
            w_ed = _load(weight, e, d, WIDTH, DEPTH, TMA, BLOCK_E, BLOCK_D)
            y = tl.dot(x_td, w_ed.T, y)
        # The columns of a head are the first of all pairs, then the second: (i, i + HALF).
        halves = tl.reshape(y, (BLOCK_T, HEADS, 2, HALF)).permute(0, 1, 3, 2)
        first, second = tl.split(halves)
        at_t = t + tl.arange(0, BLOCK_T)
        position = tl.load(positions + at_t, mask=at_t < tokens, other=0).to(tl.int64)
        angles = position[:, None] * HALF + tl.arange(0, HALF)[None, :]
        c = tl.load(cos + angles)[:, None, :]
        s = tl.load(sin + angles)[:, None, :]
        # A tile may have keys beside values, which are turned by 0.
        head = (e + tl.arange(0, HEADS) * (2 * HALF))[None, :, None]
        turns = head < WIDTH // 3 * 2
        c = tl.where(turns, c, 1.0)
        s = tl.where(turns, s, 0.0)
        rotated = tl.join(first * c - second * s, second * c + first * s)
        y = tl.reshape(rotated.permute(0, 1, 3, 2), (BLOCK_T, BLOCK_E))
        _store(out, y, t, e, tokens, WIDTH, TMA, BLOCK_T, BLOCK_E)
