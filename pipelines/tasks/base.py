"""What every task is: which texts go in, how they become windows, what the model computes, which columns come out.

Shapes: T packed tokens, W windows, D documents, R rows of the model's answer, C numbers a row.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_type_hints

import numpy as np
import pyarrow as pa
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from modernbert.checkpoint import check_weights, fingerprint, load
from modernbert.tokenizer import Tokenizer
from modernbert.windows import Text, Windows
from pipelines.checkpoints import Checkpoint, check_kind

LongDocuments = Literal["truncate", "windows"]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ModelOutputs:
    """Documents, their windows, and what the model said of these."""

    documents: Sequence[Text]
    windows: Windows
    values: np.ndarray
    """(R, C) float32"""
    splits: np.ndarray
    """(W+1,): rows `splits[w]:splits[w + 1]` are of window w."""
    tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task with its options settled: a plain value, which travels to workers and goes into a fingerprint."""

    max_length: int
    """Tokens in a window at most."""
    stride: int | None
    """Tokens that neighbouring windows of a long document share; None: long documents are truncated."""

    name: ClassVar[str]
    model_class: ClassVar[Any]
    """The model that runs it, and the architecture that its checkpoints are of."""
    inputs: ClassVar[tuple[str, ...]] = ("text",)
    """What each text of a document is called."""
    needs_details: ClassVar[bool] = False
    """Whether answers need to know where in a text each token lies."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, *args: Any, **options: Any) -> Task:
        """The task for a Checkpoint; ValueError (its message begins with the option's name) for wrong options."""

    @property
    @abstractmethod
    def columns(self) -> pa.Schema:
        """What the task adds to a document."""

    @property
    @abstractmethod
    def width(self) -> int:
        """C"""

    @abstractmethod
    def decode(self, made: ModelOutputs) -> pa.StructArray:
        """One struct of `columns` for each document; those of documents without windows have no meaning."""

    @abstractmethod
    def results(self, made: ModelOutputs) -> list[Any]:
        """Plain Python values, one for each document, in the shape of Hugging Face's pipelines."""

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Raise ValueError where the checkpoint's weights are not of this task."""
        check_kind(checkpoint, cls.name, cls.model_class.__name__)
        check_weights(cls.model_class, checkpoint.encoder, checkpoint.config)
        checkpoint.check_tokenizer()

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model, with `forward_packed`."""
        return load(self.model_class, checkpoint.encoder, device=device, dtype=dtype)

    @property
    def forward_options(self) -> tuple[Any, ...]:
        """The options that `forward` depends on: windows of tasks with the same ones can share a packed batch."""
        return ()

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        """A digest of what answers depend on in the checkpoint."""
        return fingerprint(checkpoint.encoder)

    def reject(self, document: Text) -> str | None:  # noqa: ARG002
        """Why a corpus job sets a document aside, though it could be encoded; None where it does not."""
        return None

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        """Documents to windows; those that cannot be encoded are in `rejected` with the reason."""
        return tokenizer.encode(documents, self.max_length, stride=self.stride, details=self.needs_details)

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """How many rows of the answer each window has, (W,)."""
        return np.ones(len(cu_seqlens) - 1, dtype=np.int64)

    def forward(self, model: Any, batch: Any, ids: np.ndarray) -> Tensor:  # noqa: ARG002
        """The answer (R, C) for a packed batch, its windows' rows in order; `ids`: its token ids, on the host."""
        return model.forward_packed(batch)

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:  # noqa: ARG002
        """What a summary counts of some answers, by name."""
        return Counter()

    def scores(self, answers: pa.StructArray) -> pa.Array:
        """The scores of some answers, for a histogram."""
        return answers.field("score") if "score" in self.columns.names else pa.array([], pa.float32())

    @abstractmethod
    def preview(self, answer: dict[str, Any]) -> str:
        """An answer (by column) in a few words, for the terminal."""


def task_class(name: str) -> type[Task]:
    """The task called `name`."""
    module = importlib.import_module(f"pipelines.tasks.{name}")
    return getattr(module, name.capitalize())


def make_task(kind: type[Task], checkpoint: Checkpoint, options: dict[str, Any]) -> Task:
    """The task with `options` (None: as usual), of which each must be one of its own and of the right type.

    Raises ValueError that begins with the option's name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    types = get_type_hints(kind.from_checkpoint)
    known = [name for name in types if name not in ("checkpoint", "return")]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{unknown[0]} is no option of {kind.name}; it has {', '.join(known)}")
    for name, value in given.items():
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            what = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise ValueError(f"{name} {value!r}: {what}") from error
    return kind.from_checkpoint(checkpoint, **given)


def check_documents(kind: type[Task], documents: Sequence[Any]) -> None:
    """Raise ValueError that names the first document which is no text, or no pair, that the task takes."""
    for i, document in enumerate(documents):
        for text in document if isinstance(document, tuple) else (document,):
            if not isinstance(text, str):
                raise ValueError(f"input {i} holds {str(text)[:40]!r} ({type(text).__name__}), not text")
            if not text.isascii() and (half := _SURROGATE.search(text)):
                raise ValueError(f"input {i} holds {half[0]!r}, half a surrogate pair, which is no text")
        if isinstance(document, tuple) and kind.inputs == ("text",) and kind.name != "classify":
            raise ValueError(f"input {i} is a pair; {kind.name} takes single texts")
        if len(kind.inputs) == 2 and not (isinstance(document, tuple) and len(document) == 2):
            raise ValueError(f"input {i} is a single text; {kind.name} takes {' and '.join(kind.inputs)}")
        if kind.name == "answer" and not all(document):
            raise ValueError(f"input {i}: {kind.inputs[bool(document[0])]} is empty")
    if len({isinstance(document, str) for document in documents}) > 1:
        raise ValueError("texts and pairs cannot be mixed in one call")


def resolve_windowing(
    checkpoint: Checkpoint,
    max_length: int | None,
    long_documents: LongDocuments | None,
    stride: int | None,
    default: LongDocuments,
    default_length: int | None = None,
) -> dict[str, int | None]:
    """`max_length` and `stride` of a task whose long documents are `default` treated so.

    Raises ValueError for what the model cannot do.
    """
    longest = checkpoint.config.max_position_embeddings
    if max_length is not None and max_length > longest:
        raise ValueError(f"max_length {max_length} is above the model's {longest} positions")
    for name, value, least in (("max_length", max_length, 3), ("stride", stride, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} {value} must be at least {least}")
    configured = checkpoint.tokenizer.model_max_length or longest
    length = max_length or min(longest, configured, default_length or longest)
    if (long_documents or default) == "truncate":
        if stride is not None:
            raise ValueError(
                f"stride {stride} is for overlapping windows: long_documents must be windows, not truncate"
            )
        return {"max_length": length, "stride": None}
    most = max(length - 4, 0)
    stride = min(128, length // 2, most) if stride is None else stride
    if stride > most:
        raise ValueError(f"stride {stride} leaves nothing new in windows of max_length {length}")
    return {"max_length": length, "stride": stride}
