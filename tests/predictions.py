"""Model answers made by hand, for tests of what tasks make of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from modernbert.config import ModernBertConfig
from modernbert.tokenizer import Windows
from pipelines.tasks.base import Predicted


def described(**config: Any) -> Any:
    """What stands for a checkpoint where a task reads no more than its configuration."""
    tokenizer = SimpleNamespace(model_max_length=None)
    return SimpleNamespace(
        config=ModernBertConfig(**config), raw_config={}, tokenizer=tokenizer, folder=Path("a folder")
    )


def predicted(values: np.ndarray, document: list[int] | None = None, lengths: list[int] | None = None) -> Predicted:
    """A row a window; `document`: whose window each is (by default each its own), `lengths`: their tokens."""
    document = list(range(len(values))) if document is None else document
    lengths = [5] * len(values) if lengths is None else lengths
    count = max(document, default=-1) + 1
    windows = Windows(
        input_ids=np.zeros(sum(lengths), np.int32),
        cu_seqlens=np.cumsum([0, *lengths]),
        document=np.array(document, dtype=np.int64),
        start=np.zeros(len(values), np.int64),
        n_tokens=np.full(count, 5, np.int32),
        truncated=np.zeros(count, bool),
        unfit={},
    )
    return Predicted([""] * count, windows, values, np.arange(len(values) + 1), None)  # type: ignore[arg-type]
