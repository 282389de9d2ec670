"""Packed batches: sequences laid end to end instead of padded to one length.

Shapes: T packed tokens, B sequences, S padded sequence length, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from modernbert.gpu import upload


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B sequences laid end to end: the input of `forward_packed`, with the layout of an Arrow list
    column.

    Example:
        >>> input_ids = torch.tensor([50281, 7, 50282, 50281, 8, 9, 50282])
        >>> batch = PackedBatch.from_lengths(input_ids, (3, 4))
        >>> batch.cu_seqlens.tolist(), batch.max_seqlen
        ([0, 3, 7], 4)
    """

    input_ids: Tensor
    """Token ids, (T,), int32 or int64; not read if `inputs_embeds` is set."""
    cu_seqlens: Tensor
    """(B+1,) int32, where each sequence starts, with T at the end; on the device of `input_ids`."""
    position_ids: Tensor
    """The position of each token in the rotary embeddings, (T,), int32 or int64."""
    seqlens: tuple[int, ...]
    """Tokens in each sequence. They are kept on the host, so that planning never waits for a
    device.
    """
    num_positions: int
    """All `position_ids` are below it: the rows of the rotary table that they need."""
    inputs_embeds: Tensor | None = None
    """Vectors (T, D) in place of the token embeddings."""
    visible: tuple[int, ...] | None = None
    """The first tokens of each sequence that its tokens see; the others see them, and are seen by
    none. None: all.
    """
    encoded: dict[object, Tensor] = field(init=False, default_factory=dict)
    """The hidden states (T, D) of encoders that several heads share, so that each batch is computed
    once.
    """

    @classmethod
    def from_lengths(cls, input_ids: Tensor, seqlens: Sequence[int]) -> PackedBatch:
        """Create a batch from token ids, on any device, and lengths; positions count from 0 in each
        sequence.

        Args:
            input_ids: (T,), int32 or int64, the ids of all sequences end to end.
            seqlens: tokens in each sequence, at least 1, with the sum T.

        Raises:
            ValueError: where a length is below 1 or the sum is not T.
        """
        starts, positions = _layout(input_ids.numel(), seqlens)
        starts_B, positions_T = upload(input_ids.device, starts, positions)
        return cls(input_ids, starts_B, positions_T, tuple(seqlens), max(seqlens))

    @classmethod
    def from_arrays(
        cls, input_ids: np.ndarray, seqlens: Sequence[int], device: torch.device
    ) -> PackedBatch:
        """Create a batch on `device` from token ids on the host, as `from_lengths`, in a single
        copy without a wait.

        Args:
            input_ids: (T,) int32, the ids of all sequences end to end.
            seqlens: tokens in each sequence, at least 1, with the sum T.
            device: where the batch is put.

        Raises:
            ValueError: where a length is below 1 or the sum is not T.
        """
        starts, positions = _layout(len(input_ids), seqlens)
        ids_T, starts_B, positions_T = upload(device, input_ids, starts, positions)
        return cls(ids_T, starts_B, positions_T, tuple(seqlens), max(seqlens))

    @cached_property
    def max_seqlen(self) -> int:
        """The length of the longest sequence."""
        return max(self.seqlens)


def _layout(tokens: int, seqlens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the start of each sequence, (B+1,), and the position of each token in its sequence,
    (T,).
    """
    lengths = np.asarray(seqlens, dtype=np.int32)
    if not len(lengths) or lengths.min() < 1 or lengths.sum() != tokens:
        raise ValueError(
            f"seqlens must be positive and sum to the {tokens} tokens of input_ids; "
            f"they sum to {lengths.sum()} and the least is {min(seqlens, default=0)}"
        )
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    places = np.arange(tokens, dtype=np.int32)
    return starts, places - np.repeat(starts[:-1], lengths)


def unpad(input_ids_BS: Tensor, attention_mask_BS: Tensor) -> tuple[PackedBatch, Tensor]:
    """Pack the real tokens of a padded batch.

    Args:
        input_ids_BS: token ids (B, S).
        attention_mask_BS: (B, S), nonzero at real tokens, which may be anywhere in a row.

    Returns:
        The packed batch, and `indices` (T,) int64, the positions of its tokens in the flattened
        (B*S) batch, for `pad`.

    Raises:
        ValueError: for a row without a real token.
    """
    mask = attention_mask_BS.bool()
    indices = mask.flatten().nonzero(as_tuple=True)[0]
    seqlens = tuple(mask.sum(dim=1).tolist())
    if 0 in seqlens:
        raise ValueError(
            f"row {seqlens.index(0)} of attention_mask has no real token; every sequence needs one"
        )
    ids_T = input_ids_BS.flatten()[indices]
    return PackedBatch.from_lengths(ids_T, seqlens), indices


def pad(
    values_TX: Tensor, indices: Tensor, batch_size: int, seq_len: int, value: float = 0.0
) -> Tensor:
    """Put packed values back into the padded layout.

    Args:
        values_TX: (T, …).
        indices: (T,) int64, the position of each token in the flattened (batch_size * seq_len)
            layout.
        batch_size: rows of the padded layout.
        seq_len: tokens in a row of the padded layout.
        value: the value at padding.

    Returns:
        (batch_size, seq_len, …).
    """
    value_shape = values_TX.shape[1:]
    padding = values_TX.new_full((batch_size * seq_len, *value_shape), value)
    padded = padding.index_copy(0, indices, values_TX)
    return padded.view(batch_size, seq_len, *value_shape)
