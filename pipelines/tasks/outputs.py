"""What a model gives for windows, and what a task decodes.

Shapes: T packed tokens, W windows, R rows of the model's values, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows

Results: TypeAlias = list[Any]
"""What the pipeline of transformers returns for each document: JSON, or lists of numbers."""


@dataclass(frozen=True)
class Predictions:
    """The model's values for windows."""

    values: np.ndarray
    """(R, C) float32; rows of failed windows are not meaningful."""
    splits: np.ndarray
    """(W+1,): the rows of window w are `splits[w]:splits[w + 1]`."""
    failed: dict[int, str]
    """Windows without values, with the reason."""
    batches: int
    """The number of packed batches that they were in."""
    seconds: float
    """From the start of the first of these batches to the end of the last."""
    queue_s: float = 0.0
    """The time online in the queue before the first batch."""
    first_window: int = 0
    """The number of the first of these windows among those of all readings of the documents."""


Head: TypeAlias = tuple[Any, Any]
"""A Task, and the model that it was loaded with."""


@dataclass(frozen=True)
class Pass:
    """Windows that go through one or more heads together."""

    input_ids: np.ndarray
    """(T,) int32"""
    cu_seqlens: np.ndarray
    """(W+1,) int64"""
    heads: list[Head]


@dataclass(frozen=True)
class ModelOutputs:
    """Documents, their windows, and the model's values for these: what `decode` takes."""

    documents: Sequence[Text]
    windows: Windows
    values: np.ndarray
    """(R, C) float32"""
    splits: np.ndarray
    """(W+1,): the rows of window w are `splits[w]:splits[w + 1]`."""
    tokenizer: Tokenizer
