"""What several dialects share: bodies of requests, and from inputs to a task's plain answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from starlette.responses import Response

from modernbert.stored import Json
from modernbert.text.windows import Text
from pipelines.option_types import Function
from pipelines.serve.http.bodies import Direction, Inputs, Int, Many, NonEmpty, TolerantBody
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import CUT_OFF, HandledRequest, RequestHandler, Truncation
from pipelines.serve.protocol import Info

RERANK_EXAMPLE = {
    "query": "Where is my parcel?",
    "documents": ["You can track your order here.", "Our shops open at nine."],
}
_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage")
_PROMPTS = {
    **dict.fromkeys(_QUERY, _QUERY),
    **dict.fromkeys(_DOCUMENT, _DOCUMENT),
    "separation": ("separation", "clustering"),
}
"""The names of a model's prompts that may mean a purpose of inputs; else it is its own name."""
_LEAST_TOKENS = 3  # that inputs can be cut to: [CLS], one of the text, [SEP]


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
    chunk_tokens: Int | None = Field(
        default=None,
        ge=1,
        description="give [{start, end, embedding}] of chunks of at most so many tokens",
    )
    chunk_overlap: Int | None = Field(
        default=None, ge=0, description="tokens that a chunk shares with the one before, at most"
    )
    late: bool | None = Field(
        default=None, description="pool the tokens of chunks after a pass over the whole input"
    )

    @property
    def chunk_options(self) -> dict[str, object]:
        """The options of chunks under the task's own names."""
        return {
            "chunk_tokens": self.chunk_tokens,
            "chunk_overlap": self.chunk_overlap,
            "late": self.late,
        }


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
    function_to_apply: Function | None = Field(default=None, description="from logits to scores")


def prompt_options(info: Info, prompt_name: str | None) -> dict[str, str]:
    """Return the task's options for a prompt; ApiError if the model has none of that name."""
    if prompt_name is None:
        return {}
    if prompt_name not in info.prompts:
        available = json.dumps(list(info.prompts))
        message = f"prompt_name {prompt_name[:60]!r} is unknown. Available prompts: {available}"
        raise ApiError("invalid", message, field="prompt_name")
    return {"prompt_name": prompt_name}


def prompt_of(info: Info, purpose: str) -> str | None:
    """Return the name of the model's prompt for a purpose of inputs, such as "search_query"."""
    names = (purpose, *_PROMPTS.get(purpose, ()))
    return next((name for name in names if name in info.prompts), None)


def truncation_options(info: Info, field: str, most: int | None) -> dict[str, int]:
    """Return the task's options for inputs cut to `most` tokens, as vLLM means it.

    None and -1 are what the model reads. Raises ApiError, naming `field`, for a number that the
    model does not allow.
    """
    if most is None or most == -1:
        return {}
    if info.windows:
        message = f"{field} is not for {info.name}, which reads long texts in windows"
        raise ApiError("invalid", message, field=field)
    if not _LEAST_TOKENS <= most <= info.max_length:
        message = (
            f"{field} {most} must be -1, or from {_LEAST_TOKENS} (special tokens count) to the "
            f"{info.max_length} of {info.name}"
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
    more: Mapping[str, object] | None = None,
) -> HandledRequest:
    """Embed texts: the response's results are an array (inputs, dimensions).

    `more`: options of the task.
    """
    options: dict[str, object] = {"normalize": normalize is not False}
    options |= prompt_options(info, prompt_name)
    options |= more or {}
    options["dimensions"] = dimensions
    return await handler.predict(info, texts, field=field, options=options, truncation=truncation)


async def embedded(handler: RequestHandler, info: Info, body: EmbedRequest) -> Response:
    """Answer a request for vectors with a list of them, or of lists of chunks with theirs."""
    texts = await handler.texts(info, body.inputs, "inputs")
    handled = await embed(
        handler,
        info,
        texts,
        "inputs",
        prompt_name=body.prompt_name,
        normalize=body.normalize,
        dimensions=body.dimensions,
        truncation=body.truncation,
        more=body.chunk_options,
    )
    return handled.reply(handled.vectors if body.chunk_tokens is None else handled.chunks)


async def similarity(handler: RequestHandler, info: Info, body: SimilarityRequest) -> Response:
    """Answer with the cosine of the source sentence with each of the others."""
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    parameters = body.parameters or SimilarityParameters()
    handled = await embed(
        handler,
        info,
        texts,
        "inputs",
        prompt_name=parameters.prompt_name,
        truncation=parameters.truncation,
    )
    source, *others = np.asarray(handled.response.results)
    return handled.reply([float(source @ other) for other in others])


async def classify(
    handler: RequestHandler,
    info: Info,
    documents: Sequence[Text],
    parameters: ClassifyParameters,
    *,
    field: str = "inputs",
    raw: bool = False,
    truncation: Truncation = CUT_OFF,
    more: Mapping[str, object] | None = None,
) -> tuple[HandledRequest, list[list[Json]]]:
    """Return the handled request, and [{label, score}] per document from best to worst.

    `more`: options of the task.
    """
    options = dict(more or {})
    if raw:
        options["function"] = "none"
    elif parameters.function_to_apply is not None:
        options["function"] = parameters.function_to_apply
    elif len(info.labels) == 1 and info.problem_type is None:
        # To transformers and TEI a single output is a probability.
        options["function"] = "sigmoid"
    # One label, or a regression's outputs, cannot be ranked.
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
    more: Mapping[str, object] | None = None,
) -> tuple[HandledRequest, list[tuple[int, float]]]:
    """Return the handled request, and the index and score of each text from best to worst.

    `more`: options of the task.
    """
    pairs = [(query, text) for text in texts]
    options = {"raw_scores": raw, **(more or {})}
    handled = await handler.predict(
        info, pairs, field=field, options=options, truncation=truncation
    )
    ranked = list(enumerate(handled.response.results))
    # Sorting is stable: texts with equal scores keep their order.
    ranked.sort(key=lambda numbered: -numbered[1])
    return handled, ranked
