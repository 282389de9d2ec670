"""Several texts where a document has one: lists whose type says what they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Self


class TextList(str):
    """Several texts in one, a JSON array.

    Its type says that it is one: no text of a user's is read as JSON, and `texts` are these very
    texts, whatever characters they hold.

    Example: `TextList.of(["New\\nYork", "a, b"])` returns the text `["New\\nYork", "a, b"]`.
    """

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Return the text of `texts`."""
        return cls(json.dumps(list(texts), ensure_ascii=False))

    @property
    def texts(self) -> list[str]:
        """The texts that it was made of."""
        texts: list[str] = json.loads(self)
        return texts


class WordList(TextList):
    """A document that is split into words."""

    def cut(self, most: int) -> WordList:
        """Return its first words, of at most `most` characters together."""
        words: list[str] = []
        for word in self.texts:
            most -= len(word)
            if most < 0:
                break
            words.append(word)
        return WordList.of(words)
