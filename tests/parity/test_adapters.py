"""Adapters of PEFT give the answers of `merge_and_unload` in fp32, whatever trained them and whatever runs them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import peft
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from checkpoints import change_json, relative_error, write_task, write_tokenizer
from commands import LocalDataset
from online_service import serving
from predictions import assert_close, random_texts
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

import modernbert
from pipelines import pipeline, processor, run_corpus
from pipelines.checkpoints import Checkpoint
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

TEXTS = ["a", " The Cat", *random_texts(61, 6), "the cat " * 90]
IDS = torch.arange(3, 60)[None]


def heat(model: torch.nn.Module, names: tuple[str, ...] = ("lora_", "modules_to_save")) -> None:
    """Draw what is trained, so that every matrix of it matters: PEFT begins with zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in names):
                shift = 1.0 if "norm" in name else 0.0
                weight.normal_(shift, 0.15, generator=generator)


def write_adapter(
    folder: Path, base: Path, architecture: str, labels: int | None = None, **settings: Any
):
    """Write an adapter as PEFT does; returns the model that PEFT reads from it, merged."""
    options = {} if labels is None else {"num_labels": labels}
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = model_class.from_pretrained(base, **options)
    config = peft.LoraConfig(**({"r": 4, "target_modules": ["Wqkv", "Wo", "Wi"]} | settings))
    adapted = peft.get_peft_model(model, config)
    heat(adapted)
    adapted.save_pretrained(folder)
    again = model_class.from_pretrained(base, **options)
    return peft.PeftModel.from_pretrained(again, folder).merge_and_unload().eval()


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("masked"), "ModernBertForMaskedLM")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("encoder"), "ModernBertModel")


HEADS = {"modules_to_save": ["head"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "the usual": {},
    "rank and alpha": {"r": 3, "lora_alpha": 20},
    "rslora": {"r": 9, "use_rslora": True},
    "all linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*layers\.[13]\.mlp\.W[io]"},
    "two layers": {"layers_to_transform": [1, 2], "layers_pattern": "layers"},
    "all but one": {"exclude_modules": ["layers.0.attn.Wqkv"]},
    "full names": {"target_modules": ["model.layers.0.attn.Wqkv", "layers.1.mlp.Wi"]},
    "ranks of modules": {
        "rank_pattern": {"layers.1.attn.Wqkv": 7, "^model.layers.2.mlp.Wi": 2, "attn.Wo": 5},
        "alpha_pattern": {"mlp.Wo": 3, "Wo": 31, "^layers.0.attn.Wqkv": 99},
    },
    "embeddings": {"target_modules": ["tok_embeddings", "Wqkv"]},
    "a head that is saved": HEADS,
    "a head with matrices": {"target_modules": ["Wqkv", "dense"]},
    "another start": {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
}


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_classifier(masked, tmp_path, settings):
    theirs = write_adapter(
        tmp_path,
        masked,
        "ModernBertForSequenceClassification",
        labels=5,
        task_type="SEQ_CLS",
        **settings,
    )
    base = transformers.ModernBertModel.from_pretrained(masked)
    assert relative_error(theirs.model(IDS)[0], base(IDS)[0]) > 0.01
    ours = modernbert.ModernBertForSequenceClassification.from_pretrained(tmp_path)
    assert ours.config.num_labels == 5
    assert relative_error(ours(IDS).logits, theirs(IDS).logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_is_stored_in_half_precision_is_merged_in_fp32(masked, tmp_path, dtype):
    base = transformers.ModernBertForMaskedLM.from_pretrained(masked)
    base.to(dtype).save_pretrained(tmp_path / "base")
    write_adapter(tmp_path, tmp_path / "base", "ModernBertModel", task_type="FEATURE_EXTRACTION")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    plain = transformers.ModernBertModel.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).merge_and_unload()
    ours = modernbert.ModernBertModel.from_pretrained(tmp_path)
    assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 1e-5


NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
NLI["label2id"] = {label: i for i, label in NLI["id2label"].items()}
LABELLED = "ModernBertForSequenceClassification"
TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Any]] = {
    "text-classification": (LABELLED, {"num_labels": 4}, {"task_type": "SEQ_CLS"}, {"top_k": None}),
    "token-classification": (
        "ModernBertForTokenClassification",
        {"num_labels": 5},
        {"task_type": "TOKEN_CLS"} | HEADS,
        {"ignore_labels": []},
    ),
    "question-answering": (
        "ModernBertForQuestionAnswering",
        {},
        {"task_type": "QUESTION_ANS", "modules_to_save": ["head", "classifier"]},
        {"top_k": 3},
    ),
    "fill-mask": ("ModernBertForMaskedLM", {}, HEADS, {}),
    "zero-shot-classification": (LABELLED, {}, {"task_type": "SEQ_CLS"}, {"candidate_labels": ["cat", "mat"]}),
    "rerank": (LABELLED, {"num_labels": 1}, {"task_type": "SEQ_CLS"} | HEADS, {}),
    "sentence-embedding": ("ModernBertModel", {}, {"task_type": "FEATURE_EXTRACTION"}, {}),
    "sparse-embedding": ("ModernBertForMaskedLM", {}, {}, {}),
}  # fmt: skip
"""The class of the model, the labels it is made with, what PEFT is told, and the options of the call."""


