"""Every dialect below /models/{name}, and below each other name of a model."""

from __future__ import annotations

from typing import Any

import pytest
from online_service import CLIENT, OPTIONS, SHAPES, TASKS, is_error, post, service

BELOW = [path for path in SHAPES if path != "/" and not path.startswith("/models/")]
"""The dialects' routes; what a new dialect adds to SHAPES is tested here, too."""
TASK_OF = {
    "/predict": "classify", "/classify": "classify", "/tokenize": "classify", "/decode": "classify",
    "/embed_sparse": "sparse", "/v1/multi-vector": "multi_vector", "/pooling": "multi_vector",
}  # fmt: skip
"""By path the task of the first model that answers it, if it neither embeds nor reranks."""


def model_of(path: str) -> str:
    """The model that answers a route that names none."""
    task = TASK_OF.get(path, "rerank" if "rank" in path or "score" in path else "embed")
    return next(name for name, (does, _) in TASKS.items() if does == task)


def content(answer: Any) -> Any:
    """What an answer holds, less what is of the request and its time."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return (
        {name: body[name] for name in body if name not in ("id", "created")}
        if isinstance(body, dict)
        else body
    )


@pytest.mark.parametrize("path", BELOW)
class TestAnyRoute:
    def test_it_answers_as_without_the_model(self, path: str) -> None:
        body, model = SHAPES[path][0], model_of(path)
        without_model = {name: value for name, value in body.items() if name != "model"}
        want = content(post(path, body))
        for name in (model, *OPTIONS.get(model, {}).get("aliases", [])):
            assert content(post(f"/models/{name}{path}", body)) == want
            assert content(post(f"/models/{name}{path}", body | {"model": name})) == want
        if path not in ("/v2/rerank", "/v2/embed"):  # Cohere wants the model in the body
            assert content(post(f"/models/{model}{path}", without_model)) == want

    def test_another_model_is_an_error(self, path: str) -> None:
        body, model = SHAPES[path][0], model_of(path)
        for other in (
            "pii",
            "gpt-7",
            "",
            "my-org/sentence" if model != "sentence" else "rerank-v3.5",
        ):
            found = post(f"/models/{model}{path}", body | {"model": other})
            assert is_error(found, path, 404)
            assert f"model {other!r} is not here; this is {model}" in found.text

    def test_a_model_of_another_task_refuses(self, path: str) -> None:
        body = {name: value for name, value in SHAPES[path][0].items() if name != "model"}
        if path in ("/tokenize", "/decode"):
            assert post(f"/models/pii{path}", body).status_code == 200
            return
        found = post(
            f"/models/pii{path}", body | ({"model": "pii"} if path.startswith("/v2/") else {})
        )
        assert is_error(found, path)
        assert "pii does tag, not " in found.text

    def test_mistakes_have_the_shape_of_the_dialect(self, path: str) -> None:
        assert is_error(post(f"/models/my-org/sentence{path}", b"{"), path)
        assert is_error(CLIENT.put(f"{service()}/models/intent{path}"), path, 405)


def test_a_model_by_its_other_names() -> None:
    want = post("/models/sentence", {"inputs": "a"}).json()
    for name in ("my-org/sentence", "my-org%2Fsentence", "text-embedding-3-small"):
        assert post(f"/models/{name}", {"inputs": "a"}).json() == want
        assert (
            CLIENT.get(f"{service()}/models/{name}/info").json()["served_model_name"] == "sentence"
        )
        assert CLIENT.get(f"{service()}/models/{name}/health").status_code == 200
    assert is_error(
        post("/models/sentence", {"inputs": "a", "model": "intent"}), "/models/sentence", 404
    )


def test_the_models_of_a_path() -> None:
    for path in ("/v1/models", "/models"):
        data = CLIENT.get(f"{service()}/models/rerank-v3.5{path}").json()["data"]
        assert [each["id"] for each in data] == (
            ["ranker", "rerank-v3.5"] if path == "/v1/models" else ["ranker"]
        )


@pytest.mark.parametrize("path", [
    "/metrics", "/ping", "/docs", "/openapi.json", "/invocations", "/", "/v1/models/sentence", "/nope", "/models/sentence",
    "/models/sentence/embed", "//embed", "/../embed", "/embed/",
])  # fmt: skip
def test_what_is_of_the_service_is_not_below_a_model(path: str) -> None:
    for method in ("GET", "POST"):
        answer = CLIENT.request(
            method,
            f"{service()}/models/sentence{path}",
            json={"inputs": "a"},
            follow_redirects=False,
        )
        assert answer.status_code in (404, 405, 307), path
        assert "modernbert_http" not in answer.text
    assert post("/models/sentences/embed", {"inputs": "a"}).status_code == 404
