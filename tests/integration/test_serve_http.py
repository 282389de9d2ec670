"""The online application under hostile, clumsy and unlucky clients: every answer is JSON in the dialect's shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from online_service import (
    CLIENT,
    SHAPES,
    Held,
    all_models,
    checkpoint_of,
    is_error,
    post,
    service,
    serving,
    until,
)
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pipelines.memory.pipeline import pipeline
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient


@pytest.fixture
def held() -> Iterator[Held]:
    models = Held()
    yield models
    models.go.set()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_openapi_document_is_kept(mode: schemathesis.GenerationMode) -> None:
    """Every route answers what the document says, refuses what it does not allow, and never fails."""
    schema = schemathesis.openapi.from_url(f"{service()}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= set(SHAPES)
    called = 0
    for operation in operations:
        if mode.is_negative and operation.method.upper() == "GET":
            continue  # nothing to get wrong

        @settings(
            max_examples=10,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            nonlocal called
            called += 1
            # A schema cannot say which models and prompts there are, nor that a text needs a mask.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
    assert called > 200


NO_REQUESTS = [
    b"", b"{", b"null", b"[]", b'"a"', b"1", b"{}", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00",
    b'{"inputs": "\xff"}', b'{"inputs": "\xed\xa0\x80", "input": "\xed\xa0\x80"}', b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b"9" * 10_000, b'{"inputs": NaN, "input": NaN}',
    b'{"inputs": -Infinity}', b'{"inputs": 1e999, "input": 1e999}',
]  # fmt: skip
WRONG_VALUES = [
    "null", "1", "1e999", "true", "[]", "{}", "[[]]", "[{}]", "[null]", "[1.5]", '""', '[""]', '["a", 1]', '[["a"], 1]',
    '"\\ud800"', "[-1]", "[[-1]]", "[9223372036854775808]", '[["a", "b", "c"]]', "9" * 400,
]  # fmt: skip


@pytest.mark.parametrize("path", SHAPES)
class TestAnyRoute:
    def test_a_good_request(self, path: str) -> None:
        assert post(path, SHAPES[path][0]).status_code == 200

    @pytest.mark.parametrize("body", NO_REQUESTS, ids=lambda body: repr(body[:16]))
    def test_what_is_no_request(self, path: str, body: bytes) -> None:
        assert is_error(post(path, body), path)

    def test_wrong_values(self, path: str) -> None:
        good = SHAPES[path][0]
        for wrong in WRONG_VALUES:
            for name in good:
                optional = (
                    ["null", "{}"]
                    if name == "parameters"
                    else ["null"]
                    if path == "/v1/embeddings"
                    else []
                )
                if wrong in optional and name != "input":
                    continue
                fields = [
                    f'"{other}": {wrong if other == name else json.dumps(value)}'
                    for other, value in good.items()
                ]
                assert is_error(post(path, ("{" + ", ".join(fields) + "}").encode()), path), (
                    name,
                    wrong,
                )

    def test_an_unknown_field_is_named(self, path: str) -> None:
        """As the dialect's own server: Cohere's refuses it, the others pass over it; of those that speak OpenAI's
        dialect OpenAI alone refuses it.
        """
        found = post(path, SHAPES[path][0] | {"normalise": True, "x\r\ny: 1": None})
        if path in ("/v2/rerank", "/v2/embed"):
            assert is_error(found, path)
            assert "'normalise' is not a field of this request" in found.text
        else:
            assert found.status_code == 200
            assert found.headers["x-ignored"] == "normalise,x??y??1"
            assert "x-ignored" not in post(path, SHAPES[path][0]).headers


ONE_OF_EACH = [
    "/embed",
    "/models/intent",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/reranking",
    "/v1/ranking",
    "/vectors",
]
"""A route of each dialect: what stands before the routes treats them alike, but for the shape of an error."""


@pytest.mark.parametrize("path", ONE_OF_EACH)
class TestBeforeAnyRoute:
    def test_too_large(self, path: str) -> None:
        assert is_error(post(path, b'{"inputs": "' + b"a" * (9 << 20) + b'"}'), path, 413)

    def test_too_large_without_a_stated_length(self, path: str) -> None:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while sent < 100 << 20:
                sent += 1 << 16
                yield b" " * (1 << 16)

        try:
            found = httpx.post(
                service() + path, content=endless(), headers={"content-type": "application/json"}
            )
        except httpx.WriteError:  # the service closed the connection before the client read
            found = None
        assert found is None or is_error(found, path, 413)
        assert sent < 50 << 20

    def test_another_content_type(self, path: str) -> None:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ):
            assert is_error(post(path, SHAPES[path][0], **{"content-type": kind}), path, 415)

    def test_another_method(self, path: str) -> None:
        assert is_error(CLIENT.put(service() + path), path, 405)

    def test_a_queue_that_is_full(self, path: str, held: Held) -> None:
        # Of four places a client holds half; of the one more that small requests have, this one.
        with serving(held, max_documents=4) as url, ThreadPoolExecutor(3) as pool:
            under_way = [
                pool.submit(post, "/models/sentence", {"inputs": "a"}, url) for _ in range(3)
            ]
            until(lambda: held.waiting == 3)
            found = post(path, SHAPES[path][0], url)
            held.go.set()
            assert [each.result().status_code for each in under_way] == [200, 200, 200]
            assert post(path, SHAPES[path][0], url).status_code in (
                200,
                400,
                422,
            )  # similarity and rerank hold 2 inputs
        assert is_error(found, path, 429)
        assert int(found.headers["retry-after"]) >= 1

    def test_a_deadline(self, path: str, held: Held) -> None:
        if path in ("/tokenize", "/decode"):
            pytest.skip("is not held")
        with serving(held, timeout_s=0.2) as url:
            found = post(path, SHAPES[path][0], url)
            until(lambda: held.cancelled == 1)
        assert is_error(found, path, 504)
        assert "no answer within 0.2 s" in found.text
        assert found.headers["retry-after"] == "1"


def test_what_json_does_not_have_is_told() -> None:
    for body in (b'{"inputs": NaN}', b'{"inputs": "\\ud800"}', b'{"inputs": "\xff"}', b"[" * 300):
        found = post("/embed", body)
        assert is_error(found, "/embed", 400)
        assert found.json()["error"].startswith("the body is not valid JSON: ")


class TestOptions:
    @pytest.mark.parametrize(("path", "option"), [
        ("/embed", {"dimensions": 10**400}), ("/models/pii", {"parameters": {"stride": 10**30}}),
        ("/models/reader", {"parameters": {"doc_stride": 10**30}}),
        ("/models/reader", {"parameters": {"max_seq_len": 10**30}}),
        ("/models/reader", {"parameters": {"max_seq_len": 3}}),
        ("/models/reader", {"parameters": {"max_question_len": 5}}),
        ("/models/mask", {"parameters": {"top_k": 1001}}), ("/models/mask", {"parameters": {"targets": []}}),
        ("/models/intent", {"parameters": {"top_k": 0}}), ("/embed", {"prompt_name": "nope"}),
        ("/models/intent", {"parameters": {"function_to_apply": "tanh"}}), ("/v1/embeddings", {"dimensions": 193}),
        ("/models/sentence", {"encoding_format": "base64"}), ("/v2/rerank", {"top_n": 0}),
    ])  # fmt: skip
    def test_refused(self, path: str, option: dict[str, Any]) -> None:
        assert is_error(post(path, SHAPES[path][0] | option), path)

    @pytest.mark.parametrize(("path", "option"), [
        ("/models/intent", {"parameters": {"top_k": 10**30}}), ("/v2/rerank", {"top_n": 10**30}),
        ("/v2/rerank", {"max_tokens_per_doc": 10**30}), ("/embed", {"dimensions": 8.0}), ("/embed", {"truncate": None}),
        ("/models/intent", {"parameters": None}),
    ])  # fmt: skip
    def test_accepted(self, path: str, option: dict[str, Any]) -> None:
        assert post(path, SHAPES[path][0] | option).status_code == 200


class TestShapes:
    def test_tei_and_hugging_face_share_predict(self) -> None:
        flat = post("/predict", {"inputs": "a"}).json()
        assert flat[0].keys() == {"label", "score"}
        assert post("/predict", {"inputs": "a", "parameters": {}}).json() == [flat]
        assert post("/predict", {"inputs": [["a"]]}).json() == [flat]
        assert post("/", {"inputs": "a"}).json() == flat
        assert post("/", {"inputs": "a", "parameters": {}}).json() == [flat]
        assert post("/models/intent", {"inputs": "a"}).json() == [flat]

    def test_a_pair_is_not_two_texts(self) -> None:
        pair = post("/predict", {"inputs": ["a", "b"]}).json()
        assert post("/predict", {"inputs": [["a", "b"]]}).json() == [pair]
        assert post("/models/intent", {"inputs": {"text": "a", "text_pair": "b"}}).json() == [pair]
        assert post("/predict", {"inputs": "a"}).json() != pair

    def test_tei_and_jina_share_rerank(self) -> None:
        texts = ["the cat", "on the mat"]
        tei = post("/rerank", {"query": "cat", "texts": texts}).json()
        for path in ("/rerank", "/v1/rerank", "/models/ranker/rerank"):
            jina = post(
                path,
                {"query": "cat", "documents": [texts[0], {"text": texts[1]}], "model": "ranker"},
            ).json()
            assert [(each["index"], each["relevance_score"]) for each in jina["results"]] == [
                (each["index"], each["score"]) for each in tei
            ]
            assert {each["document"]["text"] for each in jina["results"]} == {*texts}
            assert jina["usage"]["total_tokens"] > 0
        assert post("/rerank", {"query": "cat", "documents": [1]}).json().keys() == {"detail"}
        assert post("/rerank", {"query": "cat", "texts": [1]}).json().keys() == {
            "error",
            "error_type",
        }

    def test_lists_of_inputs(self) -> None:
        texts = ["Call Ada at 555-0100.", "nobody"]
        one_by_one = [post("/models/pii", {"inputs": text}).json() for text in texts]
        assert post("/models/pii", {"inputs": texts}).json() == one_by_one
        assert one_by_one[0]
        question = {"question": "the cat?", "context": "the cat sat on the mat"}
        answer = post("/models/reader", {"inputs": question}).json()
        assert post("/models/reader", {"inputs": [question]}).json() == [answer]

    def test_zero_shot(self) -> None:
        texts, labels = ["the cat", "é 中文 the mat"], ["cat", "the mat", "a, b"]
        ours = pipeline("zero-shot-classification", str(checkpoint_of("entailing")))
        for options in ({}, {"multi_label": True}, {"hypothesis_template": "{}?"}):
            body: dict[str, Any] = {
                "inputs": texts,
                "parameters": {"candidate_labels": labels, **options},
            }
            want = [
                [
                    {"label": label, "score": score}
                    for label, score in zip(each["labels"], each["scores"], strict=True)
                ]
                for each in ours(texts, labels, **options)
            ]
            assert post("/models/entailing", body).json() == want
            assert post("/models/entailing", body | {"inputs": texts[0]}).json() == want[0]
        assert is_error(post("/models/entailing", {"inputs": "a"}), "/models/entailing", 422)
        body = {
            "inputs": "a",
            "parameters": {"candidate_labels": ["b"], "hypothesis_template": "{0:>999999999}"},
        }
        assert (
            "must have {} where the label stands" in post("/models/entailing", body).json()["error"]
        )

    def test_sparse_vectors(self) -> None:
        texts = ["the cat", "é 中文 the mat"]
        want = [
            [{"index": each["token_id"], "value": each["weight"]} for each in answer]
            for answer in pipeline("sparse-embedding", str(checkpoint_of("splade")))(texts)
        ]
        assert post("/embed_sparse", {"inputs": texts}).json() == want
        assert post("/models/splade/embed_sparse", {"inputs": texts[0]}).json() == want[:1]
        assert (
            "prompt_name 'query' is unknown"
            in post("/embed_sparse", {"inputs": "a", "prompt_name": "query"}).text
        )

    def test_vectors_of_tokens(self) -> None:
        texts = ["the cat", "é 中文 the mat"]
        ours = pipeline("multi-vector", str(checkpoint_of("colbert")))
        for kind in ("document", "query"):
            want = [vectors.tolist() for vectors in ours(texts, as_query=kind == "query")]
            got = post("/v1/multi-vector", {"input": texts, "input_type": kind}).json()
            assert [each["embeddings"] for each in got["data"]] == want
        assert len(want[0]) == 16
        got = post("/pooling", {"model": "colbert", "input": texts, "task": "token_embed"}).json()
        assert [each["data"] for each in got["data"]] == [
            vectors.tolist() for vectors in ours(texts)
        ]
        assert (
            "token vectors are given for"
            in post("/v1/multi-vector", {"input": ["the cat " * 300] * 300}).text
        )

    def test_rerank_by_maxsim(self) -> None:
        texts = ["the cat", "é 中文 the mat", "a"]
        want = pipeline("rerank", str(checkpoint_of("colbert-ranker")))("the cat?", texts)
        assert (
            post("/models/colbert-ranker/rerank", {"query": "the cat?", "texts": texts}).json()
            == want
        )
        jina = post(
            "/v1/rerank", {"model": "colbert-ranker", "query": "the cat?", "documents": texts}
        ).json()["results"]
        assert [(each["index"], each["relevance_score"]) for each in jina] == [
            (e["index"], e["score"]) for e in want
        ]
        pairs = post(
            "/v1/score", {"model": "colbert-ranker", "text_1": "the cat?", "text_2": texts}
        ).json()["data"]
        assert {each["index"]: each["score"] for each in pairs} == {
            each["index"]: each["score"] for each in want
        }

    def test_floats_are_those_of_the_model(self) -> None:
        floats = post("/embed", {"inputs": "hello", "normalize": False}).json()[0]
        assert np.array(floats, np.float32).astype(float).tolist() == floats
        assert floats == pipeline("sentence-embedding", str(checkpoint_of("sentence")))("hello")
        packed = post(
            "/v1/embeddings", {"model": "sentence", "input": "hello", "encoding_format": "base64"}
        ).json()
        vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
        assert vector.tolist() == post("/embed", {"inputs": "hello"}).json()[0]

    def test_tei_headers(self) -> None:
        headers = post("/embed", {"inputs": ["hello", "there"]}).headers
        assert headers["x-compute-type"] == "cpu"
        assert headers["x-compute-characters"] == "10"
        assert headers["x-compute-tokens"] == str(
            sum(map(len, post("/tokenize", {"inputs": ["hello", "there"]}).json()))
        )
        for name in ("compute", "total", "tokenization", "queue", "inference"):
            assert headers[f"x-{name}-time"].isdecimal()

    def test_info(self) -> None:
        info = CLIENT.get(f"{service()}/models/sentence/info").json()
        assert info["model_type"] == {"embedding": {"pooling": "mean"}}
        assert info["max_input_length"] == 512
        assert {
            "sha",
            "docker_label",
            "version",
            "model_sha",
            "max_batch_tokens",
            "auto_truncate",
        } <= info.keys()
        assert CLIENT.get(f"{service()}/models/ranker/info").json()["model_type"].keys() == {
            "reranker"
        }

    def test_pairs_and_texts_in_one_request(self) -> None:
        alone = [
            post("/predict", {"inputs": [item]}).json()[0]
            for item in (["a", "b"], ["c"], ["d", "e"])
        ]
        assert post("/predict", {"inputs": [["a", "b"], ["c"], ["d", "e"]]}).json() == alone
        mixed = [{"text": "a", "text_pair": "b"}, "c", {"text": "d", "text_pair": "e"}]
        assert post("/models/intent", {"inputs": mixed}).json() == alone

    def test_vllm_and_infinity_share_classify(self) -> None:
        texts = ["where is my parcel?", "the cat"]
        scores = pipeline("text-classification", str(checkpoint_of("intent")))(texts, top_k=None)
        vllm = post("/classify", {"model": "intent", "input": texts}).json()
        labels = [*all_models().models["intent"].checkpoint.config.id2label.values()]
        for i, each in enumerate(vllm["data"]):
            assert (each["index"], each["label"], each["num_classes"]) == (
                i,
                scores[i][0]["label"],
                len(labels),
            )
            by_label = {score["label"]: score["score"] for score in scores[i]}
            assert each["probs"] == [by_label[label] for label in labels]
        assert vllm["object"] == "list"
        infinity = post(
            "/classify", {"model": "intent", "input": texts, "raw_scores": False}
        ).json()
        assert (infinity["object"], infinity["data"]) == ("classify", scores)
        raw = post("/classify", {"input": texts, "raw_scores": True}).json()["data"]
        assert (
            raw
            == post("/predict", {"inputs": [[text] for text in texts], "raw_scores": True}).json()
        )
        assert post("/classify", {"input": "word " * 9000}).status_code == 400
        assert (
            post("/classify", {"input": "word " * 9000, "truncate_prompt_tokens": -1}).status_code
            == 200
        )

    @pytest.mark.parametrize(("first", "second"), [
        ("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"),
    ])  # fmt: skip
    def test_scores_of_vllm(self, first: str, second: str) -> None:
        texts = ["on the mat", "the cat"]
        want = [each["score"] for each in sorted(post("/rerank", {"query": "cat", "texts": texts}).json(),
                                                 key=lambda each: each["index"])]  # fmt: skip
        for path in ("/v1/score", "/score"):
            for query in ("cat", ["cat"], ["cat", "cat"]):
                found = post(path, {"model": "ranker", first: query, second: texts}).json()
                assert [(each["index"], each["score"]) for each in found["data"]] == [
                    *enumerate(want)
                ]
        for wrong in ({first: ["a"] * 3, second: texts}, {first: "a"}, {first: "a", second: "b", "text_2": "c",
                                                                        "items": "d"}):  # fmt: skip
            assert is_error(post("/v1/score", wrong), "/v1/score", 400)

    def test_infinity_and_jina_share_rerank(self) -> None:
        body = {"query": "cat", "documents": ["the cat", "on the mat"], "raw_scores": False}
        for shown, documents in (
            (True, {"the cat", "on the mat"}),
            (False, {None}),
            (None, {None}),
        ):
            found = post("/rerank", body | {"return_documents": shown}).json()
            assert {each.get("document") for each in found["results"]} == documents

    def test_other_paths_of_the_same(self) -> None:
        body = {"model": "my-org/sentence", "input": "a"}
        assert post("/embeddings", body).json() == post("/v1/embeddings", body).json()
        assert post("/embeddings", {"input": 1}).json().keys() == {"error"}
        models = CLIENT.get(f"{service()}/models").json()["data"]
        assert [(each["id"], each["capabilities"]) for each in models if each["capabilities"]] == [
            ("intent", ["classify"]), ("sentence", ["embed"]), ("ranker", ["rerank"]),
            ("colbert-ranker", ["rerank"]),
        ]  # fmt: skip
        body = {"inputs": "a", "parameters": {"top_k": 2}}
        assert post("/invocations", body).json() == post("/", body).json()

    @pytest.mark.parametrize(
        "path", ["/", "/health", "/ping", "/metrics", "/info", "/models/pii/info", "/v1/models"]
    )
    def test_head_is_get_without_its_body(self, path: str) -> None:
        found, want = CLIENT.head(service() + path), CLIENT.get(service() + path)
        assert (found.status_code, found.content) == (200, b"")
        assert found.headers["content-type"] == want.headers["content-type"]

    def test_the_root_tells_health(self) -> None:
        assert (
            CLIENT.get(service()).json()
            == CLIENT.get(f"{service()}/health").json()
            == {"status": "ok"}
        )

    def test_compressed_bodies_are_refused_by_name(self) -> None:
        for coding in ("gzip", "br", "deflate, gzip"):
            found = post("/embed", SHAPES["/embed"][0], **{"content-encoding": coding})
            assert is_error(found, "/embed", 415)
            assert (
                f"content-encoding is {coding!r}; send the body as it is" in found.json()["error"]
            )
        assert (
            post("/embed", SHAPES["/embed"][0], **{"content-encoding": "identity"}).status_code
            == 200
        )

    def test_nothing_there(self) -> None:
        for path, shape in (
            ("/nope", {"error", "error_type"}),
            ("/v1/nope", {"error"}),
            ("/v2/nope", {"message"}),
        ):
            found = CLIENT.get(service() + path)
            assert (found.status_code, found.json().keys()) == (404, shape)

    def test_no_model_for_it(self) -> None:
        only_pii = LocalModelClient(
            served_models([{"name": "pii", "task": "tag", "model": str(checkpoint_of("pii"))}])
        )
        with serving(only_pii) as url:
            for path in ("/embed", "/predict", "/rerank", "/similarity"):
                found = post(path, SHAPES[path][0], url)
                assert is_error(found, path, 424)
                assert found.json()["error_type"] == "Backend"
                assert "online are pii (tag)" in found.json()["error"]
            assert (
                post("/models/pii/embed", {"inputs": "a"}, url).json()["error"]
                == "model pii does tag, not embed"
            )
            assert post("/tokenize", {"inputs": "a"}, url).status_code == 200
        only_pii.close()
