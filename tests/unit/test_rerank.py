"""Logits to scores of pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from predictions import described, predicted

from pipelines.options import RerankOptions
from pipelines.tasks.rerank import Rerank

IDENTITY = "torch.nn.modules.linear.Identity"
LOGITS = np.array([[0.0], [4.0], [-100.0]], np.float32)


def task(raw_config=None, **options):
    checkpoint = described(num_labels=1)
    checkpoint.raw_config = raw_config or {}
    return Rerank.from_checkpoint(checkpoint, RerankOptions.parse(options))


def test_scores_are_probabilities_unless_raw():
    rows = task().decode(predicted(LOGITS))
    assert rows.type == pa.struct([("score", pa.float32())])
    assert rows.field("score").to_pylist() == pytest.approx(
        [0.5, 1 / (1 + np.exp(-4)), 0], rel=1e-6
    )
    assert task(raw_scores=True).results(predicted(LOGITS)) == [0, 4, -100]


@pytest.mark.parametrize(
    ("config", "raw"),
    [
        ({}, False),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, True),
        ({"sbert_ce_default_activation_function": IDENTITY}, True),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
            False,
        ),
    ],
)
def test_the_model_says_which_unless_told_otherwise(config, raw):
    assert task(config).raw_scores == raw
    assert task(config, raw_scores=not raw).raw_scores != raw


@pytest.mark.parametrize(("merge", "want"), [("max", [4, -100]), ("mean", [2, -100])])
def test_windows_of_a_long_passage(merge, want):
    result = predicted(LOGITS, document=[0, 0, 1])
    assert task(merge=merge, raw_scores=True).results(result) == want
    assert task().merge == "max"


def test_a_classifier_of_several_labels_is_no_reranker():
    with pytest.raises(
        ValueError, match="model 'a folder' has 3 labels: it fits classify; rerank runs a"
    ):
        Rerank.from_checkpoint(described(num_labels=3), RerankOptions())
