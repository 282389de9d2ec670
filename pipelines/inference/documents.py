"""Documents through a model: which are accepted, their windows, the columns of their answers.

A task refuses documents by one rule, `Task.refusal`: rows of a corpus or a Dataset are rejected
with its reason, calls in memory and online fail with it.

Shapes: D documents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import pyarrow as pa

from modernbert.text.windows import Text, Windows
from pipelines.inference.loading import ModelRun
from pipelines.input.documents import Reject, cut, longest, valid_documents
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs
from pipelines.text_lists import WordList

_SURROGATE = re.compile("[\ud800-\udfff]")


def clashing(added: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that one of `added` has, too, for readers that ignore case."""
    folded = {name.casefold() for name in added}
    return [name for name in names if name.casefold() in folded]


def accepted_documents(
    task: Task, columns: Sequence[pa.ChunkedArray], max_characters: int, too_long: str
) -> tuple[list[Text], list[int], list[Reject]]:
    """Return the documents in `columns`, their rows, and the rejected rows with the reason.

    Rejected are rows without a document and documents that the task refuses. `too_long`: the reason
    for a document of more than `max_characters`, which is rejected where it is read in windows:
    where long documents are truncated, it is cut.
    """
    names = task.options_class.input_names(len(columns))
    documents, rows, rejects = valid_documents(columns, names, reads_words=task.reads_words)
    is_read_whole = task.stride is not None
    accepted: list[Text] = []
    accepted_rows: list[int] = []
    for document, row in zip(documents, rows, strict=True):
        if is_read_whole and longest(document) > max_characters:
            reason: str | None = too_long  # without a look at it, which might take long, too
        else:
            reason = task.refusal(document, of_corpus=True)
        if reason:
            rejects.append((row, reason))
            continue
        accepted.append(document)
        accepted_rows.append(row)
    return accepted, accepted_rows, rejects


def check_documents(
    task: Task | type[Task], documents: Sequence[object], first: int = 0
) -> Sequence[Text]:
    """Return the documents of a call in memory or online, which may hold anything.

    `first`: the number of the first of `documents` in the call. Raises ValueError that names the
    first document that is not one, not of the task's kind, or that the task refuses.
    """
    options_class = task.options_class
    takes_pairs = len(options_class.input_names()) == 2
    takes_only_pairs = len(options_class.inputs) == 2
    for i, document in enumerate(documents, first):
        check_text(document, i)
        is_word_list = isinstance(document, WordList)
        if task.reads_words and not is_word_list:
            raise ValueError(
                f"input {i} is no list of words, which {options_class.task} takes with "
                "is_split_into_words"
            )
        if is_word_list and not task.reads_words:
            raise ValueError(
                f"input {i} is a list of words, which {options_class.task} does not take without "
                "is_split_into_words"
            )
        is_tuple = isinstance(document, tuple)
        is_pair = isinstance(document, tuple) and len(document) == 2
        if is_tuple and not takes_pairs:
            raise ValueError(f"input {i} is a pair; {options_class.task} takes single texts")
        if takes_only_pairs and not is_pair:
            names = " and ".join(options_class.inputs)
            raise ValueError(f"input {i} is a single text; {options_class.task} takes {names}")
        reason = task.refusal(cast(Text, document), of_corpus=False)
        if reason:
            raise ValueError(f"input {i}: {reason}")
    kinds = {isinstance(document, str) for document in documents}
    if len(kinds) > 1:
        raise ValueError("texts and pairs cannot be mixed in one call")
    return cast(Sequence[Text], documents)


def check_text(document: object, number: int) -> None:
    """Raise ValueError that names an input which is neither a text nor a tuple of texts."""
    for text in document if isinstance(document, tuple) else (document,):
        if not isinstance(text, str):
            raise ValueError(
                f"input {number} holds {str(text)[:40]!r} ({type(text).__name__}), not text"
            )
        half = None if text.isascii() else _SURROGATE.search(text)
        if half:
            raise ValueError(
                f"input {number} holds {half[0]!r}, half a surrogate pair, which is not text"
            )


def encode(run: ModelRun, documents: Sequence[Text], max_characters: int) -> Windows:
    """Turn documents, cut to `max_characters`, into windows; what is cut counts as truncated."""
    # There is a task for each core, which has no more than its own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    short_enough = [cut(document, max_characters) for document in documents]
    windows = run.task.encode(run.model.tokenizer, short_enough)
    is_cut_D = [longest(document) > max_characters for document in documents]
    windows.truncated[:] |= np.tile(np.array(is_cut_D, dtype=bool), run.task.readings)
    return windows


def answer_columns(task: Task, outputs: ModelOutputs, documents: pa.Array) -> dict[str, pa.Array]:
    """Decode outputs into the columns that a job adds.

    `documents`: the number of each row's document, or null for a row without an answer.
    """
    answers = task.answers(outputs)
    return {name: values.take(documents) for name, values in answers.items()}
