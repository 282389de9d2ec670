"""One encoder for several models: heads that were trained on the same frozen encoder, or jointly.

A batch is then computed once, however many of them read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import torch
from torch import nn

from modernbert.config import ModernBertConfig
from modernbert.model import ModernBertModel

_OF_HEADS = frozenset(
    {
        *("architectures", "num_labels", "id2label", "label2id", "problem_type"),
        *("classifier_pooling", "classifier_dropout", "classifier_bias", "classifier_activation"),
        *("decoder_bias", "tie_word_embeddings", "sparse_prediction", "sparse_pred_ignore_index"),
        *("repad_logits_with_grad", "return_dict", "initializer_range"),
        "initializer_cutoff_factor",
    }
)
"""The fields of a configuration that the encoder does not read."""


def share_encoder(model: nn.Module, others: Iterable[nn.Module]) -> bool:
    """Let a model use the encoder of one of some others, where it is equal to its own.

    Args:
        model: a model of this package, as it was loaded: its weights are neither quantised nor
            reordered yet.
        others: models like it.

    Returns:
        Whether an encoder is shared now.

    Example:
        >>> topic = ModernBertForSequenceClassification.from_pretrained("my-org/topic")
        >>> entities = ModernBertForTokenClassification.from_pretrained("my-org/entities")
        >>> share_encoder(entities, [topic])  # both were trained on a frozen encoder
        True
    """
    holder, name, encoder = _encoder_of(model)
    for other in others:
        _, _, candidate = _encoder_of(other)
        if _are_equal(encoder, candidate):
            setattr(holder, name, candidate)
            candidate.is_shared = True
            return True
    return False


def _encoder_of(model: nn.Module) -> tuple[nn.Module, str, ModernBertModel]:
    """Return the encoder of a model, the module that holds it, and its name there."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, ModernBertModel):
                return module, name, child
    raise ValueError(f"{type(model).__name__} has no encoder of ModernBERT")


def _are_equal(one: ModernBertModel, other: ModernBertModel) -> bool:
    if one.attention != other.attention or _settings(one.config) != _settings(other.config):
        return False
    weights = one.state_dict()
    other_weights = other.state_dict()
    if weights.keys() != other_weights.keys():
        return False
    return all(_is_same(weight, other_weights[name]) for name, weight in weights.items())


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _settings(config: ModernBertConfig) -> dict[str, object]:
    names = [field.name for field in fields(config) if field.name not in _OF_HEADS]
    return {name: getattr(config, name) for name in names}
