"""Pipelines equal transformers' on the same checkpoint: the shapes of results, their texts, and their numbers.

Scores are probabilities in float32 of logits that agree to about 1e-6: within 1e-5. So do hidden states, of size one.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import transformers
from checkpoints import write_task
from predictions import PIECES, assert_close, random_texts
from transformers.pipelines.pt_utils import KeyDataset

from pipelines import pipeline

CLASSIFIER = "ModernBertForSequenceClassification"
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ODD = [
    "a",
    "the cat",
    "😀 the",
    "[SEP] in the [MASK] text [CLS]",
    "e\u0301\r\n\r\nthe",
    "\u202eאבג",
    " the  ",
]
STRATEGIES = ["none", "simple", "first", "average", "max"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Theirs and ours for a task on a checkpoint, each made once."""
    result = {}

    def make(task, architecture, **config):
        key = (task, *sorted(map(str, config.items())))
        if key not in result:
            folder = str(write_task(tmp_path_factory.mktemp("checkpoint"), architecture, **config))
            result[key] = transformers.pipeline(task, model=folder), pipeline(task, folder)
        return result[key]

    return make


class Truncating:
    """A checkpoint whose tokenizer truncates on another side."""

    def __init__(self, checkpoint, side):
        self.tokenizer = checkpoint.tokenizer.truncating(side)


def same(both, *inputs, **options):
    theirs, ours = both
    with warnings.catch_warnings(action="ignore"):
        want = theirs(*inputs, **options)
    assert_close(ours(*inputs, **options), want)
    return want


CLASSIFIERS = {
    "five labels": {"labels": [*"abcde"]},
    "multi-label": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "one output": {"num_labels": 1},
    "several numbers": {"num_labels": 3, "problem_type": "regression"},
}


@pytest.mark.parametrize("config", CLASSIFIERS.values(), ids=CLASSIFIERS)
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"function_to_apply": "none"},
                                     {"function_to_apply": "sigmoid", "top_k": None}], ids=str)  # fmt: skip
def test_text_classification(both, config, options):
    pipes = both("text-classification", CLASSIFIER, **config)
    texts = ODD + random_texts(1, 5)
    pair = {"text": texts[0], "text_pair": texts[-1]}
    for inputs in (texts, texts[:1], texts[-1], pair, [pair, {"text": "", "text_pair": texts[2]}]):
        same(pipes, inputs, **options)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize(
    "options", [{"top_k": 2}, {"top_k": None, "function_to_apply": "none"}], ids=str
)
def test_options_given_to_the_pipeline(tmp_path, options, labels):
    task, folder = "text-classification", str(write_task(tmp_path, CLASSIFIER, num_labels=labels))
    pipes = transformers.pipeline(task, model=folder, **options), pipeline(task, folder, **options)
    for inputs in ("the cat", ["the cat"], ["the", "cat"]):
        same(pipes, inputs)
        same(pipes, inputs, top_k=1)
        same(pipes, inputs, function_to_apply="softmax")


