"""Windows of long texts and pairs equal transformers' overflowing tokens with a stride."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from checkpoints import write_tokenizer
from predictions import random_texts

from modernbert.text.tokenizer import Tokenizer

TEXTS = ["", "a", "the cat", *random_texts(1, 25, 1, 400)]
PAIRS = list(zip(random_texts(2, 20, 1, 5), random_texts(3, 20, 1, 400), strict=True))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)


def overflowing(tokenizer, documents, max_length, stride):
    pairs = isinstance(documents[0], tuple)
    return tokenizer(
        *(map(list, zip(*documents, strict=True)) if pairs else [documents]),
        max_length=max_length,
        stride=stride,
        truncation="only_second" if pairs else True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


@pytest.mark.parametrize("documents", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize(
    ("max_length", "stride"), [(100, 0), (100, 32), (128, 20), (200, 90), (512, 128)]
)
def test_windows_of_truncation_on_the_left_equal_transformers(both, documents, max_length, stride):
    """They are laid from the end on; transformers gives the last one first, we give all in the order of the text."""
    ours, theirs = both
    theirs.truncation_side = "left"
    want = overflowing(theirs, documents, max_length, stride)
    theirs.truncation_side = "right"
    windows = list(
        zip(
            want["overflow_to_sample_mapping"],
            want["input_ids"],
            want["offset_mapping"],
            strict=True,
        )
    )
    windows = [
        each for i in range(len(documents)) for each in [w for w in windows if w[0] == i][::-1]
    ]
    got = ours.truncating("left").encode(documents, max_length, stride=stride, details=True)
    cut = got.cu_seqlens[1:-1]
    assert got.document.tolist() == [document for document, _, _ in windows]
    assert [part.tolist() for part in np.split(got.input_ids, cut)] == [
        ids for _, ids, _ in windows
    ]
    assert [list(map(tuple, spans.tolist())) for spans in np.split(got.offsets, cut)] == [
        spans for *_, spans in windows
    ]


@pytest.mark.parametrize("documents", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize(
    ("max_length", "stride"), [(100, 0), (100, 32), (128, 20), (200, 90), (512, 128)]
)
def test_windows_equal_transformers(both, documents, max_length, stride):
    ours, theirs = both
    want = overflowing(theirs, documents, max_length, stride)
    got = ours.encode(documents, max_length, stride=stride, details=True)
    assert not got.rejected
    assert got.document.tolist() == want["overflow_to_sample_mapping"]
    cut = got.cu_seqlens[1:-1]
    assert [ids.tolist() for ids in np.split(got.input_ids, cut)] == want["input_ids"]
    assert [list(map(tuple, spans.tolist())) for spans in np.split(got.offsets, cut)] == want[
        "offset_mapping"
    ]
    words = [
        [-1 if word is None else word for word in want.word_ids(w)]
        for w in range(len(got.document))
    ]
    assert [part.tolist() for part in np.split(got.word_ids, cut)] == words
    texts = [
        [-1 if text is None else text for text in want.sequence_ids(w)]
        for w in range(len(got.document))
    ]
    assert [part.tolist() for part in np.split(got.sequence_ids, cut)] == texts
    assert got.n_tokens.tolist() == [
        len(ids) for ids in theirs(*as_arguments(documents))["input_ids"]
    ]
    assert not got.truncated.any()


def as_arguments(documents):
    return (
        map(list, zip(*documents, strict=True)) if isinstance(documents[0], tuple) else [documents]
    )


@pytest.mark.parametrize("documents", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("stride", [0, 7])
def test_starts_and_shared_tokens_put_a_document_together_again(both, documents, stride):
    ours, _ = both
    whole = ours.encode(documents, details=True)
    got = ours.encode(documents, 100, stride=stride, details=True)
    for document in range(len(documents)):
        tokens = slice(*whole.cu_seqlens[document : document + 2])
        last = int(whole.sequence_ids[tokens].max())
        want = whole.input_ids[tokens][whole.sequence_ids[tokens] == last]
        seen = np.zeros(len(want), int)
        for w in np.flatnonzero(got.document == document):
            part = slice(*got.cu_seqlens[w : w + 2])
            ids = got.input_ids[part][got.sequence_ids[part] == last]
            assert ids.tolist() == want[got.start[w] : got.start[w] + len(ids)].tolist()
            seen[got.start[w] : got.start[w] + len(ids)] += 1
        n_windows = (got.document == document).sum()
        assert (seen >= 1).all() or last < 0
        assert seen.sum() - len(seen) == stride * max(n_windows - 1, 0)


def test_documents_that_do_not_fit_overlapping_windows(both):
    ours, _ = both
    pairs = [
        ("the cat", "sat"),
        ("the cat " * 50, "sat"),
        ("the cat", "sat " * 50),
        ("cat " * 11, "the " * 9),
    ]
    got = ours.encode(pairs, 20, stride=5, details=True)
    assert got.rejected == {
        1: "too long for overlapping windows: its first text has 101 tokens, and 5 are shared",
        3: "too long for overlapping windows: its first text has 12 tokens, and 5 are shared",
    }
    assert sorted(set(got.document.tolist())) == [0, 2]
    assert got.n_tokens[[1, 3]].tolist() == [0, 0]


def test_windows_with_no_room_for_anything_new(both):
    got = both[0].encode(["the", "the cat " * 9], 8, stride=6)
    assert got.rejected == {
        1: "too long for overlapping windows: windows have room for 6 tokens, and 6 are shared"
    }
    with pytest.raises(ValueError, match="2 of its tokens are special"):
        both[0].encode(["a"], 2, stride=0)
    with pytest.raises(ValueError, match="3 of its tokens are special"):
        both[0].encode([("a", "b")], 3)


def test_texts_and_pairs_are_not_mixed(both):
    for documents in (["a", ("b", "c")], [("b", "c"), "a"]):
        with pytest.raises(ValueError, match="documents are texts and pairs of texts"):
            both[0].encode(documents)


def test_two_very_long_texts_and_a_small_window(both):
    """The library's own truncation of a pair takes time that grows with the product of the lengths."""
    ours, theirs = both
    pair = ("the cat sat " * 17_000, "on the mat. " * 17_000)
    got = ours.encode([pair], 64)
    assert (len(got.input_ids), got.truncated.tolist()) == (64, [True])
    short = tuple(text[:2000] for text in pair)
    assert got.input_ids.tolist() == theirs(*short, truncation=True, max_length=64)["input_ids"]
    windows = ours.encode([("the cat?", pair[1])], 64, stride=16, details=True)
    assert windows.offsets[:, 1].max() == len(pair[1])


