"""What a request can make the service do: counted in items, tokens, bytes and parts, never in seconds."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from checkpoints import write_task
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from modernbert.text.windows import WindowBudgetError, window_budget
from pipelines.checkpoints import Checkpoint
from pipelines.options import TASKS
from pipelines.serve.admission import Admission
from pipelines.serve.encoding import encode_request
from pipelines.serve.http.bodies import Body
from pipelines.serve.http.dialects.cohere import CohereRequest
from pipelines.serve.http.dialects.embedding_fields import EmbeddingsRequest
from pipelines.serve.http.dialects.huggingface import (
    ClassifyRequest,
    FillRequest,
    TagRequest,
    VectorRequest,
)
from pipelines.serve.http.dialects.jina import JinaRequest
from pipelines.serve.http.dialects.mixedbread import MixedbreadRequest
from pipelines.serve.http.dialects.nim import RankingRequest
from pipelines.serve.http.dialects.shared import EmbedRequest, SimilarityRequest
from pipelines.serve.http.dialects.tei import (
    DecodeRequest,
    TeiPredictRequest,
    TeiRerankRequest,
    TokenizeRequest,
)
from pipelines.serve.http.dialects.weaviate import WeaviateRerankRequest
from pipelines.serve.http.limits import MOST_ITEMS
from pipelines.serve.http.responses import json_response
from pipelines.tasks.base import task_class

N = 300_000
WRONG = [1] * N
ATTACKS: list[tuple[Any, Any]] = [
    (EmbedRequest, {"inputs": ["a", *WRONG]}),
    (EmbedRequest, {"inputs": [5, *["a"] * N]}),
    (EmbedRequest, {"inputs": [[5], *["a"] * N]}),
    (EmbedRequest, {"inputs": [[["a"]] * N]}),
    (EmbedRequest, {"inputs": "a"} | {f"field{i}": 1 for i in range(N)}),
    (TeiPredictRequest, {"inputs": [["a"], *[[1, 1]] * N]}),
    (TeiPredictRequest, {"inputs": ["a", *WRONG]}),
    (TeiPredictRequest, {"inputs": "a", "parameters": {f"field{i}": 1 for i in range(N)}}),
    (TokenizeRequest, {"inputs": ["a", *WRONG]}),
    (DecodeRequest, {"ids": [[5], *["a"] * N]}),
    (DecodeRequest, {"ids": [[5]] * N}),
    (DecodeRequest, {"ids": [5] * N}),
    (DecodeRequest, {"ids": [5.5] * N}),
    (TeiRerankRequest, {"query": "a", "texts": ["a", *WRONG]}),
    (JinaRequest, {"query": "a", "documents": ["a", *WRONG]}),
    (MixedbreadRequest, {"query": "a", "input": ["a", *WRONG]}),
    (RankingRequest, {"query": {"text": "a"}, "passages": [{"text": "a"}, *[{"text": 1}] * N]}),
    (WeaviateRerankRequest, {"query": "a", "documents": ["a", *WRONG]}),
    (JinaRequest, {"query": "a", "documents": [{"text": "a"}, *[{"text": 1, "more": 1}] * N]}),
    (CohereRequest, {"model": "a", "query": "a", "documents": ["a", *WRONG]}),
    (SimilarityRequest, {"inputs": {"source_sentence": "a", "sentences": ["a", *WRONG]}}),
    (VectorRequest, {"inputs": {"source_sentence": "a", "sentences": WRONG}}),
    (ClassifyRequest, {"inputs": ["a", *[{"text": 1}] * N]}),
    (ClassifyRequest, {"inputs": {f"field{i}": 1 for i in range(N)}}),
    (TagRequest, {"inputs": "a", "parameters": {"ignore_labels": ["a"] * N}}),
    (TagRequest, {"inputs": "a", "parameters": {"ignore_labels": ["a" * N]}}),
    (FillRequest, {"inputs": "a", "parameters": {"targets": ["a"] * N}}),
    (FillRequest, {"inputs": "a", "parameters": {"targets": WRONG}}),
    (EmbeddingsRequest, {"model": "a", "input": ["a", *WRONG]}),
    (EmbeddingsRequest, {"model": "a", "input": ["a"] * N}),
]


@pytest.mark.parametrize(("model", "body"), ATTACKS)
def test_checking_ends_at_the_first_mistake(model: Any, body: Any) -> None:
    adapter = TypeAdapter(model)
    tracemalloc.start()
    with pytest.raises(ValidationError) as wrong:
        adapter.validate_python(body)
    errors = wrong.value.errors(include_input=False)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(errors) < 10
    assert peak_bytes < 100 * MOST_ITEMS


def test_every_list_of_a_body_has_an_end() -> None:
    """Whatever body comes next: its lists are counted, and end at the first mistake."""

    def bodies(cls: type) -> Iterator[type[Body]]:
        for each in cls.__subclasses__():
            yield each
            yield from bodies(each)

    def lists(schema: Any) -> Iterator[Any]:
        if isinstance(schema, dict):
            if schema.get("type") == "list":
                yield schema
            for value in schema.values():
                yield from lists(value)
        elif isinstance(schema, list | tuple):
            for value in schema:
                yield from lists(value)

    ours = [
        body for body in bodies(Body) if body.__module__.startswith("pipelines.")
    ]  # other tests have some, too
    found = [each for body in ours for each in lists(body.__pydantic_core_schema__)]
    assert len(found) > 20
    assert all(
        each.get("fail_fast") and each.get("max_length", MOST_ITEMS * 9) <= 1 << 17
        for each in found
    )


def test_null_is_absent_for_every_optional_field() -> None:
    def bodies(cls: type[Body]) -> Iterator[type[Body]]:
        for each in cls.__subclasses__():
            yield each
            yield from bodies(each)

    checked = 0
    for body in bodies(Body):
        schema = body.model_json_schema()
        for name, field in body.model_fields.items():
            if not field.is_required():
                checked += 1
                assert name not in body._count_fields({name: None})
                allowed = schema["properties"][name]
                assert "null" in [each.get("type") for each in allowed.get("anyOf", [allowed])], (
                    body,
                    name,
                )
    assert checked > 50


class TestAdmission:
    def test_a_client_holds_half_and_small_requests_a_quarter_more(self) -> None:
        admission = Admission(64, small=2)
        large = admission.claim("a")
        assert large.resize(32)
        assert not admission.claim("a").resize(3)
        assert admission.claim("b").resize(32)
        assert not admission.claim("c").resize(3)
        small = [admission.claim(client) for client in "aaaaaaaabbbb"]
        assert [claim.resize(2) for claim in small] == [True] * 4 + [False] * 4 + [True] * 4
        assert not admission.claim("c").resize(1)
        large.release()
        assert admission.claim("c").resize(32)
        assert not admission.claim("a").resize(3)

    def test_places_are_given_back_once(self) -> None:
        admission = Admission(8, small=1)
        claim = admission.claim("a")
        assert claim.resize(4)
        assert not claim.resize(5)
        assert admission.used == 4
        for _ in range(2):
            claim.release()
            assert admission.used == 0

    def test_who_has_no_name_holds_any_number(self) -> None:
        admission = Admission(8, small=1)
        assert admission.most_of("a") == 4
        assert admission.claim(None).resize(8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    heads = {"tag": "TokenClassification", "answer": "QuestionAnswering", "fill": "MaskedLM"}
    return {
        task: Checkpoint.open(write_task(tmp_path_factory.mktemp(task), f"ModernBertFor{head}"))
        for task, head in heads.items()
    }


DOCUMENTS: dict[str, list[Any]] = {
    "tag": ["the cat sat " * n for n in (1, 50, 3, 90, 2)],
    "fill": ["the cat sat on the [MASK] " * n for n in (1, 20, 3)] + ["no mask"],
    "answer": [("where?", "the cat sat on the mat " * n) for n in (1, 40, 2)],
}
WINDOWS = {"max_length": 32, "stride": 8, "long_documents": "windows"}


def result_of(steps: Any) -> Any:
    """What work in steps gives in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("task_name", DOCUMENTS)
