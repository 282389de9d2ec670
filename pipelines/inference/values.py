"""The values that the model gives for windows, collected as their packed batches come.

Shapes: W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

import numpy as np

from pipelines.tasks.base import Task


class ValuesBuilder:
    """The rows of values of each window, in the order of the windows.

    Where the task knows how many rows a window has, these are zeros until they come; else none.
    """

    def __init__(self, task: Task, input_ids: np.ndarray, cu_seqlens: np.ndarray):
        rows = task.rows(input_ids, cu_seqlens)
        self.counts = np.zeros(len(cu_seqlens) - 1, dtype=np.int64) if rows is None else rows
        self._splits = _splits(self.counts)
        self._values = np.zeros((self._splits[-1], task.width), dtype=np.float32)
        self._pieces = [self._values[:0]] * len(self.counts) if rows is None else None

    def put(self, windows: np.ndarray, values: np.ndarray) -> None:
        """Take the values of `windows`, (R, C) in their order; where the task does not know the
        rows of a window, (R, 1 + C), with the place of the window among `windows` before each row.
        """
        if self._pieces is None:
            self._values[ranges(self._splits, windows)] = values
            return
        counts = np.bincount(values[:, 0].astype(np.int64), minlength=len(windows))
        for window, piece in zip(
            windows.tolist(), np.split(values[:, 1:], np.cumsum(counts)[:-1]), strict=True
        ):
            self.put_one(window, piece)

    def put_one(self, window: int, values: np.ndarray) -> None:
        """Take the values (R, C) of a window."""
        if self._pieces is None:
            self._values[self._splits[window] : self._splits[window + 1]] = values
        else:
            self._pieces[window], self.counts[window] = values, len(values)

    @property
    def numbers(self) -> int:
        """The numbers that have come, or of all windows where the task knows their rows."""
        return int(self.counts.sum()) * self._values.shape[1]

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the values (R, C), and the splits (W+1,): window w has the rows
        `splits[w]:splits[w + 1]`.
        """
        if self._pieces is None:
            return self._values, self._splits
        return np.concatenate([self._values, *self._pieces]), _splits(self.counts)


def ranges(splits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the indices `splits[w]:splits[w + 1]` of windows w, one window after the other."""
    starts, counts = splits[windows], splits[windows + 1] - splits[windows]
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _splits(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts)))