class Column:
    """A column as datasets has it: it has a length and items, and is no list."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return self.texts[i]

    def __iter__(self):
        return iter(self.texts)


STREAMS = {
    "text-classification": (CLASSIFIER, {"labels": [*"abcde"]}, {}),
    "text-classification, top_k": (CLASSIFIER, {"labels": [*"abcde"]}, {"top_k": 2}),
    "token-classification": (
        "ModernBertForTokenClassification",
        {"labels": BIO},
        {"aggregation_strategy": "simple"},
    ),
    "fill-mask": ("ModernBertForMaskedLM", {}, {}),
    "feature-extraction": ("ModernBertModel", {}, {}),
}


@pytest.mark.parametrize("task", STREAMS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_iterators_and_datasets(both, monkeypatch, task, count):
    """A generator gives an iterator of the same results, in order, and so does a dataset of torch."""
    monkeypatch.setattr("pipelines.memory.base._CHUNK_DOCUMENTS", 2)
    architecture, config, options = STREAMS[task]
    theirs, ours = both(task.partition(",")[0], architecture, **config)
    texts = [
        f"{text} [MASK]"
        for text in random_texts(8, count, 1, 40, [piece for piece in PIECES if "[" not in piece])
    ]
    want = (
        list(theirs((text for text in texts), **options)) if count else []
    )  # theirs fails without an item
    for streamed in (
        (text for text in texts),
        KeyDataset([{"a": text} for text in texts], "a"),
        iter(texts),
    ):
        got = ours(streamed, **options)
        assert iter(got) is got
        assert_close(list(got), want)
    listed = theirs(texts, **options) if count else []
    for column in (Column(texts), np.array(texts, dtype=object)):
        assert_close(ours(column, **options), listed)


@pytest.mark.parametrize("options", [
    {"batch_size": 8, "num_workers": 0}, {"padding": True, "truncation": True, "batch_size": 2},
    {"truncation": True, "max_length": 12}, {"truncation": "longest_first", "max_length": 12, "padding": "longest"},
    {"truncation": False}, {"truncation": False, "top_k": None},
], ids=str)  # fmt: skip
def test_arguments_of_tokenizers_and_batches(both, options):
    theirs, ours = both("text-classification", CLASSIFIER, labels=[*"abcde"])
    texts = random_texts(9, 5, 20, 80)
    pairs = [
        {"text": text, "text_pair": other} for text, other in zip(texts, texts[::-1], strict=True)
    ]
    for inputs in (texts, texts[0], texts[:1], pairs):
        same((theirs, ours), inputs, **options)
    loaded = pipeline("text-classification", ours.checkpoint.model, **options)
    assert loaded(texts) == ours(texts, **options)


@pytest.mark.parametrize("name", ["tokenizer_kwargs", "tokenize_kwargs"])
def test_arguments_of_tokenizers_in_a_dictionary(both, name):
    task, architecture = {"tokenizer_kwargs": ("fill-mask", "ModernBertForMaskedLM"),
                          "tokenize_kwargs": ("feature-extraction", "ModernBertModel")}[name]  # fmt: skip
    pipes = both(task, architecture)
    texts = [
        "[MASK] " + text
        for text in random_texts(9, 5, 20, 80, [p for p in PIECES if p != "[MASK]"])
    ]
    same(pipes, texts, **{name: {"truncation": True, "max_length": 12}})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "labels", [BIO, ["O", "PER", "LOC"], ["I-PER", "I-LOC", "B-LOC", "O"]], ids=" ".join
)
def test_token_classification(both, labels, strategy):
    pipes = both("token-classification", "ModernBertForTokenClassification", labels=labels)
    texts = ODD + random_texts(2, 12)
    assert any(same(pipes, texts, aggregation_strategy=strategy))
    for inputs in (texts[:1], texts[-1]):
        same(pipes, inputs, aggregation_strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_classification_with_wordpieces(tmp_path, strategy):
    folder = write_task(
        tmp_path, "ModernBertForTokenClassification", labels=BIO, tokenizer="WordPiece"
    )
    pipes = transformers.pipeline("ner", model=str(folder)), pipeline("ner", str(folder))
    assert any(same(pipes, ODD + random_texts(2, 20), aggregation_strategy=strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_that_token_classification_ignores(both, strategy):
    pipes = both("token-classification", "ModernBertForTokenClassification", labels=BIO)
    texts = random_texts(3, 3)
    for ignored in ([], ["O", "PER"], ["O", "B-PER", "LOC"]):
        same(pipes, texts, aggregation_strategy=strategy, ignore_labels=ignored)


def test_truncation_on_the_left(tmp_path):
    """Another end of the text, another label; windows are laid from the end on."""
    answers = {}
    texts = random_texts(4, 6, 60, 250)
    for side in ("right", "left"):
        for architecture, task in (
            (CLASSIFIER, "text-classification"),
            ("ModernBertForMaskedLM", "fill-mask"),
        ):
            folder = write_task(tmp_path / side / task, architecture)
            settings = folder / "tokenizer_config.json"
            settings.write_text(
                json.dumps(json.loads(settings.read_text()) | {"truncation_side": side})
            )
            theirs, ours = (
                transformers.pipeline(task, model=str(folder)),
                pipeline(task, str(folder)),
            )
            if task == "text-classification":
                answers[side] = theirs(texts, truncation=True, max_length=32, top_k=None)
                assert_close(ours(texts, max_length=32, top_k=None), answers[side])
                pairs = [
                    {"text": text, "text_pair": other}
                    for text, other in zip(texts, texts[::-1], strict=True)
                ]
                want = theirs(pairs, truncation=True, max_length=50, top_k=None)
                assert_close(ours(pairs, max_length=50, top_k=None), want)
            else:
                masked = [f"[MASK]{text} [MASK]" for text in texts]
                want = theirs(masked, tokenizer_kwargs={"truncation": True, "max_length": 24})
                assert_close(ours(masked, max_length=24, long_documents="truncate"), want)
    assert answers["left"] != answers["right"]


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize(("max_length", "stride"), [(40, 10), (64, 0), (130, 100)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_token_classification_of_long_texts(both, strategy, max_length, stride, side, monkeypatch):
    theirs, ours = both("token-classification", "ModernBertForTokenClassification", labels=BIO)
    monkeypatch.setattr(theirs.tokenizer, "truncation_side", side)
    monkeypatch.setattr(ours.predictor, "checkpoint", Truncating(ours.checkpoint, side))
    texts = random_texts(4, 4, 20, 250)
    theirs.tokenizer.model_max_length = max_length
    with warnings.catch_warnings(action="ignore"):
        want = [theirs(text, aggregation_strategy=strategy, stride=stride) for text in texts]
    theirs.tokenizer.model_max_length = 8192
    assert_close(
        ours(texts, aggregation_strategy=strategy, max_length=max_length, stride=stride), want
    )


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"targets": [" the", " cat", "b"]},
                                     {"targets": ["the", "zzz"], "top_k": 1}, {"targets": "the"}], ids=str)  # fmt: skip
def test_fill_mask(both, options):
    pipes = both("fill-mask", "ModernBertForMaskedLM")
    plain = [piece for piece in PIECES if piece != "[MASK]"]
    halves = random_texts(5, 12, 1, 60, plain)
    one = [
        f"{before} [MASK]{after}" for before, after in zip(halves[::2], halves[1::2], strict=True)
    ]
    several = [text + "[MASK]" * (i % 3) + halves[i] + "[MASK]" for i, text in enumerate(one)]
    for inputs in (one, one + several, several, one[0], several[0], one[:1], several[:1]):
        same(pipes, inputs, **options)


def test_feature_extraction(both):
    pipes = both("feature-extraction", "ModernBertModel")
    texts = ODD + random_texts(6, 6, 1, 60)
    for inputs in (texts, texts[:1], texts[0]):
        same(pipes, inputs)
