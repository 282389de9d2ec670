"""Hugging Face's dialect: what huggingface_hub's InferenceClient sends for each task, at a path for
each model.

Bodies are {"inputs", "parameters"}. Errors are TEI's. A new task adds its route to TASK_ROUTES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal, TypeGuard

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from modernbert.stored import Json
from modernbert.text.windows import Text
from pipelines.serve.http.bodies import Int, Many, NonEmpty, Texts, TolerantBody, as_list
from pipelines.serve.http.dialects.shared import (
    ClassifyParameters,
    EmbedRequest,
    SimilarityRequest,
    classify,
    embedded,
    similarity,
)
from pipelines.serve.http.dialects.tei import TEI
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import HandledRequest, RequestHandler
from pipelines.serve.http.routes import new_router, route_docs
from pipelines.serve.protocol import MOST_RESULTS
from pipelines.text_lists import WordList

_MOST_NAMES = 1000  # in an option
_MOST_WORDS = 1 << 17  # in a list: some times the tokens that a model reads
FIRST_MODEL_PATHS = ("/", "/invocations")
"""The paths of the first model, where TEI's clients classify, too; SageMaker calls the second."""
Name = Annotated[str, Field(max_length=256)]
Target = Annotated[Name, Field(min_length=1)]


class TextPair(TolerantBody):
    """Two texts that are read together."""

    text: NonEmpty
    text_pair: NonEmpty


OneOrPair = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[TextPair, Tag("<pair>")],
    Discriminator(lambda value: "<pair>" if isinstance(value, dict | TextPair) else "<text>"),
]


TextsOrPairs = Annotated[
    Annotated[OneOrPair, Tag("<one>")] | Annotated[Many[OneOrPair], Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<one>"),
]


class ClassifyRequest(TolerantBody):
    """Texts or pairs to classify."""

    inputs: TextsOrPairs
    parameters: ClassifyParameters | None = None


class ZeroShotParameters(TolerantBody):
    """Options of a zero-shot classification."""

    candidate_labels: (
        Annotated[
            list[Annotated[Name, Field(min_length=1)]],
            Field(fail_fast=True, min_length=1, max_length=_MOST_NAMES),
        ]
        | None
    ) = Field(
        default=None, description="labels to choose from (default: those of the model's entry)"
    )
    hypothesis_template: Name | None = Field(
        default=None, description="sentence with {} where the label stands"
    )
    multi_label: bool | None = Field(default=None, description="score each label by itself")

    @property
    def options(self) -> dict[str, object]:
        """The options under the task's own names."""
        return {
            "labels": self.candidate_labels,
            "hypothesis_template": self.hypothesis_template,
            "multi_label": self.multi_label,
        }


class ZeroShotRequest(TolerantBody):
    """Texts to classify by labels of the request's choice."""

    inputs: Texts
    parameters: ZeroShotParameters | None = None


class TagParameters(TolerantBody):
    """Options of token classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Annotated[list[Name], Field(fail_fast=True, max_length=_MOST_NAMES)] | None = (
        None
    )
    stride: Int | None = Field(
        default=None, ge=0, description="tokens that the windows of a long text share"
    )
    is_split_into_words: bool | None = Field(
        default=None, description="inputs are a list of words, or lists of them, to label"
    )

    @property
    def options(self) -> dict[str, object]:
        """The options under the task's own names."""
        return {
            "aggregation": self.aggregation_strategy,
            "ignore_labels": self.ignore_labels,
            "stride": self.stride,
            "is_split_into_words": self.is_split_into_words,
        }


Words = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MOST_WORDS)]


def _tag_input(value: object) -> str:
    if isinstance(value, list):
        return "<words>"
    return "<pair>" if isinstance(value, dict | TextPair) else "<text>"


TagInput = Annotated[
    Annotated[NonEmpty, Tag("<text>")]
    | Annotated[TextPair, Tag("<pair>")]
    | Annotated[Words, Tag("<words>")],
    Discriminator(_tag_input),
]


TagInputs = str | TextPair | list[str | TextPair | list[str]]


class TagRequest(TolerantBody):
    """Texts to find entities in, pairs of which the second text has them, or lists of words to
    label.
    """

    inputs: Annotated[
        Annotated[OneOrPair, Tag("<one>")] | Annotated[Many[TagInput], Tag("<several>")],
        Discriminator(lambda value: "<several>" if isinstance(value, list) else "<one>"),
    ]
    parameters: TagParameters | None = None


