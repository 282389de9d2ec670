"""The contract between HTTP and the models: requests, responses, errors, and the client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from modernbert.stored import Json
from modernbert.text.windows import Text

MOST_RESULTS = 400_000
"""Results in an answer: labels, entities, candidates, weights of sparse vectors, or the tokens of
`tokenize`.
"""
MOST_CHARACTERS = 20_000_000
"""Characters in an answer that are not once in the request: of spans, and of texts with a mask
filled in.
"""
MOST_NUMBERS = 1 << 25
"""Numbers that the model gives for a request: 128 MiB."""
MOST_TOKEN_NUMBERS = 1 << 21
"""Numbers in an answer with token vectors, unless one document of the model's length has more."""
SMALL_REQUEST = 16
"""Documents of a request for which places are kept where large requests fill a queue."""
ErrorType = Literal[
    "invalid", "too_large", "unknown_model", "overloaded", "timeout", "unhealthy", "failed"
]


class ServeError(Exception):
    """The reason why a request as a whole has no answer."""

    def __init__(self, error_type: ErrorType, message: str, retry_after_s: float | None = None):
        super().__init__(error_type, message, retry_after_s)  # all, so that it can be pickled
        self.error_type = error_type
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class PredictRequest:
    """Documents for a model."""

    documents: Sequence[Text]
    options: Mapping[str, object] = field(default_factory=dict)
    """Options of the task for this call, as in `options.TASKS`."""
    truncate: bool = True
    """False: a document that is longer than the model reads has no answer, and is in `failed`."""
    truncation_side: str | None = None
    """left or right: where a longer document is cut off; None: where the checkpoint says."""
    timeout_s: float | None = None
    """The seconds after which nobody waits for the answer; None for the limit of the model."""
    client: str | None = None
    """Who asks: no client holds over half of a queue."""
    token_vectors: bool = False
    """Whether an embed model gives a float32 array (tokens, hidden) per document in place of a
    vector.
    """


@dataclass(frozen=True)
class PredictResponse:
    """An answer per document, in order."""

    results: Any  # what the task gives: values of JSON, or arrays
    """In the shape of the task's `results`; for embeddings a float32 array (D, dimensions) (of int8
    or uint8 where `precision` says so). None, or zeros in an array, where failed.
    """
    failed: dict[int, str]
    """Documents without an answer, with the reason."""
    invalid: frozenset[int]
    """The documents of `failed` whose text is the reason (too long, no mask, …); the others failed
    in the model.
    """
    n_tokens: Sequence[int]
    truncated: Sequence[bool]
    started: float
    """When its encoding began, in seconds since 1970."""
    tokenise_s: float
    queue_s: float
    """From the last token of the request's encoding to its first packed batch."""
    forward_s: float
    """From its first packed batch to the end of its last."""
    held_bytes: int
    """What the results take in memory, about."""


@dataclass(frozen=True)
class Info:
    """What is known of a model."""

    name: str
    model: str
    """Folder or hub id, as in the configuration."""
    revision: str | None
    task: str
    device: str
    dtype: str
    max_length: int
    """Tokens that the model reads at a time."""
    budget_tokens: int
    max_documents: int
    """Documents that a request of one client may hold."""
    labels: tuple[str, ...] = ()
    """The labels of classify and tag, in the order of their ids."""
    problem_type: str | None = None
    """The problem_type in config.json of a classifier."""
    dimensions: int | None = None
    """The numbers in a vector of embed."""
    pooling: str | None = None
    """The pooling of embed."""
    prompts: dict[str, str] = field(default_factory=dict)
    """The prompts of embed, by name."""
    similarity: str | None = None
    """How the vectors of embed are to be compared, where the checkpoint says so."""
    mask_token: str | None = None
    """The mask token of fill."""
    model_type: Json = field(default_factory=dict)
    """The model_type in `/info` of text-embeddings-inference: what the model does, with its
    details.
    """
    windows: bool = False
    """Whether texts that are longer are read in windows."""
    openai_truncate: bool = False
    """Whether OpenAI's route cuts inputs that are too long off."""
    openai_token_ids: bool = False
    """Whether OpenAI's route takes token ids."""
    attention: str | None = None
    """How attention is computed: by which backend of a GPU, or on a CPU in half precision."""
    fusions: str | None = None
    """How layers run on a GPU, as far as there was a choice."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text; arrays, since a request may have many."""

    ids: np.ndarray
    """(T,) int32."""
    tokens: list[str]
    """The tokens as the vocabulary spells them."""
    offsets: np.ndarray
    """(T, 2) int32: the characters [start, end) of each token in the text; -1 for special
    tokens.
    """

    @property
    def held_bytes(self) -> int:
        """What they take in memory, about: tokens of one id share their spelling."""
        return self.ids.nbytes + self.offsets.nbytes + 8 * len(self.tokens)


class OnlineModel(Protocol):
    """A model in this process or in replicas; each method raises ServeError."""

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request."""

    async def info(self) -> Info:
        """Return what is known of the model."""

    async def tokenize(
        self, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        """Tokenise texts whole, with or without special tokens.

        More than MOST_RESULTS tokens are refused. `client`: who asks, as in PredictRequest.
        """

    async def decode(
        self,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        """Decode lists of token ids; those that the model does not have are invalid."""

    async def check_health(self) -> None:
        """Raise ServeError if the model cannot answer now."""


class ModelClient:
    """Calls models by name, wherever they run.

    Its methods raise ServeError: of type unknown_model where there is no such model, or what the
    model raises.
    """

    def __init__(
        self, models: Mapping[str, OnlineModel], tasks: dict[str, str], aliases: dict[str, str]
    ):
        self.models = models
        self.tasks = tasks
        """The task of each model, in the order of the configuration."""
        self.aliases = aliases
        """The model of each other name that requests may call it."""

    async def predict(self, model: str, request: PredictRequest) -> PredictResponse:
        """Answer a request."""
        return await self._named(model).predict(request)

    async def info(self, model: str) -> Info:
        """Return what is known of a model."""
        return await self._named(model).info()

    async def tokenize(
        self, model: str, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        """Tokenise texts, as OnlineModel does."""
        return await self._named(model).tokenize(texts, special, client)

    async def decode(
        self,
        model: str,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        """Decode lists of token ids, as OnlineModel does."""
        return await self._named(model).decode(ids, skip_special_tokens, client)

    async def unready(self) -> dict[str, str]:
        """Return the models that cannot answer now, with the reason."""
        names = list(self.models)
        reasons = await asyncio.gather(*(_reason_unready(self.models[name]) for name in names))
        return {name: reason for name, reason in zip(names, reasons, strict=True) if reason}

    def _named(self, model: str) -> OnlineModel:
        if model not in self.models:
            known = ", ".join(self.models)
            message = f"model {model[:80]!r} is unknown; known are {known}"
            raise ServeError("unknown_model", message)
        return self.models[model]


async def _reason_unready(model: OnlineModel) -> str | None:
    try:
        await model.check_health()
    except ServeError as error:
        return str(error)
    return None
