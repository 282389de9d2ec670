"""Logits to columns, for each kind of classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from predictions import described, predicted

from pipelines.options import ClassifyOptions
from pipelines.tasks.classify import Classify

LOGITS = np.array([[1.0, 3.0, -1.0], [0.5, 0.5, 0.0]], dtype=np.float32)


def task(problem_type=None, labels=3, **options):
    checkpoint = described(id2label={i: "abc"[i] for i in range(labels)}, problem_type=problem_type)
    return Classify.from_checkpoint(checkpoint, ClassifyOptions.parse(options))


def test_single_label():
    rows = task().decode(predicted(LOGITS)).to_pylist()
    want = torch.softmax(torch.tensor(LOGITS), -1)
    assert [row["label"] for row in rows] == ["b", "a"]  # of equals the first
    assert [row["score"] for row in rows] == pytest.approx(
        [want[0, 1].item(), want[1, 0].item()], rel=1e-6
    )


def test_top_k():
    row = task(top_k=2).decode(predicted(LOGITS)).to_pylist()[0]
    assert row["labels"] == ["b", "a"]
    assert row["scores"] == pytest.approx(
        torch.softmax(torch.tensor(LOGITS[0]), -1)[[1, 0]].tolist(), rel=1e-6
    )


def test_multi_label():
    many = task("multi_label_classification").decode(predicted(LOGITS)).to_pylist()
    assert [row["labels"] for row in many] == [["b", "a"], ["a", "b", "c"]]
    assert many[0]["scores"] == pytest.approx(
        torch.sigmoid(torch.tensor([3.0, 1.0])).tolist(), rel=1e-6
    )
    strict = (
        task("multi_label_classification", threshold=0.99).decode(predicted(LOGITS)).to_pylist()
    )
    assert [row["labels"] for row in strict] == [[], []]
    assert strict[0]["label"] == "b"


def test_regression():
    assert task(labels=1).decode(predicted(LOGITS[:, :1])).to_pylist() == [
        {"label": "a", "score": 1.0},
        {"label": "a", "score": 0.5},
    ]
    row = task("regression").decode(predicted(LOGITS)).to_pylist()[0]
    assert (row["labels"], row["scores"]) == (["a", "b", "c"], [1.0, 3.0, -1.0])


def test_no_documents_and_large_logits():
    assert len(task(top_k=1).decode(predicted(np.empty((0, 3), np.float32)))) == 0
    large = np.array([[1e4, -1e4, 0]], np.float32)
    assert task().decode(predicted(large)).to_pylist() == [{"label": "a", "score": 1.0}]


def test_windows_of_a_document_become_one_by_mean_or_max_of_their_logits():
    result = predicted(np.array([[1, 0, 0], [4, 0, 9], [0, 7, 0]], np.float32), document=[0, 0, 1])
    for merge, want in (("mean", [2.5, 0.0, 4.5]), ("max", [4.0, 0.0, 9.0])):
        rows = task(merge=merge, top_k=3).decode(result).to_pylist()
        assert sorted(rows[0]["scores"]) == pytest.approx(
            sorted(torch.tensor(want).softmax(-1).tolist()), rel=1e-5
        )
        assert [row["label"] for row in rows] == ["c", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5}, "threshold is for multi-label models"),
        ({"top_k": 4}, "top_k 4 must be from 1 to the model's 3 labels"),
        ({"problem_type": "regression", "top_k": 1}, "top_k is for classifiers"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
