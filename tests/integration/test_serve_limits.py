"""Limits, failures, keys, browsers and records of the online application."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from checkpoints import write_task
from online_service import (
    CLIENT,
    SHAPES,
    Held,
    all_models,
    checkpoint_of,
    is_error,
    new_folder,
    post,
    service,
    serving,
    until,
)
from safetensors.numpy import load_file, save_file

from modernbert import Tokenizer
from pipelines.memory.pipeline import pipeline
from pipelines.serve.config import served_models
from pipelines.serve.http.drain import UnderWay
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import ModelClient, PredictRequest, PredictResponse

SECRET = "my password is swordfish"


@pytest.fixture
def held() -> Iterator[Held]:
    models = Held()
    yield models
    models.go.set()


class TestLimits:
    def test_inputs_and_characters(self) -> None:
        with serving(all_models(), max_inputs=3, max_characters=10) as url:
            assert post("/embed", {"inputs": ["a"] * 3}, url).status_code == 200
            found = post("/embed", {"inputs": ["a"] * 4}, url)
            assert (found.status_code, found.json()["error"]) == (
                422,
                "inputs holds 4 inputs; a request may hold 3",
            )
            found = post("/embed", {"inputs": ["a", "b" * 11]}, url)
            assert found.json()["error"] == "inputs[1] has 11 characters; an input may have 10"
            for path, body in (("/tokenize", {"inputs": "b" * 11}), ("/decode", {"ids": [[5] * 40]}),
                               ("/embed", {"inputs": [5] * 11})):  # fmt: skip
                assert is_error(post(path, body, url), path, 422)

    def test_truncation_is_told_or_refused(self) -> None:
        long = "word " * 600
        texts = ["short", long, "short", long]
        found = post("/embed", {"inputs": texts})
        assert found.headers["x-truncated"] == "1,3"
        assert found.json() == pipeline("sentence-embedding", str(checkpoint_of("sentence")))(
            texts, normalize=True
        )
        assert "x-truncated" not in post("/embed", {"inputs": "short"}).headers
        refused = post("/embed", {"inputs": texts, "truncate": False})
        assert is_error(refused, "/embed", 422)
        assert refused.json()["error"].startswith("inputs[1]: text has more than the 512 tokens")
        assert (
            post("/embed", {"inputs": "short", "truncation_direction": "Left"}).status_code == 200
        )

    @pytest.mark.parametrize("side", ["Left", "right"])
    def test_truncation_on_either_side(self, side: str) -> None:
        tokenizer = Tokenizer.from_folder(checkpoint_of("sentence"))
        text = "the " * 600 + "cat " * 600
        read = tokenizer.truncating(side.lower()).encode([text], 512).input_ids
        kept = tokenizer.decode(read, skip_special_tokens=True)
        found, want = (
            post("/embed", {"inputs": [text], "truncation_direction": side}),
            post("/embed", {"inputs": [kept]}),
        )
        assert ("the" in kept, "cat" in kept) == (
            (False, True) if side == "Left" else (True, False)
        )
        assert found.json()[0] == pytest.approx(want.json()[0], rel=1e-5, abs=1e-6)

    def test_many_truncated_inputs_are_counted(self) -> None:
        found = post("/embed", {"inputs": ["word " * 600] * 101})
        assert found.headers["x-truncated"] == ",".join([*map(str, range(100)), "+1"])

    def test_answers_that_would_be_huge(self) -> None:
        found = post("/models/mask", {"inputs": "[MASK] " * 8000, "parameters": {"top_k": 1000}})
        assert is_error(found, "/models/mask", 422)
        assert "are given in a request: send fewer" in found.json()["error"]
        found = post("/embed_all", {"inputs": ["word " * 600] * 100})
        assert is_error(found, "/embed_all", 422)
        assert "inputs have 51,200 tokens" in found.json()["error"]

    def test_a_slow_client(self) -> None:
        with serving(all_models(), body_timeout_s=0.3) as url:
            host, port = re.findall(r"//(.*):(\d+)", url)[0]
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                head = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
                connection.sendall(head.encode())
                answer = b""
                while part := connection.recv(65536):
                    answer += part
        head, body = answer.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"] == "the body did not arrive within 0.3 s"

    def test_a_client_that_leaves_frees_its_place(self, held: Held) -> None:
        with serving(held, max_documents=1) as url:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=0.3)
            until(lambda: held.cancelled == 1)
            held.go.set()
            assert post("/embed", {"inputs": "a"}, url).status_code == 200


class TestEnd:
    def test_what_is_under_way_is_answered_and_what_comes_is_refused(self, held: Held) -> None:
        under_way = UnderWay()
        with serving(held, under_way) as url, ThreadPoolExecutor(2) as pool:
            asked = pool.submit(post, "/embed", {"inputs": "a"}, url)
            until(lambda: held.waiting == 1)
            drained = pool.submit(asyncio.run, under_way.drain())
            until(lambda: under_way.is_draining)
            for path, (good, shape) in SHAPES.items():
                refused = post(path, good, url)
                assert (refused.status_code, refused.json().keys()) == (503, shape)
                assert (refused.headers["retry-after"], refused.headers["connection"]) == (
                    "1",
                    "close",
                )
            assert CLIENT.get(f"{url}/health").status_code == 503
            assert CLIENT.get(f"{url}/ping").status_code == 200
            assert not drained.done()
            held.go.set()
            assert asked.result(60).status_code == 200
            drained.result(60)


@cache
def poisoned() -> LocalModelClient:
    """An embedding model that gives NaN for every text with the word "mat"."""
    folder = write_task(new_folder(), "ModernBertModel")
    bad = pipeline("sentence-embedding", str(folder)).checkpoint.tokenizer.token_id("Ġmat")
    assert bad is not None
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.tok_embeddings.weight"][bad] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return LocalModelClient(
        served_models([{"name": "poisoned", "task": "embed", "model": str(folder)}])
    )


class TestFailures:
    def test_nan_is_an_error_and_harms_no_other_request(self) -> None:
        clean, bad = ["the cat", "and then"], ["the cat", "on the mat"]
        with serving(poisoned()) as url, ThreadPoolExecutor(8) as pool:
            expected = post("/embed", {"inputs": clean}, url).json()
            asked = [
                pool.submit(post, "/embed", {"inputs": bad if i % 2 else clean}, url)
                for i in range(40)
            ]
            for i, answer in enumerate(each.result() for each in asked):
                if i % 2 == 0:
                    assert answer.json() == expected
                    continue
                assert answer.status_code == 424
                assert answer.json() == {"error": "inputs[1]: the model's answer is not a finite number",
                                         "error_type": "Backend"}  # fmt: skip
            found = post("/v1/embeddings", {"model": "poisoned", "input": bad}, url)
            assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
            assert found.json()["error"]["param"] == "input"

    def test_many_at_once_get_their_own_answers(self) -> None:
        texts = [f"where is parcel {i}? " * (1 + i % 7) for i in range(64)]
        expected = pipeline("text-classification", str(checkpoint_of("intent")))(texts, top_k=None)
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda text: post("/predict", {"inputs": text}).json(), texts))
        assert found == expected

    def test_health(self) -> None:
        class Ill(Held):
            async def unready(self) -> dict[str, str]:
                return {"pii": "its device hangs"}

        assert CLIENT.get(f"{service()}/health").status_code == 200
        with serving(Ill()) as url:
            for path, status in (
                ("/health", 503),
                ("/models/pii/health", 503),
                ("/models/intent/health", 200),
                ("/ping", 200),
            ):
                assert CLIENT.get(url + path).status_code == status
            message = CLIENT.get(f"{url}/health").json()
        assert message == {"error": "pii: its device hangs", "error_type": "Unhealthy"}

    def test_a_fault_of_ours_is_500_and_its_message_stays_here(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Held):
            async def predict(self, model: str, ask: PredictRequest) -> PredictResponse:
                raise RuntimeError(f"{model} cannot digest {ask.documents[0]}")

        with caplog.at_level(logging.INFO), serving(Broken()) as url:
            for path, (body, shape) in SHAPES.items():
                if path in ("/tokenize", "/decode"):
                    continue
                found = post(path, body, url)
                assert (found.status_code, found.json().keys()) == (500, shape)
            found = post("/embed", {"inputs": SECRET}, url, **{"x-request-id": "fault-1"})
        assert found.headers["x-request-id"] == "fault-1"
        assert "fault-1 RuntimeError" in caplog.text
        assert "test_serve_limits.py" in caplog.text
        assert SECRET not in caplog.text + found.text


WRONG_KEYS = [
    "", "Bearer", "Bearer first-ke", "Bearer first-keyy", "Basic first-key", "first-key", "Bearer first-key second-key",
    "Bearer \xe9",
]  # fmt: skip


class TestClients:
    """uvicorn believes x-forwarded-for from 127.0.0.1, where Serve's HAProxy and these tests ask from."""

    FORGED = (
        "203.0.113.1",
        "203.0.113.2:99",
        "[2001:db8::1]:99",
        "anything",
        "a, 203.0.113.3, 127.0.0.1",
        "",
    )

    def names(self, headers: Sequence[str], **limits: Any) -> list[str | None]:
        """What the models are told of who sends requests with these headers."""
        seen = []

        class Seen(ModelClient):
            async def predict(self, model: str, request: PredictRequest) -> PredictResponse:
                seen.append(request.client)
                return await super().predict(model, request)

        models = all_models()
        with serving(Seen(models.models, models.tasks, models.aliases), **limits) as url:
            for header in headers:
                found = post("/embed", {"inputs": "a"}, url, **{"x-forwarded-for": header})
                assert found.status_code == 200
        return seen

    def test_nobody_chooses_an_address(self) -> None:
        assert set(self.names(self.FORGED)) == {"127.0.0.1"}

    def test_proxies_that_are_trusted(self) -> None:
        forwarded = [f"{forged}, 198.51.100.7" for forged in self.FORGED]
        assert set(self.names(forwarded, trusted_proxies=1)) == {"198.51.100.7"}
        two = [f"{forged}, 2001:db8::9, 10.0.0.1" for forged in self.FORGED]
        assert set(self.names(two, trusted_proxies=2)) == {"2001:db8::9"}
        # What has not come through both, or names no address.
        assert set(self.names(["203.0.113.1", "a, b"], trusted_proxies=2)) == {"127.0.0.1"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("first-key\nsecond-key\n")
    with serving(all_models(), api_key_file=file) as url:
        yield url


class TestKey:
    def test_every_route_but_the_public_ones_wants_it(self, keyed: str) -> None:
        key = {"authorization": "Bearer second-key"}
        routes = CLIENT.get(f"{keyed}/openapi.json", headers=key).json()["paths"]
        for path in [*routes, "/docs", "/openapi.json", "/nope", "//health", "/health/"]:
            status = CLIENT.get(keyed + path).status_code
            assert (status in (200, 503)) == (
                path in ("/", "/health", "/ping", "/metrics", "/docs")
            ), path
            assert status in (200, 401)
        for path, (body, shape) in SHAPES.items():
            refused = post(path, body, keyed)
            assert (refused.status_code, refused.json().keys()) == (401, shape)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert post(path, body, keyed, **key).status_code == 200

    def test_the_page_of_the_docs_needs_neither_a_key_nor_another_place(self, keyed: str) -> None:
        """It tells nothing of the service, asks for the OpenAPI document with the key, and loads nothing else."""
        found = CLIENT.get(f"{keyed}/docs")
        assert found.headers["content-type"].startswith("text/html")
        assert found.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert not re.search(r"https?://|src=|<link|@import|url\(|innerHTML", found.text)
        assert 'fetch("openapi.json", { headers: headers() })' in found.text
        assert not any(name in found.text for name in (*all_models().tasks, "/v1/embeddings"))
        assert CLIENT.get(f"{keyed}/openapi.json").status_code == 401

    @pytest.mark.parametrize("header", WRONG_KEYS)
    def test_wrong_keys(self, keyed: str, header: str) -> None:
        headers = [(b"authorization", header.encode("latin-1"))]
        assert CLIENT.get(f"{keyed}/info", headers=headers).status_code == 401

    def test_keys_are_changed_while_the_service_runs(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("old-key\n")

        def admits(url: str, key: str) -> bool:
            headers = {"authorization": f"Bearer {key}"}
            return CLIENT.get(f"{url}/info", headers=headers).status_code == 200

        with serving(all_models(), api_key_file=file) as url:
            assert (admits(url, "old-key"), admits(url, "new-key")) == (True, False)
            file.write_text("new-key\n")
            until(lambda: admits(url, "new-key"))
            assert not admits(url, "old-key")

    def test_either_key(self, keyed: str) -> None:
        for header in ("Bearer first-key", "bearer second-key"):
            assert CLIENT.get(f"{keyed}/info", headers={"authorization": header}).status_code == 200


OWN_NAMES = [
    "127.0.0.1",
    "127.0.0.1:80",
    "localhost",
    "LOCALHOST:8000",
    "app.localhost",
    "[::1]:8000",
    "10.0.0.7",
    "box",
]


class TestHost:
    """A page whose DNS name turns to 127.0.0.1 sends its own name as Host, and gets no answer without a key."""

    @pytest.mark.parametrize("name", OWN_NAMES)
    def test_own_names(self, name: str) -> None:
        assert post("/embed", {"inputs": "a"}, host=name).status_code == 200

    @pytest.mark.parametrize(
        "name", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.x."]
    )
    def test_other_names(self, name: str, keyed: str) -> None:
        for path in ("/embed", "/v1/embeddings", "/v2/rerank"):
            refused = post(path, SHAPES[path][0], host=name)
            assert is_error(refused, path, 421)
            assert (
                "is not this machine's; ask 127.0.0.1, set a key, or add it to http: hosts"
                in refused.text
            )
        assert CLIENT.get(f"{service()}/openapi.json", headers={"host": name}).status_code == 421
        key = {"authorization": "Bearer first-key", "host": name}
        assert post("/embed", {"inputs": "a"}, keyed, **key).status_code == 200

    def test_names_that_are_stated(self) -> None:
        with serving(all_models(), hosts=("models.example",)) as url:
            assert (
                post("/embed", {"inputs": "a"}, url, host="models.example:443").status_code == 200
            )
            assert post("/embed", {"inputs": "a"}, url, host="evil.example").status_code == 421


class TestBrowsers:
    def test_closed_by_default(self) -> None:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        found = CLIENT.options(f"{service()}/embed", headers=asked)
        assert found.status_code == 405
        assert "access-control-allow-origin" not in found.headers
        assert (
            "access-control-allow-origin"
            not in post("/embed", {"inputs": "a"}, origin="https://evil.example").headers
        )

    def test_as_configured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "key")
        with serving(all_models(), cors_origins=("https://good.example",)) as url:
            asked = {"origin": "https://good.example", "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization,content-type"}  # fmt: skip
            assert (
                CLIENT.options(f"{url}/embed", headers=asked).headers["access-control-allow-origin"]
                == asked["origin"]
            )
            asked["origin"] = "https://evil.example"
            assert (
                "access-control-allow-origin"
                not in CLIENT.options(f"{url}/embed", headers=asked).headers
            )
            refused = post("/embed", {"inputs": "a"}, url, origin="https://good.example")
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://good.example"


class TestRecords:
    def test_request_ids(self) -> None:
        assert (
            post("/embed", {"inputs": "a"}, **{"x-request-id": "abc-1.2:3"}).headers["x-request-id"]
            == "abc-1.2:3"
        )
        for bad in ("a b", "x" * 129, "<script>", ""):
            given = post("/nope", {}, **{"x-request-id": bad}).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{32}", given)

    def test_texts_are_never_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            for path, (good, _) in SHAPES.items():
                for name in good:
                    for value in (
                        SECRET,
                        [SECRET],
                        {"text": SECRET},
                        [[SECRET]],
                        f"{SECRET} [MASK]",
                    ):
                        post(path, good | {name: value})
                post(path, json.dumps(SECRET).encode() + b"{")
                CLIENT.get(service() + path + SECRET)
        assert '"method": "POST", "route": "/models/mask", "status": 200' in caplog.text
        records = [
            record.getMessage()
            for record in caplog.records
            if record.name.split(".")[0] not in ("httpx", "httpcore")
        ]
        assert "swordfish" not in "\n".join(records)

    def test_the_log_of_requests(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "keys"
        file.write_text("alice: swordfish-1\n")
        key = {"authorization": "Bearer swordfish-1", "x-request-id": "mine"}
        with caplog.at_level(logging.ERROR), serving(all_models(), api_key_file=file) as url:
            post("/embed", {"inputs": SECRET}, url, **key)
        assert caplog.records == []
        with serving(all_models(), api_key_file=file, access_log=True) as url:
            post("/embed", {"inputs": [SECRET, "a"]}, url, **key)
            post(f"/{SECRET}", {"inputs": SECRET}, url, authorization="Bearer swordfish-2")
            until(lambda: caplog.text.count('"id":') == 2)
        served, refused = (json.loads(record.getMessage()) for record in caplog.records)
        assert served.pop("ms") > 0
        assert served.pop("tokens") > 4
        assert served == {
            "id": "mine", "client": "alice", "method": "POST", "route": "/embed", "status": 200,
            "model": "sentence", "documents": 2,
        }  # fmt: skip
        assert (refused["client"], refused["route"], refused["status"], refused["model"]) == (
            "127.0.0.1", "none", 401, None,
        )  # fmt: skip
        assert "swordfish" not in caplog.text

    def test_metrics_of_clients_are_there_from_the_start(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("alice: a1\nalice: a2\nbob: b\n")

        def counts(url: str) -> dict[str, list[float]]:
            text = CLIENT.get(f"{url}/metrics").text
            names = ("requests", "refused", "tokens")
            found = {}
            for client in re.findall(r'client_requests_total{client="(.*)"}', text):
                lines = [
                    re.search(rf'_client_{name}_total{{client="{client}"}} (.*)', text)
                    for name in names
                ]
                found[client] = [float(line[1]) for line in lines if line]
            return found

        with serving(all_models(), api_key_file=file) as url:
            models = CLIENT.get(f"{url}/metrics").text
            for name in ("documents", "tokens", "truncated"):
                assert f'modernbert_http_{name}_total{{model="sentence"}} 0.0' in models
            for key in ("a1", "a2", "wrong"):
                post("/embed", {"inputs": "hello"}, url, authorization=f"Bearer {key}")
            post("/embed", {"inputs": 1}, url, authorization="Bearer a1")
            tokens = len(
                post("/tokenize", {"inputs": "hello"}, url, authorization="Bearer b").json()[0]
            )
            until(lambda: counts(url)["bob"][0] == 1)
            found = counts(url)
        assert found.keys() == {"alice", "bob", "none"}
        assert found["alice"] == [3, 1, 2 * tokens]
        assert found["bob"] == [1, 0, 0]
        assert found["none"][1:] == [1, 0]

    def test_metrics(self) -> None:
        with serving(all_models()) as url:
            for body in (
                {"inputs": ["hello", "there"]},
                {"inputs": ["word " * 600, "a"]},
                {"inputs": 1},
            ):
                post("/embed", body, url)
            post(f"/{'x' * 50}", {}, url)
            until(
                lambda: 'status="404"' in CLIENT.get(f"{url}/metrics").text
            )  # counted once the answer is out
            found = CLIENT.get(f"{url}/metrics")
        assert found.headers["content-type"].startswith("text/plain")
        for line in (
            'modernbert_http_requests_total{route="/embed",status="200"} 2.0',
            'modernbert_http_requests_total{route="/embed",status="422"} 1.0',
            'modernbert_http_requests_total{route="none",status="404"} 1.0',
            'modernbert_http_documents_total{model="sentence"} 4.0',
            'modernbert_http_truncated_total{model="sentence"} 1.0',
            'modernbert_http_request_seconds_count{route="/embed"} 3.0',
            "modernbert_http_documents_in_flight 0.0",
        ):
            assert line in found.text.splitlines()
        tokens = sum(
            map(len, post("/models/sentence/tokenize", {"inputs": ["hello", "there", "a"]}).json())
        )
        assert f'modernbert_http_tokens_total{{model="sentence"}} {tokens + 512:.1f}' in found.text
