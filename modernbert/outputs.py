"""What the model classes return, under the names transformers gives them.

Shapes: B sequences, S padded length, T packed tokens, D hidden, N heads, C labels or choices, V vocabulary. Where a
call gave packed input without `indices`, (T, …) stands in place of (B, S, …).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

_TRACES = ("hidden_states", "attentions")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutput:
    """What every model returns; `output[0]`, `output["logits"]` and `output.logits` all work."""

    hidden_states: tuple[Tensor, ...] | None = None
    """With `output_hidden_states`: the embeddings, each layer's result but the last, and the last after the final norm,
    (B, S, D) each, zero at padding."""
    attentions: tuple[Tensor, ...] | None = None
    """With `output_attentions`: each layer's weights after softmax and dropout, (B, N, S, S), zero at padding."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None: the loss first, then the answers, hidden states and attentions."""
        names = [field.name for field in fields(self) if field.name not in _TRACES]
        return tuple(value for name in (*names, *_TRACES) if (value := getattr(self, name)) is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModelOutput(ModelOutput):
    """The result of ModernBertModel."""

    last_hidden_state: Tensor
    """(B, S, D), zero at padding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedLMOutput(ModelOutput):
    """The result of ModernBertForMaskedLM."""

    loss: Tensor | None = None
    """A scalar where labels were given."""
    logits: Tensor
    """(B, S, V), zero at padding; (labelled tokens, V) under sparse_prediction with labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceClassifierOutput(ModelOutput):
    """The result of ModernBertForSequenceClassification."""

    loss: Tensor | None = None
    """A scalar where labels were given."""
    logits: Tensor
    """(B, C), before softmax or sigmoid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClassifierOutput(ModelOutput):
    """The result of ModernBertForTokenClassification."""

    loss: Tensor | None = None
    """A scalar where labels were given."""
    logits: Tensor
    """(B, S, C), before softmax, zero at padding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """The result of ModernBertForQuestionAnswering."""

    loss: Tensor | None = None
    """The mean of the two losses where start and end positions were given."""
    start_logits: Tensor
    """(B, S), before softmax; the dtype's least number at padding, so that no argmax or softmax picks it."""
    end_logits: Tensor
    """As `start_logits`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MultipleChoiceModelOutput(ModelOutput):
    """The result of ModernBertForMultipleChoice."""

    loss: Tensor | None = None
    """A scalar where labels were given."""
    logits: Tensor
    """(B, C), one number for each choice, before softmax."""
