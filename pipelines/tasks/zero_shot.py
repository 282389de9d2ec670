"""zero_shot: which of some labels fit each document, from a model of entailment (NLI).

A document is read with a hypothesis for each label: how much it entails "This example is LABEL." is
the label's score.

Shapes: W windows, H pairs of a document and a hypothesis, D documents, L labels of a document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.labels import label_mistake, split_labels
from pipelines.option_types import Merge
from pipelines.options import ZeroShotOptions
from pipelines.tasks.base import Options, Task, label_maps
from pipelines.tasks.classify import plain_classifier
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, sigmoid, softmax
from pipelines.tasks.resolve import resolve_windowing


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Task):
    """Labels and scores from the logits of a document with each hypothesis."""

    labels: tuple[str, ...] | None
    """The labels to choose from; None: each document is a pair of a text and its own labels."""
    hypothesis_template: str
    multi_label: bool
    """Whether each label has its own probability, against contradiction, and not its share among
    the labels.
    """
    top_k: int | None
    threshold: float
    merge: Merge
    num_labels: int
    """The labels of the model itself."""
    entailment: int
    """The id of entailment among them."""

    options_class = ZeroShotOptions
    model_class = "modernbert.heads:ModernBertForSequenceClassification"
    columns = pa.schema(
        [
            ("label", pa.string()),
            ("score", pa.float32()),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
        ]
    )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: ZeroShotOptions) -> ZeroShot:
        config = checkpoint.config
        stored = plain_classifier(checkpoint, "zero_shot")
        entailment = _entailment_id(checkpoint)
        windowing = resolve_windowing(checkpoint, options, stored.max_length)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=_labels_of(options),
            hypothesis_template=options.hypothesis_template,
            multi_label=options.multi_label,
            top_k=options.top_k,
            threshold=options.threshold or 0.0,
            merge=options.merge,
            num_labels=config.num_labels,
            entailment=entailment,
        )

    @classmethod
    def read_files(cls, options: Options) -> Options:
        assert isinstance(options, ZeroShotOptions)
        return options.model_copy(update={"labels": _labels_of(options), "labels_file": None})

    def info(self, checkpoint: Checkpoint) -> Json:
        names = [checkpoint.config.id2label[i] for i in range(self.num_labels)]
        return {"labels": self.labels or (), "model_type": {"zero_shot": label_maps(names)}}

    @property
    def needs_documents(self) -> bool:
        return self.labels is None

    @property
    def probe(self) -> Text:
        return ("a", "a") if self.labels is None else "a"

    @property
    def width(self) -> int:
        return self.num_labels

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        texts: list[str] = []
        hypotheses: list[list[str]] = []
        mistakes: dict[int, str] = {}
        for i, document in enumerate(documents):
            labels = self._candidates(document)
            mistake = label_mistake(labels)
            if mistake:
                mistakes[i] = (
                    f"its labels {mistake}" if labels else "it has no labels to choose from"
                )
                labels = ()
            texts.append(_text_of(document))
            hypotheses.append([self.hypothesis_template.replace("{}", label) for label in labels])
        windows = tokenizer.encode_crossed(texts, hypotheses, self.max_length, stride=self.stride)
        return replace(windows, rejected=windows.rejected | mistakes)

    def most_results(self, windows: Windows) -> int:
        return len(windows.document)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        best_labels: list[str | None] = []
        best_scores: list[float] = []
        counts: list[int] = []
        labels: list[str] = []
        scores = [np.empty(0, np.float32)]
        for labels_L, scores_L in self._answers(outputs):
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
        answers = self._answers(outputs)
        for document, (labels, scores) in zip(outputs.documents, answers, strict=True):
            kept = self._kept(scores)
            results.append(
                {
                    "sequence": _text_of(document),
                    "labels": [labels[i] for i in kept],
                    "scores": scores[kept].tolist(),
                }
            )
        return results

    def response(self, outputs: ModelOutputs) -> list[list[Json]]:
        response = []
        for labels, scores in self._answers(outputs):
            kept = self._kept(scores)
            response.append([{"label": labels[i], "score": float(scores[i])} for i in kept])
        return response

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        return Counter(answers.field("label").drop_null().to_pylist())

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.2f}  {answer['label']}"

    def _candidates(self, document: Text) -> Sequence[str]:
        return split_labels(document[1]) if isinstance(document, tuple) else self.labels or ()

    def _kept(self, scores_L: np.ndarray) -> np.ndarray:
        """Return the places of the labels that are kept, from the best to the worst."""
        order = np.argsort(-scores_L, kind="stable")[: self.top_k]
        return order[scores_L[order] >= self.threshold]

    def _answers(self, outputs: ModelOutputs) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        """Yield the labels of each document and their scores, (L,) float32; both empty where it has
        no windows.
        """
        windows = outputs.windows
        # An answer is against contradiction, which is the model's last label, or its first.
        contradiction = -1 if self.entailment == 0 else 0
        entailment_W = outputs.values[:, self.entailment]
        margin_W = entailment_W - outputs.values[:, contradiction]
        starts_H = self._hypothesis_starts(windows)
        entailment_H = self._merged(entailment_W, starts_H)
        margin_H = self._merged(margin_W, starts_H)
        counts_D = np.bincount(windows.document[starts_H], minlength=len(windows.n_tokens))
        ends_D = np.cumsum(counts_D)
        starts_D = ends_D - counts_D
        for document, start, end in zip(outputs.documents, starts_D, ends_D, strict=True):
            if start == end:
                yield (), np.empty(0, np.float32)
                continue
            labels = self._candidates(document)
            # A single label has no others to share a probability with.
            if self.multi_label or len(labels) == 1:
                yield labels, sigmoid(margin_H[start:end])
            else:
                yield labels, softmax(entailment_H[start:end])

    def _hypothesis_starts(self, windows: Windows) -> np.ndarray:
        """Return the first window of each hypothesis: a text is read from its start to its end with
        each.
        """
        begins = np.ones(len(windows.document), dtype=bool)
        if self.stride is not None:
            begins_document = np.diff(windows.document) > 0
            begins_anew = np.diff(windows.start) <= 0
            begins[1:] = begins_document | begins_anew
        return np.flatnonzero(begins)

    def _merged(self, values_W: np.ndarray, starts_H: np.ndarray) -> np.ndarray:
        if len(starts_H) == len(values_W):
            return values_W
        if self.merge == "max":
            return np.maximum.reduceat(values_W, starts_H)
        counts_H = np.diff(np.append(starts_H, len(values_W)))
        means_H = np.add.reduceat(values_W, starts_H) / counts_H
        return means_H.astype(np.float32)


def _text_of(document: Text) -> str:
    """Return a document without labels of its own."""
    return document[0] if isinstance(document, tuple) else document


def _entailment_id(checkpoint: Checkpoint) -> int:
    """Return the id of the label that stands for entailment; ValueError where there is none."""
    config = checkpoint.config
    names = [config.id2label[i] for i in range(config.num_labels)]
    label2id = checkpoint.raw_config.get("label2id")
    if not label2id:
        label2id = {name: i for i, name in enumerate(names)}
    entailing = [int(i) for name, i in label2id.items() if name.lower().startswith("entail")]
    if not entailing or config.num_labels < 2 or not 0 <= entailing[0] < config.num_labels:
        raise ValueError(
            f"model {str(checkpoint.folder)!r} has the labels {', '.join(names)}: none is "
            "entailment; zero_shot needs a model of natural language inference whose label2id "
            "names it; other labels are for classify"
        )
    return entailing[0]


def _labels_of(options: ZeroShotOptions) -> tuple[str, ...] | None:
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