def answers(task: str, folder: Path, options: dict[str, Any]) -> Any:
    call = pipeline(task, str(folder))
    if task == "question-answering":
        return [call(question="the cat?", context=text, **options) for text in TEXTS]
    if task == "rerank":
        return call("the cat", TEXTS, **options)
    texts = [f"{text} [MASK]" for text in TEXTS] if task == "fill-mask" else TEXTS
    return call(texts, **options)


@pytest.mark.parametrize("task", TASKS)
def test_every_task(masked, tmp_path, task):
    """The adapter without its tokenizer, over a base with one, answers as the folder of the merged model."""
    architecture, made_with, settings, options = TASKS[task]
    base = masked
    if task == "zero-shot-classification":
        base = write_task(tmp_path / "base", architecture, **NLI)
    theirs = write_adapter(
        tmp_path / "adapter", base, architecture, made_with.get("num_labels"), **settings
    )
    theirs.save_pretrained(tmp_path / "merged")
    write_tokenizer(tmp_path / "merged")
    assert not (tmp_path / "adapter/tokenizer.json").exists()
    want = answers(task, tmp_path / "merged", options)
    assert_close(answers(task, tmp_path / "adapter", options), want)


def of_tokens(encoder: Path) -> list[torch.nn.Module]:
    names = {"module_input_name": "token_embeddings"}
    dense = Dense(64, 32, bias=False, activation_function=torch.nn.Identity(), **names)
    return [Transformer(str(encoder)), dense, Normalize(**names)]


def write_sentence_adapter(folder: Path, kind: str, encoder: Path, masked: Path) -> Any:
    """Write an adapter by `add_adapter` of sentence-transformers, and return the merged model."""
    torch.manual_seed(0)
    if kind == "embed":
        model_class, modules = SentenceTransformer, [Transformer(str(encoder)), Pooling(64, "cls"), Dense(64, 48)]  # fmt: skip
    elif kind == "sparse":
        transformer = Transformer(str(masked), transformer_task="fill-mask")
        model_class, modules = SparseEncoder, [transformer, SpladePooling("max")]
    elif kind == "multi_vector":
        model_class, modules = MultiVectorEncoder, of_tokens(encoder)
    else:
        transformer = Transformer(str(encoder), transformer_task="sequence-classification", config_kwargs={"num_labels": 1})  # fmt: skip
        model_class, modules = CrossEncoder, [transformer]
    model = model_class(modules=modules, device="cpu")
    settings = {"modules_to_save": ["head", "classifier"]} if kind == "rerank" else {}
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["Wqkv", "Wo", "Wi"], **settings))
    heat(model)
    model.save_pretrained(str(folder))
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    return model


