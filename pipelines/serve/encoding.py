"""Documents of a request to windows, some at a time: a request that nobody waits for, or that is
too large, ends early.

Shapes: T packed tokens, W windows, D documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, WindowBudgetError, Windows, window_budget
from pipelines.inference.documents import check_documents, check_text
from pipelines.serve.protocol import MOST_NUMBERS, MOST_RESULTS, MOST_TOKEN_NUMBERS, Tokens
from pipelines.tasks.base import Task

_SLICE_CHARACTERS = 1 << 18  # about 0.1 s of tokenising; a longer document is a slice of its own
_MOST_WINDOWS = 1 << 14  # of a request: what is done for each takes as long as for some tokens


class Abandoned(Exception):
    """Nobody waits for the work any more."""


class Work:
    """What a request has under way in threads."""

    def __init__(self) -> None:
        self.abandoned = threading.Event()
        self.thread: Future[Any] | None = None  # of whatever is done in it

    def check(self) -> None:
        """Raise Abandoned if nobody waits for the work; threads call it between two parts of it."""
        if self.abandoned.is_set():
            raise Abandoned


def encode_slices(
    encode: Callable[[Sequence[Text], int], Windows],
    documents: Sequence[Text],
    most_tokens: int,
    work: Work,
) -> Windows:
    """Encode documents by slices, as one call would: `encode` takes a slice and the number of its
    first document.

    Raises WindowBudgetError before the windows hold more than `most_tokens`, and Abandoned.
    """
    parts = []
    tokens_left = most_tokens
    for start, stop in _slices(documents):
        work.check()
        with window_budget(tokens_left):
            part = encode(documents[start:stop], start)
        tokens_left -= len(part.input_ids)
        parts.append(part)
    return parts[0] if len(parts) == 1 else _join(parts)


def encode_request(
    task: Task,
    tokenizer: Tokenizer,
    documents: Sequence[Text],
    *,
    truncate: bool,
    most_tokens: int,
    work: Work,
) -> tuple[Windows, np.ndarray]:
    """Return the windows of documents, and which of them, (D,) bool, are too long and so are not in
    the windows.

    Raises ValueError for a document that the task does not take, WindowBudgetError for a request
    that is too large, and Abandoned.
    """
    too_long = np.zeros(len(documents), dtype=bool)

    def encode(some: Sequence[Text], first: int) -> Windows:
        check_documents(task, some, first)
        windows = task.encode(tokenizer, some)
        if truncate or not windows.truncated.any():
            return windows
        # Those that would be truncated have no windows: the others are encoded once more.
        too_long[first : first + len(some)] = windows.truncated
        numbered = zip(some, windows.truncated, strict=True)
        short = [document for document, is_truncated in numbered if not is_truncated]
        return task.encode(tokenizer, short)

    try:
        return encode_slices(encode, documents, most_tokens, work), too_long
    except WindowBudgetError:
        raise WindowBudgetError(
            f"the windows of the request hold more than {most_tokens:,} tokens, the most that a "
            "request may have (max_request_tokens); send fewer or shorter texts at a time"
        ) from None


def check_size(task: Task, windows: Windows) -> None:
    """Raise WindowBudgetError for windows whose answers would be far larger than their texts.

    What only the model knows is bounded as it comes: its numbers by the batcher, the results by
    `check_results`.
    """
    count = len(windows.document)
    if count > _MOST_WINDOWS:
        raise WindowBudgetError(
            f"the texts make {count:,} windows; a request may have {_MOST_WINDOWS:,}: send fewer "
            "or shorter texts at a time, or let windows be longer"
        )
    results = task.most_results(windows)
    if results is not None and results > MOST_RESULTS:
        raise WindowBudgetError(
            f"the answer may hold {results:,} results; at most {MOST_RESULTS:,} are given in a "
            "request: send fewer or shorter texts at a time, or a lower top_k"
        )
    rows = task.rows(windows.input_ids, windows.cu_seqlens)
    numbers = 0 if rows is None else int(rows.sum()) * task.width
    if task.gives_token_vectors:
        # One document of the model's length is answered, however wide the vectors are.
        most = max(MOST_TOKEN_NUMBERS, task.max_length * task.width)
        if numbers > most:
            raise WindowBudgetError(
                f"inputs have {len(windows.input_ids):,} tokens; token vectors are given for "
                f"{most // task.width:,} in a request"
            )
    if numbers > MOST_NUMBERS:
        raise WindowBudgetError(
            f"the model would give {numbers:,} numbers; a request may have {MOST_NUMBERS:,}: send "
            "fewer or shorter texts at a time"
        )


def check_results(task: Task, response: Sequence[object] | np.ndarray) -> None:
    """Raise WindowBudgetError for a response with more results than are given in a request."""
    results = task.count_results(response)
    if results > MOST_RESULTS:
        raise WindowBudgetError(
            f"the answer holds {results:,} results; at most {MOST_RESULTS:,} are given in a "
            "request: send fewer texts at a time, or serve the model with a lower top_k"
        )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], special: bool, work: Work) -> list[Tokens]:
    """Return the tokens of each text.

    Raises ValueError for what is no text, WindowBudgetError for too many tokens, and Abandoned.
    """

    def encode(some: Sequence[Text], first: int) -> Windows:
        for number, text in enumerate(some, first):
            check_text(text, number)
        return tokenizer.encode(some, details=True)

    try:
        windows = encode_slices(encode, texts, MOST_RESULTS, work)
    except WindowBudgetError:
        raise WindowBudgetError(
            f"the texts have more than {MOST_RESULTS:,} tokens, the most that a request may have; "
            "send fewer or shorter texts at a time"
        ) from None
    all_tokens = []
    for start, stop in pairwise(windows.cu_seqlens.tolist()):
        work.check()
        ids: list[int] = []
        spans: list[tuple[int, int] | None] = []
        texts_of_tokens = windows.sequence_ids[start:stop].tolist()
        offsets = windows.offsets[start:stop].tolist()
        for token_id, text, offset in zip(
            windows.input_ids[start:stop].tolist(), texts_of_tokens, offsets, strict=True
        ):
            is_special = text < 0
            if is_special and not special:
                continue
            ids.append(token_id)
            spans.append(None if is_special else (offset[0], offset[1]))
        all_tokens.append(Tokens(ids, [tokenizer.token(token_id) for token_id in ids], spans))
    return all_tokens


def decode(
    tokenizer: Tokenizer, ids: Sequence[Sequence[int]], skip_special_tokens: bool, work: Work
) -> list[str]:
    """Return the text of each list of ids.

    Raises ValueError for an id that the tokenizer does not have, WindowBudgetError for too many
    ids, and Abandoned.
    """
    count = sum(map(len, ids))
    if count > MOST_RESULTS:
        raise WindowBudgetError(f"the request holds {count:,} ids; it may hold {MOST_RESULTS:,}")
    size = tokenizer.vocab_size
    texts = []
    for number, one_text in enumerate(ids):
        work.check()
        wrong = next((each for each in one_text if not _is_id(each, size)), None)
        if wrong is not None:
            message = f"ids {number} hold {str(wrong)[:40]}; they must be from 0 to {size - 1}"
            raise ValueError(message)
        texts.append(tokenizer.decode(one_text, skip_special_tokens))
    return texts


def _is_id(value: object, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size


def _slices(documents: Sequence[Text]) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) of documents of one kind that are short together."""
    start = 0
    characters = 0
    for number, document in enumerate(documents):
        length = _characters(document)
        is_other_kind = isinstance(document, str) != isinstance(documents[start], str)
        is_full = characters + length > _SLICE_CHARACTERS
        if number > start and (is_other_kind or is_full):
            yield start, number
            start = number
            characters = 0
        characters += length
    yield start, len(documents)


def _characters(document: object) -> int:
    """Count the characters of a text or a pair; what is no text is refused later."""
    texts = document if isinstance(document, tuple) else (document,)
    return sum(len(text) for text in texts if isinstance(text, str))


def _join(parts: Sequence[Windows]) -> Windows:
    """Join the windows of documents that follow each other."""
    first = 0
    document = []
    rejected = {}
    for part in parts:
        document.append(part.document + first)
        for number, reason in part.rejected.items():
            rejected[first + number] = reason
        first += len(part.n_tokens)
    lengths = np.concatenate([part.lengths for part in parts])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Windows(
        input_ids=joined("input_ids"),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))),
        document=np.concatenate(document),
        start=joined("start"),
        n_tokens=joined("n_tokens"),
        truncated=joined("truncated"),
        rejected=rejected,
        offsets=joined("offsets"),
        word_ids=joined("word_ids"),
        sequence_ids=joined("sequence_ids"),
        token_tags=joined("token_tags"),
        chunk_spans=joined("chunk_spans"),
    )
