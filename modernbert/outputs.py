"""Outputs of the model classes, with the names of transformers.

Shapes: B sequences, S padded length, T packed tokens, D hidden, N heads, C labels or choices, V
vocabulary. For packed input without `indices`, outputs are (T, …) in place of (B, S, …).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypedDict

from torch import Tensor

OutputOrTuple: TypeAlias = Any
"""A `ModelOutput`, or without `return_dict` a tuple of its values: the caller knows which."""
_TRACES = ("hidden_states", "attentions")


class Traces(TypedDict, total=False):
    """The fields that all outputs have, as far as they are asked for."""

    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutput:
    """The base of all outputs; `output.logits`, `output["logits"]` and `output[0]` all work."""

    hidden_states: tuple[Tensor, ...] | None = None
    """With `output_hidden_states`: the embeddings, the output of each layer but the last, and the
    output of the final norm, each (B, S, D), zero at padding.
    """
    attentions: tuple[Tensor, ...] | None = None
    """With `output_attentions`: the weights of each layer after softmax and dropout, (B, N, S, S),
    zero at padding.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values that are not None: the loss, the logits or hidden state, hidden states,
        attentions.
        """
        names = [field.name for field in fields(self) if field.name not in _TRACES]
        values = [getattr(self, name) for name in (*names, *_TRACES)]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:  # a field, or a tuple of some
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModelOutput(ModelOutput):
    """The output of `ModernBertModel`."""

    last_hidden_state: Tensor
    """(B, S, D), zero at padding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedLMOutput(ModelOutput):
    """The output of `ModernBertForMaskedLM`."""

    loss: Tensor | None = None
    """A scalar if labels are given."""
    logits: Tensor
    """(B, S, V), before softmax, zero at padding; (labelled tokens, V) with `sparse_prediction` and
    labels.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceClassifierOutput(ModelOutput):
    """The output of `ModernBertForSequenceClassification`."""

    loss: Tensor | None = None
    """A scalar if labels are given."""
    logits: Tensor
    """(B, C), before softmax or sigmoid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClassifierOutput(ModelOutput):
    """The output of `ModernBertForTokenClassification`."""

    loss: Tensor | None = None
    """A scalar if labels are given."""
    logits: Tensor
    """(B, S, C), before softmax, zero at padding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """The output of `ModernBertForQuestionAnswering`."""

    loss: Tensor | None = None
    """The mean of the losses for start and end if both positions are given."""
    start_logits: Tensor
    """(B, S), before softmax; at padding the least number of the dtype, so that no argmax or
    softmax chooses it.
    """
    end_logits: Tensor
    """(B, S), like `start_logits`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MultipleChoiceModelOutput(ModelOutput):
    """The output of `ModernBertForMultipleChoice`."""

    loss: Tensor | None = None
    """A scalar if labels are given."""
    logits: Tensor
    """(B, C), a score for each choice, before softmax."""
