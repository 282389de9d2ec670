"""classify: a label, several labels or a number for each document, from a sequence classifier.

Shapes: W windows, D documents, C labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from modernbert.heads import ModernBertForSequenceClassification
from pipelines.checkpoints import Checkpoint
from pipelines.tasks.base import LongDocuments, ModelOutputs, Task, resolve_windowing
from pipelines.tasks.postprocess import Merge, list_array, merged, sigmoid, softmax

Function = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, kw_only=True)
class Classify(Task):
    """How logits become labels and scores."""

    labels: tuple[str, ...]
    kind: str
    """single_label_classification, multi_label_classification or regression."""
    top_k: int | None
    """How many labels the lists `labels` and `scores` hold; None for no such lists."""
    threshold: float
    """The least score of a label that a multi-label model's lists hold."""
    merge: Merge
    """How the logits of a long document's windows become one."""
    function: Function
    """From logits to scores."""

    name = "classify"
    model_class = ModernBertForSequenceClassification

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        max_length: int | None = None,
        long_documents: LongDocuments | None = None,
        stride: int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        merge: Merge = "mean",
        function: Function | None = None,
    ) -> Classify:
        """The task that a checkpoint's problem_type and number of labels describe."""
        config = checkpoint.config
        kind = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
        if threshold is not None and kind != "multi_label_classification":
            raise ValueError(f"threshold is for multi-label models; this one's problem_type is {kind}")
        if top_k is not None and kind == "regression":
            raise ValueError("top_k is for classifiers; this model is a regression")
        if top_k is not None and not 1 <= top_k <= config.num_labels:
            raise ValueError(f"top_k {top_k} must be from 1 to the model's {config.num_labels} labels")
        default: dict[str, Function] = {"regression": "none", "multi_label_classification": "sigmoid"}
        return cls(
            **resolve_windowing(checkpoint, max_length, long_documents, stride, "truncate"),  # type: ignore[arg-type]
            labels=tuple(config.id2label[i] for i in range(config.num_labels)),
            kind=kind,
            top_k=top_k,
            threshold=0.5 if threshold is None else threshold,
            merge=merge,
            function=function or default.get(kind, "softmax"),
        )

    @property
    def lists(self) -> bool:
        """Whether the output has the lists `labels` and `scores`."""
        multiple_numbers = self.kind == "regression" and len(self.labels) > 1
        return self.top_k is not None or self.kind == "multi_label_classification" or multiple_numbers

    @property
    def columns(self) -> pa.Schema:
        """`label` and `score`, and where `lists` says so `labels` and `scores`."""
        fields = [("label", pa.string()), ("score", pa.float32())]
        if self.lists:
            fields += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
        return pa.schema(fields)

    @property
    def width(self) -> int:
        """A logit a label."""
        return len(self.labels)

    def decode(self, made: ModelOutputs) -> pa.StructArray:
        """The best label and its score, lists from best to worst.

        A regression's score is the logit itself; several of them are listed in the labels' order.
        """
        scores_DC = self._scores(merged(made.windows, made.values, self.merge))
        order_DC = self._order(scores_DC)
        rows = np.arange(len(scores_DC))
        names = pa.array(self.labels, pa.string())
        best_D = order_DC[:, 0]
        arrays = [names.take(pa.array(best_D)), pa.array(scores_DC[rows, best_D], pa.float32())]
        if self.lists:
            kept_DK = order_DC[:, : self.top_k or len(self.labels)]
            kept_scores_DK = np.take_along_axis(scores_DC, kept_DK, axis=1)
            shown_DK = np.ones(kept_DK.shape, dtype=bool)
            if self.kind == "multi_label_classification":
                shown_DK = kept_scores_DK >= self.threshold
            counts = shown_DK.sum(axis=1)
            arrays.append(list_array(counts, names.take(pa.array(kept_DK[shown_DK]))))
            arrays.append(list_array(counts, pa.array(kept_scores_DK[shown_DK], pa.float32())))
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def results(self, made: ModelOutputs) -> list[list[dict[str, Any]]]:
        """[{label, score}] from best to worst, at most `top_k`."""
        scores_DC = self._scores(merged(made.windows, made.values, self.merge))
        order_DC = np.argsort(-scores_DC, axis=1, kind="stable")[:, : self.top_k]
        return [
            [{"label": self.labels[i], "score": float(scores_C[i])} for i in order_C]
            for scores_C, order_C in zip(scores_DC, order_DC, strict=True)
        ]

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        """Documents by their best label; of a regression nothing."""
        return Counter() if self.kind == "regression" else Counter(answers.field("label").to_pylist())

    def preview(self, answer: dict[str, Any]) -> str:
        """The score and the label."""
        return f"{answer['score']:.2f}  {answer['label']}"

    def _order(self, scores_DC: np.ndarray) -> np.ndarray:
        if self.kind == "regression":
            return np.broadcast_to(np.arange(len(self.labels)), scores_DC.shape)
        return np.argsort(-scores_DC, axis=1, kind="stable")

    def _scores(self, logits_DC: np.ndarray) -> np.ndarray:
        if self.function == "none":
            return logits_DC
        return {"sigmoid": sigmoid, "softmax": softmax}[self.function](logits_DC)
