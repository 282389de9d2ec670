"""Where a text is cut into chunks: each within its tokens, at the end of a sentence where there is one."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from checkpoints import write_tokenizer, write_wordpiece_tokenizer
from conftest import runs
from predictions import PIECES, random_texts

from modernbert.text.chunks import encode_late_chunks, late_chunks
from modernbert.text.sentences import Chunking, cut
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import WindowBudgetError, window_budget

ENDS = [". ", "! ", "?\n", '." ', "。", "\n\n", "… ", ".", "\n", " e.g. a"]


def words_as_tokens(text):
    """A token for each word, the space before it included, and one for each run of other spaces."""
    return np.array([match.span() for match in re.finditer(r" ?\S+|\s+", text)]).reshape(-1, 2)


def chunk_texts(text, tokens, overlap=0, prompt=""):
    chunking = Chunking(tokens=tokens, overlap=overlap, prompt=prompt)
    chunks = cut(prompt + text, words_as_tokens(prompt + text), chunking)
    return [text[start:end] for start, end in chunks.characters]


RULES = {
    "as many sentences as fit": ("a b. c d! e f? g h", 5, ["a b. c d!", "e f? g h"]),
    "a sentence that does not fit goes on in words": (
        "a b c d e f. g h.",
        4,
        ["a b c d", "e f. g h."],
    ),
    "a short sentence before it is a chunk": ("a. b c d e f. g.", 4, ["a.", "b c d e", "f. g."]),
    "quotes and brackets close a sentence": ('"a b." (c d.) e', 2, ['"a b."', "(c d.)", "e"]),
    "an empty line": ("a b\n \nc d e", 4, ["a b", "c d e"]),
    "a line end is a space": ("a b\nc d", 6, ["a b\nc d"]),
    "no space, no end": ("a 1.5 b c", 2, ["a 1.5", "b c"]),
    "white space alone": (" \n ", 4, []),
    "nothing": ("", 4, []),
}


@pytest.mark.parametrize(("text", "tokens", "want"), RULES.values(), ids=RULES)
def test_rules(text, tokens, want):
    assert chunk_texts(text, tokens) == want
    assert chunk_texts(text, tokens, prompt="read: ") == want


def test_rules_of_the_overlap():
    text = "a b. c d. e f. g h. i j."
    assert chunk_texts(text, 6, 2) == ["a b. c d. e f.", "e f. g h. i j."]
    assert chunk_texts(text, 6, 3) == chunk_texts(text, 6, 2)
    # The next sentence has room before what is shared.
    assert chunk_texts("a b. c d. e f g h i.", 6, 2) == ["a b. c d.", "d. e f g h i."]
    # Within a long sentence words are shared.
    assert chunk_texts("a b c d e f g h.", 4, 2) == ["a b c d", "c d e f", "e f g h."]


def test_a_sentence_end_of_chinese_needs_no_space(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "中文很好。再见！ the cat"
    tokens = tokenizer.encode([text], details=True, add_special_tokens=False)
    chunks = cut(text, tokens.offsets, Chunking(tokens=20, overlap=0, prompt=""))
    assert [text[start:end] for start, end in chunks.characters] == [
        "中文很好。",
        "再见！ the cat",
    ]


@pytest.mark.parametrize("style", [write_tokenizer, write_wordpiece_tokenizer])
def test_what_holds_for_any_text(tmp_path, style):
    write_tokenizer(tmp_path)
    style(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    texts = random_texts(7, runs("CHUNKS", few=40, many=1000), 1, 300, PIECES + ENDS * 4)
    whole = tokenizer.encode(texts, details=True, add_special_tokens=False)
    for seed, text in enumerate(texts):
        start, stop = whole.cu_seqlens[seed : seed + 2]
        offsets = whole.offsets[start:stop]
        size = 4 + seed % 29
        chunking = Chunking(tokens=size, overlap=seed % 3 * (size // 6), prompt="")
        chunks = cut(text, offsets, chunking)
        stripped = [text[start:end] for start, end in chunks.characters]
        assert all(each and each == each.strip() for each in stripped)
        assert all(
            a[0] < b[0] and a[1] < b[1]
            for spans in (chunks.tokens, chunks.characters)
            for a, b in pairwise(spans)
        )
        for (_, before), (after, _) in pairwise(chunks.tokens):
            assert before - after <= chunking.overlap
        for (_, before), (after, _) in pairwise(chunks.characters):
            assert not text[before:after].strip()
        for first, stop in chunks.tokens:
            # Only a character has more tokens than a chunk may have.
            spans = {tuple(each) for each in offsets[first:stop].tolist()}
            assert stop - first <= size or len(spans) == 1
        if chunks.characters:
            assert not text[: chunks.characters[0][0]].strip()
            assert not text[chunks.characters[-1][1] :].strip()


def test_late_windows_hold_whole_chunks_with_what_is_before_them(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    texts = ["", *random_texts(8, 30, 1, 300, PIECES + ENDS * 4), " \n "]
    prompt = "the cat: "
    chunking = Chunking(tokens=12, overlap=4, prompt=prompt)
    windows = encode_late_chunks(tokenizer, texts, chunking, 48, 10)
    whole = tokenizer.encode([prompt + text for text in texts], details=True)
    assert windows.n_tokens[1:-1].tolist() == whole.n_tokens[1:-1].tolist()
    assert windows.n_tokens[[0, -1]].tolist() == [0, 0]
    assert windows.lengths.max() == 48
    assert not windows.truncated.any()
    chunks = late_chunks(windows.input_ids)
    window_C = np.searchsorted(windows.cu_seqlens, chunks[:, 0], side="right") - 1
    assert len(chunks) == len(windows.chunk_spans)
    assert set(window_C) == set(range(len(windows.document)))
    prompt_ids = tokenizer.encode(["the cat:"]).input_ids[:-1].tolist()
    assert any(windows.start > 0)
    for (first, stop), window, (start, _) in zip(
        chunks.tolist(), window_C.tolist(), windows.chunk_spans.tolist(), strict=True
    ):
        begin, end = windows.cu_seqlens[window : window + 2].tolist()
        text_begin = begin + len(prompt_ids)
        assert text_begin <= first < stop < end
        ids = windows.input_ids & 0x1FFFFFFF
        assert ids[begin:text_begin].tolist() == prompt_ids
        assert first - text_begin >= min(10, first - text_begin + windows.start[window])
        document = windows.document[window]
        offsets = whole.offsets[whole.cu_seqlens[document] : whole.cu_seqlens[document + 1]]
        token = len(prompt_ids) + windows.start[window] + first - text_begin
        assert offsets[token, 0] <= start + len(prompt) < offsets[token, 1]


def test_windows_of_chunks_are_within_a_budget(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    chunking = Chunking(tokens=12, overlap=0, prompt="")
    with window_budget(150), pytest.raises(WindowBudgetError):
        encode_late_chunks(tokenizer, ["the cat sat. " * 25], chunking, 48, 20)
