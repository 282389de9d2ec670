"""The online application: a client of models in, a FastAPI application out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.access import start_log
from pipelines.serve.http.dialect import Dialect, install_error_handlers
from pipelines.serve.http.dialects import rerank_paths
from pipelines.serve.http.dialects.cohere import COHERE
from pipelines.serve.http.dialects.huggingface import FIRST_MODEL_PATHS, HUGGING_FACE
from pipelines.serve.http.dialects.jina import JINA
from pipelines.serve.http.dialects.nim import NIM
from pipelines.serve.http.dialects.openai import OPENAI
from pipelines.serve.http.dialects.tei import TEI
from pipelines.serve.http.dialects.vllm import VLLM
from pipelines.serve.http.dialects.weaviate import WEAVIATE
from pipelines.serve.http.drain import UnderWay
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.http.limits import HttpLimits
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.middleware import PUBLIC, RequestLimitsMiddleware
from pipelines.serve.http.model_paths import ModelPaths
from pipelines.serve.http.pages import page, wants_page
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router
from pipelines.serve.http.tracing import start_traces
from pipelines.serve.protocol import ModelClient

DIALECTS: list[Dialect] = [
    TEI,
    HUGGING_FACE,
    OPENAI,
    COHERE,
    JINA,
    VLLM,
    NIM,
    WEAVIATE,
]
"""Every dialect; the first one also answers where no other's prefix fits."""
_EXPOSED = (
    "x-request-id",
    "x-truncated",
    "x-ignored",
    "retry-after",
    "x-compute-tokens",
    "x-total-time",
)
_ABOUT = """ModernBERT models online, for the clients of text-embeddings-inference, Hugging Face,
OpenAI (embeddings), Azure, Cohere, Jina, Voyage, mixedbread, NVIDIA NIM, vLLM, Infinity, llama.cpp
and Weaviate. Routes that name no model go to the first in
the configuration that does the task. Below `/models/{name}`, for each name of a model, all of them
go to that model, so that this is the base URL of a client, too."""


def create_app(
    models: ModelClient,
    limits: HttpLimits | None = None,
    *,
    metrics: HttpMetrics | None = None,
    under_way: UnderWay | None = None,
    behind_serve: bool = False,
) -> FastAPI:
    """Make the application over models.

    Args:
        models: the models that it serves.
        limits: what it takes from clients; None: the default limits.
        metrics: where it counts what it does; None: for /metrics alone.
        under_way: where it counts its requests, for who ends it.
        behind_serve: whether Ray Serve's proxy stands before it, and names requests.
    """
    limits = limits or HttpLimits()
    metrics = metrics or HttpMetrics()
    handler = RequestHandler(models, limits, metrics)
    app = FastAPI(
        title="modernbert-ray",
        version=version("modernbert-ray"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    dialect_routers = list(rerank_paths.routes(handler))
    for dialect in DIALECTS:
        dialect_routers += dialect.routes(handler)
    routers = [_state_routes(handler), *dialect_routers]
    for name in models.tasks:
        for dialect in DIALECTS:
            routers += dialect.model_routes(handler, name)
        routers.append(_health_route(handler, name))
    # include_router would try the routers in turn for each request.
    for router in routers:
        app.router.routes.extend(router.routes)
    if limits.access_log:
        start_log()
    keys = limits.key_ring()
    metrics.key_names = lambda: keys.names
    metrics.start(models.tasks)
    if keys.has_keys:
        _describe_key(app)
    app.add_middleware(
        RequestLimitsMiddleware,
        limits=limits,
        metrics=metrics,
        keys=keys,
        under_way=under_way or UnderWay(),
        dialects=DIALECTS,
        model_paths=_model_paths(models, dialect_routers),
        behind_serve=behind_serve,
        export_trace=start_traces(),
    )
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=limits.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "api-key", "content-type", "x-request-id"],
            expose_headers=_EXPOSED,
        )
    return app


def _model_paths(models: ModelClient, routers: Sequence[APIRouter]) -> ModelPaths:
    """Return what is below /models/{name}: all that dialects have but the first model's routes."""
    paths = {route.path for router in routers for route in router.routes if hasattr(route, "path")}
    own_names = {name: name for name in models.tasks}
    return ModelPaths({**models.aliases, **own_names}, paths - set(FIRST_MODEL_PATHS))


def _describe_key(app: FastAPI) -> None:
    """Let the OpenAPI document say which routes need the key, so that /docs has a field for it."""
    describe = app.openapi

    def openapi() -> Json:
        document = describe()
        scheme = {"type": "http", "scheme": "bearer", "description": "the service's key"}
        document["components"]["securitySchemes"] = {"HTTPBearer": scheme}
        for path, operations in document["paths"].items():
            if path in PUBLIC:
                continue
            for operation in operations.values():
                operation["security"] = [{"HTTPBearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _state_routes(handler: RequestHandler) -> APIRouter:
    """Make the routes of the service's state, and the pages for browsers."""
    router = new_router(TEI, tags=["state"])

    @router.get("/ping")
    async def ping() -> Response:
        """Tell that the process lives."""
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the counters of this process as Prometheus text."""
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(handler.metrics.text(), media_type=media_type)

    @router.get("/docs", response_class=Response, include_in_schema=False)
    async def docs() -> Response:
        """Show the OpenAPI document, which the page asks for with the key that is typed there."""
        return page("docs")

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """Show browsers the models; tell others whether every model can answer, as TEI does."""
        if wants_page(request.headers.get("accept", "")):
            return page("page")
        response = await _health(handler, None)
        response.headers["vary"] = "accept"
        return response

    @router.get("/health", response_model=Json)
    async def health() -> Response:
        """Tell whether every model can answer."""
        return await _health(handler, None)

    return router


def _health_route(handler: RequestHandler, name: str) -> APIRouter:
    task = handler.models.tasks[name]
    router = new_router(TEI, prefix=f"/models/{name}", tags=[f"model {name}: {task}"])

    @router.get("/health", response_model=Json)
    async def health() -> Response:
        """Tell whether the model can answer."""
        return await _health(handler, name)

    return router


async def _health(handler: RequestHandler, name: str | None) -> Response:
    """Answer for a model, or for all; ApiError names those that cannot answer."""
    unready = await handler.models.unready()
    reasons = [f"{model}: {reason}" for model, reason in unready.items() if name in (None, model)]
    if reasons:
        raise ApiError("unhealthy", "; ".join(reasons))
    return json_response({"status": "ok"})
