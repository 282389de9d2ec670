"""answer: the span of a context that answers a question, from an extractive question answering
model.

Spans are found and scored as in transformers' question-answering pipeline (4.x; version 5.3 removed
it).

Shapes: T tokens, L context tokens of a window, A answer length in tokens, W windows, D pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import AnswerOptions
from pipelines.tasks.base import GoldTypes, Task
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import ANSWERS, compare_answers, holds_answers
from pipelines.tasks.outputs import ModelOutputs, Results
from pipelines.tasks.postprocess import doubt_of, list_array, per_document, softmax
from pipelines.tasks.resolve import resolve_windowing

logger = logging.getLogger(__name__)
SPAN = pa.struct(
    [("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
)
OUTSIDE, CLS, CONTEXT = 0, 1, 2
"""Values of `Windows.token_tags`: not in the softmax; in the softmax but never in an answer; in
both.
"""
DEFAULT_LENGTH = 384
"""That of transformers' pipeline, and of the windows that such models are trained on."""
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

    shows_texts = True
    options_class = AnswerOptions
    doubt_columns = ("score",)
    model_class = "modernbert.heads:ModernBertForQuestionAnswering"
    per_token = True
    needs_details = True
    width = 2

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: AnswerOptions) -> Answer:
        windowing = resolve_windowing(checkpoint, options, DEFAULT_LENGTH)
        length = windowing.max_length
        spans = length * min(options.max_answer_length, length)
        if spans > _MOST_SPANS:
            raise ValueError(
                f"max_answer_length {options.max_answer_length} makes {spans:,} spans of a window "
                f"of {length} tokens; at most {_MOST_SPANS // length} tokens of answer are "
                "compared there"
            )
        # Where a tokenizer knows no words, a whole context would be one, and be each answer.
        align_to_words = options.align_to_words and checkpoint.tokenizer.knows_words
        if options.align_to_words and not align_to_words:
            _warn_of_tokens(str(checkpoint.folder))
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            top_k=options.top_k,
            max_answer_length=options.max_answer_length,
            no_answer=options.no_answer,
            align_to_words=align_to_words,
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

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        return {"model_type": {"question_answering": {}}}

    @property
    def columns(self) -> pa.Schema:
        fields = [*SPAN, pa.field("no_answer_score", pa.float32())]
        if self.top_k:
            fields.append(pa.field("answers", pa.list_(SPAN)))
        return pa.schema(fields)

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        windows = super().encode(tokenizer, documents)
        spans = windows.offsets
        if self.align_to_words and len(spans):
            spans = _word_spans(windows)
        # The question takes no part in the softmax; [CLS], which stands for no answer, does.
        part_T = np.where(windows.sequence_ids == 1, CONTEXT, OUTSIDE)
        is_cls = windows.input_ids == tokenizer.cls_token_id
        part_T[(part_T == OUTSIDE) & is_cls] = CLS
        return replace(windows, offsets=spans, token_tags=part_T.astype(np.int8))

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        spans_of_pairs = self.spans(outputs)
        best = [spans[0] if spans else Span("", 0.0, 0, 0) for spans, _ in spans_of_pairs]
        arrays = []
        for field in SPAN:
            values = [getattr(span, field.name) for span in best]
            arrays.append(pa.array(values, field.type))
        arrays.append(pa.array([no_answer for _, no_answer in spans_of_pairs], pa.float32()))
        if self.top_k:
            counts_D = np.array([len(spans) for spans, _ in spans_of_pairs])
            all_spans = [vars(span) for spans, _ in spans_of_pairs for span in spans]
            arrays.append(list_array(counts_D, pa.array(all_spans, SPAN)))
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    # A result is a dictionary, or a list of several, as in transformers.
    def results(self, outputs: ModelOutputs) -> Results:
        results: Results = []
        for spans, _ in self.spans(outputs):
            shown = [
                {"score": span.score, "start": span.start, "end": span.end, "answer": span.answer}
                for span in spans
            ]
            results.append(shown[0] if len(shown) == 1 else shown)
        return results

    def most_results(self, windows: Windows) -> int:
        return len(windows.document) * self._spans_of_window

    def most_characters(self, tokenizer: Tokenizer, windows: Windows) -> int:  # noqa: ARG002
        characters = 0
        for start, end in pairwise(windows.cu_seqlens.tolist()):
            is_context = windows.token_tags[start:end] == CONTEXT
            starts_L, ends_L = windows.offsets[start:end][is_context].T
            longest = min(self.max_answer_length, len(starts_L))
            if longest:
                widths = ends_L[longest - 1 :] - starts_L[: len(starts_L) - longest + 1]
                characters += self._spans_of_window * int(widths.max())
        return characters

    def spans(self, outputs: ModelOutputs) -> list[tuple[list[Span], float]]:
        """Return, per pair, the best spans (at most `top_k`, or one) and the score of the empty
        answer.

        Spans with the same text, regardless of case, count as one whose score is their sum.
        """
        windows = outputs.windows
        results = []
        first_windows, counts = per_document(windows)
        for document, first in enumerate(first_windows.tolist()):
            context = outputs.documents[document][1]
            by_text: dict[str, Span] = {}
            no_answer = 1.0
            for w in range(first, first + int(counts[document])):
                tokens = slice(windows.cu_seqlens[w], windows.cu_seqlens[w + 1])
                best, no_answer_here = self._best_spans(
                    outputs.values[tokens], windows.token_tags[tokens]
                )
                # Each window has something to say against an answer: the least of it counts.
                no_answer = min(no_answer, no_answer_here)
                offsets = windows.offsets[tokens]
                for first_token, last_token, score in best:
                    start = int(offsets[first_token, 0])
                    end = int(offsets[last_token, 1])
                    _add_span(by_text, Span(context[start:end], score, start, end))
            spans = list(by_text.values())
            is_read = counts[document] > 0
            if self.no_answer and is_read:
                spans.append(Span("", no_answer, 0, 0))
            spans.sort(key=lambda span: -span.score)
            results.append((spans[: self.top_k or 1], no_answer if is_read else 0.0))
        return results

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        return doubt_of(answers.field("score"))

    def gold_types(self) -> GoldTypes:
        return GoldTypes(ANSWERS, holds_answers)

    def compare(
        self,
        outputs: ModelOutputs,  # noqa: ARG002
        answered: np.ndarray,  # noqa: ARG002
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        return compare_answers(gold, answers)

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.2f}  {answer['answer']!r}"

    @property
    def _spans_of_window(self) -> int:
        """How many of a window's best spans are looked at."""
        wanted = self.top_k or 1
        # Where answers are whole words, several spans of tokens are one answer.
        return 2 * wanted + 10 if self.align_to_words else wanted

    def _best_spans(
        self, logits_L2: np.ndarray, part_L: np.ndarray
    ) -> tuple[list[tuple[int, int, float]], float]:
        """Return (first token, last token, score) of a window's best spans, and the score of the
        empty answer.

        `logits_L2`, `part_L`: of all tokens of the window.
        """
        inside = np.flatnonzero(part_L != OUTSIDE)
        start_L, end_L = softmax(logits_L2[inside].T)
        begins_with_cls = inside[0] == 0
        no_answer = float(start_L[0] * end_L[0]) if begins_with_cls else 0.0

        # [CLS] has had its part in the softmax: answers are tokens of the context alone.
        is_context = part_L[inside] == CONTEXT
        token_L = inside[is_context]
        start_L = start_L[is_context]
        end_L = end_L[is_context]
        longest = min(self.max_answer_length, len(token_L))
        if not longest:
            return [], no_answer
        first, last, scores = _likeliest_spans(start_L, end_L, longest, self._spans_of_window)
        best: list[tuple[int, int, float]] = []
        for first_token, last_token, score in zip(
            token_L[first], token_L[last], scores, strict=True
        ):
            best.append((int(first_token), int(last_token), float(score)))
        return best, no_answer


