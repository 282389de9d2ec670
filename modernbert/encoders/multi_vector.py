"""Multi-vector encoders (ColBERT): a vector for each token of a text, and the score of a pair from
them.

Shapes: T packed tokens, P kept tokens, Q tokens of a query, K tokens of a passage, B pairs, D
hidden, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.encoders.multi_vector_config import MultiVectorConfig
from modernbert.encoders.sentence import apply_to_tokens, load_dense
from modernbert.encoders.stored_encoder import StoredEncoder
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
            kept: (P,) int64, the tokens whose vectors are given.
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


def max_similarity(vectors_PE: Tensor, counts: Sequence[int], mean: bool) -> Tensor:
    """Score pairs: for each token of a query the largest product with a token of the passage, added
    up.

    Args:
        vectors_PE: the vectors of a query, of its passage, of the next query, and so on.
        counts: the vectors of each of them, with the sum P.
        mean: whether the sum is divided by the tokens of the query.

    Returns:
        (B,) fp32; zero where a query or a passage has no vectors.
    """
    scores = []
    parts = vectors_PE.split(list(counts))
    for query_QE, passage_KE in zip(parts[::2], parts[1::2], strict=True):
        if not len(query_QE) or not len(passage_KE):
            scores.append(vectors_PE.new_zeros(()))
            continue
        best_Q = (query_QE @ passage_KE.T).amax(dim=1)
        scores.append(best_Q.mean() if mean else best_Q.sum())
    return torch.stack(scores)
