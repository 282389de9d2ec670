"""Token ids from a cache of pieces of texts, for byte-level BPE with GPT-2's pattern (ModernBERT).

The tokenizers library spends most of its time on cutting texts and on words that it has seen
before. Here Python's `re` cuts, and the library encodes a piece once. The ids are the library's
own: a text for which that is not certain is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE

_MAX_PIECES = 1 << 16
"""The most pieces that are kept, some 15 MB."""
_MAX_CHARS = 64
"""The most characters of a piece that is kept."""
_NON_ASCII = "\x80-\U0010ffff"
_END = rf"(?![{_NON_ASCII}])"  # of a piece of ASCII: no other character touches it
_SUFFIX = rf"'(?:[stmd]|re|ve|ll)(?:(?=[{_NON_ASCII}])\S+)?"
_LETTERS = rf" ?[A-Za-z]++{_END}"
_DIGITS = rf" ?[0-9]++{_END}"
_PUNCTUATION = rf" ?[^\sA-Za-z0-9{_NON_ASCII}]++{_END}"
_ANY_OTHER = r" ?\S+"
_SPACES = r"\s+(?!\S)|\s+"
_PIECE = re.compile("|".join([_SUFFIX, _LETTERS, _DIGITS, _PUNCTUATION, _ANY_OTHER, _SPACES]))
"""GPT-2's pattern where it meets ASCII alone. What touches another character is one piece up to the
next space, and the library cuts it. A piece is encoded alike whatever surrounds it: each ends
before ASCII or a space, and NFC composes neither with what is to their left.
"""
_UNCERTAIN = re.compile(
    "[\x1c-\x1f\x85\u037e\u1680\u180e\u1fef\u2000-\u200a\u2028\u2029\u202f\u205f\u212a\u3000]"
)
"""Characters that are spaces for `re` or for the library but not for both in all versions, and
those that NFC makes ASCII: they could complete an added token.
"""
_AFFECTED = 4
"""Pieces at the end of a stretch that may be cut otherwise in the whole text."""


def _byte_level_spelling(code: int) -> str:
    """Return how the vocabulary spells an ASCII character: printable ones as themselves."""
    if 33 <= code <= 126:
        return chr(code)
    if code == 127:
        return chr(289)
    return chr(256 + code)


_BYTE_LEVEL = {code: _byte_level_spelling(code) for code in range(128)}


class PieceCache:
    """The ids of pieces of text, made when they are first seen.

    Threads may share it. Use `for_tokenizer`, which knows for which tokenizers its ids are right.
    """

    def __init__(self, fast: FastTokenizer):
        self._fast = fast
        self._model = fast.model
        self._ids: dict[str, tuple[int, ...]] = {}
        # A text with an added token is left to the library, which cuts there before all else.
        # Where a token holds another one, finding the shorter one is enough.
        contents = [token.content for token in fast.get_added_tokens_decoder().values()]
        shortest = []
        for content in contents:
            if not any(other in content for other in contents if other != content):
                shortest.append(re.escape(content))
        self._added = re.compile("|".join(shortest)) if contents else None
        self._overhang = max(map(len, contents), default=0)

    @classmethod
    def for_tokenizer(cls, fast: FastTokenizer) -> PieceCache | None:
        """Return a cache; None for a tokenizer that cuts, normalises or encodes otherwise."""
        cutter = fast.pre_tokenizer
        added = fast.get_added_tokens_decoder().values()
        fits = (
            isinstance(fast.model, BPE)
            and not fast.model.dropout
            and isinstance(cutter, pre_tokenizers.ByteLevel)
            and cutter.use_regex
            and not cutter.add_prefix_space
            and (fast.normalizer is None or isinstance(fast.normalizer, normalizers.NFC))
            and all(token.content and token.content.isascii() for token in added)
        )
        return cls(fast) if fits else None

    def encode(
        self, texts: Sequence[str], max_tokens: int, max_chars: int
    ) -> list[list[int] | None]:
        """Return the ids of each text without special tokens, or None where they are not certain.

        Of a text longer than `max_chars` only the first characters are encoded: more than
        `max_tokens` ids, or None.
        """
        # The cache is read once for each piece: another thread may empty it at any time.
        pieces_of = [self._cut(text, max_chars) for text in texts]
        cached_of: list[list[tuple[int, ...] | None]] = []
        encoded: dict[str, tuple[int, ...]] = {}
        for pieces in pieces_of:
            cached = list(map(self._ids.get, pieces or ()))
            cached_of.append(cached)
            if pieces is not None and None in cached:
                for piece, ids in zip(pieces, cached, strict=True):
                    if ids is None and piece not in encoded:
                        encoded[piece] = self._encode_piece(piece)

        tokens_of: list[list[int] | None] = []
        for text, pieces, cached in zip(texts, pieces_of, cached_of, strict=True):
            if pieces is None:
                tokens_of.append(None)
                continue
            ids_of_pieces = [
                encoded[piece] if ids is None else ids
                for piece, ids in zip(pieces, cached, strict=True)
            ]
            tokens = list(chain.from_iterable(ids_of_pieces))
            is_whole = len(text) <= max_chars
            tokens_of.append(tokens if is_whole or len(tokens) > max_tokens else None)
        self._keep(encoded)
        return tokens_of

    def _cut(self, text: str, max_chars: int) -> list[str] | None:
        """Cut a text, or the beginning of a long one, into pieces; None where the library might
        cut otherwise.
        """
        beginning = text[: max_chars + self._overhang]
        if self._added and self._added.search(beginning):
            return None
        if _UNCERTAIN.search(beginning):
            return None
        pieces = _PIECE.findall(text[:max_chars])
        return pieces if len(text) <= max_chars else pieces[:-_AFFECTED]

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        if piece.isascii():
            tokens = self._model.tokenize(piece.translate(_BYTE_LEVEL))
            return tuple(token.id for token in tokens)
        return tuple(self._fast.encode(piece, add_special_tokens=False).ids)

    def _keep(self, encoded: dict[str, tuple[int, ...]]) -> None:
        kept = {piece: ids for piece, ids in encoded.items() if len(piece) <= _MAX_CHARS}
        if len(self._ids) + len(kept) > _MAX_PIECES:
            self._ids = {}
        if len(kept) <= _MAX_PIECES:
            self._ids.update(kept)
