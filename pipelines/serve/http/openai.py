"""OpenAI's dialect: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipelines.serve.http.errors import ApiError, Dialect
from pipelines.serve.http.handler import (
    Body,
    Inputs,
    Int,
    RequestHandler,
    Truncation,
    json_response,
    new_router,
    route_docs,
)
from pipelines.serve.http.tasks import embed

_TYPES = {
    "overloaded": "rate_limit_error",
    "failed": "server_error",
    "internal": "server_error",
    "unhealthy": "server_error",
    "timeout": "server_error",
}
_CODES = {
    "unauthorized": "invalid_api_key",
    "unknown_model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
}


class OpenAIDetails(BaseModel):
    """The details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """The shape of an error."""

    error: OpenAIDetails


class EmbeddingsRequest(Body):
    """Inputs to embed."""

    input: Inputs
    model: str
    dimensions: Int | None = Field(default=None, ge=1, description="give only the first numbers of each vector")
    encoding_format: Literal["float", "base64"] = Field(default="float", description="base64: of little-endian float32")
    user: str | None = Field(default=None, description="not used")


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes /v1/embeddings and /v1/models."""
    router = new_router(OPENAI, tags=["OpenAI"])
    example = {"model": handler.first("embed") or "none here", "input": ["What is Deep Learning?"]}

    @router.post("/v1/embeddings", **route_docs(dict[str, Any], example))
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """{data: [{embedding, index}], model, usage}, vectors of length one; an input that is too long is refused."""
        info = await handler.pick("embed", body.model)
        texts = await handler.texts(info, body.input, "input")
        handled = await embed(handler, info, texts, "input", dimensions=body.dimensions, truncation=Truncation(False))
        vectors: list[Any]
        if body.encoding_format == "base64":
            rows = np.asarray(handled.response.results, dtype="<f4")
            vectors = [base64.b64encode(row.tobytes()).decode() for row in rows]
        else:
            vectors = handled.vectors
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": handled.n_tokens, "total_tokens": handled.n_tokens}
        return handled.reply({"object": "list", "data": data, "model": info.name, "usage": usage})

    @router.get("/v1/models", response_model=dict[str, Any])
    async def models() -> Response:
        """Every model online."""
        return json_response({"object": "list", "data": [_model(name) for name in handler.models.tasks]})

    @router.get("/v1/models/{model}", response_model=dict[str, Any])
    async def model(model: str) -> Response:
        """A model online."""
        if model not in handler.models.tasks:
            known = ", ".join(handler.models.tasks)
            raise ApiError("unknown_model", f"model {model[:60]!r} is unknown; known are {known}", field="model")
        return json_response(_model(model))

    return [router]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "modernbert-ray"}


def _format_error(error: ApiError) -> dict[str, Any]:
    type_, code = _TYPES.get(error.error_type, "invalid_request_error"), _CODES.get(error.error_type)
    return {"error": {"message": error.message, "type": type_, "param": error.field, "code": code}}


OPENAI = Dialect("OpenAI", OpenAIError, _format_error, prefixes=("/v1",), routes=routes)
