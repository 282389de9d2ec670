"""The dialect of text-embeddings-inference (TEI), and /rerank, which TEI shares with Jina."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response

from modernbert.text.windows import Text
from pipelines.serve.http.bodies import (
    Ids,
    Inputs,
    Many,
    NonEmpty,
    Texts,
    TolerantBody,
    json_response,
    new_router,
    route_docs,
)
from pipelines.serve.http.dialects.jina import JINA, JinaRequest, jina_rerank
from pipelines.serve.http.dialects.shared import (
    RERANK_EXAMPLE,
    ClassifyParameters,
    EmbedRequest,
    SimilarityRequest,
    TruncationParams,
    classify,
    embed_tokens,
    embedded,
    prompt_options,
    rerank,
    similarity,
)
from pipelines.serve.http.errors import ApiError, Dialect
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.protocol import Info, Tokens

_RERANK_EXAMPLE = {"query": RERANK_EXAMPLE["query"], "texts": RERANK_EXAMPLE["documents"]}
_STATUSES = {"invalid": 422, "too_large": 422, "wrong_task": 424, "failed": 424}
_TYPES = {
    "empty": "Empty",
    "wrong_task": "Backend",
    "overloaded": "Overloaded",
    "bodies_full": "Overloaded",
    "failed": "Backend",
    "internal": "Backend",
    "unhealthy": "Unhealthy",
    "timeout": "Overloaded",
}


class TeiError(BaseModel):
    """The shape of an error."""

    error: str
    error_type: str


class EmbedAllRequest(TruncationParams):
    """Inputs whose token vectors are wanted."""

    inputs: Inputs
    prompt_name: str | None = None
    normalize: bool | None = Field(
        default=None, description="not used, though TEI's client sends it"
    )


class EmbedSparseRequest(TruncationParams):
    """Inputs whose weights of tokens are wanted."""

    inputs: Inputs
    prompt_name: str | None = None


OneOrPair = Annotated[list[NonEmpty], Field(fail_fast=True, min_length=1, max_length=2)]


def _predict_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    return "<batch>" if value and isinstance(value[0], list) else "<pair>"


class TeiPredictRequest(TruncationParams):
    """Inputs to classify: a text, a pair ["a", "b"], or a batch of those [["a"], ["b"]]."""

    inputs: Annotated[
        Annotated[NonEmpty, Tag("<text>")]
        | Annotated[OneOrPair, Tag("<pair>")]
        | Annotated[Many[OneOrPair], Tag("<batch>")],
        Discriminator(_predict_tag),
    ]
    raw_scores: bool | None = Field(
        default=False, description="give the model's own numbers, not probabilities"
    )
    parameters: ClassifyParameters | None = Field(
        default=None, description="where it is there, the answer is Hugging Face's"
    )


class TeiRerankRequest(TruncationParams):
    """A query and the texts to rank."""

    query: NonEmpty
    texts: Many[NonEmpty]
    raw_scores: bool | None = Field(
        default=False, description="give the model's own numbers, not their sigmoid"
    )
    return_text: bool | None = False


def _is_jina(body: Any) -> bool:
    return isinstance(body, dict) and body.get("documents") is not None


RerankRequest = Annotated[
    Annotated[TeiRerankRequest, Tag("<tei>")] | Annotated[JinaRequest, Tag("<jina>")],
    Discriminator(lambda body: "<jina>" if _is_jina(body) else "<tei>"),
]


class TokenizeRequest(TolerantBody):
    """Texts to tokenise."""

    inputs: Texts
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


class DecodeRequest(TolerantBody):
    """Token ids to decode."""

    ids: Annotated[
        Annotated[Ids, Tag("<ids>")] | Annotated[Many[Ids], Tag("<batch>")],
        Discriminator(
            lambda ids: (
                "<batch>" if isinstance(ids, list) and ids and isinstance(ids[0], list) else "<ids>"
            )
        ),
    ]
    skip_special_tokens: bool | None = True


def embed_routes(handler: RequestHandler, name: str | None, **options: Any) -> APIRouter:
    """Make the routes of embed models, for the one called `name` or the first."""
    router = new_router(TEI, **options)

    @router.post(
        "/embed",
        **route_docs(list[list[float]], {"inputs": ["What is Deep Learning?"], "normalize": True}),
    )
    async def embed(body: EmbedRequest) -> Response:
        """A vector for each input."""
        info = await handler.pick("embed", name)
        return await embedded(handler, info, body)

    @router.post(
        "/embed_all", **route_docs(list[list[list[float]]], {"inputs": "What is Deep Learning?"})
    )
    async def embed_all(body: EmbedAllRequest) -> Response:
        """A vector for each token of each input, special tokens included."""
        info = await handler.pick("embed", name)
        texts = await handler.texts(info, body.inputs, "inputs")
        handled = await embed_tokens(
            handler, info, texts, body.prompt_name, truncation=body.truncation
        )
        results = handled.response.results
        return handled.reply((row.tolist() for row in rows) for rows in results)

    example = {
        "inputs": {
            "source_sentence": "Where is my parcel?",
            "sentences": ["Track my order", "I am hungry"],
        }
    }

    @router.post("/similarity", **route_docs(list[float], example))
    async def sentence_similarity(body: SimilarityRequest) -> Response:
        """The cosine of the source sentence with each of the others."""
        info = await handler.pick("embed", name)
        handled, cosines = await similarity(handler, info, body)
        return handled.reply(cosines)

    return router


def sparse_routes(handler: RequestHandler, name: str | None, **options: Any) -> APIRouter:
    """Make the route of sparse encoders, for the one called `name` or the first."""
    router = new_router(TEI, **options)

    @router.post(
        "/embed_sparse",
        **route_docs(list[list[dict[str, Any]]], {"inputs": ["What is Deep Learning?"]}),
    )
    async def embed_sparse(body: EmbedSparseRequest) -> Response:
        """The tokens of each input, [{index, value}] from the heaviest on."""
        info = await handler.pick("sparse", name)
        texts = await handler.texts(info, body.inputs, "inputs")
        prompt = prompt_options(info, body.prompt_name)
        handled = await handler.predict(
            info, texts, field="inputs", options=prompt, truncation=body.truncation
        )
        weights = handled.response.results
        return handled.reply(
            ({"index": i, "value": w} for i, w in zip(ids.tolist(), values.tolist(), strict=True))
            for ids, values in weights
        )

    return router


def predict_routes(handler: RequestHandler, name: str | None, **options: Any) -> APIRouter:
    """Make the routes of classifiers, for the one called `name` or the first."""
    router = new_router(TEI, **options)

    @router.post(
        "/predict",
        **route_docs(list[Any], {"inputs": [["Where is my parcel?"], ["I want my money back"]]}),
    )
    async def predict(body: TeiPredictRequest) -> Response:
        """[{label, score}] from best to worst for one input; a list of such lists for a batch."""
        info = await handler.pick("classify", name)
        items: Any = [[body.inputs]] if isinstance(body.inputs, str) else body.inputs
        one = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
        if isinstance(items[0], str):
            items = [items]
        documents: list[Text] = [item[0] if len(item) == 1 else tuple(item) for item in items]
        parameters = body.parameters or ClassifyParameters()
        handled, labels = await classify(
            handler,
            info,
            documents,
            parameters,
            raw=bool(body.raw_scores),
            truncation=body.truncation,
        )
        flat = one and "parameters" not in body.model_fields_set
        return handled.reply(labels[0] if flat else labels)

    return router


def rerank_routes(handler: RequestHandler, name: str | None, **options: Any) -> APIRouter:
    """Make the route /rerank of a reranker, the first or `name`: TEI's with `texts`, Jina's with
    `documents`.
    """
    router = new_router(TEI, JINA, **options)

    @router.post("/rerank", **route_docs(list[dict[str, Any]] | dict[str, Any], _RERANK_EXAMPLE))
    async def rerank_texts(body: RerankRequest, request: Request) -> Response:
        """TEI: [{index, score, text?}] from best to worst. With `documents` in place of `texts`, as
        /v1/rerank.
        """
        if isinstance(body, JinaRequest):
            request.scope["dialect"] = JINA
            return await jina_rerank(handler, body, name)
        info = await handler.pick("rerank", name)
        handled, order = await rerank(
            handler,
            info,
            body.query,
            body.texts,
            "texts",
            raw=bool(body.raw_scores),
            truncation=body.truncation,
        )
        text = (lambda i: {"text": body.texts[i]}) if body.return_text else lambda _: {}
        return handled.reply([{"index": i, "score": score, **text(i)} for i, score in order])

    return router


def model_routes(handler: RequestHandler, name: str | None, **options: Any) -> APIRouter:
    """Make the routes of any model: its tokenizer, and what it is."""
    router = new_router(TEI, **options)

    async def model() -> Info:
        return await handler.info(name or next(iter(handler.models.tasks)))

    @router.post(
        "/tokenize", **route_docs(list[list[dict[str, Any]]], {"inputs": "What is Deep Learning?"})
    )
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of each text: id, text, and the characters [start, stop) that it stands
        for.
        """
        info = await model()
        prompt_options(info, body.prompt_name)
        given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        texts = [info.prompts.get(body.prompt_name or "", "") + text for text in given]
        all_tokens = await handler.tokenize(
            info, texts, "inputs", body.add_special_tokens is not False
        )
        return json_response(
            _tokens(text, each) for text, each in zip(texts, all_tokens, strict=True)
        )

    @router.post(
        "/decode", **route_docs(list[str], {"ids": [[2, 60, 61, 3]], "skip_special_tokens": True})
    )
    async def decode(body: DecodeRequest) -> Response:
        """The text of each list of ids."""
        info = await model()
        ids: Any = body.ids if isinstance(body.ids[0], list) else [body.ids]
        return json_response(
            await handler.decode(info, ids, "ids", body.skip_special_tokens is not False)
        )

    @router.get("/info", response_model=dict[str, Any])
    async def info() -> Response:
        """What the model is, and what it takes."""
        return json_response(_info(await model(), handler))

    return router


