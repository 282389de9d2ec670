"""zero_shot: which of some labels fit each document, from a model of entailment (NLI), or from a
GLiClass (gliclass.py).

With a model of entailment, a document is read with a hypothesis for each label: how much it entails
"This example is LABEL." is the label's score.

Shapes: W windows, H pairs of a document and a hypothesis, D documents, L labels of a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import ZeroShotOptions
from pipelines.tasks.base import Task, label_maps
from pipelines.tasks.candidate_labels import (
    CandidateLabels,
    label_thresholds,
    labels_of,
    probabilities,
    text_of,
)
from pipelines.tasks.classify import plain_classifier
from pipelines.tasks.gliclass import GLiClass, is_gliclass
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.resolve import resolve_windowing
from pipelines.thresholds import BEST_F1


@dataclass(frozen=True, kw_only=True)
class ZeroShot(CandidateLabels):
    """Labels and scores from the logits of a document with each hypothesis.

    With `multi_label`, a label's probability is that of its entailment against contradiction.
    """

    hypothesis_template: str
    num_labels: int
    """The labels of the model itself."""
    entailment: int
    """The id of entailment among them."""

    model_class = "modernbert.heads:ModernBertForSequenceClassification"

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        if is_gliclass(checkpoint):
            GLiClass.check(checkpoint)
            return
        super().check(checkpoint)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: ZeroShotOptions) -> Task:
        if is_gliclass(checkpoint):
            return GLiClass.from_checkpoint(checkpoint, options)
        config = checkpoint.config
        stored = plain_classifier(checkpoint, "zero_shot")
        entailment = _entailment_id(checkpoint)
        windowing = resolve_windowing(checkpoint, options, stored.max_length)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=labels_of(options),
            hypothesis_template=options.hypothesis_template,
            multi_label=options.multi_label,
            top_k=options.top_k,
            threshold=options.threshold if isinstance(options.threshold, float) else 0.0,
            thresholds=label_thresholds(options),
            finds_thresholds=options.threshold == BEST_F1 or None,
            merge=options.merge,
            num_labels=config.num_labels,
            entailment=entailment,
        )

    def info(self, checkpoint: Checkpoint) -> Json:
        names = [checkpoint.config.id2label[i] for i in range(self.num_labels)]
        return {"labels": self.labels or (), "model_type": {"zero_shot": label_maps(names)}}

    @property
    def width(self) -> int:
        return self.num_labels

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        texts: list[str] = []
        hypotheses: list[list[str]] = []
        mistakes: dict[int, str] = {}
        for i, document in enumerate(documents):
            labels, mistake = self.checked_candidates(document)
            if mistake:
                mistakes[i] = mistake
            texts.append(text_of(document))
            hypotheses.append([self.hypothesis_template.replace("{}", label) for label in labels])
        windows = tokenizer.encode_crossed(texts, hypotheses, self.max_length, stride=self.stride)
        return replace(windows, rejected=windows.rejected | mistakes)

    def most_results(self, windows: Windows) -> int:
        return len(windows.document)

    def scores_of_labels(self, outputs: ModelOutputs) -> Iterator[tuple[Sequence[str], np.ndarray]]:
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
            yield (
                self.candidates(document),
                probabilities(
                    entailment_H[start:end], margin_H[start:end], multi_label=self.multi_label
                ),
            )

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