def test_slices_give_the_windows_of_one_call(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch, task_name: str
) -> None:
    checkpoint, documents = checkpoints[task_name], DOCUMENTS[task_name]
    task = task_class(task_name).from_checkpoint(checkpoint, TASKS[task_name].parse(WINDOWS))
    want = task.encode(checkpoint.tokenizer, documents)
    monkeypatch.setattr("pipelines.serve.encoding._SLICE_BYTES", 100)
    got, too_long = result_of(
        encode_request(task, checkpoint.tokenizer, documents, truncate=True, most_tokens=1 << 20)
    )
    assert not too_long.any()
    for name, value in vars(want).items():
        found = getattr(got, name)
        assert found == value if name == "rejected" else np.array_equal(found, value), name
        assert name == "rejected" or found.dtype == value.dtype, name


@pytest.mark.parametrize(("documents", "options"), [
    (["the cat sat on the mat " * 5000], WINDOWS | {"stride": 16}),
    (["the cat sat on the mat"] * 5000, WINDOWS),
    (["the cat"] * 40, WINDOWS),
])  # fmt: skip
def test_windows_end_at_the_budget(
    checkpoints: dict[str, Checkpoint], documents: Any, options: Any
) -> None:
    checkpoint = checkpoints["tag"]
    task = task_class("tag").from_checkpoint(checkpoint, TASKS["tag"].parse(options))
    most = 40
    with pytest.raises(
        WindowBudgetError,
        match=r"hold more than 40 tokens, the most .* \(max_request_tokens\); send",
    ):
        result_of(
            encode_request(task, checkpoint.tokenizer, documents, truncate=True, most_tokens=most)
        )
    with window_budget(1 << 20):
        assert len(task.encode(checkpoint.tokenizer, documents[:1]).input_ids) >= 4


