"""multi_vector equals sentence-transformers' MultiVectorEncoder on folders that it wrote, or as PyLate writes them.

Vectors differ by the rounding of float32 alone: 1e-5 of their length.
"""

from __future__ import annotations

import json
import shutil
import string

import numpy as np
import pytest
import torch
from checkpoints import SETTINGS_OF_SIDES, change_json, write_task
from predictions import random_texts
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import (
    HierarchicalTokenPooling,
    MultiVectorMask,
)

from modernbert.files import CheckpointError
from pipelines import pipeline

TEXTS = [
    "a",
    " The Cat, the mat.",
    "[MASK] at the end [MASK]",
    *random_texts(51, 10),
    "the cat (sat)! " * 60,
]
EXPANSIONS = {
    "none": None,
    "unseen": {"strategy": "fixed", "length": 32},
    "seen": {"strategy": "fixed", "length": 24, "attend": True},
    "at least": {"strategy": "min", "length": 40},
    "another token": {"strategy": "min", "length": 16, "token": "[UNK]", "attend": False},
}


def assert_same(got, want):
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        theirs = np.asarray(theirs)
        assert ours.shape == theirs.shape
        assert (
            np.linalg.norm(ours - theirs, axis=1) <= 1e-5 * np.linalg.norm(theirs, axis=1)
        ).all()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_task(tmp_path_factory.mktemp("encoder"), "ModernBertModel")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unk_token": "[UNK]"}))
    return folder


@pytest.fixture
def both(encoder, tmp_path):
    """Theirs and ours for some settings, read from the folder that theirs wrote."""

    def make(
        task="multi-vector", mask=None, normalize=True, prompts=None, similarity=None, **settings
    ):
        torch.manual_seed(0)
        names = {"module_input_name": "token_embeddings"}
        modules = [
            Transformer(str(encoder), **settings),
            Dense(64, 48, activation_function=torch.nn.GELU(), **names),
            Dense(48, 32, bias=False, activation_function=torch.nn.Identity(), **names),
            MultiVectorMask(**(mask or {})),
        ]
        modules += [Normalize(**names)] if normalize else []
        options = {"prompts": prompts} if prompts else {}
        options |= {"similarity_fn_name": similarity} if similarity else {}
        MultiVectorEncoder(modules=modules, device="cpu", **options).save(str(tmp_path))
        return MultiVectorEncoder(str(tmp_path), device="cpu"), pipeline(task, str(tmp_path))

    return make


@pytest.mark.parametrize("expansion", EXPANSIONS.values(), ids=EXPANSIONS)
def test_query_expansion(both, expansion):
    theirs, ours = both(
        query_expansion=expansion, document_length=50, prompts={"query": "the: ", "document": "é "}
    )
    assert_same(ours(TEXTS, as_query=True), theirs.encode_query(TEXTS, convert_to_numpy=True))
    assert_same(ours(TEXTS), theirs.encode_document(TEXTS, convert_to_numpy=True))
    assert_same(
        [ours(TEXTS[0], as_query=True)], [theirs.encode_query(TEXTS[0], convert_to_numpy=True)]
    )


@pytest.mark.parametrize("settings", SETTINGS_OF_SIDES.values(), ids=SETTINGS_OF_SIDES)
def test_a_side_without_a_prompt_has_an_empty_one(both, tmp_path, settings):
    both()
    change_json(tmp_path / "config_sentence_transformers.json", **settings)
    theirs = MultiVectorEncoder(str(tmp_path), device="cpu")
    ours = pipeline("multi-vector", str(tmp_path))
    texts = TEXTS[:6]
    assert_same(ours(texts), theirs.encode_document(texts, convert_to_numpy=True))
    assert_same(ours(texts, as_query=True), theirs.encode_query(texts, convert_to_numpy=True))


def test_passages_are_ranked_without_a_prompt_that_the_library_passes_over(both, tmp_path, caplog):
    both()
    change_json(tmp_path / "config_sentence_transformers.json", prompts={"passage": "sat "})
    theirs = MultiVectorEncoder(str(tmp_path), device="cpu")
    query = theirs.encode_query("the cat?")
    want = theirs.similarity([query], theirs.encode_document(TEXTS))[0].numpy()
    scores = [each["score"] for each in pipeline("rerank", str(tmp_path))("the cat?", TEXTS)]
    assert scores == pytest.approx(sorted(want.tolist(), reverse=True), rel=1e-5, abs=1e-5)
    assert "has a prompt 'passage' and none of its documents" in caplog.text


