"""The heads on the encoder, with their losses.

Shapes: T packed tokens, B sequences, S padded length, D hidden, C labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.config import ACTIVATIONS, ModernBertConfig
from modernbert.linear import Linear, by_rows
from modernbert.model import ModernBertModel, layer_norm
from modernbert.outputs import SequenceClassifierOutput
from modernbert.packing import PackedBatch, unpad


class ModernBertPredictionHead(nn.Module):
    """Dense, activation, norm: what stands between the encoder and a classifier or decoder."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = ACTIVATIONS[config.classifier_activation]
        self.norm = layer_norm(config)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return self.norm(self.act(self.dense(x_BD)))


class ModernBertForSequenceClassification(nn.Module):
    """A label, several labels or a number for each sequence."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.model = ModernBertModel(config, attention)
        self.head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The logits (B, C) of a packed batch on the model's device, in its order."""
        pooled_BD = pool(self.model.forward_packed(batch), batch, self.config.classifier_pooling)
        return by_rows(self._classify, pooled_BD)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits of padded ids (B, S), and the loss where `labels` are given: (B,) classes or (B, C) targets."""
        batch, _ = unpad(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        logits = self.forward_packed(batch)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _classify(self, pooled_BD: Tensor) -> Tensor:
        return self.classifier(self.drop(self.head(pooled_BD)))


def pool(hidden_TD: Tensor, batch: PackedBatch, how: str) -> Tensor:
    """One vector a sequence, (B, D): its first token's ("cls") or the mean over its tokens ("mean")."""
    if how == "cls":
        return hidden_TD[batch.cu_seqlens[:-1].long()]
    return torch.stack([x_LD.mean(dim=0) for x_LD in hidden_TD.split(batch.seqlens)])


def classification_loss(logits_BC: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss for `problem_type`, which is told from the labels' kind where it is None."""
    if problem_type is None:
        whole = not labels.is_floating_point()
        single = "single_label_classification" if whole else "multi_label_classification"
        problem_type = "regression" if logits_BC.shape[-1] == 1 else single
    if problem_type == "regression":
        return F.mse_loss(logits_BC.squeeze(), labels.squeeze().to(logits_BC.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits_BC.view(-1, logits_BC.shape[-1]), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))
