"""tag with is_split_into_words: a label for each word of a list, from a token classifier.

The label of a word is that of its first token, as in transformers' examples of token
classification. In overlapping windows that token is taken from the window that has the most tokens
on both sides of it, of equal ones from the first.

Shapes: T tokens, K words that are read, W windows, D documents, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import TagOptions
from pipelines.tasks.base import GoldTypes, Task, label_maps
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import compare_words, describe_ids, holds_word_labels, least_by_row
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, softmax
from pipelines.tasks.resolve import resolve_windowing
from pipelines.text_lists import WordList

OTHER, FIRST = -1, 0
"""Values of `Windows.token_tags`: any other token; the first token of a word."""
_SHOWN_WORDS = 8


class ReadWords(NamedTuple):
    """The words that have a token, in the order of the documents."""

    place: np.ndarray
    """(K,): the number of the word among all words of all documents"""
    label: np.ndarray
    """(K,): the number of its label"""
    score: np.ndarray
    """(K,) float32"""


@dataclass(frozen=True, kw_only=True)
class TokenClassifier(Task):
    """What the tasks that read a token classifier's logits have in common."""

    labels: tuple[str, ...]

    shows_texts = True
    options_class = TagOptions
    model_class = "modernbert.heads:ModernBertForTokenClassification"
    per_token = True
    needs_details = True

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        return {"labels": self.labels, "model_type": {"token_classifier": label_maps(self.labels)}}

    @property
    def width(self) -> int:
        return len(self.labels)

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def most_results(self, windows: Windows) -> int | None:
        return len(windows.input_ids)