MASKS = {
    "punctuation": {"skiplist_words": list(string.punctuation)},
    "in both": {"skiplist_words": ["a", "no such token"], "skiplist_tasks": ["query", "document"]},
    "some tokens alone": {"keep_only_token_ids": [1, 2, 70, 71, 72]},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("normalize", [True, False])
def test_masks(both, mask, normalize):
    theirs, ours = both(mask=mask, normalize=normalize, query_length=20)
    want = theirs.encode_document(TEXTS, convert_to_numpy=True)
    assert any(
        len(vectors) < len(ids)
        for vectors, ids in zip(want, theirs.tokenizer(TEXTS).input_ids, strict=True)
    )
    assert_same(ours(TEXTS), want)
    assert_same(ours(TEXTS, as_query=True), theirs.encode_query(TEXTS, convert_to_numpy=True))


@pytest.mark.parametrize("factor", [1.5, 2, 5])
def test_pooling(both, factor):
    theirs, ours = both(mask=MASKS["punctuation"])
    pooling = HierarchicalTokenPooling(factor)
    want = theirs.encode_document(TEXTS, convert_to_numpy=True, token_pooling=pooling)
    got = ours(TEXTS, pool_factor=factor)
    assert [len(vectors) for vectors in got] == [len(vectors) for vectors in want]
    for mine, other in zip(got, want, strict=True):  # clusters have no order
        nearest = np.abs(mine[:, None] - other[None]).max(axis=2).min(axis=1)
        assert nearest.max() < 1e-5


def test_precision(both):
    _, ours = both()
    assert ours.predict_lines(["a"]) == [ours("a").tolist()]
    floats = ours(TEXTS[:4])
    for precision, dtype, width in (
        ("float16", np.float16, 32),
        ("int8", np.int8, 32),
        ("binary", np.int8, 4),
    ):
        got = ours(TEXTS[:4], precision=precision)
        assert {(each.dtype, each.shape[1]) for each in got} == {(np.dtype(dtype), width)}
        if precision == "binary":
            bits = [
                np.unpackbits((each.astype(np.int16) + 128).astype(np.uint8), axis=1)
                for each in got
            ]
            assert all(
                (mine == (other > 0)).all() for mine, other in zip(bits, floats, strict=True)
            )


def test_an_answer_does_not_depend_on_its_batch(both):
    """Bit for bit, of expanded queries too."""
    _, ours = both(query_expansion=EXPANSIONS["at least"])
    for as_query in (True, False):
        together = ours(TEXTS, as_query=as_query)
        for text, vectors in zip(TEXTS, together, strict=True):
            assert (ours(text, as_query=as_query) == vectors).all()


PYLATE = {
    "as released": {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 24, "document_length": 60,
                    "attend_to_expansion_tokens": False, "similarity_fn_name": "MaxSim"},
    "version 3": {"model_type": "ColBERT", "query_prefix": "", "document_prefix": "doc é: ", "query_length": 16,
                  "do_query_expansion": False, "skiplist_words": ["a"]},
    "attending": {"query_prefix": "q: ", "attend_to_expansion_tokens": True, "skiplist_words": []},
}  # fmt: skip


@pytest.mark.parametrize("settings", PYLATE.values(), ids=PYLATE)
def test_checkpoints_of_pylate(encoder, tmp_path, settings):
    """Files as PyLate writes them, which sentence-transformers loads too: there is no PyLate for its version 6."""
    torch.manual_seed(0)
    dense = Dense(64, 32, bias=False, activation_function=torch.nn.Identity())
    transformer = Transformer(str(encoder))
    transformer.max_seq_length = 59  # that of a document less one, as PyLate leaves it
    SentenceTransformer(modules=[transformer, dense], device="cpu").save(str(tmp_path))
    file = tmp_path / "modules.json"
    modules = json.loads(file.read_text())
    modules[1]["type"] = "pylate.models.Dense.Dense"
    file.write_text(json.dumps(modules))
    file = tmp_path / "1_Dense" / "config.json"
    file.write_text(
        json.dumps({k: v for k, v in json.loads(file.read_text()).items() if "module" not in k})
    )
    file = tmp_path / "config_sentence_transformers.json"
    stored = {k: v for k, v in json.loads(file.read_text()).items() if k != "model_type"}
    file.write_text(json.dumps(stored | settings))
    theirs, ours = (
        MultiVectorEncoder(str(tmp_path), device="cpu"),
        pipeline("multi-vector", str(tmp_path)),
    )
    assert_same(ours(TEXTS, as_query=True), theirs.encode_query(TEXTS, convert_to_numpy=True))
    want = theirs.encode_document(TEXTS, convert_to_numpy=True)
    assert_same(ours(TEXTS), want)
    # The other name of the class, which sentence-transformers does not know.
    file = tmp_path / "modules.json"
    file.write_text(file.read_text().replace("models.Dense.Dense", "models.Dense"))
    assert_same(pipeline("multi-vector", str(tmp_path))(TEXTS), want)


STANFORD = {
    "defaults": None,
    "trained": {"query_token_id": "[CLS]", "doc_token_id": "[SEP]", "query_maxlen": 20, "doc_maxlen": 50,
                "attend_to_mask_tokens": True, "mask_punctuation": False, "similarity": "cosine", "nway": 2},
}  # fmt: skip


@pytest.mark.parametrize("metadata", STANFORD.values(), ids=STANFORD)
def test_checkpoints_of_stanford(encoder, tmp_path, metadata):
    """Files as Stanford's ColBERT writes them: the layer lies beside the encoder's weights."""
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    weights = {
        f"model.{name}": weight
        for name, weight in load_file(tmp_path / "model.safetensors").items()
    }
    torch.manual_seed(0)
    weights["linear.weight"] = torch.randn(32, 64)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    if metadata:
        (tmp_path / "artifact.metadata").write_text(json.dumps(metadata))
    theirs, ours = (
        MultiVectorEncoder(str(tmp_path), device="cpu"),
        pipeline("multi-vector", str(tmp_path)),
    )
    assert_same(ours(TEXTS, as_query=True), theirs.encode_query(TEXTS, convert_to_numpy=True))
    assert_same(ours(TEXTS), theirs.encode_document(TEXTS, convert_to_numpy=True))
    scores = theirs.similarity([theirs.encode_query("the cat?")], theirs.encode_document(TEXTS))[
        0
    ].numpy()
    got = [each["score"] for each in pipeline("rerank", str(tmp_path))("the cat?", TEXTS)]
    assert got == pytest.approx(sorted(scores.tolist(), reverse=True), rel=1e-5)
    for task in ("sentence-embedding", "fill-mask", "sparse-embedding", "text-classification"):
        with pytest.raises(
            ValueError,
            match=r"which is for multi_vector|is a HF_ColBERT: it gives a vector per token",
        ):
            pipeline(task, str(tmp_path))
    save_file(
        {name: weight for name, weight in weights.items() if "linear" not in name},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"does not hold linear\.weight"):
        pipeline("multi-vector", str(tmp_path))


@pytest.mark.parametrize("similarity", ["maxsim", "meanmaxsim"])
@pytest.mark.parametrize("expansion", ["none", "unseen", "seen"])
def test_rerank_by_maxsim(both, similarity, expansion):
    """Scores are sums of up to 32 products of unit vectors, each within 1e-5."""
    settings = {
        "query_expansion": EXPANSIONS[expansion],
        "mask": MASKS["punctuation"],
        "similarity": similarity,
    }
    theirs, ours = both(
        "rerank", prompts={"query": "the: ", "document": "é "}, document_length=60, **settings
    )
    for query in ("the cat?", "[MASK] sat [MASK]", "a " * 60):
        want = theirs.similarity([theirs.encode_query(query)], theirs.encode_document(TEXTS))[
            0
        ].numpy()
        got = ours(query, TEXTS)
        assert [each["index"] for each in got] == np.argsort(-want, kind="stable").tolist()
        assert [each["score"] for each in got] == pytest.approx(
            sorted(want.tolist(), reverse=True), rel=1e-5, abs=1e-5
        )
        alone = [ours(query, [text])[0]["score"] for text in TEXTS]
        assert sorted(alone, reverse=True) == [each["score"] for each in got]


def test_checkpoints_of_another_kind_are_refused(both, encoder, tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a multi-vector encoder \(ColBERT\)"):
        pipeline("multi-vector", str(encoder))
    with pytest.raises(
        ValueError, match="expands queries to 90 tokens, of which the last see no token"
    ):
        both(query_expansion={"strategy": "fixed", "length": 90})[1]("a", as_query=True)
    _, ours = both()
    with pytest.raises(ValueError, match=r"pool_factor 2 is for documents"):
        ours("a", as_query=True, pool_factor=2.0)
    with pytest.raises(
        CheckpointError, match="it gives a vector per token, which is for multi_vector"
    ):
        pipeline("sentence-embedding", str(tmp_path))
