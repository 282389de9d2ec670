"""What a route asks of a model and what it gets: the one contract between HTTP and the predictors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from modernbert.windows import Text

ErrorType = Literal["invalid", "too_large", "unknown_model", "overloaded", "timeout", "unhealthy", "failed"]


class ServeError(Exception):
    """Why a request as a whole has no answer."""

    def __init__(self, error_type: ErrorType, message: str, retry_after_s: float | None = None):
        super().__init__(error_type, message, retry_after_s)  # all of it, so that it can be pickled
        self.error_type, self.message, self.retry_after_s = error_type, message, retry_after_s

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class PredictRequest:
    """Documents for one model."""

    documents: Sequence[Text]
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task for this call, under the task's own names (those of its `from_checkpoint`)."""
    truncate: bool = True
    """False: a document that is longer than the model reads has no answer, and is named in `rejected`."""
    timeout_s: float | None = None
    """Seconds until the answer is of no use any more; None for the service's own limit."""
    token_vectors: bool = False
    """Of an embed model: a float32 array (tokens, hidden) for each document in place of its vector."""


@dataclass(frozen=True)
class PredictResponse:
    """One answer a document, in order."""

    results: Sequence[Any]
    """In the shape of the task's `results`; for embeddings a float32 array (D, dimensions) (of int8 or uint8 where
    `precision` says so). None, or zeros in an array, where failed."""
    failed: dict[int, str]
    """Documents without an answer, and why."""
    invalid: frozenset[int]
    """Those of `failed` whose text is the reason (too long, no mask, …); the others failed in the model."""
    n_tokens: Sequence[int]
    truncated: Sequence[bool]
    tokenise_s: float
    queue_s: float
    """From the last token of the request's encoding to its first packed batch."""
    forward_s: float
    """From its first packed batch to the end of its last."""


@dataclass(frozen=True)
class Info:
    """What is told of a model."""

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
    max_queued_documents: int
    labels: tuple[str, ...] = ()
    """Of classify and tag, in the order of their ids."""
    problem_type: str | None = None
    """Of classify: what config.json states, if it does."""
    dimensions: int | None = None
    """Of embed."""
    pooling: str | None = None
    """Of embed."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Of embed: prompts by name."""
    mask_token: str | None = None
    """Of fill."""
    model_type: dict[str, Any] = field(default_factory=dict)
    """What text-embeddings-inference calls so in its `/info`: a key for what the model does, with its details."""


@dataclass(frozen=True)
class Tokens:
    """A text as the model's tokenizer sees it."""

    ids: list[int]
    tokens: list[str]
    """As the vocabulary spells them."""
    offsets: list[tuple[int, int] | None]
    """Characters [start, end) of each in the text; None for special tokens."""


class ModelClient(Protocol):
    """The models that are online. Each method raises ServeError, of kind unknown_model for a name that is none."""

    tasks: dict[str, str]
    """Each model's task, in the order of the configuration."""

    async def predict(self, model: str, request: PredictRequest) -> PredictResponse:
        """Answers for `request`."""

    async def info(self, model: str) -> Info:
        """What is told of a model."""

    async def tokenize(self, model: str, texts: Sequence[str], special: bool = True) -> list[Tokens]:
        """Texts as the model's tokenizer sees them, whole, with or without the special tokens round them."""

    async def decode(self, model: str, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The texts that lists of ids stand for; kind invalid for an id that the model does not have."""

    async def unready(self) -> dict[str, str]:
        """The models that cannot answer now, with the reason: empty when the service is ready."""
