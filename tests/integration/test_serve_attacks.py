"""Requests that ask for far more than they hold: refused, or answered within bounds, while others are answered."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
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

from modernbert import Tokenizer
from pipelines.serve.protocol import MOST_RESULTS

LETTERS = "a b c d e f g h "


def meanwhile_pinged(ask: Callable[[], httpx.Response], url: str) -> httpx.Response:
    """The response to `ask`, during which /ping is asked again and again: each time it answers."""
    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60, trust_env=False) as other:
        asked = pool.submit(ask)
        while not asked.done():
            assert other.get(f"{url}/ping").status_code == 200
        return asked.result()


MANY = 200_000
REFUSED: dict[str, tuple[str, Any, str]] = {
    "wrong items": ("/embed", {"inputs": ["a", *[1] * MANY]}, "inputs[1] must be a valid string"),
    "unknown fields": (
        "/embed", {"inputs": "a"} | {f"f{i}": 1 for i in range(MANY)}, f"the body has {MANY + 1} fields; an object",
    ),
    "unknown parameters": (
        "/models/pii", {"inputs": "a", "parameters": {f"f{i}": 1 for i in range(MANY)}}, "parameters has 200000 fields",
    ),
    "lists of ids": ("/decode", {"ids": [[5]] * 60_000}, "ids holds 60,000 inputs; a request may hold 2,048"),
    "more lists": ("/decode", {"ids": [[5]] * MANY}, "the body holds 200,002 lists and objects; a request may hold"),
    "texts": ("/embed", b'{"inputs": ["a"' + b',"\\\\"' * 600_000 + b"]}", "the body holds 600,002 texts and names"),
    "objects": ("/v1/rerank", {"query": "a", "documents": [{"text": "a"}] * 60_000}, "documents holds 60,000 inputs"),
    "empty objects": ("/embed", {"inputs": [{}] * MANY}, "lists and objects; a request may hold 131,072"),
    "many ids": ("/decode", {"ids": [[5] * 1000] * 500}, "ids holds 500,000 token ids; a request may hold 400,000"),
    "ids as inputs": ("/embed", {"inputs": [[5] * 1000] * 500}, "inputs holds 500,000 token ids; a request may hold"),
    "inputs": ("/v1/embeddings", {"model": "sentence", "input": ["a"] * 5000}, "holds 5,000 inputs; a request may"),
    "texts to rank": ("/v1/reranking", {"query": "a", "input": ["a"] * 5000}, "input holds 5,000 inputs; a request may"),
    "documents of Voyage": (
        "/v1/rerank", {"query": "a", "documents": ["a"] * 5000, "top_k": 1}, "documents holds 5,000 inputs; a request may",
    ),
    "documents of Weaviate": (
        "/rerank", {"query": "a", "documents": ["a"] * 5000, "property": ""}, "documents holds 5,000 inputs; a request may",
    ),
    "passages": (
        "/v1/ranking", {"query": {"text": "a"}, "passages": [{"text": "a"}] * 60_000}, "passages holds 60,000 inputs",
    ),
    "a long text": ("/vectors", {"text": "a" * 1_000_001}, "text[0] has 1,000,001 characters; an input may have"),
    "other models": ("/v1/embeddings", {"model": "a" * 100_000, "input": "a"}, "is unknown; for embed there are"),
    "stride": ("/models/pii", {"inputs": LETTERS * 2000, "parameters": {"stride": 8188}}, "stride 8188"),
    "stride near a window": ("/models/pii", {"inputs": LETTERS * 2000, "parameters": {"stride": 7200}}, "at most 7166"),
    "doc_stride": (
        "/models/reader",
        {"inputs": {"question": "a", "context": LETTERS * 2000}, "parameters": {"doc_stride": 340}}, "at most 334",
    ),
    "a long question": (
        "/models/reader", {"inputs": {"question": LETTERS * 22, "context": LETTERS * 2000},
                           "parameters": {"doc_stride": 0}}, "would hold more than 8 times its tokens",
    ),
    "short windows": (
        "/models/reader", {"inputs": {"question": "a", "context": LETTERS * 7000},
                           "parameters": {"max_seq_len": 9, "doc_stride": 0}}, "windows; a request may have 16,384",
    ),
    "hypotheses": (
        "/models/entailing",
        {"inputs": ["a"] * 1000, "parameters": {"candidate_labels": list("abcdefghijklmnopqrst")}},
        "make 20,000 windows",
    ),
    "tokens": ("/models/pii", {"inputs": [LETTERS * 5000] * 16}, "hold more than 524,288 tokens, the most that a"),
    "entities": (
        "/models/pii", {"inputs": [LETTERS * 3400] * 16, "parameters": {"aggregation_strategy": "none", "stride": 0}},
        f"results; at most {MOST_RESULTS:,} are given in a request",
    ),
    "candidates": (
        "/models/mask", {"inputs": ["[MASK]"] * 2048, "parameters": {"top_k": 1000}},
        f"2,048,000 results; at most {MOST_RESULTS:,} are given in a request: send fewer or shorter texts",
    ),
    "spans": (
        "/models/reader", {"inputs": [{"question": "a", "context": "b c d"}] * 300, "parameters": {"top_k": 1000}},
        "603,000 results",
    ),
    "texts filled in": (
        "/models/mask", {"inputs": "word " * 450 + "[MASK]" * 30, "parameters": {"top_k": 1000}},
        "characters; at most 20,000,000 are given in a request: send fewer or shorter texts",
    ),
    "long spans": (
        "/models/reader", {"inputs": [{"question": "a", "context": "word " * 350}] * 20,
                           "parameters": {"top_k": 1000, "max_answer_len": 300}},
        "characters; at most 20,000,000 are given in a request: send fewer or shorter texts",
    ),
    "tokenize": ("/tokenize", {"inputs": [LETTERS * 10_000] * 8}, f"more than {MOST_RESULTS:,} tokens, the most that"),
    "token vectors": ("/embed_all", {"inputs": [LETTERS * 100] * 40}, "token vectors are given for 10,922"),
    "targets": ("/models/mask", {"inputs": "[MASK]", "parameters": {"targets": ["a"] * 2000}}, "more than 1,000 items"),
    "a long target": ("/models/mask", {"inputs": "[MASK]", "parameters": {"targets": ["a" * 9999]}}, "256 characters"),
    "labels": ("/models/pii", {"inputs": "a", "parameters": {"ignore_labels": ["a"] * 2000}}, "more than 1,000 items"),
    "a long number": ("/embed", b'{"inputs": "a", "dimensions": ' + b"9" * 4000 + b"}", "…"),
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED)
def test_refused_while_others_are_answered(attack: str) -> None:
    path, body, message = REFUSED[attack]
    found = meanwhile_pinged(lambda: post(path, body), service())
    assert is_error(found, path)
    assert message in json.dumps(found.json(), ensure_ascii=False)
    assert len(found.content) < 1200


def test_large_answers_come_in_parts_while_others_are_answered() -> None:
    texts = [LETTERS * 3000] * 8
    found = meanwhile_pinged(lambda: post("/tokenize", {"inputs": texts}), service())
    assert found.headers["transfer-encoding"] == "chunked"
    want = Tokenizer.from_folder(checkpoint_of("intent")).encode(texts[:1]).input_ids.tolist()
    assert [[token["id"] for token in tokens] for tokens in found.json()] == [want] * 8
    texts = ["word " * 600] * 20
    found = meanwhile_pinged(lambda: post("/embed_all", {"inputs": texts}), service())
    assert len(found.json()) == 20
    assert [*map(len, found.json())] == [512] * 20
    [alone] = post("/embed_all", {"inputs": texts[0]}).json()
    assert found.json() == [alone] * 20


def test_brackets_in_texts_are_no_lists() -> None:
    text = '[{\\"[' * 60_000
    assert len(post("/tokenize", {"inputs": text}).json()[0]) > 60_000


def test_what_fits_is_answered_whole() -> None:
    """The bounds leave room for what clients send: as many short texts as a request may hold, to each task."""
    for path, body in (
        ("/v1/embeddings", {"model": "sentence", "input": ["the cat sat"] * 2048}),
        ("/models/intent", {"inputs": ["the cat sat"] * 2048}),
        ("/models/pii", {"inputs": ["the cat sat"] * 2048}),
        ("/models/mask", {"inputs": ["the [MASK] sat"] * 2048}),
    ):
        found = post(path, body).json()
        assert len(found if isinstance(found, list) else found["data"]) == 2048


@pytest.fixture
def two_keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    return file


def test_one_client_does_not_lock_others_out(two_keys: Path) -> None:
    held = Held()
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    with (
        serving(held, api_key_file=two_keys, max_documents=80) as url,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(count: int, key: dict[str, str]) -> httpx.Response:
            return post("/embed", {"inputs": ["a"] * count}, url, **key)

        assert "holds 41 inputs; a request may hold 40" in ask(41, one).text
        under_way = [pool.submit(ask, 20, one) for _ in range(2)]
        until(lambda: held.waiting == 2)
        refused = ask(20, one)
        assert is_error(refused, "/embed", 429)
        assert "at most half of them of one client" in refused.text
        assert refused.headers["retry-after"] == "1"
        under_way.append(pool.submit(ask, 40, two))
        until(lambda: held.waiting == 3)  # before the small ones, which would count
        under_way += [pool.submit(ask, 8, one), pool.submit(ask, 8, two)]
        until(lambda: held.waiting == 5)
        assert is_error(ask(3, one), "/embed", 429)
        held.go.set()
        assert [each.result().status_code for each in under_way] == [200] * 5
        assert ask(40, one).status_code == 200


def test_bytes_of_all_bodies_are_bounded() -> None:
    """Bodies that never end leave room for small ones, and their bytes are given back when their clients leave."""
    with serving(all_models(), max_bodies_bytes=4 << 20, max_body_bytes=2 << 20) as url:
        host, port = re.findall(r"//(.*):(\d+)", url)[0]
        lines = [
            "POST /embed HTTP/1.1",
            f"host: {host}",
            "content-type: application/json",
            "content-length: 2000000",
        ]
        head = "\r\n".join([*lines, "", ""])
        slow = [socket.create_connection((host, int(port)), timeout=60) for _ in range(4)]
        for connection in slow[:2]:
            connection.sendall(head.encode() + b" " * 1_000_000)
        large = b" " * (1 << 20) + json.dumps(SHAPES["/embed"][0]).encode()
        until(lambda: "modernbert_http_body_bytes 2e+06" in CLIENT.get(f"{url}/metrics").text)
        refused = post("/embed", large, url)
        assert re.search(
            r"bodies of [\d,]+ bytes are under way; 4,194,304 may be, at most half of them",
            refused.text,
        )
        assert is_error(refused, "/embed", 429)
        assert refused.headers["connection"] == "close"
        assert post("/embed", {"inputs": "a"}, url).status_code == 200
        assert CLIENT.get(f"{url}/ping").status_code == 200
        for connection in slow:
            connection.close()
        until(lambda: post("/embed", large, url).status_code == 200)


def test_a_client_that_left_leaves_no_work_behind() -> None:
    """Heavy requests that are left end at their next slice; a small one to the same model is answered."""
    body = {"inputs": [LETTERS * 3000] * 20}
    model = all_models().models["pii"]
    for _ in range(4):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service()}/models/pii", json=body, timeout=0.05, trust_env=False)
    assert post("/models/pii", {"inputs": "the cat"}).status_code == 200
    until(lambda: model.documents_under_way == 0)


def test_answers_that_nobody_reads_are_bounded(two_keys: Path) -> None:
    """Bytes of answers count until their last part is sent; another client is answered, and they are given back."""
    most = 8 << 20
    body = json.dumps({"inputs": [LETTERS * 3000] * 8}).encode()
    with serving(all_models(), api_key_file=two_keys, max_answers_bytes=most) as url:
        host, port = re.findall(r"//(.*):(\d+)", url)[0]
        head = (
            f"POST /tokenize HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer one\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        unread = [socket.socket() for _ in range(4)]
        for connection in unread:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect((host, int(port)))
            connection.sendall(head.encode() + body)
        begun = sorted(connection.recv(12) for connection in unread)
        # An answer of 192,000 tokens takes 3.8 MB, of which a client may hold 4.2.
        assert begun == [b"HTTP/1.1 200", *[b"HTTP/1.1 429"] * 3]
        one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        refused = post("/tokenize", json.loads(body), url, **one)
        assert is_error(refused, "/tokenize", 429)
        assert "answers of 8,388,608 bytes may wait to be read" in refused.text
        assert post("/tokenize", json.loads(body), url, **two).status_code == 200
        for connection in unread:
            connection.close()
        until(lambda: post("/tokenize", json.loads(body), url, **one).status_code == 200)


def test_two_hosts_are_refused() -> None:
    host, port = re.findall(r"//(.*):(\d+)", service())[0]
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("GET", "/info", skip_host=True)
    for name in ("127.0.0.1", "evil.example"):
        connection.putheader("host", name)
    connection.endheaders()
    found = connection.getresponse()
    assert found.status == 400
    assert b"several host headers" in found.read()
