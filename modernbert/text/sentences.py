"""Chunks: stretches of a text with at most so many tokens, cut at ends of sentences.

Shapes: T tokens, K tokens that are not blank.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CLOSING = "\"'”’»)\\]」』）】"
_SENTENCE_END = re.compile(
    rf"(?<![.!?…])[.!?…]++[{_CLOSING}]*+(?=\s)|[。！？｡]++[{_CLOSING}]*+|\n[^\S\n]*+\n"
)
"""A sentence ends at a full stop, a question mark, an exclamation mark or an ellipsis before white
space, and at those of Chinese and Japanese, with the quotes and brackets that close behind them;
and at an empty line.
"""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Chunking:
    """How texts become chunks."""

    tokens: int
    """The most tokens of a chunk, special tokens and those of the prompt aside."""
    overlap: int
    """The most tokens that a chunk shares with the one before it; at most half of `tokens`."""
    prompt: str
    """What is put before each text, or before each chunk that is read by itself."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of a text."""

    tokens: list[tuple[int, int]]
    """The tokens [first, stop) of each; starts and stops both grow from chunk to chunk."""
    characters: list[tuple[int, int]]
    """The characters [start, end) of each."""


def cut(text: str, offsets: np.ndarray, chunking: Chunking) -> Chunks:
    """Cut a text, which begins with the prompt, into chunks.

    A chunk takes as many whole sentences as its tokens allow. Of a sentence that is longer it takes
    whole words, of a word that is longer whole characters. The next chunk begins behind it or, with
    an overlap, with the last whole sentences of it that this allows (or else the last words): no
    more of them than leave the next sentence room, where it begins one. White space around a chunk
    is no part of it.

    `offsets`: (T, 2), the characters of each token. The characters of chunks count from the end of
    the prompt.
    """
    begin = len(chunking.prompt)
    words = np.array([match.span() for match in _WORD.finditer(text, begin)], np.int64)
    if not len(words):
        return Chunks([], [])
    # A token stands where its first character that is no space does; tokens of spaces alone are in
    # no chunk but between two other tokens of it.
    word_T = np.searchsorted(words[:, 1], offsets[:, 0], side="right")
    is_inside_T = (offsets[:, 1] > begin) & (word_T < len(words))
    place_T = np.maximum(offsets[:, 0], words[np.minimum(word_T, len(words) - 1), 0])
    solid_K = np.flatnonzero(is_inside_T & (place_T < offsets[:, 1]))
    if not len(solid_K):
        return Chunks([], [])
    place_K = np.maximum.accumulate(place_T[solid_K])

    sentences = [match.end() for match in _SENTENCE_END.finditer(text, begin)]
    units = [
        _last_tokens(np.searchsorted(sentences, place_K, side="right")),
        _last_tokens(np.searchsorted(words[:, 0], place_K, side="right")),
        _last_tokens(place_K),
    ]
    ranges = _ranges(solid_K.tolist(), units, chunking)
    tokens: list[tuple[int, int]] = []
    characters: list[tuple[int, int]] = []
    places = [*place_K.tolist(), len(text)]
    places[0] = int(words[0, 0])
    for first, last in ranges:
        start = places[first]
        end = start + len(text[start : places[last + 1]].rstrip())
        tokens.append((int(solid_K[first]), int(solid_K[last]) + 1))
        characters.append((start - begin, end - begin))
    return Chunks(tokens, characters)


def _ranges(
    tokens: Sequence[int], units: Sequence[Sequence[int]], chunking: Chunking
) -> list[tuple[int, int]]:
    """Return the first and the last of each chunk, as indices of `tokens` (K,).

    `tokens`: the numbers of the tokens that are not blank. `units`: the indices that end a
    sentence, a word and a character.
    """
    ranges: list[tuple[int, int]] = []
    first = 0
    before = -1
    while before < len(tokens) - 1:
        limit = bisect_right(tokens, tokens[first] + chunking.tokens - 1) - 1
        last = _last_end(units, before, limit)
        if last is None and first <= before:  # the overlap leaves no room
            first = before + 1
            continue
        if last is None:  # a character of more tokens than a chunk
            characters = units[-1]
            last = characters[bisect_left(characters, first)]
        ranges.append((first, last))
        if last < len(tokens) - 1:
            first = _next_first(tokens, units, first, last, chunking)
        before = last
    return ranges


def _last_end(units: Sequence[Sequence[int]], before: int, limit: int) -> int | None:
    """Return the last end of a sentence behind `before` and up to `limit`, else of a word, else of
    a character.
    """
    for ends in units:
        place = bisect_right(ends, limit) - 1
        if place >= 0 and ends[place] > before:
            return ends[place]
    return None


def _next_first(
    tokens: Sequence[int],
    units: Sequence[Sequence[int]],
    first: int,
    last: int,
    chunking: Chunking,
) -> int:
    """Return where the chunk behind [first, last] begins."""
    sentences, words, _ = units
    least_token = tokens[last] - chunking.overlap + 1
    place = bisect_left(sentences, last)
    if sentences[place] == last:  # the next sentence is not cut for what is shared
        sentence_end = sentences[place + 1]
        is_short = tokens[sentence_end] - tokens[last + 1] < chunking.tokens
        if is_short:
            least_token = max(least_token, tokens[sentence_end] - chunking.tokens + 1)
    least = max(bisect_left(tokens, least_token), first + 1)
    for ends in (sentences, words):
        place = bisect_left(ends, least - 1)
        if ends[place] < last:
            return ends[place] + 1
    return last + 1


def _last_tokens(unit_K: np.ndarray) -> list[int]:
    """Return the indices of the last token of each unit; `unit_K`: the number of each token's."""
    ends = np.flatnonzero(np.diff(unit_K)).tolist()
    return [*ends, len(unit_K) - 1]
