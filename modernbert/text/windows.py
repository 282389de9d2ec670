"""Windows: documents cut into stretches of at most `max_length` tokens, laid end to end.

Shapes: T packed tokens, W windows, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

Text = str | tuple[str, str]
"""A text or a pair of texts."""
MOST_OVERLAP = 8
"""The most tokens in the windows of a document, in multiples of its own tokens; one more window is
allowed.
"""
_MARGIN_WORDS = 8  # words beside a cut through a text whose tokens may depend on the rest
_budget: ContextVar[int] = ContextVar("budget", default=1 << 62)


class WindowBudgetError(ValueError):
    """The windows of a call hold more tokens than `window_budget` allows."""


@contextmanager
def window_budget(tokens: int) -> Iterator[None]:
    """Raise WindowBudgetError within the block where the windows of a call would hold more than
    `tokens`.
    """
    token = _budget.set(tokens)
    try:
        yield
    finally:
        _budget.reset(token)


@dataclass(frozen=True)
class Windows:
    """The result of `Tokenizer.encode`: the windows of some documents, laid end to end.

    The arrays are both the input of a packed batch and the buffers of Arrow list columns.

    Example:
        >>> windows = tokenizer.encode(["one", "a longer text"], max_length=8)
        >>> input_ids = torch.from_numpy(windows.input_ids)
        >>> batch = PackedBatch.from_lengths(input_ids, tuple(windows.lengths.tolist()))
    """

    input_ids: np.ndarray
    """(T,) int32: token ids, special tokens included."""
    cu_seqlens: np.ndarray
    """(W+1,) int64: where each window starts, with T at the end."""
    document: np.ndarray
    """(W,) int64: the number of the window's document; the windows of a document follow each other,
    in order.
    """
    start: np.ndarray
    """(W,) int64: the first token of the window in its document, or in the second text of a pair.
    """
    n_tokens: np.ndarray
    """(D,) int32: the document's tokens that are in its windows, each counted once; 0 for a
    rejected document.
    """
    truncated: np.ndarray
    """(D,) bool: whether tokens of the document were cut off."""
    rejected: dict[int, str]
    """{number of a document without windows: the reason why it cannot be encoded}."""
    offsets: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """(T, 2) int32: the characters [start, end) of each token in its text; 0, 0 for special tokens.
    """
    word_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """(T,) int32: the number of each token's word in its text; -1 for special tokens."""
    sequence_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))
    """(T,) int8: 0 for tokens of the first text, 1 for the second text of a pair, -1 for special
    tokens.
    """
    token_tags: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))
    """(T,) int8: a tag that a task sets for each token. Empty without `details`, like the three
    arrays before it.
    """

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64: tokens in each window."""
        return np.diff(self.cu_seqlens)

    def with_ids(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> Windows:
        """Return these windows with other tokens, `input_ids` (T,) cut at `cu_seqlens` (W+1,),
        without details.
        """
        return Windows(
            input_ids.astype(np.int32),
            cu_seqlens,
            self.document,
            self.start,
            self.n_tokens,
            self.truncated,
            self.rejected,
        )


class Tokens(NamedTuple):
    """The tokens of a text, read once: each access to an attribute of an Encoding copies a list."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]

    @classmethod
    def from_encoding(cls, encoding: Encoding, details: bool) -> Tokens:
        """Read the tokens of an encoding; with `details`, their offsets and word ids too."""
        return (
            cls(encoding.ids, encoding.offsets, encoding.word_ids)
            if details
            else cls(encoding.ids, [], [])
        )


