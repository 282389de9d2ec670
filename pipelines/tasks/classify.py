"""classify: a label, several labels or a number for each document, from a sequence classifier.

Shapes: W windows, D documents, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from modernbert.encoders.sentence_config import CrossEncoderConfig
from modernbert.stored import Json
from modernbert.text.windows import Windows
from pipelines.checkpoints import Checkpoint
from pipelines.option_types import Function, Merge
from pipelines.options import ClassifyOptions
from pipelines.tasks.base import NOT_IN_FINGERPRINT, GoldTypes, Task, label_maps
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import (
    compare_label,
    compare_labels,
    types_of_labels,
)
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import (
    activation_named,
    doubt_of,
    list_array,
    merged,
    sigmoid,
    softmax,
)
from pipelines.tasks.resolve import check_best_f1, resolve_windowing
from pipelines.thresholds import BEST_F1, thresholds_of

_THRESHOLD = 0.5
_FUNCTION_OF_KIND: dict[str, Function] = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
}


@dataclass(frozen=True, kw_only=True)
class Classify(Task):
    """Labels and scores from the logits of a document's windows."""

    labels: tuple[str, ...]
    kind: str
    """The problem type: single_label_classification, multi_label_classification or regression.

    Outputs keep this name in their fingerprint, so that it stays."""
    top_k: int | None
    """The most labels in the lists `labels` and `scores`; None for no such lists."""
    threshold: float
    """The least score of labels in the lists of a multi-label model, unless `thresholds` is set."""
    thresholds: tuple[float, ...] | None = None
    """The least score of each label, where they differ."""
    finds_thresholds: bool | None = None
    """Whether a job finds them on gold."""
    is_cut: bool = field(default=False, metadata=NOT_IN_FINGERPRINT)
    """Whether results in memory and online leave out what is below a threshold, which was given."""
    merge: Merge
    """How the logits of a document's windows become one row."""
    function: Function
    """What turns logits into scores."""

    options_class = ClassifyOptions
    doubt_columns = ("score",)
    model_class = "modernbert.heads:ModernBertForSequenceClassification"

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: ClassifyOptions) -> Classify:
        config = checkpoint.config
        top_k = options.top_k
        stored = plain_classifier(checkpoint, "classify")
        kind = config.problem_type
        if not kind:
            kind = "regression" if config.num_labels == 1 else "single_label_classification"
        if options.threshold is not None and kind != "multi_label_classification":
            raise ValueError(
                f"threshold is for multi-label models; this one's problem_type is {kind}"
            )
        if top_k is not None and kind == "regression":
            raise ValueError("top_k is for classifiers; this model is a regression")
        if top_k is not None and top_k > config.num_labels:
            raise ValueError(
                f"top_k {top_k} must be from 1 to the model's {config.num_labels} labels"
            )
        check_best_f1(options)
        labels = tuple(config.id2label[i] for i in range(config.num_labels))
        windowing = resolve_windowing(checkpoint, options, stored.max_length)
        configured = _configured_function(stored, config.num_labels, options)
        function = configured or _FUNCTION_OF_KIND.get(kind, "softmax")
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=labels,
            kind=kind,
            top_k=top_k,
            threshold=options.threshold if isinstance(options.threshold, float) else _THRESHOLD,
            thresholds=thresholds_of(options.threshold, labels, _THRESHOLD),
            finds_thresholds=options.threshold == BEST_F1 or None,
            # Raw numbers are asked for as they are: a threshold is one of scores.
            is_cut=options.threshold is not None and function != "none",
            merge=options.merge,
            function=function,
        )

    @classmethod
    def for_pipeline(cls, checkpoint: Checkpoint, options: ClassifyOptions) -> Classify:
        # The pipeline itself cuts to top_k.
        changes: dict[str, object] = {"top_k": None}
        config = checkpoint.config
        if config.num_labels == 1 and config.problem_type is None:
            # A single output without a problem_type is a probability to transformers.
            stored = CrossEncoderConfig.from_folder(checkpoint.folder, checkpoint.raw_config)
            if _configured_function(stored, config.num_labels, options) is None:
                changes["function"] = "sigmoid"
        return cls.from_checkpoint(checkpoint, options.model_copy(update=changes))

    def info(self, checkpoint: Checkpoint) -> Json:
        return {
            "labels": self.labels,
            "problem_type": checkpoint.config.problem_type,
            "model_type": {"classifier": label_maps(self.labels)},
        }

    @property
    def lists(self) -> bool:
        """Whether the output has the lists `labels` and `scores`."""
        if self.kind == "regression":
            return len(self.labels) > 1
        return self.top_k is not None or self.kind == "multi_label_classification"

    @property
    def columns(self) -> pa.Schema:
        fields = [("label", pa.string()), ("score", pa.float32())]
        if self.lists:
            fields += [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
        return pa.schema(fields)

    @property
    def width(self) -> int:
        return len(self.labels)

    def most_results(self, windows: Windows) -> int:
        return len(windows.n_tokens) * (self.top_k or len(self.labels))

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        scores_DC = self._scores(merged(outputs.windows, outputs.values, self.merge))
        order_DC = self._order(scores_DC)
        names = pa.array(self.labels, pa.string())
        best_D = order_DC[:, 0]
        best_scores_D = scores_DC[np.arange(len(scores_DC)), best_D]
        arrays = [names.take(pa.array(best_D)), pa.array(best_scores_D, pa.float32())]
        if self.lists:
            listed_DK = order_DC[:, : self.top_k or len(self.labels)]
            listed_scores_DK = np.take_along_axis(scores_DC, listed_DK, axis=1)
            is_shown_DK = np.ones(listed_DK.shape, dtype=bool)
            if self.kind == "multi_label_classification":
                is_shown_DK = listed_scores_DK >= self._least()[listed_DK]
            counts_D = is_shown_DK.sum(axis=1)
            labels = names.take(pa.array(listed_DK[is_shown_DK]))
            scores = pa.array(listed_scores_DK[is_shown_DK], pa.float32())
            arrays += [list_array(counts_D, labels), list_array(counts_D, scores)]
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[Json]]:
        scores_DC = self._scores(merged(outputs.windows, outputs.values, self.merge))
        order_DC = np.argsort(-scores_DC, axis=1, kind="stable")[:, : self.top_k]
        results = []
        for scores_C, order_C in zip(scores_DC, order_DC, strict=True):
            if self.is_cut:
                order_C = order_C[scores_C[order_C] >= self._least()[order_C]]
            labels = [{"label": self.labels[i], "score": float(scores_C[i])} for i in order_C]
            results.append(labels)
        return results

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        if self.kind == "regression":
            return Counter()
        return Counter(answers.field("label").to_pylist())

    @property
    def says_how_sure(self) -> bool:
        return self.kind != "regression" and self.function != "none"

    @property
    def labels_without_threshold(self) -> Sequence[str]:
        return self.labels if self.finds_thresholds else ()

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        if not self.says_how_sure:
            return super().doubt(answers)
        return doubt_of(answers.field("score"))

    def gold_types(self) -> GoldTypes:
        if self.kind == "regression":
            raise ValueError("gold_column is for labels; this model is a regression")
        return types_of_labels(self.labels, several=self.kind == "multi_label_classification")

    def compare(
        self,
        outputs: ModelOutputs,
        answered: np.ndarray,
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        scores_DC = self._scores(merged(outputs.windows, outputs.values, self.merge))[answered]
        if self.kind == "multi_label_classification":
            return compare_labels(
                gold, answers, scores_DC, self.labels, bool(self.finds_thresholds)
            )
        return compare_label(gold, answers, scores_DC, self.labels)

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.2f}  {answer['label']}"

    def _order(self, scores_DC: np.ndarray) -> np.ndarray:
        """Return the places of labels, best first; the numbers of a regression have no order."""
        if self.kind == "regression":
            return np.broadcast_to(np.arange(len(self.labels)), scores_DC.shape)
        return np.argsort(-scores_DC, axis=1, kind="stable")

    def _least(self) -> np.ndarray:
        """Return the least score of each label, (C,)."""
        return np.array(self.thresholds or [self.threshold] * len(self.labels), dtype=np.float32)

    def _scores(self, logits_DC: np.ndarray) -> np.ndarray:
        if self.function == "sigmoid":
            return sigmoid(logits_DC)
        if self.function == "softmax":
            return softmax(logits_DC)
        return logits_DC


