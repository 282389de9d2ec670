"""How refusals are said, who is let in, and what requests are read as: without a model or a port."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines.serve.http.app import DIALECTS, create_app
from pipelines.serve.http.bodies import Inputs
from pipelines.serve.http.dialect import dialect_of, error_response, path_of
from pipelines.serve.http.dialects.cohere import CohereRequest
from pipelines.serve.http.dialects.huggingface import AnswerParameters, TagParameters
from pipelines.serve.http.dialects.jina import JinaRequest
from pipelines.serve.http.dialects.tei import TeiPredictRequest
from pipelines.serve.http.errors import ERROR_TYPES, ApiError
from pipelines.serve.http.limits import HttpLimits
from pipelines.serve.protocol import ErrorType, Info, PredictResponse


def scope_of(path: str, root_path: str = "") -> dict[str, Any]:
    """The scope of a request as the middleware passes it on."""
    scope = {"path": path, "root_path": root_path}
    return scope | {"dialect": dialect_of(path_of(scope), DIALECTS)}


def said(path: str, error_type: str, **rest: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of an error at `path`."""
    response = error_response(scope_of(path), ApiError(error_type, "no", **rest))
    headers = {
        name: value for name, value in response.headers.items() if not name.startswith("content-")
    }
    return response.status_code, json.loads(bytes(response.body)), headers


def test_every_kind_of_the_engine_can_be_said() -> None:
    assert set(get_args(ErrorType)) <= set(ERROR_TYPES)


@pytest.mark.parametrize(
    ("kind", "tei", "openai", "cohere"),
    [
        ("malformed", (400, "Validation"), (400, "invalid_request_error", None), 400),
        ("empty", (400, "Empty"), (400, "invalid_request_error", None), 400),
        ("invalid", (422, "Validation"), (400, "invalid_request_error", None), 400),
        ("too_large", (422, "Validation"), (400, "invalid_request_error", None), 400),
        ("body_too_large", (413, "Validation"), (413, "invalid_request_error", None), 413),
        (
            "unauthorized",
            (401, "Validation"),
            (401, "invalid_request_error", "invalid_api_key"),
            401,
        ),
        (
            "unknown_model",
            (404, "Validation"),
            (404, "invalid_request_error", "model_not_found"),
            404,
        ),
        ("wrong_task", (424, "Backend"), (400, "invalid_request_error", None), 400),
        ("failed", (424, "Backend"), (500, "server_error", None), 500),
        ("overloaded", (429, "Overloaded"), (429, "rate_limit_error", "rate_limit_exceeded"), 429),
        ("unhealthy", (503, "Unhealthy"), (503, "server_error", None), 503),
        ("timeout", (504, "Overloaded"), (504, "server_error", None), 504),
        ("internal", (500, "Backend"), (500, "server_error", None), 500),
    ],
)
def test_kinds(
    kind: str, tei: tuple[int, str], openai: tuple[int, str, str | None], cohere: int
) -> None:
    for path in ("/embed", "/models/pii", "/", "/nope"):
        assert said(path, kind)[:2] == (tei[0], {"error": "no", "error_type": tei[1]})
    for path in ("/v1/embeddings", "/v1/models/x", "/v1/nope"):
        message = {"message": "no", "type": openai[1], "param": "input", "code": openai[2]}
        assert said(path, kind, field="input")[:2] == (openai[0], {"error": message})
    assert said("/v2/rerank", kind)[:2] == (cohere, {"message": "no"})
    assert said("/v1/rerank", kind)[:2] == (cohere, {"detail": "no"})


def test_headers_of_refusals() -> None:
    assert said("/embed", "overloaded", retry_after_s=2.1)[2] == {"retry-after": "3"}
    assert said("/embed", "overloaded", retry_after_s=0.01)[2] == {"retry-after": "1"}
    assert said("/embed", "unauthorized")[2] == {
        "www-authenticate": "Bearer",
        "connection": "close",
    }
    assert said("/embed", "body_too_large")[2] == {"connection": "close"}
    assert said("/embed", "invalid")[2] == {}


def test_a_path_below_another_application() -> None:
    response = error_response(scope_of("/ml/v2/rerank", "/ml"), ApiError("invalid", "no"))
    assert json.loads(bytes(response.body)) == {"message": "no"}