class TestResponses:
    @pytest.mark.parametrize("content", [
        [], {}, [[]], "a", ["a", "b"], [1.5, 2.5], [[{"a": 1}], []], {"data": [], "a": {"b": [{"c": "d"}]}}, None,
    ])  # fmt: skip
    def test_small_ones_are_plain(self, content: Any) -> None:
        response = json_response(content)
        assert bytes(response.body) == to_json(content)
        assert response.headers["content-length"] == str(len(to_json(content)))

    def test_iterators_are_lists(self) -> None:
        content = {"data": (iter([i]) for i in range(3)), "none": iter(()), "model": "m"}
        assert json.loads(bytes(json_response(content).body)) == {
            "data": [[0], [1], [2]],
            "none": [],
            "model": "m",
        }

    def test_large_ones_are_made_in_parts_off_the_event_loop(self) -> None:
        """No more than a part exists at a time, and the event loop is free between two of them."""
        numbers, made, sent, ticks = list(range(1000)), [], [], 0

        def rows() -> Iterator[list[int]]:
            for _ in range(1000):
                made.append(threading.get_ident())
                yield numbers

        async def answer() -> None:
            nonlocal ticks
            response = json_response({"object": "list", "data": rows(), "model": "m"})
            begun = len(made)
            assert begun < 50

            async def send(message: Any) -> None:
                nonlocal ticks
                if message["type"] == "http.response.body":
                    sent.append(message["body"])
                    ticks += 1
                    assert len(made) <= begun + 20 * len(sent)

            async def receive() -> Any:
                return await asyncio.Event().wait()

            scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
            await response(scope, receive, send)
            assert made.count(threading.get_ident()) <= begun

        asyncio.run(answer())
        assert json.loads(b"".join(sent)) == {
            "object": "list",
            "data": [numbers] * 1000,
            "model": "m",
        }
        assert max(map(len, sent)) < 80_000
        assert ticks > 40


def test_a_texts_tokens_are_bounded_before_they_are_held(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of a million tokens is not encoded whole to be refused; one that fits is encoded as ever."""
    encoder = checkpoints["tag"].tokenizer._encoder
    monkeypatch.setattr("modernbert.text.encoder._CHARS_PER_COUNT", 1000)
    held: list[int] = []
    encode_texts = type(encoder)._encode_texts

    def recorded(self: Any, texts: Any, *arguments: Any, **named: Any) -> Any:
        held.append(sum(map(len, texts)))
        return encode_texts(self, texts, *arguments, **named)

    monkeypatch.setattr(type(encoder), "_encode_texts", recorded)
    text = "the cat sat on the mat " * 1000
    tokenizer = checkpoints["tag"].tokenizer
    tokens = len(tokenizer.encode([text], 32, stride=8).input_ids)
    held.clear()
    with window_budget(2000), pytest.raises(WindowBudgetError):
        tokenizer.encode([text], 32, stride=8)
    assert held == []
    with window_budget(tokens):
        assert len(tokenizer.encode([text], 32, stride=8).input_ids) == tokens
