"""Documents to windows, by a tokenizer of the `tokenizers` library.

Shapes: D documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, NamedTuple, cast

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from modernbert.text.long_texts import CHARS_PER_TOKEN, encode_ends
from modernbert.text.pieces import DetailCache, PieceCache
from modernbert.text.windows import (
    MOST_OVERLAP,
    Text,
    TextTokens,
    WindowBudgetError,
    Windows,
    WindowsBuilder,
    longest_first,
    tokens_allowed,
    window_ranges,
)

# Encodings take more memory than ids, so that they are made for some documents at a time.
_CHARS_PER_CALL = 4 << 20
_NO_LIMIT = 1 << 62
Side = Literal["before", "behind"]
"""Where a text stands that is joined to another one."""
# Of a text whose tokens are counted: its encodings take some 200 bytes a token.
_CHARS_PER_COUNT = 1 << 16
_CUT_TOKENS = 8  # that a cut through a text may add, and more


class _CrossedCounts(NamedTuple):
    """What `encode_crossed` counts by text: its pairs, tokens that are read, and whether some are
    cut off.
    """

    pairs: int
    n_tokens: int
    truncated: bool


@dataclass(frozen=True, eq=False)
class WindowEncoder:
    """Encodes documents as the methods of `Tokenizer` with the same names say."""

    fast: FastTokenizer
    pieces: PieceCache | None
    """The ids of pieces of texts, where they are certain for `fast`."""
    details: DetailCache | None
    """The same with offsets and word ids."""
    truncation_side: str
    num_embeddings: int | None = None
    """The embeddings of the model, where it may have fewer than the tokenizer has ids."""

    def encode(
        self,
        documents: Sequence[Text],
        max_length: int | None,
        *,
        stride: int | None,
        details: bool,
        add_special_tokens: bool,
    ) -> Windows:
        """Encode documents as windows with special tokens, as `Tokenizer.encode` does."""
        pairs = bool(documents) and isinstance(documents[0], tuple)
        if any(isinstance(document, tuple) != pairs for document in documents):
            raise ValueError(
                "documents are texts and pairs of texts; encode each in a call of its own"
            )
        template = self.template(pairs)
        if not add_special_tokens:
            template = [[] for _ in template]
        builder = WindowsBuilder(template, details)
        max_tokens = _room(max_length, builder.num_special)
        # Of a document that is cut off, the tokens beyond the cut need not be known.
        needed_tokens = max_tokens if stride is None else _NO_LIMIT
        parts_of = self._iter_tokens(documents, needed_tokens, details)
        for document, parts in zip(documents, parts_of, strict=True):
            if stride is None:
                self._add_truncated(builder, document, parts, max_tokens)
            else:
                self._add_overlapping(builder, parts, max_tokens, stride)
        return builder.windows()

    def encode_words(
        self, documents: Sequence[Sequence[str]], max_length: int, *, stride: int | None
    ) -> Windows:
        """Encode lists of words, as `Tokenizer.encode_words` does."""
        builder = WindowsBuilder(self.template(pairs=False), details=True)
        max_tokens = _room(max_length, builder.num_special)
        for tokens in self._iter_words(documents):
            if stride is None:
                self._add_truncated(builder, "", (tokens,), max_tokens)
            else:
                self._add_overlapping(builder, (tokens,), max_tokens, stride)
        return builder.windows()

    def encode_crossed(
        self,
        texts: Sequence[str],
        seconds: Sequence[Sequence[str]],
        max_length: int,
        *,
        stride: int | None,
        joined: Side | None,
    ) -> Windows:
        """Encode each text with each of its second texts, as `Tokenizer.encode_crossed` does."""
        distinct = list(dict.fromkeys(chain.from_iterable(seconds)))
        encoded = self._encode_texts(distinct, _NO_LIMIT, details=False)
        tokens_of = dict(zip(distinct, encoded, strict=True))

        template = self.template(pairs=joined is None)
        if joined is not None:
            template.insert(1, [])
        builder = WindowsBuilder(template, details=False)
        counts: list[_CrossedCounts] = []
        rejected: dict[int, str] = {}
        needed_tokens = max_length if stride is None else _NO_LIMIT
        parts_of = self._iter_tokens(texts, needed_tokens, details=False)
        for document, ((text,), its_seconds) in enumerate(zip(parts_of, seconds, strict=True)):
            second_parts = [tokens_of[second] for second in its_seconds]
            rooms: list[int] = []
            for second in second_parts:
                rooms.append(max_length - builder.num_special - len(second.ids))
            reason = _lack_of_room(len(text.ids), rooms, max_length, stride)
            if reason is None:
                reason = self._refusal([text.ids, *(second.ids for second in second_parts)])
            if reason is not None:
                rejected[document] = reason
                second_parts = []
                rooms = []
            for second, room in zip(second_parts, rooms, strict=True):
                self._add_pair(builder, text, second, room, stride, joined)
            counts.append(_count_crossed(len(text.ids), rooms, builder.num_special, stride))

        # What the builder has counted by pair is counted by text.
        windows = builder.windows()
        text_of_pair = np.repeat(np.arange(len(texts)), [each.pairs for each in counts])
        return replace(
            windows,
            document=text_of_pair[windows.document],
            n_tokens=np.array([each.n_tokens for each in counts], dtype=np.int32),
            truncated=np.array([each.truncated for each in counts], dtype=bool),
            rejected=rejected,
        )

    def template(self, pairs: bool) -> list[list[int]]:
        """Return the special ids before the first text and behind each text.

        They are those of an encoded example, whatever adds them.
        """
        example = self.fast.encode("a", "a" if pairs else None)
        template: list[list[int]] = [[]]
        last_text = None
        for token, text in zip(example.ids, example.sequence_ids, strict=True):
            if text is None:
                template[-1].append(token)
            elif text != last_text:
                template.append([])
                last_text = text
        return template

    def _iter_tokens(
        self, documents: Sequence[Text], max_tokens: int, details: bool
    ) -> Iterator[tuple[TextTokens, ...]]:
        """Yield the tokens of each document's texts, encoded for some documents at a time."""
        start = 0
        num_chars = 0
        for stop, document in enumerate(documents, 1):
            num_chars += len(document) if isinstance(document, str) else sum(map(len, document))
            if num_chars < _CHARS_PER_CALL and stop < len(documents):
                continue
            chunk = documents[start:stop]
            columns = [cast("Sequence[str]", chunk)]
            if isinstance(document, tuple):
                pairs = cast("Sequence[tuple[str, str]]", chunk)
                columns = [[first for first, _ in pairs], [second for _, second in pairs]]
            if max_tokens == _NO_LIMIT:
                for texts in columns:
                    self._check_budget(texts)
            encoded = [self._encode_texts(texts, max_tokens, details) for texts in columns]
            yield from zip(*encoded, strict=True)
            start = stop
            num_chars = 0

    def _check_budget(self, texts: Sequence[str]) -> None:
        """Raise WindowBudgetError for a text of which windows would hold more than is allowed,
        before all of it is encoded.
        """
        allowed = tokens_allowed()
        for text in texts:
            # A token stands for a byte at least.
            if len(text) * 4 <= allowed or len(text.encode("utf-8", "replace")) <= allowed:
                continue
            tokens = 0
            for start in range(0, len(text), _CHARS_PER_COUNT):
                piece = text[start : start + _CHARS_PER_COUNT]
                (encoding,) = self.fast.encode_batch_fast([piece], add_special_tokens=False)
                tokens += len(encoding) - _CUT_TOKENS
                if tokens > allowed:
                    raise WindowBudgetError(f"a text has more than {allowed:,} tokens")

    def _iter_words(self, documents: Sequence[Sequence[str]]) -> Iterator[TextTokens]:
        """Yield the tokens of each list of words, encoded for some lists at a time."""
        start = 0
        num_chars = 0
        for stop, words in enumerate(documents, 1):
            num_chars += sum(map(len, words))
            if num_chars < _CHARS_PER_CALL and stop < len(documents):
                continue
            chunk = [list(each) for each in documents[start:stop]]
            encodings = self.fast.encode_batch(
                chunk, is_pretokenized=True, add_special_tokens=False
            )
            for encoding in encodings:
                yield TextTokens.from_encoding(encoding, details=True)
            start = stop
            num_chars = 0

    def _encode_texts(
        self, texts: Sequence[str], max_tokens: int, details: bool
    ) -> list[TextTokens]:
        """Encode without special tokens; the `max_tokens` tokens that truncation keeps are right.

        The cost is bounded by `max_tokens`: of a long text, more tokens may be missing.
        """
        # The cache of pieces reads a text from its beginning.
        keeps_beginning = self.truncation_side == "right" or max_tokens == _NO_LIMIT
        found: list[TextTokens | None] = [None] * len(texts)
        max_chars = max_tokens * CHARS_PER_TOKEN
        if details and self.details is not None and keeps_beginning:
            found = [self.details.encode_detailed(text, max_tokens, max_chars) for text in texts]
        elif not details and self.pieces is not None and keeps_beginning:
            ids_of = [self.pieces.encode(text, max_tokens, max_chars) for text in texts]
            found = [None if ids is None else TextTokens(ids, [], []) for ids in ids_of]
        uncertain = [text for text, tokens in zip(texts, found, strict=True) if tokens is None]
        encodings = iter(
            encode_ends(self.fast, uncertain, max_tokens, self.truncation_side, details)
        )
        return [tokens or TextTokens.from_encoding(next(encodings), details) for tokens in found]

    def _add_truncated(
        self,
        builder: WindowsBuilder,
        document: Text,
        parts: Sequence[TextTokens],
        max_tokens: int,
    ) -> None:
        """Add the only window of a document, whose other tokens are cut off."""
        lengths = [len(part.ids) for part in parts]
        kept = lengths
        if sum(lengths) > max_tokens:
            whole_lengths = self._whole_lengths(document, lengths, max_tokens)
            kept = longest_first(whole_lengths, max_tokens)
        ranges = []
        for n_kept, length in zip(kept, lengths, strict=True):
            ranges.append(self._kept_range(n_kept, length))
        kept_ids = [part.ids[start:stop] for part, (start, stop) in zip(parts, ranges, strict=True)]
        if reason := self._refusal(kept_ids):
            builder.reject(reason)
            return
        first_of_last_text = ranges[-1][0]
        builder.add(parts, ranges, first_of_last_text)
        builder.finish(sum(kept), truncated=kept != lengths)

    def _whole_lengths(self, document: Text, lengths: list[int], max_tokens: int) -> list[int]:
        """Return the tokens of a document's texts as far as `longest_first` depends on them.

        `lengths` may be those of texts that were cut, in another order than those of the texts. The
        order counts where both texts keep half of `max_tokens`: the longer one keeps an odd token.
        """
        if isinstance(document, str) or max_tokens % 2 == 0 or min(lengths) <= max_tokens // 2:
            return lengths
        if max(map(len, document)) <= max_tokens * CHARS_PER_TOKEN:
            return lengths
        whole = self._encode_texts(document, _NO_LIMIT, details=False)
        return [len(tokens.ids) for tokens in whole]

    def _add_overlapping(
        self, builder: WindowsBuilder, parts: Sequence[TextTokens], max_tokens: int, stride: int
    ) -> None:
        """Add the windows of a document, or reject it where they have no room for new tokens."""
        *first_lengths, last_length = [len(part.ids) for part in parts]
        all_tokens = sum(first_lengths) + last_length
        capacity = max_tokens - sum(first_lengths)
        if capacity <= stride and all_tokens > max_tokens:
            detail = f"windows have room for {max_tokens} tokens"
            if first_lengths:
                detail = f"its first text has {first_lengths[0]} tokens"
            builder.reject(f"too long for overlapping windows: {detail}, and {stride} are shared")
            return
        if reason := self._refusal([part.ids for part in parts]):
            builder.reject(reason)
            return
        whole_ranges = [(0, length) for length in first_lengths]
        for start, stop in window_ranges(last_length, capacity, stride, self.truncation_side):
            builder.add(parts, [*whole_ranges, (start, stop)], start)
        builder.finish(all_tokens, truncated=False)

    def _add_pair(
        self,
        builder: WindowsBuilder,
        text: TextTokens,
        second: TextTokens,
        room: int,
        stride: int | None,
        joined: Side | None,
    ) -> None:
        """Add the windows of a text with a whole second one; each has `room` for tokens of the
        text.
        """
        length = len(text.ids)
        whole = (0, len(second.ids))
        if stride is None:
            ranges = [self._kept_range(room, length)]
        else:
            ranges = window_ranges(length, room, stride, self.truncation_side)
        for start, stop in ranges:
            if joined == "before":
                builder.add((second, text), [whole, (start, stop)], start)
            else:
                builder.add((text, second), [(start, stop), whole], start)
        builder.finish(length, truncated=False)

    def _refusal(self, ids_of_texts: Iterable[Sequence[int]]) -> str | None:
        """Return the reason why the model cannot read the tokens of a document, or None."""
        if self.num_embeddings is None:
            return None
        largest = max(chain.from_iterable(ids_of_texts), default=0)
        if largest < self.num_embeddings:
            return None
        token = self.fast.id_to_token(largest)
        return (
            f"holds the token {token!r}, whose id is {largest}: the model has embeddings for"
            f" {self.num_embeddings} ids"
        )

    def _kept_range(self, kept: int, length: int) -> tuple[int, int]:
        """Return the tokens [start, stop) that stay of `length`, at most `kept`."""
        kept = min(kept, length)
        return (0, kept) if self.truncation_side == "right" else (length - kept, length)


