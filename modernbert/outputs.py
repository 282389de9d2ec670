"""What the model classes return, under the names transformers gives them.

Shapes: B sequences, S padded length, D hidden, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BaseModelOutput:
    """The result of ModernBertModel."""

    last_hidden_state: Tensor
    """(B, S, D)"""


@dataclass(frozen=True, kw_only=True)
class SequenceClassifierOutput:
    """The result of ModernBertForSequenceClassification."""

    loss: Tensor | None
    """A scalar where labels were given."""
    logits: Tensor
    """(B, C), before softmax or sigmoid."""
