"""zero_shot with a GLiClass equals the package gliclass on the same checkpoint: logits and scores within 1e-5.

gliclass pools padding, too: it is given one text at a time.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from checkpoints import TOKENIZERS, change_json, write_gliclass
from gliclass import GLiClassModel, ZeroShotClassificationPipeline
from predictions import random_texts

from modernbert.stored import ConfigError
from pipelines import pipeline
from pipelines.tasks.outputs import ModelOutputs

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
    scales = []
    for text in texts:
        (want,) = theirs.get_embeddings([text], LABELS)
        outputs, failed = ours.predictor.answer([text], ours.task({"labels": LABELS}))
        assert not failed
        # Sums of many tokens are large, and so are what is lost of them, and of their scores.
        scales.append(max(float(np.abs(want["logits"]).max()), 1.0))
        assert np.abs(outputs.values[:, 0] - want["logits"]).max() <= 1e-5 * scales[-1]
    for kind, multi_label in (("multi-label", True), ("single-label", False)):
        wanted = [
            theirs(text, LABELS, classification_type=kind, return_hierarchical=True)[0]
            for text in texts
        ]
        answers = ours(texts, LABELS, multi_label=multi_label)
        for answer, want, scale in zip(answers, wanted, scales, strict=True):
            assert scores_of(answer) == pytest.approx(want, abs=1e-5 * scale)
            assert all(a >= b for a, b in pairwise(answer["scores"]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Theirs and ours on a checkpoint with labels before the text, and on one with labels behind it."""
    folders = {first: tmp_path_factory.mktemp("plain") for first in (True, False)}
    return {
        first: both(write_gliclass(folder, prompt_first=first, normalize_features=True))
        for first, folder in folders.items()
    }


def test_texts_are_cut_and_labels_are_not(plain):
    """gliclass cuts the end of what it reads: where labels stand behind a text, these."""
    text = " ".join(random_texts(62, 6, 30, 200))
    for first, (theirs, ours) in plain.items():
        tokenizer = ours.checkpoint.tokenizer
        windows = ours.task({"labels": LABELS, "max_length": 128}).encode(tokenizer, [text])
        assert windows.lengths.tolist() == [128]
        assert windows.truncated.tolist() == [True]
        prompt = "".join(f"<<LABEL>>{label}" for label in LABELS) + "<<SEP>>"
        labels = tokenizer.encode([prompt]).input_ids[1:-1].tolist()
        read = tokenizer.encode([text]).input_ids[1 : 127 - len(labels)].tolist()
        ids = [*labels, *read] if first else [*read, *labels]
        assert windows.input_ids[1:-1].tolist() == ids
        assert windows.n_tokens.tolist() == [len(read) + 2]
        input_ids = torch.from_numpy(windows.input_ids)[None]
        mask = torch.ones_like(input_ids)
        with torch.no_grad():
            logits = theirs.pipe.model(input_ids, mask, max_num_classes=len(LABELS)).logits
        want = dict(zip(LABELS, logits[0].sigmoid().tolist(), strict=True))
        (got,) = ours([text], LABELS, max_length=128, multi_label=True)
        assert scores_of(got) == pytest.approx(want, abs=1e-5)
        if first:
            theirs.pipe.max_length = 128
            (want,) = theirs([text], LABELS, return_hierarchical=True)
            theirs.pipe.max_length = 8192
            assert scores_of(got) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("merge", ["max", "mean"])
def test_windows(plain, side, merge):
    """A label's logit is the largest, or the mean, of those of the windows, each of which has all labels."""
    for first, (_, ours) in plain.items():
        text = "the cat sat on the mat. " * 30
        options = {"labels": ["c", "the mat"], "multi_label": True, "merge": merge}
        options |= {"long_documents": "windows", "max_length": 64, "stride": 10}
        task = ours.task(options)
        tokenizer = ours.checkpoint.tokenizer.truncating(side)
        windows = task.encode(tokenizer, ["a", text])
        assert windows.document.tolist() == [0] + [1] * (len(windows.document) - 1)
        assert not windows.truncated.any()
        rows = [ids.tolist() for ids in np.split(windows.input_ids, windows.cu_seqlens[1:-1])]
        prompt = tokenizer.encode(["<<LABEL>>c<<LABEL>>the mat<<SEP>>"]).input_ids[1:-1].tolist()
        for row in rows:
            assert (row[1 : len(prompt) + 1] if first else row[-len(prompt) - 1 : -1]) == prompt
        predictions = ours.predictor.predict(windows.input_ids, windows.cu_seqlens, task=task)
        assert len(predictions.values) == 2 * len(rows)
        outputs = ModelOutputs(
            ["a", text], windows, predictions.values, predictions.splits, tokenizer
        )
        scores = scores_of(task.results(outputs)[1])
        logits = predictions.values[2:].reshape(-1, 2)
        want = torch.from_numpy(getattr(logits, merge)(axis=0)).sigmoid()
        assert [scores["c"], scores["the mat"]] == pytest.approx(want.tolist(), abs=1e-6)


