"""Task: the texts that go in, how they become windows, what the model computes, and the columns
that come out.

A job's readers and committers use tasks without a model: torch is imported only where one is loaded
or run.

Shapes: T packed tokens, W windows, D documents, R rows of the model's values, C numbers a row.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict, TypeVar

import numpy as np
import pyarrow as pa

from modernbert.encoders.module_files import purpose
from modernbert.files import fingerprint
from modernbert.stored import CheckpointPath, Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import TASKS
from pipelines.task_options import TaskOptions
from pipelines.tasks.checks import Comparison
from pipelines.tasks.outputs import ModelOutputs, Pass, Results

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from modernbert.packing import PackedBatch

Options = TypeVar("Options", bound=TaskOptions)
COUNTS = pa.schema([("n_tokens", pa.int32()), ("n_windows", pa.int32()), ("truncated", pa.bool_())])
"""The columns that every task adds beside its own."""


NOT_IN_FINGERPRINT = {"in_fingerprint": False}
"""The metadata of a field of a task that the answers of a corpus job do not depend on."""


class GoldTypes(NamedTuple):
    """What a column of gold must hold."""

    content: str
    """In words."""
    fit: Callable[[pa.DataType], bool]
    integers: str = ""
    """What integers mean, where that is to be said."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task with its options resolved for a checkpoint: a plain value that travels to workers.

    Its fields are part of the fingerprint of a corpus job's output, except for those that are
    NOT_IN_FINGERPRINT.
    """

    max_length: int
    """The most tokens in a window."""
    stride: int | None
    """Tokens that neighbouring windows of a long document share; None if long documents are
    truncated.
    """

    options_class: ClassVar[type[TaskOptions]]
    """Its entry in `options.TASKS`."""
    model_class: ClassVar[str]
    """The model that runs it, as "module:class"; config.json must name the class, unless it is the
    plain encoder.
    """
    per_token: ClassVar[bool] = False
    """Whether the model's head runs on each token, which takes memory."""
    gives_token_vectors: ClassVar[bool] = False
    """Whether an answer has a vector for each token of a text, which is far larger than the text.
    """
    shows_texts: ClassVar[bool] = False
    """Whether results hold texts: words, spans, or texts with a mask filled in."""
    counted: ClassVar[tuple[str, str] | None] = None
    """A column of lists whose items and bytes the summary and the report count, and what the items
    are called.
    """
    doubt_columns: ClassVar[tuple[str, ...]] = ()
    """The columns that `doubt` reads; none where answers do not say how sure they are."""
    reads_words: ClassVar[bool] = False
    """Whether a document is a list of words, a WordList."""
    needs_details: ClassVar[bool] = False
    """Whether decoding needs the offsets, word ids and sequence ids of the tokens."""

    @property
    def tokens_per_row(self) -> float | None:
        """How many tokens there are for a row of values, at least or about; None: a document has
        one row, or few.
        """
        return 1 if self.per_token or self.gives_token_vectors else None

    @property
    def needs_documents(self) -> bool:
        """Whether decoding needs the documents themselves."""
        return self.needs_details

    # Options are Any here: they are those of each task's own `options_class`.
    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: Any) -> Task:
        """The task for a checkpoint.

        `options`: an instance of `options_class`. Raises ValueError, whose message begins with the
        option's name, for options that do not fit the checkpoint.
        """

    @classmethod
    def for_pipeline(cls, checkpoint: Checkpoint, options: Any) -> Task:
        """The task as `pipeline` runs it, where transformers' defaults differ from those of the
        corpus job.
        """
        return cls.from_checkpoint(checkpoint, options)

    @classmethod
    def read_files(cls, options: Options) -> Options:
        """Return options that name no file, with the content of one that is named: a service reads
        it once.
        """
        return options

    @property
    @abstractmethod
    def columns(self) -> pa.Schema:
        """The columns of the task's own that a corpus job adds."""

    @property
    def added_columns(self) -> pa.Schema:
        """All columns that a corpus job adds: those of the task, and COUNTS."""
        return pa.schema([*self.columns, *COUNTS])

    @property
    def readings(self) -> int:
        """How often a document is tokenised: once, unless several models read it each in its way.

        `Windows` of D documents that are read K times number them K * D: a reading after the other.
        """
        return 1

    @property
    def reading(self) -> tuple[object, ...] | None:
        """What the windows of a text depend on beside the tokenizer, where that is little: tasks
        that agree in it have the same windows. None: they are the task's own.
        """
        if type(self).encode is Task.encode:
            return self.max_length, self.stride
        return None

    @property
    def parts(self) -> tuple[Task, ...]:
        """The tasks that it consists of: itself, unless there are several models."""
        return (self,)

    @property
    def settings(self) -> Json:
        """The options that answers depend on, for the fingerprint of an output."""
        names = [each.name for each in fields(self) if each.metadata.get("in_fingerprint", True)]
        values = asdict(self)
        return {name: values[name] for name in names}

    def model_name(self, checkpoint: Checkpoint) -> str:
        """The model's name, for people."""
        return checkpoint.name

    @property
    @abstractmethod
    def width(self) -> int:
        """C, the numbers in a row of the model's values."""

    @abstractmethod
    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        """Turn the model's values into a struct of `columns` per document; any for one without
        windows.
        """

    # A result is of any type: a number, a dictionary, a list or an array, as transformers has it.
    @abstractmethod
    def results(self, outputs: ModelOutputs) -> Results:
        """Turn the model's values into one plain Python value per document, as transformers'
        pipelines do.
        """

    def answers(self, outputs: ModelOutputs) -> dict[str, pa.Array]:
        """Return `added_columns` by name, with a value for each document."""
        windows = outputs.windows
        decoded = self.decode(outputs)
        counts_D = np.bincount(windows.document, minlength=len(windows.n_tokens))
        answers = {name: decoded.field(name) for name in self.columns.names}
        answers["n_tokens"] = pa.array(windows.n_tokens)
        answers["n_windows"] = pa.array(counts_D, pa.int32())
        answers["truncated"] = pa.array(windows.truncated)
        return answers

    def response(self, outputs: ModelOutputs) -> Sequence[Any] | np.ndarray:
        """Return what an online model answers per document: the `results`, or an array with a row
        per document.
        """
        return self.results(outputs)

    def for_tokens(self, checkpoint: Checkpoint) -> Task:  # noqa: ARG002
        """Return the task that gives a vector per token in place of this one; ValueError if there
        is none.
        """
        raise ValueError(
            f"token vectors come from embed models; this one is for {self.options_class.task}"
        )

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Raise ValueError if the checkpoint's architecture, weights or tokenizer do not fit the
        task.
        """
        from modernbert.checkpoint import check_weights

        architecture = cls.model_class.rpartition(":")[2]
        if architecture != "ModernBertModel":  # the encoder, which every checkpoint holds
            check_architecture(checkpoint, cls.options_class.task, architecture)
        check_weights(resolve_name(cls.model_class), checkpoint.encoder, checkpoint.config)
        checkpoint.check_tokenizer()

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Load the model, which has `forward_packed`."""
        from modernbert.checkpoint import load

        model_class = resolve_name(self.model_class)
        model: nn.Module = load(model_class, checkpoint.encoder, device=device, dtype=dtype)
        return model

    @property
    def forward_options(self) -> tuple[object, ...]:
        """The options that `forward` depends on: windows of tasks that agree in them can share a
        packed batch.
        """
        return ()

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        """Return a digest of the checkpoint's files that answers depend on."""
        return fingerprint(checkpoint.encoder)

    @classmethod
    def refusal(cls, document: Text, *, of_corpus: bool) -> str | None:  # noqa: ARG003
        """Return the reason why the task has no answer for a document of its kind, or None.

        `of_corpus`: whether it is a row of a corpus, which is rejected; else a call in memory or
        online, which fails.
        """
        return None

    @property
    def probe(self) -> Text:
        """A short document that can always be answered, for a check of the model's health."""
        return ("a", "a") if len(self.options_class.inputs) == 2 else "a"

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        """Return what `/info` shows of the model beside what every task has: fields of
        `serve.protocol.Info`.
        """
        return {}

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        """Tokenise documents into windows; those that cannot be encoded are in `rejected` with the
        reason.
        """
        return tokenizer.encode(
            documents, self.max_length, stride=self.stride, details=self.needs_details
        )

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray | None:  # noqa: ARG002
        """Return how many rows of values each window has, (W,): one, unless a task overrides it.

        None: only the model knows. Then `forward` puts the number of its window in the batch before
        each row.
        """
        return np.ones(len(cu_seqlens) - 1, dtype=np.int64)

    def most_results(self, windows: Windows) -> int | None:
        """Return how many results (labels, entities, candidates) the answers for these windows hold
        at most.

        None: only the model knows. Then `count_results` counts those of a response.
        """
        return len(windows.n_tokens)

    def most_characters(
        self,
        tokenizer: Tokenizer,  # noqa: ARG002
        windows: Windows,  # noqa: ARG002
    ) -> int:
        """Return how many characters the answers for these windows hold at most, beside labels and
        texts of which each stretch of a document is shown once.
        """
        return 0

    def count_results(self, response: Sequence[Any] | np.ndarray) -> int:
        """Return how many results a response holds, in which documents without an answer are
        None.
        """
        return len(response)

    # The model is Any here: it is the one that each task's own `load` returns.
    def forward(
        self,
        model: Any,
        batch: PackedBatch,
        ids: np.ndarray,  # noqa: ARG002
    ) -> Tensor | Callable[[], Tensor]:
        """Run the model on a packed batch and return its values (R, C), the rows of its windows in
        order.

        `ids`: the batch's token ids (T,) on the host. Nothing here may wait for the device: where
        it alone knows how many rows there are, what is returned gives them when it is called.
        """
        values: Tensor = model.forward_packed(batch)
        return values

    def passes(self, model: Any, windows: Windows) -> list[Pass]:
        """Return what goes through the models of several `parts`."""
        raise NotImplementedError

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:  # noqa: ARG002
        """Count answers by label, for the summary of a run."""
        return Counter()

    def scores(self, answers: pa.StructArray) -> pa.Array:
        """Return the scores of answers, for the report's histogram."""
        if "score" in self.columns.names:
            return answers.field("score")
        return pa.array([], pa.float32())

    @property
    def says_how_sure(self) -> bool:
        """Whether `doubt` knows of answers how unsure they are."""
        return bool(self.doubt_columns)

    @property
    def labels_without_threshold(self) -> Sequence[str]:
        """The labels whose thresholds a job is to find on gold."""
        return ()

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        """Return how unsure each answer is, (D,), from 0 to 1; NaN where that is not known.

        `answers`: a struct that has the `doubt_columns`.
        """
        return np.full(len(answers), np.nan)

    def gold_types(self) -> GoldTypes:
        """Return what a column of gold must hold; ValueError where answers cannot be compared."""
        raise ValueError(
            f"gold_column is not available: {self.options_class.task} of this model gives nothing "
            "that it could be compared with"
        )

    def compare(
        self,
        outputs: ModelOutputs,
        answered: np.ndarray,
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        """Compare answers with gold, whose type is one of `gold_types`.

        Args:
            outputs: what was decoded.
            answered: (D,), the documents of the answers.
            answers: their `columns`, (D,).
            gold: (D,).
        """
        raise NotImplementedError

    @abstractmethod
    def preview(self, answer: Json) -> str:
        """Describe an answer, given by column, in a few words for the terminal."""


def task_class(name: str) -> type[Task]:
    """Load the class of a task, one of `options.TASKS`."""
    implementation: type[Task] = resolve_name(TASKS[name].implementation)
    return implementation


def fingerprint_with(checkpoint: Checkpoint, files: Iterable[CheckpointPath]) -> str:
    """Return a digest of a checkpoint's encoder and of the files of what stands on it."""
    digest = hashlib.sha256(fingerprint(checkpoint.encoder).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check_architecture(checkpoint: Checkpoint, task: str, architecture: str) -> None:
    """Raise ValueError, with the tasks that fit, if config.json names another one."""
    configured = next(iter(checkpoint.raw_config.get("architectures") or []), None)
    if configured in (None, architecture):
        return
    tasks = [options.fits[configured] for options in TASKS.values() if configured in options.fits]
    advice = f"no task here runs a {configured}"
    if tasks:
        first, *others = tasks
        advice = f"it fits {first} (or {', '.join(others)})" if others else f"it fits {first}"
    # Files of sentence-transformers say more than the architecture does.
    advice = purpose(checkpoint.folder) or advice
    raise ValueError(
        f"model {str(checkpoint.folder)!r} is a {configured}: {advice}; {task} runs a "
        f"{architecture}"
    )


class LabelMaps(TypedDict):
    """Labels by their ids, and ids by their labels."""

    id2label: dict[str, str]
    label2id: dict[str, int]


def label_maps(labels: Sequence[str]) -> LabelMaps:
    """Return the maps of labels in the order of their ids, as text-embeddings-inference gives
    them.
    """
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
