"""Multi-vector encoders (ColBERT): a vector for each token of a text, and the score of a pair from
them.

Shapes: T packed tokens, P kept tokens, Q tokens of a query, K tokens of a passage, B pairs, D
hidden, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.encoders.multi_vector_config import MultiVectorConfig
from modernbert.encoders.sentence import apply_to_tokens, load_dense
from modernbert.encoders.stored_encoder import StoredEncoder
from modernbert.gpu import upload
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch


class MultiVectorEncoder(StoredEncoder[MultiVectorConfig]):
    """An encoder with dense layers on the vectors of tokens (Khattab and Zaharia 2020,
    arXiv:2004.12832).
    """

    model_class = ModernBertModel

    def __init__(self, encoder: ModernBertModel, config: MultiVectorConfig):
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.layers = nn.ModuleList(load_dense(dense) for dense in config.dense)

    def forward_packed(
        self, batch: PackedBatch, kept: Tensor, visible: Sequence[int] | None = None
    ) -> Tensor:
        """Compute the vectors of a packed batch.

        Args:
            batch: the input, on the model's device.
            kept: (P,) int32 or int64, the tokens whose vectors are given.
            visible: the first tokens of each sequence that its tokens see; None: all.

        Returns:
            (P, E) fp32, in the order of the batch.
        """
        if visible is not None:
            batch = replace(batch, visible=tuple(visible))
        x_TD = self.encoder.forward_packed(batch)
        x_PE = x_TD[kept].float()
        if self.layers:
            x_PE = apply_to_tokens(self.layers, x_PE)
        return F.normalize(x_PE, dim=-1) if self.config.normalize else x_PE


def max_similarity(
    vectors_PE: Tensor, starts_B2: np.ndarray, counts_B2: np.ndarray, mean: bool
) -> Tensor:
    """Score pairs: for each token of a query the largest product with a token of the passage, added
    up.

    Args:
        vectors_PE: the vectors of all queries and passages.
        starts_B2: (B, 2), where those of the query, and of the passage, of each pair begin.
        counts_B2: (B, 2), how many they are.
        mean: whether the sum is divided by the tokens of the query.

    Returns:
        (B,) fp32; zero where a query or a passage has no vectors.
    """
    if vectors_PE.device.type != "cpu":
        return score_together(vectors_PE, starts_B2, counts_B2, mean)
    scores = []
    stops_B2 = starts_B2 + counts_B2
    for starts, stops in zip(starts_B2.tolist(), stops_B2.tolist(), strict=True):
        query_QE, passage_KE = (
            vectors_PE[start:stop] for start, stop in zip(starts, stops, strict=True)
        )
        if not len(query_QE) or not len(passage_KE):
            scores.append(vectors_PE.new_zeros(()))
            continue
        best_Q = (query_QE @ passage_KE.T).amax(dim=1)
        scores.append(best_Q.mean() if mean else best_Q.sum())
    return torch.stack(scores)


def score_together(
    vectors_PE: Tensor, starts_B2: np.ndarray, counts_B2: np.ndarray, mean: bool
) -> Tensor:
    """Compute `max_similarity` in a product for many pairs, whose vectors are padded."""
    if not len(vectors_PE):
        return vectors_PE.new_zeros(len(counts_B2))
    spans_4B = np.concatenate((starts_B2.T, counts_B2.T)).astype(np.int32)
    query_starts, passage_starts, query_counts, passage_counts = upload(
        vectors_PE.device, *np.ascontiguousarray(spans_4B)
    )
    scores = []
    for first, stop in _groups(counts_B2[:, 1].tolist()):
        most_Q, most_K = counts_B2[first:stop].max(axis=0).tolist()
        group = slice(first, stop)
        query_BQE, no_query_BQ = _padded(
            vectors_PE, query_starts[group], query_counts[group], most_Q
        )
        passage_BKE, no_passage_BK = _padded(
            vectors_PE, passage_starts[group], passage_counts[group], most_K
        )
        products_BQK = torch.bmm(query_BQE, passage_BKE.transpose(1, 2))
        products_BQK.masked_fill_(no_passage_BK[:, None], float("-inf"))
        best_BQ = products_BQK.amax(dim=2).masked_fill(no_query_BQ, 0.0)
        score_B = best_BQ.sum(dim=1)
        if mean:
            score_B = score_B / query_counts[group].clamp(min=1)
        is_empty_B = (query_counts[group] == 0) | (passage_counts[group] == 0)
        scores.append(score_B.masked_fill(is_empty_B, 0.0))
    return torch.cat(scores)


def _groups(counts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield [first, stop) of neighbours that are padded to at most twice what they have."""
    first = 0
    most = total = 0
    for i, count in enumerate(counts):
        longest = max(most, count)
        if i > first and longest * (i + 1 - first) > 2 * (total + count):
            yield first, i
            first, total, longest = i, 0, count
        most = longest
        total += count
    yield first, len(counts)


def _padded(
    vectors_PE: Tensor, starts_B: Tensor, counts_B: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """Return the vectors of each text, (B, L, E), and which of them are not its own, (B, L).

    L is `longest`, and at least 1.
    """
    places_L = torch.arange(max(longest, 1), device=vectors_PE.device)
    rows_BL = (starts_B[:, None] + places_L).clamp(max=len(vectors_PE) - 1)
    return vectors_PE[rows_BL], places_L >= counts_B[:, None]