def test_a_label_alone_and_labels_of_a_document(plain):
    """Of a single label gliclass gives its sigmoid, or with "single-label" always 1: it has no others."""
    theirs, ours = plain[True]
    (want,) = theirs(["the cat"], ["mat"], threshold=0.0)[0]
    for multi_label in (True, False):
        answer = ours("the cat", ["mat"], multi_label=multi_label)
        assert answer["scores"] == pytest.approx([want["score"]], abs=1e-5)
    own = ours([("the cat", "cat, the mat"), ("a", "b\na, b")])
    assert own[0] == ours("the cat", ["cat", "the mat"])
    assert own[1] == ours("a", ["b", "a, b"])


EVERY_PART = {
    "use_lstm": True,
    "use_calibrator": True,
    "use_segment_embeddings": True,
    "pooling_strategy": "avg",
    "class_token_pooling": "average",
}


@pytest.mark.parametrize("scorer", [*VALUES["scorer_type"], "cross-attn"])
def test_answers_do_not_depend_on_what_shares_a_batch(tmp_path, scorer):
    """To the bit."""
    form = CROSS_ATTENTION if scorer == "cross-attn" else EVERY_PART | {"scorer_type": scorer}
    ours = pipeline("zero-shot-classification", str(write_gliclass(tmp_path, **form)))
    documents = [
        (text, labels)
        for text in random_texts(63, 4, 1, 90)
        for labels in (LABELS, LABELS[:1], [*"abcdefghij"])
    ]
    assert ours(documents) == [ours([document])[0] for document in documents]


def test_ten_labels_cost_little_more_than_none(plain):
    """A model of entailment reads the text ten times."""
    _, ours = plain[True]
    tokenizer = ours.checkpoint.tokenizer
    text = "the cat sat there " * 75
    alone = len(tokenizer.encode([text]).input_ids)
    labels = [f"{letter} cat" for letter in "abcdefghij"]
    windows = ours.task({"labels": labels}).encode(tokenizer, [text])
    assert len(windows.document) == 1
    assert 300 <= alone < len(windows.input_ids) < alone + 45