@pytest.mark.parametrize("options", [{}, {"padding": True}, {"truncation": True, "max_length": 20},
                                     {"truncation": True}, {"add_special_tokens": False},
                                     {"padding": True, "truncation": True, "max_length": 40, "return_tensors": "pt"},
                                     {"padding": True, "return_tensors": "pt", "add_special_tokens": False},
                                     {"truncation": True, "max_length": 9, "add_special_tokens": False}],
                         ids=str)  # fmt: skip
def test_calling_equals_transformers(both, options):
    ours, theirs = both
    first, second = random_texts(5, 8, 1, 60), random_texts(6, 8, 1, 60)
    for arguments in ((first,), (first[:1],), (first[0],), (first, second), (first[0], second[0])):
        if (
            len(arguments) == 2
            and not options.get("add_special_tokens", True)
            and "max_length" in options
        ):
            continue
        if isinstance(arguments[0], str) and "return_tensors" in options:
            arguments = tuple([text] for text in arguments)
        got, want = ours(*arguments, **options), theirs(*arguments, **options)
        for name in ("input_ids", "attention_mask"):
            if "return_tensors" in options:
                assert torch.equal(got[name], want[name])
            else:
                assert got[name] == want[name]
        assert got.input_ids is got["input_ids"]


def test_calls_that_mean_nothing(both):
    with pytest.raises(ValueError, match="return_tensors is 'np'; known is 'pt'"):
        both[0]("a", return_tensors="np")
    with pytest.raises(AttributeError):
        _ = both[0]("a").token_type_ids
