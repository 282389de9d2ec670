"""The dialect of text-embeddings-inference (TEI); its route /rerank is in jina.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import starmap
from typing import Annotated, cast

from fastapi import APIRouter, Query
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response

from modernbert.stored import Json
from modernbert.text.windows import Text
from pipelines.serve.http.bodies import (
    Ids,
    Inputs,
    Many,
    NonEmpty,
    Texts,
    TolerantBody,
    as_list,
)
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.dialects.shared import (
    ClassifyParameters,
    EmbedRequest,
    SimilarityRequest,
    TruncationParams,
    classify,
    embedded,
    prompt_options,
    rerank,
    similarity,
)
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import HandledRequest, RequestHandler
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router, route_docs
from pipelines.serve.protocol import Info, Tokens

_STATUSES = {"invalid": 422, "too_large": 422, "wrong_task": 424, "failed": 424}
_TYPES = {
    "empty": "Empty",
    "wrong_task": "Backend",
    "overloaded": "Overloaded",
    "bodies_full": "Overloaded",
    "failed": "Backend",
    "internal": "Backend",
    "unhealthy": "Unhealthy",
    "ending": "Unhealthy",
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


def _predict_tag(value: object) -> str:
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


class TokenizeRequest(TolerantBody):
    """Texts to tokenise."""

    inputs: Texts
    add_special_tokens: bool | None = True
    prompt_name: str | None = None


def _ids_tag(ids: object) -> str:
    is_batch = isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)
    return "<batch>" if is_batch else "<ids>"


class DecodeRequest(TolerantBody):
    """Token ids to decode."""

    ids: Annotated[
        Annotated[Ids, Tag("<ids>")] | Annotated[Many[Ids], Tag("<batch>")],
        Discriminator(_ids_tag),
    ]
    skip_special_tokens: bool | None = True


def _add_embed(router: APIRouter, handler: RequestHandler) -> None:
    example: Json = {"inputs": ["What is Deep Learning?"], "normalize": True}

    @router.post("/embed", **route_docs(list[list[float] | list[Json]], example))
    async def embed(body: EmbedRequest) -> Response:
        """A vector for each input; with chunk_tokens a list of {start, end, embedding}."""
        info = await handler.pick("embed")
        return await embedded(handler, info, body)

    example = {"inputs": "What is Deep Learning?"}

    @router.post("/embed_all", **route_docs(list[list[list[float]]], example))
    async def embed_all(body: EmbedAllRequest) -> Response:
        """A vector for each token of each input, special tokens included."""
        info = await handler.pick("embed")
        handled = await _predict_inputs(handler, info, body, token_vectors=True)
        return handled.reply(handled.token_vectors)

    example = {
        "inputs": {
            "source_sentence": "Where is my parcel?",
            "sentences": ["Track my order", "I am hungry"],
        }
    }

    @router.post("/similarity", **route_docs(list[float], example))
    async def sentence_similarity(body: SimilarityRequest) -> Response:
        """The cosine of the source sentence with each of the others."""
        info = await handler.pick("embed")
        return await similarity(handler, info, body)


def _add_sparse(router: APIRouter, handler: RequestHandler) -> None:
    example = {"inputs": ["What is Deep Learning?"]}

    @router.post("/embed_sparse", **route_docs(list[list[Json]], example))
    async def embed_sparse(body: EmbedSparseRequest) -> Response:
        """The tokens of each input, [{index, value}] from the heaviest on."""
        info = await handler.pick("sparse")
        handled = await _predict_inputs(handler, info, body)
        results = handled.response.results
        return handled.reply(_weights(ids.tolist(), values.tolist()) for ids, values in results)


async def _predict_inputs(
    handler: RequestHandler,
    info: Info,
    body: EmbedAllRequest | EmbedSparseRequest,
    *,
    token_vectors: bool = False,
) -> HandledRequest:
    """Run the inputs of a request, each behind the prompt that the request names."""
    texts = await handler.texts(info, body.inputs, "inputs")
    return await handler.predict(
        info,
        texts,
        field="inputs",
        options=prompt_options(info, body.prompt_name),
        token_vectors=token_vectors,
        truncation=body.truncation,
    )


def _weights(ids: list[int], values: list[float]) -> Iterator[Json]:
    for index, value in zip(ids, values, strict=True):
        yield {"index": index, "value": value}


def _add_predict(router: APIRouter, handler: RequestHandler) -> None:
    example = {"inputs": [["Where is my parcel?"], ["I want my money back"]]}

    @router.post("/predict", **route_docs(list[object], example))
    async def predict(body: TeiPredictRequest) -> Response:
        """[{label, score}] from best to worst for one input; a list of such lists for a batch."""
        info = await handler.pick("classify")
        items, is_batch = _documents(body.inputs)
        handled, labels = await classify(
            handler,
            info,
            items,
            body.parameters or ClassifyParameters(),
            raw=bool(body.raw_scores),
            truncation=body.truncation,
        )
        # Hugging Face's client, which sends parameters, wants a list of lists for one input, too.
        if is_batch or "parameters" in body.model_fields_set:
            return handled.reply(labels)
        return handled.reply(labels[0])


def _documents(inputs: str | list[str] | list[list[str]]) -> tuple[list[Text], bool]:
    """Return the texts and pairs of a request to classify, and whether it is a batch of them."""
    if isinstance(inputs, str):
        return [inputs], False
    is_batch = isinstance(inputs[0], list)
    items = cast("list[list[str]]", inputs if is_batch else [inputs])
    documents = [item[0] if len(item) == 1 else (item[0], item[1]) for item in items]
    return documents, is_batch


async def tei_rerank(handler: RequestHandler, body: TeiRerankRequest) -> Response:
    """Answer with [{index, score, text?}] from best to worst."""
    info = await handler.pick("rerank")
    handled, ranked = await rerank(
        handler,
        info,
        body.query,
        body.texts,
        "texts",
        raw=bool(body.raw_scores),
        truncation=body.truncation,
    )
    results: list[Json] = [{"index": i, "score": score} for i, score in ranked]
    if body.return_text:
        for result in results:
            result["text"] = body.texts[result["index"]]
    return handled.reply(results)


def _add_model_routes(router: APIRouter, handler: RequestHandler) -> None:
    """Add the routes of a model of any task: that of the path, or the first of all."""
    _add_tokenizer(router, handler)

    @router.get("/info", response_model=Json)
    async def info(
        api_version: Annotated[
            str | None, Query(alias="api-version", description="Azure's")
        ] = None,
    ) -> Response:
        """What the model is, and what it takes; with an api-version as Azure's clients read it."""
        if api_version is not None:
            return json_response(_azure_info(await handler.pick("embed")))
        return json_response(_info(await handler.info(handler.visible[0]), handler))


