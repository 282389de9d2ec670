"""Sparse encoders: a weight for each token of the vocabulary, from a masked language model (SPLADE)
or looked up.

Shapes: T packed tokens, C tokens of a chunk, B sequences, D hidden, V vocabulary, R weights that
are not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from modernbert.encoders.sparse_config import SparseConfig
from modernbert.encoders.stored_encoder import StoredEncoder
from modernbert.heads import ModernBertForMaskedLM
from modernbert.packing import PackedBatch
from modernbert.stored import CheckpointError
from modernbert.tensors import read_tensors

CHUNK_ROWS = {"cpu": 128, "cuda": 2048}
"""The tokens whose scores are held at a time, by device: on a CPU 26 MB with ModernBERT's
vocabulary.
"""


class SparseEncoder(StoredEncoder[SparseConfig]):
    """A masked language model whose scores become a weight for each token of the vocabulary (Formal
    et al. 2021, arXiv:2109.10086): log(1 + max(0, score)), the largest over all positions, or their
    sum.

    The scores are computed for a chunk of tokens at a time, so that no matrix (T, V) is held.
    """

    model_class = ModernBertForMaskedLM
    static: Tensor | None

    def __init__(self, model: ModernBertForMaskedLM, config: SparseConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("static", _load_static(config))

    def forward_packed(self, batch: PackedBatch, static: bool = False) -> Tensor:
        """Compute the weights of a packed batch that are not zero.

        Args:
            batch: the input, on the model's device.
            static: whether each token of a sequence has the weight that is stored for it, without
                inference.

        Returns:
            (R, 3) fp32: the number of the sequence in the batch, the token's id and its weight; in
            the order of the batch, then of ids.
        """
        if static:
            return self._look_up(batch)
        x_TD = self.model.model.forward_packed(batch)
        weights: list[Tensor] = []
        pooled_V: Tensor | None = None
        ends = list(accumulate(batch.seqlens))
        sequence = 0
        for start, stop in self._chunks(ends, CHUNK_ROWS[x_TD.device.type]):
            logits_CV = self.model.decode(x_TD[start:stop])
            scores_CV = self._scores(logits_CV)
            # A chunk may end some sequences, and hold a part of the next one.
            complete: list[Tensor] = []
            token = start
            while token < stop:
                end = min(ends[sequence], stop)
                pooled_V = self._pool(pooled_V, scores_CV[token - start : end - start])
                if end == ends[sequence]:
                    complete.append(pooled_V)
                    pooled_V = None
                    sequence += 1
                token = end
            # Together, since a GPU is waited for each time that weights are counted.
            if complete:
                weights_BV = self._weights(torch.stack(complete))
                weights.append(_nonzero(sequence - len(complete), weights_BV))
        return torch.cat(weights)

    def _chunks(self, ends: list[int], rows: int) -> Iterator[tuple[int, int]]:
        """Yield the tokens [start, stop) of each chunk, of `rows` at most."""
        stretches = [(0, ends[-1])]
        # A chunk begins with each sequence, so that the bits of a sum do not depend on the
        # sequences before it; those of a maximum never do.
        if self.config.strategy == "sum":
            stretches = list(pairwise([0, *ends]))
        for first, last in stretches:
            for start in range(first, last, rows):
                yield start, min(start + rows, last)

    def _scores(self, logits_CV: Tensor) -> Tensor:
        """What is pooled: for a maximum the logits, since all that follows grows with them."""
        scores_CV = logits_CV.float()
        return scores_CV if self.config.strategy == "max" else self._activate(scores_CV)

    def _pool(self, pooled_V: Tensor | None, scores_CV: Tensor) -> Tensor:
        """Pool the scores of tokens, together with what was pooled before them."""
        if self.config.strategy == "max":
            new_V = scores_CV.amax(dim=0)
            return new_V if pooled_V is None else torch.maximum(pooled_V, new_V)
        new_V = scores_CV.sum(dim=0)
        return new_V if pooled_V is None else pooled_V + new_V

    def _weights(self, pooled_BV: Tensor) -> Tensor:
        return self._activate(pooled_BV) if self.config.strategy == "max" else pooled_BV

    def _activate(self, x: Tensor) -> Tensor:
        weights = x.relu().log1p()
        return weights.log1p() if self.config.activation == "log1p_relu" else weights

    def _look_up(self, batch: PackedBatch) -> Tensor:
        assert self.static is not None
        sequences_B = torch.arange(len(batch.seqlens), device=batch.input_ids.device)
        sequence_T = torch.repeat_interleave(sequences_B, batch.cu_seqlens.diff())
        pairs_T2 = torch.stack((sequence_T, batch.input_ids.long()), dim=1)
        pairs_R2 = torch.unique(pairs_T2, dim=0)
        weights_R = self.static[pairs_R2[:, 1]]
        rows_R3 = torch.cat((pairs_R2.float(), weights_R[:, None]), dim=1)
        return rows_R3[weights_R != 0]


def _nonzero(first: int, weights_BV: Tensor) -> Tensor:
    """Return (R, 3): the sequences, counted from `first`, the ids and the weights that are not
    zero; what is not a number stays, too.
    """
    rows_R, ids_R = weights_BV.nonzero(as_tuple=True)
    sequences_R = (rows_R + first).float()
    return torch.stack((sequences_R, ids_R.float(), weights_BV[rows_R, ids_R]), dim=1)


def _load_static(config: SparseConfig) -> Tensor | None:
    if config.static_weights is None:
        return None
    if not config.static_weights.is_file():
        raise CheckpointError(f"{config.static} lacks model.safetensors, the weights of queries")
    weights = dict(read_tensors(config.static_weights))
    if set(weights) != {"weight"} or weights["weight"].dim() != 1:
        raise CheckpointError(
            f"{config.static_weights} must hold one vector, weight, and has {', '.join(weights)}"
        )
    return weights["weight"].float()
