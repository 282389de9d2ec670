"""Sparse encoders: a weight for each token of the vocabulary, from a masked language model (SPLADE)
or looked up.

Shapes: T packed tokens, C tokens of a chunk, B sequences, D hidden, V vocabulary, R weights that
are not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from modernbert.checkpoint import load
from modernbert.encoders.sparse_config import SparseConfig
from modernbert.heads import ModernBertForMaskedLM
from modernbert.packing import PackedBatch
from modernbert.stored import CheckpointError
from modernbert.tensors import read_tensors

CHUNK_ROWS = {"cpu": 128, "cuda": 2048}
"""The tokens whose scores are held at a time, by device: on a CPU 26 MB with ModernBERT's
vocabulary.
"""


class SparseEncoder(nn.Module):
    """A masked language model whose scores become a weight for each token of the vocabulary (Formal
    et al. 2021, arXiv:2109.10086): log(1 + max(0, score)), the largest over all positions, or their
    sum.

    The scores are computed for a chunk of tokens at a time, so that no matrix (T, V) is held.
    """

    static: Tensor | None

    def __init__(self, model: ModernBertForMaskedLM, config: SparseConfig):
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("static", _load_static(config))

    @classmethod
    def load(
        cls,
        config: SparseConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SparseEncoder:
        """Load a sparse encoder for inference: in eval mode, without gradients.

        Args:
            config: the configuration, which names the folders of the weights
                (`SparseConfig.from_folder`).
            device: where the weights are put.
            dtype: the dtype of the encoder.

        Raises:
            CheckpointError: where a file or a weight is missing or does not fit.

        Example:
            >>> config = SparseConfig.from_folder(resolve("my-org/modernbert-splade"))
            >>> encoder = SparseEncoder.load(config)
        """
        model = load(ModernBertForMaskedLM, config.encoder, device=device, dtype=dtype)
        return cls(model, config).to(device).eval().requires_grad_(False)

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
        found: list[Tensor] = []
        pooled_V: Tensor | None = None
        ends = list(accumulate(batch.seqlens))
        sequence = 0
        for start, stop in self._chunks(ends, CHUNK_ROWS[x_TD.device.type]):
            scores_CV = self._scores(self.model.decode(x_TD[start:stop]))
            complete: list[Tensor] = []
            at = start
            while at < stop:
                end = min(ends[sequence], stop)
                pooled_V = self._pool(pooled_V, scores_CV[at - start : end - start])
                if end == ends[sequence]:
                    complete.append(pooled_V)
                    pooled_V, sequence = None, sequence + 1
                at = end
            if complete:  # together: a GPU is waited for each time that weights are counted
                found.append(
                    _nonzero(sequence - len(complete), self._weights(torch.stack(complete)))
                )
        return torch.cat(found)

    def _chunks(self, ends: list[int], rows: int) -> Iterator[tuple[int, int]]:
        """Yield the tokens [start, stop) of each chunk; for a sum a chunk begins with each
        sequence, so that its bits do not depend on the sequences before it.
        """
        stretches = [(0, ends[-1])] if self.config.strategy == "max" else list(pairwise([0, *ends]))
        for first, last in stretches:
            for start in range(first, last, rows):
                yield start, min(start + rows, last)

    def _scores(self, logits_CV: Tensor) -> Tensor:
        """What is pooled: for a maximum the logits, since all that follows grows with them."""
        return (
            logits_CV.float()
            if self.config.strategy == "max"
            else self._activate(logits_CV.float())
        )

    def _pool(self, pooled_V: Tensor | None, scores_CV: Tensor) -> Tensor:
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
        sequence_T = torch.repeat_interleave(
            torch.arange(len(batch.seqlens), device=batch.input_ids.device), batch.cu_seqlens.diff()
        )
        unique_R2 = torch.stack((sequence_T, batch.input_ids.long()), dim=1).unique(dim=0)
        assert self.static is not None
        weights_R = self.static[unique_R2[:, 1]]
        rows_R3 = torch.cat((unique_R2.float(), weights_R[:, None]), dim=1)
        return rows_R3[weights_R != 0]


def _nonzero(first: int, weights_BV: Tensor) -> Tensor:
    """Return (R, 3): the sequences, counted from `first`, the ids and the weights that are not
    zero; what is no number stays, too.
    """
    rows_R, ids_R = weights_BV.nonzero(as_tuple=True)
    return torch.stack(((rows_R + first).float(), ids_R.float(), weights_BV[rows_R, ids_R]), dim=1)


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
