"""Packed batches: sequences laid end to end instead of padded to one length.

Shapes: T packed tokens, B sequences, S padded sequence length, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

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
    if lengths.min(initial=1) < 1 or not len(lengths) or lengths.sum() != tokens:
        raise ValueError(
            f"seqlens must be positive and sum to the {tokens} tokens of input_ids; "
            f"they sum to {lengths.sum()} and the least is {min(seqlens, default=0)}"
        )
    starts = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts, np.arange(tokens, dtype=np.int32) - np.repeat(starts[:-1], lengths)


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
    return PackedBatch.from_lengths(input_ids_BS.flatten()[indices], seqlens), indices


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
    out = values_TX.new_full((batch_size * seq_len, *values_TX.shape[1:]), value)
    return out.index_copy(0, indices, values_TX).view(batch_size, seq_len, *values_TX.shape[1:])


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """The packed input of a model, and the layout of its outputs."""

    batch: PackedBatch
    indices: Tensor | None
    """(T,) int64, positions of the tokens in the flattened (B*S) layout; None: outputs stay packed.
    """
    shape: tuple[int, int] | None
    """(B, S) of the padded layout; None: outputs stay packed."""

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> ModelInputs:
        """Pack padded input; padding may be anywhere in a row.

        Args:
            input_ids: token ids (B, S); exactly one of `input_ids` and `inputs_embeds` is given.
            attention_mask: (B, S), nonzero at real tokens; None: all tokens are real.
            position_ids: (B, S), (1, S) or (S,), at least 0; None: counted from 0 in each sequence.
            inputs_embeds: vectors (B, S, D) in place of the token embeddings.

        Raises:
            ValueError: for shapes that do not fit each other and rows without a real token.
        """
        source = _ids_or_embeds(input_ids, inputs_embeds)
        if source.dim() < 2:
            raise ValueError(
                f"padded input must be (batch, sequence), not {_format_shape(source)}; packed "
                "needs cu_seqlens"
            )
        shape = source.shape[:2]
        mask = (
            torch.ones(shape, dtype=torch.bool, device=source.device)
            if attention_mask is None
            else attention_mask
        )
        if mask.shape != shape:
            raise ValueError(
                f"attention_mask is {_format_shape(mask)}, the input {shape[0]} x {shape[1]}"
            )
        ids = mask.new_zeros(shape, dtype=torch.int64) if input_ids is None else input_ids
        batch, indices = unpad(ids, mask)
        if inputs_embeds is not None:
            batch = replace(batch, inputs_embeds=inputs_embeds.flatten(0, 1)[indices])
        if position_ids is not None:
            if (
                position_ids.shape not in (shape, (1, shape[1]), shape[1:])
                or (position_ids < 0).any()
            ):
                raise ValueError(
                    f"position_ids are {_format_shape(position_ids)}; they must be "
                    f"{_format_shape(mask)}, at least 0"
                )
            positions = position_ids.expand(shape).flatten()[indices]
            batch = replace(batch, position_ids=positions, num_positions=int(positions.max()) + 1)
        return cls(batch, indices, (source.shape[0], source.shape[1]))

    @classmethod
    def from_packed(
        cls,
        input_ids: Tensor | None,
        cu_seqlens: Tensor,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        indices: Tensor | None = None,
        shape: tuple[int, int] | None = None,
    ) -> ModelInputs:
        """Check packed input.

        Args:
            input_ids: token ids (T,) or (1, T); exactly one of `input_ids` and `inputs_embeds` is
                given.
            cu_seqlens: (B+1,), where each sequence starts, with T at the end.
            position_ids: (T,) or (1, T), at least 0; None: counted from 0 in each sequence.
            inputs_embeds: vectors (T, D) or (1, T, D) in place of the token embeddings.
            indices: (T,), positions of the tokens in the flattened padded layout; given together
                with `shape`.
            shape: (B, S) of the padded layout that outputs have; None: outputs stay packed.

        Raises:
            ValueError: for arguments that do not fit each other.
        """
        source = _ids_or_embeds(input_ids, inputs_embeds)
        flat = source.flatten(0, -2) if inputs_embeds is not None else source.flatten()
        starts = cu_seqlens.tolist()
        lengths = tuple(stop - start for start, stop in pairwise(starts))
        if not lengths or starts[0] != 0 or min(lengths, default=0) < 1 or starts[-1] != len(flat):
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {len(flat)} tokens of the input, not "
                f"{starts[:9]}"
            )
        if (indices is None) != (shape is None):
            raise ValueError(
                "indices, batch_size and seq_len pad the output together: give all three or none"
            )
        if indices is not None and shape is not None and not _indices_fit(indices, lengths, shape):
            raise ValueError(
                f"indices must rise, and put each of the {len(lengths)} sequences into a row of "
                f"its own in {shape}"
            )
        ids = flat.new_zeros(len(flat), dtype=torch.int64) if input_ids is None else flat
        positions = None if position_ids is None else position_ids.flatten()
        if positions is not None and (len(positions) != len(flat) or (positions < 0).any()):
            raise ValueError(
                f"position_ids must have a number of at least 0 for each of the {len(flat)} tokens"
            )
        batch = PackedBatch.from_lengths(ids, lengths)
        if positions is not None:
            batch = replace(batch, position_ids=positions, num_positions=int(positions.max()) + 1)
        return cls(
            batch if inputs_embeds is None else replace(batch, inputs_embeds=flat), indices, shape
        )

    def pad(self, values_TX: Tensor, value: float = 0.0) -> Tensor:
        """Bring packed values (T, …) into the caller's layout: (B, S, …) with `value` at padding,
        or unchanged.
        """
        if self.indices is None or self.shape is None:
            return values_TX
        return pad(values_TX, self.indices, *self.shape, value)

    def unpad(self, values: Tensor) -> Tensor:
        """Pack one value per token, given in the caller's layout (B, S) or already packed (T,), as
        (T,).

        Raises:
            ValueError: for any other number of values.
        """
        tokens = self.batch.input_ids.numel()
        if (
            self.indices is not None
            and self.shape is not None
            and values.numel() == self.shape[0] * self.shape[1]
        ):
            return values.flatten()[self.indices]
        if values.numel() != tokens:
            raise ValueError(
                f"labels are {_format_shape(values)}; give one for each of the {tokens} tokens, or "
                "the input's layout"
            )
        return values.flatten()


def check_sliding_window_mask(mask: Tensor, real_BS: Tensor, half: int) -> None:
    """Check that a `sliding_window_mask` is the mask of the configured window.

    Args:
        mask: (B, S), zero at padding; or (B or 1, 1, S, S), true or 0 where a query sees a key, and
            false or a large negative number where it does not.
        real_BS: bool, which tokens are real.
        half: keys that a query sees on each side, ends inclusive.

    Raises:
        ValueError: for the mask of any other window.
    """
    if mask.dim() == 2:
        if mask.shape == real_BS.shape and not (real_BS & ~mask.bool()).any():
            return
    elif mask.dim() == 4 and real_BS.dim() == 2 and mask.shape[-2:] == (real_BS.shape[1],) * 2:
        visible = mask > -1.0 if mask.is_floating_point() else mask.bool()
        order = real_BS.long().cumsum(
            dim=1
        )  # windows count real tokens, whatever padding is between them
        window = (order[:, None, None, :] - order[:, None, :, None]).abs() <= half
        pairs = real_BS[:, None, :, None] & real_BS[:, None, None, :]
        if not ((visible != window) & pairs).any():
            return
    raise ValueError(
        f"sliding_window_mask {_format_shape(mask)} is not the mask of a window of {half} keys on "
        "each side: windows"
        " come from local_attention in the configuration; leave the mask out"
    )


def _indices_fit(indices: Tensor, lengths: tuple[int, ...], shape: tuple[int, int]) -> bool:
    """Return whether `indices` put the sequences into the rows of `shape`, one into each, in
    order.
    """
    if len(indices) != sum(lengths) or shape[0] != len(lengths) or int(indices[0]) < 0:
        return False
    rising = bool((indices.diff() > 0).all())
    return rising and torch.bincount(indices // shape[1], minlength=shape[0]).tolist() == list(
        lengths
    )


def _ids_or_embeds(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the one that is given; raise ValueError for both or none."""
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise ValueError("give either input_ids or inputs_embeds, and not both")


def _format_shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
