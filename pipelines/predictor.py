"""Predictor: a checkpoint loaded once, packed windows in, predictions out. The one class of Data and of Serve; no Ray.

Shapes: T packed tokens, W windows, C outputs a window.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modernbert.checkpoint import DTYPES, load
from modernbert.linear import prepack
from modernbert.packing import PackedBatch
from pipelines.bucketing import packed_batches
from pipelines.tasks.classify import Classify

BUDGET_TOKENS = {"cpu": 4096, "cuda": 65536}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True)
class Outputs:
    """What the model said of some windows."""

    values: np.ndarray
    """(W, C) float32; rows of failed windows are not meaningful."""
    failed: dict[int, str]
    """Window to the reason why there is no answer for it."""
    batches: int
    """Packed batches run."""
    seconds: float


class Predictor:
    """A task's model on one device."""

    def __init__(
        self,
        folder: Path,
        task: Classify,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        budget_tokens: int | None = None,
        threads: int | None = None,
    ):
        """Load the checkpoint in `folder`; `threads`: of the CPU, None to leave torch's setting."""
        self.device = torch.device(device)
        if threads and device == "cpu":
            torch.set_num_threads(threads)
        self.task = task
        self.budget_tokens = budget_tokens or BUDGET_TOKENS[self.device.type]
        dtype = DTYPE[self.device.type] if dtype == "auto" else dtype
        self.model = load(task.model_class, folder, device=self.device, dtype=DTYPES[dtype])
        prepack(self.model)

    @torch.inference_mode()
    def predict(
        self, input_ids: np.ndarray, cu_seqlens: np.ndarray, done: Callable[[int, int], None] | None = None
    ) -> Outputs:
        """Run windows laid end to end, `input_ids` (T,) cut at `cu_seqlens` (W+1,); answers keep their order.

        `done(windows, tokens)` is called after each packed batch. A batch that does not fit the device's memory is
        halved until it does; a window that fails alone, or whose answer is not finite, is in `failed`.
        """
        started = time.perf_counter()
        lengths = np.diff(cu_seqlens)
        failed: dict[int, str] = {}
        pieces: list[tuple[np.ndarray, torch.Tensor]] = []
        queue = packed_batches(lengths, self.budget_tokens)[::-1]
        batches = 0
        while queue:
            rows = queue.pop()
            try:
                ids = np.concatenate([input_ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in rows])
                batch = PackedBatch.from_lengths(self._to_device(ids), tuple(lengths[rows].tolist()))
                pieces.append((rows, self.model.forward_packed(batch)))
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    failed[int(rows[0])] = f"out of memory on {self.device}: {str(error).splitlines()[0]}"
                else:
                    queue += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
                continue
            batches += 1
            if done:
                done(len(rows), len(ids))
        values = np.zeros((len(lengths), len(self.task.labels)), dtype=np.float32)
        for rows, outputs in pieces:  # only now does the host wait for a device
            values[rows] = outputs.float().cpu().numpy()
        for i in np.flatnonzero(~np.isfinite(values).all(axis=1)):
            failed[int(i)] = "the model's answer is not a finite number"
        return Outputs(values, failed, batches, time.perf_counter() - started)

    def _to_device(self, ids: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(ids)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
