"""Masks: which tokens may fill them, in which window they count, texts without one."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
from checkpoints import write_tokenizer
from predictions import described, said

from modernbert.text.tokenizer import Tokenizer
from pipelines.options import FillOptions
from pipelines.tasks.fill import FILL, Fill


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def task(tokenizer, **options):
    return Fill.from_checkpoint(described(tokenizer, vocab_size=300), FillOptions.parse(options))


def counting(result, ids=(268, 269)):
    """For each mask of each window the same tokens, and as the first score the window's number."""

    def answer(windows):
        masks = result.rows(windows.input_ids, windows.cu_seqlens)
        return [[w, -1.0, *ids] for w, count in enumerate(masks) for _ in range(count)]

    return answer


def test_tokens_of_each_mask_in_the_order_of_the_text(tokenizer):
    result = task(tokenizer, top_k=2)
    texts = ["the [MASK] sat", "[MASK][MASK] the cat [MASK]"]
    prediction = said(result, tokenizer, texts, counting(result))
    rows = result.decode(prediction)
    assert rows.type == pa.struct([("fills", pa.list_(pa.list_(FILL)))])
    words = [tokenizer.decode([268]), tokenizer.decode([269])]
    assert [len(row["fills"]) for row in rows.to_pylist()] == [1, 3]
    assert rows[0].as_py()["fills"] == [[{"token": words[0], "token_id": 268, "score": 0.0},
                                         {"token": words[1], "token_id": 269, "score": -1.0}]]  # fmt: skip
    one, several = result.results(prediction)
    assert [fill["sequence"] for fill in one] == [f"the{word} sat" for word in words]
    assert [fill["token_str"] for fill in one] == words
    assert several[2][1]["sequence"] == f"[CLS][MASK][MASK] the cat{words[1]}[SEP]"


@pytest.mark.parametrize(("max_length", "stride"), [(20, 0), (20, 9), (21, 16), (64, 40)])
def test_a_mask_counts_in_the_window_where_it_has_most_text_on_its_scantier_side(
    tokenizer, max_length, stride
):
    result = task(tokenizer, top_k=2, max_length=max_length, stride=stride)
    text = "".join("[MASK]" if i % 3 == 1 else "b" for i in range(200))
    prediction = said(result, tokenizer, [text, "bd"], counting(result))
    windows = prediction.windows
    ends = windows.start + windows.lengths - 2
    want = []
    for mask in range(1, 200, 3):
        inside = np.flatnonzero((windows.start <= mask) & (mask < ends))
        left = [np.inf if w == 0 else mask - windows.start[w] for w in inside]
        right = [np.inf if w == len(ends) - 1 else ends[w] - 1 - mask for w in inside]
        want.append(int(inside[np.argmax(np.minimum(left, right))]))
    fills = result.decode(prediction).to_pylist()[0]["fills"]
    assert [fill[0]["score"] for fill in fills] == want
    assert prediction.windows.rejected == {1: "text has no [MASK]"}


def test_texts_without_a_mask_say_so(tokenizer):
    texts = ["the cat", "the [MASK]", "the " * 50 + "[MASK]", "the [mask]", ""]
    windows = task(tokenizer, max_length=20, long_documents="truncate").encode(tokenizer, texts)
    cut = "text has no [MASK] in the tokens that are read"
    assert windows.rejected == {
        0: "text has no [MASK]",
        2: cut,
        3: "text has no [MASK]",
        4: "text has no [MASK]",
    }
    assert windows.document.tolist() == [1]
    assert windows.n_tokens.tolist() == [0, 4, 0, 0, 0]
    assert not windows.truncated.any()
    assert 2 not in task(tokenizer, max_length=20, stride=5).encode(tokenizer, texts).rejected


def test_targets(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        result = task(tokenizer, targets=[" the", "the", "zq", "the", ""], top_k=9)
    known = [tokenizer.token_id(token) for token in ("Ġthe", "the", "z")]
    assert sorted(result.targets) == sorted(known)
    assert result.top_k == 3
    assert "target 'zq' is several tokens; 'z' stands for it" in caplog.messages
    assert "target '' has no token and is left out" in caplog.messages
    assert task(tokenizer, targets="the").targets == (tokenizer.token_id("the"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_k": 301}, "top_k 301 must be from 1 to the vocabulary's 300 tokens"),
        ({"targets": [""]}, "hold no token of the vocabulary"),
        ({"targets": []}, "hold no token of the vocabulary"),
    ],
)
def test_options_that_mean_nothing(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        task(tokenizer, **options)


def test_a_tokenizer_without_a_mask_token(tokenizer):
    bare = described(vocab_size=300)
    bare.tokenizer.mask_token_id = None
    with pytest.raises(ValueError, match="model 'a folder': its tokenizer has no mask token"):
        Fill.from_checkpoint(bare, FillOptions())
