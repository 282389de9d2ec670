"""Model answers made by hand, for tests of what tasks make of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from modernbert.config import ModernBertConfig
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Windows
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs


def described(tokenizer: Any = None, **config: Any) -> Any:
    """What stands for a checkpoint where a task reads no more than its configuration (and tokenizer)."""
    tokenizer = tokenizer or SimpleNamespace(model_max_length=None, knows_words=True)
    return SimpleNamespace(
        config=ModernBertConfig(**config),
        raw_config={},
        tokenizer=tokenizer,
        folder=Path("a folder"),
        route=None,
    )


def predicted(
    values: np.ndarray, document: list[int] | None = None, lengths: list[int] | None = None
) -> ModelOutputs:
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
        rejected={},
    )
    return ModelOutputs([""] * count, windows, values, np.arange(len(values) + 1), None)  # type: ignore[arg-type]


def said(
    task: Task, tokenizer: Tokenizer, documents: list[Any], answer: Callable[[Windows], Any]
) -> ModelOutputs:
    """What is predicted of `documents` by a model whose answer for their windows, a row each, `answer` makes up."""
    windows = task.encode(tokenizer, documents)
    splits = np.concatenate(([0], np.cumsum(task.rows(windows.input_ids, windows.cu_seqlens))))
    values = np.asarray(answer(windows), dtype=np.float32)
    return ModelOutputs(documents, windows, values, splits, tokenizer)


PIECES = [
    *"abcdefgh thecatsatTheCat.,!?'\"-()&@0123 \t",
    *(" the", " cat", " sat", " mat", "\n", "\r\n", "  ", "\u00a0", "\u200d", "\ufeff"),
    *("é", "e\u0301", "n\u0303", "ß", "a\u0308\u0323", "\u0301"),
    *("👍🏽", "👩‍👩‍👧‍👦", "🇫🇷", "❤️", "😀"),
    *("中文", "한국", "日本語", "אבג", "\u202eمرحبا\u202c", "ไทย"),
    *("[SEP]", "[CLS]", "[MASK]"),
]  # fmt: skip


def random_texts(
    seed: int, count: int, shortest: int = 1, longest: int = 200, subshards: list[str] = PIECES
) -> list[str]:
    """Texts of so many pieces: letters, spaces of all kinds, combining marks, emoji, other scripts, special tokens."""
    dice = random.Random(seed)
    return [
        "".join(dice.choices(subshards, k=dice.randint(shortest, longest))) for _ in range(count)
    ]


def assert_close(got: Any, want: Any, tolerance: float = 1e-5, place: str = "result") -> None:
    """Assert that nested results have the same shape, keys and texts, and numbers within `tolerance` of each other."""
    if isinstance(want, dict):
        assert isinstance(got, dict), (place, got)
        assert got.keys() == want.keys(), place
        for key in want:
            assert_close(got[key], want[key], tolerance, f"{place}.{key}")
    elif isinstance(want, (list, tuple)):
        assert isinstance(got, list), (place, got)
        assert len(got) == len(want), (place, got, want)
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_close(one, other, tolerance, f"{place}[{i}]")
    elif isinstance(want, (float, np.floating)):
        assert abs(got - want) <= tolerance * max(1, abs(want)), (place, got, want)
    else:
        assert got == want, place
