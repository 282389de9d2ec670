"""The cache of pieces gives the ids of the tokenizers library, odd Unicode, added tokens and truncation included."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from checkpoints import write_tokenizer

from modernbert.text import pieces
from modernbert.text.tokenizer import Tokenizer

WORDS = (
    "the cat's it's we're they'll I'd I'm can't 'tis sat 12 3.14 =<>; K` e.g. (so) A1b2 don't' ''s"
    * 3
)
ALPHABETS = [
    "abc thecatsat.,!?  \n\u0301é中👍🏽", "  \t\r\n\x0b\x0c\x1c\x1d\x85\u00a0\u2003\u2028\u3000\u200b\u180e ab'st",
    "'s't're've'm'll'dABCsT’ \u0301\u0338=<>", "0123²½Ⅷ٣一二三 1a", "e\u0301n\u1100\u1161ﬁ\u0344 K\u212a;\u037e`\u1fef",
    "אבג\u202eعربيहिन्दी '", "[MASK] [SEP][CLS]", "\U0001f468\u200d\U0001f469\ufe0f x1", "\x00\x01\x07\x7f\x80\x9f a1'",
]  # fmt: skip
ENDS = [
    "[MASK]",
    "\n[MASK]",
    "  ",
    " " * 30,
    "'s\u0301",
    "[MAS\u212a]",
    "\u2000\u2000",
    " \u0301",
    "'s\u1b11a",
    "'re",
]


def odd_texts(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    texts = []
    for _ in range(count):
        alphabet, length = (
            dice.choice(ALPHABETS) + dice.choice(ALPHABETS),
            dice.choice((1, 3, 10, 30, 300)),
        )
        texts.append("".join(dice.choices(alphabet, k=length)))
        if dice.random() < 0.3:
            ascii_ones = dice.choices("ab 1'.s\nTre", k=length)
            others = [
                chr(dice.randrange(0x80, 0x2FFF)) if dice.random() < 0.15 else ""
                for _ in range(length)
            ]
            texts[-1] = "".join(map("".join, zip(ascii_ones, others, strict=True)))
        if dice.random() < 0.2:
            texts[-1] += dice.choice(ENDS) + texts[-1][:5]
    return texts


def split(windows):
    return np.split(windows.input_ids, windows.cu_seqlens[1:-1])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A tokenizer with the cache and one without; runs of spaces are added tokens, as in ModernBERT's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 600, WORDS)
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    content["added_tokens"] += [{"id": 600 + n, "content": " " * n, **flags} for n in range(2, 10)]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    cached, plain = Tokenizer.from_folder(folder), Tokenizer.from_folder(folder)
    assert cached._pieces
    plain._pieces = None
    return cached, plain


@pytest.mark.parametrize("max_length", [None, 3, 8, 20])
def test_ids_are_those_of_the_library(both, max_length):
    cached, plain = both
    for seed in range(4):
        texts = [*odd_texts(400, seed), WORDS, WORDS * 50, "a" * 5000, ""]
        got, want = cached.encode(texts, max_length), plain.encode(texts, max_length)
        for text, ids, other in zip(texts, split(got), split(want), strict=True):
            assert ids.tolist() == other.tolist(), ascii(text[:60])
        assert got.truncated.tolist() == want.truncated.tolist()
    used = cached._pieces.encode(texts, 1 << 60, 1 << 60)
    assert sum(ids is not None for ids in used) > len(texts) / 3


def test_other_calls_do_not_use_it_or_are_equal(both):
    cached, plain = both
    texts = [text or "a" for text in odd_texts(100, 7)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    for options in ({"max_length": 24, "stride": 4}, {"max_length": 24, "details": True}, {}):
        for documents in (texts, pairs):
            got, want = cached.encode(documents, **options), plain.encode(documents, **options)
            assert got.input_ids.tolist() == want.input_ids.tolist()
            assert got.offsets.tolist() == want.offsets.tolist()
    got, want = cached.truncating("left").encode(texts, 9), plain.truncating("left")
    want._pieces = None
    assert got.input_ids.tolist() == want.encode(texts, 9).input_ids.tolist()


def test_it_stays_small(both, monkeypatch):
    cached, plain = both
    monkeypatch.setattr(pieces, "_MAX_PIECES", 20)
    cached._pieces._ids = {}
    for seed in range(20):
        texts = [*odd_texts(3, seed), "x" * 100]
        assert cached.encode(texts).input_ids.tolist() == plain.encode(texts).input_ids.tolist()
        assert len(cached._pieces._ids) <= 20
        assert max(map(len, cached._pieces._ids), default=0) <= 64


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}],
            }
        },
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            }
        },
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"dropout": 0.1},
        {"added": "é"},
    ],
)
def test_other_tokenizers_have_none(tmp_path, change):
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    if "dropout" in change:
        content["model"] |= change
    elif "added" in change:
        content["added_tokens"].append(
            content["added_tokens"][0] | {"id": 300, "content": change["added"]}
        )
    else:
        content |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_folder(tmp_path)._pieces is None
