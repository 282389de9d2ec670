"""/v1/embeddings for clients of those who speak OpenAI's dialect with fields of their own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from online_service import CLIENT, post, serving, with_prompts

from pipelines.memory.pipeline import pipeline
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

TEXTS = ["where is my parcel?", "Naïve café, 東京 🙂"]
LONG = "the " * 600 + "cat " * 600


@cache
def memory() -> Any:
    return pipeline("sentence-embedding", str(with_prompts()))


@pytest.fixture(scope="module")
def prompted() -> Iterator[str]:
    """A service with an encoder that has the prompts query and document."""
    models = LocalModelClient(
        served_models([{"name": "prompted", "task": "embed", "model": str(with_prompts())}])
    )
    with serving(models) as url:
        yield url
    models.close()


def embeddings(url: str, **fields: Any) -> Any:
    return post("/v1/embeddings", {"model": "prompted", "input": TEXTS} | fields, url)


def vectors(url: str, **fields: Any) -> Any:
    found = embeddings(url, **fields)
    assert found.status_code == 200, found.text
    return [each["embedding"] for each in found.json()["data"]]


@pytest.mark.parametrize(("fields", "options"), [
    ({}, {}),
    ({"input_type": "query"}, {"prompt_name": "query"}),
    ({"input_type": "search_query"}, {"prompt_name": "query"}),
    ({"task": "retrieval.query"}, {"prompt_name": "query"}),
    ({"input_type": "document"}, {"prompt_name": "document"}),
    ({"input_type": "passage"}, {"prompt_name": "document"}),
    ({"task": "retrieval.passage"}, {"prompt_name": "document"}),
    ({"normalize": False}, {"normalize": False}),
    ({"normalized": "false"}, {"normalize": False}),
    ({"normalized": "True"}, {}),
    ({"output_dimension": 32}, {"dimensions": 32}),
    ({"output_dtype": "int8"}, {"precision": "int8"}),
    ({"output_dtype": "binary"}, {"precision": "binary"}),
    ({"embedding_type": "ubinary"}, {"precision": "ubinary"}),
    ({"encoding_format": "binary"}, {"precision": "binary"}),
    # What makes no difference, and null, which is an absent field.
    ({"add_special_tokens": True, "priority": "true", "x": [1], "late_chunking": "false", "prompt": None}, {}),
    ({"user": "a", "dimensions": None, "encoding_format": None, "truncate": "end"}, {}),
])  # fmt: skip
def test_fields_that_are_followed(prompted: str, fields: Any, options: Any) -> None:
    want = memory()(TEXTS, **({"normalize": True} | options))
    assert vectors(prompted, **fields) == want


@pytest.mark.parametrize("fields", [
    {"output_dtype": "float"}, {"embedding_type": "base64"}, {"output_dtype": "int8"}, {"output_dtype": "ubinary"},
])  # fmt: skip
def test_base64_is_of_the_numbers_that_are_asked_for(prompted: str, fields: Any) -> None:
    """As Voyage's client reads it."""
    kind = fields.get("output_dtype", "float")
    packed = vectors(prompted, encoding_format="base64", **fields)
    types = {"float": "<f4", "int8": np.int8, "ubinary": np.uint8}
    precision = {"float": "float32"}.get(kind, kind)
    assert [np.frombuffer(base64.b64decode(each), types[kind]).tolist() for each in packed] == memory()(
        TEXTS, normalize=True, precision=precision
    )  # fmt: skip


def test_what_is_passed_over_is_named(prompted: str) -> None:
    found = embeddings(prompted, input_type="clustering", task="text-matching", prefix="a: ")
    assert found.json()["data"] == embeddings(prompted).json()["data"]
    assert found.headers["x-ignored"] == "prefix,input_type,task"
    assert "x-ignored" not in embeddings(prompted, input_type="query").headers


@pytest.mark.parametrize(("fields", "message"), [
    ({"output_dtype": "uint8"}, "output_dtype must be 'float', 'int8', 'binary' or 'ubinary'"),
    ({"encoding_format": "float16"}, "encoding_format must be 'float', 'base64', 'int8'"),
    ({"encoding_format": ["float", "binary"]}, "encoding_format must be 'float', 'base64', 'int8'"),
    ({"output_dtype": "int8", "embedding_type": "binary"}, "the body wants vectors as binary and as int8"),
    ({"add_special_tokens": False}, "add_special_tokens is not available here: texts are always read"),
    ({"late_chunking": True}, "late_chunking is not available here: /embed has late chunking"),
    ({"prompt": "Find: "}, "prompt is not available here: the model's own prompts can be named"),
    ({"normalize": "no"}, "normalize must be a valid boolean"),
])  # fmt: skip
def test_what_would_be_misread_is_refused(prompted: str, fields: Any, message: str) -> None:
    found = embeddings(prompted, **fields)
    assert found.status_code == 400
    assert message in found.json()["error"]["message"]


@pytest.mark.parametrize(("fields", "side"), [
    ({"truncation": True}, None), ({"truncation": "true"}, None), ({"truncate": "END"}, "right"),
    ({"truncate": True}, "right"), ({"truncate": "START"}, "left"), ({"truncation": False}, "refused"),
    ({"truncate": "NONE"}, "refused"), ({"truncate": False}, "refused"), ({}, "refused"),
])  # fmt: skip
def test_inputs_that_are_too_long(prompted: str, fields: Any, side: str | None) -> None:
    found = embeddings(prompted, input=LONG, **fields)
    if side == "refused":
        assert found.status_code == 400
        assert "input[0]: text has more than the 512 tokens" in found.text
        return
    assert found.headers["x-truncated"] == "0"
    tokenizer = memory().checkpoint.tokenizer.truncating(side or "right")
    kept = tokenizer.decode(tokenizer.encode([LONG], 512).input_ids, skip_special_tokens=True)
    [vector] = vectors(prompted, input=LONG, **fields)
    assert vector == pytest.approx(memory()(kept, normalize=True), rel=1e-5, abs=1e-6)


def test_words_for_booleans() -> None:
    """As RAGFlow sends them to Xinference."""
    documents = ["the cat", "on the mat"]
    for shown in (True, False):
        body = {"query": "cat", "documents": documents}
        want = post("/v1/rerank", body | {"return_documents": shown}).json()
        assert post("/v1/rerank", body | {"return_documents": str(shown).lower()}).json() == want
    assert post("/v1/rerank", body | {"return_documents": "yes"}).status_code == 400
    raw = {"input": "a", "raw_scores": "True"}
    assert (
        post("/classify", raw).json()["data"]
        == post("/classify", raw | {"raw_scores": True}).json()["data"]
    )


def test_the_document_names_the_fields(prompted: str) -> None:
    schemas = CLIENT.get(f"{prompted}/openapi.json").json()["components"]["schemas"]
    assert {"input_type", "task", "output_dtype"} <= schemas["EmbeddingsRequest"][
        "properties"
    ].keys()
