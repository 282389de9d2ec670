"""Triton kernels of inference on GPUs: what lies between the matrix products of a layer, and the
pooling after them.

Each row (or sequence) is computed by itself, so that its bits do not depend on the batch. Sums and
functions are fp32; results are rounded once to the dtype of the output. On CPUs they run in
Triton's interpreter (TRITON_INTERPRET=1).

Shapes: T packed tokens, B sequences, D hidden, F MLP width, N heads, H head dim, S positions.

In kernels, t, b, n, h, d and f are the indices along T, B, N, H/2, D and F of what a program
computes, shaped so that they broadcast; `at` is where that lies. Indices that are multiplied by a
row's width are int64: a batch may hold more than 2^31 numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

POOLING = {"mean": 0, "mean_sqrt_len_tokens": 1, "weightedmean": 2, "max": 3, "sum": 4}
"""The poolings over all tokens of a sequence that `pool_sequences` computes, with their numbers in
its kernel.
"""
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
"""How all kernels are compiled; fusion is stated, since it changes bits and its default differs
between Tritons.
"""
# Numbers of tokens, whose divisors and whose 1 the code must not be compiled for anew, and pointers
# to parts of what is uploaded together.
_ANY_TOKENS = {"do_not_specialize": ["tokens", "skip"]}
_ANY_PLACES = {"do_not_specialize_on_alignment": ["positions", "starts", "stops"]}
_FLOAT8_MAX = tl.constexpr(448.0)  # the largest number of float8_e4m3fn


def rotate_(qkv_T3NH: Tensor, cos_SH: Tensor, sin_SH: Tensor, positions_T: Tensor) -> None:
    """Rotate queries and keys in place: `rope.apply_rope` with the tables indexed by position.

    Args:
        qkv_T3NH: queries, keys and values (T, 3, N, H), contiguous; values are not touched.
        cos_SH: (S, H/2) fp32, of `rope.rope_table`.
        sin_SH: (S, H/2) fp32, of `rope.rope_table`.
        positions_T: (T,) int32 or int64, below S.
    """
    tokens, _, heads, dim = qkv_T3NH.shape
    grid = (triton.cdiv(tokens, 8), triton.cdiv(2 * heads, 8))
    with torch.cuda.device_of(qkv_T3NH):
        rotate_kernel[grid](
            qkv_T3NH,
            cos_SH,
            sin_SH,
            positions_T,
            tokens,
            HEADS=heads,
            HALF=dim // 2,
            BLOCK_T=8,
            BLOCK_N=8,
            BLOCK_H=triton.next_power_of_2(dim // 2),
            **LAUNCH,
        )


def geglu(y_TF: Tensor) -> Tensor:
    """Compute `gelu(a) * b` of the halves `a` and `b` of each row (T, 2F), with the exact erf: (T,
    F).
    """
    tokens, width = y_TF.shape[0], y_TF.shape[1] // 2
    out_TF = y_TF.new_empty(tokens, width)
    grid = (triton.cdiv(tokens, 16), triton.cdiv(width, 128))
    with torch.cuda.device_of(y_TF):
        geglu_kernel[grid](y_TF, out_TF, tokens, WIDTH=width, BLOCK_T=16, BLOCK_F=128, **LAUNCH)
    return out_TF


def pool_sequences(
    x_TD: Tensor, cu_seqlens: Tensor, pooling: str, skip: int = 0, out_BD: Tensor | None = None
) -> Tensor:
    """Pool the tokens of each sequence but its first `skip`.

    Args:
        x_TD: hidden states (T, D), contiguous.
        cu_seqlens: (B+1,) int32, where each sequence starts, with T at the end.
        pooling: one of POOLING.
        skip: tokens at the start of each sequence that are left out.
        out_BD: where the result is put, contiguous; None: into a new tensor.

    Returns:
        (B, D) fp32.
    """
    return pool_stretches(x_TD, cu_seqlens[:-1], cu_seqlens[1:], pooling, skip, out_BD)


def pool_stretches(
    x_TD: Tensor,
    starts_B: Tensor,
    stops_B: Tensor,
    pooling: str,
    skip: int = 0,
    out_BD: Tensor | None = None,
) -> Tensor:
    """Compute `pool_sequences` of the tokens [start, stop) of each stretch, (B,) int32 and
    contiguous, which may overlap.
    """
    sequences, width = len(starts_B), x_TD.shape[1]
    if out_BD is None:
        out_BD = x_TD.new_empty(sequences, width, dtype=torch.float32)
    grid = (sequences, triton.cdiv(width, 128))
    with torch.cuda.device_of(x_TD):
        pool_kernel[grid](
            x_TD,
            starts_B,
            stops_B,
            out_BD,
            skip,
            POOLING=POOLING[pooling],
            WIDTH=width,
            BLOCK_T=32,
            BLOCK_D=128,
            **LAUNCH,
        )
    return out_BD


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """Compute LayerNorm: (T, D)."""
    x_TD = x_TD.contiguous()
    tokens, width = x_TD.shape
    out_TD = torch.empty_like(x_TD)
    with torch.cuda.device_of(x_TD):
        norm_kernel[(triton.cdiv(tokens, 4),)](
            x_TD,
            weight_D,
            weight_D if bias_D is None else bias_D,
            out_TD,
            tokens,
            eps,
            WIDTH=width,
            HAS_BIAS=bias_D is not None,
            BLOCK_T=4,
            BLOCK_D=triton.next_power_of_2(width),
            **LAUNCH,
        )
    return out_TD


def norm_float8(
    x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute LayerNorm, rounded to float8: values (T, D) float8_e4m3fn and the scale of each row
    (T, 1) fp32.
    """
    tokens, width = x_TD.shape
    out_TD = x_TD.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
    scales_T1 = x_TD.new_empty(tokens, 1, dtype=torch.float32)
    with torch.cuda.device_of(x_TD):
        norm_float8_kernel[(triton.cdiv(tokens, 4),)](
            x_TD,
            weight_D,
            weight_D if bias_D is None else bias_D,
            out_TD,
            scales_T1,
            tokens,
            eps,
            WIDTH=width,
            HAS_BIAS=bias_D is not None,
            BLOCK_T=4,
            BLOCK_D=triton.next_power_of_2(width),
            **LAUNCH,
        )
    return out_TD, scales_T1


