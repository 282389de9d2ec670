"""Real clients, unmodified: each gets what the routes of text-embeddings-inference answer, to the last bit.

Those routes equal the models in memory (tests/integration/test_serve_clients.py). Run by tests/clients/run.py.
"""

from __future__ import annotations

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
QUERY, PASSAGES = (
    "where did the cat sit?",
    ["the cat sat", "on the mat and then", "the other cat sat there too"],
)


def post(path: str, body: Any) -> Any:
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL + path, data, headers)) as answer:
        return json.load(answer)


VECTORS = post("/embed", {"inputs": TEXTS})
RANKS = [
    (each["index"], each["score"]) for each in post("/rerank", {"query": QUERY, "texts": PASSAGES})
]


class TestLangchain:
    def test_openai(self) -> None:
        from langchain_openai import OpenAIEmbeddings

        named: dict[str, Any] = {
            "model": "text-embedding-3-small",
            "base_url": f"{URL}/v1",
            "api_key": "x",
        }
        embeddings = OpenAIEmbeddings(**named, check_embedding_ctx_length=False)
        assert embeddings.embed_documents(TEXTS) == VECTORS
        assert embeddings.embed_query(TEXTS[1]) == VECTORS[1]

    def test_openai_with_token_ids_of_its_own_is_told_what_to_do(self) -> None:
        """Its default sends ids of OpenAI's tokenizer, which for short texts are those of others here."""
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=f"{URL}/v1", api_key="x")
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(model="sentence", input=[[1820]])

    def test_hugging_face(self) -> None:
        from langchain_community.embeddings import HuggingFaceInferenceAPIEmbeddings

        embeddings = HuggingFaceInferenceAPIEmbeddings(
            api_key="x", api_url=f"{URL}/models/sentence"
        )
        assert embeddings.embed_documents(TEXTS) == VECTORS

    @pytest.mark.parametrize("base", [URL, f"{URL}/v1"])
    def test_infinity(self, base: str) -> None:
        from langchain_community.embeddings import InfinityEmbeddings

        embeddings = InfinityEmbeddings(model="sentence", infinity_api_url=base)
        assert embeddings.embed_documents(TEXTS) == VECTORS

    def test_infinity_rerank(self) -> None:
        from infinity_client import Client
        from langchain_community.document_compressors.infinity_rerank import InfinityRerank
        from langchain_core.documents import Document

        ranker = InfinityRerank(client=Client(base_url=URL), model="ranker", top_n=2)
        found = ranker.compress_documents([Document(text) for text in PASSAGES], QUERY)
        assert [
            (PASSAGES.index(each.page_content), each.metadata["relevance_score"]) for each in found
        ] == RANKS[:2]

    def test_cohere(self) -> None:
        from langchain_cohere import CohereEmbeddings, CohereRerank

        embeddings = CohereEmbeddings(model="sentence", cohere_api_key="x", base_url=URL)
        assert embeddings.embed_documents(TEXTS) == VECTORS
        assert embeddings.embed_query(TEXTS[0]) == VECTORS[0]
        ranker = CohereRerank(model="ranker", cohere_api_key="x", base_url=URL)
        assert [
            (each["index"], each["relevance_score"])
            for each in ranker.rerank(PASSAGES, QUERY, top_n=3)
        ] == RANKS
        documents = [{"text": text, "id": i} for i, text in enumerate(PASSAGES)]
        assert len(ranker.rerank(documents, QUERY, rank_fields=["text"], top_n=2)) == 2


class TestLlamaIndex:
    def test_text_embeddings_inference(self) -> None:
        from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

        embeddings = TextEmbeddingsInference(
            model_name="sentence",
            base_url=f"{URL}/models/sentence",
            query_instruction="",
            text_instruction="",
        )
        assert embeddings.get_text_embedding_batch(TEXTS) == VECTORS

    def test_openai_like(self) -> None:
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding

        embeddings = OpenAILikeEmbedding(
            model_name="my-org/sentence", api_base=f"{URL}/v1", api_key="x"
        )
        assert embeddings.get_text_embedding_batch(TEXTS) == VECTORS

    def test_rerank(self) -> None:
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

        nodes = [
            NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(PASSAGES)
        ]
        ranker = TextEmbeddingInference(model_name="ranker", base_url=URL, top_n=3)
        found = ranker.postprocess_nodes(nodes, query_str=QUERY)
        assert sorted(each.node.id_ for each in found) == ["0", "1", "2"]


