"""Logits to columns, for each kind of classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modernbert.config import ModernBertConfig
from pipelines.tasks.classify import Classify

LOGITS = np.array([[1.0, 3.0, -1.0], [0.5, 0.5, 0.0]], dtype=np.float32)


def task(problem_type=None, labels=3, **options):
    return Classify.from_config(
        ModernBertConfig(id2label={i: "abc"[i] for i in range(labels)}, problem_type=problem_type), **options
    )


def test_single_label():
    rows = task().decode(LOGITS).to_pylist()
    want = torch.softmax(torch.tensor(LOGITS), -1)
    assert [row["label"] for row in rows] == ["b", "a"]  # of equals the first
    assert [row["score"] for row in rows] == pytest.approx([want[0, 1].item(), want[1, 0].item()], rel=1e-6)


def test_top_k():
    row = task(top_k=2).decode(LOGITS).to_pylist()[0]
    assert row["labels"] == ["b", "a"]
    assert row["scores"] == pytest.approx(torch.softmax(torch.tensor(LOGITS[0]), -1)[[1, 0]].tolist(), rel=1e-6)


def test_multi_label():
    many = task("multi_label_classification").decode(LOGITS).to_pylist()
    assert [row["labels"] for row in many] == [["b", "a"], ["a", "b", "c"]]
    assert many[0]["scores"] == pytest.approx(torch.sigmoid(torch.tensor([3.0, 1.0])).tolist(), rel=1e-6)
    strict = task("multi_label_classification", threshold=0.99).decode(LOGITS).to_pylist()
    assert [row["labels"] for row in strict] == [[], []]
    assert strict[0]["label"] == "b"


def test_regression():
    assert task(labels=1).decode(LOGITS[:, :1]).to_pylist() == [
        {"label": "a", "score": 1.0},
        {"label": "a", "score": 0.5},
    ]
    row = task("regression").decode(LOGITS).to_pylist()[0]
    assert (row["labels"], row["scores"]) == (["a", "b", "c"], [1.0, 3.0, -1.0])


def test_no_documents_and_large_logits():
    assert len(task(top_k=1).decode(np.empty((0, 3), np.float32))) == 0
    assert task().decode(np.array([[1e4, -1e4, 0]], np.float32)).to_pylist() == [{"label": "a", "score": 1.0}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5}, "--threshold is for multi-label models"),
        ({"top_k": 4}, "--top-k 4 is above the model's 3 labels"),
        ({"problem_type": "regression", "top_k": 1}, "--top-k is for classifiers"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
