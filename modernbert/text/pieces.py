"""Token ids from a cache of pieces of texts, for byte-level BPE with GPT-2's pattern (ModernBERT).

The tokenizers library spends most of its time on cutting texts and on words that it has seen
before. Here Python's `re` cuts at whitespace, and a word is encoded once. The ids are the library's
own: a text for which that is not certain, or not faster, is left to it.
"""

from __future__ import annotations

import re
from array import array
from typing import Self

import numpy as np
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from modernbert.text.windows import TextTokens

MAX_BYTES = 32_000_000
"""The most memory that each of the caches takes, all included."""
_MAX_CHARS = 64
"""The most characters of a piece that is kept."""
_ENTRY_BYTES = 208
"""What a piece and its ids take beside their content, 96 of them in a dictionary that grows."""
_ROW = 4
"""Numbers of a token in `DetailCache`."""
_LONGEST_WORDS = 16
"""The characters a space from which on words do not come again (Chinese, Thai)."""

_SPACE = r"[ \t-\r\xa0]"
_NO_SPACE = r"[^ \t-\r\xa0]"
_PARTS = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^ A-Za-z0-9]+")
"""GPT-2's pattern within a word of printable ASCII."""
_ODD = frozenset(
    "\x1c\x1d\x1e\x1f\x85\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000\u037e\u1fef\u212a"
)
"""Characters beside which a text is cut otherwise: those that only some take for spaces, and the
last three, which NFC makes ASCII, so that they could complete an added token.
"""


class PieceCache(dict[str, bytes]):
    """The ids of pieces of text, encoded when they are first looked up.

    A piece is a word with the space before it, or whitespace. It is encoded alike whatever
    surrounds it: GPT-2's pattern cuts a text at both of its ends, and NFC composes nothing with
    whitespace.

    Threads may share it. Use `for_tokenizer`, which knows for which tokenizers its ids are right.
    """

    def __init__(self, fast: FastTokenizer, longest_run: int, added: list[str]):
        """Start without pieces.

        Args:
            fast: the tokenizer.
            longest_run: the runs of two spaces to this many are added tokens; 0: none are.
            added: the other added tokens, without whitespace, so that each is within a word.
        """
        super().__init__()
        self._fast = fast
        self._model = fast.model
        self._bytes = 0
        self._uncertain = re.compile("|".join([*_ODD, *map(re.escape, added)]))
        self._begin_uncertain = _ODD.union(content[0] for content in added)
        word = f" ?{_NO_SPACE}+"
        runs = []
        space = _SPACE
        if longest_run:
            # The library takes runs out of a text before it cuts, from the left.
            runs = [f" {{2,{longest_run}}}"]
            space = f"(?:(?!  ){_SPACE})"
        self._piece = re.compile("|".join([word, *runs, f"{space}+(?!{_NO_SPACE})", f"{space}+"]))

    @classmethod
    def for_tokenizer(cls, fast: FastTokenizer) -> Self | None:
        """Return a cache; None for a tokenizer that cuts, normalises or encodes otherwise."""
        cutter = fast.pre_tokenizer
        added = list(fast.get_added_tokens_decoder().values())
        runs = {len(token.content) for token in added if _is_run(token)}
        others = [token.content for token in added if not _is_run(token)]
        longest_run = max(runs, default=0)
        fits = (
            isinstance(fast.model, BPE)
            and not fast.model.dropout
            and isinstance(cutter, pre_tokenizers.ByteLevel)
            and cutter.use_regex
            and not cutter.add_prefix_space
            and (fast.normalizer is None or isinstance(fast.normalizer, normalizers.NFC))
            and runs == set(range(2, longest_run + 1))
            and all(re.fullmatch("[!-~]+", content) for content in others)
        )
        return cls(fast, longest_run, others) if fits else None

    def encode(self, text: str, max_tokens: int, max_chars: int) -> list[int] | None:
        """Return the ids of a text without special tokens, or None to leave it to the library.

        Of a text longer than `max_chars` only the first characters are encoded: more than
        `max_tokens` ids, or None.
        """
        pieces = self.cut(text, max_chars)
        if pieces is None:
            return None
        try:
            ids = b"".join(map(self.__getitem__, pieces))
        except UncertainError:
            return None
        tokens: list[int] = np.frombuffer(ids, np.int32).tolist()
        return tokens if len(text) <= max_chars or len(tokens) > max_tokens else None

    def cut(self, text: str, max_chars: int) -> list[str] | None:
        """Return the pieces of a text's first characters, of whole words; None where the library is
        faster.
        """
        is_whole = len(text) <= max_chars
        beginning = text if is_whole else text[:max_chars]
        if not beginning.isascii() and len(beginning) > _LONGEST_WORDS * beginning.count(" "):
            return None
        pieces: list[str] = self._piece.findall(beginning)
        if not is_whole:
            _drop_last_word(pieces)
        return pieces

    def check(self, piece: str) -> None:
        """Raise UncertainError for a piece that holds, or completes, an added token or an odd
        space.
        """
        if not self._begin_uncertain.isdisjoint(piece) and self._uncertain.search(piece):
            raise UncertainError

    def __missing__(self, piece: str) -> bytes:
        self.check(piece)
        if not piece.isascii() or not piece.isprintable() or piece.isspace():
            encoding = self._fast.encode_batch_fast([piece], add_special_tokens=False)[0]
            ids = array("i", encoding.ids).tobytes()
        else:
            parts = _PARTS.findall(piece)
            if len(parts) > 1:
                ids = b"".join(map(self.__getitem__, parts))
            else:
                # Bytes are spelled as these characters, but for the space.
                tokens = self._model.tokenize(piece.replace(" ", "Ġ"))
                ids = array("i", [token.id for token in tokens]).tobytes()
        if len(piece) <= _MAX_CHARS:
            self._keep(piece, ids)
        return ids

    def _keep(self, piece: str, ids: bytes) -> None:
        size = _ENTRY_BYTES + 4 * len(piece) + len(ids)
        if self._bytes + size > MAX_BYTES:
            self.clear()
            self._bytes = 0
        self._bytes += size
        self[piece] = ids


