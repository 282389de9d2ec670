"""The columns of a step: those that hold a document's texts, those that it adds, and whether a
dataset fits them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from ray.data import Dataset, Schema

from pipelines.errors import UserError
from pipelines.inference.documents import clashing
from pipelines.input.documents import wrong_type
from pipelines.option_types import column_option
from pipelines.task_options import TaskOptions
from pipelines.tasks.base import Task

ERROR = "error"
"""Why a row has no answer."""


@dataclass(frozen=True)
class StepColumns:
    """What a step reads of a row, and what it adds."""

    texts: tuple[str, ...]
    """The columns of a document's texts."""
    list_texts: frozenset[str]
    """Those that may hold lists of texts."""
    reads_words: bool
    """Whether they hold lists of words."""
    added: pa.Schema
    """The columns that are added, as the dataset has them."""
    own_names: tuple[str, ...]
    """The same in the task's words, in their order."""

    def check(self, schema: pa.Schema | Schema) -> None:
        """Raise UserError for a dataset that does not fit; `schema`: Arrow's, or names alone."""
        missing = [name for name in self.texts if name not in schema.names]
        if missing:
            there = ", ".join(schema.names) or "no columns"
            raise UserError(f"column {missing[0]!r} is missing; the dataset has {there}")
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise UserError(f"column {twice[0]!r} is in the dataset twice; rename or drop one")
        if isinstance(schema, pa.Schema):
            for name in self.texts:
                stored = schema.field(name).type
                wanted = wrong_type(
                    stored, reads_words=self.reads_words, takes_lists=name in self.list_texts
                )
                if wanted is not None:
                    raise UserError(
                        f"column {name!r} holds {stored}, not {wanted}; cast it, or name another"
                    )
        if both := clashing(self.added.names, schema.names):
            alike = next(name for name in self.added.names if clashing([name], both[:1]))
            case = "" if alike == both[0] else f" (as {alike!r} for readers that ignore case)"
            raise UserError(
                f"column {both[0]!r} is in the dataset already{case}; give prefix= or "
                "output_columns=, or rename it"
            )


def step_columns(
    task: Task,
    texts: tuple[str, ...],
    list_texts: frozenset[str],
    prefix: object,
    output_columns: object,
) -> StepColumns:
    """Return the columns of a step.

    `prefix`: put before the name of each added column, but those that `output_columns` names: the
    task's names, and those that they have in the dataset. Raises UserError for other values.
    """
    if not isinstance(prefix, str):
        raise UserError(f"prefix {prefix!r} must be a text")
    types = {field.name: field.type for field in task.added_columns}
    types[ERROR] = pa.string()
    names = {name: prefix + name for name in types}
    names |= _output_names(output_columns, list(types), task.options_class.task)
    seen: list[str] = []
    for name in names.values():
        if clashing([name], seen):
            raise UserError(
                f"two output columns would be called {name!r}: give each a name of its own in "
                "output_columns"
            )
        seen.append(name)
    return StepColumns(
        texts=texts,
        list_texts=list_texts,
        reads_words=task.reads_words,
        added=pa.schema([(names[name], type_) for name, type_ in types.items()]),
        own_names=tuple(types),
    )


def _output_names(output_columns: object, known: list[str], task: str) -> dict[str, str]:
    """Return `output_columns` once it is a mapping from names that are `known` to others."""
    if output_columns is None:
        return {}
    example = f"{{{known[0]!r}: {'my_' + known[0]!r}}}"
    if not isinstance(output_columns, Mapping):
        raise UserError(f"output_columns {output_columns!r} must be a mapping, as {example}")
    for own, name in output_columns.items():
        if own not in known:
            raise UserError(
                f"output_columns names {own!r}, which {task} does not add; it adds "
                f"{', '.join(known)}"
            )
        if not isinstance(name, str) or not name:
            raise UserError(f"output_columns {own!r}: {name!r} must be a name, as {example}")
    return dict(output_columns)


def text_columns(
    options_class: type[TaskOptions], columns: tuple[object, ...], options: Mapping[str, object]
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the columns of a document's texts, however they are given, and the other options."""
    inputs = options_class.input_names()
    others = dict(options)
    named: dict[str, object] = {}  # by the text that a column holds
    for text in inputs:
        if column_option(text) in others:
            named[text] = others.pop(column_option(text))
    if named and columns:
        option = column_option(next(iter(named)))
        raise UserError(
            f"{option} and {columns[0]!r} both name columns: give the columns in one way"
        )
    wanted: list[object] = list(columns or options_class.inputs)
    if named:
        # Those that are not named have the name of their text, where the task needs them.
        default_columns = {text: text for text in options_class.inputs}
        column_of = default_columns | named
        wanted = [column_of[text] for text in inputs if text in column_of]
    names: list[str] = []
    for column in wanted:
        if not isinstance(column, str):
            raise UserError(f"column {column!r} must be a name; give several one by one: 'a', 'b'")
        names.append(column)
    counts = len(options_class.inputs), len(inputs)
    if len(names) not in counts:
        takes = " or ".join(map(str, dict.fromkeys(counts)))
        raise UserError(f"{options_class.task} takes {takes} columns of texts, not {len(names)}")
    return tuple(names), others


def known_schema(dataset: Dataset) -> pa.Schema | Schema | None:
    """Return the columns of a dataset, Arrow's or names alone; None before it runs, mostly."""
    known = dataset.schema(fetch_if_missing=False)
    return None if known is None else getattr(known, "base_schema", known)


def declare_schema(dataset: Dataset, schema: pa.Schema) -> None:
    """Let Ray Data know the columns of a dataset, which it would run for them otherwise.

    So that the next step is checked when it is made, with filters and limits between them.
    """
    object.__setattr__(dataset._logical_plan.dag, "infer_schema", lambda: schema)
