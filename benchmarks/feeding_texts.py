"""Texts as they are written, of which `benchmarks/feeding.py` measures tokenising: each with its whitespace."""

from __future__ import annotations

import random
import re
import sysconfig
from itertools import accumulate
from pathlib import Path

CHARS = 1_000_000
"""The characters of each kind of text, about."""


def kinds_of_texts(paragraphs: list[str]) -> dict[str, list[str]]:
    """Return texts by their kind.

    Chinese and Thai are made of words that come as often as words of a language do, without spaces between them:
    there is no corpus of either on every machine.

    Args:
        paragraphs: prose, single-spaced.
    """
    dice = random.Random(0)
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts]
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    dice.shuffle(sources)
    docstrings: list[str] = []
    for source in sources:
        docstrings += [
            text for text in re.findall(r'"""(.*?)"""', source, re.DOTALL) if text.strip()
        ]
    han = [chr(code) for code in range(0x4E00, 0x5A00)]
    thai = [
        chr(code) for code in (*range(0xE01, 0xE2F), *range(0xE30, 0xE3A), *range(0xE40, 0xE4A))
    ]
    return {
        "prose": _some(paragraphs),
        "two spaces after a sentence": _some([text.replace(". ", ".  ") for text in paragraphs]),
        "docstrings as written": _some(docstrings),
        "source files": _some(sources),
        "Chinese": _some(_sentences(dice, han, word=(1, 4), end="，。")),
        "Thai": _some(_sentences(dice, thai, word=(2, 6), end=" ")),
    }


def _some(texts: list[str]) -> list[str]:
    """Return the first texts, of about CHARS characters."""
    some: list[str] = []
    chars = 0
    for text in texts:
        some.append(text)
        chars += len(text)
        if chars > CHARS:
            break
    return some


def _sentences(
    dice: random.Random, alphabet: list[str], word: tuple[int, int], end: str
) -> list[str]:
    words = ["".join(dice.choices(alphabet, k=dice.randint(*word))) for _ in range(30_000)]
    cumulated = list(accumulate(1 / rank for rank in range(2, len(words) + 2)))
    texts = []
    for _ in range(4000):
        phrases = []
        for _ in range(dice.randint(3, 14)):
            phrases.append(
                "".join(dice.choices(words, cum_weights=cumulated, k=dice.randint(4, 12)))
            )
            phrases.append(dice.choice(end))
        texts.append("".join(phrases))
    return texts
