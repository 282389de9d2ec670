"""Token ids from a cache of the pieces of texts, for byte-level BPE with GPT-2's pattern, as
ModernBERT has.

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

_MAX_PIECES, _MAX_CHARS = 1 << 16, 64
"""The most pieces that are kept, some 15 MB, and the most characters of one."""
_NON_ASCII = "\x80-\U0010ffff"
_PIECE = re.compile(
    rf"'(?:[stmd]|re|ve|ll)(?:(?=[{_NON_ASCII}])\S+)?| ?[A-Za-z]++(?![{_NON_ASCII}])| "
    rf"?[0-9]++(?![{_NON_ASCII}])"
    rf"| ?[^\sA-Za-z0-9{_NON_ASCII}]++(?![{_NON_ASCII}])| ?\S+|\s+(?!\S)|\s+"
)
"""GPT-2's pattern where it meets ASCII alone. What touches another character is one piece up to the
next space, and the library cuts it. A piece is encoded alike whatever surrounds it: each ends
before ASCII or a space, and NFC composes neither with what is to their left.
"""
_UNCERTAIN = re.compile(
    "[\x1c-\x1f\x85\u037e\u1680\u180e\u1fef\u2000-\u200a\u2028\u2029\u202f\u205f\u212a\u3000]"
)
"""Characters that are spaces for `re` or for the library but not for both in all versions, and
those that NFC makes
ASCII: they could complete an added token.
"""
_AFFECTED = 4
"""Pieces at the end of a stretch that may be cut otherwise in the whole text."""
_BYTE_LEVEL = {
    code: chr(code if 33 <= code <= 126 else 289 if code == 127 else 256 + code)
    for code in range(128)
}
"""How the vocabulary spells ASCII: printable characters as themselves, the others from U+0100 on.
"""


class PieceCache:
    """The ids of pieces of text, made when they are first seen.

    Threads may share it. Use `for_tokenizer`, which knows for which tokenizers its ids are right.
    """

    def __init__(self, fast: FastTokenizer):
        self._fast, self._model = fast, fast.model
        self._ids: dict[str, tuple[int, ...]] = {}
        contents = [token.content for token in fast.get_added_tokens_decoder().values()]
        shortest = [
            one for one in contents if not any(other in one for other in contents if other != one)
        ]
        self._added = re.compile("|".join(map(re.escape, shortest))) if contents else None
        self._overhang = max(map(len, contents), default=0)

    @classmethod
    def for_tokenizer(cls, fast: FastTokenizer) -> PieceCache | None:
        """Return a cache, or None for a tokenizer that cuts, normalises or encodes in another
        way.
        """
        cutter, added = fast.pre_tokenizer, fast.get_added_tokens_decoder().values()
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
        cut = [self._cut(text, max_chars) for text in texts]
        found = [None if pieces is None else list(map(self._ids.get, pieces)) for pieces in cut]
        new = {
            piece: ()
            for pieces, ids in zip(cut, found, strict=True)
            if pieces is not None and ids is not None and None in ids
            for piece, known in zip(pieces, ids, strict=True)
            if known is None
        }
        encoded = {piece: self._encode(piece) for piece in new}
        out: list[list[int] | None] = []
        for text, pieces, ids in zip(texts, cut, found, strict=True):
            if pieces is None or ids is None:
                out.append(None)
                continue
            known_ids = [
                encoded[piece] if known is None else known
                for piece, known in zip(pieces, ids, strict=True)
            ]
            tokens = list(chain.from_iterable(known_ids))
            out.append(tokens if len(text) <= max_chars or len(tokens) > max_tokens else None)
        self._keep(encoded)
        return out

    def _cut(self, text: str, max_chars: int) -> list[str] | None:
        """Cut a text into pieces, or the beginning of a long one; None if they may not be the
        library's.
        """
        seen = text[: max_chars + self._overhang]
        if (self._added and self._added.search(seen)) or _UNCERTAIN.search(seen):
            return None
        pieces = _PIECE.findall(text[:max_chars])
        return pieces if len(text) <= max_chars else pieces[:-_AFFECTED]

    def _encode(self, piece: str) -> tuple[int, ...]:
        if piece.isascii():
            return tuple(token.id for token in self._model.tokenize(piece.translate(_BYTE_LEVEL)))
        return tuple(self._fast.encode(piece, add_special_tokens=False).ids)

    def _keep(self, encoded: dict[str, tuple[int, ...]]) -> None:
        kept = {piece: ids for piece, ids in encoded.items() if len(piece) <= _MAX_CHARS}
        if len(self._ids) + len(kept) > _MAX_PIECES:
            self._ids = {}
        if len(kept) <= _MAX_PIECES:
            self._ids.update(kept)