class FillParameters(TolerantBody):
    """Options of fill-mask."""

    top_k: Int | None = Field(default=None, ge=1, le=1000, description="how many")
    targets: (
        Annotated[list[Target], Field(fail_fast=True, min_length=1, max_length=_MOST_NAMES)] | None
    ) = Field(default=None, description="the only ones to choose from")

    @property
    def options(self) -> dict[str, object]:
        """The options under the task's own names."""
        return {"top_k": self.top_k, "targets": self.targets}


class FillRequest(TolerantBody):
    """Texts with masks."""

    inputs: Texts
    parameters: FillParameters | None = None


class Question(TolerantBody):
    """A question and the text that may hold its answer."""

    question: NonEmpty
    context: NonEmpty


class AnswerParameters(TolerantBody):
    """Options of question answering."""

    top_k: Int | None = Field(default=None, ge=1, le=1000, description="how many answers")
    max_answer_len: Int | None = Field(
        default=None, ge=1, le=10_000, description="tokens in an answer at most"
    )
    max_seq_len: Int | None = Field(
        default=None, ge=3, description="tokens that the model reads at a time"
    )
    doc_stride: Int | None = Field(
        default=None, ge=0, description="tokens that the windows of a long context share"
    )
    handle_impossible_answer: bool | None = Field(
        default=None, description="let no answer, an empty one, compete"
    )
    align_to_words: bool | None = Field(
        default=None, description="let answers begin and end with whole words"
    )
    max_question_len: None = Field(
        default=None, description="not available: questions are read whole"
    )

    @property
    def options(self) -> dict[str, object]:
        """The options under the task's own names."""
        return {
            "top_k": self.top_k,
            "max_answer_length": self.max_answer_len,
            "max_length": self.max_seq_len,
            "stride": self.doc_stride,
            "no_answer": self.handle_impossible_answer,
            "align_to_words": self.align_to_words,
        }


class AnswerRequest(TolerantBody):
    """Questions with their contexts."""

    inputs: Annotated[
        Annotated[Question, Tag("<one>")] | Annotated[Many[Question], Tag("<questions>")],
        Discriminator(lambda value: "<questions>" if isinstance(value, list) else "<one>"),
    ]
    parameters: AnswerParameters | None = None


class FeatureRequest(EmbedRequest):
    """Texts to embed; options stand beside them, as the client sends them."""

    encoding_format: Literal["float"] | None = None


def _vector_tag(body: object) -> str:
    is_similarity = isinstance(body, dict) and isinstance(body.get("inputs"), dict)
    return "<similarity>" if is_similarity else "<features>"


VectorRequest = Annotated[
    Annotated[FeatureRequest, Tag("<features>")]
    | Annotated[SimilarityRequest, Tag("<similarity>")],
    Discriminator(_vector_tag),
]


