"""Rotary position embeddings (RoPE; Su et al. 2021, arXiv:2104.09864), with one fp32 table for each
theta.

Shapes: S positions, T packed tokens, G = 2 (queries and keys), N heads, H head dim, D hidden, O = N
* H.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(
    theta: float, head_dim: int, positions: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of position * theta^(-2i/H), for i from 0 to H/2 - 1 (Su et al. 2021,
    section 3.2.2).

    Args:
        theta: the base period.
        head_dim: H, an even number.
        positions: how many positions, from 0.
        device: where the tables are put; they are computed on the CPU, so that all devices have the
            same bits.

    Returns:
        cos and sin, each (positions, H/2), fp32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return angles.cos().to(device), angles.sin().to(device)


def apply_rope(qk_TGNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotate the pairs (i, i + H/2) of queries and keys by the angles of their tokens, in fp32.

    Args:
        qk_TGNH: queries and keys (T, 2, N, H).
        cos_TH: (T, H/2) fp32, the rows of `rope_table` at the tokens' positions.
        sin_TH: (T, H/2) fp32, likewise.

    Returns:
        A tensor of the shape and dtype of `qk_TGNH`.
    """
    cos = cos_TH[:, None, None]
    sin = sin_TH[:, None, None]
    first, second = qk_TGNH.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(qk_TGNH.dtype)


def apply_rope_interleaved_(qk_TGNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> None:
    """Rotate interleaved pairs (2i, 2i + 1) in place: `apply_rope` as one complex product, twice as
    fast on CPUs.
    """
    pairs = torch.view_as_complex(qk_TGNH.float().unflatten(-1, (-1, 2)))
    pairs *= torch.complex(cos_TH, sin_TH)[:, None, None]
    qk_TGNH.copy_(torch.view_as_real(pairs).flatten(-2))


def interleave_pairs(weight_OD: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (O, D), or its bias (O,), for
    `apply_rope_interleaved_`.

    Attention scores stay the same, since queries and keys are reordered alike.
    """
    halves: Tensor = weight_OD.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
