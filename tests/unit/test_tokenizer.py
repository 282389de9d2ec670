"""Ids equal to transformers' fast tokenizer on the same file, pairs, truncation and odd Unicode included."""

from __future__ import annotations

import random

import numpy as np
import pytest
import transformers

from modernbert.files import CheckpointError
from modernbert.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat", "", " ", "a" * 5000, "the cat " * 3000, "line\r\nbreaks\t\x00\x07",
    "emoji 👩‍👩‍👧‍👦 here", "combining e\u0301 n\u0303 and composed é ñ", "中文没有空格" * 400,
    "[SEP] in the [MASK] text [CLS]", "\u202eright to left אבג",
    "the\u00a0cat\u2003sat", "x" * 11 + " " * 500 + "y",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    dice = random.Random(0)
    alphabet = "abc thecatsat.,!?  \n\u0301é中👍🏽"
    return ["".join(dice.choices(alphabet, k=dice.choice((3, 30, 300, 3000)))) for _ in range(count)]


def split(encoded):
    return np.split(encoded.input_ids, encoded.cu_seqlens[1:-1])


@pytest.fixture(scope="module", params=["right", "left"])
def both(checkpoint, request):
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint, truncation_side=request.param)
    return Tokenizer.from_folder(checkpoint).truncating(request.param), theirs


@pytest.mark.parametrize("max_length", [None, 3, 8, 64, 512])
def test_ids_equal_transformers(both, max_length):
    ours, theirs = both
    texts = TEXTS + random_texts(100)
    got = ours.encode(texts, max_length)
    want = theirs(texts, truncation=max_length is not None, max_length=max_length)["input_ids"]
    whole = theirs(texts)["input_ids"]
    for text, ids, other, full, cut in zip(texts, split(got), want, whole, got.truncated, strict=True):
        assert ids.tolist() == other, text[:40]
        assert cut == (len(full) > len(other)), text[:40]
    spans = theirs(texts, truncation=max_length is not None, max_length=max_length, return_offsets_mapping=True)
    detailed = ours.encode(texts, max_length, details=True)
    assert detailed.input_ids.tolist() == got.input_ids.tolist()
    assert list(map(tuple, detailed.offsets.tolist())) == [span for each in spans["offset_mapping"] for span in each]
    called = ours(texts, truncation=max_length is not None, max_length=max_length, add_special_tokens=False)
    bare = theirs(texts, truncation=max_length is not None, max_length=max_length, add_special_tokens=False)
    assert called.input_ids == bare["input_ids"]


def test_long_texts_are_not_encoded_whole(both, monkeypatch):
    """Encoding takes longer the longer the text is; what is cut off costs nothing."""
    ours, _ = both
    if ours.truncation_side == "right":
        (ids,) = ours._pieces.encode(["the cat sat, " * 100_000], 64, 12 * 64)
        assert 64 < len(ids) <= 12 * 64
    lengths = []

    class Spy:
        def encode_batch(self, texts, **options):
            lengths.extend(map(len, texts))
            return ours._fast.encode_batch(texts, **options)

        encode_batch_fast = encode_batch

    spied = ours.truncating(ours.truncation_side)
    monkeypatch.setattr(spied, "_fast", Spy())
    monkeypatch.setattr(spied, "_pieces", None)
    (encoding,) = spied._encode_texts(["the cat sat, " * 100_000], 64, False)
    assert max(lengths) <= 12 * 64
    assert len(encoding.ids) > 64


@pytest.mark.parametrize("max_length", [None, 8, 64])
def test_pairs_equal_transformers(both, max_length):
    ours, theirs = both
    short = [text[:300] for text in TEXTS]  # the library's own time for long pairs grows with their product
    pairs = list(zip(short, reversed(short), strict=True))
    got = split(ours.encode(pairs, max_length))
    want = theirs(pairs, truncation=max_length is not None, max_length=max_length)["input_ids"]
    assert [ids.tolist() for ids in got] == want


def test_no_texts_and_no_room(both):
    assert both[0].encode([], 8).cu_seqlens.tolist() == [0]
    with pytest.raises(ValueError, match="2 of its tokens are special"):
        both[0].encode(["a"], 2)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        Tokenizer.from_folder(tmp_path)
