"""Models whose queries and documents have an encoder each, and activations of cross-encoders, in a job, as a step of a
Dataset and over HTTP: each answers as sentence-transformers does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from checkpoints import write_task
from online_service import serving
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

from pipelines import processor, run_corpus
from pipelines.errors import UserError
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

TEXTS = ["the cat sat", "the dog ran home and sat", "a mat", "the cat and the dog"]
SIDES = {"query": True, "document": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "in.parquet"
    pq.write_table(pa.table({"text": TEXTS, "query": TEXTS[::-1]}), file)
    return file


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    one = write_task(folder / "query", "ModernBertModel", num_hidden_layers=2)
    other = write_task(folder / "document", "ModernBertModel")
    router = Router.for_query_document(
        [Transformer(str(one)), Pooling(64, "cls")], [Transformer(str(other)), Pooling(64)]
    )
    prompts = {"query": "find: ", "document": ""}
    SentenceTransformer(modules=[router], device="cpu", prompts=prompts).save(str(folder / "saved"))
    return folder / "saved"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    modules = []
    for side, layers in (("query", 2), ("document", 3)):
        written = write_task(folder / side, "ModernBertForMaskedLM", num_hidden_layers=layers)
        transformer = Transformer(str(written), transformer_task="fill-mask")
        modules.append([transformer, SpladePooling("max")])
    router = Router.for_query_document(*modules)
    SparseEncoder(modules=[router], device="cpu").save(str(folder / "saved"))
    return folder / "saved"


def ask(entry: dict[str, Any], path: str, body: dict[str, Any]) -> Any:
    models = LocalModelClient(served_models([{"name": "model", **entry}]))
    with serving(models) as url:
        reply = httpx.post(f"{url}{path}", json=body, timeout=60)
    models.close()
    assert reply.status_code == 200, reply.text
    return reply.json()


def as_dense(answers: list[list[dict[str, Any]]], id_name: str, value_name: str, width: int):
    weights = np.zeros((len(answers), width))
    for row, answer in enumerate(answers):
        for each in answer:
            weights[row, each[id_name]] = each[value_name]
    return weights


@pytest.mark.parametrize("side", SIDES)
def test_vectors_of_each_side(side, corpus, dense, local_ray, tmp_path):
    theirs = SentenceTransformer(str(dense), device="cpu")
    want = getattr(theirs, f"encode_{side}")(TEXTS)
    options = {"model": str(dense), "as_query": SIDES[side]}
    run_corpus("embed", input=str(corpus), output=str(tmp_path / "out"), **options)
    of_job = pq.read_table(tmp_path / "out/data")["embedding"].to_pylist()
    step = processor("embed", str(dense), as_query=SIDES[side])
    of_step = step(ray.data.from_arrow(pa.table({"text": TEXTS}))).take_all()
    of_http = ask(
        {"task": "embed", **options}, "/models/model", {"inputs": TEXTS, "normalize": False}
    )
    for got in (of_job, [row["embedding"] for row in of_step], of_http):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_weights_of_each_side(side, corpus, sparse, in_process, tmp_path):
    theirs = SparseEncoder(str(sparse), device="cpu")
    want = getattr(theirs, f"encode_{side}")(TEXTS, convert_to_sparse_tensor=False).numpy()
    options = {"model": str(sparse), "as_query": SIDES[side]}
    run_corpus("sparse", input=str(corpus), output=str(tmp_path / "out"), **options)
    of_job = pq.read_table(tmp_path / "out/data")["sparse"].to_pylist()
    of_http = ask({"task": "sparse", **options}, "/embed_sparse", {"inputs": TEXTS})
    width = want.shape[1]
    tolerance = 1e-5 * float(want.max())
    got_of_job = as_dense(of_job, "token_id", "weight", width)
    np.testing.assert_allclose(got_of_job, want, rtol=1e-5, atol=tolerance)
    got_of_http = as_dense(of_http, "index", "value", width)
    np.testing.assert_allclose(got_of_http, want, rtol=1e-5, atol=tolerance)


def test_a_run_of_the_other_side_is_another_run(corpus, dense, in_process, tmp_path):
    options = {"input": str(corpus), "output": str(tmp_path / "out"), "model": str(dense)}
    run_corpus("embed", as_query=True, **options)
    with pytest.raises(UserError, match=r"was begun with pooling .*, prompt find: "):
        run_corpus("embed", as_query=False, **options)


def test_tanh_of_a_cross_encoder(corpus, in_process, tmp_path):
    folder = write_task(tmp_path / "model", "ModernBertForSequenceClassification", num_labels=1)
    saved = str(tmp_path / "saved")
    CrossEncoder(str(folder), activation_fn=torch.nn.Tanh(), device="cpu").save_pretrained(saved)
    pairs = list(zip(TEXTS[::-1], TEXTS, strict=True))
    want = CrossEncoder(saved, device="cpu").predict(pairs)
    columns = {"query_column": "query", "passage_column": "text"}
    run_corpus("rerank", input=str(corpus), output=str(tmp_path / "out"), model=saved, **columns)
    of_job = pq.read_table(tmp_path / "out/data")["score"].to_pylist()
    np.testing.assert_allclose(of_job, want, atol=1e-5)
    body = {"model": "model", "query": pairs[0][0], "documents": [pairs[0][1]]}
    of_http = ask({"task": "rerank", "model": saved}, "/v1/rerank", body)
    # The servers whose routes these are give the sigmoid, whatever the checkpoint says.
    sigmoid = 1 / (1 + np.exp(-np.arctanh(want[0])))
    np.testing.assert_allclose(of_http["results"][0]["relevance_score"], sigmoid, atol=1e-5)
