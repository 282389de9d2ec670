"""The checkpoint's own tokenizer.json on the `tokenizers` library: text in, ids with special tokens out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from modernbert.checkpoint import CheckpointError

Text = str | tuple[str, str]
"""A text or a pair of texts."""
_CHARS_PER_TOKEN = 12  # a long text is first tried cut to this many characters for each token wanted
_MARGIN_WORDS = 8  # words before such a cut whose tokens may depend on what was cut off


@dataclass(frozen=True)
class Encoded:
    """The ids of some texts, laid end to end: a packed batch, and an Arrow list column."""

    input_ids: np.ndarray
    """(T,) int32"""
    cu_seqlens: np.ndarray
    """(B+1,) int64"""
    truncated: np.ndarray
    """(B,) bool: tokens were cut off"""


class Tokenizer:
    """Encodes as transformers' fast tokenizer does on the same file, without its per-text overhead."""

    def __init__(self, fast: FastTokenizer, model_max_length: int | None = None):
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self.model_max_length = model_max_length
        """What the checkpoint says of the longest input, in tokens; None where it says nothing."""

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of the checkpoint in `folder`; CheckpointError where tokenizer.json is missing or broken."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks tokenizer.json, the one form of tokenizer that is read")
        try:
            fast = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error
        settings = folder / "tokenizer_config.json"
        longest = json.loads(settings.read_text()).get("model_max_length") if settings.is_file() else None
        return cls(fast, int(longest) if longest and longest < 1e9 else None)  # a huge number means "none"

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[Text], max_length: int | None = None) -> Encoded:
        """The ids of `texts` with special tokens, each at most `max_length` long, the longer of a pair cut first.

        Raises ValueError for a text that is not valid Unicode, and for a `max_length` without room for special tokens.
        """
        if max_length is None:
            encodings = self._fast.encode_batch_fast(list(texts))
        else:
            special = self._fast.num_special_tokens_to_add(is_pair=bool(texts) and isinstance(texts[0], tuple))
            if max_length <= special:
                raise ValueError(f"max_length {max_length} leaves no room: {special} of its tokens are special ones")
            self._fast.enable_truncation(max_length)
            try:
                encodings = self._encode_truncated(texts, max_length)
            finally:
                self._fast.no_truncation()
        ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return Encoded(
            input_ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
            cu_seqlens=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            truncated=np.array([bool(encoding.overflowing) for encoding in encodings], dtype=bool),
        )

    def _encode_truncated(self, texts: Sequence[Text], max_length: int) -> list[Encoding]:
        """Encode at a cost bounded by `max_length`: long texts are cut first, and encoded whole where that may show."""
        longest = max_length * _CHARS_PER_TOKEN
        cut = [i for i, text in enumerate(texts) if isinstance(text, str) and len(text) > longest]
        shortened = list(texts)
        for i in cut:
            shortened[i] = str(texts[i])[:longest]
        encodings = self._fast.encode_batch_fast(shortened)
        unsure = [i for i in cut if not _cut_is_invisible(encodings[i])]
        for i, encoding in zip(unsure, self._fast.encode_batch_fast([texts[i] for i in unsure]), strict=True):
            encodings[i] = encoding
        return encodings


def _cut_is_invisible(encoding: Encoding) -> bool:
    """Whether the tokens kept end some words before the place where the text was cut: words are encoded one by one."""
    rest = encoding.overflowing
    kept = [word for word in encoding.word_ids if word is not None]
    dropped = [word for word in rest[-1].word_ids if word is not None] if rest else []
    return bool(kept and dropped) and dropped[-1] - kept[-1] > _MARGIN_WORDS
