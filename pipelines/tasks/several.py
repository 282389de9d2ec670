"""several: the answers of several models, from one reading of each text.

Texts are tokenised once for all models that read them alike, and go through an encoder once for all
models whose encoders are equal.

Shapes: T packed tokens, W windows, D documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import SeveralOptions
from pipelines.tasks.base import Task, task_class
from pipelines.tasks.outputs import Head, ModelOutputs, Pass, Results

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of several models, with its task."""

    prefix: str
    """Put before the names of its columns."""
    checkpoint: Checkpoint
    task: Task
    reading: int
    """The number of the reading whose windows it takes."""

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        columns = [column.with_name(self.prefix + column.name) for column in self.task.columns]
        return pa.schema(columns)

    @property
    def added_columns(self) -> pa.Schema:
        """The columns that it adds, and what is counted of its windows."""
        added = self.task.added_columns
        return pa.schema([column.with_name(self.prefix + column.name) for column in added])


@dataclass(frozen=True, kw_only=True)
class Several(Task):
    """Several models: each has the columns that it would add alone, under its prefix.

    A document has an answer where all models have one.
    """

    members: tuple[Member, ...]
    """In the order of the options."""

    options_class = SeveralOptions
    model_class = "modernbert.model:ModernBertModel"
    width = 1  # the values of all heads are laid end to end, number by number

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        """Each checkpoint is checked for its own task, by `from_checkpoint`."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: SeveralOptions) -> Several:
        """The task for the models that the options name; `checkpoint` is that of the first."""
        members: list[Member] = []
        for entry in options.entries:
            opened = checkpoint
            if members:
                opened = Checkpoint.open(entry.model, route=entry.options.route)
            task_cls = task_class(entry.options.task)
            try:
                task_cls.check(opened)
                task = task_cls.from_checkpoint(opened, entry.options)
            except ValueError as error:
                raise ValueError(f"models, {entry.prefix or entry.model}: {error}") from error
            reading = _reading(opened, task, members)
            member = Member(prefix=entry.prefix, checkpoint=opened, task=task, reading=reading)
            members.append(member)
        tasks = [member.task for member in members]
        strides = [task.stride for task in tasks if task.stride is not None]
        return cls(
            max_length=max(task.max_length for task in tasks),
            stride=min(strides, default=None),
            members=tuple(members),
        )

    @property
    def parts(self) -> tuple[Task, ...]:
        return tuple(member.task for member in self.members)

    @property
    def readings(self) -> int:
        return 1 + max(member.reading for member in self.members)

    @property
    def settings(self) -> Json:
        models: list[Json] = []
        for member in self.members:
            of_model = {"prefix": member.prefix, "task": member.task.options_class.task}
            models.append({**of_model, **member.task.settings})
        return {"models": models}

    def fingerprint(self, checkpoint: Checkpoint) -> str:  # noqa: ARG002
        return ",".join(member.task.fingerprint(member.checkpoint) for member in self.members)

    def model_name(self, checkpoint: Checkpoint) -> str:  # noqa: ARG002
        return ", ".join(member.task.model_name(member.checkpoint) for member in self.members)

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        return any(task.per_token for task in self.parts)

    @property
    def gives_token_vectors(self) -> bool:  # type: ignore[override]
        return any(task.gives_token_vectors for task in self.parts)

    @property
    def needs_details(self) -> bool:  # type: ignore[override]
        return any(task.needs_details for task in self.parts)

    @property
    def needs_documents(self) -> bool:
        return any(task.needs_documents for task in self.parts)

    @property
    def tokens_per_row(self) -> float | None:
        numbers_a_token = 0.0
        for task in self.parts:
            if task.tokens_per_row is not None:
                numbers_a_token += task.width / task.tokens_per_row
        return 1 / numbers_a_token if numbers_a_token else None

    @property
    def columns(self) -> pa.Schema:
        return _in_one_schema(member.columns for member in self.members)

    @property
    def added_columns(self) -> pa.Schema:
        return _in_one_schema(member.added_columns for member in self.members)

    @property
    def probe(self) -> Text:
        # That of a task which reads some texts alone is a text that all others read, too.
        probes = [task.probe for task in self.parts]
        return next((probe for probe in probes if probe != "a"), "a")

    def load(
        self,
        checkpoint: Checkpoint,  # noqa: ARG002
        device: torch.device,
        dtype: torch.dtype,
    ) -> nn.ModuleList:
        from torch import nn

        from modernbert.sharing import share_encoder

        models = nn.ModuleList()
        for member in self.members:
            model = member.task.load(member.checkpoint, device, dtype)
            share_encoder(model, models)
            models.append(model)
        return models

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:  # noqa: ARG002
        parts: list[Windows] = []
        for members in self._by_reading():
            member = _most_detailed(members)
            parts.append(member.task.encode(member.checkpoint.tokenizer, documents))
        return _end_to_end(parts)

    def passes(self, model: nn.ModuleList, windows: Windows) -> list[Pass]:
        passes: list[Pass] = []
        for reading, part in enumerate(self._parts(windows)):
            heads: list[Head] = []
            for member, own_model in zip(self.members, model, strict=True):
                if member.reading == reading:
                    heads.append((member.task, own_model))
            passes.append(Pass(part.input_ids, part.cu_seqlens, heads))
        return passes

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        decoded: dict[str, pa.Array] = {}
        for member, of_member in self._outputs(outputs):
            answers = member.task.decode(of_member)
            for column in member.task.columns.names:
                decoded[member.prefix + column] = answers.field(column)
        arrays = [decoded[name] for name in self.columns.names]
        return pa.StructArray.from_arrays(arrays, fields=list(self.columns))

    def answers(self, outputs: ModelOutputs) -> dict[str, pa.Array]:
        answers: dict[str, pa.Array] = {}
        for member, of_member in self._outputs(outputs):
            for name, values in member.task.answers(of_member).items():
                answers[member.prefix + name] = values
        return {name: answers[name] for name in self.added_columns.names}

    def results(self, outputs: ModelOutputs) -> Results:
        """Return a dictionary per document: the result of each model by its prefix."""
        results_of = {
            member.prefix: member.task.results(of_member)
            for member, of_member in self._outputs(outputs)
        }
        results: list[Json] = []
        for i in range(len(outputs.windows.n_tokens) // self.readings):
            by_prefix = {member.prefix: results_of[member.prefix][i] for member in self.members}
            results.append(by_prefix)
        return results

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        counts: Counter[str] = Counter()
        for member in self.members:
            columns = [answers.field(member.prefix + name) for name in member.task.columns.names]
            own = pa.StructArray.from_arrays(columns, fields=list(member.task.columns))
            for label, count in member.task.label_counts(own).items():
                counts[f"{member.prefix}{label}"] = count
        return counts

    def preview(self, answer: Json) -> str:
        previews: list[str] = []
        for member in self.members:
            own = {name: answer[member.prefix + name] for name in member.task.columns.names}
            previews.append(member.task.preview(own))
        return " · ".join(previews)

    def _by_reading(self) -> list[list[Member]]:
        """Return the members of each reading."""
        groups: list[list[Member]] = [[] for _ in range(self.readings)]
        for member in self.members:
            groups[member.reading].append(member)
        return groups

    def _parts(self, windows: Windows) -> list[Windows]:
        """Return the windows of each reading."""
        with_details: list[bool] = []
        for members in self._by_reading():
            with_details.append(any(member.task.needs_details for member in members))
        return _apart(windows, with_details)

    def _outputs(self, outputs: ModelOutputs) -> Iterator[tuple[Member, ModelOutputs]]:
        """Yield what each member decodes, in the order of their readings."""
        splits, values = outputs.splits, outputs.values.ravel()
        documents = outputs.documents[: len(outputs.windows.n_tokens) // self.readings]
        for members, windows in zip(self._by_reading(), self._parts(outputs.windows), strict=True):
            for member in members:
                width = member.task.width
                own_splits, splits = np.split(splits, [len(windows.lengths) + 1])
                own_values, values = np.split(values, [own_splits[-1]])
                yield (
                    member,
                    ModelOutputs(
                        documents=documents,
                        windows=windows,
                        values=own_values.reshape(-1, width),
                        splits=own_splits // width,
                        tokenizer=member.checkpoint.tokenizer,
                    ),
                )


def _reading(checkpoint: Checkpoint, task: Task, members: Sequence[Member]) -> int:
    """Return the number of the reading of a member that reads texts alike, or the next number."""
    for member in members:
        is_alike = task.reading is not None and task.reading == member.task.reading
        if is_alike and member.checkpoint.tokenizer.reads_like(checkpoint.tokenizer):
            return member.reading
    return 1 + max((member.reading for member in members), default=-1)


def _most_detailed(members: Sequence[Member]) -> Member:
    """Return the member whose windows serve all members of a reading."""
    return next((member for member in members if member.task.needs_details), members[0])


def _in_one_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    return pa.schema([column for schema in schemas for column in schema])


_OF_DOCUMENTS = ("n_tokens", "truncated")
_DETAILS = ("offsets", "word_ids", "sequence_ids", "token_tags")


def _end_to_end(parts: Sequence[Windows]) -> Windows:
    """Lay the windows of several readings of the same documents end to end.

    Documents of a later reading are counted on: of D, the first of the second reading is number D.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in ("input_ids", "start", *_OF_DOCUMENTS, *_DETAILS):
        arrays[name] = np.concatenate([getattr(part, name) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    documents: list[np.ndarray] = []
    rejected: dict[int, str] = {}
    first = 0
    for part in parts:
        documents.append(part.document + first)
        rejected |= {first + number: reason for number, reason in part.rejected.items()}
        first += len(part.n_tokens)
    return Windows(
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        document=np.concatenate(documents),
        rejected=rejected,
        **arrays,
    )


def _apart(windows: Windows, with_details: Sequence[bool]) -> list[Windows]:
    """Return the windows of each reading, as they were before `_end_to_end`.

    `with_details`: the readings whose tokens have details.
    """
    documents = len(windows.n_tokens) // len(with_details)
    parts: list[Windows] = []
    first_detail = 0
    for reading, has_details in enumerate(with_details):
        first = reading * documents
        start, stop = np.searchsorted(windows.document, [first, first + documents])
        first_token, end_token = windows.cu_seqlens[[start, stop]]
        arrays = {name: getattr(windows, name)[first : first + documents] for name in _OF_DOCUMENTS}
        tokens = int(end_token - first_token) if has_details else 0
        for name in _DETAILS:
            arrays[name] = getattr(windows, name)[first_detail : first_detail + tokens]
        first_detail += tokens
        rejected: dict[int, str] = {}
        for number, reason in windows.rejected.items():
            if first <= number < first + documents:
                rejected[number - first] = reason
        part = Windows(
            input_ids=windows.input_ids[first_token:end_token],
            cu_seqlens=windows.cu_seqlens[start : stop + 1] - first_token,
            document=windows.document[start:stop] - first,
            start=windows.start[start:stop],
            rejected=rejected,
            **arrays,
        )
        parts.append(part)
    return parts
