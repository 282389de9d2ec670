"""answer: the span of a context that answers a question, from an extractive question answering
model.

Spans are found and scored as in transformers' question-answering pipeline (4.x; version 5.3 removed
it).

Shapes: T tokens, L context tokens of a window, A answer length in tokens, W windows, D pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import AnswerOptions
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, per_document, softmax
from pipelines.tasks.resolve import resolve_windowing

SPAN = pa.struct(
    [("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
)
OUTSIDE, CLS, CONTEXT = 0, 1, 2
"""Values of `Windows.token_tags`: not in the softmax; in the softmax but never in an answer; in
both.
"""
DEFAULT_LENGTH = (
    384  # of transformers' pipeline, and of the windows that such models are trained on
)
_MOST_SPANS = 1 << 21  # compared in a window: each takes some 30 bytes


@dataclass(frozen=True)
class Span:
    """A candidate answer."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Answer(Task):
    """Spans of the context by the product of their start and end probabilities.

    `token_tags` of its windows are OUTSIDE, CLS or CONTEXT; with `align_to_words`, `offsets` are
    those of whole words.
    """

    top_k: int | None
    """The most spans in the list `answers`; None for no such list."""
    max_answer_length: int
    """The most tokens in an answer."""
    no_answer: bool
    """Whether the empty answer competes with the spans."""
    align_to_words: bool
    """Whether answers begin and end at word boundaries."""

    options_class = AnswerOptions
    model_class = "modernbert.heads:ModernBertForQuestionAnswering"
    per_token = True
    needs_details = True
    width = 2  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: AnswerOptions) -> Answer:
        windowing = resolve_windowing(checkpoint, options, DEFAULT_LENGTH)
        length = windowing.max_length
        if (spans := length * min(options.max_answer_length, length)) > _MOST_SPANS:
            raise ValueError(
                f"max_answer_length {options.max_answer_length} makes {spans:,} spans of a window "
                f"of {length} tokens; "
                f"at most {_MOST_SPANS // length} tokens of answer are compared there"
            )
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            top_k=options.top_k,
            max_answer_length=options.max_answer_length,
            no_answer=options.no_answer,
            align_to_words=options.align_to_words,
        )

    @classmethod
    def refusal(cls, document: Text, *, of_corpus: bool) -> str | None:
        question, context = document[0], document[1]
        if not question:
            return "question is empty"
        if not context:
            return "context is empty"
        # In a corpus, most likely the two columns are swapped.
        if of_corpus and len(context) < len(question):
            return "context is shorter than the question"
        return None

    def info(self, checkpoint: Checkpoint) -> dict[str, Any]:  # noqa: ARG002
        return {"model_type": {"question_answering": {}}}

    @property
    def columns(self) -> pa.Schema:
        fields = [*SPAN, pa.field("no_answer_score", pa.float32())]
        return pa.schema([*fields, *([pa.field("answers", pa.list_(SPAN))] if self.top_k else [])])

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        windows = super().encode(tokenizer, documents)
        spans = windows.offsets
        if self.align_to_words and len(spans):
            changes = (np.diff(windows.word_ids) != 0) | (np.diff(windows.sequence_ids) != 0)
            first = np.flatnonzero(np.append(True, changes))
            last = np.append(first[1:], len(spans)) - 1
            of_word = np.repeat(np.arange(len(first)), last - first + 1)
            spans = np.stack((spans[first, 0], spans[last, 1]), axis=1)[of_word]
            spans[windows.word_ids < 0] = windows.offsets[windows.word_ids < 0]
        part = np.where(windows.sequence_ids == 1, CONTEXT, OUTSIDE)
        part[(part == OUTSIDE) & (windows.input_ids == tokenizer.cls_token_id)] = CLS
        return replace(windows, offsets=spans, token_tags=part.astype(np.int8))

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        found = self.spans(outputs)
        best = [spans[0] if spans else Span("", 0.0, 0, 0) for spans, _ in found]
        arrays = [
            pa.array([getattr(span, field.name) for span in best], field.type) for field in SPAN
        ]
        arrays.append(pa.array([null for _, null in found], pa.float32()))
        if self.top_k:
            flat = [vars(span) for spans, _ in found for span in spans]
            arrays.append(
                list_array(np.array([len(spans) for spans, _ in found]), pa.array(flat, SPAN))
            )
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[Any]:
        out = []
        for spans, _ in self.spans(outputs):
            shown = [
                {"score": s.score, "start": s.start, "end": s.end, "answer": s.answer}
                for s in spans
            ]
            out.append(shown[0] if len(shown) == 1 else shown)
        return out

    def most_results(self, windows: Windows) -> int:
        return len(windows.document) * self._spans_of_window

    def spans(self, outputs: ModelOutputs) -> list[tuple[list[Span], float]]:
        """Return, per pair, the best spans (at most `top_k`, or one) and the score of the empty
        answer.

        Spans with the same text, regardless of case, count as one whose score is their sum.
        """
        windows = outputs.windows
        starts, counts = per_document(windows)
        out = []
        for document, (first, count) in enumerate(zip(starts, counts, strict=True)):
            context = outputs.documents[document][1]
            found: dict[str, Span] = {}
            no_answer = 1.0
            for w in range(first, first + count):
                tokens = slice(windows.cu_seqlens[w], windows.cu_seqlens[w + 1])
                best, null = self._best_spans(outputs.values[tokens], windows.token_tags[tokens])
                no_answer = min(no_answer, null)
                for begin, end, score in best:
                    start, stop = (
                        int(windows.offsets[tokens][begin, 0]),
                        int(windows.offsets[tokens][end, 1]),
                    )
                    text = context[start:stop]
                    earlier = found.get(text.lower())
                    found[text.lower()] = (
                        replace(earlier, score=earlier.score + score)
                        if earlier
                        else Span(text, score, start, stop)
                    )
            spans = list(found.values())
            if self.no_answer and count:
                spans.append(Span("", no_answer, 0, 0))
            spans.sort(key=lambda span: -span.score)
            out.append((spans[: self.top_k or 1], no_answer if count else 0.0))
        return out

    def preview(self, answer: dict[str, Any]) -> str:
        return f"{answer['score']:.2f}  {answer['answer']!r}"

    @property
    def _spans_of_window(self) -> int:
        """The best spans of a window that are looked at: with words, several spans of tokens are
        one.
        """
        return 2 * (self.top_k or 1) + 10 if self.align_to_words else self.top_k or 1

    def _best_spans(
        self, logits_L2: np.ndarray, part: np.ndarray
    ) -> tuple[list[tuple[int, int, float]], float]:
        """Return (first token, last token, score) of a window's best spans, and the score of the
        empty answer.
        """
        inside = np.flatnonzero(part != OUTSIDE)
        start_L, end_L = softmax(logits_L2[inside].T)
        null = float(start_L[0] * end_L[0]) if inside[0] == 0 else 0.0
        context = part[inside] == CONTEXT
        start_L, end_L, token_L = start_L[context], end_L[context], inside[context]
        width = min(self.max_answer_length, len(token_L))
        if not width:
            return [], null
        ends_LA = np.lib.stride_tricks.sliding_window_view(np.pad(end_L, (0, width - 1)), width)
        scores = (start_L[:, None] * ends_LA).ravel()
        begin, end = np.divmod(np.arange(len(scores)), width)
        end += begin
        real = np.flatnonzero(end < len(token_L))
        wanted = self._spans_of_window
        if len(real) > wanted:
            real = real[np.argpartition(-scores[real], wanted - 1)[:wanted]]
        order = real[np.argsort(-scores[real], kind="stable")]
        return [
            (int(token_L[begin[i]]), int(token_L[end[i]]), float(scores[i])) for i in order
        ], null
