"""Embeddings equal sentence-transformers' encode, and scores CrossEncoder's predict, on the same folder.

Vectors differ by the rounding of float32 alone: 1e-5 of their length.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoints import write_task
from predictions import random_texts
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.router import Router
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Pooling,
    WeightedLayerPooling,
)
from sentence_transformers.util.quantization import quantize_embeddings

from modernbert.files import CheckpointError
from pipelines import pipeline

TEXTS = ["", "a", " The Cat", *random_texts(1, 12), "the cat " * 200]


def assert_same(got, want):
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    assert (np.linalg.norm(got - want, axis=1) <= 1e-5 * np.linalg.norm(want, axis=1)).all()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("checkpoint"), "ModernBertModel")


@pytest.fixture
def both(encoder, tmp_path):
    """Theirs and ours for a stack of modules, read from the folder that theirs wrote."""

    def make(
        pooling="mean", dense=(), normalize=False, include_prompt=True, norms=False, **options
    ):
        torch.manual_seed(0)
        transformer = Transformer(str(encoder))
        transformer.max_seq_length = 128
        modules = [transformer, Pooling(64, pooling, include_prompt=include_prompt)]
        size = 64 * (len(pooling) if isinstance(pooling, tuple) else 1)
        for width, activation in dense:
            modules.append(Dense(size, width, activation_function=activation))
            size = width
            if norms:
                norm = LayerNorm(size)
                torch.nn.init.normal_(norm.norm.weight)
                torch.nn.init.normal_(norm.norm.bias)
                modules += [norm, Normalize()]
        modules += [Normalize()] if normalize else []
        SentenceTransformer(modules=modules, device="cpu", **options).save(str(tmp_path))
        return SentenceTransformer(str(tmp_path), device="cpu"), pipeline(
            "sentence-embedding", str(tmp_path)
        )

    return make


def test_dense_layers_on_tokens(encoder, tmp_path):
    torch.manual_seed(0)
    on_tokens = {"module_input_name": "token_embeddings"}
    modules = [
        Transformer(str(encoder)),
        Dense(64, 48, activation_function=torch.nn.GELU(), **on_tokens),
        Dense(48, 32, bias=False, activation_function=torch.nn.Identity(), **on_tokens),
        Pooling(32, ("mean", "max")),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    ours = pipeline("sentence-embedding", str(tmp_path))
    together = ours(TEXTS)
    assert_same(together, theirs.encode(TEXTS))
    assert [ours(text) for text in TEXTS] == together
    # A layer that names no input works on the vector of a text, which is not there yet.
    file = tmp_path / "1_Dense" / "config.json"
    stored = json.loads(file.read_text())
    del stored["module_input_name"]
    file.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="has module_input_name None; it must be 'token_e"):
        pipeline("sentence-embedding", str(tmp_path))


PROCESSING = {
    "text": {"text": {"max_length": 20}},
    "common counts before text": {"text": {"max_length": 60}, "common": {"max_length": 12}},
    "harmless": {"text": {"max_length": 30, "truncation": True, "padding": "max_length"}},
}


@pytest.mark.parametrize("stored", PROCESSING.values(), ids=PROCESSING)
def test_processing_kwargs(encoder, tmp_path, stored):
    transformer = Transformer(str(encoder), processing_kwargs=stored)
    modules = [transformer, Pooling(64, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert_same(pipeline("sentence-embedding", str(tmp_path))(TEXTS), theirs.encode(TEXTS))
    file = tmp_path / "sentence_bert_config.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"text": {"add_special_tokens": False}}, "text.add_special_tokens False; followed are"),
        ({"text": {"max_length": 9000}}, "max_length 9000, above the model_max_length 8192"),
    ):
        file.write_text(json.dumps(content | {"processing_kwargs": change}))
        with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
            pipeline("sentence-embedding", str(tmp_path))


STACKS = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "weightedmean": {"pooling": "weightedmean"},
    "lasttoken": {"pooling": "lasttoken"},
    "mean_sqrt_len_tokens": {"pooling": "mean_sqrt_len_tokens"},
    "two poolings": {"pooling": ("cls", "max"), "normalize": True},
    "dense": {"dense": [(32, torch.nn.Tanh())]},
    "two dense, normalised": {
        "dense": [(48, torch.nn.GELU()), (16, torch.nn.Identity())],
        "normalize": True,
    },
    "norms between layers": {
        "dense": [(48, torch.nn.GELU()), (16, torch.nn.Tanh())],
        "norms": True,
    },
    "two poolings, dense": {"pooling": ("mean", "lasttoken"), "dense": [(24, torch.nn.ReLU())]},
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_modules(both, stack):
    theirs, ours = both(**stack)
    assert_same(ours(TEXTS), theirs.encode(TEXTS))
    assert_same(ours(TEXTS, dimensions=8), theirs.encode(TEXTS, truncate_dim=8))
    want = theirs.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert_same(ours(TEXTS, dimensions=8, normalize=True), want)


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "weightedmean", "lasttoken", "mean_sqrt_len_tokens"]
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(both, pooling, include_prompt):
    prompts = {"query": "the cat: ", "document": ""}
    theirs, ours = both(
        pooling, include_prompt=include_prompt, prompts=prompts, default_prompt_name="query"
    )
    texts = TEXTS[1:]
    assert_same(ours(texts), theirs.encode(texts))
    assert_same(ours(texts, prompt_name="document"), theirs.encode(texts, prompt_name="document"))
    assert_same(ours(texts, prompt="é 👍🏽 "), theirs.encode(texts, prompt="é 👍🏽 "))


SIDES = {
    "both": {"query": "find: ", "document": "the cat "},
    "query alone": {"query": "find: "},
    "none": {},
    "passage beside document": {"passage": "sat ", "document": "the "},
}


@pytest.mark.parametrize("prompts", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("has_default", [False, True])
def test_queries_and_documents(both, prompts, has_default):
    default = {"default_prompt_name": "more"} if has_default else {}
    theirs, ours = both(prompts={"more": "cat cat ", **prompts}, **default)
    texts = TEXTS[1:8]
    assert_same(ours(texts), theirs.encode(texts))
    assert_same(ours(texts, as_query=True), theirs.encode_query(texts))
    assert_same(ours(texts, as_query=False), theirs.encode_document(texts))
    assert_same(
        ours(texts, as_query=True, prompt="the "), theirs.encode_query(texts, prompt="the ")
    )
    want = theirs.encode_document(texts, prompt_name="more")
    assert_same(ours(texts, as_query=False, prompt_name="more"), want)


def test_a_prompt_that_the_library_passes_over(both, tmp_path):
    both(prompts={"passage": "sat "})
    settings = tmp_path / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    content["prompts"] = {"query": "a ", "passage": "sat "}
    settings.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no prompt 'document', .* passes over its 'passage'"):
        pipeline("sentence-embedding", str(tmp_path), as_query=False)("a")


def test_a_plain_encoder(encoder):
    assert_same(
        pipeline("sentence-embedding", str(encoder))(TEXTS),
        SentenceTransformer(str(encoder)).encode(TEXTS),
    )


FLAGS = {
    "cls": ["pooling_mode_cls_token"],
    "mean": ["pooling_mode_mean_tokens"],
    "max and mean": ["pooling_mode_max_tokens", "pooling_mode_mean_tokens"],
    "sqrt": ["pooling_mode_mean_sqrt_len_tokens"],
    "weighted": ["pooling_mode_weightedmean_tokens"],
    "last": ["pooling_mode_lasttoken"],
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("lower_case", [False, True])
def test_files_of_versions_before_6(encoder, tmp_path, flags, lower_case):
    known = [flag for names in FLAGS.values() for flag in names]
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
            {
                "idx": 2,
                "name": "2",
                "path": "2_Normalize",
                "type": "sentence_transformers.models.Normalize",
            },
        ],
        "sentence_bert_config.json": {"max_seq_length": 40, "do_lower_case": lower_case},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "3.4.1"},
            "prompts": {},
        },
        "1_Pooling/config.json": {"word_embedding_dimension": 64}
        | {flag: flag in flags for flag in known},
    }
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert_same(
        pipeline("sentence-embedding", str(tmp_path))(TEXTS),
        SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS),
    )


@pytest.mark.parametrize("stored", [8, 64, 100])
def test_truncate_dim(both, stored):
    theirs, ours = both(normalize=True, truncate_dim=stored)
    want = theirs.encode(TEXTS)
    assert want.shape[1] == min(stored, 64)
    assert_same(ours(TEXTS), want)
    assert_same(ours(TEXTS, dimensions=16), theirs.encode(TEXTS, truncate_dim=16))
    info = ours.task({}).info(ours.checkpoint)
    assert (info["dimensions"], info["similarity"]) == (min(stored, 64), "cosine")


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_signs_as_bits(both, precision):
    theirs, ours = both(normalize=True)
    want = quantize_embeddings(theirs.encode(TEXTS), precision)
    assert ours(TEXTS, precision=precision) == want.tolist()


def test_int8(both):
    """A number differs by at most half a step, and a vector's direction hardly."""
    theirs, ours = both()
    want, got = theirs.encode(TEXTS), np.array(ours(TEXTS, precision="int8"))
    step = np.abs(want).max(axis=1, keepdims=True) / 127
    assert np.abs(got).max(axis=1).tolist() == [127] * len(TEXTS)
    assert (np.abs(got * step - want) <= 0.501 * step).all()
    assert (
        (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1) >= 0.999
    ).all()


