"""GLiClass on a ModernBERT (Stepanov et al. 2025, arXiv:2508.07662): a score for each label that
stands beside a text, from one pass over both.

Shapes: T packed tokens, B sequences, L tokens of one sequence, R labels of all sequences, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.checkpoint import PreTrained
from modernbert.encoders.gliclass_config import CROSS_ATTENTION, NO_POOLING, GLiClassConfig
from modernbert.encoders.gliclass_scorers import (
    ROW_SCORERS,
    Calibrator,
    CrossAttentionScorer,
    in_rows,
)
from modernbert.linear import activation_function
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch

_EPSILON = 1e-8  # of a length by which a vector is divided


class GLiClassModel(PreTrained):
    """An encoder that reads labels and a text together, and what scores the labels.

    Weights have the names that the package gliclass stores.

    Example:
        >>> model = load(GLiClassModel, resolve("knowledgator/gliclass-modern-base-v2.0-init"))
        >>> windows = tokenizer.encode(["<<LABEL>>sport<<LABEL>>politics<<SEP>>a text"])
        >>> ids, lengths = torch.from_numpy(windows.input_ids), tuple(windows.lengths.tolist())
        >>> model.forward_packed(PackedBatch.from_lengths(ids, lengths), windows.input_ids).shape
        torch.Size([2])
    """

    config: GLiClassConfig
    encoder_prefix = "model.encoder_model."

    def __init__(self, config: GLiClassConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.model = _UniEncoder(config, attention)
        if config.use_calibrator:
            self.calibrator = Calibrator(config)

    def save_pretrained(
        self,
        folder: str | Path,  # noqa: ARG002
        *,
        max_shard_size: int | str = "5GB",  # noqa: ARG002
    ) -> None:
        raise ValueError("a GLiClass is trained and saved by the package gliclass alone")

    def forward_packed(self, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        """Compute the logits of all labels of a packed batch.

        Args:
            batch: the input, on the model's device.
            ids: (T,) its token ids on the host, in which labels are found without a wait for the
                device.

        Returns:
            (R,) fp32, the labels of each sequence in order.
        """
        starts_B = np.concatenate(([0], np.cumsum(batch.seqlens)))
        labels_R = np.flatnonzero(ids == self.config.class_token_index)
        counts = np.diff(np.searchsorted(labels_R, starts_B)).tolist()
        text_starts_B = self._text_starts(ids, starts_B)

        x_TD = self._encode(batch, text_starts_B)
        texts = self._texts(x_TD, batch, text_starts_B)
        classes_RD = self._class_vectors(x_TD, labels_R, starts_B, text_starts_B)
        parts = self.model
        classes_RD = self._project(parts.classes_projector, classes_RD)
        if isinstance(parts.scorer, CrossAttentionScorer):
            tokens_TD = self._project(parts.text_projector, torch.cat(texts))
            lengths = [len(x_LD) for x_LD in texts]
            return self._scaled(parts.scorer(tokens_TD.split(lengths), classes_RD.split(counts)))
        pool = _POOLINGS[self.config.pooling_strategy]
        pooled_BD = torch.stack([pool(x_LD) for x_LD in texts])
        pooled_BD = self._project(parts.text_projector, pooled_BD)
        # Each label beside its text.
        text_RD = torch.cat([x_D.expand(n, -1) for x_D, n in zip(pooled_BD, counts, strict=True)])
        logits_R: Tensor = self._scaled(parts.scorer(text_RD, classes_RD, counts))
        if not self.config.use_calibrator:
            return logits_R
        calibrated_R: Tensor = self.calibrator(text_RD, classes_RD, logits_R, counts)
        return calibrated_R

    def _encode(self, batch: PackedBatch, text_starts_B: np.ndarray) -> Tensor:
        """Return the last hidden states (T, D)."""
        encoder = self.model.encoder_model
        if not self.config.use_segment_embeddings:
            return encoder.forward_packed(batch)
        lengths = np.array(batch.seqlens)
        ends_B = np.cumsum(lengths)
        places_T = np.arange(ends_B[-1])
        is_text_T = places_T >= np.repeat(text_starts_B, lengths)
        segments_T = torch.from_numpy(is_text_T.astype(np.int64)).to(batch.input_ids.device)
        embeds_TD = encoder.embeddings.tok_embeddings(batch.input_ids)
        embeds_TD = embeds_TD + self.model.segment_embeddings(segments_T).to(embeds_TD.dtype)
        return encoder.forward_packed(replace(batch, inputs_embeds=embeds_TD))

    def _text_starts(self, ids: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
        """Return the place of the first SEP of each sequence; its start where it has none."""
        seps = np.flatnonzero(ids == self.config.text_token_index)
        first_B = np.searchsorted(seps, starts_B)
        has_one_B = np.diff(first_B) > 0
        text_starts_B = starts_B[:-1].copy()
        text_starts_B[has_one_B] = seps[first_B[:-1][has_one_B]]
        return text_starts_B

    def _texts(self, x_TD: Tensor, batch: PackedBatch, text_starts_B: np.ndarray) -> list[Tensor]:
        """Return the vectors (L, D) fp32 of each sequence that stand for its text."""
        texts = []
        end = 0
        for length, text_start in zip(batch.seqlens, text_starts_B.tolist(), strict=True):
            start = end
            end += length
            if not self.config.extract_text_features:
                text_start = start
            x_LD = x_TD[text_start:end].float()
            if self.config.use_lstm:
                x_LD = self.model.lstm(x_LD)
            elif self.config.pooling_strategy != NO_POOLING:
                # gliclass puts zeros in place of the tokens before a text, and pools them, too.
                x_LD = F.pad(x_LD, (0, 0, 0, text_start - start))
            texts.append(x_LD)
        return texts

    def _class_vectors(
        self,
        x_TD: Tensor,
        labels_R: np.ndarray,
        starts_B: np.ndarray,
        text_starts_B: np.ndarray,
    ) -> Tensor:
        """Return the vector of each label, (R, D) fp32."""
        config = self.config
        first_R = labels_R + (0 if config.embed_class_token else 1)
        if config.class_token_pooling == "first":
            return x_TD[torch.from_numpy(first_R).to(x_TD.device)].float()
        # A label ends where the next one begins, the last one where the text does, or else at the
        # end: gliclass then counts all that follows as its tokens.
        sequence_R = np.searchsorted(starts_B, labels_R, side="right") - 1
        stop_R = starts_B[sequence_R + 1].copy()
        if config.extract_text_features:
            stop_R = text_starts_B[sequence_R]
        has_next = np.diff(sequence_R) == 0
        stop_R[:-1][has_next] = labels_R[1:][has_next]
        vectors = []
        for first, stop in zip(first_R.tolist(), stop_R.tolist(), strict=True):
            x_LD = x_TD[first:stop].float()
            vectors.append(x_LD.sum(dim=0) / max(stop - first, 1))
        return torch.stack(vectors)

    def _project(self, projector: nn.Module, x_XD: Tensor) -> Tensor:
        y_XD = in_rows(projector, x_XD)
        if self.config.normalize_features:
            y_XD = y_XD / (y_XD.norm(dim=-1, keepdim=True) + _EPSILON)
        return y_XD

    def _scaled(self, logits_R: Tensor) -> Tensor:
        if self.config.normalize_features:
            return logits_R * self.model.logit_scale
        return logits_R


class _UniEncoder(nn.Module):
    """The encoder and the parts of a GLiClass, under the names of their weights."""

    def __init__(self, config: GLiClassConfig, attention: str):
        super().__init__()
        self.encoder_model = ModernBertModel(config, attention)
        self.text_projector = _Projector(config)
        self.classes_projector = _Projector(config)
        self.scorer: nn.Module = (
            CrossAttentionScorer(config)
            if config.scorer_type == CROSS_ATTENTION
            else ROW_SCORERS[config.scorer_type](config.hidden_size)
        )
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if config.use_lstm:
            self.lstm = _LSTM(config.hidden_size)
        if config.use_segment_embeddings:
            self.segment_embeddings = nn.Embedding.from_pretrained(
                torch.empty(3, config.hidden_size), freeze=False
            )


class _Projector(nn.Module):
    """Two layers with an activation between them, (rows, D) to (rows, D)."""

    def __init__(self, config: GLiClassConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.projection_size)
        self.act = activation_function(config.projector_hidden_act)
        self.linear_2 = nn.Linear(config.projection_size, config.hidden_size)

    def forward(self, x_XD: Tensor) -> Tensor:
        y_XD: Tensor = self.linear_2(self.act(self.linear_1(x_XD)))
        return y_XD


class _LSTM(nn.Module):
    """An LSTM in both directions over the vectors (L, D) of one sequence."""

    def __init__(self, size: int):
        super().__init__()
        self.lstm = nn.LSTM(size, size // 2, bidirectional=True, batch_first=True)

    def forward(self, x_LD: Tensor) -> Tensor:
        y_1LD, _ = self.lstm(x_LD[None])
        y_LD: Tensor = y_1LD[0]
        return y_LD


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "avg": lambda x: x.mean(dim=0),
    "sum": lambda x: x.sum(dim=0),
    "max": lambda x: x.amax(dim=0),
    "rms": lambda x: x.pow(2).mean(dim=0).sqrt(),
    "abs_max": lambda x: x.abs().amax(dim=0),
    "abs_avg": lambda x: x.abs().mean(dim=0),
}
"""Poolings of vectors (L, D): a vector (D,)."""
