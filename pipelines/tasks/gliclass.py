"""zero_shot with a GLiClass, which reads a text and all labels together: one pass in place of one
for each label.

A window is a text with `<<LABEL>>` before each label and `<<SEP>>` behind the last one, in the
order that the model was trained with. Where a text is too long it is cut, and never the labels.

Shapes: W windows, D documents, L labels of a document, R labels of all windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from modernbert.encoders.gliclass_config import EXAMPLE, LABEL, SEP, GLiClassConfig
from modernbert.stored import Json
from modernbert.text.encoder import Side
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import ZeroShotOptions
from pipelines.tasks.base import label_maps
from pipelines.tasks.candidate_labels import (
    CandidateLabels,
    label_thresholds,
    labels_of,
    probabilities,
    text_of,
)
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import keep_windows, per_document
from pipelines.tasks.resolve import resolve_windowing
from pipelines.thresholds import BEST_F1

if TYPE_CHECKING:
    from torch import Tensor

    from modernbert.encoders.gliclass import GLiClassModel
    from modernbert.packing import PackedBatch

_MARKERS = f"{LABEL}, {SEP} or {EXAMPLE}"
_EXAMPLES = ("a", " a", "a ", "A b", "-")
"""Texts that tokenizers of all kinds read otherwise where something stands beside them, if any."""


@dataclass(frozen=True, kw_only=True)
class GLiClass(CandidateLabels):
    """Labels and scores from the logit of each label beside a document."""

    prompt_first: bool
    """Whether the labels stand before the text."""
    class_token: int
    """The id of the token before each label."""
    text_token: int
    """The id of the token behind the last label."""
    example_token: int | None
    """The id of the token before examples, where the model reads all else otherwise beside it."""

    model_class = "modernbert.encoders.gliclass:GLiClassModel"
    width = 1

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        super().check(checkpoint)
        config = _config_of(checkpoint)
        tokenizer = checkpoint.tokenizer
        for token, configured, name in (
            (LABEL, config.class_token_index, "class_token_index"),
            (SEP, config.text_token_index, "text_token_index"),
        ):
            if tokenizer.token_id(token) != configured or configured >= config.vocab_size:
                raise ValueError(
                    f"model {str(checkpoint.folder)!r} has {name} {configured}, the id of {token}, "
                    f"which in its tokenizer is {tokenizer.token_id(token)}; the model has "
                    f"embeddings for {config.vocab_size} ids"
                )
        _check_pieces(checkpoint, config)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: ZeroShotOptions) -> GLiClass:
        config = _config_of(checkpoint)
        default = ZeroShotOptions.model_fields["hypothesis_template"].default
        if options.hypothesis_template != default:
            raise ValueError(
                "hypothesis_template is for models of entailment; a GLiClass reads labels as they "
                "are: leave it out, or write its words into the labels"
            )
        windowing = resolve_windowing(checkpoint, options)
        task = cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=labels_of(options),
            multi_label=options.multi_label,
            top_k=options.top_k,
            threshold=options.threshold if isinstance(options.threshold, float) else 0.0,
            thresholds=label_thresholds(options),
            finds_thresholds=options.threshold == BEST_F1 or None,
            merge=options.merge,
            prompt_first=config.prompt_first,
            class_token=config.class_token_index,
            text_token=config.text_token_index,
            example_token=config.example_token_index if config.use_segment_embeddings else None,
        )
        if task.labels is not None:
            task._check_labels(checkpoint.tokenizer, task.labels)
        return task

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        labels = self.labels or ()
        return {"labels": labels, "model_type": {"zero_shot": label_maps(labels)}}

    def _check_labels(self, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        """Raise ValueError for labels of all documents that hold a marker or leave no room."""
        windows = tokenizer.encode([_prompt(labels)])
        if self._has_other_markers(windows, np.array([len(labels)])).any():
            raise ValueError(f"labels hold {_MARKERS}, which are for the model alone")
        tokens = len(windows.input_ids)
        if tokens >= self.max_length:
            raise ValueError(
                f"labels have {tokens} tokens with those around them, and leave none of the "
                f"{self.max_length} of a window to a text: give fewer or shorter ones at a time"
            )

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        texts: list[str] = []
        prompts: list[list[str]] = []
        mistakes: dict[int, str] = {}
        counts: list[int] = []
        for i, document in enumerate(documents):
            labels, mistake = self.checked_candidates(document)
            if mistake:
                mistakes[i] = mistake
            texts.append(text_of(document))
            prompts.append([_prompt(labels)] if labels else [])
            counts.append(len(labels))
        windows = tokenizer.encode_crossed(
            texts,
            prompts,
            self.max_length,
            stride=self.stride,
            joined=_side(self.prompt_first),
        )
        windows = replace(windows, rejected=windows.rejected | mistakes)
        return self._without_markers(windows, np.array(counts, dtype=np.int64))

    def _without_markers(self, windows: Windows, counts_D: np.ndarray) -> Windows:
        """Reject documents whose text or labels hold a marker, which the model would take for the
        start of a label or of the text.
        """
        has_others_W = self._has_other_markers(windows, counts_D)
        if not has_others_W.any():
            return windows
        documents = np.unique(windows.document[has_others_W])
        reason = f"its text or its labels hold {_MARKERS}, which are for the model alone"
        rejected = windows.rejected | dict.fromkeys(documents.tolist(), reason)
        keep_W = ~np.isin(windows.document, documents)
        return keep_windows(replace(windows, rejected=rejected), keep_W)

    def _has_other_markers(self, windows: Windows, counts_D: np.ndarray) -> np.ndarray:
        """Return which windows, (W,), have other markers than one for each of their document's
        labels, of which there are `counts_D`, and one behind these.
        """
        labels_W = self.rows(windows.input_ids, windows.cu_seqlens)
        ends_W = _count(windows.input_ids == self.text_token, windows.cu_seqlens)
        has_others_W: np.ndarray = (labels_W != counts_D[windows.document]) | (ends_W != 1)
        if self.example_token is not None:
            examples_W = _count(windows.input_ids == self.example_token, windows.cu_seqlens)
            has_others_W |= examples_W > 0
        return has_others_W

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        return _count(input_ids == self.class_token, cu_seqlens)

    def most_results(self, windows: Windows) -> int:
        return int(np.count_nonzero(windows.input_ids == self.class_token))

    def forward(self, model: GLiClassModel, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        return model.forward_packed(batch, ids)[:, None]

    def scores_of_labels(self, outputs: ModelOutputs) -> Iterator[tuple[Sequence[str], np.ndarray]]:
        first_D, counts_D = per_document(outputs.windows)
        for document, first, count in zip(
            outputs.documents, first_D.tolist(), counts_D.tolist(), strict=True
        ):
            if not count:
                yield (), np.empty(0, np.float32)
                continue
            rows = slice(outputs.splits[first], outputs.splits[first + count])
            logits_WL = outputs.values[rows, 0].reshape(count, -1)
            merge = np.max if self.merge == "max" else np.mean
            logits_L = logits_WL[0] if count == 1 else merge(logits_WL, axis=0)
            scores_L = probabilities(logits_L, logits_L, multi_label=self.multi_label)
            yield self.candidates(document), scores_L


def is_gliclass(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is a GLiClass."""
    return isinstance(checkpoint.config, GLiClassConfig)