def _add_classify(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    example = {"inputs": "Where is my parcel?", "parameters": {"top_k": 3}}

    @router.post(path, **route_docs(list[object], example))
    async def text_classification(body: ClassifyRequest) -> Response:
        """[[{label, score}]]: for each input a list from best to worst."""
        info = await handler.pick("classify", name)
        items: list[str | TextPair] = as_list(body.inputs)
        documents = [_document(item) for item in items]
        parameters = body.parameters or ClassifyParameters()
        handled, labels = await classify(handler, info, documents, parameters)
        # TEI's clients, which send no parameters, want the labels of one input without a list
        # around them.
        has_parameters = "parameters" in body.model_fields_set
        is_tei = path in FIRST_MODEL_PATHS and not has_parameters
        if is_tei and not isinstance(body.inputs, list):
            return handled.reply(labels[0])
        return handled.reply(labels)


def _document(item: str | TextPair | list[str]) -> Text:
    if isinstance(item, str):
        return item
    if isinstance(item, list):
        return WordList.of(item)
    return item.text, item.text_pair


def _add_zero_shot(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    example = {
        "inputs": "My parcel has not come.",
        "parameters": {"candidate_labels": ["delivery", "payment"]},
    }

    @router.post(path, **route_docs(list[object], example))
    async def zero_shot_classification(body: ZeroShotRequest) -> Response:
        """[{label, score}] from best to worst for a text; a list of such lists for several."""
        info = await handler.pick("zero_shot", name)
        parameters = body.parameters or ZeroShotParameters()
        if not parameters.candidate_labels and not info.labels:
            raise ApiError("invalid", "parameters.candidate_labels is missing", field="parameters")
        texts = as_list(body.inputs)
        handled = await handler.predict(info, texts, field="inputs", options=parameters.options)
        return _reply(handled, body.inputs)


def _add_tag(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    example = {"inputs": "Call Ada at 555-0100.", "parameters": {"aggregation_strategy": "simple"}}

    @router.post(path, **route_docs(list[object], example))
    async def token_classification(body: TagRequest) -> Response:
        """[{entity_group or entity, score, word, start, end}] for a text, in a pair for its second
        one; a list of such lists for several. With is_split_into_words [{entity, score, index,
        word}] for a list of words; a list of such lists for several.
        """
        info = await handler.pick("tag", name)
        parameters = body.parameters or TagParameters()
        inputs: TagInputs = body.inputs
        if parameters.is_split_into_words and _is_word_list(inputs):
            inputs = WordList.of(inputs)
        documents = [_document(item) for item in _items(inputs)]
        options = parameters.options
        handled = await handler.predict(info, documents, field="inputs", options=options)
        return _reply(handled, inputs)


def _is_word_list(inputs: object) -> TypeGuard[list[str]]:
    return isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)


def _items(inputs: TagInputs) -> list[str | TextPair | list[str]]:
    """Return the documents of inputs; ApiError where they hold too many words."""
    items: list[str | TextPair | list[str]] = as_list(inputs)
    words = sum(len(item) for item in items if isinstance(item, list))
    if words > MOST_RESULTS:
        message = f"inputs hold {words:,} words; a request may hold {MOST_RESULTS:,}"
        raise ApiError("invalid", message, field="inputs")
    return items


def _add_fill(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    example = {"inputs": "The capital of France is [MASK].", "parameters": {"top_k": 3}}

    @router.post(path, **route_docs(list[object], example))
    async def fill_mask(body: FillRequest) -> Response:
        """[{score, token, token_str, sequence}] for a text with one mask; lists of them for several
        masks or texts.
        """
        info = await handler.pick("fill", name)
        parameters = body.parameters or FillParameters()
        texts = as_list(body.inputs)
        handled = await handler.predict(info, texts, field="inputs", options=parameters.options)
        return _reply(handled, body.inputs)


def _add_answer(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    question = {
        "question": "Where do I live?",
        "context": "My name is Merve and I live in Istanbul.",
    }
    example = {"inputs": question, "parameters": {}}

    @router.post(path, **route_docs(list[object] | Json, example))
    async def question_answering(body: AnswerRequest) -> Response:
        """{answer, score, start, end} of a question, or with top_k a list of them; a list for
        several questions.
        """
        info = await handler.pick("answer", name)
        documents = [(item.question, item.context) for item in as_list(body.inputs)]
        parameters = body.parameters or AnswerParameters()
        handled = await handler.predict(info, documents, field="inputs", options=parameters.options)
        return _reply(handled, body.inputs)


def _add_embed(router: APIRouter, handler: RequestHandler, name: str, path: str) -> None:
    example = {"inputs": ["What is Deep Learning?"], "normalize": True}

    @router.post(path, **route_docs(list[object], example))
    async def feature_extraction(body: VectorRequest) -> Response:
        """A vector for each input, or with chunk_tokens a list of {start, end, embedding}; with
        inputs {source_sentence, sentences} their cosines: sentence similarity.
        """
        info = await handler.pick("embed", name)
        if isinstance(body, SimilarityRequest):
            return await similarity(handler, info, body)
        return await embedded(handler, info, body)


TASK_ROUTES: dict[str, Callable[[APIRouter, RequestHandler, str, str], None]] = {
    "classify": _add_classify,
    "zero_shot": _add_zero_shot,
    "tag": _add_tag,
    "fill": _add_fill,
    "answer": _add_answer,
    "embed": _add_embed,
}
"""By task, what adds its route to a router: (router, handler, name of the model, path)."""


def routes(handler: RequestHandler) -> Sequence[APIRouter]:
    """Make the routes of the first model that name no model."""
    first = next(iter(handler.models.tasks))
    return [_task_route(handler, first, path, "Hugging Face") for path in FIRST_MODEL_PATHS]


def routes_of_model(handler: RequestHandler, name: str) -> Sequence[APIRouter]:
    """Make the route /models/{name} of a model."""
    tag = f"model {name}: {handler.models.tasks[name]}"
    return [_task_route(handler, name, f"/models/{name}", tag)]


def _task_route(handler: RequestHandler, name: str, path: str, tag: str) -> APIRouter:
    """Make the route of a model at `path`; none for a task that the client does not have."""
    router = new_router(TEI, tags=[tag])
    add = TASK_ROUTES.get(handler.models.tasks[name])
    if add is not None:
        add(router, handler, name, path)
    return router


def _reply(handled: HandledRequest, inputs: object) -> Response:
    """Answer several inputs with a list, and one with its result."""
    results = handled.response.results
    return handled.reply(results if isinstance(inputs, list) else results[0])


HUGGING_FACE = replace(
    TEI, name="Hugging Face", prefixes=("/models",), routes=routes, model_routes=routes_of_model
)
