"""The windows in which chunks of texts are read: each by itself, or late, with the text around it
(Günther et al. 2024, arXiv:2409.04701).

Shapes: T tokens, W windows, D documents, C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modernbert.text.sentences import Chunking, cut
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import TextTokens, Windows, WindowsBuilder

_BEGINS = 1 << 29
_ENDS = 1 << 30
"""Where windows hold late chunks, these bits of token ids mark the first and the last token of each
chunk: no vocabulary has as many ids, and so the marks travel wherever tokens do.
"""
ID_BITS = _BEGINS - 1
"""The bits of a token id that are no marks."""


def encode_chunks(
    tokenizer: Tokenizer, texts: Sequence[str], chunking: Chunking, max_length: int
) -> Windows:
    """Encode each chunk of texts as a window, with the prompt before it.

    Args:
        tokenizer: what counts the tokens of the whole texts, and encodes the chunks.
        texts: the texts.
        chunking: how they become chunks.
        max_length: the most tokens in a window, special tokens included.

    Returns:
        The windows of each text, one for each chunk, with `chunk_spans`. A text of white space
        alone has none.

    Example:
        >>> chunking = Chunking(tokens=4, overlap=0, prompt="")
        >>> encode_chunks(tokenizer, ["One two. Three four."], chunking, 8).chunk_spans.tolist()
        [[0, 8], [9, 20]]
    """
    whole = _encode_whole(tokenizer, texts, chunking.prompt)
    pieces: list[str] = []
    text_of_piece: list[int] = []
    spans: list[tuple[int, int]] = []
    first_tokens: list[int] = []
    for window, document in enumerate(whole.document.tolist()):
        text = texts[document]
        _, offsets = _tokens_of(whole, window)
        chunks = cut(chunking.prompt + text, offsets, chunking)
        for (first, _), (start, end) in zip(chunks.tokens, chunks.characters, strict=True):
            pieces.append(chunking.prompt + text[start:end])
            text_of_piece.append(document)
            spans.append((start, end))
            first_tokens.append(first)

    windows = tokenizer.encode(pieces, max_length)
    documents = np.array(text_of_piece, dtype=np.int64)
    rejected = dict(whole.rejected)
    for piece, reason in windows.rejected.items():
        rejected.setdefault(text_of_piece[piece], reason)
    is_truncated = np.zeros(len(texts), dtype=bool)
    is_truncated[documents[windows.truncated]] = True
    # A text has the windows of all its chunks, or none.
    keeps_W = ~np.isin(documents[windows.document], list(rejected))
    piece_W = windows.document[keeps_W]
    lengths_W = windows.lengths[keeps_W]
    document_W = documents[piece_W]
    return replace(
        windows,
        input_ids=windows.input_ids[np.repeat(keeps_W, windows.lengths)],
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths_W))),
        document=document_W,
        start=np.array(first_tokens, dtype=np.int64)[piece_W],
        n_tokens=_counted(whole, document_W, tokenizer),
        truncated=is_truncated,
        rejected=rejected,
        chunk_spans=_as_spans(spans)[piece_W],
    )


def encode_late_chunks(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    chunking: Chunking,
    max_length: int,
    stride: int,
) -> Windows:
    """Encode whole texts, with the prompt before them, whose chunks are marked in `input_ids`.

    A text that is longer than a window has several, each with the prompt. Each chunk lies in one of
    them, behind `stride` tokens or more of the text before it, where there are so many.

    Args:
        tokenizer: what encodes the texts.
        texts: the texts.
        chunking: how they become chunks.
        max_length: the most tokens in a window, special tokens included.
        stride: the tokens before a chunk that its window has at least.

    Returns:
        The windows, with `chunk_spans` in the order of the marks, which `late_chunks` reads. A text
        of white space alone has none.
    """
    whole = _encode_whole(tokenizer, texts, chunking.prompt)
    starting, ending = tokenizer.starting_ids, tokenizer.ending_ids
    builder = WindowsBuilder([starting, [], ending], details=False)
    window_of_document = {document: i for i, document in enumerate(whole.document.tolist())}
    begins: list[int] = []
    ends: list[int] = []
    spans: list[tuple[int, int]] = []
    for document, text in enumerate(texts):
        if document in whole.rejected:
            builder.reject(whole.rejected[document])
            continue
        ids, offsets = _tokens_of(whole, window_of_document[document])
        chunks = cut(chunking.prompt + text, offsets, chunking)
        prompt_tokens = _prompt_tokens(offsets, chunking.prompt)
        parts = [TextTokens(ids[:prompt_tokens], [], []), TextTokens(ids[prompt_tokens:], [], [])]
        room = max_length - builder.num_special - prompt_tokens
        kept = len(begins)
        is_truncated = False
        for first_chunk, stop_chunk, start, stop in _late_windows(
            chunks.tokens, prompt_tokens, len(ids), room, stride
        ):
            text_begins = len(builder.ids) + len(starting) + prompt_tokens
            for first, after in chunks.tokens[first_chunk:stop_chunk]:
                # Only a single character with more tokens than a window has room is cut.
                is_truncated |= after > stop
                begins.append(text_begins + first - start)
                ends.append(text_begins + min(after, stop) - 1 - start)
            ranges = [(0, prompt_tokens), (start - prompt_tokens, stop - prompt_tokens)]
            builder.add(parts, ranges, start - prompt_tokens)
        builder.finish(len(ids), is_truncated)
        spans += chunks.characters
        if document in builder.rejected:
            del begins[kept:], ends[kept:], spans[kept:]
    windows = builder.windows()
    windows.input_ids[begins] |= _BEGINS
    windows.input_ids[ends] |= _ENDS
    return replace(
        windows,
        n_tokens=_counted(whole, windows.document, tokenizer),
        chunk_spans=_as_spans(spans),
    )


def late_chunks(input_ids: np.ndarray) -> np.ndarray:
    """Return the tokens [first, stop) of the chunks that are marked in ids (T,), (C, 2) int64."""
    first_C = np.flatnonzero(input_ids & _BEGINS)
    last_C = np.flatnonzero(input_ids & _ENDS)
    return np.stack((first_C, last_C + 1), axis=1)


def _late_windows(
    chunks: Sequence[tuple[int, int]], begin: int, end: int, room: int, stride: int
) -> list[tuple[int, int, int, int]]:
    """Return the windows of a text: the chunks [first, stop) that each is read for, and its tokens
    [start, stop) of those from `begin` to `end`.
    """
    windows: list[tuple[int, int, int, int]] = []
    first = 0
    while first < len(chunks):
        start = min(chunks[first][0] - stride, end - room)
        start = max(start, begin)
        stop = min(start + room, end)
        after = first + 1
        while after < len(chunks) and chunks[after][1] <= stop:
            after += 1
        windows.append((first, after, start, stop))
        first = after
    return windows


def _encode_whole(tokenizer: Tokenizer, texts: Sequence[str], prompt: str) -> Windows:
    """Encode whole texts, with the prompt before them, without special tokens."""
    with_prompt = [prompt + text for text in texts]
    return tokenizer.encode(with_prompt, details=True, add_special_tokens=False)


def _tokens_of(whole: Windows, window: int) -> tuple[list[int], np.ndarray]:
    """Return the ids of a window and the characters (T, 2) of its tokens."""
    start, stop = whole.cu_seqlens[window : window + 2]
    ids: list[int] = whole.input_ids[start:stop].tolist()
    return ids, whole.offsets[start:stop]


def _prompt_tokens(offsets: np.ndarray, prompt: str) -> int:
    """Count the tokens that end within the prompt."""
    if not prompt:
        return 0
    return int(np.count_nonzero(offsets[:, 1] <= len(prompt)))


def _counted(whole: Windows, document_W: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens of each text with its special ones, (D,); 0 for texts without windows."""
    special = len(tokenizer.starting_ids) + len(tokenizer.ending_ids)
    n_tokens = np.zeros_like(whole.n_tokens)
    n_tokens[document_W] = whole.n_tokens[document_W] + special
    return n_tokens


def _as_spans(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(spans, dtype=np.int32).reshape(-1, 2)
