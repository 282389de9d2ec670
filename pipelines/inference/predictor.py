"""Predictor: a checkpoint loaded once, windows in, predictions out; all faces share it.

Shapes: T packed tokens, W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from modernbert import int8, native
from modernbert.checkpoint import as_dtype
from modernbert.linear import prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.inference.bucketing import packed_batches
from pipelines.inference.loading import cpu_budget, gpu_budget, resolve_dtype
from pipelines.inference.outputs import ValuesBuilder, joined, model_outputs, ranges
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import Head, ModelOutputs, Predictions

IN_FLIGHT = 3
"""Packed batches that a GPU is given ahead: one that it computes, one that is copied, one more."""


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
        graphs: bool = False,
    ):
        """Load the checkpoint.

        `device`, `dtype`: torch's names; dtype "auto" is float32 on CPUs and bfloat16 on GPUs;
        "float8" on GPUs and "int8" on CPUs are those with the encoder's products in them.
        `budget_tokens`: the most tokens in a packed batch, None for what the device holds.
        `threads`: CPU threads of torch, None to leave its setting. `graphs`: whether small batches
        run as CUDA graphs where they can, for latency. Raises ValueError for an unknown dtype or
        one that the device does not have, and for a budget below 1.
        """
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(f"budget_tokens {budget_tokens} must be at least 1")
        self.device = torch.device(device)
        self.checkpoint = checkpoint
        self.task = task
        self.dtype = resolve_dtype(dtype, self.device.type)
        self.torch_dtype = self._dtype_of_weights()
        self._launching = threading.Lock()
        if self.device.type == "cpu" and threads:
            torch.set_num_threads(threads)
        if self.device.type == "cuda":
            # Reductions stay in float32: what half precision loses depends on the shape of a batch.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            self._copies = torch.cuda.Stream(self.device)
        self.model = task.load(checkpoint, self.device, self.torch_dtype)
        if self.dtype == "float8":
            from modernbert.float8 import quantise

            quantise(self.model)
        if self.dtype == "int8":
            int8.quantise(self.model)
        prepack(self.model)
        if graphs and self.device.type == "cuda":
            for encoder in self.encoders:
                encoder.enable_graphs()
        # Only now, with the model loaded, is it known what a GPU has left.
        self.budget_tokens = budget_tokens or self._default_budget()

    def _dtype_of_weights(self) -> torch.dtype:
        if self.dtype == "float8":
            return torch.bfloat16
        if self.dtype == "int8":
            if reason := int8.why_unsupported():  # before the weights are read
                raise UserError(reason)
            return int8.compute_dtype()
        return as_dtype(self.dtype)

    @property
    def encoders(self) -> list[ModernBertModel]:
        """The encoder of the model; of several models, each once."""
        return [each for each in self.model.modules() if isinstance(each, ModernBertModel)]

    @property
    def attention(self) -> str | None:
        """How attention is computed on a CPU, where there is a choice: in half precision, in int8
        and where the library of modernbert/csrc is used.
        """
        if self.device.type != "cpu":
            return None
        if self.dtype == "float32" and native.library() is None:
            return None
        way = self.encoders[0].cpu_way
        return f"{way.product}, tiles of {way.tile}"

    def _default_budget(self) -> int:
        on_cpu = cpu_budget(self.device.type)
        if on_cpu is not None:
            return on_cpu
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        budgets: list[int] = []
        for encoder in self.encoders:
            budget = gpu_budget(free_bytes, encoder.config, self.task.per_token, self.torch_dtype)
            budgets.append(budget)
        return min(budgets)

    def answer(
        self, documents: Sequence[Text], task: Task | None = None
    ) -> tuple[ModelOutputs, dict[int, str]]:
        """Encode and run documents; `task` stands in for the predictor's own.

        Returns what `decode` and `results` of the task take, and the documents that failed with the
        reason.
        """
        task = task or self.task
        tokenizer = self.checkpoint.tokenizer
        windows = task.encode(tokenizer, documents)
        predictions = self.predict_windows(windows, task=task)
        failed: dict[int, str] = {}
        for number, reason in windows.rejected.items():
            failed.setdefault(number % len(documents), reason)
        for window, reason in predictions.failed.items():
            failed.setdefault(int(windows.document[window]) % len(documents), reason)
        outputs = model_outputs(
            task, tokenizer, documents, windows, predictions.values, predictions.splits
        )
        return outputs, failed

    def predict_windows(
        self,
        windows: Windows,
        batch_is_done: Callable[[], None] | None = None,
        task: Task | None = None,
    ) -> Predictions:
        """Run all windows of documents, as `predict` does; where the task has several models, each
        runs its own.
        """
        task = task or self.task
        if task.parts == (task,):
            return self.predict(windows.input_ids, windows.cu_seqlens, batch_is_done, task)
        predictions: list[Predictions] = []
        first = 0
        for one_pass in task.passes(self.model, windows):
            ids, cu_seqlens = one_pass.input_ids, one_pass.cu_seqlens
            of_heads = self._predict(one_pass.heads, ids, cu_seqlens, batch_is_done)
            predictions += [replace(each, first_window=first) for each in of_heads]
            first += len(cu_seqlens) - 1
        return joined(predictions)

    def predict(
        self,
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        batch_is_done: Callable[[], None] | None = None,
        task: Task | None = None,
    ) -> Predictions:
        """Run windows laid end to end, `input_ids` (T,) cut at `cu_seqlens` (W+1,), and return
        their values in order.

        `batch_is_done` is called when the values of a packed batch have come. A GPU has up to
        IN_FLIGHT batches of a call at a time, so that it never waits for the host; several threads
        may call at once. A batch that exceeds the device's memory is halved until it fits;
        a window that fails alone, or whose values are not finite, is in `failed`.
        """
        heads = [(task or self.task, self.model)]
        return self._predict(heads, input_ids, cu_seqlens, batch_is_done)[0]

    @torch.inference_mode()
    def _predict(
        self,
        heads: Sequence[Head],
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        batch_is_done: Callable[[], None] | None,
    ) -> list[Predictions]:
        """Run windows as `predict` does, through each of several heads: the predictions of each."""
        started = time.perf_counter()
        lengths = np.diff(cu_seqlens)
        collected = [ValuesBuilder(task, input_ids, cu_seqlens) for task, _ in heads]
        failed: dict[int, str] = {}
        to_run = deque(packed_batches(lengths, self.budget_tokens))
        in_flight: deque[tuple[np.ndarray, list[Callable[[], np.ndarray]]]] = deque()
        most_in_flight = 1 if self.device.type == "cpu" else IN_FLIGHT
        batches = 0
        while to_run or in_flight:
            # Values are fetched only once the device has all the work that it is given ahead.
            if not to_run or len(in_flight) == most_in_flight:
                windows, waits = in_flight.popleft()
                for of_head, wait_for_values in zip(collected, waits, strict=True):
                    of_head.put(windows, wait_for_values())
                batches += 1
                if batch_is_done:
                    batch_is_done()
                continue
            windows = to_run.popleft()
            ids = input_ids[ranges(cu_seqlens, windows)]
            try:
                waits = self._launch(heads, ids, lengths[windows])
            except torch.OutOfMemoryError as error:
                if len(windows) == 1:
                    reason = f"out of memory on {self.device}: {str(error).splitlines()[0]}"
                    failed[int(windows[0])] = reason
                    continue
                middle = len(windows) // 2
                to_run.appendleft(windows[middle:])
                to_run.appendleft(windows[:middle])
                continue
            in_flight.append((windows, waits))
        seconds = time.perf_counter() - started
        predictions: list[Predictions] = []
        for of_head in collected:
            values, splits = of_head.finish()
            for window in _windows_not_finite(values, splits):
                failed[window] = "the model's answer is not a finite number"
            predictions.append(Predictions(values, splits, failed, batches, seconds))
        return predictions

    def _launch(
        self, heads: Sequence[Head], ids: np.ndarray, lengths: np.ndarray
    ) -> list[Callable[[], np.ndarray]]:
        """Start a packed batch and return what waits for its values (R, C), for each head.

        Raises OutOfMemoryError where it does not fit.
        """

        def launch() -> list[Callable[[], np.ndarray]]:
            batch = PackedBatch.from_arrays(ids, lengths.tolist(), self.device)
            waits: list[Callable[[], np.ndarray]] = []
            for task, model in heads:
                values = task.forward(model, batch, ids)
                waits.append(self._download(values.float()))
            return waits

        with self._launching:
            try:
                return launch()
            except torch.OutOfMemoryError:
                if self.device.type == "cpu":
                    raise
            # The memory of all batches in flight is free once they have ended.
            torch.cuda.synchronize(self.device)
            return launch()

    def _download(self, outputs: torch.Tensor) -> Callable[[], np.ndarray]:
        """Start the copy of values to the host and return what waits for them."""
        if self.device.type == "cpu":
            return outputs.numpy
        # The copies have a stream of their own, beside what is computed next.
        copies = self._copies
        copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(copies):
            values = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
            values.copy_(outputs, non_blocking=True)
            outputs.record_stream(copies)
            # A thread that waits for a blocking event leaves its core to others.
            copied = torch.cuda.Event(blocking=True)
            copied.record(copies)

        def wait() -> np.ndarray:
            copied.synchronize()
            return values.numpy()

        return wait


def _windows_not_finite(values: np.ndarray, splits: np.ndarray) -> list[int]:
    """Return the windows of whose values (R, C) some are not finite numbers."""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    windows = np.searchsorted(splits, rows, side="right") - 1
    return [int(window) for window in np.unique(windows)]
