"""Routes of servers whose clients are no packages here: bodies as those write them, read as those read answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from online_service import (
    CLIENT,
    Held,
    all_models,
    checkpoint_of,
    is_error,
    post,
    service,
    serving,
    with_prompts,
)

from pipelines.memory.pipeline import pipeline
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

QUERY = "where did the cat sit?"
PASSAGES = ["on the mat and then", "the cat sat", "the other cat sat there too"]
LONG = "word " * 9000


@cache
def ranks(raw: bool = False) -> list[tuple[int, float]]:
    """The index and score of each passage from best to worst, in memory."""
    ours = pipeline("rerank", str(checkpoint_of("ranker")))
    return [(each["index"], each["score"]) for each in ours(QUERY, PASSAGES, raw_scores=raw)]


RERANK_PATHS = ["/rerank", "/v1/rerank", "/reranking", "/v1/reranking", "/models/ranker/rerank"]


@pytest.mark.parametrize("path", RERANK_PATHS)
class TestRerank:
    """The bodies that share paths, on each of them."""

    def test_llama_cpp_and_jina(self, path: str) -> None:
        found = post(path, {"query": QUERY, "documents": PASSAGES, "top_n": 2}).json()
        assert [(each["index"], each["relevance_score"]) for each in found["results"]] == ranks()[
            :2
        ]
        assert found["object"] == "rerank"

    def test_elasticsearch(self, path: str) -> None:
        """Its parser takes an array of objects, and no field in them that it does not know."""
        body = {"texts": PASSAGES, "query": QUERY, "return_text": True, "top_n": 2}
        found = post(path, body)
        assert [(each["index"], each["score"], each["text"]) for each in found.json()] == [
            (index, score, PASSAGES[index]) for index, score in ranks()
        ]
        assert all(each.keys() == {"index", "score", "text"} for each in found.json())
        assert found.headers["x-ignored"] == "top_n"  # it cuts the list itself

    def test_voyage(self, path: str) -> None:
        body = {
            "query": QUERY,
            "documents": PASSAGES,
            "model": "ranker",
            "top_k": None,
            "truncation": True,
        }
        found = post(path, body).json()
        assert [(each["index"], each["relevance_score"]) for each in found["data"]] == ranks()
        assert found["usage"]["total_tokens"] > 0
        found = post(
            path, {"query": QUERY, "documents": PASSAGES, "top_k": 1, "return_documents": True}
        ).json()
        assert found["data"] == [
            {
                "index": ranks()[0][0],
                "relevance_score": ranks()[0][1],
                "document": PASSAGES[ranks()[0][0]],
            }
        ]
        refused = post(path, {"query": QUERY, "documents": ["a", LONG], "truncation": False})
        assert refused.status_code == 400
        assert refused.json()["detail"].startswith("documents[1]: ")

    def test_mixedbread(self, path: str) -> None:
        if path.endswith("/rerank") and path != "/v1/rerank":
            assert is_error(post(path, {"query": QUERY, "input": PASSAGES}), "/rerank", 422)
            return
        body = {
            "query": QUERY,
            "input": PASSAGES,
            "model": "ranker",
            "top_k": 2,
            "return_input": True,
        }
        found = post(path, body).json()
        assert found["data"] == [
            {"index": index, "score": score, "object": "rank_result", "input": PASSAGES[index]}
            for index, score in ranks()[:2]
        ]
        assert (found["top_k"], found["return_input"]) == (2, True)
        assert post(path, {"query": QUERY, "input": PASSAGES}).json()["return_input"] is False
        refused = post(path, body | {"rewrite_query": True})
        assert "rewrite_query is not available here" in refused.json()["detail"]

    def test_weaviate(self, path: str) -> None:
        body = {"query": QUERY, "documents": PASSAGES, "property": ""}
        assert post(path, body).json() == {
            "query": QUERY,
            "scores": [
                {"document": PASSAGES[index], "score": score} for index, score in sorted(ranks())
            ],
        }
        refused = post(path, body | {"documents": [1]})
        assert "documents[0] must be a valid string" in refused.json()["error"]


def test_ranking_of_nim() -> None:
    body: dict[str, Any] = {
        "model": "ranker",
        "query": {"text": QUERY},
        "passages": [{"text": text} for text in PASSAGES],
    }
    found = post("/v1/ranking", body).json()
    assert [(each["index"], each["logit"]) for each in found["rankings"]] == ranks(raw=True)
    long = body | {"passages": [{"text": "a"}, {"text": LONG}]}
    assert post("/v1/ranking", long | {"truncate": "END"}).headers["x-truncated"] == "1"
    for truncate in (None, "NONE"):
        refused = post("/v1/ranking", long | {"truncate": truncate})
        assert is_error(refused, "/v1/ranking", 400)
        assert "passages[1]: " in refused.text
    image = body | {"passages": [{"text": "a", "image": "data:image/png;base64,AAAA"}]}
    assert "image is not available" in post("/v1/ranking", image).json()["error"]["message"]


@pytest.fixture(scope="module")
def prompted() -> Iterator[str]:
    entry = {"name": "prompted", "task": "embed", "model": str(with_prompts())}
    models = LocalModelClient(served_models([entry]))
    with serving(models) as url:
        yield url
    models.close()


class TestWeaviate:
    @pytest.mark.parametrize(("config", "options"), [
        ({"pooling_strategy": "masked_mean", "task_type": "query"}, {"prompt_name": "query"}),
        ({"pooling_strategy": "masked_mean", "task_type": "passage"}, {"prompt_name": "document"}),
        ({"pooling_strategy": "masked_mean", "dimensions": 32}, {"prompt_name": "document", "dimensions": 32}),
        ({}, {"prompt_name": "document"}),
    ])  # fmt: skip
    def test_vectors(self, prompted: str, config: Any, options: Any) -> None:
        want = pipeline("sentence-embedding", str(with_prompts()))(
            "the cat", normalize=True, **options
        )
        for path in ("/vectors", "/vectors/", "/models/prompted/vectors"):
            found = post(path, {"text": "the cat", "config": config}, prompted).json()
            assert found == {"text": "the cat", "vector": want, "dim": len(want)}

    def test_states(self) -> None:
        class Ill(Held):
            async def unready(self) -> dict[str, str]:
                return {"pii": "its device hangs"}

        for path in (
            "/.well-known/ready",
            "/.well-known/live",
            "/models/sentence/.well-known/ready",
        ):
            answer = CLIENT.get(service() + path)
            assert (answer.status_code, answer.content) == (204, b"")
        assert CLIENT.get(f"{service()}/models/sentence/meta").json()["model_name"] == "sentence"
        with serving(Ill()) as url:
            assert CLIENT.get(f"{url}/.well-known/ready").status_code == 503
            assert CLIENT.get(f"{url}/models/sentence/.well-known/ready").status_code == 204


class TestAzure:
    def test_paths(self) -> None:
        body = {"input": ["the cat"], "model": "text-embedding-3-small", "input_type": "text"}
        want = post("/v1/embeddings", {"input": ["the cat"]}).json()
        for path in (
            "/embeddings?api-version=2024-05-01-preview",
            "/openai/v1/embeddings",
            "/openai/deployments/sentence/embeddings?api-version=2024-10-21",
            "/openai/deployments/text-embedding-3-small/embeddings",
        ):
            assert post(path, body).json() == want
        for path in (
            "/openai/deployments/nope/embeddings",
            "/openai/deployments/sentence",
            "/openai/deployments/pii/health",
        ):
            answer = post(path, body)
            assert answer.status_code == 404
            assert answer.json().keys() == {"error"}
        other = post("/openai/deployments/sentence/embeddings", {"input": "a", "model": "gpt-7"})
        assert other.json()["error"]["code"] == "model_not_found"

    def test_what_the_model_is(self) -> None:
        found = CLIENT.get(f"{service()}/info?api-version=2024-05-01-preview").json()
        assert (found["model_name"], found["model_type"]) == ("sentence", "embeddings")
        other = CLIENT.get(f"{service()}/models/pii/info?api-version=2024-05-01-preview")
        assert other.status_code != 200
        assert "embed" in other.text

    def test_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "secret")
        with serving(all_models()) as url:
            statuses = [
                post("/embeddings", {"input": "a"}, url, **headers).status_code
                for headers in (
                    {"api-key": "secret"}, {"api-key": "Secret"}, {"api-key": ""}, {"api-key": "Bearer secret"},
                    {"api-key": "secret", "authorization": "Bearer wrong"},
                    {"api-key": "wrong", "authorization": "Bearer secret"},
                )
            ]  # fmt: skip
        assert statuses == [200, 401, 401, 401, 401, 200]


def test_the_hub_as_langchain4j_asks_it() -> None:
    body = {"inputs": ["the cat"], "options": {"wait_for_model": True}}
    want = post("/models/sentence", body).json()
    for name in ("sentence", "my-org/sentence"):
        assert post(f"/pipeline/feature-extraction/{name}", body).json() == want
    assert post("/pipeline/feature-extraction/sentence/embed", body).status_code == 404
