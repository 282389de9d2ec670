"""Requests that several dialects share: their bodies, and from inputs to a task's plain answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.responses import Response

from modernbert.windows import Text
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import (
    CUT_OFF,
    Body,
    Direction,
    HandledRequest,
    Inputs,
    Int,
    NonEmpty,
    RequestHandler,
    Truncation,
)
from pipelines.serve.protocol import Info

RERANK_EXAMPLE = {
    "query": "Where is my parcel?",
    "documents": ["You can track your order here.", "Our shops open at nine."],
}
_MOST_NUMBERS = 1 << 23  # of token vectors in an answer: about 160 MB of JSON


class TruncationParams(Body):
    """What a request can say about inputs that are too long."""

    truncate: bool | None = Field(
        default=None, description="false: refuse inputs that are too long; else they are cut off"
    )
    truncation_direction: Direction | None = Field(
        default=None, description="where inputs too long are cut off (default: as the checkpoint says)"
    )

    @property
    def truncation(self) -> Truncation:
        """The parameters as RequestHandler.predict takes them."""
        side = None if self.truncation_direction is None else self.truncation_direction.lower()
        return Truncation(self.truncate is not False, side)


class EmbedRequest(TruncationParams):
    """Inputs to embed."""

    inputs: Inputs
    normalize: bool | None = Field(default=True, description="make vectors of length one")
    dimensions: Int | None = Field(default=None, ge=1, description="give only the first numbers of each vector")
    prompt_name: str | None = Field(default=None, description="a prompt of the model's to put before each input")


class SimilarityParameters(TruncationParams):
    """Options of a comparison of sentences."""

    prompt_name: str | None = None


class SimilarityInputs(Body):
    """A sentence and the sentences to compare it with."""

    source_sentence: NonEmpty
    sentences: list[NonEmpty] = Field(min_length=1)


class SimilarityRequest(Body):
    """A request for the similarity of sentences."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class ClassifyParameters(Body):
    """Options of a classification."""

    top_k: Int | None = Field(default=None, ge=1, description="how many labels (default: all)")
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        default=None, description="from logits to scores"
    )


def prompt_options(info: Info, prompt_name: str | None) -> dict[str, Any]:
    """Return the task's options for a prompt; ApiError if the model has none of that name."""
    if prompt_name is None:
        return {}
    if prompt_name not in info.prompts:
        message = f"prompt_name {prompt_name[:60]!r} is unknown. Available prompts: {json.dumps(list(info.prompts))}"
        raise ApiError("invalid", message, field="prompt_name")
    return {"prompt_name": prompt_name}


async def embed(
    handler: RequestHandler,
    info: Info,
    texts: Sequence[str],
    field: str,
    *,
    prompt_name: str | None = None,
    normalize: bool | None = True,
    dimensions: int | None = None,
    truncation: Truncation = CUT_OFF,
) -> HandledRequest:
    """Embed texts: the response's results are a float32 array (inputs, dimensions)."""
    options: dict[str, Any] = {"normalize": normalize is not False, **prompt_options(info, prompt_name)}
    if dimensions is not None:
        options["dimensions"] = dimensions
    return await handler.predict(info, texts, field=field, options=options, truncation=truncation)


async def embed_tokens(
    handler: RequestHandler, info: Info, texts: Sequence[str], prompt_name: str | None, truncation: Truncation = CUT_OFF
) -> HandledRequest:
    """Embed the tokens of texts: the results are a float32 array (tokens, hidden) per text."""
    options = prompt_options(info, prompt_name)
    most = _MOST_NUMBERS // (info.dimensions or 1)
    if sum(len(text.encode()) for text in texts) > most:  # no token is less than a byte
        tokens = await handler.tokenize(info, texts, "inputs")
        if (n := sum(min(len(each.ids), info.max_length) for each in tokens)) > most:
            message = f"inputs have {n:,} tokens; token vectors are given for {most:,} in a request"
            raise ApiError("invalid", message, field="inputs")
    return await handler.predict(
        info, texts, field="inputs", options=options, token_vectors=True, truncation=truncation
    )


async def embedded(handler: RequestHandler, info: Info, body: EmbedRequest) -> Response:
    """Answer a request for vectors with a list of them."""
    texts = await handler.texts(info, body.inputs, "inputs")
    options: dict[str, Any] = {
        "prompt_name": body.prompt_name,
        "normalize": body.normalize,
        "dimensions": body.dimensions,
    }
    handled = await embed(handler, info, texts, "inputs", **options, truncation=body.truncation)
    return handled.reply(handled.vectors)


async def similarity(
    handler: RequestHandler, info: Info, body: SimilarityRequest
) -> tuple[HandledRequest, list[float]]:
    """Return the handled request, and the cosine of the source sentence with each of the others."""
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    given = body.parameters or SimilarityParameters()
    handled = await embed(handler, info, texts, "inputs", prompt_name=given.prompt_name, truncation=given.truncation)
    source, *others = np.asarray(handled.response.results)
    return handled, [float(source @ other) for other in others]


async def classify(
    handler: RequestHandler,
    info: Info,
    documents: Sequence[Text],
    parameters: ClassifyParameters,
    *,
    raw: bool = False,
    truncation: Truncation = CUT_OFF,
) -> tuple[HandledRequest, list[list[dict[str, Any]]]]:
    """Return the handled request, and [{label, score}] per document from best to worst."""
    function = "none" if raw else parameters.function_to_apply
    if function is None and len(info.labels) == 1 and info.problem_type is None:
        function = "sigmoid"  # to transformers and TEI a single output is a probability
    options = {} if function is None else {"function": function}
    handled = await handler.predict(info, documents, field="inputs", options=options, truncation=truncation)
    return handled, [scores[: parameters.top_k] for scores in handled.response.results]


async def rerank(
    handler: RequestHandler,
    info: Info,
    query: str,
    texts: Sequence[str],
    field: str,
    *,
    raw: bool = False,
    truncation: Truncation = CUT_OFF,
) -> tuple[HandledRequest, list[tuple[int, float]]]:
    """Return the handled request, and the index and score of each text from best to worst."""
    handled = await handler.predict(
        info, [(query, text) for text in texts], field=field, options={"raw_scores": raw}, truncation=truncation
    )
    scores = handled.response.results
    return handled, [(i, scores[i]) for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
