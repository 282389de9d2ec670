"""Documents through a model: which are accepted, their windows, the columns of their answers."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from modernbert.text.windows import Text, Windows
from pipelines.inference.loading import ModelRun
from pipelines.input.documents import cut, longest, valid_documents
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs

ADDED = ("n_tokens", "n_windows", "truncated")
"""The columns that all tasks add beside their own."""


def clashing(added: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that one of `added` has, too, for readers that ignore case."""
    folded = {name.casefold() for name in added}
    return [name for name in names if name.casefold() in folded]


def accepted_documents(
    task: Task, columns: list[pa.ChunkedArray], max_characters: int, too_long: str
) -> tuple[list[Text], list[int], list[tuple[int, str]]]:
    """Return the documents in `columns`, their rows, and the rows that hold none or that the task
    rejects.

    `too_long`: the reason for a document of more than `max_characters`, which is rejected where it
    is read in windows.
    """
    documents, rows, rejects = valid_documents(
        columns, task.options_class.input_names(len(columns))
    )
    most = max_characters if task.stride is not None else None
    long = [too_long if most and longest(document) > most else None for document in documents]
    reasons = [
        reason or task.reject(document) for reason, document in zip(long, documents, strict=True)
    ]
    rejects += [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    return [documents[i] for i in kept], [rows[i] for i in kept], rejects


def encode(run: ModelRun, documents: list[Text], max_characters: int) -> Windows:
    """Turn documents, cut to `max_characters`, into windows; what is cut counts as truncated."""
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # a task has a core, and there is a task for each core
    windows = run.task.encode(
        run.model.tokenizer, [cut(document, max_characters) for document in documents]
    )
    windows.truncated[:] |= np.array(
        [longest(document) > max_characters for document in documents], dtype=bool
    )
    return windows


def answer_columns(task: Task, outputs: ModelOutputs, documents: pa.Array) -> dict[str, pa.Array]:
    """Decode outputs into the columns of the task and those that all tasks add; `documents`: their
    numbers, or null.
    """
    windows = outputs.windows
    decoded = task.decode(outputs)
    counts = np.bincount(windows.document, minlength=len(windows.n_tokens))
    answers = {name: decoded.field(name) for name in task.columns.names}
    answers |= {"n_tokens": pa.array(windows.n_tokens), "n_windows": pa.array(counts, pa.int32())}
    answers["truncated"] = pa.array(windows.truncated)
    return {name: values.take(documents) for name, values in answers.items()}
