"""Pipelines in memory: odd texts, what shares a batch, long documents, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import write_task
from predictions import random_texts

from modernbert.files import CheckpointError
from pipelines import pipeline

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
MODELS = {
    "text-classification": ("ModernBertForSequenceClassification", {"labels": [*"abcde"]}),
    "token-classification": ("ModernBertForTokenClassification", {"labels": ["O", "B-X", "I-X", "B-Y", "I-Y"]}),
    "question-answering": ("ModernBertForQuestionAnswering", {}),
    "fill-mask": ("ModernBertForMaskedLM", {}),
    "feature-extraction": ("ModernBertModel", {}),
    "sentence-embedding": ("ModernBertModel", {}),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}),
}
ODD = [
    "", " ", "\0", "[SEP]", "[CLS][SEP][PAD][UNK]", "[MASK]", "the cat", "a" * 500, "\u200d\u200d", "\ufeff",
    "👩‍👩‍👧‍👦" * 8, "\r\n\r\n", "the cat sat " * 50, *random_texts(9, 6, 1, 80),
]  # fmt: skip
CONTEXTS = [text for text in ODD if text]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {task: tmp_path_factory.mktemp("checkpoint") for task in MODELS}
    return {
        task: str(write_task(folders[task], architecture, **SMALL, **config))
        for task, (architecture, config) in MODELS.items()
    }


def answers(pipe, task, texts, **options):
    """A result for each text, in its order."""
    if task == "question-answering":
        found = pipe(question=["the"] * len(texts), context=texts, **options)
        return [found] if len(texts) == 1 else found
    if task == "rerank":
        return [ranked["score"] for ranked in sorted(pipe("the", texts, **options), key=lambda ranked: ranked["index"])]
    if task == "fill-mask":
        found = pipe([text + "[MASK]" for text in texts], **options)
        return [found] if len(texts) == 1 else found
    return pipe(texts, **options)


WINDOWS = {"long_documents": "windows"}
CASES = [
    ("text-classification", {}),
    ("text-classification", {"max_length": 3}),
    ("text-classification", {**WINDOWS, "max_length": 16, "stride": 0}),
    ("text-classification", {**WINDOWS, "max_length": 5, "stride": 1, "merge": "max", "top_k": None}),
    ("token-classification", {}),
    ("token-classification", {"max_length": 4, "aggregation_strategy": "simple"}),
    ("token-classification", {"max_length": 16, "stride": 12, "aggregation_strategy": "first"}),
    ("token-classification", {"max_length": 7, "stride": 3, "aggregation_strategy": "average"}),
    ("token-classification", {"max_length": 3, "stride": 0, "aggregation_strategy": "max"}),
    ("question-answering", {}),
    ("question-answering", {"max_length": 16, "stride": 2, "top_k": 4, "no_answer": True}),
    ("question-answering", {"max_length": 8, "stride": 0, "align_to_words": False}),
    ("question-answering", {"max_length": 5, "long_documents": "truncate"}),
    ("fill-mask", {}),
    ("fill-mask", {"max_length": 16, "stride": 12}),
    ("fill-mask", {"max_length": 3}),
    ("feature-extraction", {"max_length": 40}),
    ("sentence-embedding", {}),
    ("sentence-embedding", {**WINDOWS, "max_length": 16, "stride": 0, "precision": "int8"}),
    ("sentence-embedding", {**WINDOWS, "max_length": 5, "stride": 1, "precision": "binary", "normalize": True}),
    ("rerank", {}),
    ("rerank", {**WINDOWS, "max_length": 16, "stride": 2}),
    ("rerank", {"max_length": 4}),
]


@pytest.mark.parametrize(("task", "options"), CASES, ids=str)
def test_odd_texts_have_the_same_answer_whatever_shares_their_batch(folders, task, options):
    """To the last bit: all together, in packed batches of one window, in another order, alone."""
    pipe, narrow = pipeline(task, folders[task]), pipeline(task, folders[task], budget_tokens=1)
    texts = CONTEXTS if task == "question-answering" else ODD
    together = answers(pipe, task, texts, **options)
    assert len(together) == len(texts)
    assert answers(narrow, task, texts[::-1], **options)[::-1] == together
    assert [answers(pipe, task, [text], **options)[0] for text in texts] == together


@pytest.mark.slow
@pytest.mark.parametrize("task", MODELS)
def test_documents_of_a_hundred_thousand_tokens(folders, task):
    long = "the cat sat on the mat. " * 12_500
    windows = {} if task == "feature-extraction" else {**WINDOWS, "max_length": 512}
    pipe = pipeline(task, folders[task])
    cut, whole, short = (answers(pipe, task, [text], **windows) for text in (long[:150_000], long, long[:3000]))
    assert len(cut) == len(whole) == len(short) == 1
    if task == "token-classification":
        assert whole[0][-1]["end"] > 290_000
    if task == "feature-extraction":
        assert len(whole[0][0]) == 8192


@pytest.mark.parametrize("task", MODELS)
def test_no_texts_no_answers(folders, task):
    assert answers(pipeline(task, folders[task]), task, []) == []


MISTAKES = [
    ("token-classification", {"aggregation_strategy": "best"}, "aggregation 'best': must be 'none', 'simple', 'first'"),
    ("token-classification", {"ignore_labels": "PER"}, "ignore_labels 'PER': 'str' instances are not allowed"),
    ("token-classification", {"max_length": 2}, "max_length 2 must be at least 3"),
    ("token-classification", {"stride": -1}, "stride -1 must be at least 0"),
    ("token-classification", {"max_length": "8"}, "max_length '8': must be a valid integer"),
    ("token-classification", {"top_k": 2}, "top_k is no option of tag; it has max_length, long_documents, stride, agg"),
    ("token-classification", {"long_documents": "cut"}, "long_documents 'cut': must be 'truncate' or 'windows'"),
    ("text-classification", {"function_to_apply": "tanh"}, "function 'tanh': must be 'softmax', 'sigmoid' or 'none'"),
    ("text-classification", {"merge": "min"}, "merge 'min': must be 'mean' or 'max'"),
    ("text-classification", {"threshold": 0.5}, "threshold is for multi-label models"),
    ("question-answering", {"top_k": 0}, "top_k 0 must be at least 1"),
    ("question-answering", {"max_seq_len": 9000}, "max_length 9000 is above the model's 8192 positions"),
    ("question-answering", {"doc_stride": 381}, "stride 381 leaves nothing new in windows of max_length 384"),
    ("sentence-embedding", {"precision": "int4"}, "precision 'int4': must be 'float32', 'float16', 'int8', 'binary'"),
    ("sentence-embedding", {"dimensions": 3.5}, "dimensions 3.5: must be a valid integer"),
    ("fill-mask", {"top_k": 301}, "top_k 301 must be from 1 to the vocabulary's 300 tokens"),
]


@pytest.mark.parametrize(("task", "options", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_options_that_mean_nothing(folders, task, options, message):
    with pytest.raises(ValueError, match=message):
        answers(pipeline(task, folders[task]), task, ["the cat"], **options)
    with pytest.raises(ValueError, match=message):
        pipeline(task, folders[task], **options)


@pytest.mark.parametrize("name", ["SIMPLE", "Simple"])
def test_the_case_of_transformers_own_option_values_does_not_matter(folders, name):
    pipe = pipeline("ner", folders["token-classification"])
    assert pipe("the cat", aggregation_strategy=name) == pipe("the cat", aggregation="simple")


PLACES = [
    ({"budget_tokens": 0}, "budget_tokens 0 must be at least 1"),
    ({"dtype": "float8"}, "dtype 'float8' is unknown; known are"),
    ({"device": "gpu"}, "device 'gpu' is unknown"),
]


@pytest.mark.parametrize(("options", "message"), PLACES)
def test_placements_that_do_not_exist(folders, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline("ner", folders["token-classification"], **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(folders):
    with pytest.raises(ValueError, match="device cuda:0: torch sees no GPU here"):
        pipeline("ner", folders["token-classification"], device=0)


INPUTS = [
    ("token-classification", (["the", 1],), {}, r"input 1 holds '1' \(int\), not text"),
    ("token-classification", (["the", "\udc80"],), {}, r"input 1 holds '\\udc80', half a surrogate pair"),
    ("token-classification", ([("the", "cat")],), {}, "input 0 is a pair; tag takes single texts"),
    ("text-classification", ([{"texts": "the"}],), {}, "input must hold text, not"),
    ("text-classification", (["the", {"text": "a", "text_pair": "b"}],), {}, "texts and pairs cannot be mixed"),
    ("fill-mask", (["the [MASK]", "the"],), {}, r"input 1: text has no \[MASK\]"),
    ("question-answering", (), {"question": "a"}, "give question and context"),
    ("question-answering", (), {"question": ["a"], "context": ["b", "c"]}, "1 questions have 2 contexts"),
    ("question-answering", (), {"question": "", "context": "the cat"}, "input 0: question is empty"),
    ("question-answering", ([{"question": "a", "context": ""}],), {}, "input 0: context is empty"),
    ("question-answering", ({"question": "a"},), {}, "input must hold question and context, not"),
    ("question-answering", (), {"question": "the " * 500, "context": "b" * 3000}, "too long for overlapping windows"),
    ("rerank", ("the", "cat"), {}, "texts must be a list of texts, not 'cat'"),
]


@pytest.mark.parametrize(("task", "inputs", "named", "message"), INPUTS, ids=lambda value: str(value)[:30])
def test_inputs_that_have_no_answer(folders, task, inputs, named, message):
    with pytest.raises(ValueError, match=message):
        pipeline(task, folders[task])(*inputs, **named)


def test_lines_that_cannot_be_read_do_not_stop_the_others(folders):
    pipe = pipeline("question-answering", folders["question-answering"])
    lines = ['{"question": "\\ud800", "context": "the cat"}', "[" * 100_000, '{"question": "a", "context": "the cat"}']
    surrogate, nested, answered = pipe.predict_lines(lines)
    assert surrogate["error"].startswith("input 0 holds '\\ud800', half a surrogate pair")
    assert nested["error"].startswith("not valid JSON: maximum recursion depth exceeded")
    assert answered["answer"] in "the cat"


NO_FIT = [
    ({"0": "a", "1": "b"}, "classifier.weight has shape"),
    ({"0": "a", "1": "b", "4": "c"}, "id2label must number the labels 0, 1, 2"),
    ({"x": "a"}, "id2label must map whole numbers to names"),
]


@pytest.mark.parametrize(("labels", "message"), NO_FIT, ids=str)
@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_label_maps_that_do_not_fit_the_weights(tmp_path, task, labels, message):
    architecture, config = MODELS[task]
    file = write_task(tmp_path, architecture, **SMALL, **config) / "config.json"
    raw = {name: value for name, value in json.loads(file.read_text()).items() if name != "label2id"}
    file.write_text(json.dumps(raw | {"id2label": labels}))
    with pytest.raises((CheckpointError, ValueError), match=message):
        pipeline(task, str(tmp_path))
