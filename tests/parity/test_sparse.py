"""sparse equals sentence-transformers' SparseEncoder on the folder that it wrote: weights within 1e-5 of the largest.

The tokens are the same, too.

A weight that rounding takes to zero may be missing on one side: those are below that.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import SETTINGS_OF_SIDES, change_json, write_task
from predictions import random_texts
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from modernbert.encoders.sparse import SparseEncoder as OurEncoder
from modernbert.encoders.sparse_config import SparseConfig
from modernbert.files import CheckpointError
from pipelines import pipeline

TEXTS = ["a", " The Cat", *random_texts(41, 10), "the cat " * 200]


def dense(answers, size):
    out = np.zeros((len(answers), size), np.float32)
    for row, answer in zip(out, answers, strict=True):
        weights = [each["weight"] for each in answer]
        assert weights == sorted(weights, reverse=True)
        assert all(weight > 0 for weight in weights)
        row[[each["token_id"] for each in answer]] = weights
    return out


def assert_same(ours, want):
    # A small weight is the rest of a sum of large terms: its rounding is that of the largest weight, about 5 here.
    np.testing.assert_allclose(
        dense(ours, want.shape[1]), want, rtol=1e-5, atol=1e-5 * float(want.max())
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("masked"), "ModernBertForMaskedLM")


@pytest.fixture
def both(masked, tmp_path):
    """Theirs and ours, read from the folder that theirs wrote."""

    def make(strategy="max", activation="relu", max_length=None, static=False, **options):
        transformer = Transformer(str(masked), transformer_task="fill-mask")
        if max_length:
            transformer.max_seq_length = max_length
        modules = [transformer, SpladePooling(strategy, activation_function=activation)]
        if static:
            weights = torch.rand(
                len(transformer.tokenizer.get_vocab()), generator=torch.Generator().manual_seed(1)
            )
            weights[::3] = 0
            modules = [
                Router.for_query_document(
                    [SparseStaticEmbedding(transformer.tokenizer, weights)], modules
                )
            ]
        SparseEncoder(modules=modules, device="cpu", **options).save(str(tmp_path))
        return SparseEncoder(str(tmp_path), device="cpu"), pipeline(
            "sparse-embedding", str(tmp_path)
        )

    return make


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_pooling_and_activation(both, strategy, activation):
    theirs, ours = both(strategy, activation)
    want = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert (want == 0).any()
    assert_same(ours(TEXTS), want)
    token = max(ours(TEXTS[0]), key=lambda each: each["weight"])
    assert token["token"] == theirs.tokenizer.convert_ids_to_tokens(token["token_id"])


def test_a_masked_language_model_without_modules(masked):
    want = (
        SparseEncoder(str(masked), device="cpu")
        .encode(TEXTS, convert_to_sparse_tensor=False)
        .numpy()
    )
    assert_same(pipeline("sparse-embedding", str(masked))(TEXTS), want)


def test_what_is_kept(both):
    theirs, ours = both(max_active_dims=7, max_length=50)
    want = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    got = ours(TEXTS)
    assert max(map(len, got)) == 7
    assert_same(got, want)
    assert ours(TEXTS, top_k=3) == [answer[:3] for answer in got]
    least = got[0][3]["weight"]
    assert ours(TEXTS[0], min_weight=least) == [each for each in got[0] if each["weight"] >= least]


def test_prompts(both):
    theirs, ours = both(prompts={"query": "the cat: ", "document": "é ", "other": "[MASK]"})
    for want, options in (
        (theirs.encode_document(TEXTS, convert_to_sparse_tensor=False), {}),
        (theirs.encode_query(TEXTS, convert_to_sparse_tensor=False), {"as_query": True}),
        (
            theirs.encode(TEXTS, prompt_name="other", convert_to_sparse_tensor=False),
            {"prompt_name": "other"},
        ),
        (theirs.encode(TEXTS, prompt="", convert_to_sparse_tensor=False), {"prompt": ""}),
    ):
        assert_same(ours(TEXTS, **options), want.numpy())


@pytest.mark.parametrize("settings", SETTINGS_OF_SIDES.values(), ids=SETTINGS_OF_SIDES)
def test_a_side_without_a_prompt_has_an_empty_one(both, tmp_path, settings):
    both()
    change_json(tmp_path / "config_sentence_transformers.json", **settings)
    theirs = SparseEncoder(str(tmp_path), device="cpu")
    ours = pipeline("sparse-embedding", str(tmp_path))
    texts = TEXTS[:6]
    documents = theirs.encode_document(texts, convert_to_sparse_tensor=False)
    queries = theirs.encode_query(texts, convert_to_sparse_tensor=False)
    assert_same(ours(texts), documents.numpy())
    assert_same(ours(texts, as_query=True), queries.numpy())


def test_a_prompt_of_passages_that_the_library_passes_over(both, tmp_path, caplog):
    both()
    change_json(tmp_path / "config_sentence_transformers.json", prompts={"passage": "sat "})
    theirs = SparseEncoder(str(tmp_path), device="cpu")
    ours = pipeline("sparse-embedding", str(tmp_path))
    want = theirs.encode_document(["a"], convert_to_sparse_tensor=False)
    assert_same([ours("a")], want.numpy())
    assert "has a prompt 'passage' and none of its documents" in caplog.text
    want = theirs.encode_document(["a"], prompt_name="passage", convert_to_sparse_tensor=False)
    assert_same([ours("a", prompt_name="passage")], want.numpy())


def test_queries_without_inference(both):
    theirs, ours = both(
        static=True, activation="log1p_relu", prompts={"query": "the cat: ", "document": ""}
    )
    assert_same(ours(TEXTS), theirs.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy())
    want = theirs.encode_query(["", *TEXTS], convert_to_sparse_tensor=False).numpy()
    assert_same(ours(["", *TEXTS], as_query=True), want)
    assert ours(["", "a", ""], as_query=True, prompt="")[::2] == [[], []]


def test_windows_keep_the_largest_weight_of_a_token(both):
    _, ours = both()
    text = TEXTS[-1] + "".join(TEXTS)
    options = {"long_documents": "windows", "max_length": 64, "stride": 8}
    outputs, failed = ours.predictor.answer([text], ours.task(options))
    assert not failed
    windows = len(outputs.windows.document)
    assert windows > 5
    size = ours.checkpoint.config.vocab_size
    rows = np.zeros((windows, size), np.float32)
    for w in range(windows):
        piece = outputs.values[outputs.splits[w] : outputs.splits[w + 1]]
        rows[w, piece[:, 0].astype(int)] = piece[:, 1]
    assert (dense([ours(text, **options)], size)[0] == rows.max(axis=0)).all()


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_an_answer_does_not_depend_on_its_batch(both, monkeypatch, strategy):
    """Bit for bit, though chunks of the decoder begin and end anywhere in a text."""
    _, ours = both(strategy)
    together = ours(TEXTS)
    assert together == [ours(text) for text in TEXTS]
    monkeypatch.setattr("modernbert.encoders.sparse.CHUNK_ROWS", {"cpu": 16})
    assert strategy == "sum" or ours(TEXTS) == together


def test_no_matrix_of_tokens_and_vocabulary_is_held(both, monkeypatch):
    _, ours = both()
    rows = []
    decode = OurEncoder._scores
    monkeypatch.setattr(
        OurEncoder, "_scores", lambda self, x: rows.append(len(x)) or decode(self, x)
    )
    ours(TEXTS)
    assert max(rows) == 128 < sum(rows)


def test_checkpoints_of_another_kind_are_refused(both, tmp_path):
    both()
    (tmp_path / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "mean"}')
    with pytest.raises(
        CheckpointError, match="has mean of relu; known are max, sum of relu, log1p_relu"
    ):
        SparseConfig.from_folder(tmp_path)
    (tmp_path / "1_SpladePooling" / "config.json").write_text('{"idf": 1}')
    with pytest.raises(CheckpointError, match="has idf: unknown settings"):
        SparseConfig.from_folder(tmp_path)
    with pytest.raises(
        CheckpointError,
        match="model_type SparseEncoder: it gives weights of tokens, which is for spa",
    ):
        pipeline("sentence-embedding", str(tmp_path))
