"""What scores labels in a GLiClass: from the vectors of a text and of its labels to a number each.

Modules have the names that the package gliclass stores. All rows but those of attention are treated
independently.

Shapes: R labels of all sequences, L tokens of one sequence, C labels of one sequence, D hidden,
N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.encoders.gliclass_config import GLiClassConfig
from modernbert.linear import compute_in_chunks

_MLP_SIZE = 256  # whatever scorer_mlp_hidden_size says: gliclass does not pass it on
_HOPFIELD_BETA = 4
_ROWS = 64  # always as many: the bits of a matrix product may depend on its number of rows
_NUM_STATISTICS = 6  # of logits, which a calibrator reads


def in_rows(fn: Callable[..., Tensor], *inputs_XD: Tensor) -> Tensor:
    """Compute a function that treats rows independently.

    On a CPU, a row's bits do not depend on how many others there are.
    """
    if inputs_XD[0].device.type != "cpu" or not len(inputs_XD[0]):
        return fn(*inputs_XD)
    return compute_in_chunks(fn, inputs_XD, chunk_rows=_ROWS, row_multiple=_ROWS)


class DotScorer(nn.Module):
    """The product of a text's vector with a label's."""

    def forward(self, text_RD: Tensor, classes_RD: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Compute the logits (R,); `counts` are the labels of each sequence."""
        return (text_RD * classes_RD).sum(dim=-1)