def _azure_info(info: Info) -> Json:
    """Return what Azure's clients are told of a model: they know no other type of ours."""
    return {
        "model_name": info.name,
        "model_type": "embeddings",
        "model_provider_name": "modernbert-ray",
    }


def _add_tokenizer(router: APIRouter, handler: RequestHandler) -> None:
    example: Json = {"inputs": "What is Deep Learning?"}

    @router.post("/tokenize", **route_docs(list[list[Json]], example))
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of each text: id, text, and the characters [start, stop) that it stands
        for.
        """
        info = await handler.info(handler.visible[0])
        prompt_options(info, body.prompt_name)  # refuses a name that is unknown
        prompt = ""
        if body.prompt_name is not None:
            prompt = info.prompts[body.prompt_name]
        texts = [prompt + text for text in as_list(body.inputs)]
        with_special = body.add_special_tokens is not False
        all_tokens = await handler.tokenize(info, texts, "inputs", with_special)
        rows = zip(texts, all_tokens, strict=True)
        return json_response(starmap(_tokens, rows))

    example = {"ids": [[2, 60, 61, 3]], "skip_special_tokens": True}

    @router.post("/decode", **route_docs(list[str], example))
    async def decode(body: DecodeRequest) -> Response:
        """The text of each list of ids."""
        info = await handler.info(handler.visible[0])
        id_lists = cast("list[list[int]]", body.ids)
        if not isinstance(body.ids[0], list):
            id_lists = [body.ids]
        skip_special = body.skip_special_tokens is not False
        texts = await handler.decode(info, id_lists, "ids", skip_special)
        return json_response(texts)


def _tokens(text: str, tokens: Tokens) -> Iterator[Json]:
    for id_, token, span in zip(tokens.ids, tokens.tokens, tokens.offsets, strict=True):
        start, stop = span.tolist()
        if start < 0:
            yield {"id": int(id_), "text": token, "special": True, "start": None, "stop": None}
        else:
            content = text[start:stop]
            yield {"id": int(id_), "text": content, "special": False, "start": start, "stop": stop}


def _info(info: Info, handler: RequestHandler) -> Json:
    ways = {"attention": info.attention, "fusions": info.fusions}  # not of TEI
    chosen = {name: way for name, way in ways.items() if way}
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
        **chosen,
    }


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes, but for /rerank."""
    router = new_router(TEI, tags=["text-embeddings-inference"])
    for add in (_add_embed, _add_sparse, _add_predict, _add_model_routes):
        add(router, handler)
    return [router]


def _format_error(error: ApiError) -> Json:
    return {"error": error.message, "error_type": _TYPES.get(error.error_type, "Validation")}


TEI = Dialect(
    "text-embeddings-inference",
    TeiError,
    _format_error,
    statuses=_STATUSES,
    routes=routes,
)