class WindowsBuilder:
    """Collects windows in lists and turns all of them into arrays at once."""

    def __init__(self, template: list[list[int]], details: bool):
        self.template, self.details, self.budget = template, details, _budget.get()
        self.num_special = sum(map(len, template))
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.document: list[int] = []
        self.start: list[int] = []
        self.n_tokens: list[int] = []
        self.truncated: list[bool] = []
        self.rejected: dict[int, str] = {}
        self.offsets: list[np.ndarray] = []
        self.word_ids: list[int] = []
        self.sequence_ids: list[int] = []
        self._document_start = (0, 0, 0)  # in ids, lengths and offsets
        self._overlaps = (
            False  # whether the document's windows hold more than MOST_OVERLAP times its tokens
        )

    def add(
        self, document: int, parts: Sequence[Tokens], ranges: list[tuple[int, int]], first: int
    ) -> None:
        """Add a window of a document.

        Args:
            document: its number.
            parts: the tokens of its texts, one text or two.
            ranges: for each text, the tokens [start, stop) in the window; special tokens are added
                around them.
            first: the first token of the window in the text that is cut.

        Raises:
            WindowBudgetError: where the windows would hold more tokens than `window_budget` allows.
        """
        offset = len(self.ids)
        if document == len(self.n_tokens) and (not self.document or self.document[-1] != document):
            self._document_start = offset, len(self.lengths), len(self.offsets)
        if self._overlaps or offset - self._document_start[0] > MOST_OVERLAP * sum(
            len(part.ids) for part in parts
        ):
            self._overlaps = True
            return
        if offset + self.num_special + sum(stop - start for start, stop in ranges) > self.budget:
            raise WindowBudgetError(f"windows hold more than {self.budget:,} tokens")
        self._add_special(0)
        for number, (part, (start, stop)) in enumerate(zip(parts, ranges, strict=True)):
            self.ids += part.ids[start:stop]
            if self.details:
                self.offsets.append(
                    np.array(part.offsets[start:stop], dtype=np.int32).reshape(-1, 2)
                )
                self.word_ids += [
                    -1 if word is None else word for word in part.word_ids[start:stop]
                ]
                self.sequence_ids += [number] * (stop - start)
            self._add_special(number + 1)
        self.lengths.append(len(self.ids) - offset)
        self.document.append(document)
        self.start.append(first)

    def finish(self, tokens: int, truncated: bool) -> None:
        """End a document whose windows hold `tokens` of its tokens, each counted once, without
        special ones.

        It is rejected where its windows overlap too much.
        """
        if self._overlaps:
            self._overlaps = False
            self._remove_document()
            self.reject(
                f"too long for overlapping windows: they would hold more than {MOST_OVERLAP} times "
                "its tokens, since "
                "little is new in each; lower stride, or shorten the first text of a pair"
            )
            return
        self.n_tokens.append(tokens + self.num_special)
        self.truncated.append(truncated)

    def reject(self, reason: str) -> None:
        """Record a document without windows."""
        self.rejected[len(self.n_tokens)] = reason
        self.n_tokens.append(0)
        self.truncated.append(False)

    def windows(self) -> Windows:
        """Return the collected windows as arrays."""
        offsets = np.concatenate(self.offsets) if self.offsets else np.empty((0, 2), np.int32)
        return Windows(
            input_ids=np.array(self.ids, dtype=np.int32),
            cu_seqlens=np.cumsum([0, *self.lengths], dtype=np.int64),
            document=np.array(self.document, dtype=np.int64),
            start=np.array(self.start, dtype=np.int64),
            n_tokens=np.array(self.n_tokens, dtype=np.int32),
            truncated=np.array(self.truncated, dtype=bool),
            rejected=self.rejected,
            offsets=offsets,
            word_ids=np.array(self.word_ids, dtype=np.int32),
            sequence_ids=np.array(self.sequence_ids, dtype=np.int8),
        )

    def _remove_document(self) -> None:
        """Take the windows of the document that is being added out again."""
        ids, windows, offsets = self._document_start
        del self.ids[ids:], self.lengths[windows:], self.document[windows:], self.start[windows:]
        if self.details:
            del self.offsets[offsets:], self.word_ids[ids:], self.sequence_ids[ids:]

    def _add_special(self, position: int) -> None:
        ids = self.template[position]
        self.ids += ids
        if self.details:
            self.offsets.append(np.zeros((len(ids), 2), dtype=np.int32))
            self.word_ids += [-1] * len(ids)
            self.sequence_ids += [-1] * len(ids)


def longest_first(lengths: list[int], max_tokens: int) -> list[int]:
    """Return how many tokens of each text are kept if all texts together may have `max_tokens`.

    This is the rule "longest_first" of the tokenizers library: the longer text is cut to what the
    shorter one leaves, but not below the shorter one; if that is not enough, each text keeps half
    of `max_tokens`, the longer one an odd token.
    """
    if len(lengths) == 1:
        return [min(lengths[0], max_tokens)]
    shorter, longer = sorted(lengths)
    longer = shorter if shorter > max_tokens else max(shorter, max_tokens - shorter)
    if shorter + longer > max_tokens:
        shorter, longer = max_tokens // 2, max_tokens // 2 + max_tokens % 2
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def window_ranges(length: int, capacity: int, stride: int, side: str) -> list[tuple[int, int]]:
    """Return the tokens [start, stop) of each window, of `capacity` at most, whose neighbours share
    `stride`.

    With the truncation side "right" the first window begins at the first token; with "left" the
    last one ends at the last token, as windows of the tokenizers library do.
    """
    starts = range(0, length - stride, capacity - stride) if length > capacity else [0]
    ranges = [(start, min(start + capacity, length)) for start in starts]
    return (
        ranges
        if side == "right"
        else [(length - stop, length - start) for start, stop in reversed(ranges)]
    )


def text_end(text: str, longest: int) -> str:
    """Return the end of a text, from the first space of its last `longest` characters on, or all of
    it without one.
    """
    space = text.find(" ", len(text) - longest)
    return text[space:] if space >= 0 else text


def prefix_is_exact(encoding: Encoding, max_tokens: int) -> bool:
    """Return whether the first `max_tokens` tokens end some words before the cut.

    Words are encoded one by one, so that the text behind the cut cannot change those tokens.
    """
    words = encoding.word_ids
    kept = [word for word in words[:max_tokens] if word is not None]
    dropped = [word for word in words[max_tokens:] if word is not None]
    return bool(kept and dropped) and dropped[-1] - kept[-1] > _MARGIN_WORDS


def suffix_is_exact(encoding: Encoding, max_tokens: int) -> bool:
    """Return whether the last `max_tokens` tokens begin some words after the cut, as in
    `prefix_is_exact`.
    """
    words = encoding.word_ids
    kept = [word for word in words[-max_tokens:] if word is not None]
    dropped = [word for word in words[:-max_tokens] if word is not None]
    return bool(kept and dropped) and kept[0] - dropped[0] > _MARGIN_WORDS