def _likeliest_spans(
    start_L: np.ndarray, end_L: np.ndarray, longest: int, wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first token, the last one and the score of the `wanted` spans with the highest
    scores, highest first.

    `start_L`, `end_L`: how likely an answer starts and ends at each token. `longest`: the most
    tokens in a span.
    """
    # A row for each start, with the ends of the spans of 1, 2, … tokens from there; rows near the
    # end of the text run into padding.
    padded_L = np.pad(end_L, (0, longest - 1))
    end_LA = np.lib.stride_tricks.sliding_window_view(padded_L, longest)
    scores = (start_L[:, None] * end_LA).ravel()
    first, more_tokens = np.divmod(np.arange(len(scores)), longest)
    last = first + more_tokens
    spans = np.flatnonzero(last < len(end_L))

    # A window has up to a million spans, of which some are wanted: only these are sorted.
    if len(spans) > wanted:
        likeliest = np.argpartition(-scores[spans], wanted - 1)[:wanted]
        spans = spans[likeliest]
    spans = spans[np.argsort(-scores[spans], kind="stable")]
    return first[spans], last[spans], scores[spans]


@cache
def _warn_of_tokens(model: str) -> None:
    """Warn, once for a model, that its answers do not follow words."""
    logger.warning(
        "model %r: its tokenizer cuts no text into words, so that answers begin and end with tokens"
        " (align_to_words is off)",
        model,
    )


def _word_spans(windows: Windows) -> np.ndarray:
    """Return the characters [start, end) of the word of each token, (T, 2); its own outside
    words.
    """
    other_word = np.diff(windows.word_ids) != 0
    other_text = np.diff(windows.sequence_ids) != 0
    first = np.flatnonzero(np.append(True, other_word | other_text))
    last = np.append(first[1:], len(windows.offsets)) - 1
    span_of_word = np.stack((windows.offsets[first, 0], windows.offsets[last, 1]), axis=1)
    spans: np.ndarray = np.repeat(span_of_word, last - first + 1, axis=0)
    is_outside = windows.word_ids < 0
    spans[is_outside] = windows.offsets[is_outside]
    return spans


def _add_span(by_text: dict[str, Span], span: Span) -> None:
    """Add a span to those of other texts, or its score to the span of the same text."""
    key = span.answer.lower()
    earlier = by_text.get(key)
    by_text[key] = replace(earlier, score=earlier.score + span.score) if earlier else span
