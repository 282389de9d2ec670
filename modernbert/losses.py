"""The losses of the heads, as in transformers.

Shapes: T packed tokens, B sequences, C labels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.inputs import ModelInputs


def classification_loss(logits_BC: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Compute the loss of a sequence classifier, a scalar.

    Args:
        logits_BC: (B, C).
        labels: (B,) int64 classes; (B,) numbers for regression; (B, C) floating-point targets for
            several labels.
        problem_type: one of `config.PROBLEM_TYPES`; None: regression if C is 1, else derived from
            the labels' dtype.
    """
    if problem_type is None:
        integer_labels = not labels.is_floating_point()
        single = "single_label_classification" if integer_labels else "multi_label_classification"
        problem_type = "regression" if logits_BC.shape[-1] == 1 else single
    if problem_type == "regression":
        return F.mse_loss(logits_BC.squeeze(), labels.squeeze().to(logits_BC.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits_BC.view(-1, logits_BC.shape[-1]), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))


def position_loss(
    inputs: ModelInputs, logits_T: Tensor, positions_B: Tensor, minimum: float
) -> Tensor:
    """Compute cross-entropy over the tokens of each sequence; a position beyond the end does not
    count.
    """
    if inputs.shape is None:
        rows = nn.utils.rnn.pad_sequence(
            list(logits_T.split(inputs.batch.seqlens)), batch_first=True, padding_value=minimum
        )
    else:
        rows = inputs.pad(logits_T, minimum)
    ignore_index = rows.shape[1]
    positions_B = positions_B.to(rows.device).view(-1).clamp(0, ignore_index)
    return F.cross_entropy(rows, positions_B, ignore_index=ignore_index)