@pytest.mark.parametrize("kind", ["embed", "sparse", "multi_vector", "rerank"])
def test_inside_sentence_transformers(encoder, masked, tmp_path, kind):
    theirs = write_sentence_adapter(tmp_path, kind, encoder, masked)
    assert not (tmp_path / "config.json").exists()
    if kind == "embed":
        assert_close(pipeline("sentence-embedding", str(tmp_path))(TEXTS), theirs.encode(TEXTS).tolist())  # fmt: skip
    elif kind == "sparse":
        want = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
        got = np.zeros_like(want)
        for row, weights in zip(got, pipeline("sparse-embedding", str(tmp_path))(TEXTS), strict=True):  # fmt: skip
            row[[each["token_id"] for each in weights]] = [each["weight"] for each in weights]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.max()))
    elif kind == "multi_vector":
        want = theirs.encode_document(TEXTS, convert_to_numpy=True)
        for got, vectors in zip(pipeline("multi-vector", str(tmp_path))(TEXTS), want, strict=True):
            assert np.abs(got - vectors).max() < 1e-5
    else:
        want = theirs.predict([("the cat", text) for text in TEXTS])
        got = pipeline("rerank", str(tmp_path))("the cat", TEXTS)
        assert [each["score"] for each in got] == pytest.approx(sorted(want, reverse=True), 1e-5)


def test_every_face(masked, tmp_path, in_process):
    write_adapter(tmp_path / "adapter", masked, LABELLED, labels=4, task_type="SEQ_CLS")
    model = str(tmp_path / "adapter")
    want = [(each["label"], each["score"]) for each in pipeline("classify", model)(TEXTS)]
    table = pa.table({"text": TEXTS})
    pq.write_table(table, tmp_path / "in.parquet")

    run_corpus(
        "classify", input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), model=model
    )
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert [(row["label"], row["score"]) for row in rows] == want

    step = processor("classify", model, device="cpu")
    rows = step(LocalDataset(table)).table.to_pylist()
    assert [(row["label"], row["score"]) for row in rows] == want

    models = LocalModelClient(served_models([{"name": "a", "task": "classify", "model": model}]))
    with serving(models) as url:
        reply = httpx.post(f"{url}/models/a", json={"inputs": TEXTS, "parameters": {"top_k": 1}})
    models.close()
    assert [(row[0]["label"], row[0]["score"]) for row in reply.json()] == want


def test_a_base_by_its_name_on_the_hub(masked, tmp_path, monkeypatch):
    """It is found as `--model` is: in the hub's cache, at the revision that the adapter names."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--org--base"
    shutil.copytree(masked, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/v2").write_text(commit)
    theirs = write_adapter(tmp_path / "adapter", masked, LABELLED, labels=4, task_type="SEQ_CLS")
    theirs.save_pretrained(tmp_path / "merged")
    write_tokenizer(tmp_path / "merged")
    change_json(
        tmp_path / "adapter/adapter_config.json", base_model_name_or_path="org/base", revision="v2"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint = Checkpoint.open(tmp_path / "adapter")
    assert checkpoint.base == Checkpoint("org/base", commit)
    want = answers("text-classification", tmp_path / "merged", {})
    assert_close(answers("text-classification", tmp_path / "adapter", {}), want)


def test_an_adapter_alone_over_a_sentence_encoder(encoder, tmp_path, caplog):
    """What pools in the base is not in the adapter's folder: the library takes the mean then, and so is said."""
    modules = [Transformer(str(encoder)), Pooling(64, "cls")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "base"))
    write_adapter(
        tmp_path / "adapter", tmp_path / "base", "ModernBertModel", task_type="FEATURE_EXTRACTION"
    )
    write_tokenizer(tmp_path / "adapter")
    want = SentenceTransformer(str(tmp_path / "adapter"), device="cpu").encode(TEXTS)
    assert_close(pipeline("sentence-embedding", str(tmp_path / "adapter"))(TEXTS), want.tolist())
    assert caplog.text.count("is an adapter without modules.json") == 1
