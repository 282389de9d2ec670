"""From packed batches to what a task decodes: the model's values in the order of their windows.

Shapes: T packed tokens, W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs, Predictions


def model_outputs(
    task: Task,
    tokenizer: Tokenizer,
    documents: Sequence[Text] | None,
    windows: Windows,
    values: np.ndarray,
    splits: np.ndarray,
) -> ModelOutputs:
    """Put together what `decode`, `results` and `response` of a task take.

    Args:
        task: the task that ran.
        tokenizer: that of its checkpoint.
        documents: those of the windows; None where the task decodes without them
            (`Task.needs_documents`).
        windows: all windows of the documents.
        values: the model's values for them, float32, (R, C) or flat.
        splits: (W+1,): the rows of window w are `splits[w]:splits[w + 1]`.
    """
    if documents is None:
        documents = [""] * len(windows.n_tokens)
    return ModelOutputs(documents, windows, values.reshape(-1, task.width), splits, tokenizer)


class ValuesBuilder:
    """The rows of values of each window, in the order of the windows, as packed batches come.

    Where the task knows how many rows a window has, these are zeros until they come; else none.
    """

    def __init__(self, task: Task, input_ids: np.ndarray, cu_seqlens: np.ndarray):
        """Make room for the windows `input_ids` (T,), cut at `cu_seqlens` (W+1,)."""
        windows = len(cu_seqlens) - 1
        known_counts = task.rows(input_ids, cu_seqlens)
        self.counts = np.zeros(windows, dtype=np.int64) if known_counts is None else known_counts
        """(W,): the rows of each window, 0 for one whose rows are not known yet."""
        self._splits = _splits(self.counts)
        self._task_width = task.width
        self._values = np.zeros((self._splits[-1], task.width), dtype=np.float32)
        no_rows = self._values[:0]
        # Rows have no place among others until all counts are known: each window keeps its own.
        self._rows_of_window = [no_rows] * windows if known_counts is None else None

    def put(self, windows: np.ndarray, values: np.ndarray) -> None:
        """Take the values of `windows`, (R, C) in their order.

        Where the task does not know the rows of a window they are (R, 1 + C), with the place of the
        window among `windows` before each row.
        """
        if self._rows_of_window is None:
            self._values[ranges(self._splits, windows)] = values
            return
        places = values[:, 0].astype(np.int64)
        counts = np.bincount(places, minlength=len(windows))
        rows_by_window = np.split(values[:, 1:], np.cumsum(counts)[:-1])
        for window, rows in zip(windows.tolist(), rows_by_window, strict=True):
            self.put_one(window, rows)

    def put_one(self, window: int, values: np.ndarray) -> None:
        """Take the values (R, C) of a window."""
        if self._rows_of_window is None:
            self._values[self._splits[window] : self._splits[window + 1]] = values
            return
        self._rows_of_window[window] = values
        self.counts[window] = len(values)

    @property
    def numbers(self) -> int:
        """The numbers that have come, or of all windows where the task knows their rows."""
        rows = int(self.counts.sum())
        return rows * self._task_width

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the values (R, C) and the splits (W+1,).

        Window w has the rows `splits[w]:splits[w + 1]`.
        """
        if self._rows_of_window is None:
            return self._values, self._splits
        values = np.concatenate([self._values, *self._rows_of_window])
        return values, _splits(self.counts)


def ranges(splits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the indices `splits[w]:splits[w + 1]` of windows w, one window after the other."""
    starts = splits[windows]
    counts = splits[windows + 1] - starts
    # Index i of the result lies in a window whose rows begin at `before` there, `starts` here.
    before = np.cumsum(counts) - counts
    shifts = np.repeat(starts - before, counts)
    indices: np.ndarray = np.arange(len(shifts)) + shifts
    return indices


def _splits(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts)))


def joined(predictions: Sequence[Predictions]) -> Predictions:
    """Lay the predictions of several heads end to end, as one of flat values.

    Returns:
        Predictions whose `values` are those of one head after the other, and whose `splits` count
        numbers, not rows, from 0 for each head. Heads that share windows share their batches.
    """
    failed: dict[int, str] = {}
    batches: dict[int, int] = {}  # by the first window of those that go through heads together
    seconds: dict[int, float] = {}
    for each in predictions:
        for window, reason in each.failed.items():
            failed.setdefault(each.first_window + window, reason)
        batches[each.first_window] = each.batches
        seconds[each.first_window] = each.seconds
    return Predictions(
        values=np.concatenate([each.values.ravel() for each in predictions]),
        splits=np.concatenate([each.splits * each.values.shape[1] for each in predictions]),
        failed=failed,
        batches=sum(batches.values()),
        seconds=sum(seconds.values()),
    )