def geglu_float8(y_TF: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `geglu`, rounded to float8: values (T, F) float8_e4m3fn and the scale of each row (T,
    1) fp32.
    """
    tokens, width = y_TF.shape[0], y_TF.shape[1] // 2
    out_TF = y_TF.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
    scales_T1 = y_TF.new_empty(tokens, 1, dtype=torch.float32)
    # A tile of the next power of two would be up to half empty, and this kernel is bound by
    # instructions.
    tile = 1 << (width.bit_length() - 1)
    rest = width - tile
    with torch.cuda.device_of(y_TF):
        geglu_float8_kernel[(tokens,)](
            y_TF,
            out_TF,
            scales_T1,
            WIDTH=width,
            BLOCK_F=tile,
            BLOCK_REST=triton.next_power_of_2(rest) if rest else 0,
            **LAUNCH,
        )
    return out_TF, scales_T1


@triton.jit(**_ANY_TOKENS, **_ANY_PLACES)
def rotate_kernel(
    qkv,
    cos,
    sin,
    positions,
    tokens,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Rotate the pairs (i, i + HALF) of BLOCK_N of the 2 * HEADS query and key heads of BLOCK_T
    tokens.
    """
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None, None]
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    h = tl.arange(0, BLOCK_H)[None, None, :]
    # The angles of a token are the same for all heads.
    position = tl.load(positions + t, mask=t < tokens, other=0).to(tl.int64)
    angles = position * HALF + h
    valid_angle = (t < tokens) & (h < HALF)
    c = tl.load(cos + angles, mask=valid_angle, other=0.0)
    s = tl.load(sin + angles, mask=valid_angle, other=0.0)
    # A token has 3 * HEADS heads of 2 * HALF numbers: queries, keys, and values, which stay.
    valid = valid_angle & (n < 2 * HEADS)
    first_at = qkv + t.to(tl.int64) * (6 * HEADS * HALF) + n * (2 * HALF) + h
    second_at = first_at + HALF
    first = tl.load(first_at, mask=valid, other=0.0).to(tl.float32)
    second = tl.load(second_at, mask=valid, other=0.0).to(tl.float32)
    rotated_first = first * c - second * s
    rotated_second = second * c + first * s
    tl.store(first_at, rotated_first.to(qkv.dtype.element_ty), mask=valid)
    tl.store(second_at, rotated_second.to(qkv.dtype.element_ty), mask=valid)


@triton.jit
def gelu(a):
    """Compute the exact gelu within 4e-7 in fp32, in about half the instructions of `tl.erf`.

    gelu(a) is max(a, 0) - |a| Q(|a|) with the normal distribution's tail Q, whose logarithm to the
    base 2 is nearly a parabola: a polynomial of degree 7, fitted over [0, 9], stays below it.
    """
    size = tl.abs(a)
    log_tail = size * -1.2129747801736812e-6 + 4.8982481530401856e-5
    log_tail = size * log_tail - 8.378050988540053e-4
    log_tail = size * log_tail + 8.202439174056053e-3
    log_tail = size * log_tail - 5.3486138582229614e-2
    log_tail = size * log_tail - 4.5879027247428894e-1
    log_tail = size * log_tail - 1.151172041893005
    log_tail = size * log_tail - 0.9999983310699463
    return tl.maximum(a, 0.0) - size * tl.exp2(log_tail)


@triton.jit
def _geglu(a, b, dtype: tl.constexpr):
    """Compute gelu(a) * b; gelu is rounded to `dtype` before the product, as it is where it is
    stored.
    """
    return gelu(a).to(dtype).to(tl.float32) * b


@triton.jit(**_ANY_TOKENS)
def geglu_kernel(y, out, tokens, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr):
    """Compute BLOCK_F columns of the gated unit for BLOCK_T tokens."""
    # A row of `y` has 2 * WIDTH columns: what is activated, then what it is multiplied by.
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    f = (tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    valid = (t < tokens) & (f < WIDTH)
    at = y + t.to(tl.int64) * (2 * WIDTH) + f
    a = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    b = tl.load(at + WIDTH, mask=valid, other=0.0).to(tl.float32)
    g = _geglu(a, b, out.dtype.element_ty)
    tl.store(out + t.to(tl.int64) * WIDTH + f, g.to(out.dtype.element_ty), mask=valid)


@triton.jit
def geglu_float8_kernel(
    y, out, scales, WIDTH: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_REST: tl.constexpr
):
    """Compute the gated unit of one token, rounded to float8 by the largest of its columns: the
    first BLOCK_F of them, which are full, and the rest.
    """
    t = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK_F)
    at = y + t * (2 * WIDTH) + f
    a = tl.load(at).to(tl.float32)
    b = tl.load(at + WIDTH).to(tl.float32)
    g = _geglu(a, b, y.dtype.element_ty)
    largest = tl.max(tl.abs(g), axis=0)
    if BLOCK_REST > 0:
        rest_f = BLOCK_F + tl.arange(0, BLOCK_REST)
        rest_at = y + t * (2 * WIDTH) + rest_f
        rest_a = tl.load(rest_at, mask=rest_f < WIDTH, other=0.0).to(tl.float32)
        rest_b = tl.load(rest_at + WIDTH, mask=rest_f < WIDTH, other=0.0).to(tl.float32)
        rest_g = _geglu(rest_a, rest_b, y.dtype.element_ty)
        largest = tl.maximum(largest, tl.max(tl.abs(rest_g), axis=0))
    # A row of zeros has no largest number to divide by: its scale is that of a tiny one.
    scale = tl.maximum(largest, 1e-12) / _FLOAT8_MAX
    inverse = 1.0 / scale  # one division for all numbers
    tl.store(out + t * WIDTH + f, (g * inverse).to(tl.float8e4nv))
    if BLOCK_REST > 0:
        rest_out = (rest_g * inverse).to(tl.float8e4nv)
        tl.store(out + t * WIDTH + rest_f, rest_out, mask=rest_f < WIDTH)
    tl.store(scales + t, scale)


@triton.jit
def _normalised(x, weight, bias, at, d, valid, eps, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Load rows of `x` and normalise them, in fp32."""
    v = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=1, keep_dims=True) / WIDTH
    # Columns beyond WIDTH would be -mean, and count in the variance.
    v = tl.where(valid, v - mean, 0.0)
    variance = tl.sum(v * v, axis=1, keep_dims=True) / WIDTH
    v = v * (1.0 / tl.sqrt(variance + eps))
    w = tl.load(weight + d, mask=d < WIDTH, other=0.0).to(tl.float32)
    v = v * w
    if HAS_BIAS:
        b = tl.load(bias + d, mask=d < WIDTH, other=0.0).to(tl.float32)
        v = v + b
    return v


@triton.jit(**_ANY_TOKENS)
def norm_kernel(
    x,
    weight,
    bias,
    out,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise BLOCK_T tokens."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    valid = (t < tokens) & (d < WIDTH)
    at = t.to(tl.int64) * WIDTH + d
    v = _normalised(x, weight, bias, at, d, valid, eps, WIDTH, HAS_BIAS)
    tl.store(out + at, v.to(out.dtype.element_ty), mask=valid)


@triton.jit(**_ANY_TOKENS)
def norm_float8_kernel(
    x,
    weight,
    bias,
    out,
    scales,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise BLOCK_T tokens, rounded to float8 by the largest of the columns of each."""
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    valid = (t < tokens) & (d < WIDTH)
    at = t.to(tl.int64) * WIDTH + d
    v = _normalised(x, weight, bias, at, d, valid, eps, WIDTH, HAS_BIAS)
    # As in geglu_float8_kernel, also for a row of zeros.
    largest = tl.max(tl.abs(v), axis=1, keep_dims=True)
    scale = tl.maximum(largest, 1e-12) / _FLOAT8_MAX
    tl.store(out + at, (v * (1.0 / scale)).to(tl.float8e4nv), mask=valid)
    tl.store(scales + t, scale, mask=t < tokens)


@triton.jit(**_ANY_TOKENS, **_ANY_PLACES)
def pool_kernel(
    x,
    starts,
    stops,
    out,
    skip,
    POOLING: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Pool BLOCK_D columns of one sequence, BLOCK_T tokens at a time; for the numbers of POOLING
    see there.
    """
    b = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    first = tl.load(starts + b)
    stop = tl.load(stops + b)
    # A sum or maximum for each place in a block; the places are put together behind the loop, so
    # that the order does not depend on the batch.
    total = tl.full((BLOCK_T, BLOCK_D), float("-inf") if POOLING == 3 else 0.0, tl.float32)
    not_finite = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for begin in range(first + skip, stop, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)[:, None]
        valid = (t < stop) & (d < WIDTH)
        at = x + t.to(tl.int64) * WIDTH + d
        if POOLING == 3:
            v = tl.load(at, mask=valid, other=float("-inf")).to(tl.float32)
            total = tl.maximum(total, v)
            # The maximum passes over NaN, which must not go unseen: v - v is 0 for finite numbers,
            # else NaN.
            not_finite += tl.where(valid, v - v, 0.0)
        else:
            v = tl.load(at, mask=valid, other=0.0).to(tl.float32)
            if POOLING == 2:
                weight = t - first + 1  # the n-th token has the weight n
                v = v * weight.to(tl.float32)
            total += v
    count = (stop - first - skip).to(tl.float32)
    if POOLING == 3:
        largest = tl.max(total, axis=0, keep_dims=True)
        pooled = largest + tl.sum(not_finite, axis=0, keep_dims=True)
    else:
        if POOLING == 1:  # the sum is divided by the root of the number of tokens
            count = tl.sqrt(count)
        if POOLING == 2:
            # The sum of the weights from skip + 1 to stop - first.
            count = count * (stop - first + skip + 1).to(tl.float32) / 2
        pooled = tl.sum(total, axis=0, keep_dims=True)
        if POOLING != 4:
            pooled = pooled / count
    tl.store(out + b.to(tl.int64) * WIDTH + d, pooled, mask=d < WIDTH)