class TestLitellm:
    @pytest.mark.parametrize(("model", "base"), [
        ("openai/sentence", f"{URL}/v1"), ("openai/text-embedding-3-small", f"{URL}/v1"),
        ("hosted_vllm/sentence", f"{URL}/v1"), ("jina_ai/sentence", f"{URL}/v1"), ("infinity/sentence", f"{URL}/v1"),
        ("infinity/sentence", URL), ("cohere/sentence", f"{URL}/v2/embed"),
    ])  # fmt: skip
    def test_embedding(self, model: str, base: str) -> None:
        litellm = pytest.importorskip("litellm")
        found = litellm.embedding(model=model, input=TEXTS, api_base=base, api_key="x")
        assert [each["embedding"] for each in found.data] == VECTORS

    @pytest.mark.parametrize(("model", "options"), [
        ("cohere/ranker", {}), ("cohere/ranker", {"return_documents": None}), ("jina_ai/ranker", {}),
        ("hosted_vllm/ranker", {}), ("infinity/ranker", {"return_documents": False}),
        ("huggingface/ranker", {"top_n": 3}),
    ])  # fmt: skip
    def test_rerank(self, model: str, options: dict[str, Any]) -> None:
        """With infinity/, documents are not given back: nothing in its request tells it from Jina's."""
        litellm = pytest.importorskip("litellm")
        base = f"{URL}/v1/rerank" if model.startswith("jina_ai") else URL
        found = litellm.rerank(
            model=model, query=QUERY, documents=PASSAGES, api_base=base, api_key="x", **options
        )
        assert [(each["index"], each["relevance_score"]) for each in found.results] == RANKS


class TestHaystack:
    def test_openai(self) -> None:
        from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
        from haystack.dataclasses import Document
        from haystack.utils import Secret

        named: dict[str, Any] = {
            "model": "sentence",
            "api_base_url": f"{URL}/v1",
            "api_key": Secret.from_token("x"),
        }
        assert OpenAITextEmbedder(**named).run(TEXTS[0])["embedding"] == VECTORS[0]
        found = OpenAIDocumentEmbedder(**named, progress_bar=False).run(
            [Document(content=text) for text in TEXTS]
        )
        assert [each.embedding for each in found["documents"]] == VECTORS

    def test_text_embeddings_inference(self) -> None:
        from haystack.dataclasses import Document
        from haystack.utils import Secret
        from haystack_integrations.components.embedders.huggingface_api import (
            HuggingFaceAPIDocumentEmbedder,
            HuggingFaceAPITextEmbedder,
        )

        named: dict[str, Any] = {
            "api_type": "text_embeddings_inference",
            "api_params": {"url": f"{URL}/models/sentence"},
            "token": Secret.from_token("x"),
        }
        want = post("/embed", {"inputs": TEXTS, "normalize": False})
        assert HuggingFaceAPITextEmbedder(**named).run(TEXTS[0])["embedding"] == want[0]
        embedder = HuggingFaceAPIDocumentEmbedder(**named, progress_bar=False)
        found = embedder.run([Document(content=text) for text in TEXTS])["documents"]
        assert [each.embedding for each in found] == want


