"""The stages of a step, without Ray: a batch of rows to windows, and the model's values to rows.

Between them the batch travels as ONE row, as a shard of a corpus job does (wire.py), with its
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from modernbert.text.windows import Text
from pipelines.dataset.columns import ERROR, StepColumns
from pipelines.inference.documents import accepted_documents, answer_columns, encode
from pipelines.inference.loading import ModelRun
from pipelines.inference.outputs import model_outputs
from pipelines.input.documents import readable
from pipelines.input.shards import Rows, Shard
from pipelines.raydata import wire

MAX_CHARACTERS = 5_000_000
"""Longer texts are cut where long documents are truncated, and have no answer where they are read
in windows.
"""


@dataclass(frozen=True)
class Step:
    """What the stages need to know."""

    run: ModelRun
    columns: StepColumns


def tokenise(step: Step, table: pa.Table) -> pa.Table:
    """Turn a batch of rows into one row: their windows, and the rows themselves."""
    step.columns.check(table.schema)
    documents, rows, rejected = _documents(step, table)
    windows = encode(step.run, documents, MAX_CHARACTERS)
    rows = rows * step.run.task.readings
    rejects = wire.rejects_of_tokenising(rejected, windows, rows)
    batch = Shard(name="batch", format="", pieces=())
    stored = Rows(table, np.arange(len(table)), [])
    return wire.tokenised_row(
        batch, windows, np.array(rows, dtype=np.int64), rejects, 0.0, stored=stored
    )


def _documents(step: Step, table: pa.Table) -> tuple[list[Text], list[int], list[tuple[int, str]]]:
    """Return the documents of a batch, their rows, and the rows without one, with the reason."""
    columns = [table[name] for name in step.columns.texts]
    too_long = f"longer than {MAX_CHARACTERS} characters"
    return accepted_documents(step.run.task, columns, MAX_CHARACTERS, too_long)


def answer(step: Step, table: pa.Table) -> pa.Table:
    """Return the rows of a batch with their answers."""
    rows = wire.stored_of(table).table
    error = table["error"][0].as_py()
    if error:
        error = error.partition("\n")[0]  # a traceback may follow
    if error and table["cause"][0].as_py() == wire.START:
        raise RuntimeError(f"no actor starts: {error}")

    rows_of_documents = wire.rows_of_documents(table, step.run.task.readings)
    reasons = {reject["row"]: reject["reason"] for reject in wire.rejects_of(table)}
    if error:
        # Rows that were rejected before keep their own reasons.
        reasons = dict.fromkeys(rows_of_documents.tolist(), error) | reasons
    document_of_row = np.full(len(rows), -1)
    document_of_row[rows_of_documents] = np.arange(len(rows_of_documents))
    document_of_row[list(reasons)] = -1
    has_no_answer = document_of_row < 0
    rows_without_answer = set(np.flatnonzero(has_no_answer).tolist())
    assert rows_without_answer == set(reasons), "a row has neither an answer nor a reason"

    columns = {name: rows[name] for name in rows.column_names}
    if reasons:
        # A text that is not UTF-8 would break whatever reads the row next.
        for name in step.columns.texts:
            columns[name] = readable(rows[name])
    answers = {}
    if not error:
        documents = pa.array(np.maximum(document_of_row, 0), mask=has_no_answer)
        answers = _answers(step, table, rows, documents)
    reason_of_row = [reasons.get(row) for row in range(len(rows))]
    answers[ERROR] = pa.array(reason_of_row, pa.string())
    for own_name, field in zip(step.columns.own_names, step.columns.added, strict=True):
        values = answers.get(own_name)
        columns[field.name] = pa.nulls(len(rows), field.type) if values is None else values
    return pa.table(columns)


def _answers(
    step: Step, table: pa.Table, rows: pa.Table, documents: pa.Array
) -> dict[str, pa.Array]:
    """Decode the answers of a batch; `documents`: the number of each row's document, or null."""
    task = step.run.task
    documents_of_batch = _documents(step, rows)[0] if task.needs_documents else None
    values = wire.array_of(table, "values")
    splits = wire.array_of(table, "splits")
    windows = wire.windows_of(table)
    tokenizer = step.run.model.tokenizer
    outputs = model_outputs(task, tokenizer, documents_of_batch, windows, values, splits)
    return answer_columns(task, outputs, documents)
