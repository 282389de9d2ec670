"""The inputs of a model with the arguments of transformers, checked and packed.

Shapes: T packed tokens, B sequences, S padded sequence length, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from modernbert.packing import PackedBatch, pad, unpad


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
                f"padded input must be (batch, sequence), not {_format_shape(source)}; packed needs"
                " cu_seqlens"
            )
        shape = (source.shape[0], source.shape[1])
        mask_BS = attention_mask
        if mask_BS is None:
            mask_BS = torch.ones(shape, dtype=torch.bool, device=source.device)
        if tuple(mask_BS.shape) != shape:
            raise ValueError(
                f"attention_mask is {_format_shape(mask_BS)}, the input {shape[0]} x {shape[1]}"
            )
        ids_BS = input_ids
        if ids_BS is None:
            ids_BS = mask_BS.new_zeros(shape, dtype=torch.int64)
        batch, indices = unpad(ids_BS, mask_BS)
        if inputs_embeds is not None:
            batch = replace(batch, inputs_embeds=inputs_embeds.flatten(0, 1)[indices])
        if position_ids is not None:
            fits = position_ids.shape in (shape, (1, shape[1]), shape[1:])
            if not fits or (position_ids < 0).any():
                raise ValueError(
                    f"position_ids are {_format_shape(position_ids)}; they must be"
                    f" {_format_shape(mask_BS)}, at least 0"
                )
            batch = _with_positions(batch, position_ids.expand(shape).flatten()[indices])
        return cls(batch, indices, shape)

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
        flat = source.flatten() if inputs_embeds is None else source.flatten(0, -2)
        tokens = len(flat)
        starts = cu_seqlens.tolist()
        lengths = tuple(stop - start for start, stop in pairwise(starts))
        if not lengths or starts[0] != 0 or min(lengths) < 1 or starts[-1] != tokens:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {tokens} tokens of the input, not {starts[:9]}"
            )
        if (indices is None) != (shape is None):
            raise ValueError(
                "indices, batch_size and seq_len pad the output together: give all three or none"
            )
        if indices is not None and shape is not None and not _indices_fit(indices, lengths, shape):
            raise ValueError(
                f"indices must rise, and put each of the {len(lengths)} sequences into a row of its"
                f" own in {shape}"
            )
        if inputs_embeds is None:
            batch = PackedBatch.from_lengths(flat, lengths)
        else:
            no_ids = flat.new_zeros(tokens, dtype=torch.int64)
            batch = replace(PackedBatch.from_lengths(no_ids, lengths), inputs_embeds=flat)
        if position_ids is not None:
            positions_T = position_ids.flatten()
            if len(positions_T) != tokens or (positions_T < 0).any():
                raise ValueError(
                    f"position_ids must have a number of at least 0 for each of the {tokens} tokens"
                )
            batch = _with_positions(batch, positions_T)
        return cls(batch, indices, shape)

    def pad(self, values_TX: Tensor, value: float = 0.0) -> Tensor:
        """Bring packed values (T, …) into the caller's layout, (B, S, …) with `value` at padding.

        Where outputs stay packed, they are returned unchanged.
        """
        if self.indices is None or self.shape is None:
            return values_TX
        return pad(values_TX, self.indices, *self.shape, value)

    def unpad(self, values: Tensor) -> Tensor:
        """Pack one value per token, given in the caller's layout (B, S) or already packed, as (T,).

        Raises:
            ValueError: for any other number of values.
        """
        tokens = self.batch.input_ids.numel()
        if self.indices is not None and self.shape is not None:
            batch_size, seq_len = self.shape
            if values.numel() == batch_size * seq_len:
                return values.flatten()[self.indices]
        if values.numel() != tokens:
            raise ValueError(
                f"labels are {_format_shape(values)}; give one for each of the {tokens} tokens, or"
                " the input's layout"
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
        # Windows count real tokens, whatever padding is between them.
        order_BS = real_BS.long().cumsum(dim=1)
        distance = (order_BS[:, None, None, :] - order_BS[:, None, :, None]).abs()
        window = distance <= half
        real_pairs = real_BS[:, None, :, None] & real_BS[:, None, None, :]
        if not ((visible != window) & real_pairs).any():
            return
    raise ValueError(
        f"sliding_window_mask {_format_shape(mask)} is not the mask of a window of {half} keys on"
        " each side: windows come from local_attention in the configuration; leave the mask out"
    )


def _with_positions(batch: PackedBatch, positions_T: Tensor) -> PackedBatch:
    num_positions = int(positions_T.max()) + 1
    return replace(batch, position_ids=positions_T, num_positions=num_positions)


def _indices_fit(indices: Tensor, lengths: tuple[int, ...], shape: tuple[int, int]) -> bool:
    """Return whether `indices` put the sequences into the rows of `shape`, one into each, in
    order.
    """
    batch_size, seq_len = shape
    if len(indices) != sum(lengths) or batch_size != len(lengths) or int(indices[0]) < 0:
        return False
    if not bool((indices.diff() > 0).all()):
        return False
    tokens_B = torch.bincount(indices // seq_len, minlength=batch_size)
    return tokens_B.tolist() == list(lengths)


def _ids_or_embeds(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the one that is given; raise ValueError for both or none."""
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise ValueError("give either input_ids or inputs_embeds, and not both")


def _format_shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
