"""The routes of text-embeddings-inference."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from modernbert.windows import Text
from pipelines.serve.http.errors import TEI
from pipelines.serve.http.handler import (
    Body,
    Ids,
    Inputs,
    NonEmpty,
    RequestHandler,
    Texts,
    json_response,
    new_router,
    route_docs,
)
from pipelines.serve.http.tasks import (
    ClassifyParameters,
    EmbedRequest,
    SimilarityRequest,
    TruncationParams,
    classify,
    embed_tokens,
    embedded,
    prompt_options,
    similarity,
)
from pipelines.serve.protocol import Info


class EmbedAllRequest(TruncationParams):
    """Inputs whose token vectors are wanted."""

    inputs: Inputs
    prompt_name: str | None = None
    normalize: bool | None = Field(default=None, description="not used, though TEI's client sends it")


OneOrPair = Annotated[list[NonEmpty], Field(min_length=1, max_length=2)]


def _form(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    return "<batch>" if value and isinstance(value[0], list) else "<pair>"


class PredictRequest(TruncationParams):
    """Inputs to classify: a text, a pair ["a", "b"], or a batch of those [["a"], ["b"]]."""

    inputs: Annotated[
        Annotated[NonEmpty, Tag("<text>")]
        | Annotated[OneOrPair, Tag("<pair>")]
        | Annotated[list[OneOrPair], Tag("<batch>"), Field(min_length=1)],
        Discriminator(_form),
    ]
    raw_scores: bool = Field(default=False, description="give the model's own numbers, not probabilities")
    parameters: ClassifyParameters | None = Field(
        default=None, description="where it is there, the answer is Hugging Face's"
    )


class TokenizeRequest(Body):
    """Texts to cut into tokens."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Body):
    """Token ids to make text of."""

    ids: Annotated[
        Annotated[Ids, Tag("<ids>")] | Annotated[list[Ids], Tag("<batch>"), Field(min_length=1)],
        Discriminator(lambda ids: "<batch>" if isinstance(ids, list) and ids and isinstance(ids[0], list) else "<ids>"),
    ]
    skip_special_tokens: bool = True


def embed_routes(handler: RequestHandler, name: str | None) -> APIRouter:
    """Of embed models: the one called `name`, or the first."""
    router = new_router(TEI)

    @router.post("/embed", **route_docs(list[list[float]], {"inputs": ["What is Deep Learning?"], "normalize": True}))
    async def embed(body: EmbedRequest) -> Response:
        """A vector for each input."""
        info = await handler.pick("embed", name)
        return await embedded(handler, info, body)

    @router.post("/embed_all", **route_docs(list[list[list[float]]], {"inputs": "What is Deep Learning?"}))
    async def embed_all(body: EmbedAllRequest) -> Response:
        """A vector for each token of each input, special tokens included."""
        info = await handler.pick("embed", name)
        texts = await handler.texts(info, body.inputs, "inputs")
        handled = await embed_tokens(handler, info, texts, body.prompt_name, **body.cut)
        return handled.reply([rows.tolist() for rows in handled.answers.results])

    example = {"inputs": {"source_sentence": "Where is my parcel?", "sentences": ["Track my order", "I am hungry"]}}

    @router.post("/similarity", **route_docs(list[float], example))
    async def sentence_similarity(body: SimilarityRequest) -> Response:
        """The cosine of the source sentence with each of the others."""
        info = await handler.pick("embed", name)
        handled, cosines = await similarity(handler, info, body)
        return handled.reply(cosines)

    return router


def predict_routes(handler: RequestHandler, name: str | None) -> APIRouter:
    """Of classifiers."""
    router = new_router(TEI)

    @router.post("/predict", **route_docs(list[Any], {"inputs": [["Where is my parcel?"], ["I want my money back"]]}))
    async def predict(body: PredictRequest) -> Response:
        """[{label, score}] from best to worst for one input; a list of such lists for a batch."""
        info = await handler.pick("classify", name)
        items: Any = [[body.inputs]] if isinstance(body.inputs, str) else body.inputs
        one = isinstance(body.inputs, str) or isinstance(body.inputs[0], str)
        if isinstance(items[0], str):
            items = [items]
        documents: list[Text] = [item[0] if len(item) == 1 else tuple(item) for item in items]
        parameters = body.parameters or ClassifyParameters()
        handled, labels = await classify(handler, info, documents, parameters, raw=body.raw_scores, **body.cut)
        flat = one and "parameters" not in body.model_fields_set
        return handled.reply(labels[0] if flat else labels)

    return router


def model_routes(handler: RequestHandler, name: str | None) -> APIRouter:
    """Of any model: its tokenizer, and what it is."""
    router = new_router(TEI)

    async def model() -> Info:
        return await handler.info(name or next(iter(handler.models.tasks)))

    @router.post("/tokenize", **route_docs(list[list[dict[str, Any]]], {"inputs": "What is Deep Learning?"}))
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of each text: id, text, and the characters [start, stop) that it stands for."""
        info = await model()
        prompt_options(info, body.prompt_name)
        given = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        texts = [info.prompts.get(body.prompt_name or "", "") + text for text in given]
        all_tokens = await handler.tokenize(info, texts, "inputs", body.add_special_tokens)
        return json_response([
            [_token(text, *token) for token in zip(tokens.ids, tokens.tokens, tokens.offsets, strict=True)]
            for text, tokens in zip(texts, all_tokens, strict=True)
        ])  # fmt: skip

    @router.post("/decode", **route_docs(list[str], {"ids": [[2, 60, 61, 3]], "skip_special_tokens": True}))
    async def decode(body: DecodeRequest) -> Response:
        """The text of each list of ids."""
        info = await model()
        ids: Any = body.ids if isinstance(body.ids[0], list) else [body.ids]
        return json_response(await handler.decode(info, ids, "ids", body.skip_special_tokens))

    @router.get("/info", response_model=dict[str, Any])
    async def info() -> Response:
        """What the model is, and what it takes."""
        return json_response(_told(await model(), handler))

    return router


def _token(text: str, id_: int, token: str, span: tuple[int, int] | None) -> dict[str, Any]:
    if span is None:
        return {"id": id_, "text": token, "special": True, "start": None, "stop": None}
    return {"id": id_, "text": text[slice(*span)], "special": False, "start": span[0], "stop": span[1]}


def _told(info: Info, handler: RequestHandler) -> dict[str, Any]:
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
        "max_client_batch_size": min(handler.limits.max_inputs, info.max_queued_documents),
        "auto_truncate": True,
        "tokenization_workers": None,
        "version": version("modernbert-ray"),
        "sha": None,
        "docker_label": None,
    }
