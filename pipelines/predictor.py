"""Predictor: a checkpoint loaded once, windows in, predictions out. Ray Data, Ray Serve and memory share it.

Shapes: T packed tokens, W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from modernbert.checkpoint import as_dtype
from modernbert.linear import prepack
from modernbert.packing import PackedBatch
from modernbert.windows import Text
from pipelines.bucketing import packed_batches
from pipelines.checkpoints import Checkpoint
from pipelines.tasks.base import ModelOutputs, Predictions, Task

logger = logging.getLogger(__name__)
BUDGET_TOKENS = {"cpu": 4096, "cuda": 65536}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


class Predictor:
    """A task's model on one device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        budget_tokens: int | None = None,
        threads: int | None = None,
    ):
        """Load the checkpoint.

        `device`, `dtype`: torch's names; dtype "auto" is float32 on CPUs and bfloat16 on GPUs. `budget_tokens`: the
        most tokens in a packed batch. `threads`: CPU threads of torch, None to leave its setting. Raises ValueError for
        an unknown dtype and a budget below 1.
        """
        self.device = torch.device(device)
        if threads and self.device.type == "cpu":
            torch.set_num_threads(threads)
        self.checkpoint, self.task = checkpoint, task
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(f"budget_tokens {budget_tokens} must be at least 1")
        self.budget_tokens = budget_tokens or BUDGET_TOKENS[self.device.type]
        self.dtype = DTYPE[self.device.type] if dtype == "auto" else dtype
        warn_of_slow_dtype(self.device.type, self.dtype)
        self.model = task.load(checkpoint, self.device, as_dtype(self.dtype))
        prepack(self.model)

    def answer(self, documents: Sequence[Text], task: Task | None = None) -> tuple[ModelOutputs, dict[int, str]]:
        """Encode and run documents; `task` stands in for the predictor's own.

        Returns what `decode` and `results` of the task take, and the documents that failed with the reason.
        """
        task = task or self.task
        tokenizer = self.checkpoint.tokenizer
        windows = task.encode(tokenizer, documents)
        predictions = self.predict(windows.input_ids, windows.cu_seqlens, task=task)
        failed = windows.rejected | {int(windows.document[w]): reason for w, reason in predictions.failed.items()}
        return ModelOutputs(documents, windows, predictions.values, predictions.splits, tokenizer), failed

    @torch.inference_mode()
    def predict(
        self,
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        done: Callable[[int, int], None] | None = None,
        task: Task | None = None,
    ) -> Predictions:
        """Run windows laid end to end, `input_ids` (T,) cut at `cu_seqlens` (W+1,), and return their values in order.

        `done(windows, tokens)` is called after each packed batch. A batch that exceeds the device's memory is halved
        until it fits; a window that fails alone, or whose values are not finite, is in `failed`.
        """
        started = time.perf_counter()
        task = task or self.task
        lengths = np.diff(cu_seqlens)
        splits = np.concatenate(([0], np.cumsum(task.rows(input_ids, cu_seqlens))))
        failed: dict[int, str] = {}
        computed: list[tuple[np.ndarray, torch.Tensor]] = []
        queue = packed_batches(lengths, self.budget_tokens)[::-1]
        batches = 0
        while queue:
            windows = queue.pop()
            try:
                ids = input_ids[_ranges(cu_seqlens, windows)]
                batch = PackedBatch.from_lengths(self._to_device(ids), tuple(lengths[windows].tolist()))
                computed.append((windows, task.forward(self.model, batch, ids)))
            except torch.OutOfMemoryError as error:
                if len(windows) == 1:
                    failed[int(windows[0])] = f"out of memory on {self.device}: {str(error).splitlines()[0]}"
                else:
                    queue += [windows[len(windows) // 2 :], windows[: len(windows) // 2]]
                continue
            batches += 1
            if done:
                done(len(windows), len(ids))
        values = np.zeros((splits[-1], task.width), dtype=np.float32)
        for windows, outputs in computed:  # only now does the host wait for a device
            values[_ranges(splits, windows)] = outputs.float().cpu().numpy()
        bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        for w in np.unique(np.searchsorted(splits, bad_rows, side="right") - 1):
            failed[int(w)] = "the model's answer is not a finite number"
        return Predictions(values, splits, failed, batches, time.perf_counter() - started)

    def _to_device(self, ids: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(ids)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


def warn_of_slow_dtype(device: str, dtype: str) -> None:
    """Warn of bfloat16 on an x86 CPU that has no instructions for it: about three times slower than float32."""
    if (device, dtype) != ("cpu", "bfloat16"):
        return
    if torch.cpu._is_avx2_supported() and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    ):
        logger.warning(
            "bfloat16 on this CPU, which has neither AVX512_BF16 nor AMX, is about three times slower than float32; "
            "use dtype float32"
        )


def _ranges(splits: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the indices `splits[w]:splits[w + 1]` of windows w, one window after the other."""
    starts, counts = splits[windows], splits[windows + 1] - splits[windows]
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)
