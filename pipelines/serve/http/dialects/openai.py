"""OpenAI's dialect: /v1/embeddings and /v1/models, and Azure's path /openai/v1/embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from modernbert.stored import Json
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.embedding_fields import EmbeddingsRequest
from pipelines.serve.http.dialects.shared import embed, truncation_options
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router, route_docs

_TOKEN_IDS = (
    "input holds token ids, and nothing tells whether they are of {model}'s tokenizer: send the "
    "texts (langchain: check_embedding_ctx_length=False), or set openai_token_ids in the model's "
    "entry"
)
_TYPES = {
    "overloaded": "rate_limit_error",
    "bodies_full": "rate_limit_error",
    "failed": "server_error",
    "internal": "server_error",
    "unhealthy": "server_error",
    "ending": "server_error",
    "timeout": "server_error",
}
_CODES = {
    "unauthorized": "invalid_api_key",
    "unknown_model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
    "bodies_full": "rate_limit_exceeded",
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


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes /v1/embeddings and /v1/models."""
    router = new_router(OPENAI, tags=["OpenAI"])
    _add_embeddings(router, handler)
    _add_models(router, handler)
    return [router]


def _add_embeddings(router: APIRouter, handler: RequestHandler) -> None:
    example = {"model": handler.example_model("embed"), "input": ["What is Deep Learning?"]}

    @router.post("/embeddings", include_in_schema=False)
    @router.post("/openai/v1/embeddings", include_in_schema=False)
    @router.post("/v1/embeddings", **route_docs(Json, example))
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """{data: [{embedding, index}], model, usage}, vectors of length one; an input that is too
        long is refused.
        """
        info = await handler.pick("embed", body.model)
        holds_texts = isinstance(body.input, str) or isinstance(body.input[0], str)
        if not holds_texts and not info.openai_token_ids:
            raise ApiError("invalid", _TOKEN_IDS.format(model=info.name), field="input")
        body.check_followed()
        texts = await handler.texts(info, body.input, "input")
        most_tokens = body.truncate_prompt_tokens
        handled = await embed(
            handler,
            info,
            texts,
            "input",
            prompt_name=body.prompt_name(info),
            normalize=body.normalize is not False and body.normalized is not False,
            dimensions=body.dimensions or body.output_dimension or None,
            truncation=body.truncation_for(info),
            more={
                **truncation_options(info, "truncate_prompt_tokens", most_tokens),
                "precision": body.precision,
            },
        )
        vectors: Iterator[list[float]] | Iterator[str] = handled.vectors
        if body.is_base64:
            vectors = handled.base64_vectors
        data = (
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        )
        content = {"object": "list", "data": data, "model": info.name, "usage": handled.usage}
        return handled.reply(content)


def _add_models(router: APIRouter, handler: RequestHandler) -> None:
    @router.get("/v1/models", response_model=Json)
    async def models() -> Response:
        """Every model online, then the other names of models; below /models/{name} that one."""
        aliases = handler.models.aliases
        visible = handler.visible
        names = [*visible, *(alias for alias, model in aliases.items() if model in visible)]
        return json_response({"object": "list", "data": [_model(handler, name) for name in names]})

    @router.get("/v1/models/{model:path}", response_model=Json)
    async def model(model: str) -> Response:
        """A model online, by its name or another name of it."""
        if model not in handler.models.tasks and model not in handler.models.aliases:
            known = ", ".join(handler.models.tasks)
            message = f"model {model[:60]!r} is unknown; known are {known}"
            raise ApiError("unknown_model", message, field="model")
        return json_response(_model(handler, model))


def _model(handler: RequestHandler, name: str) -> Json:
    root = handler.models.aliases.get(name, name)  # vLLM has this field, too
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "modernbert-ray",
        "root": root,
        "task": handler.models.tasks[root],
    }


def _format_error(error: ApiError) -> Json:
    details = {
        "message": error.message,
        "type": _TYPES.get(error.error_type, "invalid_request_error"),
        "param": error.field,
        "code": _CODES.get(error.error_type),
    }
    return {"error": details}


OPENAI = Dialect(
    "OpenAI", OpenAIError, _format_error, prefixes=("/v1", "/embeddings", "/openai"), routes=routes
)
