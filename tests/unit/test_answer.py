"""Start and end logits to spans: limits, no answer, order, offsets."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
from checkpoints import TOKENIZERS, write_gemma_tokenizer, write_tokenizer
from predictions import described, random_texts, said

from modernbert.text.tokenizer import Tokenizer
from pipelines.options import AnswerOptions
from pipelines.tasks.answer import SPAN, Answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def task(**options):
    return Answer.from_checkpoint(described(), AnswerOptions.parse(options))


LETTERS = "bdfgijklnp"  # a token each
PLAIN = {"align_to_words": False}


def at(starts, ends, null=-20.0, windows_null=()):
    """Logits of so much where a context's token starts at a character or ends before it, -20 elsewhere."""

    def answer(windows):
        logits = np.full((len(windows.input_ids), 2), -20.0)
        logits[windows.cu_seqlens[:-1]] = np.array(
            [windows_null or [null] * len(windows.document)]
        ).T
        for t in np.flatnonzero(windows.sequence_ids == 1):
            logits[t] = (
                starts.get(int(windows.offsets[t, 0]), -20),
                ends.get(int(windows.offsets[t, 1]), -20),
            )
        return logits

    return answer


def answers(tokenizer, logits, context=LETTERS, question="b", **options):
    outputs, pairs = task(**options), [(question, context)]
    by_token = said(task(**options | PLAIN), tokenizer, pairs, logits).values
    prediction = said(outputs, tokenizer, pairs, lambda _: by_token)
    return outputs.decode(prediction).to_pylist()[0], outputs.results(prediction)[0]


def test_the_best_span_and_its_score(tokenizer):
    row, result = answers(tokenizer, at({2: 5, 4: 4}, {6: 5, 3: 3}), **PLAIN)
    start, end = (np.exp(5) / (np.exp(5) + np.exp(other)) for other in (4, 3))
    assert row == {"answer": "fgij", "score": pytest.approx(start * end, rel=1e-5), "start": 2, "end": 6,
                   "no_answer_score": pytest.approx(0, abs=1e-9)}  # fmt: skip
    assert result == {name: row[name] for name in ("score", "start", "end", "answer")}


@pytest.mark.parametrize(("longest", "want"), [(1, "f"), (3, "ij"), (4, "fgij"), (100, "fgij")])
def test_max_answer_length_is_in_tokens(tokenizer, longest, want):
    logits = at({2: 5, 4: 4}, {6: 5, 7: 2, 3: 1})
    assert answers(tokenizer, logits, max_answer_length=longest, **PLAIN)[0]["answer"] == want


def test_an_end_is_never_before_its_start(tokenizer):
    row, _ = answers(tokenizer, at({6: 9}, {3: 9, 8: 0}), **PLAIN)
    assert (row["start"], row["end"]) == (6, 8)


@pytest.mark.parametrize("null", [-20.0, 9.0])
def test_no_answer_competes_where_it_may(tokenizer, null):
    logits = at({2: 5}, {6: 5}, null)
    row, _ = answers(tokenizer, logits, **PLAIN)
    assert row["answer"] == "fgij"
    assert row["no_answer_score"] == pytest.approx(float(null > 0), abs=0.05)
    row, result = answers(tokenizer, logits, no_answer=True, top_k=100, **PLAIN)
    assert row["answer"] == ("" if null > 0 else "fgij")
    empty = next(span for span in result if not span["answer"])
    assert (empty["start"], empty["end"], empty["score"]) == (
        0,
        0,
        pytest.approx(row["no_answer_score"]),
    )


def test_no_answer_scores_as_in_the_window_that_denies_it_most(tokenizer):
    context = LETTERS * 3
    logits = at({25: 5}, {27: 5}, windows_null=(9, 9, 9, 9, 2))
    row, _ = answers(tokenizer, logits, context, no_answer=True, max_length=14, stride=4, **PLAIN)
    assert row["no_answer_score"] < 0.5
    assert (row["answer"], row["start"]) == ("jk", 25)