def plain_classifier(checkpoint: Checkpoint, task: str) -> CrossEncoderConfig:
    """Return what is stored beside a classifier that takes texts as they are; else ValueError."""
    stored = CrossEncoderConfig.from_folder(checkpoint.folder, checkpoint.raw_config)
    if stored.lower_case or stored.prompts.get(stored.default_prompt_name or ""):
        raise ValueError(
            f"model {str(checkpoint.folder)!r} changes texts before it reads them "
            f"(default_prompt_name, do_lower_case), which {task} does not; rerank does, for a "
            "model with one output"
        )
    if stored.stack:
        raise ValueError(
            f"model {str(checkpoint.folder)!r} is a cross-encoder of modules, which {task} does "
            "not run; rerank does"
        )
    return stored


def _configured_function(
    stored: CrossEncoderConfig, num_labels: int, options: ClassifyOptions
) -> Function | None:
    """Return the function that the options name, or else the checkpoint's activation_fn; None where
    neither does.

    sentence-transformers stores Identity for every model of several labels for which nobody chose
    one: it says nothing.
    """
    if options.function is not None:
        return options.function
    name = activation_named(stored.activation, ("Sigmoid", "Softmax", "Identity"), "function")
    if name == "Sigmoid":
        return "sigmoid"
    if name == "Softmax":
        return "softmax"
    return "none" if name == "Identity" and num_labels == 1 else None