class TestKeys:
    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MODERNBERT_API_KEY", raising=False)
        assert HttpLimits().key_ring().admits("")

    def test_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "key")
        limits = HttpLimits()
        assert [limits.key_ring().admits(given) for given in ("Bearer key", "bearer  key ", "", "Bearer keys", "key")] == [
            True, True, False, False, False,
        ]  # fmt: skip

    def test_travel_with_the_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "key")
        limits = HttpLimits()
        monkeypatch.delenv("MODERNBERT_API_KEY")
        assert not pickle.loads(pickle.dumps(limits)).key_ring().admits("")
        assert "key" not in repr(limits).replace("api_key_file", "")

    def test_a_file_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "key")
        (tmp_path / "keys").write_text("old\nnew\n")
        limits = HttpLimits(api_key_file=tmp_path / "keys")
        assert [limits.key_ring().admits(f"Bearer {key}") for key in ("old", "new", "key")] == [
            True,
            True,
            False,
        ]

    def test_one_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("\n  one \r\n\ntwo\n")
        keys = HttpLimits(api_key_file=tmp_path / "keys").key_ring()
        assert [keys.name_of(f"Bearer {key}") for key in ("one", "two", "", " ")] == [
            "key 0",
            "key 1",
            None,
            None,
        ]

    @pytest.mark.parametrize(
        "key", ["my long key", "schlüssel", "a\tb", "\ufeffkey", "a\x00b", "fine\nnot fine"]
    )
    def test_what_is_no_key_is_refused_at_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        (tmp_path / "keys").write_text(key, encoding="utf-8")
        with pytest.raises(
            ValidationError,
            match=r"line [12] holds a blank, or what is not ASCII, .*; a key is one line",
        ) as e:
            HttpLimits(api_key_file=tmp_path / "keys")
        assert key not in str(e.value)
        if "\x00" not in key:
            monkeypatch.setenv("MODERNBERT_API_KEY", key)
            with pytest.raises(ValidationError, match="MODERNBERT_API_KEY: line"):
                HttpLimits()

    def test_a_missing_key_is_no_open_door(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ValidationError, match=r"api_key_file .*none"):
            HttpLimits(api_key_file=tmp_path / "none")
        (tmp_path / "empty").write_text(" \n")
        with pytest.raises(ValidationError, match=r"api_key_file .*empty is empty"):
            HttpLimits(api_key_file=tmp_path / "empty")
        monkeypatch.setenv("MODERNBERT_API_KEY", "")
        with pytest.raises(ValidationError, match="MODERNBERT_API_KEY is empty"):
            HttpLimits()


@pytest.mark.parametrize("good", ["a", ["a", "b"], [1, 2], [[1], [2, 3]], [1.0]])
def test_inputs(good: Any) -> None:
    assert TypeAdapter(Inputs).validate_python(good, strict=True) == good


@pytest.mark.parametrize(
    "wrong",
    ["", [], [""], [[]], 1, None, True, ["a", 1], [1, "a"], [True], [-1], [1.5], [[1], 2], {}],
)
def test_wrong_inputs(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Inputs).validate_python(wrong, strict=True)


def test_a_list_of_texts_is_a_pair_and_a_list_of_lists_a_batch() -> None:
    for inputs in ("a", ["a"], ["a", "b"], [["a"], ["b"]], [["a", "b"]]):
        assert TeiPredictRequest(inputs=inputs).inputs == inputs
    for inputs in (["a", "b", "c"], [["a", "b", "c"]], [[]], ["a", ["b"]], [["a"], "b"]):
        with pytest.raises(ValidationError):
            TeiPredictRequest(inputs=inputs)


def test_options_have_our_names() -> None:
    assert TagParameters(aggregation_strategy="max", stride=3).options == {
        "aggregation": "max", "ignore_labels": None, "stride": 3, "is_split_into_words": None,
    }  # fmt: skip
    given = AnswerParameters(
        top_k=2, max_answer_len=3, max_seq_len=30, doc_stride=4, handle_impossible_answer=True
    )
    assert given.options == {
        "top_k": 2, "max_answer_length": 3, "max_length": 30, "stride": 4, "no_answer": True, "align_to_words": None,
    }  # fmt: skip


def test_documents_of_rerankers() -> None:
    assert JinaRequest(query="q", documents=["a", {"text": "b"}]).documents[1].text == "b"  # type: ignore[list-item, union-attr]
    with pytest.raises(ValidationError):
        CohereRequest(model="m", query="q", documents=[{"text": "b"}])  # type: ignore[list-item]