def _config_of(checkpoint: Checkpoint) -> GLiClassConfig:
    config = checkpoint.config
    assert isinstance(config, GLiClassConfig)
    return config


def _prompt(labels: Sequence[str]) -> str:
    """Return labels as a GLiClass reads them beside a text."""
    return "".join(LABEL + label for label in labels) + SEP


def _side(prompt_first: bool) -> Side:
    """Return where labels stand beside the text."""
    return "before" if prompt_first else "behind"


def _count(is_one_T: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """Return how many tokens of each window are one."""
    before = np.concatenate(([0], np.cumsum(is_one_T)))
    counts: np.ndarray = np.diff(before[cu_seqlens])
    return counts


def _check_pieces(checkpoint: Checkpoint, config: GLiClassConfig) -> None:
    """Raise ValueError for a tokenizer that reads a text beside labels otherwise than alone."""
    tokenizer = checkpoint.tokenizer
    longest = config.max_position_embeddings
    for text in _EXAMPLES:
        prompt = _prompt([text])
        whole = prompt + text if config.prompt_first else text + prompt
        pieces = tokenizer.encode_crossed(
            [text], [[prompt]], longest, joined=_side(config.prompt_first)
        )
        if tokenizer.encode([whole]).input_ids.tolist() != pieces.input_ids.tolist():
            raise ValueError(
                f"model {str(checkpoint.folder)!r}: its tokenizer reads {text!r} otherwise beside "
                f"{LABEL} and {SEP} than alone, which no task here does"
            )