class DetailCache(PieceCache):
    """What `PieceCache` has, with where each token is in its piece, and in which of its words.

    For each token there are four numbers of 32 bits: its id, its first character, that after its
    last one, and the word.
    """

    @classmethod
    def for_tokenizer(cls, fast: FastTokenizer) -> Self | None:
        """Return a cache; None where `PieceCache` has none, where a post-processor may trim
        offsets, or where bytes may have no token.
        """
        has_all_bytes = all(
            fast.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet()
        )
        keeps_offsets = isinstance(fast.post_processor, processors.TemplateProcessing)
        return super().for_tokenizer(fast) if has_all_bytes and keeps_offsets else None

    def encode_detailed(self, text: str, max_tokens: int, max_chars: int) -> TextTokens | None:
        """Encode a text as `encode` does, with offsets and word ids."""
        pieces = self.cut(text, max_chars)
        if pieces is None:
            return None
        try:
            found = list(map(self.__getitem__, pieces))
        except UncertainError:
            return None
        rows = np.frombuffer(b"".join(found), np.int32).reshape(-1, _ROW)
        if len(text) > max_chars and len(rows) <= max_tokens:
            return None
        if not pieces:
            return TextTokens([], [], [])
        tokens = np.fromiter(map(len, found), np.int64, len(found)) // (4 * _ROW)
        chars = np.fromiter(map(len, pieces), np.int64, len(pieces))
        words = rows[np.cumsum(tokens) - 1, 3].astype(np.int64) + 1
        starts, first_words = (np.repeat(np.cumsum(n) - n, tokens) for n in (chars, words))
        offsets = rows[:, 1:3] + starts[:, None]
        word_ids = rows[:, 3] + first_words
        return TextTokens(rows[:, 0].tolist(), offsets, word_ids)

    def __missing__(self, piece: str) -> bytes:
        self.check(piece)
        rows = array("i")
        if not piece.isascii() or not piece.isprintable() or piece.isspace():
            encoding = self._fast.encode_batch([piece], add_special_tokens=False)[0]
            for id_, (start, stop), word in zip(
                encoding.ids, encoding.offsets, encoding.word_ids, strict=True
            ):
                if word is None:
                    raise UncertainError
                rows.extend((id_, start, stop, word))
        else:
            start = 0
            for word, part in enumerate(_PARTS.findall(piece)):
                for token in self._model.tokenize(part.replace(" ", "Ġ")):
                    stop = start + len(token.value)
                    rows.extend((token.id, start, stop, word))
                    start = stop
        found = rows.tobytes()
        if len(piece) <= _MAX_CHARS:
            self._keep(piece, found)
        return found


class UncertainError(Exception):
    """A text has a piece whose ids, or those of its neighbours, depend on what surrounds it."""


def _is_run(token: AddedToken) -> bool:
    """Return whether an added token is a run of spaces, and found wherever that is."""
    has_conditions = token.lstrip or token.rstrip or token.single_word or token.special
    return set(token.content) == {" "} and not has_conditions


def _drop_last_word(pieces: list[str]) -> None:
    """Remove what may be otherwise in the whole text from the end of a part: the last word, and the
    whitespace on both sides of it, which may belong to an added token.
    """
    while pieces and pieces[-1].isspace():
        pieces.pop()
    if pieces:
        pieces.pop()
    while pieces and pieces[-1].isspace():
        pieces.pop()