@dataclass(frozen=True, kw_only=True)
class TagWords(TokenClassifier):
    """The label of each word by its first token.

    `token_tags` of its windows are FIRST or OTHER; `offsets` are [word, word + 1).
    """

    is_split_into_words: bool = True
    """Part of the fingerprint, in which outputs with entities have no such field."""

    columns = pa.schema([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
    reads_words = True
    doubt_columns = ("scores",)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: TagOptions) -> Self:
        if options.ignore_labels is not None:
            raise ValueError(
                "ignore_labels is for entities: with is_split_into_words each word has its label"
            )
        if options.aggregation in ("average", "max"):
            raise ValueError(
                f"aggregation {options.aggregation} is for texts: with is_split_into_words a word "
                "has the label of its first token"
            )
        config = checkpoint.config
        windowing = resolve_windowing(checkpoint, options)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=tuple(config.id2label[i] for i in range(config.num_labels)),
        )

    @property
    def probe(self) -> Text:
        return WordList.of(["a"])

    # A word may have no token.
    def most_results(self, windows: Windows) -> None:  # noqa: ARG002
        return None

    def count_results(self, response: Sequence[Any] | np.ndarray) -> int:
        return sum(len(labels) for labels in response if labels is not None)

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        lists = [_words(document) for document in documents]
        windows = tokenizer.encode_words(lists, self.max_length, stride=self.stride)
        tags_T = np.full(len(windows.input_ids), OTHER, dtype=np.int8)
        tags_T[_first_tokens(windows)] = FIRST
        # What travels of a token is where it is: here, in which word.
        spans = np.stack((windows.word_ids, windows.word_ids + 1), axis=1)
        return replace(windows, offsets=spans, token_tags=tags_T)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        counts_D = self._word_counts(outputs)
        read = self._read(outputs)
        label_of_word = np.zeros(counts_D.sum(), dtype=np.int64)
        score_of_word = np.zeros(counts_D.sum(), dtype=np.float32)
        is_unread = np.ones(counts_D.sum(), dtype=bool)
        label_of_word[read.place] = read.label
        score_of_word[read.place] = read.score
        is_unread[read.place] = False
        labels = pa.array(self.labels, pa.string()).take(pa.array(label_of_word, mask=is_unread))
        scores = pa.array(score_of_word, mask=is_unread)
        lists = [list_array(counts_D, labels), list_array(counts_D, scores)]
        return pa.StructArray.from_arrays(lists, fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[Json]]:
        results: list[list[Json]] = []
        entries: list[Json] = []
        for document in outputs.documents:
            of_document: list[Json] = []
            for index, word in enumerate(_words(document)):
                of_document.append({"entity": None, "score": None, "index": index, "word": word})
            results.append(of_document)
            entries += of_document
        read = self._read(outputs)
        for place, label, score in zip(*(each.tolist() for each in read), strict=True):
            entries[place] |= {"entity": self.labels[label], "score": score}
        return results

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        return Counter(answers.field("labels").flatten().drop_null().to_pylist())

    def scores(self, answers: pa.StructArray) -> pa.Array:
        return answers.field("scores").flatten().drop_null()

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        return least_by_row(answers.field("scores"))

    def gold_types(self) -> GoldTypes:
        content = "lists with the label (text) or its id for each word"
        return GoldTypes(content, holds_word_labels, describe_ids(self.labels))

    def compare(
        self,
        outputs: ModelOutputs,  # noqa: ARG002
        answered: np.ndarray,  # noqa: ARG002
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        return compare_words(gold, answers, self.labels)

    def preview(self, answer: Json) -> str:
        labels = answer["labels"]
        shown = " ".join(label or "-" for label in labels[:_SHOWN_WORDS])
        return f"{shown} …" if len(labels) > _SHOWN_WORDS else shown

    def _read(self, outputs: ModelOutputs) -> ReadWords:
        """Read the labels of words from the model's logits."""
        windows = outputs.windows
        first_T = np.flatnonzero(windows.token_tags == FIRST)
        window_T = np.repeat(np.arange(len(windows.document)), windows.lengths)[first_T]
        document_T = windows.document[window_T]
        word_T = windows.offsets[first_T, 0].astype(np.int64)

        # Of the windows that hold the token of a word, the one with the most context counts.
        before_T = first_T - windows.cu_seqlens[window_T]
        after_T = windows.cu_seqlens[window_T + 1] - 1 - first_T
        context_T = np.minimum(before_T, after_T)
        order_T = np.lexsort((-context_T, word_T, document_T))
        is_other_word = np.diff(word_T[order_T]) != 0
        is_other_document = np.diff(document_T[order_T]) != 0
        is_best = np.append(True, is_other_word | is_other_document)[: len(order_T)]
        best_K = order_T[is_best]

        scores_KC = softmax(outputs.values[first_T[best_K]])
        label_K = scores_KC.argmax(axis=1)
        score_K = np.take_along_axis(scores_KC, label_K[:, None], axis=1)[:, 0]
        counts_D = self._word_counts(outputs)
        first_word_D = np.cumsum(counts_D) - counts_D
        place_K = first_word_D[document_T[best_K]] + word_T[best_K]
        return ReadWords(place_K, label_K, score_K.astype(np.float32))

    @staticmethod
    def _word_counts(outputs: ModelOutputs) -> np.ndarray:
        """Return the number of words of each document, (D,); some may be cut off."""
        counts = [len(_words(document)) for document in outputs.documents]
        return np.array(counts, dtype=np.int64)


def _words(document: Text) -> list[str]:
    """Return the words of a document, which must be a WordList."""
    assert isinstance(document, WordList)
    return document.texts


def _first_tokens(windows: Windows) -> np.ndarray:
    """Return the tokens that are the first ones of their words, in each window that has them."""
    text_T = np.flatnonzero(windows.sequence_ids == 0)
    window_T = np.repeat(np.arange(len(windows.document)), windows.lengths)[text_T]

    # The place of a token in its document: windows overlap, and may begin within a word.
    counts_W = np.bincount(window_T, minlength=len(windows.document))
    first_W = np.cumsum(counts_W) - counts_W
    place_T = windows.start[window_T] + np.arange(len(text_T)) - first_W[window_T]

    words = np.stack((windows.document[window_T], windows.word_ids[text_T]), axis=1)
    distinct, word_T = np.unique(words, axis=0, return_inverse=True)
    first_place = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(first_place, word_T, place_T)
    tokens: np.ndarray = text_T[place_T == first_place[word_T]]
    return tokens
