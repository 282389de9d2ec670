"""Sentence encoders: an encoder, pooling, dense layers and normalisation.

Shapes: T packed tokens, B sequences, C chunks, D hidden, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert import gpu
from modernbert.encoders.sentence_config import Dense, LayerWeights, Norm, SentenceConfig
from modernbert.encoders.stored_encoder import StoredEncoder
from modernbert.linear import compute_in_chunks
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.stored import CheckpointError, CheckpointPath
from modernbert.tensors import read_tensors

_TOKEN_ROWS = 64  # always as many: the bits of a matrix product may depend on its number of rows


class SentenceEncoder(StoredEncoder[SentenceConfig]):
    """An encoder with pooling and dense layers: a vector for each sequence.

    Example:
        >>> folder = resolve("my-org/modernbert-embed")
        >>> encoder = SentenceEncoder.load(SentenceConfig.from_folder(folder))
        >>> windows = Tokenizer.from_folder(folder).encode(["one text", "another one"])
        >>> ids, lengths = torch.from_numpy(windows.input_ids), tuple(windows.lengths.tolist())
        >>> encoder.forward_packed(PackedBatch.from_lengths(ids, lengths)).shape
        torch.Size([2, 768])
    """

    model_class = ModernBertModel

    def __init__(self, encoder: ModernBertModel, config: SentenceConfig):
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.layer_weights: Tensor | None
        self.register_buffer("layer_weights", _load_layer_weights(config.layer_weights))
        self.token_layers = nn.ModuleList(load_dense(layer) for layer in config.token_layers)
        self.layers = nn.ModuleList(_load_layer(layer) for layer in config.layers)

    def forward_packed(
        self, batch: PackedBatch, pooling: Sequence[str] = (), prompt_tokens: int = 0
    ) -> Tensor:
        """Compute the vectors of a packed batch, before any normalisation.

        Args:
            batch: the input, on the model's device.
            pooling: modes that replace the configured ones; empty: those of the configuration.
            prompt_tokens: tokens at the start of each sequence that pooling leaves out.

        Returns:
            (B, E) fp32, in the order of the batch.
        """
        x_TD = self._token_vectors(batch)
        modes = pooling or self.config.pooling
        if x_TD.device.type != "cpu":
            starts_B, stops_B = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
            spans = list(pairwise([0, *accumulate(batch.seqlens)]))
            pooled = [
                _pool_on_gpu(x_TD, starts_B, stops_B, spans, mode, prompt_tokens) for mode in modes
            ]
            return self._apply_layers(torch.cat(pooled, dim=1))
        return self._pool_each(x_TD.split(batch.seqlens), modes, prompt_tokens)

    def forward_chunks(
        self, batch: PackedBatch, chunks: Sequence[Sequence[int]], pooling: Sequence[str] = ()
    ) -> Tensor:
        """Compute the vectors of chunks of a packed batch's sequences, before any normalisation.

        Args:
            batch: the input, on the model's device.
            chunks: the tokens [first, stop) of each in the batch; they may overlap.
            pooling: modes that replace the configured ones; empty: those of the configuration.

        Returns:
            (C, E) fp32, in the order of the chunks.
        """
        x_TD = self._token_vectors(batch)
        modes = pooling or self.config.pooling
        if x_TD.device.type != "cpu":
            spans_C2 = np.array(chunks, dtype=np.int32).reshape(-1, 2)
            starts_C, stops_C = gpu.upload(x_TD.device, *spans_C2.T)
            pooled = [_pool_on_gpu(x_TD, starts_C, stops_C, chunks, mode, 0) for mode in modes]
            return self._apply_layers(torch.cat(pooled, dim=1))
        return self._pool_each([x_TD[first:stop] for first, stop in chunks], modes)

    def _token_vectors(self, batch: PackedBatch) -> Tensor:
        weights = self.config.layer_weights
        if weights is None:
            x_TD = self.encoder.forward_packed(batch)
        else:
            assert self.layer_weights is not None
            states = _WeightedMean(self.layer_weights, weights.first)
            self.encoder.forward_packed(batch, states)
            x_TD = states.mean
        if self.token_layers:
            x_TD = apply_to_tokens(self.token_layers, x_TD.float())
        return x_TD

    def _pool_each(
        self, stretches: Iterable[Tensor], modes: Sequence[str], prompt_tokens: int = 0
    ) -> Tensor:
        """Pool stretches of tokens (L, D), one after the other, and apply the layers behind."""
        rows = []
        for x_LD in stretches:
            x_LD = x_LD.float()
            pooled = [_POOLING_FUNCTIONS[mode](x_LD, prompt_tokens) for mode in modes]
            rows.append(torch.cat(pooled))
        if not self.layers:
            return torch.stack(rows)
        # One row at a time, each in memory of its own: the bits of a matrix product may depend on
        # its number of rows, and on where they begin.
        return torch.cat([self._apply_layers(x_D[None]) for x_D in rows])

    def _apply_layers(self, x_BE: Tensor) -> Tensor:
        for layer in self.layers:
            x_BE = layer(x_BE)
        return x_BE


class _WeightedMean:
    """The weighted mean of hidden states (T, D), added up as they come: none is kept."""

    def __init__(self, weights: Tensor, first: int):
        self.weights = weights
        self.first = first
        self._count = 0
        self._sum_TD: Tensor | None = None

    def append(self, x_TD: Tensor) -> None:
        place = self._count - self.first
        self._count += 1
        if place < 0:
            return
        weighted_TD = self.weights[place] * x_TD.float()
        self._sum_TD = weighted_TD if self._sum_TD is None else self._sum_TD.add_(weighted_TD)

    @property
    def mean(self) -> Tensor:
        """(T, D) fp32."""
        assert self._sum_TD is not None
        return self._sum_TD / self.weights.sum()


class _Dense(nn.Module):
    """A dense layer, (B, D) to (B, E), with its activation; its input is added if residual."""

    def __init__(self, weights: dict[str, Tensor], activation: str, residual: bool):
        super().__init__()
        out_features, in_features = weights["linear.weight"].shape
        self.linear = nn.Linear(in_features, out_features, bias="linear.bias" in weights)
        self.activation = getattr(nn, activation)()
        self.add_input = residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self.load_state_dict(weights)

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BE: Tensor = self.activation(self.linear(x_BD))
        if not self.add_input:
            return y_BE
        if hasattr(self, "residual"):
            x_BD = self.residual(x_BD)
        return y_BE + x_BD


class _Normalize(nn.Module):
    """Scales vectors (B, D) to length 1."""

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.normalize(x_BD, dim=-1)


def apply_to_tokens(layers: Iterable[nn.Module], x_TD: Tensor) -> Tensor:
    """Apply layers, one after the other, to the vectors of tokens.

    Args:
        layers: modules from (rows, D) to (rows, E).
        x_TD: fp32.

    Returns:
        (T, E) fp32; on a CPU, a token's vector does not depend on how many others there are.
    """

    def apply_all(x_TD: Tensor) -> Tensor:
        for layer in layers:
            x_TD = layer(x_TD)
        return x_TD

    if x_TD.device.type != "cpu" or not len(x_TD):
        return apply_all(x_TD)
    return compute_in_chunks(apply_all, (x_TD,), chunk_rows=_TOKEN_ROWS, row_multiple=_TOKEN_ROWS)


def _load_layer_weights(weights: LayerWeights | None) -> Tensor | None:
    if weights is None:
        return None
    return dict(read_tensors(_weights_of(weights.folder)))["layer_weights"].float()


def _load_layer(layer: Dense | Norm) -> nn.Module:
    if isinstance(layer, Dense):
        return load_dense(layer)
    return _load_norm(layer.folder) if layer.learned else _Normalize()


def _load_norm(folder: CheckpointPath) -> nn.LayerNorm:
    file = _weights_of(folder)
    weights = {name.removeprefix("norm."): weight.float() for name, weight in read_tensors(file)}
    if set(weights) != {"weight", "bias"}:
        raise CheckpointError(f"{file} does not hold a layer norm: it has {', '.join(weights)}")
    norm = nn.LayerNorm(len(weights["weight"]))
    norm.load_state_dict(weights)
    return norm


def load_dense(dense: Dense) -> nn.Module:
    """Load a dense layer; CheckpointError where its file does not hold one."""
    file = _weights_of(dense.folder)
    names = ["linear.weight"] if dense.beside_encoder else None
    weights = {name: weight.float() for name, weight in read_tensors(file, names)}
    try:
        return _Dense(weights, dense.activation, dense.residual)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file} does not hold a dense layer: {reason}") from error


def _weights_of(folder: CheckpointPath) -> CheckpointPath:
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder} lacks model.safetensors (pickles are never loaded)")
    return file


def _pool_on_gpu(
    x_TD: Tensor,
    starts_B: Tensor,
    stops_B: Tensor,
    spans: Sequence[Sequence[int]],
    mode: str,
    skip: int,
) -> Tensor:
    """Pool all stretches of tokens at once, (B, D) fp32; one by one where Triton is missing.

    `spans`: their starts and stops on the host.
    """
    if mode == "cls":
        return x_TD[starts_B + skip].float()
    if mode == "lasttoken":
        return x_TD[stops_B - 1].float()
    if kernels := gpu.kernels_for(x_TD):
        pooled_BD: Tensor = kernels.pool_stretches(x_TD, starts_B, stops_B, mode, skip)
        return pooled_BD
    pool = _POOLING_FUNCTIONS[mode]
    return torch.stack([pool(x_TD[start:stop].float(), skip) for start, stop in spans])


def _weighted_mean(x_LD: Tensor, skip: int) -> Tensor:
    """Compute the mean with weights that grow with the position: the n-th token has the weight
    n.
    """
    weights = torch.arange(skip + 1, len(x_LD) + 1, dtype=x_LD.dtype, device=x_LD.device)
    return weights @ x_LD[skip:] / weights.sum()


_POOLING_FUNCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cls": lambda x, skip: x[skip],
    "mean": lambda x, skip: x[skip:].mean(dim=0),
    "max": lambda x, skip: x[skip:].amax(dim=0),
    "mean_sqrt_len_tokens": lambda x, skip: x[skip:].sum(dim=0) / (len(x) - skip) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda x, skip: x[-1],  # noqa: ARG005
}
"""Poolings of a sequence's hidden states (L, D) but its first `skip`: a vector (D,)."""
