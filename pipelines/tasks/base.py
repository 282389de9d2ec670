"""What every task is: which texts go in, how they become windows, what the model computes, which columns come out.

Shapes: T packed tokens, W windows, D documents, R rows of the model's answer, C numbers a row.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from modernbert.checkpoint import check_weights, fingerprint, load
from modernbert.tokenizer import Tokenizer
from modernbert.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import TASKS, TaskOptions
from pipelines.tasks.pipeline import Pipeline

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

    options_class: ClassVar[type[TaskOptions]]
    """Its entry in `options.TASKS`."""
    model_class: ClassVar[Any]
    """The model that runs it, and the architecture that its checkpoints are of."""
    pipeline_class: ClassVar[type[Pipeline]] = Pipeline
    """The shape of its calls in memory."""
    takes_pairs: ClassVar[bool] = False
    """Whether a document may be a pair of texts where `inputs` names a single one."""
    needs_details: ClassVar[bool] = False
    """Whether answers need to know where in a text each token lies."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: Any) -> Task:
        """The task for a checkpoint.

        `options`: an instance of `options_class`. Raises ValueError, whose message begins with the option's name, for
        options that do not fit the checkpoint.
        """

    @classmethod
    def for_pipeline(cls, checkpoint: Checkpoint, options: Any) -> Task:
        """The task as `pipeline` runs it, where transformers' defaults differ from those of the corpus job."""
        return cls.from_checkpoint(checkpoint, options)

    @property
    @abstractmethod
    def columns(self) -> pa.Schema:
        """What the task adds to a document."""

    @property
    @abstractmethod
    def width(self) -> int:
        """C"""

    @abstractmethod
    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        """One struct of `columns` for each document; those of documents without windows have no meaning."""

    @abstractmethod
    def results(self, outputs: ModelOutputs) -> list[Any]:
        """Plain Python values, one for each document, in the shape of Hugging Face's pipelines."""

    def response(self, outputs: ModelOutputs) -> Sequence[Any] | np.ndarray:
        """One answer a document as an online model gives it: as `results`, or an array whose rows they are."""
        return self.results(outputs)

    def for_tokens(self, checkpoint: Checkpoint) -> Task:  # noqa: ARG002
        """The task that answers with a vector for each token; ValueError where there is none."""
        raise ValueError(f"token vectors come from embed models; this one is for {self.options_class.task}")

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Raise ValueError where the checkpoint's weights are not of this task."""
        check_architecture(checkpoint, cls.options_class.task, cls.model_class.__name__)
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

    @classmethod
    def check_documents(cls, documents: Sequence[Any]) -> None:
        """Raise ValueError that names the first document of a call that is no text, or no pair, that the task takes."""
        name, inputs = cls.options_class.task, tuple(cls.options_class.inputs)
        for i, document in enumerate(documents):
            for text in document if isinstance(document, tuple) else (document,):
                if not isinstance(text, str):
                    raise ValueError(f"input {i} holds {str(text)[:40]!r} ({type(text).__name__}), not text")
                if not text.isascii() and (half := _SURROGATE.search(text)):
                    raise ValueError(f"input {i} holds {half[0]!r}, half a surrogate pair, which is no text")
            if isinstance(document, tuple) and len(inputs) == 1 and not cls.takes_pairs:
                raise ValueError(f"input {i} is a pair; {name} takes single texts")
            if len(inputs) == 2 and not (isinstance(document, tuple) and len(document) == 2):
                raise ValueError(f"input {i} is a single text; {name} takes {' and '.join(inputs)}")
            if reason := cls.refuse(document):
                raise ValueError(f"input {i}: {reason}")
        if len({isinstance(document, str) for document in documents}) > 1:
            raise ValueError("texts and pairs cannot be mixed in one call")

    @classmethod
    def refuse(cls, document: Text) -> str | None:  # noqa: ARG003
        """Why a call, in memory or online, with this document is refused; None where it is taken."""
        return None

    @property
    def probe(self) -> Text:
        """A short document that can always be answered, for a check of the model's health."""
        return ("a", "a") if len(self.options_class.inputs) == 2 else "a"

    def info(self, checkpoint: Checkpoint) -> dict[str, Any]:  # noqa: ARG002
        """What `/info` tells of a model beside what all tasks have: fields of `serve.protocol.Info`."""
        return {}

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
    """The class of the task called `name`, one of `options.TASKS`."""
    return resolve_name(TASKS[name].implementation)


def check_architecture(checkpoint: Checkpoint, task: str, *architectures: str) -> None:
    """Raise ValueError where config.json names another architecture than `architectures`, with the tasks that fit."""
    configured = next(iter(checkpoint.raw_config.get("architectures") or []), None)
    if configured in (None, *architectures):
        return
    tasks = [options.fits[configured] for options in TASKS.values() if configured in options.fits]
    fits = f"no task here runs a {configured}"
    if tasks:
        fits = f"it fits {tasks[0]}" + (f" (or {', '.join(tasks[1:])})" if len(tasks) > 1 else "")
    raise ValueError(
        f"model {str(checkpoint.folder)!r} is a {configured}: {fits}; {task} runs a {' or '.join(architectures)}"
    )


def label_maps(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`id2label` and `label2id` of labels in the order of their ids, as text-embeddings-inference gives them."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def resolve_windowing(
    checkpoint: Checkpoint, options: TaskOptions, default_length: int | None = None
) -> dict[str, int | None]:
    """`max_length` and `stride` of a task; ValueError for what the model cannot do."""
    max_length, stride = options.max_length, options.stride
    longest = checkpoint.config.max_position_embeddings
    if max_length is not None and max_length > longest:
        raise ValueError(f"max_length {max_length} is above the model's {longest} positions")
    configured = checkpoint.tokenizer.model_max_length or longest
    length = max_length or min(longest, configured, default_length or longest)
    if options.long_documents == "truncate":
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
