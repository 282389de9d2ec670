"""Sparse encoders: a weight for each token of the vocabulary, from a masked language model (SPLADE)
or looked up.

Shapes: T packed tokens, C tokens of a chunk, B sequences, D hidden, V vocabulary, R weights that
are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modernbert import gpu
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

    The scores are computed for a chunk of tokens at a time, so that no matrix (T, V) is held. A GPU
    holds the weights of all sequences, (B, V), until they are counted.
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
        return self.launch(batch, static)()

    def launch(self, batch: PackedBatch, static: bool = False) -> Callable[[], Tensor]:
        """Start `forward_packed`, and return what gives its result.

        How many weights are not zero, a GPU alone knows: what is returned waits for the current
        stream, which may be another one then.
        """
        if static:
            pairs_T2 = self._pairs(batch)
            return lambda: self._look_up(pairs_T2)
        x_TD = self.model.model.forward_packed(batch)
        if kernels := gpu.kernels_for(x_TD):
            weights_BV = self._pool_together(x_TD, batch.seqlens, kernels)
            return lambda: _nonzero(0, weights_BV)
        rows_R3 = self._pool_one_by_one(x_TD, batch.seqlens)
        return lambda: rows_R3

    def _pool_together(self, x_TD: Tensor, seqlens: Sequence[int], kernels: ModuleType) -> Tensor:
        """Compute the weights (B, V) on a GPU: so many launches a chunk, however many sequences."""
        chunks = _chunks_of_sequences(seqlens, CHUNK_ROWS["cuda"])
        starts = [np.cumsum([0, *chunk.seqlens], dtype=np.int32) for chunk in chunks]
        starts_on_device = gpu.upload(x_TD.device, *starts)
        vocabulary = self.model.config.vocab_size
        pooled_BV = x_TD.new_empty(len(seqlens), vocabulary, dtype=torch.float32)
        start = 0
        for chunk, starts_B in zip(chunks, starts_on_device, strict=True):
            stop = start + sum(chunk.seqlens)
            scores_CV = self._scores(self.model.decode(x_TD[start:stop]))
            strategy = self.config.strategy
            rows_BV = pooled_BV[chunk.first : chunk.first + len(chunk.seqlens)]
            if not chunk.continues:
                kernels.pool_sequences(scores_CV, starts_B, strategy, out_BD=rows_BV)
            elif strategy == "max":
                rest_BV = kernels.pool_sequences(scores_CV, starts_B, strategy)
                torch.maximum(rows_BV, rest_BV, out=rows_BV)
            else:
                rows_BV += kernels.pool_sequences(scores_CV, starts_B, strategy)
            start = stop
        return self._weights(pooled_BV)

    def _pool_one_by_one(self, x_TD: Tensor, seqlens: Sequence[int]) -> Tensor:
        """Compute the rows (R, 3) of `forward_packed`, one sequence after the other."""
        weights: list[Tensor] = []
        pooled_V: Tensor | None = None
        ends = list(accumulate(seqlens))
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

    def _pairs(self, batch: PackedBatch) -> Tensor:
        """Return the sequence and the id of each token, (T, 2)."""
        tokens = batch.input_ids.numel()
        sequences_B = torch.arange(len(batch.seqlens), device=batch.input_ids.device)
        sequence_T = torch.repeat_interleave(
            sequences_B, batch.cu_seqlens.diff(), output_size=tokens
        )
        return torch.stack((sequence_T, batch.input_ids.long()), dim=1)

    def _look_up(self, pairs_T2: Tensor) -> Tensor:
        assert self.static is not None
        pairs_R2 = torch.unique(pairs_T2, dim=0)
        weights_R = self.static[pairs_R2[:, 1]]
        rows_R3 = torch.cat((pairs_R2.float(), weights_R[:, None]), dim=1)
        return rows_R3[weights_R != 0]


class _Chunk(NamedTuple):
    """Whole sequences whose scores are held together, or a part of one that is longer than that."""

    first: int
    """The place in the batch of the first sequence."""
    seqlens: list[int]
    """The tokens of each sequence that are in the chunk."""
    continues: bool
    """Whether the chunk before it holds the tokens before."""


def _chunks_of_sequences(seqlens: Sequence[int], rows: int) -> list[_Chunk]:
    """Cut a batch into chunks of at most `rows` tokens, so that where a sequence is cut does not
    depend on the sequences before it.
    """
    chunks: list[_Chunk] = []
    for sequence, length in enumerate(seqlens):
        last = chunks[-1] if chunks else None
        if last and not last.continues and sum(last.seqlens) + length <= rows:
            last.seqlens.append(length)
            continue
        for start in range(0, length, rows):
            chunks.append(_Chunk(sequence, [min(rows, length - start)], start > 0))
    return chunks


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
