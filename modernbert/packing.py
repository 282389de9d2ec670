"""Packed batches: sequences laid end to end instead of padded to one length.

Shapes: T packed tokens, B sequences, S padded sequence length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """B sequences end to end: what the encoder reads, and what an Arrow list column already is."""

    input_ids: Tensor
    """Token ids, (T,), int32 or int64."""
    cu_seqlens: Tensor
    """Where each sequence starts, with T at the end: (B+1,), int32, on the device of `input_ids`."""
    seqlens: tuple[int, ...]
    """The same lengths on the host, so that planning never waits for a device."""

    @classmethod
    def from_lengths(cls, input_ids: Tensor, seqlens: tuple[int, ...]) -> PackedBatch:
        """A batch of `input_ids` (T,) cut at `seqlens`, which are positive and sum to T."""
        if min(seqlens, default=0) < 1 or sum(seqlens) != input_ids.numel():
            raise ValueError(
                f"seqlens must be positive and sum to the {input_ids.numel()} tokens of input_ids; "
                f"they sum to {sum(seqlens)} and the least is {min(seqlens, default=0)}"
            )
        starts = torch.tensor((0, *seqlens)).cumsum(0).to(torch.int32)
        return cls(input_ids, starts.to(input_ids.device), tuple(seqlens))

    @property
    def max_seqlen(self) -> int:
        """The length of the longest sequence."""
        return max(self.seqlens)


def unpad(input_ids_BS: Tensor, attention_mask_BS: Tensor) -> tuple[PackedBatch, Tensor]:
    """The real tokens of a padded batch, and their places in it.

    `attention_mask_BS` is 1 for real tokens, which may lie anywhere in a row. Returns the packed batch and `indices`
    (T,) into the flattened (B*S) batch, for `pad`. Raises ValueError for a row without a real token.
    """
    mask = attention_mask_BS.bool()
    indices = mask.flatten().nonzero(as_tuple=True)[0]
    seqlens = tuple(mask.sum(dim=1).tolist())
    if 0 in seqlens:
        raise ValueError(f"row {seqlens.index(0)} of attention_mask has no real token; every sequence needs one")
    return PackedBatch.from_lengths(input_ids_BS.flatten()[indices], seqlens), indices


def pad(values_TX: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """Lay packed values (T, …) out as (batch_size, seq_len, …), with zeros where there was padding."""
    out = values_TX.new_zeros(batch_size * seq_len, *values_TX.shape[1:])
    return out.index_copy(0, indices, values_TX).view(batch_size, seq_len, *values_TX.shape[1:])