class Echo:
    """A reranker whose score is the length of the passage, and a classifier with one output."""

    def __init__(self) -> None:
        self.tasks = {"one": "classify", "ranker": "rerank"}
        self.aliases: dict[str, str] = {}
        self.asked: list[Any] = []

    async def info(self, model: str) -> Info:
        labels = ("score",) if model == "one" else ()
        return Info(model, model, None, self.tasks[model], "cpu", "float32", 512, 4096, 64, labels)

    async def predict(self, model: str, ask: Any) -> PredictResponse:
        self.asked.append(ask)
        count = len(ask.documents)
        results: list[Any] = [len(document[1]) for document in ask.documents]
        if model == "one":
            results = [[{"label": "score", "score": 0.5}]] * count
        return PredictResponse(
            results, {}, frozenset(), [1] * count, [False] * count, 0.0, 0.0, 0.0, 0.0, 0
        )


def call(
    models: Any,
    path: str,
    body: Any,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    root_path: str = "",
) -> tuple[int, Any]:
    """Status and body of one request to the application, without a port."""
    messages: list[Any] = [
        {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": root_path, "scheme": "http", "http_version": "1.1", "server": ("h", 1), "client": ("c", 1),
             "headers": [(b"content-type", b"application/json"), *headers]}  # fmt: skip
    asyncio.run(create_app(models)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_rerankers_sort_and_cut() -> None:
    models, documents = Echo(), ["aa", "a", "aaaa", "bb"]
    status, tei = call(models, "/rerank", {"query": "q", "texts": documents, "return_text": True})
    assert status == 200
    assert tei == [
        {"index": i, "score": len(documents[i]), "text": documents[i]}
        for i in (2, 0, 3, 1)  # equal scores keep order
    ]
    asked = {"model": "ranker", "query": "q", "documents": documents, "top_n": 2}
    _, cohere = call(models, "/v2/rerank", asked)
    assert cohere["results"] == [
        {"index": 2, "relevance_score": 4},
        {"index": 0, "relevance_score": 2},
    ]
    assert cohere["meta"]["tokens"] == {"input_tokens": 4}
    _, jina = call(models, "/v1/rerank", asked | {"return_documents": False})
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    assert jina == {
        "object": "rerank",
        "model": "ranker",
        "usage": usage,
        "results": cohere["results"],
    }
    assert [ask.options for ask in models.asked] == [{"raw_scores": False}] * 3


def test_a_single_output_is_a_probability() -> None:
    models = Echo()
    call(models, "/predict", {"inputs": "a"})
    call(models, "/predict", {"inputs": "a", "raw_scores": True})
    call(models, "/predict", {"inputs": "a", "parameters": {"function_to_apply": "softmax"}})
    assert [ask.options for ask in models.asked] == [
        {"function": "sigmoid"},
        {"function": "none"},
        {"function": "softmax"},
    ]


def test_a_model_of_a_path_is_not_another() -> None:
    found = call(
        Echo(), "/models/ranker/rerank", {"query": "q", "documents": ["a"], "model": "one"}
    )
    assert found == (404, {"detail": "model 'one' is not here; this is ranker"})


def test_a_model_of_a_path_below_another_application() -> None:
    body = {"query": "q", "documents": ["a"]}
    status, found = call(Echo(), "/ml/models/ranker/v1/rerank", body, root_path="/ml")
    assert (status, found["model"]) == (200, "ranker")
    wrong = call(Echo(), "/ml/models/one/v1/rerank", body, root_path="/ml")
    assert wrong == (400, {"detail": "model one does classify, not rerank"})


def test_places_of_mistakes() -> None:
    for path, body, message in (
        (
            "/rerank",
            {"query": "q", "texts": ["a", 1]},
            {"error": "texts[1] must be a valid string", "error_type": "Validation"},
        ),
        (
            "/rerank",
            {"query": "q", "documents": ["a", {"text": 1}]},
            {"detail": "documents[1].text must be a valid string"},
        ),
        (
            "/predict",
            {"inputs": [["a"], ["b", ""]]},
            {"error": "inputs[1][1] is empty", "error_type": "Validation"},
        ),
        ("/predict", {"inputs": []}, {"error": "inputs is empty", "error_type": "Empty"}),
        ("/predict", {}, {"error": "inputs is missing", "error_type": "Validation"}),
        ("/predict", 1, {"error": "the body must be a JSON object", "error_type": "Validation"}),
        ("/v2/rerank", {"model": "m", "query": "q"}, {"message": "documents is missing"}),
        (  # `documents` is Jina's on /rerank alone
            "/embed",
            {"documents": ["a"]},
            {"error": "inputs is missing", "error_type": "Validation"},
        ),
    ):
        assert call(Echo(), path, body)[1] == message
