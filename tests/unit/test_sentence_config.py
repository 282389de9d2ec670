"""Checkpoints of sentence-transformers that are another kind of model, or have a setting that nobody here follows.

They are written by sentence-transformers where it can. Each is refused by the name of the module or of the key.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import write_task
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Pooling,
    WeightedLayerPooling,
)

from modernbert.encoders.sentence_config import CrossEncoderConfig, SentenceConfig
from modernbert.files import CheckpointError
from pipelines import pipeline


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("checkpoint"), "ModernBertModel")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, encoder):
    """A sentence encoder as sentence-transformers writes it."""
    folder = tmp_path_factory.mktemp("saved")
    SentenceTransformer(
        modules=[Transformer(str(encoder)), Pooling(64, "mean")], device="cpu"
    ).save(str(folder))
    return folder


def test_setfit_has_its_classifier_in_a_pickle(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config_setfit.json").write_text('{"labels": ["a", "b"]}')
    with pytest.raises(ValueError, match=r"one of SetFit, .* is a pickle and never loaded; embed"):
        pipeline("text-classification", str(tmp_path))
    assert len(pipeline("sentence-embedding", str(tmp_path))("a")) == 64


def modular_reranker(encoder, folder):
    modules = [
        Transformer(str(encoder)), Pooling(64, "cls"), Dense(64, 64, activation_function=torch.nn.GELU()),
        LayerNorm(64), Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]  # fmt: skip
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))


def test_a_reranker_of_modules_is_for_rerank(tmp_path, encoder):
    modular_reranker(encoder, tmp_path)
    with pytest.raises(
        CheckpointError, match="model_type CrossEncoder: it scores pairs, which is for rerank"
    ):
        pipeline("sentence-embedding", str(tmp_path))
    with pytest.raises(
        ValueError, match="is a ModernBertModel: it scores pairs, which is for rerank"
    ):
        pipeline("text-classification", str(tmp_path))
    assert len(pipeline("rerank", str(tmp_path))("a", ["b", "c"])) == 2


def multi_vector(encoder, folder):
    MultiVectorEncoder(str(encoder), device="cpu").save_pretrained(str(folder))


def sparse(encoder, folder):
    folder = folder.parent / "masked"
    write_task(folder, "ModernBertForMaskedLM")
    SparseEncoder(str(folder), device="cpu").save_pretrained(str(folder.parent / "checkpoint"))


def pylate(encoder, folder):
    """As pylate writes it: a dense layer of its own on token vectors, and prefixes in the settings."""
    SentenceTransformer(modules=[Transformer(str(encoder))], device="cpu").save(str(folder))
    file = folder / "modules.json"
    dense = {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}
    file.write_text(json.dumps([*json.loads(file.read_text()), dense]))
    file = folder / "config_sentence_transformers.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"query_prefix": "[Q] ", "document_length": 300})
    )


OTHERS = {
    "sparse": (
        sparse,
        "weights of tokens, which is for sparse",
        "weights of tokens, which is for sparse",
    ),
}


@pytest.mark.parametrize(("write", "embed", "rerank"), OTHERS.values(), ids=OTHERS)
def test_checkpoints_of_another_kind(tmp_path, encoder, write, embed, rerank):
    write(encoder, tmp_path / "checkpoint")
    for task, message in (("sentence-embedding", embed), ("rerank", rerank)):
        with pytest.raises(CheckpointError, match=message):
            pipeline(task, str(tmp_path / "checkpoint"))


def test_a_pooling_over_layers_needs_a_weight_for_each(tmp_path, encoder, caplog):
    """Where config.json says output_hidden_states; else sentence-transformers passes over it, and so do we."""
    transformer = Transformer(str(encoder), config_kwargs={"output_hidden_states": True})
    weighted = WeightedLayerPooling(64, num_hidden_layers=9, layer_start=2)
    modules = [transformer, weighted, Pooling(64)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"must hold \d layer_weights, one for each hidden"):
        pipeline("sentence-embedding", str(tmp_path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_hidden_states": False}))
    plain = pipeline("sentence-embedding", str(encoder))("a")
    assert pipeline("sentence-embedding", str(tmp_path))("a") == plain
    assert "is passed over, as in sentence-transformers" in caplog.text


@pytest.mark.parametrize("write", [multi_vector, pylate])
def test_multi_vector_checkpoints_are_for_other_tasks(tmp_path, encoder, write):
    write(encoder, tmp_path / "checkpoint")
    for task in ("sentence-embedding", "sparse-embedding"):
        with pytest.raises(
            CheckpointError, match="gives a vector per token, which is for multi_vector"
        ):
            pipeline(task, str(tmp_path / "checkpoint"))


def test_the_settings_of_pylate_are_named_even_without_its_module(tmp_path, encoder):
    pylate(encoder, tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(
        CheckpointError, match="has document_length, query_prefix: unknown settings"
    ):
        pipeline("sentence-embedding", str(tmp_path))


SETTINGS = [
    (
        "config_sentence_transformers.json",
        {"query_expansion": True},
        "has query_expansion: unknown settings",
    ),
    ("config_sentence_transformers.json", {"truncate": False}, "has truncate: unknown settings"),
    (
        "config_sentence_transformers.json",
        {"similarity_fn_name": "MaxSim"},
        "has similarity_fn_name MaxSim",
    ),
    ("sentence_bert_config.json", {"query_length": 32}, "has query_length: unknown settings"),
    (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"padding_side": "left", "max_length": 8}}},
        "has processing_kwargs text.padding_side 'left'; followed are",
    ),
    (
        "sentence_bert_config.json",
        {"tokenizer_args": {"padding_side": "left"}},
        "has tokenizer_args padding_side: put",
    ),
    (
        "sentence_bert_config.json",
        {"transformer_task": "fill-mask"},
        "has transformer_task 'fill-mask'; it must be",
    ),
    ("1_Pooling/config.json", {"pooling_mode": "mode"}, "pooling mode mode is unknown"),
    (
        "1_Pooling/config.json",
        {"module_input_name": "token_embeddings"},
        "has module_input_name: unknown settings",
    ),
    ("modules.json", [{"path": ""}], "must list modules with a path and a type"),
]


@pytest.mark.parametrize(
    ("name", "setting", "message"), SETTINGS, ids=lambda value: str(value)[:40]
)
def test_settings_that_nobody_follows(tmp_path, saved, name, setting, message):
    copy(saved, tmp_path)
    stored = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(
        json.dumps(setting if isinstance(setting, list) else stored | setting)
    )
    with pytest.raises(CheckpointError, match=message):
        SentenceConfig.from_folder(tmp_path)


HARMLESS = {
    "config_sentence_transformers.json": {
        "similarity_fn_name": "dot",
        "requirements": {"x": ""},
        "query_length": None,
    },
    "sentence_bert_config.json": {
        "unpad_inputs": True,
        "model_args": {"dtype": "float32"},
        "max_seq_length": 9,
    },
}


def test_settings_without_an_effect(tmp_path, saved):
    copy(saved, tmp_path)
    before = SentenceConfig.from_folder(tmp_path)
    for name, settings in HARMLESS.items():
        (tmp_path / name).write_text(
            json.dumps(json.loads((tmp_path / name).read_text()) | settings)
        )
    after = SentenceConfig.from_folder(tmp_path)
    assert (before.similarity, after.similarity) == ("cosine", "dot")
    assert (before.max_length, after.max_length) == (None, 9)
    assert (after.pooling, after.prompts) == (before.pooling, before.prompts)


@pytest.mark.parametrize("order", [(1, 0), (0,), (0, 1, 2, 1)], ids=str)
def test_modules_in_another_order(tmp_path, saved, order):
    """Without a pooling there is no vector, and after two of them no text."""
    copy(saved, tmp_path)
    modules = json.loads((saved / "modules.json").read_text())
    kinds = {"Normalize": Normalize, "Dense": Dense}
    modules += [
        {"path": f"2_{name}", "type": f"{kind.__module__}.{name}"} for name, kind in kinds.items()
    ]
    (tmp_path / "modules.json").write_text(json.dumps([modules[i] for i in order]))
    with pytest.raises(
        CheckpointError,
        match="a vector per text comes from Transformer, WeightedLayerPooling or none",
    ):
        SentenceConfig.from_folder(tmp_path)


def test_without_modules_settings_are_not_read_and_that_is_said(tmp_path, caplog):
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"truncate_dim": 3, "activation_fn": "x"})
    )
    assert SentenceConfig.from_folder(tmp_path) == SentenceConfig(tmp_path)
    assert CrossEncoderConfig.from_folder(tmp_path, {}) == CrossEncoderConfig()
    assert "is not read: without modules.json" in caplog.text


def copy(source, target):
    for file in source.rglob("*.json"):
        (target / file.relative_to(source)).parent.mkdir(exist_ok=True)
        (target / file.relative_to(source)).write_text(file.read_text())
