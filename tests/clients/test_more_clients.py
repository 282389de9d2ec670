"""More real clients, unmodified, as test_clients.py has them; in an environment of their own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

URL = os.environ["SERVICE"]
TEXTS = ["where is my parcel?", "ok", "the", "Naïve café, 東京 🙂"]
QUERY = "where did the cat sit?"
PASSAGES = ["the cat sat", "on the mat and then", "the other cat sat there too"]


def post(path: str, body: Any) -> Any:
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL + path, data, headers)) as answer:
        return json.load(answer)


VECTORS = post("/embed", {"inputs": TEXTS})
RANKS = [
    (each["index"], each["score"]) for each in post("/rerank", {"query": QUERY, "texts": PASSAGES})
]


class TestVoyage:
    def client(self) -> Any:
        import voyageai

        return voyageai.Client(api_key="x", base_url=f"{URL}/v1")

    def test_embed(self) -> None:
        found = self.client().embed(TEXTS, model="sentence", input_type="document")
        assert found.embeddings == VECTORS
        assert found.total_tokens > 0
        [cut] = self.client().embed(["word " * 600], model="sentence").embeddings
        assert len(cut) == len(VECTORS[0])

    @pytest.mark.parametrize("kind", ["int8", "binary", "ubinary"])
    def test_precisions(self, kind: str) -> None:
        found = self.client().embed(TEXTS, model="sentence", output_dtype=kind, output_dimension=64)
        body = {
            "model": "sentence",
            "texts": TEXTS,
            "embedding_types": [kind],
            "output_dimension": 64,
        }
        assert found.embeddings == post("/v2/embed", body)["embeddings"][kind]

    def test_rerank(self) -> None:
        found = self.client().rerank(QUERY, PASSAGES, model="ranker", top_k=2).results
        assert [(each.index, each.relevance_score) for each in found] == RANKS[:2]
        assert [each.document for each in found] == [PASSAGES[index] for index, _ in RANKS[:2]]


class TestMixedbread:
    def client(self) -> Any:
        from mixedbread import Mixedbread

        return Mixedbread(api_key="x", base_url=URL)

    def test_embed(self) -> None:
        found = self.client().embed(
            model="sentence", input=TEXTS, normalized=True, encoding_format="float"
        )
        assert [each.embedding for each in found.data] == VECTORS

    def test_rerank(self) -> None:
        found = self.client().rerank(
            model="ranker", query=QUERY, input=PASSAGES, top_k=2, return_input=True
        )
        assert [(each.index, each.score) for each in found.data] == RANKS[:2]
        assert [each.input for each in found.data] == [PASSAGES[index] for index, _ in RANKS[:2]]
        assert (found.top_k, found.return_input) == (2, True)


class TestAzure:
    def test_inference(self) -> None:
        from azure.ai.inference import EmbeddingsClient
        from azure.core.credentials import AzureKeyCredential

        client = EmbeddingsClient(endpoint=URL, credential=AzureKeyCredential("x"))
        found = client.embed(input=TEXTS, model="sentence", input_type="text")
        assert [each.embedding for each in found.data] == VECTORS
        assert client.get_model_info().model_type == "embeddings"

    def test_openai(self) -> None:
        import openai

        client = openai.AzureOpenAI(azure_endpoint=URL, api_key="x", api_version="2024-10-21")
        for name in ("sentence", "text-embedding-3-small"):
            found = client.embeddings.create(model=name, input=TEXTS)
            assert [each.embedding for each in found.data] == VECTORS
        later = openai.OpenAI(base_url=f"{URL}/openai/v1/", api_key="x")
        assert [
            each.embedding for each in later.embeddings.create(model="sentence", input=TEXTS).data
        ] == VECTORS


class TestNvidia:
    def test_embed(self) -> None:
        from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

        embeddings = NVIDIAEmbeddings(
            base_url=f"{URL}/v1", model="sentence", api_key="x", truncate="END"
        )
        assert embeddings.embed_documents(TEXTS) == VECTORS
        assert embeddings.embed_query(TEXTS[0]) == VECTORS[0]

    def test_rerank(self) -> None:
        from langchain_core.documents import Document
        from langchain_nvidia_ai_endpoints import NVIDIARerank

        ranker = NVIDIARerank(base_url=f"{URL}/v1", model="ranker", api_key="x", top_n=3)
        found = ranker.compress_documents([Document(text) for text in PASSAGES], QUERY)
        raw = post("/rerank", {"query": QUERY, "texts": PASSAGES, "raw_scores": True})
        assert [
            (PASSAGES.index(each.page_content), each.metadata["relevance_score"]) for each in found
        ] == [(each["index"], each["score"]) for each in raw]


@pytest.mark.parametrize(("provider", "path"), [
    ("cohere", "/v1/rerank"), ("jina", "/v1/rerank"), ("voyage", "/v1/rerank"), ("mixedbread.ai", "/v1/reranking"),
    ("text-embeddings-inference", "/rerank"),
])  # fmt: skip
def test_rerankers(provider: str, path: str) -> None:
    from rerankers import Reranker

    for base in (URL, f"{URL}/models/ranker", f"{URL}/models/rerank-v3.5"):
        named: dict[str, Any] = {
            "model_type": "APIRanker",
            "api_key": "x",
            "api_provider": provider,
        }
        found = Reranker("ranker", **named, url=base + path).rank(QUERY, PASSAGES)
        assert [(each.doc_id, each.score) for each in found.results] == RANKS


def test_mem0() -> None:
    from mem0.configs.embeddings.base import BaseEmbedderConfig
    from mem0.embeddings.openai import OpenAIEmbedding

    for size in (None, len(VECTORS[0])):
        named: dict[str, Any] = {
            "model": "sentence",
            "api_key": "x",
            "openai_base_url": f"{URL}/v1",
        }
        embedder = OpenAIEmbedding(BaseEmbedderConfig(**named, embedding_dims=size))
        assert embedder.embed(TEXTS[0]) == VECTORS[0]
        assert embedder.embed_batch(TEXTS) == VECTORS


def test_dspy() -> None:
    import dspy

    embedder = dspy.Embedder("openai/sentence", api_base=f"{URL}/v1", api_key="x", caching=False)
    assert embedder(TEXTS).tolist() == VECTORS


def test_agno() -> None:
    from agno.knowledge.embedder.openai import OpenAIEmbedder

    size = len(VECTORS[0])
    embedder = OpenAIEmbedder(id="sentence", base_url=f"{URL}/v1", api_key="x", dimensions=size)
    assert [embedder.get_embedding(text) for text in TEXTS] == VECTORS


def test_pydantic_ai() -> None:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="x")
    embedder = Embedder(OpenAIEmbeddingModel("sentence", provider=provider))
    found = asyncio.run(embedder.embed_documents(TEXTS))
    assert [list(each) for each in found.embeddings] == VECTORS


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_java() -> None:
    """java.net.http.HttpClient, which Spring AI and LangChain4j ask with: it offers HTTP/2."""
    body = {"input": TEXTS, "model": "sentence", "encoding_format": "float"}
    source = str(Path(__file__).with_name("Client.java"))
    command = ["java", source, f"{URL}/v1/embeddings", json.dumps(body), f"{URL}/v1/models"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 8
    for number, line in enumerate(lines):
        status, _, answer = line.partition(" ")
        assert status == "200"
        if number % 4 < 3:
            assert [each["embedding"] for each in json.loads(answer)["data"]] == VECTORS
