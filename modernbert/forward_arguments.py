"""The arguments of every `forward` as one value, checked and packed.

Shapes: T packed tokens, B sequences, S padded length, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modernbert.config import ModernBertConfig
from modernbert.inputs import ModelInputs, check_sliding_window_mask


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardArguments:
    """What `ModernBertModel.forward` takes, which states what each argument means; a head's
    `forward` adds its targets.
    """

    input_ids: Tensor | None
    attention_mask: Tensor | None
    sliding_window_mask: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    indices: Tensor | None
    cu_seqlens: Tensor | None
    max_seqlen: int | None
    batch_size: int | None
    seq_len: int | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    others: dict[str, object]
    """Arguments under any other name."""

    def pack(self, config: ModernBertConfig) -> ModelInputs:
        """Check the arguments and pack the input.

        Raises:
            ValueError: for arguments that contradict each other or the configuration.
            TypeError: for an argument that is unknown.
        """
        unknown = sorted(set(self.others) - {"token_type_ids"})
        if unknown:
            raise TypeError(f"forward has no argument {', '.join(unknown)}")
        if self.cu_seqlens is None:
            inputs = self._pack_padded()
        else:
            inputs = self._check_packed(self.cu_seqlens)
        longest = inputs.batch.max_seqlen
        if self.max_seqlen is not None and self.max_seqlen < longest:
            raise ValueError(
                f"max_seqlen is {self.max_seqlen}, but a sequence has {longest} tokens"
            )
        if self.sliding_window_mask is not None:
            real_tokens = inputs.pad(torch.ones_like(inputs.batch.input_ids, dtype=torch.bool))
            half_window = config.local_attention // 2
            check_sliding_window_mask(self.sliding_window_mask, real_tokens, half_window)
        return inputs

    @property
    def _shape(self) -> tuple[int, int] | None:
        """(B, S) as `batch_size` and `seq_len` say it."""
        if self.batch_size is None or self.seq_len is None:
            return None
        return self.batch_size, self.seq_len

    def _pack_padded(self) -> ModelInputs:
        if self.indices is not None:
            raise ValueError("indices belong to unpadded input, which needs cu_seqlens too")
        inputs = ModelInputs.from_padded(
            self.input_ids, self.attention_mask, self.position_ids, self.inputs_embeds
        )
        if self._shape not in (None, inputs.shape):
            raise ValueError(
                f"batch_size and seq_len say {self._shape}, the input is {inputs.shape}"
            )
        return inputs

    def _check_packed(self, cu_seqlens: Tensor) -> ModelInputs:
        inputs = ModelInputs.from_packed(
            self.input_ids,
            cu_seqlens,
            self.position_ids,
            self.inputs_embeds,
            self.indices,
            self._shape,
        )
        num_tokens = inputs.batch.input_ids.numel()
        mask = self.attention_mask
        if mask is not None and int((mask != 0).sum()) != num_tokens:
            raise ValueError(
                "attention_mask and cu_seqlens count different numbers of tokens; leave the mask"
                " out"
            )
        return inputs
