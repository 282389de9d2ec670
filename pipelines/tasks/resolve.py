"""What options and a checkpoint say together: the length of windows, the text before documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from modernbert.text.windows import MOST_OVERLAP
from pipelines.checkpoints import Checkpoint
from pipelines.options import TaskOptions


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


def resolve_prompt(options: PromptOptions, stored: StoredPrompts, usual: Sequence[str] = ()) -> str:
    """Return the text before each document: the options', else the checkpoint's, else none.

    `usual`: names of prompts of which the first that the checkpoint has comes before its default
    one. Raises ValueError for a name that the checkpoint does not have.
    """
    if options.prompt is not None:
        return options.prompt
    default = next((name for name in usual if name in stored.prompts), stored.default_prompt_name)
    name = options.prompt_name or default
    if name is None:
        return ""
    if name not in stored.prompts:
        known = ", ".join(stored.prompts) or "none"
        raise ValueError(f"prompt_name {name!r} is unknown; this model has {known}")
    return stored.prompts[name]