MISTAKES = {
    "no label": ({"candidate_labels": []}, "labels .* must name at least one label"),
    "no labels at all": ({}, "input 0: it has no labels to choose from"),
    "template": (
        {"candidate_labels": "a", "hypothesis_template": "it is {}"},
        "hypothesis_template is for models of entailment",
    ),
    "too many": (
        {"candidate_labels": "a " * 90, "max_length": 64},
        r"labels have \d+ tokens .* leave none of the 64",
    ),
    "a marker": (
        {"candidate_labels": ["a", "b<<SEP>>c"]},
        "labels hold <<LABEL>>, <<SEP>> or <<EXAMPLE>>, which are for the model alone",
    ),
    "another marker": (
        {"candidate_labels": ["<<LABEL>>"]},
        "labels hold <<LABEL>>, <<SEP>> or <<EX",
    ),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(plain, options, message):
    for _, ours in plain.values():
        with pytest.raises(ValueError, match=message):
            ours("the cat", **options)


def test_documents_that_cannot_be_read(plain):
    """A document that holds a marker is rejected, wherever it stands; those beside it are not."""
    for _, ours in plain.values():
        task = ours.task({"max_length": 64})
        documents = [
            ("the cat", "cat\nmat"),
            ("the <<LABEL>> cat", "cat\nmat"),
            ("the <<SEP>> cat", "cat\nmat"),
            ("the cat", "<<SEP>>\nmat"),
            ("the cat", "a " * 90 + "\nmat"),
            ("the cat", ""),
            ("the mat", "cat\nmat"),
        ]
        outputs, failed = ours.predictor.answer(documents, task)
        marker = "its text or its labels hold <<LABEL>>, <<SEP>> or <<EXAMPLE>>, which are for the model alone"
        assert failed == {
            1: marker,
            2: marker,
            3: marker,
            4: "too long: what is read beside it leaves 0 of 64 tokens to it; 1 are needed",
            5: "it has no labels to choose from",
        }
        rows = task.decode(outputs).to_pylist()
        for i in (0, 6):
            assert sorted(rows[i]["labels"]) == ["cat", "mat"]
            (alone,) = ours([documents[i]])
            assert (rows[i]["labels"], rows[i]["scores"]) == (alone["labels"], alone["scores"])


def test_a_text_with_the_token_of_examples(plain, tmp_path):
    """It is a token as any other, but for segments: gliclass then has all tokens in that of examples."""
    text = "the <<EXAMPLE>> cat"
    for theirs, ours in plain.values():
        (want,) = theirs([text], LABELS, return_hierarchical=True)
        assert scores_of(ours(text, LABELS, multi_label=True)) == pytest.approx(want, abs=1e-5)
    segments = pipeline(
        "zero-shot-classification", str(write_gliclass(tmp_path, use_segment_embeddings=True))
    )
    with pytest.raises(ValueError, match=r"input 1: its text or its labels hold .*<<EXAMPLE>>"):
        segments(["the cat", text], LABELS)


NOT_RUN = {
    "bi-encoder": ({"architecture_type": "bi-encoder"}, "architecture_type is 'bi-encoder'"),
    "fused": ({"architecture_type": "bi-encoder-fused"}, "architecture_type is 'bi-encoder-fused'"),
    "encoder-decoder": ({"architecture_type": "encoder-decoder"}, "'encoder-decoder'; .* uni-enc"),
    "decoder": ({"architecture_type": "decoder-kv"}, "architecture_type is 'decoder-kv'"),
    "another backbone": (
        {"encoder_config": {"model_type": "deberta-v2"}},
        "encoder_config has model_type 'deberta-v2'",
    ),
    "all layers": ({"squeeze_layers": True}, "squeeze_layers is True"),
    "another layer": ({"encoder_layer_id": 1}, "encoder_layer_id is 1"),
    "pooling": ({"pooling_strategy": "median"}, "pooling_strategy is 'median'"),
    "no pooling": ({"pooling_strategy": "pass"}, "cross-attn and pass need each other"),
    "scorer": ({"scorer_type": "decoder-kv"}, "scorer_type is 'decoder-kv'"),
    "slots": ({"scorer_type": "hopfield", "max_labels_alloc": "fixed"}, "max_labels_alloc is 'fi"),
    "label pooling": ({"class_token_pooling": "last"}, "class_token_pooling is 'last'"),
    "images": ({"multimodal": True}, "multimodal is True"),
    "width": ({"scorer_type": "mlp", "hidden_size": 32}, "hidden_size is 32, that of the encoder"),
    "markers": ({"class_token_index": 7}, "class_token_index 7, the id of <<LABEL>>, which in"),
    "missing": ({"use_lstm": True}, "missing model.lstm.lstm.weight_ih_l0"),
    "too much": ({"normalize_features": False, "scorer_type": "mlp"}, "missing model.scorer.mlp.0"),
}


@pytest.mark.parametrize(("changes", "message"), NOT_RUN.values(), ids=NOT_RUN)
def test_forms_that_are_not_run_are_refused_by_name(tmp_path, changes, message):
    folder = write_gliclass(tmp_path)
    change_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as refused:
        pipeline("zero-shot-classification", str(folder))
    if isinstance(refused.value, ConfigError):
        assert "\n" not in str(refused.value)


def test_a_weight_without_a_part_is_refused(tmp_path):
    folder = write_gliclass(tmp_path, use_lstm=True)
    change_json(folder / "config.json", use_lstm=False)
    with pytest.raises(ValueError, match=r"unexpected model\.lstm"):
        pipeline("zero-shot-classification", str(folder))


def test_other_tasks_name_the_one_that_it_is_for(plain):
    folder = str(plain[True][1].checkpoint.folder)
    with pytest.raises(ValueError, match="is a GLiClassModel: it fits zero_shot; classify runs a"):
        pipeline("text-classification", folder)
    with pytest.raises(ValueError, match="as GLiClass stores them, whose models are for zero_shot"):
        pipeline("embed", folder)


def test_a_tokenizer_that_reads_a_text_otherwise_beside_labels_is_refused(tmp_path):
    folder = write_gliclass(tmp_path, prompt_first=True, tokenizer="Unigram")
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["pre_tokenizer"]["prepend_scheme"] = "first"
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="its tokenizer reads 'a' otherwise beside <<LABEL>>"):
        pipeline("zero-shot-classification", str(folder))