def test_n_best_spans(tokenizer):
    row, result = answers(tokenizer, at({2: 3, 4: 2, 8: 1}, {5: 3, 7: 2, 9: 1}), top_k=6, **PLAIN)
    scores = [span["score"] for span in row["answers"]]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert row["answers"][0] == {name: row[name] for name in ("answer", "score", "start", "end")}
    assert [span["answer"] for span in row["answers"]][:3] == ["fgi", "fgijk", "i"]
    assert [span["start"] for span in result] == [span["start"] for span in row["answers"]]
    assert task(top_k=2).columns.field("answers").type == pa.list_(SPAN)
    assert "answers" not in task().columns.names


def test_equal_texts_count_as_one_answer_at_the_first_place(tokenizer):
    row, result = answers(
        tokenizer, at({0: 5, 4: 5}, {1: 5, 5: 5}), "bdfgBdfg", top_k=2, max_answer_length=1, **PLAIN
    )
    assert (row["answer"], row["start"], row["score"]) == ("b", 0, pytest.approx(0.5, rel=1e-3))
    assert result["answer"] == "b"


def test_words_are_whole_where_asked(tokenizer):
    logits = at({3: 5}, {6: 5})
    assert answers(tokenizer, logits, "bd fgij kl")[0]["answer"] == " fgij"
    assert answers(tokenizer, logits, "bd fgij kl", **PLAIN)[0]["answer"] == "fgi"


def test_answers_are_tokens_where_a_tokenizer_knows_no_words(tmp_path, caplog):
    """transformers 4.57 answers with the whole context."""
    write_gemma_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        outputs = Answer.from_checkpoint(described(tokenizer), AnswerOptions())
    assert "cuts no text into words, so that answers begin and end with tokens" in caplog.text
    pairs = [("the?", "the qzx sat")]
    prediction = said(outputs, tokenizer, pairs, at({5: 5}, {6: 5}))
    assert outputs.decode(prediction).to_pylist()[0]["answer"] == "z"
    plain = Answer.from_checkpoint(described(tokenizer), AnswerOptions(align_to_words=False))
    assert plain == outputs


def test_which_tokenizers_know_words(tmp_path):
    known = {}
    for name, write in TOKENIZERS.items():
        write(tmp_path)
        known[name] = Tokenizer.from_folder(tmp_path).knows_words
    assert known == {"byte-level BPE": True, "Gemma": False, "Unigram": True, "WordPiece": True}


@pytest.mark.parametrize("align", [True, False])
def test_an_answer_is_where_it_says(tokenizer, align):
    contexts = ["👩‍👩‍👧‍👦 the e\u0301 cat\r\nsat 🇫🇷", "\u202eאבג", *random_texts(1, 8, 20, 200)]
    outputs = task(top_k=8, no_answer=True, align_to_words=align, max_length=64, stride=16)
    dice = np.random.default_rng(0)
    pairs = [("the?", context) for context in contexts]
    prediction = said(
        outputs, tokenizer, pairs, lambda windows: dice.normal(size=(len(windows.input_ids), 2))
    )
    for context, row in zip(contexts, outputs.decode(prediction).to_pylist(), strict=True):
        assert row["answers"]
        for span in row["answers"]:
            assert span["answer"] == context[span["start"] : span["end"]]


@pytest.mark.parametrize(
    ("question", "context", "reason"),
    [
        ("the cat?", "the cat", "context is shorter than the question"),
        ("cat", "the", None),
        ("a", "the cat", None),
    ],
)
def test_a_context_shorter_than_its_question_is_rejected(question, context, reason):
    assert task().refusal((question, context), of_corpus=True) == reason


def test_a_question_that_fills_a_window(tokenizer):
    windows = task(max_length=40, stride=8).encode(
        tokenizer, [("the " * 30, "cat " * 60), ("the", "cat")]
    )
    assert windows.rejected == {
        0: "too long for overlapping windows: its first text has 31 tokens, and 8 are shared"
    }


def test_the_usual_windows():
    outputs = task()
    assert (outputs.max_length, outputs.stride) == (384, 128)
    assert (task(max_length=100).stride, task(long_documents="truncate").stride) == (50, None)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"max_answer_length": 0}])
def test_numbers_below_one(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} 0 must be at least 1"):
        task(**options)
