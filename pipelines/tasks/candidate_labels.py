"""What the two forms of zero_shot share: labels to choose from, and the columns of their answers.

Shapes: D documents, L labels of a document.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.windows import Text
from pipelines.labels import label_mistake, split_labels
from pipelines.option_types import Merge
from pipelines.options import ZeroShotOptions
from pipelines.tasks.base import GoldTypes, Options, Task
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import (
    compare_label,
    compare_labels,
    types_of_labels,
)
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import doubt_of, list_array, sigmoid, softmax
from pipelines.tasks.resolve import check_best_f1
from pipelines.thresholds import BEST_F1, thresholds_of


@dataclass(frozen=True, kw_only=True)
class CandidateLabels(Task):
    """The labels of documents, from a score of each label that it may have."""

    labels: tuple[str, ...] | None
    """The labels to choose from; None: each document is a pair of a text and its own labels."""
    multi_label: bool
    """Whether each label has its own probability, and not its share among the labels."""
    top_k: int | None
    threshold: float
    merge: Merge
    thresholds: tuple[float, ...] | None = None
    """The least score of each of the labels, where they differ."""
    finds_thresholds: bool | None = None
    """Whether a job finds them on gold."""
    doubt_columns = ("score",)

    options_class = ZeroShotOptions
    columns = pa.schema(
        [
            ("label", pa.string()),
            ("score", pa.float32()),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
        ]
    )

    @classmethod
    def read_files(cls, options: Options) -> Options:
        assert isinstance(options, ZeroShotOptions)
        return options.model_copy(update={"labels": labels_of(options), "labels_file": None})

    @property
    def needs_documents(self) -> bool:
        return self.labels is None

    @property
    def probe(self) -> Text:
        return ("a", "a") if self.labels is None else "a"

    @abstractmethod
    def scores_of_labels(self, outputs: ModelOutputs) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        """Yield the labels of each document and their scores, (L,) float32; both empty where it has
        no windows.
        """

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        best_labels: list[str | None] = []
        best_scores: list[float] = []
        counts: list[int] = []
        labels: list[str] = []
        scores = [np.empty(0, np.float32)]
        for labels_L, scores_L in self.scores_of_labels(outputs):
            order_L = np.argsort(-scores_L, kind="stable")
            best_labels.append(labels_L[order_L[0]] if len(order_L) else None)
            best_scores.append(float(scores_L[order_L[0]]) if len(order_L) else 0.0)
            kept = self._kept(scores_L)
            counts.append(len(kept))
            labels += [labels_L[i] for i in kept]
            scores.append(scores_L[kept])
        counts_D = np.array(counts, dtype=np.int64)
        arrays = [
            pa.array(best_labels, pa.string()),
            pa.array(best_scores, pa.float32()),
            list_array(counts_D, pa.array(labels, pa.string())),
            list_array(counts_D, pa.array(np.concatenate(scores), pa.float32())),
        ]
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[Json]:
        results: list[Json] = []
        answers = self.scores_of_labels(outputs)
        for document, (labels, scores) in zip(outputs.documents, answers, strict=True):
            kept = self._kept(scores)
            results.append(
                {
                    "sequence": text_of(document),
                    "labels": [labels[i] for i in kept],
                    "scores": scores[kept].tolist(),
                }
            )
        return results

    def response(self, outputs: ModelOutputs) -> list[list[Json]]:
        response = []
        for labels, scores in self.scores_of_labels(outputs):
            kept = self._kept(scores)
            response.append([{"label": labels[i], "score": float(scores[i])} for i in kept])
        return response

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        return Counter(answers.field("label").drop_null().to_pylist())

    @property
    def labels_without_threshold(self) -> Sequence[str]:
        return (self.labels or ()) if self.finds_thresholds else ()

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        return doubt_of(answers.field("score"))

    def gold_types(self) -> GoldTypes:
        if self.labels is None:
            raise ValueError(
                "gold_column is for labels that all rows share: give labels or labels_file, not "
                "labels_column"
            )
        return types_of_labels(self.labels, several=self.multi_label)

    def compare(
        self,
        outputs: ModelOutputs,
        answered: np.ndarray,
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        assert self.labels is not None
        scores_DL = np.zeros((len(outputs.documents), len(self.labels)), dtype=np.float32)
        for document, (labels, scores_L) in enumerate(self.scores_of_labels(outputs)):
            if labels:  # else it has no windows, and no answer
                scores_DL[document] = scores_L
        scores_DL = scores_DL[answered]
        if self.multi_label:
            with_grid = bool(self.finds_thresholds)
            return compare_labels(gold, answers, scores_DL, self.labels, with_grid)
        return compare_label(gold, answers, scores_DL, self.labels)

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.2f}  {answer['label']}"

    def candidates(self, document: Text) -> Sequence[str]:
        """Return the labels that a document may have."""
        return split_labels(document[1]) if isinstance(document, tuple) else self.labels or ()

    def checked_candidates(self, document: Text) -> tuple[Sequence[str], str | None]:
        """Return the labels that a document may have, none where there is a mistake in them, and
        the reason.
        """
        labels = self.candidates(document)
        mistake = label_mistake(labels)
        if mistake is None:
            return labels, None
        return (), f"its labels {mistake}" if labels else "it has no labels to choose from"

    def _kept(self, scores_L: np.ndarray) -> np.ndarray:
        """Return the places of the labels that are kept, from the best to the worst."""
        order = np.argsort(-scores_L, kind="stable")[: self.top_k]
        if self.thresholds is None:
            return order[scores_L[order] >= self.threshold]
        least_L = np.array(self.thresholds, dtype=np.float32)
        return order[scores_L[order] >= least_L[order]]


def probabilities(shared: np.ndarray, alone: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Return the scores of a document's labels, (L,).

    `shared`: logits among which labels share a probability; `alone`: logits of each label by
    itself, which count with `multi_label`, and for a single label, which has no others.
    """
    if multi_label or len(alone) == 1:
        return sigmoid(alone)
    return softmax(shared)


def label_thresholds(options: ZeroShotOptions) -> tuple[float, ...] | None:
    """Return the threshold of each label where they differ; ValueError where they cannot."""
    check_best_f1(options)
    if options.threshold == BEST_F1 and not options.multi_label:
        raise ValueError("threshold best-f1 is for labels scored each by itself: add multi_label")
    return thresholds_of(options.threshold, labels_of(options), 0.0)


def text_of(document: Text) -> str:
    """Return a document without labels of its own."""
    return document[0] if isinstance(document, tuple) else document


def labels_of(options: ZeroShotOptions) -> tuple[str, ...] | None:
    """Return the labels of the options, or else of the file that they name; None without either."""
    if options.labels is not None:
        return tuple(options.labels)
    if options.labels_file is None:
        return None
    try:
        text = Path(options.labels_file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"labels_file {options.labels_file!r} cannot be read: {error}") from error
    # With the end of a line, a single label is not split at its commas.
    labels = tuple(split_labels(text + "\n"))
    if not labels:
        raise ValueError(
            f"labels_file {options.labels_file!r} holds no label; it must have one a line"
        )
    mistake = label_mistake(labels)
    if mistake:
        raise ValueError(f"labels_file {options.labels_file!r} {mistake}")
    return labels
