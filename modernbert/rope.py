"""Rotary position embeddings (RoPE; Su et al. 2021, arXiv:2104.09864), with one fp32 table for each
theta and scaling.

Shapes: S positions, T packed tokens, G = 2 (queries and keys), N heads, H head dim, D hidden, O = N
* H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modernbert.rope_scaling import RopeScaling


def rope_table(
    theta: float,
    head_dim: int,
    positions: int,
    device: torch.device | str,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of position * theta^(-2i/H), for i from 0 to H/2 - 1 (Su et al. 2021,
    section 3.2.2).

    Args:
        theta: the base period.
        head_dim: H, an even number.
        positions: how many positions, from 0.
        device: where the tables are put; they are computed on the CPU, so that all devices have the
            same bits.
        scaling: how frequencies differ from these; None: they do not.

    Returns:
        cos and sin, each (positions, H/2), fp32, times the scaling's `attention_factor`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    attention_factor = 1.0
    if scaling is not None:
        frequencies = _scaled(frequencies, theta, head_dim, scaling)
        attention_factor = scaling.attention_factor
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    cos = angles.cos() * attention_factor
    sin = angles.sin() * attention_factor
    return cos.to(device), sin.to(device)


def _scaled(frequencies: Tensor, theta: float, head_dim: int, scaling: RopeScaling) -> Tensor:
    """Return the frequencies (H/2,) of a scaled embedding, in place of those of its theta."""
    if scaling.rope_type == "dynamic":  # the plain ones, as far as the model's positions reach
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.rope_type == "linear":
        return slowed
    pair = torch.arange(len(frequencies), dtype=torch.float32)
    if scaling.rope_type == "proportional":
        turning = int(scaling.partial_rotary_factor * head_dim // 2)
        return torch.where(pair < turning, slowed, 0.0)

    # yarn: between two pairs, the share of the slowed frequency grows from 0 to 1.
    def pair_of(turns: float) -> float:
        """The pair that turns so often over the first positions."""
        positions = scaling.original_max_position_embeddings
        return head_dim * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_of(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_of(scaling.beta_slow)), head_dim - 1)
    width = last - first or 0.001
    kept = 1 - ((pair - first) / width).clamp(0, 1)
    return slowed * (1 - kept) + frequencies * kept


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
    """Rotate interleaved pairs (2i, 2i + 1) in place: `apply_rope` as one complex product, which is
    faster on CPUs; in fp32 without a copy.
    """
    turns_TH = torch.complex(cos_TH, sin_TH)[:, None, None]
    pairs = torch.view_as_complex(qk_TGNH.float().unflatten(-1, (-1, 2)))
    pairs *= turns_TH
    if qk_TGNH.dtype != torch.float32:
        qk_TGNH.copy_(torch.view_as_real(pairs).flatten(-2))


def interleave_pairs(weight_OD: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection (O, D), or its bias (O,), for
    `apply_rope_interleaved_`.

    Attention scores stay the same, since queries and keys are reordered alike.
    """
    halves: Tensor = weight_OD.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
