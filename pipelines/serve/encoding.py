"""Documents of a request to windows, some at a time: others have their turns between two steps, and
a request that nobody waits for, or that is too large, ends early.

Shapes: T packed tokens, W windows, D documents.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, WindowBudgetError, Windows, window_budget
from pipelines.inference.documents import check_documents, check_text
from pipelines.serve.protocol import (
    MOST_CHARACTERS,
    MOST_NUMBERS,
    MOST_RESULTS,
    MOST_TOKEN_NUMBERS,
    Tokens,
)
from pipelines.serve.step_pool import Steps
from pipelines.tasks.base import Task

_SLICE_BYTES = 1 << 17  # of texts, some 50 ms of tokenising; a longer document is its own slice
_RESULT_BYTES = 400  # of an entity or a candidate, which is an object of four or five fields
_NUMBER_BYTES = 32  # of a number, or None, in a list
ID_BYTES = 4
"""What an id is counted for where texts are counted by their bytes."""
_MOST_WINDOWS = 1 << 14  # of a request: what is done for each takes as long as for some tokens


def encode_slices(
    encode: Callable[[Sequence[Text], int], Windows],
    documents: Sequence[Text],
    most_tokens: int,
) -> Steps[Windows]:
    """Encode documents by slices, as one call would: `encode` takes a slice and the number of its
    first document.

    Raises WindowBudgetError before the windows hold more than `most_tokens`.
    """
    parts: list[Windows] = []
    tokens_left = most_tokens
    done_bytes = 0
    for start, stop, size in _slices(documents):
        if parts:
            yield done_bytes
        with window_budget(tokens_left):
            part = encode(documents[start:stop], start)
        tokens_left -= len(part.input_ids)
        parts.append(part)
        done_bytes = size
    return parts[0] if len(parts) == 1 else _join(parts)


def encode_request(
    task: Task,
    tokenizer: Tokenizer,
    documents: Sequence[Text],
    *,
    truncate: bool,
    most_tokens: int,
) -> Steps[tuple[Windows, np.ndarray]]:
    """Return the windows of documents, and which of them, (D,) bool, are too long and so are not in
    the windows.

    Raises ValueError for a document that the task does not take, and WindowBudgetError for a
    request that is too large.
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
        windows = yield from encode_slices(encode, documents, most_tokens)
    except WindowBudgetError:
        raise WindowBudgetError(
            f"the windows of the request hold more than {most_tokens:,} tokens, the most that a "
            "request may have (max_request_tokens); send fewer or shorter texts at a time"
        ) from None
    return windows, too_long


def check_size(task: Task, tokenizer: Tokenizer, windows: Windows) -> None:
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
    characters = task.most_characters(tokenizer, windows)
    _check_characters(characters, "fewer or shorter texts at a time, or a lower top_k")
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


def held_bytes(task: Task, response: object) -> int:
    """Return about how many bytes a response takes in memory."""
    if isinstance(response, np.ndarray):
        return response.nbytes
    if isinstance(response, dict):
        texts = response.values() if task.shows_texts else ()
        return _RESULT_BYTES + sum(sys.getsizeof(text) for text in texts if isinstance(text, str))
    if isinstance(response, list | tuple):
        # Most are lists of labels, which all answers share.
        if not task.shows_texts and response and isinstance(response[0], dict):
            return _RESULT_BYTES * len(response)
        return sum(held_bytes(task, part) for part in response)
    return _NUMBER_BYTES


def _check_characters(count: int, advice: str) -> None:
    """Raise WindowBudgetError for an answer of more characters than are given in a request."""
    if count > MOST_CHARACTERS:
        raise WindowBudgetError(
            f"the answer may hold {count:,} characters; at most {MOST_CHARACTERS:,} are given in a "
            f"request: send {advice}"
        )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> Steps[list[Tokens]]:
    """Return the tokens of each text.

    Raises ValueError for what is no text, and WindowBudgetError for too many tokens.
    """

    def encode(some: Sequence[Text], first: int) -> Windows:
        for number, text in enumerate(some, first):
            check_text(text, number)
        return tokenizer.encode(some, details=True)

    try:
        windows = yield from encode_slices(encode, texts, MOST_RESULTS)
    except WindowBudgetError:
        raise WindowBudgetError(
            f"the texts have more than {MOST_RESULTS:,} tokens, the most that a request may have; "
            "send fewer or shorter texts at a time"
        ) from None
    distinct_ids, places = np.unique(windows.input_ids, return_inverse=True)
    spelled = [tokenizer.token(token_id) for token_id in distinct_ids.tolist()]
    is_special = windows.sequence_ids < 0
    offsets = np.where(is_special[:, None], -1, windows.offsets)
    is_wanted = np.full(len(is_special), True) if special else ~is_special
    all_tokens = []
    for start, stop in pairwise(windows.cu_seqlens.tolist()):
        wanted = start + np.flatnonzero(is_wanted[start:stop])
        # Tokens of the same id share their spelling.
        spellings = [spelled[place] for place in places[wanted].tolist()]
        all_tokens.append(Tokens(windows.input_ids[wanted], spellings, offsets[wanted]))
    return all_tokens


def decode(
    tokenizer: Tokenizer, ids: Sequence[Sequence[int]], skip_special_tokens: bool
) -> Steps[list[str]]:
    """Return the text of each list of ids.

    Raises ValueError for an id that the tokenizer does not have, and WindowBudgetError for too many
    ids, or too many characters.
    """
    count = sum(map(len, ids))
    if count > MOST_RESULTS:
        raise WindowBudgetError(f"the request holds {count:,} ids; it may hold {MOST_RESULTS:,}")
    size = tokenizer.vocab_size
    texts: list[str] = []
    characters = 0
    done_bytes = 0
    for number, one_text in enumerate(ids):
        if done_bytes >= _SLICE_BYTES:
            yield done_bytes
            done_bytes = 0
        done_bytes += ID_BYTES * len(one_text)
        wrong = next((each for each in one_text if not _is_id(each, size)), None)
        if wrong is not None:
            message = f"ids {number} hold {str(wrong)[:40]}; they must be from 0 to {size - 1}"
            raise ValueError(message)
        characters += int(tokenizer.token_lengths[one_text].sum())
        _check_characters(characters, "fewer ids at a time")
        texts.append(tokenizer.decode(one_text, skip_special_tokens))
    return texts


def _is_id(value: object, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size


def _slices(documents: Sequence[Text]) -> Iterator[tuple[int, int, int]]:
    """Yield ranges [start, stop) of documents of one kind that are short together, and their
    bytes.
    """
    start = 0
    slice_bytes = 0
    for number, document in enumerate(documents):
        size = text_bytes(document)
        is_other_kind = isinstance(document, str) != isinstance(documents[start], str)
        is_full = slice_bytes + size > _SLICE_BYTES
        if number > start and (is_other_kind or is_full):
            yield start, number, slice_bytes
            start = number
            slice_bytes = 0
        slice_bytes += size
    yield start, len(documents), slice_bytes


def text_bytes(document: object) -> int:
    """Count the bytes of a text or a pair in UTF-8; what is no text is refused later."""
    texts = document if isinstance(document, tuple) else (document,)
    return sum(_utf8_length(text) for text in texts if isinstance(text, str))


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


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
