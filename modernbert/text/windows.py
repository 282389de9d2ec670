"""Windows: documents cut into stretches of at most `max_length` tokens, laid end to end.

Shapes: T packed tokens, W windows, D documents, C chunks.
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
"""The most tokens in the windows of a document, in multiples of its own; one more window may be
added.
"""
_budget: ContextVar[int] = ContextVar("budget", default=1 << 62)
"""The tokens that `window_budget` allows. It is set around the `encode` of any task, which knows
nothing of it: only requests have such a bound, and no task can forget to pass it on.
"""


class WindowBudgetError(ValueError):
    """The windows of a call hold more tokens than `window_budget` allows."""


@contextmanager
def window_budget(tokens: int) -> Iterator[None]:
    """Raise WindowBudgetError within the block where windows of a call hold more than `tokens`."""
    token = _budget.set(tokens)
    try:
        yield
    finally:
        _budget.reset(token)


def tokens_allowed() -> int:
    """Return the tokens that `window_budget` allows, a very large number outside of it."""
    return _budget.get()


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
    chunk_spans: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """(C, 2) int32: the characters [start, end) of each chunk in its text, where documents are cut
    into chunks; in the order of the windows.
    """

    @property
    def lengths(self) -> np.ndarray:
        """(W,) int64: tokens in each window."""
        return np.diff(self.cu_seqlens)

    def with_ids(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> Windows:
        """Return these windows with other tokens, and without details.

        Args:
            input_ids: (T,) token ids.
            cu_seqlens: (W+1,) where each window starts in them, with T at the end.
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


class TextTokens(NamedTuple):
    """The tokens of a text, read once: each access to an attribute of an Encoding copies a list."""

    ids: list[int]
    offsets: list[tuple[int, int]] | np.ndarray
    word_ids: list[int | None] | np.ndarray

    @classmethod
    def from_encoding(cls, encoding: Encoding, details: bool) -> TextTokens:
        """Read the tokens of an encoding; with `details`, their offsets and word ids too."""
        if details:
            return cls(encoding.ids, encoding.offsets, encoding.word_ids)
        return cls(encoding.ids, [], [])


class _Position(NamedTuple):
    """How much a builder holds at some time."""

    ids: int
    windows: int
    offsets: int