class TestInfinity:
    @pytest.mark.parametrize("base", [URL, f"{URL}/v1"])
    @pytest.mark.parametrize("named", [{"model": "sentence"}, {}])
    def test_embeddings(self, base: str, named: dict[str, str]) -> None:
        from infinity_client import Client
        from infinity_client.api.default import embeddings
        from infinity_client.models import OpenAIEmbeddingInputText

        found = embeddings.sync(
            client=Client(base_url=base), body=OpenAIEmbeddingInputText(input_=TEXTS, **named)
        )
        assert [each.embedding for each in found.data] == VECTORS

    def test_rerank(self) -> None:
        from infinity_client import Client
        from infinity_client.api.default import rerank
        from infinity_client.models import RerankInput

        body = RerankInput(query=QUERY, documents=PASSAGES, return_documents=True)
        found = rerank.sync(client=Client(base_url=URL), body=body)
        assert [(each.index, each.relevance_score) for each in found.results] == RANKS
        assert [each.document for each in found.results] == [PASSAGES[i] for i, _ in RANKS]

    def test_classify(self) -> None:
        from infinity_client import Client
        from infinity_client.api.default import classify
        from infinity_client.models import ClassifyInput

        found = classify.sync(
            client=Client(base_url=URL), body=ClassifyInput(input_=TEXTS, model="intent")
        )
        want = post("/predict", {"inputs": [[text] for text in TEXTS]})
        assert [
            [{"label": each.label, "score": each.score} for each in scores] for scores in found.data
        ] == want

    def test_models(self) -> None:
        from infinity_client import Client
        from infinity_client.api.default import models

        assert [
            each.id
            for each in models.sync(client=Client(base_url=URL)).data
            if each.capabilities == ["embed"]
        ] == ["sentence"]


class TestStores:
    def test_chroma(self) -> None:
        from chromadb.utils import embedding_functions as functions

        for function in (
            functions.OpenAIEmbeddingFunction(
                api_key="x", model_name="sentence", api_base=f"{URL}/v1"
            ),
            functions.HuggingFaceEmbeddingServer(url=f"{URL}/embed"),
            functions.HuggingFaceEmbeddingServer(url=f"{URL}/models/sentence"),
        ):
            assert [row.tolist() for row in function(TEXTS)] == VECTORS

    def test_qdrant(self) -> None:
        import openai
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, PointStruct, VectorParams

        answer = openai.OpenAI(base_url=f"{URL}/v1", api_key="x").embeddings.create(
            model="sentence", input=TEXTS
        )
        store = QdrantClient(":memory:")
        size = len(VECTORS[0])
        store.create_collection(
            "texts", vectors_config=VectorParams(size=size, distance=Distance.COSINE)
        )
        points = [PointStruct(id=each.index, vector=each.embedding) for each in answer.data]
        store.upsert("texts", points)
        assert store.query_points("texts", query=VECTORS[2], limit=1).points[0].id == 2


class TestCohere:
    def test_embed_and_rerank(self) -> None:
        import cohere

        second = cohere.ClientV2(api_key="x", base_url=URL)
        found = second.embed(
            model="sentence", texts=TEXTS, input_type="search_document", embedding_types=["float"]
        )
        assert found.embeddings.float_ == VECTORS
        first = cohere.Client(api_key="x", base_url=URL)
        assert (
            first.embed(model="sentence", texts=TEXTS, input_type="search_document").embeddings
            == VECTORS
        )
        for client in (first, second):
            results = client.rerank(model="rerank-v3.5", query=QUERY, documents=PASSAGES).results
            assert [(each.index, each.relevance_score) for each in results] == RANKS


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_npm() -> None:
    """openai, cohere-ai, @huggingface/inference, Vercel's AI SDK and langchain.js."""
    script = Path(__file__).with_name("npm.mjs").read_text()
    given = json.dumps({"url": URL, "texts": TEXTS, "query": QUERY, "passages": PASSAGES})
    command = ["node", "--input-type=module", "-", given]
    ran = subprocess.run(
        command, input=script, cwd=os.environ["NODE_FOLDER"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for name in (
        "openai", "openai_float", "cohere", "cohere_v1", "hf_features", "vercel", "langchain",
    ):  # fmt: skip
        assert found[name] == VECTORS, name
    for name in ("cohere_rerank", "cohere_rerank_v1"):
        assert [(each["index"], each["relevanceScore"]) for each in found[name]] == RANKS
    for name, path, body in (
        ("hf_classify", "/models/intent", {"inputs": TEXTS[0], "parameters": {"top_k": 3}}),
        ("hf_fill", "/models/mask", {"inputs": "i lost my [MASK]"}),
    ):
        want = post(path, body)
        assert found[name] == (want[0] if name == "hf_classify" else want), name