def _room(max_length: int | None, num_special: int) -> int:
    """Return the tokens of texts in a window; ValueError where special tokens leave none."""
    if max_length is None:
        return _NO_LIMIT
    if max_length <= num_special:
        raise ValueError(
            f"max_length {max_length} leaves no room: {num_special} of its tokens are special ones"
        )
    return max_length - num_special


def _lack_of_room(
    length: int, rooms: Sequence[int], max_length: int, stride: int | None
) -> str | None:
    """Return why a text of `length` tokens cannot be read beside its second texts, or None.

    `rooms`: the tokens of the text that a window has room for beside each of them.
    """
    # A window has room for a token of the text; overlapping ones for enough new tokens, too.
    least_room = 1 if stride is None else stride + -(-max_length // MOST_OVERLAP)
    smallest_room = min(rooms, default=length)
    if length <= smallest_room or smallest_room >= least_room:
        return None
    return (
        f"too long: what is read beside it leaves {max(smallest_room, 0)} of {max_length}"
        f" tokens to it; {least_room} are needed"
    )


def _count_crossed(
    length: int, rooms: Sequence[int], num_special: int, stride: int | None
) -> _CrossedCounts:
    """Count the pairs of a text of `length` tokens, which have `rooms` for it."""
    if not rooms:
        return _CrossedCounts(pairs=0, n_tokens=0, truncated=False)
    if stride is not None:
        return _CrossedCounts(len(rooms), length + num_special, truncated=False)
    most_kept = min(length, max(rooms))
    is_cut_off = length > min(rooms)
    return _CrossedCounts(len(rooms), most_kept + num_special, truncated=is_cut_off)