def test_a_module_that_is_not_known(both, tmp_path):
    both()
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append(
        {"idx": 2, "name": "2", "path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}
    )
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        CheckpointError, match=r"has a module sentence_transformers\.models\.LSTM; known are"
    ):
        pipeline("sentence-embedding", str(tmp_path))


SETTINGS = {
    "sigmoid": {},
    "identity": {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    "identity, old name": {
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_cross_encoders(tmp_path, settings):
    """Scores are within 1e-5: float32 of logits of size one."""
    config = (
        write_task(tmp_path, "ModernBertForSequenceClassification", num_labels=1) / "config.json"
    )
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    texts = TEXTS[1:-1]
    want = CrossEncoder(str(tmp_path), device="cpu").predict([("the cat?", text) for text in texts])
    ours = pipeline("rerank", str(tmp_path))
    got = ours("the cat?", texts, return_text=True)
    assert [(result["index"], result["text"]) for result in got] == [
        (i, texts[i]) for i in np.argsort(-want, kind="stable")
    ]
    assert [result["score"] for result in got] == pytest.approx(
        sorted(want.tolist(), reverse=True), abs=1e-5
    )
    assert [result["index"] for result in ours("the cat?", texts, raw_scores=True)] == [
        result["index"] for result in got
    ]


@pytest.fixture
def cross_encoder(tmp_path):
    """Theirs and ours for a cross-encoder that theirs wrote, with some of its arguments."""
    plain = write_task(tmp_path / "plain", "ModernBertForSequenceClassification", num_labels=1)

    def make(**arguments):
        CrossEncoder(str(plain), device="cpu", **arguments).save_pretrained(str(tmp_path / "saved"))
        return CrossEncoder(str(tmp_path / "saved"), device="cpu"), pipeline(
            "rerank", str(tmp_path / "saved")
        )

    return make


def scores(ours, query, texts, **options):
    return [
        result["score"]
        for result in sorted(ours(query, texts, **options), key=lambda result: result["index"])
    ]


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()], ids=str)
def test_the_activation_of_a_cross_encoder(cross_encoder, activation):
    theirs, ours = cross_encoder(activation_fn=activation)
    want = theirs.predict([("the cat?", text) for text in TEXTS])
    assert scores(ours, "the cat?", TEXTS) == pytest.approx(want.tolist(), rel=1e-5, abs=1e-5)
    logits = theirs.predict(
        [("the cat?", text) for text in TEXTS], activation_fn=torch.nn.Identity()
    )
    assert scores(ours, "the cat?", TEXTS, raw_scores=True) == pytest.approx(
        logits.tolist(), rel=1e-5, abs=1e-5
    )


def test_the_activation_beside_modules_wins_over_config_json(cross_encoder, tmp_path):
    cross_encoder(activation_fn=torch.nn.Identity())
    config = tmp_path / "saved" / "config.json"
    old = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    config.write_text(json.dumps(json.loads(config.read_text()) | old))
    want = CrossEncoder(str(tmp_path / "saved"), device="cpu").predict(
        [("the", text) for text in TEXTS]
    )
    got = scores(pipeline("rerank", str(tmp_path / "saved")), "the", TEXTS)
    assert got == pytest.approx(want.tolist(), rel=1e-5, abs=1e-5)
    assert max(map(abs, got)) > 1  # no sigmoids


@pytest.mark.parametrize("activation", [torch.nn.ReLU()], ids=str)
def test_another_activation_is_refused_unless_scores_are_asked_for(cross_encoder, activation):
    with pytest.raises(
        ValueError,
        match=r"activation_fn torch\.nn\.modules\.activation\.\w+ of the checkpoint is not",
    ):
        cross_encoder(activation_fn=activation)


def test_the_prompts_of_a_cross_encoder(cross_encoder):
    """A prompt is put before the query, not before the passage."""
    theirs, ours = cross_encoder(
        prompts={"query": "the mat: ", "other": "sat é "}, default_prompt_name="query"
    )
    pairs = [("the cat?", text) for text in TEXTS]
    assert scores(ours, "the cat?", TEXTS) == pytest.approx(
        theirs.predict(pairs).tolist(), abs=1e-5
    )
    for options in ({"prompt_name": "other"}, {"prompt": "a b c"}, {"prompt": ""}):
        want = theirs.predict(pairs, **options).tolist()
        assert scores(ours, "the cat?", TEXTS, **options) == pytest.approx(want, abs=1e-5)
        assert want != pytest.approx(theirs.predict(pairs).tolist(), abs=1e-3)
    with pytest.raises(
        ValueError, match="prompt_name 'third' is unknown; this model has other, query"
    ):
        ours("the cat?", TEXTS, prompt_name="third")


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("activation", [torch.nn.Sigmoid(), torch.nn.Softmax(dim=-1)], ids=str)
def test_classify_follows_the_activation_of_a_cross_encoder(tmp_path, labels, activation):
    folder = write_task(
        tmp_path / "plain", "ModernBertForSequenceClassification", num_labels=labels
    )
    CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    file = tmp_path / "saved" / "config_sentence_transformers.json"
    name = f"torch.nn.modules.activation.{type(activation).__name__}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"activation_fn": name}))
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    want = theirs.predict([("the", "a cat")], activation_fn=activation).reshape(labels)
    ours = pipeline("text-classification", str(tmp_path / "saved"), top_k=None)
    got = {each["label"]: each["score"] for each in ours({"text": "the", "text_pair": "a cat"})}
    assert [got[f"LABEL_{i}"] for i in range(labels)] == pytest.approx(want.tolist(), abs=1e-5)


def test_classify_refuses_prompts_and_takes_identity_of_several_labels_for_nothing(tmp_path):
    folder = write_task(tmp_path / "plain", "ModernBertForSequenceClassification", num_labels=3)
    theirs = CrossEncoder(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    kept = pipeline("text-classification", str(tmp_path / "saved"), top_k=None)("the cat")
    assert kept == pipeline("text-classification", str(folder), top_k=None)("the cat")
    theirs.prompts, theirs.default_prompt_name = {"query": "the: "}, "query"
    theirs.save_pretrained(str(tmp_path / "prompted"))
    with pytest.raises(ValueError, match="changes texts before it reads them"):
        pipeline("text-classification", str(tmp_path / "prompted"))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_truncation_on_the_left(both, cross_encoder, tmp_path, include_prompt):
    def truncate_left(folder):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": "left"}))

    both(include_prompt=include_prompt, prompts={"query": "the cat: "}, default_prompt_name="query")
    right = pipeline("sentence-embedding", str(tmp_path))(TEXTS[1:])
    truncate_left(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    got = pipeline("sentence-embedding", str(tmp_path))(TEXTS[1:])
    assert_same(got, theirs.encode(TEXTS[1:]))
    assert got != right
    cross_encoder()
    truncate_left(tmp_path / "saved")
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu", max_length=24)
    want = theirs.predict([("the cat?", text) for text in TEXTS]).tolist()
    ours = pipeline("rerank", str(tmp_path / "saved"), max_length=24)
    assert scores(ours, "the cat?", TEXTS) == pytest.approx(want, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()], ids=str)
def test_rerankers_of_modules(encoder, tmp_path, pooling, activation):
    """A pooling, dense layers and a norm that give the score, as rerankers of the ettin family have them."""
    torch.manual_seed(0)
    norm = LayerNorm(64)
    torch.nn.init.normal_(norm.norm.weight)
    modules = [
        Transformer(str(encoder)), Pooling(64, pooling), Dense(64, 64, bias=False, activation_function=torch.nn.GELU()),
        norm, Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]  # fmt: skip
    options = {
        "activation_fn": activation,
        "prompts": {"query": "the mat: "},
        "default_prompt_name": "query",
    }
    CrossEncoder(modules=modules, device="cpu", **options).save_pretrained(str(tmp_path))
    theirs, ours = CrossEncoder(str(tmp_path), device="cpu"), pipeline("rerank", str(tmp_path))
    want = theirs.predict([("the cat?", text) for text in TEXTS])
    assert scores(ours, "the cat?", TEXTS) == pytest.approx(want.tolist(), rel=1e-5, abs=1e-5)
    logits = theirs.predict(
        [("the cat?", text) for text in TEXTS], activation_fn=torch.nn.Identity()
    )
    assert scores(ours, "the cat?", TEXTS, raw_scores=True) == pytest.approx(
        logits.tolist(), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("first", [0, 2, 4])
def test_a_weighted_mean_of_hidden_states(encoder, tmp_path, first):
    torch.manual_seed(first)
    transformer = Transformer(str(encoder), config_kwargs={"output_hidden_states": True})
    layers = transformer.model.config.num_hidden_layers
    weighted = WeightedLayerPooling(64, num_hidden_layers=layers, layer_start=first)
    torch.nn.init.uniform_(weighted.layer_weights)
    modules = [transformer, weighted, Pooling(64, ("mean", "cls"))]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    ours = pipeline("sentence-embedding", str(tmp_path))
    together = ours(TEXTS)
    assert_same(together, theirs.encode(TEXTS))
    assert [ours(text) for text in TEXTS] == together


def test_a_router_of_two_encoders(encoder, tmp_path):
    """Queries and documents have an encoder each; a text without a side takes the default route."""
    other = write_task(tmp_path / "other", "ModernBertModel", num_hidden_layers=2)
    router = Router.for_query_document(
        [Transformer(str(other)), Pooling(64, "cls")], [Transformer(str(encoder)), Pooling(64)]
    )
    prompts = {"query": "find: ", "document": ""}
    folder = tmp_path / "saved"
    SentenceTransformer(modules=[router, Normalize()], device="cpu", prompts=prompts).save(
        str(folder)
    )
    theirs = SentenceTransformer(str(folder), device="cpu")
    queries = pipeline("sentence-embedding", str(folder), as_query=True)
    documents = pipeline("sentence-embedding", str(folder), as_query=False)
    default = pipeline("sentence-embedding", str(folder))
    texts = TEXTS[1:]
    assert_same(queries(texts), theirs.encode_query(texts))
    assert_same(documents(texts), theirs.encode_document(texts))
    assert_same(default(texts), theirs.encode(texts))
    with pytest.raises(ValueError, match="another encoder for a query and was loaded for a docum"):
        documents(texts, as_query=True)
    prints = [p.task({}).fingerprint(p.checkpoint) for p in (queries, documents)]
    assert prints[0] != prints[1]


def test_tanh_of_a_cross_encoder(tmp_path):
    folder = write_task(tmp_path / "model", "ModernBertForSequenceClassification", num_labels=1)
    CrossEncoder(str(folder), activation_fn=torch.nn.Tanh(), device="cpu").save_pretrained(
        str(tmp_path / "saved")
    )
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    pairs = [(text, "the cat") for text in TEXTS]
    ours = pipeline("rerank", str(tmp_path / "saved"))
    got = [ours(query, [passage])[0] for query, passage in pairs]
    scores = [each["score"] if isinstance(each, dict) else each for each in got]
    np.testing.assert_allclose(scores, theirs.predict(pairs), atol=1e-5)
    assert ours.task({}).settings["tanh"] is True
    assert "tanh" not in pipeline("rerank", str(folder)).task({}).settings
