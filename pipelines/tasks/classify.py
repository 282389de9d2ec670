"""classify: a label, several labels or a number for each document, from a sequence classifier.

Shapes: B documents, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from modernbert.config import ModernBertConfig
from modernbert.heads import ModernBertForSequenceClassification


@dataclass(frozen=True)
class Classify:
    """How logits become columns."""

    labels: tuple[str, ...]
    kind: str
    """single_label_classification, multi_label_classification or regression."""
    top_k: int | None
    threshold: float

    name = "classify"
    model_class = ModernBertForSequenceClassification

    @classmethod
    def from_config(
        cls, config: ModernBertConfig, top_k: int | None = None, threshold: float | None = None
    ) -> Classify:
        """The task that a checkpoint's problem_type and number of labels describe.

        Raises ValueError for options that mean nothing for it.
        """
        kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
        if threshold is not None and kind != "multi_label_classification":
            raise ValueError(f"--threshold is for multi-label models; this one's problem_type is {kind}")
        if top_k is not None and kind == "regression":
            raise ValueError("--top-k is for classifiers; this model is a regression")
        if top_k is not None and top_k > config.num_labels:
            raise ValueError(f"--top-k {top_k} is above the model's {config.num_labels} labels")
        labels = tuple(config.id2label[i] for i in range(config.num_labels))
        return cls(labels, kind, top_k, 0.5 if threshold is None else threshold)

    @property
    def lists(self) -> bool:
        """Whether the output has the lists `labels` and `scores`."""
        multiple_numbers = self.kind == "regression" and len(self.labels) > 1
        return self.top_k is not None or self.kind == "multi_label_classification" or multiple_numbers

    @property
    def columns(self) -> pa.Schema:
        """What the task adds to a document."""
        fields = [("label", pa.string()), ("score", pa.float32())]
        if self.lists:
            fields += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
        return pa.schema(fields)

    def decode(self, logits_BC: np.ndarray) -> pa.StructArray:
        """Logits to one struct of `columns` a document: the best label and its score, lists from best to worst.

        A regression's score is the logit itself; several of them are listed in the labels' order.
        """
        scores_BC = self._scores(logits_BC.astype(np.float32))
        count = len(self.labels)
        if self.kind == "regression":
            order_BC = np.broadcast_to(np.arange(count), scores_BC.shape)
        else:
            order_BC = np.argsort(-scores_BC, axis=1, kind="stable")
        rows = np.arange(len(scores_BC))
        names = pa.array(self.labels, pa.string())
        best_B = order_BC[:, 0]
        arrays = [names.take(pa.array(best_B)), pa.array(scores_BC[rows, best_B], pa.float32())]
        if self.lists:
            kept_BK = order_BC[:, : self.top_k or count]
            kept_scores_BK = np.take_along_axis(scores_BC, kept_BK, axis=1)
            shown_BK = np.ones(kept_BK.shape, dtype=bool)
            if self.kind == "multi_label_classification":
                shown_BK = kept_scores_BK >= self.threshold
            offsets = pa.array(np.cumsum([0, *shown_BK.sum(axis=1)]), pa.int32())
            for values in (names.take(pa.array(kept_BK[shown_BK])), pa.array(kept_scores_BK[shown_BK], pa.float32())):
                arrays.append(pa.ListArray.from_arrays(offsets, values))
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def _scores(self, logits_BC: np.ndarray) -> np.ndarray:
        if self.kind == "regression":
            return logits_BC
        if self.kind == "multi_label_classification":
            return np.exp(-np.logaddexp(np.float32(0), -logits_BC))
        shifted = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