class WeightedDotScorer(nn.Module):
    """Layers on two projections of both vectors, and on the product of two of these."""

    def __init__(self, size: int):
        super().__init__()
        self.proj_text = nn.Linear(size, 2 * size)
        self.proj_label = nn.Linear(size, 2 * size)
        self.out_mlp = nn.Sequential(
            nn.Linear(3 * size, 4 * size), nn.Identity(), nn.ReLU(), nn.Linear(4 * size, 1)
        )

    def forward(self, text_RD: Tensor, classes_RD: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: ARG002
        return in_rows(self._score, text_RD, classes_RD).squeeze(-1)

    def _score(self, text_RD: Tensor, classes_RD: Tensor) -> Tensor:
        first_text_RD, second_text_RD = self.proj_text(text_RD).chunk(2, dim=-1)
        first_class_RD, second_class_RD = self.proj_label(classes_RD).chunk(2, dim=-1)
        products_RD = second_text_RD * second_class_RD
        scores_R1: Tensor = self.out_mlp(
            torch.cat((first_text_RD, first_class_RD, products_RD), dim=-1)
        )
        return scores_R1


class MLPScorer(nn.Module):
    """Layers on both vectors."""

    def __init__(self, size: int):
        super().__init__()
        self.mlp = _mlp(2 * size, _MLP_SIZE, nn.ReLU())

    def forward(self, text_RD: Tensor, classes_RD: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: ARG002
        return in_rows(self.mlp, torch.cat((text_RD, classes_RD), dim=-1)).squeeze(-1)


class HopfieldScorer(nn.Module):
    """Layers on a label's vector, to which its share of the text's is added: shares are those of a
    softmax over the labels of a text.
    """

    def __init__(self, size: int):
        super().__init__()
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.mlp = _mlp(size, _MLP_SIZE, nn.ReLU())

    def forward(self, text_RD: Tensor, classes_RD: Tensor, counts: Sequence[int]) -> Tensor:
        q_RD = in_rows(self.q_proj, classes_RD)
        k_RD = in_rows(self.k_proj, text_RD)
        v_RD = in_rows(self.v_proj, text_RD)
        weights_R = _HOPFIELD_BETA * (q_RD * k_RD).sum(dim=-1)
        shares_R = torch.cat([x_C.softmax(dim=0) for x_C in weights_R.split(list(counts))])
        return in_rows(self.mlp, classes_RD + shares_R[:, None] * v_RD).squeeze(-1)


ROW_SCORERS: dict[str, Callable[[int], nn.Module]] = {
    "simple": lambda size: DotScorer(),  # noqa: ARG005
    "weighted-dot": WeightedDotScorer,
    "mlp": MLPScorer,
    "hopfield": HopfieldScorer,
}
"""The scorers of a vector for each text, for vectors of a size, by scorer_type."""


class CrossAttentionScorer(nn.Module):
    """Layers on a label's vector and on what it attends to among the text's tokens."""

    def __init__(self, config: GLiClassConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.scorer_num_heads
        self.q_norm = nn.LayerNorm(size)
        self.kv_norm = nn.LayerNorm(size)
        self.q = nn.Linear(size, size)
        self.k = nn.Linear(size, size)
        self.v = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.score_mlp = _mlp(2 * size, config.scorer_mlp_hidden_size, nn.GELU())

    def forward(self, texts: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
        """Compute the logits (R,) from the tokens (L, D) and the labels (C, D) of each sequence."""
        classes_RD = torch.cat(list(classes))
        tokens_TD = torch.cat(list(texts))
        counts = [len(x_CD) for x_CD in classes]
        lengths = [len(x_LD) for x_LD in texts]
        q_RD = in_rows(lambda x: self.q(self.q_norm(x)), classes_RD)
        k_TD = in_rows(lambda x: self.k(self.kv_norm(x)), tokens_TD)
        v_TD = in_rows(self.v, tokens_TD)
        contexts = []
        for q_CD, k_LD, v_LD in zip(
            q_RD.split(counts), k_TD.split(lengths), v_TD.split(lengths), strict=True
        ):
            contexts.append(self._attend(q_CD, k_LD, v_LD))
        return in_rows(self._score, torch.cat(contexts), classes_RD).squeeze(-1)

    def _attend(self, q_CD: Tensor, k_LD: Tensor, v_LD: Tensor) -> Tensor:
        q_NCH, k_NLH, v_NLH = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for x in (q_CD, k_LD, v_LD)
        )
        context_NCH = F.scaled_dot_product_attention(q_NCH[None], k_NLH[None], v_NLH[None])[0]
        return context_NCH.transpose(0, 1).flatten(1)

    def _score(self, context_RD: Tensor, classes_RD: Tensor) -> Tensor:
        context_RD = self.norm(self.out(context_RD))
        scores_R1: Tensor = self.score_mlp(torch.cat((context_RD, classes_RD), dim=-1))
        return scores_R1


class Calibrator(nn.Module):
    """Scales logits by a temperature for each text and label, and may add a bias."""

    def __init__(self, config: GLiClassConfig):
        super().__init__()
        size = config.hidden_size
        hidden = config.calibrator_hidden_size
        self.beta_max = config.calibrator_beta_max
        self.use_bias = config.calibrator_use_bias
        self.text_norm = nn.LayerNorm(size)
        self.label_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.Linear(4 * size + _NUM_STATISTICS, hidden),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(hidden, 2 if self.use_bias else 1),
        )

    def forward(
        self, text_RD: Tensor, classes_RD: Tensor, logits_R: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """Compute the calibrated logits (R,); `counts` are the labels of each sequence."""
        statistics = torch.cat([_statistics(x_C) for x_C in logits_R.split(list(counts))])
        out = in_rows(self._read, text_RD, classes_RD, statistics)
        beta_R = out[:, 0]
        return beta_R * logits_R + (out[:, 1] if self.use_bias else 0)

    def _read(self, text_RD: Tensor, classes_RD: Tensor, statistics: Tensor) -> Tensor:
        text_RD = self.text_norm(text_RD)
        label_RD = self.label_norm(classes_RD)
        both = (text_RD, label_RD, text_RD * label_RD, (text_RD - label_RD).abs())
        out: Tensor = self.mlp(torch.cat((*both, statistics), dim=-1))
        beta_R1 = self.beta_max * out[:, :1].sigmoid()
        return torch.cat((beta_R1, out[:, 1:]), dim=1)


def _statistics(logits_C: Tensor) -> Tensor:
    """Return what a calibrator reads of a text's logits, (C, _NUM_STATISTICS)."""
    shares_C = logits_C.sigmoid()
    entropy_C = -(shares_C * F.logsigmoid(logits_C) + (1 - shares_C) * F.logsigmoid(-logits_C))
    columns = (
        logits_C,
        logits_C.abs(),
        logits_C - logits_C.max(),
        logits_C - logits_C.mean(),
        entropy_C.mean().expand_as(logits_C),
        torch.full_like(logits_C, len(logits_C)).log(),
    )
    return torch.stack(columns, dim=-1)


def _mlp(size: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, hidden),
        activation,
        nn.Linear(hidden, hidden // 2),
        activation,
        nn.Linear(hidden // 2, 1),
    )
