"""The online application over real models on a port of this machine, in this process and without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from checkpoints import write_multi_vector, write_task
from conftest import REPOSITORY

from pipelines.serve.config import served_models
from pipelines.serve.http.app import create_app
from pipelines.serve.http.drain import UnderWay
from pipelines.serve.http.limits import HttpLimits
from pipelines.serve.http.upgrades import UpgradeIgnoringProtocol
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import ModelClient, PredictRequest, PredictResponse

DEMOS = REPOSITORY / "jobs" / "demo"
TASKS = {
    "intent": ("classify", DEMOS / "intent-classifier"),
    "pii": ("tag", DEMOS / "pii-tagger"),
    "mask": ("fill", DEMOS / "masked-lm"),
    "sentence": ("embed", DEMOS / "sentence-encoder"),
    "reader": ("answer", None),
    "ranker": ("rerank", None),
    "entailing": ("zero_shot", None),
    "splade": ("sparse", None),
    "colbert": ("multi_vector", None),
    "colbert-ranker": ("rerank", None),
}
"""By name the task and the checkpoint; None: one with random weights."""
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "answer": ("ModernBertForQuestionAnswering", {}),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}),
    "sparse": ("ModernBertForMaskedLM", {}),
    "zero_shot": (
        "ModernBertForSequenceClassification",
        {"labels": ["entailment", "neutral", "contradiction"]},
    ),
}
"""By task the architecture and configuration of a checkpoint with random weights."""


OPTIONS: dict[str, dict[str, Any]] = {
    "sentence": {"aliases": ["text-embedding-3-small", "my-org/sentence"]},
    "ranker": {"aliases": ["rerank-v3.5"]},
}
"""The options of some models."""
_FOLDERS = tempfile.TemporaryDirectory(prefix="modernbert-serve-")  # removed when the tests end


def new_folder() -> Path:
    """An empty folder for a checkpoint."""
    return Path(tempfile.mkdtemp(dir=_FOLDERS.name))


@cache
def checkpoint_of(name: str) -> Path:
    """The folder of a model of TASKS."""
    task, folder = TASKS[name]
    if folder is not None:
        return folder
    result = new_folder()
    if name in ("colbert", "colbert-ranker"):
        return write_multi_vector(result)
    architecture, config = WRITTEN[task]
    return write_task(result, architecture, **config)


@cache
def with_prompts() -> Path:
    """The sentence encoder with prompts that are not empty."""
    folder = new_folder()
    shutil.copytree(checkpoint_of("sentence"), folder, dirs_exist_ok=True)
    file = folder / "config_sentence_transformers.json"
    prompts = {"query": "find: ", "document": "this is: "}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompts": prompts}))
    return folder


@cache
def all_models() -> LocalModelClient:
    """One model of each task, loaded once."""
    return LocalModelClient(served_models([
        {"name": name, "task": task, "model": str(checkpoint_of(name)), **OPTIONS.get(name, {})}
        for name, (task, _) in TASKS.items()
    ]))  # fmt: skip


@contextlib.contextmanager
def serving(models: ModelClient, under_way: UnderWay | None = None, **limits: Any) -> Iterator[str]:
    """The application on a free port; yields its URL."""
    app = create_app(models, HttpLimits(**limits), under_way=under_way)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="warning",
            lifespan="off",
            http=UpgradeIgnoringProtocol,
        )
    )
    started = threading.Event()
    startup = server.startup

    async def started_up(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = started_up  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(30)


@cache
def _running() -> tuple[str, contextlib.ExitStack]:
    stack = contextlib.ExitStack()
    return stack.enter_context(serving(all_models())), stack


def service() -> str:
    """The URL of the application over `all_models` with the usual limits, started once."""
    return _running()[0]


SHAPES = {  # by route: a good request, and how an error looks there
    "/embed": ({"inputs": "a"}, {"error", "error_type"}),
    "/embed_all": ({"inputs": "a"}, {"error", "error_type"}),
    "/embed_sparse": ({"inputs": "a"}, {"error", "error_type"}),
    "/similarity": (
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        {"error", "error_type"},
    ),
    "/predict": ({"inputs": "a"}, {"error", "error_type"}),
    "/rerank": ({"query": "a", "texts": ["b"]}, {"error", "error_type"}),
    "/tokenize": ({"inputs": "a"}, {"error", "error_type"}),
    "/decode": ({"ids": [5]}, {"error", "error_type"}),
    "/": ({"inputs": "a", "parameters": {}}, {"error", "error_type"}),
    "/models/intent": ({"inputs": "a", "parameters": {}}, {"error", "error_type"}),
    "/models/pii": ({"inputs": "a", "parameters": {}}, {"error", "error_type"}),
    "/models/entailing": (
        {"inputs": "a", "parameters": {"candidate_labels": ["b"]}},
        {"error", "error_type"},
    ),
    "/models/mask": ({"inputs": "a [MASK]", "parameters": {}}, {"error", "error_type"}),
    "/models/sentence": ({"inputs": "a"}, {"error", "error_type"}),
    "/models/reader": (
        {"inputs": {"question": "a", "context": "b c"}, "parameters": {}},
        {"error", "error_type"},
    ),
    "/v1/embeddings": ({"model": "sentence", "input": "a"}, {"error"}),
    "/v1/rerank": ({"query": "a", "documents": ["b"]}, {"detail"}),
    "/v1/score": ({"text_1": "a", "text_2": ["b"]}, {"error"}),
    "/v1/multi-vector": ({"input": "a"}, {"detail"}),
    "/pooling": ({"input": "a"}, {"error"}),
    "/classify": ({"input": "a"}, {"error"}),
    "/reranking": ({"query": "a", "documents": ["b"]}, {"detail"}),
    "/v1/reranking": ({"query": "a", "input": ["b"]}, {"detail"}),
    "/v1/ranking": ({"query": {"text": "a"}, "passages": [{"text": "b"}]}, {"error"}),
    "/vectors": ({"text": "a"}, {"error", "error_type"}),
    "/v2/rerank": ({"model": "ranker", "query": "a", "documents": ["b"]}, {"message"}),
    "/v2/embed": ({"model": "sentence", "texts": ["a"]}, {"message"}),
}
CLIENT = httpx.Client(timeout=60, trust_env=False)


def post(path: str, body: Any, url: str | None = None, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"content-type": "application/json"}
    return CLIENT.post(
        (url or service()) + path, content=content, headers=kind | headers, timeout=60
    )


def is_error(answer: httpx.Response, path: str, status: int | None = None) -> bool:
    """Whether `answer` is an error of the client's, in the shape of the route's dialect."""
    assert answer.headers["content-type"] == "application/json"
    if status is None:
        assert 400 <= answer.status_code < 500, answer.text
    else:
        assert answer.status_code == status, answer.text
    body = answer.json()
    if path == "/v1/embeddings":
        assert set(body["error"]) == {"message", "type", "param", "code"}
    return set(body) == SHAPES[path][1]


class Held(ModelClient):
    """Real models that answer once `go` is set."""

    def __init__(self) -> None:
        models = all_models()
        super().__init__(models.models, models.tasks, models.aliases)
        self.go = threading.Event()
        self.waiting = 0
        self.cancelled = 0

    async def predict(self, model: str, ask: PredictRequest) -> PredictResponse:
        self.waiting += 1
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return await super().predict(model, ask)


def until(true: Any) -> None:
    """Wait for a condition that must come."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")