class WindowsBuilder:
    """Collects windows in lists, document by document, and turns all of them into arrays at once.

    A document is `add` for each of its windows and `finish`, or `reject`.
    """

    def __init__(self, template: list[list[int]], details: bool):
        """Start without windows.

        Args:
            template: the special ids before the first text and behind each text.
            details: whether to collect offsets, word ids and sequence ids.
        """
        self.template = template
        self.details = details
        self.budget = _budget.get()
        self.num_special = sum(map(len, template))
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.document: list[int] = []
        self.start: list[int] = []
        self.n_tokens: list[int] = []
        self.truncated: list[bool] = []
        self.rejected: dict[int, str] = {}
        self.offsets: list[np.ndarray] = []
        self.word_ids: list[np.ndarray] = []
        self.sequence_ids: list[int] = []
        self._document_start = _Position(0, 0, 0)
        self._overlaps = False
        """Whether the document's windows hold more than MOST_OVERLAP times its tokens."""

    def add(self, parts: Sequence[TextTokens], ranges: list[tuple[int, int]], first: int) -> None:
        """Add a window of the next document.

        Args:
            parts: the tokens of its texts, one text or two.
            ranges: for each text, the tokens [start, stop) in the window; special tokens are added
                around them.
            first: the first token of the window in the text that is cut.

        Raises:
            WindowBudgetError: where the windows would hold more tokens than `window_budget` allows.
        """
        window_start = len(self.ids)
        document = len(self.n_tokens)
        if not self.document or self.document[-1] != document:
            self._document_start = _Position(window_start, len(self.lengths), len(self.offsets))

        # Windows in which little is new would multiply the work: their document is given up.
        held_tokens = window_start - self._document_start.ids
        own_tokens = sum(len(part.ids) for part in parts)
        if self._overlaps or held_tokens > MOST_OVERLAP * own_tokens:
            self._overlaps = True
            return
        new_tokens = self.num_special + sum(stop - start for start, stop in ranges)
        if window_start + new_tokens > self.budget:
            raise WindowBudgetError(f"windows hold more than {self.budget:,} tokens")

        self._add_special(self.template[0])
        for number, (part, (start, stop)) in enumerate(zip(parts, ranges, strict=True)):
            self.ids += part.ids[start:stop]
            if self.details:
                self._add_details(part, number, start, stop)
            self._add_special(self.template[number + 1])
        self.lengths.append(len(self.ids) - window_start)
        self.document.append(document)
        self.start.append(first)

    def finish(self, tokens: int, truncated: bool) -> None:
        """End a document, or reject it where its windows overlap too much.

        Args:
            tokens: how many of its tokens its windows hold, each counted once, without special
                ones.
            truncated: whether other tokens were cut off.
        """
        if self._overlaps:
            self._overlaps = False
            self._remove_document()
            self.reject(
                f"too long for overlapping windows: they would hold more than {MOST_OVERLAP} times"
                " its tokens, since little is new in each; lower stride, or shorten the first text"
                " of a pair"
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
        word_ids = np.concatenate(self.word_ids) if self.word_ids else np.empty(0, np.int32)
        return Windows(
            input_ids=np.array(self.ids, dtype=np.int32),
            cu_seqlens=np.cumsum([0, *self.lengths], dtype=np.int64),
            document=np.array(self.document, dtype=np.int64),
            start=np.array(self.start, dtype=np.int64),
            n_tokens=np.array(self.n_tokens, dtype=np.int32),
            truncated=np.array(self.truncated, dtype=bool),
            rejected=self.rejected,
            offsets=offsets,
            word_ids=word_ids,
            sequence_ids=np.array(self.sequence_ids, dtype=np.int8),
        )

    def _add_details(self, part: TextTokens, number: int, start: int, stop: int) -> None:
        offsets = np.array(part.offsets[start:stop], dtype=np.int32)
        self.offsets.append(offsets.reshape(-1, 2))
        self.word_ids.append(_words(part.word_ids[start:stop]))
        self.sequence_ids += [number] * (stop - start)

    def _add_special(self, ids: list[int]) -> None:
        self.ids += ids
        if self.details:
            self.offsets.append(np.zeros((len(ids), 2), dtype=np.int32))
            self.word_ids.append(np.full(len(ids), -1, dtype=np.int32))
            self.sequence_ids += [-1] * len(ids)

    def _remove_document(self) -> None:
        """Take the windows of the document that is being added out again."""
        start = self._document_start
        del self.ids[start.ids :]
        del self.lengths[start.windows :]
        del self.document[start.windows :]
        del self.start[start.windows :]
        if self.details:
            del self.offsets[start.offsets :]
            del self.word_ids[start.offsets :]
            del self.sequence_ids[start.ids :]


def _words(word_ids: list[int | None] | np.ndarray) -> np.ndarray:
    """Return word ids as int32, -1 where there is none."""
    if isinstance(word_ids, np.ndarray):
        return word_ids.astype(np.int32)
    return np.array([-1 if word is None else word for word in word_ids], dtype=np.int32)


def longest_first(lengths: list[int], max_tokens: int) -> list[int]:
    """Return how many tokens of each text are kept if all texts together may have `max_tokens`.

    This is the rule "longest_first" of the tokenizers library: the longer text is cut to what the
    shorter one leaves, but not below the shorter one; if that is not enough, each text keeps half
    of `max_tokens`, the longer one an odd token.
    """
    if len(lengths) == 1:
        return [min(lengths[0], max_tokens)]
    shorter = min(lengths)
    longer = shorter if shorter > max_tokens else max(shorter, max_tokens - shorter)
    if shorter + longer > max_tokens:
        shorter = max_tokens // 2
        longer = shorter + max_tokens % 2
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def window_ranges(length: int, capacity: int, stride: int, side: str) -> list[tuple[int, int]]:
    """Return the tokens [start, stop) of each window, whose neighbours share `stride` tokens.

    With the truncation side "right" the first window begins at the first token; with "left" the
    last one ends at the last token, as windows of the tokenizers library do.

    Args:
        length: the tokens of the text.
        capacity: the most tokens in a window, more than `stride`.
        stride: the tokens that neighbours share.
        side: "right" or "left".
    """
    if length <= capacity:
        return [(0, length)]
    ranges = []
    for start in range(0, length - stride, capacity - stride):
        ranges.append((start, min(start + capacity, length)))
    if side == "right":
        return ranges
    return [(length - stop, length - start) for start, stop in reversed(ranges)]