def _tokens(text: str, tokens: Tokens) -> Iterator[dict[str, Any]]:
    fields = zip(tokens.ids, tokens.tokens, tokens.offsets, strict=True)
    return (_token(text, *each) for each in fields)


def _token(text: str, id_: int, token: str, span: tuple[int, int] | None) -> dict[str, Any]:
    if span is None:
        return {"id": id_, "text": token, "special": True, "start": None, "stop": None}
    return {
        "id": id_,
        "text": text[slice(*span)],
        "special": False,
        "start": span[0],
        "stop": span[1],
    }


def _info(info: Info, handler: RequestHandler) -> dict[str, Any]:
    return {
        "model_id": info.model,
        "model_sha": info.revision,
        "model_dtype": info.dtype,
        "served_model_name": info.name,
        "model_type": info.model_type,
        "max_concurrent_requests": handler.limits.max_documents,
        "max_input_length": info.max_length,
        "max_batch_tokens": info.budget_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": min(handler.limits.max_inputs, info.max_documents),
        "auto_truncate": True,
        "tokenization_workers": None,
        "version": version("modernbert-ray"),
        "sha": None,
        "docker_label": None,
    }


_ROUTES_OF_TASK: dict[str, Callable[..., APIRouter]] = {
    "embed": embed_routes,
    "sparse": sparse_routes,
    "classify": predict_routes,
    "rerank": rerank_routes,
}


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes that go to the first model of a task."""
    tags = ["text-embeddings-inference"]
    return [make(handler, None, tags=tags) for make in (*_ROUTES_OF_TASK.values(), model_routes)]


def routes_of_model(handler: RequestHandler, name: str) -> Sequence[APIRouter]:
    """Make the routes of a model; those that are not of its task refuse, and are left out of the
    OpenAPI document.
    """
    task = handler.models.tasks[name]
    options: dict[str, Any] = {"prefix": f"/models/{name}", "tags": [f"model {name}: {task}"]}
    routers = [
        make(handler, name, include_in_schema=does == task, **options)
        for does, make in _ROUTES_OF_TASK.items()
    ]
    return [*routers, model_routes(handler, name, **options)]


def _format_error(error: ApiError) -> dict[str, Any]:
    return {"error": error.message, "error_type": _TYPES.get(error.error_type, "Validation")}


TEI = Dialect(
    "text-embeddings-inference",
    TeiError,
    _format_error,
    statuses=_STATUSES,
    routes=routes,
    model_routes=routes_of_model,
    dialect_of_body=lambda body: JINA if _is_jina(body) else None,
)
