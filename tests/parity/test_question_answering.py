"""Answers equal those of transformers 4.57.6's pipeline, as record_question_answering.py recorded them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from predictions import assert_close

from pipelines import pipeline

FOLDER = Path(__file__).parents[1] / "data" / "question-answering"
RECORD = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
QUESTIONS, CONTEXTS = zip(*RECORD["pairs"], strict=True)


@pytest.fixture(scope="module")
def pipe():
    return pipeline("question-answering", str(FOLDER), dtype="float32")


@pytest.mark.parametrize(
    "recorded", RECORD["answers"], ids=lambda recorded: str(recorded["options"])
)
def test_spans_and_scores(pipe, recorded):
    """Within 1e-5: scores are sums of products of two float32 softmaxes."""
    assert RECORD["transformers"] == "4.57.6"
    got = pipe(question=list(QUESTIONS), context=list(CONTEXTS), **recorded["options"])
    assert_close(got, recorded["answers"])


def test_shapes_of_inputs(pipe):
    question, context = RECORD["pairs"][0]
    want = pipe(question=question, context=context)
    pair = {"question": question, "context": context}
    assert pipe(pair) == pipe([pair]) == pipe(question=[question], context=[context]) == want
    assert (
        pipe([pair, pair]) == pipe(question=[question, question], context=context) == [want, want]
    )
