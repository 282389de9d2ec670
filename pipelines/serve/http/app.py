"""The online application: models in, a FastAPI application out."""

from __future__ import annotations

from enum import Enum
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from pipelines.serve.http import errors
from pipelines.serve.http.errors import TEI, ApiError
from pipelines.serve.http.handler import RequestHandler, json_response, new_router
from pipelines.serve.http.huggingface import task_route
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.middleware import HttpLimits, RequestLimitsMiddleware
from pipelines.serve.http.openai import openai_routes
from pipelines.serve.http.rerank import cohere_and_jina_routes, rerank_routes
from pipelines.serve.http.tei import embed_routes, model_routes, predict_routes
from pipelines.serve.protocol import ModelClient

_EXPOSED = ("x-request-id", "x-truncated", "retry-after", "x-compute-tokens", "x-total-time")
_ABOUT = """ModernBERT models online, for the clients of text-embeddings-inference, Hugging Face, OpenAI (embeddings),
Cohere and Jina (rerank). Routes that name no model go to the first in the configuration that does the task; every
model has its own below `/models/{name}`, which serves as the base URL of a client, too."""


def create_app(models: ModelClient, limits: HttpLimits | None = None, *, behind_serve: bool = False) -> FastAPI:
    """The application over `models`; `behind_serve`: Ray Serve's proxy stands before it, and names requests."""
    limits = limits or HttpLimits()
    metrics = HttpMetrics()
    handler = RequestHandler(models, limits, metrics)
    app = FastAPI(title="modernbert-ray", version=version("modernbert-ray"), description=_ABOUT, redoc_url=None)
    errors.install(app)
    app.include_router(_state_routes(handler), tags=["state"])
    for routes in (embed_routes, predict_routes, rerank_routes, model_routes):
        app.include_router(routes(handler, None), tags=["text-embeddings-inference"])
    first = next(iter(models.tasks))
    app.include_router(task_route(handler, first, "/", shared=True), tags=["Hugging Face"])
    app.include_router(openai_routes(handler), tags=["OpenAI"])
    app.include_router(cohere_and_jina_routes(handler))
    fits = {"embed": embed_routes, "classify": predict_routes, "rerank": rerank_routes}
    for name, task in models.tasks.items():
        prefix = f"/models/{name}"
        tags: list[str | Enum] = [f"model {name}: {task}"]
        app.include_router(task_route(handler, name, prefix), tags=tags)
        for does, routes in fits.items():
            app.include_router(routes(handler, name), prefix=prefix, tags=tags, include_in_schema=does == task)
        app.include_router(model_routes(handler, name), prefix=prefix, tags=tags)
        app.include_router(_health_route(handler, name), prefix=prefix, tags=tags)
    app.add_middleware(RequestLimitsMiddleware, limits=limits, metrics=metrics, behind_serve=behind_serve)
    if limits.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=limits.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=_EXPOSED,
        )
    return app


def _state_routes(handler: RequestHandler) -> APIRouter:
    """Whether the service lives, whether it answers, and what it has done: without a key."""
    router = new_router(TEI)

    @router.get("/ping")
    async def ping() -> Response:
        """The process lives."""
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """What this process has counted, as Prometheus text."""
        return Response(handler.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    router.include_router(_health_route(handler, None))
    return router


def _health_route(handler: RequestHandler, name: str | None) -> APIRouter:
    router = new_router(TEI)

    @router.get("/health", response_model=dict[str, Any])
    async def health() -> Response:
        """Every model (or the one in the path) can answer."""
        unready = await handler.models.unready()
        wrong = {model: reason for model, reason in unready.items() if name in (None, model)}
        if wrong:
            raise ApiError("unhealthy", "; ".join(f"{model}: {reason}" for model, reason in wrong.items()))
        return json_response({"status": "ok"})

    return router
