"""zero_shot equals transformers' zero-shot-classification on the same checkpoint: probabilities within 1e-5."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import transformers
from checkpoints import write_task
from predictions import assert_close, random_texts

from pipelines import pipeline
from pipelines.tasks.outputs import ModelOutputs

CLASSIFIER = "ModernBertForSequenceClassification"
NLI = {
    "entailment last": ["contradiction", "neutral", "entailment"],
    "entailment first": ["Entailment", "neutral", "contradiction"],
    "two labels": ["not_entailment", "entailment"],
}
LABELS = ["cat", "the mat", "é 中文", "👩‍👩‍👧‍👦", "[SEP] politics", "a b c d e"]
OPTIONS = [{}, {"multi_label": True}, {"hypothesis_template": "{} é\u0301, or {}?"}]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Theirs and ours on a checkpoint, each made once."""
    result = {}

    def make(kind):
        if kind not in result:
            folder = str(write_task(tmp_path_factory.mktemp("nli"), CLASSIFIER, labels=NLI[kind]))
            task = "zero-shot-classification"
            result[kind] = transformers.pipeline(task, model=folder), pipeline(task, folder)
        return result[kind]

    return make


@pytest.mark.parametrize("kind", NLI)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results(both, kind, options):
    theirs, ours = both(kind)
    texts = ["a", "[SEP] in the [MASK] text [CLS]", *random_texts(31, 6, 1, 80)]
    # str.format, which theirs calls, has an argument for each {}.
    given = {
        name: value.replace("{}", "{0}") if isinstance(value, str) else value
        for name, value in options.items()
    }
    for inputs, labels in (
        (texts, LABELS),
        (texts[0], "cat, the mat"),
        (texts[:1], "cat"),
        (texts[2:4], ["b", "c"]),
    ):
        with warnings.catch_warnings(action="ignore"):
            want = theirs(inputs, labels, **given)
        assert_close(ours(inputs, labels, **options), want)


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_cut_and_hypotheses_are_not(tmp_path, side):
    folder = write_task(tmp_path, CLASSIFIER, labels=NLI["entailment last"])
    settings = folder / "tokenizer_config.json"
    changes = {"truncation_side": side, "model_max_length": 48}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    theirs = transformers.pipeline("zero-shot-classification", model=str(folder))
    ours = pipeline("zero-shot-classification", str(folder))
    texts = random_texts(32, 6, 10, 200)
    with warnings.catch_warnings(action="ignore"):
        want = theirs(texts, LABELS)
    assert_close(ours(texts, LABELS), want)
    windows = ours.task({"labels": LABELS}).encode(ours.checkpoint.tokenizer, texts)
    assert windows.truncated.any()
    assert windows.n_tokens.max() < 48
    assert windows.lengths.max() == 48


@pytest.mark.parametrize("merge", ["max", "mean"])
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_windows(both, merge, multi_label, side):
    """A label's logit is the largest, or the mean, of those of the windows, each of which is a text of its own here."""
    ours = both("entailment last")[1]
    labels, text = ["c", "the cat sat there"], "the cat sat on the mat. " * 30
    tokenizer = ours.checkpoint.tokenizer.truncating(side)
    task = ours.task(
        {"labels": labels, "merge": merge, "multi_label": multi_label, "long_documents": "windows", "max_length": 64,
         "stride": 10}
    )  # fmt: skip
    windows = task.encode(tokenizer, ["the cat", text])
    hypotheses = [
        tokenizer.encode([f"This example is {label}."]).input_ids[1:-1].tolist() for label in labels
    ]
    assert windows.document.tolist() == [0] * 2 + [1] * (len(windows.document) - 2)
    assert windows.n_tokens[1] == len(tokenizer.encode([text]).input_ids) + 1
    assert not windows.truncated.any()
    rows = [ids.tolist() for ids in np.split(windows.input_ids, windows.cu_seqlens[1:-1])]
    of_label = [
        [i for i, row in enumerate(rows) if i > 1 and row[-1 - len(h) : -1] == h]
        for h in hypotheses
    ]
    assert of_label[0] + of_label[1] == list(range(2, len(rows)))
    predictions = ours.predictor.predict(windows.input_ids, windows.cu_seqlens, task=task)
    logits = predictions.values[:, 2] - (predictions.values[:, 0] if multi_label else 0)
    merged = [logits[some].max() if merge == "max" else logits[some].mean() for some in of_label]
    outputs = ModelOutputs(
        ["the cat", text], windows, predictions.values, predictions.splits, tokenizer
    )
    scores = dict(
        zip(*[task.results(outputs)[1][name] for name in ("labels", "scores")], strict=True)
    )
    if multi_label:
        want = [1 / (1 + 2.718281828459045 ** -float(logit)) for logit in merged]
    else:
        share = 1 / (1 + 2.718281828459045 ** float(merged[1] - merged[0]))
        want = [share, 1 - share]
    assert [scores[label] for label in labels] == pytest.approx(want, abs=1e-5)


def test_top_k_threshold_and_labels_of_a_document(both):
    ours = both("entailment last")[1]
    every = ours("the cat", LABELS, multi_label=True)
    best = ours("the cat", LABELS, multi_label=True, top_k=2)
    assert (best["labels"], best["scores"]) == (every["labels"][:2], every["scores"][:2])
    middle = every["scores"][3]
    assert (
        ours("the cat", LABELS, multi_label=True, threshold=middle)["labels"] == every["labels"][:4]
    )
    own = ours([("the cat", "cat, the mat"), ("a", "b\na, b")])
    assert own[0] == ours("the cat", ["cat", "the mat"])
    assert own[1] == ours("a", ["b", "a, b"])


MISTAKES = {
    "no label": ({"candidate_labels": []}, "labels .* must name at least one label"),
    "no labels at all": ({}, "input 0: it has no labels to choose from"),
    "template": (
        {"candidate_labels": "a", "hypothesis_template": "it is"},
        "hypothesis_template .* must have {} where",
    ),
    "braces": (
        {"candidate_labels": "a", "hypothesis_template": "{} {:9}"},
        "hypothesis_template .* no other braces",
    ),
    "long": (
        {"candidate_labels": "a " * 90, "max_length": 64},
        "input 0: too long: what is read beside it leaves 0 of 64",
    ),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(both, options, message):
    with pytest.raises(ValueError, match=message):
        both("entailment last")[1]("the cat", **options)


def test_a_model_without_entailment_is_refused(tmp_path):
    folder = write_task(tmp_path, CLASSIFIER, labels=["good", "bad"])
    with pytest.raises(ValueError, match="has the labels good, bad: none is entailment"):
        pipeline("zero-shot-classification", str(folder))
