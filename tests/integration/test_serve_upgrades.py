"""Requests that offer HTTP/2 or another protocol, as Java's HttpClient does: answered as if they did not."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from conftest import runs
from online_service import post, service, until
from raw_http import EMBEDDINGS, exchanged, java_get, java_post

from pipelines.serve.http.upgrades import UpgradeIgnoringProtocol, pass_over_upgrades


@pytest.mark.parametrize("is_split", [False, True])
def test_the_bytes_of_java(is_split: bool) -> None:
    host = service().removeprefix("http://")
    head, want = java_post(host), post("/v1/embeddings", json.loads(EMBEDDINGS)).json()
    parts = [head, EMBEDDINGS] if is_split else [head + EMBEDDINGS]
    [(status, body)] = exchanged(service(), parts)
    assert (status, json.loads(body)) == (200, want)
    assert exchanged(service(), [java_get(host, "/ping")]) == [(200, b'{"status":"ok"}')]


def test_the_connection_goes_on() -> None:
    host = service().removeprefix("http://")
    plain = java_post(host).replace(b"Upgrade: h2c\r\n", b"")
    requests = [java_post(host) + EMBEDDINGS, java_get(host, "/ping"), plain + EMBEDDINGS] * 2
    assert [status for status, _ in exchanged(service(), requests, 6)] == [200] * 6


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what a request is read as."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [
        (name.decode(), value.decode())
        for name, value in scope["headers"]
        if name not in (b"upgrade", b"connection", b"http2-settings")
    ]
    read = [scope["method"], scope["raw_path"].decode(), scope["query_string"].decode(), headers]
    content = json.dumps([*read, body.decode()]).encode()
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": [(b"content-length", str(len(content)).encode())]})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="module")
def echoing() -> Iterator[str]:
    config = uvicorn.Config(
        echo, host="127.0.0.1", port=0, log_level="error", lifespan="off", http=UpgradeIgnoringProtocol
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(30)


def a_request(choose: random.Random) -> tuple[bytes, bytes]:
    """A request without and with an offer."""
    method = choose.choice([b"POST", b"PUT", b"GET", b"DELETE"])
    target = choose.choice([b"/", b"/a%20b?c=d", b"/v1/embeddings"])
    body = bytes(choose.choices(b"ab\r\n {}:", k=choose.choice([0, 0, 1, 30, 3000])))
    headers = [b"Host: x", b"X-Name: " + bytes(choose.choices(b"ab ,;", k=5)) + b"."]
    if body and choose.random() < 0.4:
        headers.append(b"Transfer-Encoding: chunked")
        cut = choose.randrange(len(body))
        chunks = [chunk for chunk in (body[:cut], body[cut:]) if chunk]
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    elif body or choose.random() < 0.5:
        headers.append(b"Content-Length: %d" % len(body))
    protocol = choose.choice([b"h2c", b"HTTP/2.0", b"h2c, websocket", b"TLS/1.0"])
    tokens = choose.choice(
        [[b"Connection: Upgrade, HTTP2-Settings"], [b"connection: keep-alive, upgrade"],
         [b"Connection: Upgrade", b"Connection: keep-alive"], [b"Connection: keep-alive"]]
    )  # fmt: skip
    offer = [*headers, *tokens, b"Upgrade: " + protocol]
    choose.shuffle(offer)
    plain = [header for header in offer if header in headers]
    written = [b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *lines, b"", body])
               for lines in (plain, offer)]  # fmt: skip
    return written[0], written[1]


def test_requests_are_read_as_without_their_offer(echoing: str) -> None:
    """Several on a connection, cut anywhere; what is read of those without an offer is the oracle."""
    for seed in range(runs("UPGRADES", few=150, many=5000)):
        choose = random.Random(seed)
        requests = [a_request(choose) for _ in range(choose.choice([1, 1, 2, 5]))]
        plain = b"".join(each for each, _ in requests)
        offers = b"".join(choose.choice([each, offer]) for each, offer in requests)
        cuts = sorted(choose.sample(range(1, len(offers)), choose.choice([0, 1, 3])))
        parts = [offers[a:b] for a, b in zip([0, *cuts], [*cuts, len(offers)], strict=True)]
        want = exchanged(echoing, [plain], len(requests))
        assert exchanged(echoing, parts, len(requests)) == want, seed


def test_many_offers_at_once(echoing: str) -> None:
    host = echoing.removeprefix("http://")
    found = exchanged(echoing, [java_get(host, "/") * 2000], 2000)
    assert {status for status, _ in found} == {200}


def test_what_is_no_request_is_refused(echoing: str) -> None:
    for head in (
        java_get("x", "/").replace(b"Host:", b"Ho st:"),
        java_get("x", "/") + b"nonsense\r\n\r\n",
    ):
        host, port = re.findall(r"//(.*):(\d+)", echoing)[0]
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
        assert answer.startswith(b"HTTP/1.1 400") or b"HTTP/1.1 400" in answer


def test_websockets_are_refused() -> None:
    head = (
        b"GET /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
    [(status, _)] = exchanged(service(), [head])
    assert status == 403


def test_ray_serve_takes_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvicorn.protocols.http import auto

    monkeypatch.setattr(auto, "AutoHTTPProtocol", None)
    assert pass_over_upgrades() == []
    assert uvicorn.Config(echo).http == "auto"
    config = uvicorn.Config(echo)
    config.load()
    assert config.http_protocol_class is UpgradeIgnoringProtocol
