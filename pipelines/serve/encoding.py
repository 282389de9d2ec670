"""Documents of a request to windows, some at a time: a request that nobody waits for, or that is
too large, ends early.

Shapes: T packed tokens, W windows, D documents.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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
        self.thread: Future[Any] | None = None

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
    parts, tokens = [], 0
    for start, stop in _slices(documents):
        work.check()
        with window_budget(most_tokens - tokens):
            parts.append(encode(documents[start:stop], start))
        tokens += len(parts[-1].input_ids)
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
        too_long[first : first + len(some)] = windows.truncated
        kept = zip(some, windows.truncated, strict=True)
        return task.encode(tokenizer, [document for document, long in kept if not long])

    try:
        return encode_slices(encode, documents, most_tokens, work), too_long
    except WindowBudgetError:
        raise WindowBudgetError(
            f"the windows of the request hold more than {most_tokens:,} tokens, the most that a "
            "request may have "
            "(max_request_tokens); send fewer or shorter texts at a time"
        ) from None


def check_size(task: Task, windows: Windows) -> None:
    """Raise WindowBudgetError for windows whose answers would be far larger than their texts.

    What only the model knows is bounded as it comes: its numbers by the batcher, the results by
    `check_results`.
    """
    if (count := len(windows.document)) > _MOST_WINDOWS:
        raise WindowBudgetError(
            f"the texts make {count:,} windows; a request may have {_MOST_WINDOWS:,}: send fewer "
            "or shorter texts at a "
            "time, or let windows be longer"
        )
    results = task.most_results(windows)
    if results is not None and results > MOST_RESULTS:
        raise WindowBudgetError(
            f"the answer may hold {results:,} results; at most {MOST_RESULTS:,} are given in a "
            "request: send fewer or "
            "shorter texts at a time, or a lower top_k"
        )
    rows = task.rows(windows.input_ids, windows.cu_seqlens)
    numbers = 0 if rows is None else int(rows.sum()) * task.width
    if task.gives_token_vectors and numbers > (
        most := max(MOST_TOKEN_NUMBERS, task.max_length * task.width)
    ):
        tokens = len(windows.input_ids)
        raise WindowBudgetError(
            f"inputs have {tokens:,} tokens; token vectors are given for {most // task.width:,} in "
            "a request"
        )
    if numbers > MOST_NUMBERS:
        raise WindowBudgetError(
            f"the model would give {numbers:,} numbers; a request may have {MOST_NUMBERS:,}: send "
            "fewer or shorter "
            "texts at a time"
        )


def check_results(task: Task, response: Sequence[Any] | np.ndarray) -> None:
    """Raise WindowBudgetError for a response with more results than are given in a request."""
    if (results := task.count_results(response)) > MOST_RESULTS:
        raise WindowBudgetError(
            f"the answer holds {results:,} results; at most {MOST_RESULTS:,} are given in a "
            "request: send fewer texts"
            " at a time, or serve the model with a lower top_k"
        )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], special: bool, work: Work) -> list[Tokens]:
    """Return the tokens of each text; ValueError for what is no text, WindowBudgetError for too
    many tokens.
    """

    def encode(some: Sequence[Text], first: int) -> Windows:
        for i, text in enumerate(some, first):
            check_text(text, i)
        return tokenizer.encode(some, details=True)

    try:
        windows = encode_slices(encode, texts, MOST_RESULTS, work)
    except WindowBudgetError:
        message = (
            f"the texts have more than {MOST_RESULTS:,} tokens, the most that a request may have"
        )
        raise WindowBudgetError(f"{message}; send fewer or shorter texts at a time") from None
    out = []
    for start, stop in zip(windows.cu_seqlens[:-1], windows.cu_seqlens[1:], strict=True):
        work.check()
        at = [t for t in range(start, stop) if special or windows.sequence_ids[t] >= 0]
        ids = windows.input_ids[at].tolist()
        spans = [
            tuple(windows.offsets[t].tolist()) if windows.sequence_ids[t] >= 0 else None for t in at
        ]
        out.append(Tokens(ids, [tokenizer.token(i) for i in ids], spans))
    return out


def decode(
    tokenizer: Tokenizer, ids: Sequence[Sequence[int]], skip_special_tokens: bool, work: Work
) -> list[str]:
    """Return the text of each list of ids; ValueError for an id that is none, WindowBudgetError for
    too many.
    """
    most = tokenizer.vocab_size - 1
    if (count := sum(map(len, ids))) > MOST_RESULTS:
        raise WindowBudgetError(f"the request holds {count:,} ids; it may hold {MOST_RESULTS:,}")
    out = []
    for at, some in enumerate(ids):
        work.check()
        if wrong := [
            i for i in some if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i <= most
        ]:
            raise ValueError(f"ids {at} hold {str(wrong[0])[:40]}; they must be from 0 to {most}")
        out.append(tokenizer.decode(some, skip_special_tokens))
    return out


def _slices(documents: Sequence[Text]) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) of documents of one kind, texts or pairs, that are short
    together.
    """
    start = size = 0
    for stop, document in enumerate(documents):
        texts = document if isinstance(document, tuple) else (document,)
        length = sum(len(text) for text in texts if isinstance(text, str))
        other_kind = isinstance(document, str) != isinstance(documents[start], str)
        if stop > start and (other_kind or size + length > _SLICE_CHARACTERS):
            yield start, stop
            start, size = stop, 0
        size += length
    yield start, len(documents)


def _join(parts: Sequence[Windows]) -> Windows:
    """Join the windows of documents that follow each other."""
    first = np.cumsum([0, *(len(part.n_tokens) for part in parts)]).tolist()
    rejected = {
        first[i] + d: reason for i, part in enumerate(parts) for d, reason in part.rejected.items()
    }
    lengths = np.concatenate([part.lengths for part in parts])
    arrays = (
        "input_ids",
        "start",
        "n_tokens",
        "truncated",
        "offsets",
        "word_ids",
        "sequence_ids",
        "token_tags",
    )
    return Windows(
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))),
        document=np.concatenate([part.document + first[i] for i, part in enumerate(parts)]),
        rejected=rejected,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )
