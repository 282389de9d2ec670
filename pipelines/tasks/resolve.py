"""What options and a checkpoint say together: the length of windows, the text before documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from modernbert.text.sentences import Chunking
from modernbert.text.windows import MOST_OVERLAP
from pipelines.checkpoints import Checkpoint
from pipelines.options import EmbedOptions
from pipelines.task_options import TaskOptions
from pipelines.thresholds import BEST_F1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """How documents become windows: the fields that every task has."""

    max_length: int
    stride: int | None


def resolve_windowing(
    checkpoint: Checkpoint, options: TaskOptions, default_length: int | None = None
) -> Windowing:
    """Choose how documents become windows.

    `default_length`: the most tokens in a window where the options do not say. Raises ValueError
    for options that the model does not allow.
    """
    longest = checkpoint.config.max_position_embeddings
    length = options.max_length
    if length is None:
        configured = checkpoint.tokenizer.model_max_length or longest
        length = min(longest, configured, default_length or longest)
    elif length > longest:
        raise ValueError(f"max_length {length} is above the model's {longest} positions")
    stride = options.stride
    if options.long_documents == "truncate":
        if stride is not None:
            raise ValueError(
                f"stride {stride} is for overlapping windows: long_documents must be windows, not "
                "truncate"
            )
        return Windowing(max_length=length, stride=None)
    # A window that shared all but its special tokens with the one before would never end.
    longest_stride = max(length - 4, 0)
    if stride is None:
        stride = min(128, length // 2, longest_stride)
    if stride > longest_stride:
        raise ValueError(f"stride {stride} leaves nothing new in windows of max_length {length}")
    # Each token costs as often as it is read: [CLS] and [SEP] aside, a window reads so many anew.
    least_new = -(-length // MOST_OVERLAP)
    longest_stride = max(length - 2 - least_new, length // 2)
    if stride > longest_stride:
        raise ValueError(
            f"stride {stride} makes more than {MOST_OVERLAP} windows of max_length {length} read "
            f"the same token; it may be at most {longest_stride}"
        )
    return Windowing(max_length=length, stride=stride)


def resolve_chunking(options: EmbedOptions, pooling: Sequence[str], prompt: str) -> Chunking | None:
    """Return how texts become chunks, or None where they do not.

    `pooling`: the model's. Raises ValueError for options that do not fit each other or the model.
    """
    tokens = options.chunk_tokens
    overlap = options.chunk_overlap
    if tokens is None:
        if options.late:
            raise ValueError("late is for chunks: give chunk_tokens, too")
        if overlap:
            raise ValueError(f"chunk_overlap {overlap} is for chunks: give chunk_tokens, too")
        return None
    if overlap > tokens // 2:
        raise ValueError(
            f"chunk_overlap {overlap} may be at most half of chunk_tokens, {tokens // 2}"
        )
    if options.late and "cls" in pooling:
        raise ValueError(
            "late pools the tokens of a chunk, and this model takes the vector of [CLS]: leave "
            "late out, or give pooling mean"
        )
    return Chunking(tokens=tokens, overlap=overlap, prompt=prompt)


def resolve_chunk_windowing(
    checkpoint: Checkpoint,
    options: EmbedOptions,
    default_length: int | None,
    chunking: Chunking,
    around: int,
) -> Windowing:
    """Choose the windows of texts that are cut into chunks, which are read whole.

    `around`: the tokens of a window that are no text: special ones and those of the prompt. The
    stride is what chunks share, or with late what a window has before its first chunk. Raises
    ValueError for options that leave a chunk no room.
    """
    stride = options.stride
    if stride is not None and not options.late:
        raise ValueError(f"stride {stride} is for late; chunks share chunk_overlap tokens")
    whole = {"long_documents": "windows" if options.late else "truncate"}
    windowing = resolve_windowing(checkpoint, options.model_copy(update=whole), default_length)
    room = windowing.max_length - around
    if chunking.tokens > room:
        raise ValueError(
            f"chunk_tokens {chunking.tokens} is more than a window of max_length "
            f"{windowing.max_length} has room for: {max(room, 0)} beside special tokens and the "
            "prompt"
        )
    if windowing.stride is None:
        return Windowing(max_length=windowing.max_length, stride=chunking.overlap)
    longest_stride = min(room // 2, room - chunking.tokens)
    if stride is not None and stride > longest_stride:
        raise ValueError(
            f"stride {stride} may be at most {longest_stride}, half of a window and what "
            f"chunk_tokens {chunking.tokens} leaves of it"
        )
    return Windowing(max_length=windowing.max_length, stride=min(windowing.stride, longest_stride))


class ThresholdOptions(Protocol):
    """Options with a threshold."""

    @property
    def threshold(self) -> object: ...


class PromptOptions(Protocol):
    """What options say of the text before each document."""

    prompt: str | None
    prompt_name: str | None


class StoredPrompts(Protocol):
    """The prompts that a checkpoint has by name, and which of them is the default."""

    @property
    def prompts(self) -> dict[str, str]: ...

    @property
    def default_prompt_name(self) -> str | None: ...


def resolve_prompt(
    options: PromptOptions, stored: StoredPrompts, *, as_query: bool | None = None
) -> str:
    """Return the text before each document: the options', else the checkpoint's, else none.

    `as_query`: whether texts are queries or documents, which have the prompt of their side in place
    of the checkpoint's default one, or none, as in sentence-transformers; None: neither. Raises
    ValueError for a name that the checkpoint does not have.
    """
    if options.prompt is not None:
        return options.prompt
    if options.prompt_name is None and as_query is not None:
        unused = None if as_query else unused_passage_prompt(stored)
        if unused:
            logger.warning(
                "this model has a prompt %r and none of its documents: they are read without one, "
                "as in sentence-transformers; prompt_name %s uses it",
                unused,
                unused,
            )
        return stored.prompts.get("query" if as_query else "document", "")
    name = options.prompt_name or stored.default_prompt_name
    if name is None:
        return ""
    if name not in stored.prompts:
        known = ", ".join(stored.prompts) or "none"
        raise ValueError(f"prompt_name {name!r} is unknown; this model has {known}")
    return stored.prompts[name]


def check_route(asked: str | None, loaded: str | None) -> None:
    """Raise ValueError for texts of another route of a Router than the one that was loaded."""
    if asked != loaded:
        raise ValueError(
            f"as_query: this model has another encoder for a {asked} and was loaded for a {loaded}:"
            f" load it once more, as {asked}"
        )


def check_best_f1(options: ThresholdOptions) -> None:
    """Raise ValueError for thresholds that are to be found where there is no gold."""
    if options.threshold == BEST_F1 and getattr(options, "gold_column", None) is None:
        raise ValueError(
            "threshold best-f1 is found on gold, by a corpus job with gold_column: give it, or the "
            "file that such a job has written"
        )


def unused_passage_prompt(stored: StoredPrompts) -> str | None:
    """Return the name of a prompt for passages that sentence-transformers passes over: it reads
    documents with the prompt "document", which is empty where a checkpoint has none.
    """
    if "document" in stored.prompts:
        return None
    return next((name for name in ("passage", "corpus") if name in stored.prompts), None)
