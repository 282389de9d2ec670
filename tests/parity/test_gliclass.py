"""zero_shot with a GLiClass equals the package gliclass on the same checkpoint: logits and scores within 1e-5.

gliclass pools padding, too: it is given one text at a time.
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import transformers
from checkpoints import TOKENIZERS, write_gliclass
from gliclass import GLiClassModel, ZeroShotClassificationPipeline
from predictions import random_texts

from pipelines import pipeline

LABELS = ["cat", "the mat", "é 中文", "👩‍👩‍👧‍👦", " politics, or [SEP] not ", "a b c d e"]
VALUES = {
    "prompt_first": [True, False],
    "embed_class_token": [True, False],
    "class_token_pooling": ["first", "average"],
    "extract_text_features": [False, True],
    "pooling_strategy": ["first", "last", "avg", "sum", "max", "rms", "abs_max", "abs_avg"],
    "scorer_type": ["simple", "weighted-dot", "mlp", "hopfield"],
    "normalize_features": [False, True],
    "use_lstm": [False, True],
    "use_segment_embeddings": [False, True],
    "use_calibrator": [False, True],
    "calibrator_use_bias": [False, True],
    "projector_hidden_act": ["gelu", "relu", "tanh"],
    "problem_type": ["single_label_classification", "multi_label_classification"],
    "tokenizer": list(TOKENIZERS),
}
"""The fields of a configuration that answers depend on, and the kinds of tokenizers."""


def random_forms(count: int) -> list[dict]:
    """Forms in which each value of each field comes up, as evenly as can be."""
    generator = random.Random(5)
    columns = {}
    for name, values in VALUES.items():
        columns[name] = (values * count)[:count]
        generator.shuffle(columns[name])
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


CROSS_ATTENTION = {
    "scorer_type": "cross-attn",
    "pooling_strategy": "pass",
    "scorer_mlp_hidden_size": 32,
}
FORMS = [
    *random_forms(16),
    CROSS_ATTENTION | {"prompt_first": True, "extract_text_features": True},
    CROSS_ATTENTION | {"normalize_features": True, "class_token_pooling": "average"},
    {"hidden_size": 48, "prompt_first": True},
]


def both(folder):
    """Theirs and ours."""
    model = GLiClassModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = ZeroShotClassificationPipeline(
        model, tokenizer, max_length=8192, device="cpu", progress_bar=False
    )
    return theirs, pipeline("zero-shot-classification", str(folder))


def scores_of(answer: dict) -> dict[str, float]:
    return dict(zip(answer["labels"], answer["scores"], strict=True))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms(tmp_path, form):
    theirs, ours = both(write_gliclass(tmp_path, **form))
    texts = ["", "a", " [SEP] in the [MASK] text ", *random_texts(61, 4, 1, 120)]
    for text in texts:
        (want,) = theirs.get_embeddings([text], LABELS)
        outputs, failed = ours.predictor.answer([text], ours.task({"labels": LABELS}))
        assert not failed
        scale = np.abs(want["logits"]).max()
        assert np.abs(outputs.values[:, 0] - want["logits"]).max() <= 1e-5 * max(scale, 1)
    for kind, multi_label in (("multi-label", True), ("single-label", False)):
        wanted = [
            theirs(text, LABELS, classification_type=kind, return_hierarchical=True)[0]
            for text in texts
        ]
        answers = ours(texts, LABELS, multi_label=multi_label)
        for answer, want in zip(answers, wanted, strict=True):
            assert scores_of(answer) == pytest.approx(want, abs=1e-5)
            assert all(a >= b for a, b in pairwise(answer["scores"]))
