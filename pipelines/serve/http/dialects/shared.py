"""Requests that several dialects share: their bodies, and from inputs to a task's plain answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.responses import Response

from modernbert.text.windows import Text
from pipelines.serve.http.bodies import Direction, Inputs, Int, Many, NonEmpty, TolerantBody
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import CUT_OFF, HandledRequest, RequestHandler, Truncation
from pipelines.serve.protocol import Info

RERANK_EXAMPLE = {
    "query": "Where is my parcel?",
    "documents": ["You can track your order here.", "Our shops open at nine."],
}


class TruncationParams(TolerantBody):
    """What a request can say about inputs that are too long."""

    truncate: bool | None = Field(
        default=None, description="false: refuse inputs that are too long; else they are cut off"
    )
    truncation_direction: Direction | None = Field(
        default=None,
        description="where inputs too long are cut off (default: as the checkpoint says)",
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
    dimensions: Int | None = Field(
        default=None, ge=1, description="give only the first numbers of each vector"
    )
    prompt_name: str | None = Field(
        default=None, description="a prompt of the model's to put before each input"
    )


class SimilarityParameters(TruncationParams):
    """Options of a comparison of sentences."""

    prompt_name: str | None = None


class SimilarityInputs(TolerantBody):
    """A sentence and the sentences to compare it with."""

    source_sentence: NonEmpty
    sentences: Many[NonEmpty]


class SimilarityRequest(TolerantBody):
    """A request for the similarity of sentences."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class ClassifyParameters(TolerantBody):
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
        message = (
            f"prompt_name {prompt_name[:60]!r} is unknown. Available prompts: "
            f"{json.dumps(list(info.prompts))}"
        )
        raise ApiError("invalid", message, field="prompt_name")
    return {"prompt_name": prompt_name}


def truncation_options(info: Info, field: str, most: int | None) -> dict[str, Any]:
    """Return the task's options for inputs cut to `most` tokens, as vLLM means it: -1 is what the
    model reads.
    """
    if most is None or most == -1:
        return {}
    if info.windows:
        raise ApiError(
            "invalid",
            f"{field} is not for {info.name}, which reads long texts in windows",
            field=field,
        )
    if not 3 <= most <= info.max_length:
        message = (
            f"{field} {most} must be -1, or from 3 (special tokens count) to the {info.max_length} "
            f"of {info.name}"
        )
        raise ApiError("invalid", message, field=field)
    return {"max_length": most}


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
    more: Mapping[str, Any] | None = None,
) -> HandledRequest:
    """Embed texts: the response's results are an array (inputs, dimensions); `more` are options of
    the task.
    """
    options: dict[str, Any] = {
        "normalize": normalize is not False,
        **prompt_options(info, prompt_name),
        **(more or {}),
    }
    if dimensions is not None:
        options["dimensions"] = dimensions
    return await handler.predict(info, texts, field=field, options=options, truncation=truncation)


async def embed_tokens(
    handler: RequestHandler,
    info: Info,
    texts: Sequence[str],
    prompt_name: str | None,
    truncation: Truncation = CUT_OFF,
) -> HandledRequest:
    """Embed the tokens of texts: the results are a float32 array (tokens, hidden) per text."""
    options = prompt_options(info, prompt_name)
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
    handled = await embed(
        handler, info, texts, "inputs", prompt_name=given.prompt_name, truncation=given.truncation
    )
    source, *others = np.asarray(handled.response.results)
    return handled, [float(source @ other) for other in others]


async def classify(
    handler: RequestHandler,
    info: Info,
    documents: Sequence[Text],
    parameters: ClassifyParameters,
    *,
    field: str = "inputs",
    raw: bool = False,
    truncation: Truncation = CUT_OFF,
    more: Mapping[str, Any] | None = None,
) -> tuple[HandledRequest, list[list[dict[str, Any]]]]:
    """Return the handled request, and [{label, score}] per document from best to worst; `more` are
    task options.
    """
    function = "none" if raw else parameters.function_to_apply
    if function is None and len(info.labels) == 1 and info.problem_type is None:
        function = "sigmoid"  # to transformers and TEI a single output is a probability
    options: dict[str, Any] = {
        **(more or {}),
        **({} if function is None else {"function": function}),
    }
    if parameters.top_k and len(info.labels) > 1 and info.problem_type != "regression":
        options["top_k"] = min(parameters.top_k, len(info.labels))
    handled = await handler.predict(
        info, documents, field=field, options=options, truncation=truncation
    )
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
    more: Mapping[str, Any] | None = None,
) -> tuple[HandledRequest, list[tuple[int, float]]]:
    """Return the handled request, and the index and score of each text from best to worst; `more`
    are task options.
    """
    options = {"raw_scores": raw, **(more or {})}
    handled = await handler.predict(
        info, [(query, text) for text in texts], field=field, options=options, truncation=truncation
    )
    scores = handled.response.results
    return handled, [(i, scores[i]) for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
