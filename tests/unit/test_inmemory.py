"""Pipelines in memory: odd texts, what shares a batch, long documents, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import write_task
from predictions import random_texts

from modernbert.files import CheckpointError
from pipelines import pipeline

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
MODELS = {
    "text-classification": ("ModernBertForSequenceClassification", {"labels": [*"abcde"]}),
    "token-classification": (
        "ModernBertForTokenClassification",
        {"labels": ["O", "B-X", "I-X", "B-Y", "I-Y"]},
    ),
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
        return [
            ranked["score"]
            for ranked in sorted(pipe("the", texts, **options), key=lambda ranked: ranked["index"])
        ]
    if task == "fill-mask":
        found = pipe([text + "[MASK]" for text in texts], **options)
        return [found] if len(texts) == 1 else found
    return pipe(texts, **options)


WINDOWS = {"long_documents": "windows"}
CASES = [
    ("text-classification", {}),
    ("text-classification", {"max_length": 3}),
    ("text-classification", {**WINDOWS, "max_length": 16, "stride": 0}),
    (
        "text-classification",
        {**WINDOWS, "max_length": 5, "stride": 1, "merge": "max", "top_k": None},
    ),
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
    (
        "sentence-embedding",
        {**WINDOWS, "max_length": 5, "stride": 1, "precision": "binary", "normalize": True},
    ),
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
    cut, whole, short = (
        answers(pipe, task, [text], **windows) for text in (long[:150_000], long, long[:3000])
    )
    assert len(cut) == len(whole) == len(short) == 1
    if task == "token-classification":
        assert whole[0][-1]["end"] > 290_000
    if task == "feature-extraction":
        assert len(whole[0][0]) == 8192


@pytest.mark.parametrize("task", MODELS)
def test_no_texts_no_answers(folders, task):
    assert answers(pipeline(task, folders[task]), task, []) == []


MISTAKES = [
    (
        "token-classification",
        {"aggregation_strategy": "best"},
        "aggregation 'best': must be 'none', 'simple', 'first'",
    ),
    (
        "token-classification",
        {"ignore_labels": "PER"},
        "ignore_labels 'PER': 'str' instances are not allowed",
    ),
    ("token-classification", {"max_length": 2}, "max_length 2 must be at least 3"),
    ("token-classification", {"stride": -1}, "stride -1 must be at least 0"),
    ("token-classification", {"max_length": "8"}, "max_length '8': must be a valid integer"),
    (
        "token-classification",
        {"top_k": 2},
        "top_k is not an option of tag; it has max_length, long_documents, stride, agg",
    ),
    (
        "token-classification",
        {"long_documents": "cut"},
        "long_documents 'cut': must be 'truncate' or 'windows'",
    ),
    (
        "text-classification",
        {"function_to_apply": "tanh"},
        "function 'tanh': must be 'softmax', 'sigmoid' or 'none'",
    ),
    ("text-classification", {"merge": "min"}, "merge 'min': must be 'mean' or 'max'"),
    ("text-classification", {"threshold": 0.5}, "threshold is for multi-label models"),
    ("question-answering", {"top_k": 0}, "top_k 0 must be at least 1"),
    (
        "question-answering",
        {"max_seq_len": 9000},
        "max_length 9000 is above the model's 8192 positions",
    ),
    (
        "question-answering",
        {"doc_stride": 381},
        "stride 381 leaves nothing new in windows of max_length 384",
    ),
    (
        "sentence-embedding",
        {"precision": "int4"},
        "precision 'int4': must be 'float32', 'float16', 'int8', 'binary'",
    ),
    ("sentence-embedding", {"dimensions": 3.5}, "dimensions 3.5: must be a valid integer"),
    ("fill-mask", {"top_k": 301}, "top_k 301 must be from 1 to the vocabulary's 300 tokens"),
]


@pytest.mark.parametrize(
    ("task", "options", "message"), MISTAKES, ids=lambda value: str(value)[:40]
)
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
    ({"dtype": "float4"}, "dtype 'float4' is unknown; known are"),
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


def test_an_iterator_is_read_some_texts_at_a_time(folders, monkeypatch):
    monkeypatch.setattr("pipelines.memory.base._CHUNK_DOCUMENTS", 3)
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield f"the cat {len(read)}"

    pipe = pipeline("text-classification", folders["text-classification"])
    results = pipe(endless())
    assert read == []
    first = [next(results) for _ in range(4)]
    assert len(read) == 6
    assert first == pipe([f"the cat {i}" for i in range(1, 5)])
    wrong = pipe(iter(["the", "cat", "sat", "on", 7]))
    assert [next(wrong) for _ in range(3)] == pipe(["the", "cat", "sat"])
    with pytest.raises(ValueError, match="input 4 holds '7'"):
        next(wrong)
    with pytest.raises(ValueError, match="top_k 999 must be from 1"):
        pipeline("fill-mask", folders["fill-mask"])(iter(["[MASK]"]), top_k=999)


def test_iterators_of_questions_and_of_passages(folders):
    pairs = [{"question": "the", "context": text} for text in CONTEXTS[-5:]]
    pipe = pipeline("question-answering", folders["question-answering"])
    assert list(pipe(iter(pairs))) == pipe(pairs)
    assert list(pipe(iter(pairs[:1]))) == [pipe(pairs[:1])]
    assert len(pipe(pairs[0], top_k=3)) == len(pipe(pairs[:1], top_k=3)) == 3
    pipe = pipeline("rerank", folders["rerank"])
    assert pipe("the", iter(CONTEXTS)) == pipe("the", CONTEXTS)
    assert pipe("the", iter(CONTEXTS), return_text=True)[0]["text"] in CONTEXTS


def test_return_all_scores(folders):
    """Before transformers 5: all labels in their order, for a single text in one more list."""
    folder = folders["text-classification"]
    pipe = pipeline("text-classification", folder)
    want = [sorted(scores, key=lambda score: score["label"]) for scores in pipe(ODD, top_k=None)]
    assert pipe(ODD, return_all_scores=True) == want
    assert pipe(ODD[6], return_all_scores=True) == want[6:7]
    assert pipeline("text-classification", folder, return_all_scores=True)(ODD) == want
    assert pipe(ODD, return_all_scores=False) == pipe(ODD)
    assert pipe(ODD, return_all_scores=True, top_k=1) == pipe(ODD, top_k=1)


@pytest.mark.parametrize("task", MODELS)
def test_truncation_is_asked_for_and_is_not(folders, task):
    """It is cut, also where long texts are otherwise read in windows, or it is an error, but not both."""
    pipe = pipeline(task, folders[task])
    texts = [f"[MASK] {text}" for text in CONTEXTS[-4:]]
    cut = answers(pipe, task, texts, truncation=True, max_length=16)
    assert cut == answers(pipe, task, texts, long_documents="truncate", max_length=16)
    with pytest.raises(ValueError, match="input 1: longer than 16 tokens, and truncation is False"):
        answers(
            pipe,
            task,
            ["cat", "[MASK] " + "the " * 40],
            truncation=False,
            max_length=16,
            long_documents="truncate",
        )
    assert answers(pipe, task, ["cat"], truncation=False, max_length=16) == answers(
        pipe, task, ["cat"], max_length=16
    )


def test_arguments_of_loading(folders):
    folder = folders["text-classification"]
    want = pipeline("text-classification", folder)("the cat")
    for given in (
        {
            "tokenizer": folder,
            "config": folder,
            "framework": "pt",
            "use_fast": False,
            "trust_remote_code": True,
        },
        {
            "model_kwargs": {"attn_implementation": "eager", "torch_dtype": torch.float32},
            "token": True,
        },
        {"device_map": "auto", "batch_size": 4, "num_workers": 2, "padding": True},
        {"device_map": {"": "cpu"}, "dtype": "float32", "torch_dtype": torch.float32},
    ):
        assert pipeline("text-classification", folder, **given)("the cat") == want
    half = pipeline("text-classification", folder, model_kwargs={"dtype": torch.bfloat16})
    assert half.predictor.dtype == "bfloat16"


REFUSED = [
    ({"tokenizer": "another"}, "tokenizer must be that of model"),
    ({"config": object()}, "config must be that of model"),
    ({"framework": "tf"}, "framework 'tf' is not available; it must be 'pt'"),
    ({"token": "hf_x"}, "token is read from the environment: set HF_TOKEN"),
    ({"model_kwargs": {"num_labels": 3}}, "model_kwargs num_labels is not available"),
    ({"device_map": {"a": 0, "b": 1}}, "a model lies on one device here; give device"),
    ({"device_map": "cpu", "device": -1}, "a model lies on one device here; give device"),
    (
        {"dtype": "float32", "torch_dtype": "bfloat16"},
        "dtype is given as bfloat16 and float32; give it once",
    ),
    (
        {"truncation": "only_first"},
        "truncation 'only_first' is not available; it must be True, 'longest_first' or",
    ),
    ({"padding": "max_length"}, "padding 'max_length' is not available"),
    ({"is_split_into_words": True}, "is_split_into_words is not an option of classify"),
    (
        {"tokenizer_kwargs": {"add_special_tokens": False}},
        "add_special_tokens is not an option of classify",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_arguments_that_would_change_answers(folders, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline("text-classification", folders["text-classification"], **options)


INPUTS = [
    ("token-classification", (7,), {}, "inputs must be a text or an iterable of texts, not '7'"),
    ("fill-mask", ({"text": "the"},), {}, r"input 0 holds .* \(dict\), not text"),
    ("token-classification", (["the", 1],), {}, r"input 1 holds '1' \(int\), not text"),
    (
        "token-classification",
        (["the", "\udc80"],),
        {},
        r"input 1 holds '\\udc80', half a surrogate pair",
    ),
    ("fill-mask", ([("the", "cat")],), {}, "input 0 is a pair; fill takes single texts"),
    (
        "token-classification",
        (["the", ["cat"]],),
        {"is_split_into_words": True},
        r"input 0 is no list of words, which tag takes with is_split_into_words",
    ),
    (
        "token-classification",
        ([["the", 1]],),
        {"is_split_into_words": True},
        r"input 0 holds .* \(list\), not text",
    ),
    (
        "token-classification",
        (["the"],),
        {"is_split_into_words": True, "aggregation_strategy": "max"},
        "aggregation max is for texts",
    ),
    (
        "token-classification",
        (["the"],),
        {"is_split_into_words": True, "ignore_labels": ["O"]},
        "ignore_labels is for entities",
    ),
    ("text-classification", ([{"texts": "the"}],), {}, "input must hold text, not"),
    (
        "text-classification",
        (["the", {"text": "a", "text_pair": "b"}],),
        {},
        "texts and pairs cannot be mixed",
    ),
    ("fill-mask", (["the [MASK]", "the"],), {}, r"input 1: text has no \[MASK\]"),
    ("question-answering", (), {"question": "a"}, "give question and context"),
    (
        "question-answering",
        (),
        {"question": ["a"], "context": ["b", "c"]},
        "1 questions have 2 contexts",
    ),
    (
        "question-answering",
        (),
        {"question": "", "context": "the cat"},
        "input 0: question is empty",
    ),
    ("question-answering", ([{"question": "a", "context": ""}],), {}, "input 0: context is empty"),
    ("question-answering", ({"question": "a"},), {}, "input must hold question and context, not"),
    (
        "question-answering",
        (),
        {"question": "the " * 500, "context": "b" * 3000},
        "too long for overlapping windows",
    ),
    ("rerank", ("the", "cat"), {}, "texts must be a list of texts, not 'cat'"),
]


@pytest.mark.parametrize(
    ("task", "inputs", "named", "message"), INPUTS, ids=lambda value: str(value)[:30]
)
def test_inputs_that_have_no_answer(folders, task, inputs, named, message):
    with pytest.raises(ValueError, match=message):
        pipeline(task, folders[task])(*inputs, **named)


def test_lines_that_cannot_be_read_do_not_stop_the_others(folders):
    pipe = pipeline("question-answering", folders["question-answering"])
    lines = [
        '{"question": "\\ud800", "context": "the cat"}',
        "[" * 100_000,
        '{"question": "a", "context": "the cat"}',
    ]
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
    raw = {
        name: value for name, value in json.loads(file.read_text()).items() if name != "label2id"
    }
    file.write_text(json.dumps(raw | {"id2label": labels}))
    with pytest.raises((CheckpointError, ValueError), match=message):
        pipeline(task, str(tmp_path))
