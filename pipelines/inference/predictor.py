"""Predictor: a checkpoint loaded once, windows in, predictions out; all faces share it.

Shapes: T packed tokens, W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from modernbert import fusions, gpu, int8, native
from modernbert.attention_kernels import resolve_backend
from modernbert.checkpoint import as_dtype
from modernbert.linear import prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.text.windows import Text, Windows
from modernbert.tiles import Fusions
from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.inference.bucketing import packed_batches
from pipelines.inference.loading import cpu_budget, gpu_budget, resolve_dtype
from pipelines.inference.outputs import ValuesBuilder, joined, model_outputs, ranges
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import Head, ModelOutputs, Predictions

logger = logging.getLogger(__name__)
Values = torch.Tensor | Callable[[], torch.Tensor]
"""What a task's `forward` returns."""
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

        `device`, `dtype`: torch's names; dtype "auto" is float32 on CPUs and bfloat16 on GPUs
        (float16 before compute capability 8.0); "float8" on GPUs and "int8" on CPUs are those with
        the encoder's products in them.
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
        if self.device.type == "cuda":
            self.dtype = resolve_dtype(dtype, "cuda", gpu.compute_capability(self.device))
        else:
            self.dtype = resolve_dtype(dtype, self.device.type)
        self.torch_dtype = self._dtype_of_weights()
        if self.device.type == "cpu" and threads:
            torch.set_num_threads(threads)
        self._launching = threading.Lock()
        if self.device.type == "cuda":
            self._launching = gpu.LAUNCHING
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
        if self.device.type == "cuda":
            with self._launching:
                self.fuse(fusions.fastest(self.encoders[0]))
        if graphs and self.device.type == "cuda":
            self._enable_graphs()
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

    def _enable_graphs(self) -> None:
        if self.dtype == "float8":
            from modernbert.float8 import why_no_graphs

            if reason := why_no_graphs(self.device):
                logger.warning(reason)
                return
        with self._launching, torch.inference_mode():
            for encoder in self.encoders:
                encoder.enable_graphs()

    def fuse(self, chosen: Fusions) -> None:
        """Compute the layers of all encoders on a GPU so from now on, as far as they can be."""
        for encoder in self.encoders:
            fusions.use(encoder, chosen)

    @property
    def encoders(self) -> list[ModernBertModel]:
        """The encoder of the model; of several models, each once."""
        return [each for each in self.model.modules() if isinstance(each, ModernBertModel)]

    @property
    def attention(self) -> str | None:
        """How attention is computed: by which backend on a GPU; on a CPU in which way, where there
        is a choice: in half precision, in int8, and where the library of modernbert/csrc is used.
        """
        if self.device.type == "cuda":
            return self.attention_backend
        if self.device.type != "cpu":
            return None
        if self.dtype == "float32" and native.library() is None:
            return None
        way = self.encoders[0].cpu_way
        return f"{way.product}, tiles of {way.tile}"

    @property
    def attention_backend(self) -> str:
        """The backend of attention, and on a GPU whether the model runs without its kernels."""
        encoder = self.encoders[0]
        weight = next(encoder.parameters())
        backend = resolve_backend(
            encoder.attention, self.device, self.torch_dtype, encoder.config.head_dim
        )
        with torch.inference_mode():
            has_kernels = gpu.kernels_for(weight) is not None
        return backend if has_kernels else f"{backend}, {gpu.NO_KERNELS}"

    @property
    def fusions(self) -> str | None:
        """How the layers run on a GPU, as far as there was a choice; None: on a CPU."""
        return str(self.encoders[0].fusions) if self.device.type == "cuda" else None

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

        def halve(windows: np.ndarray, error: RuntimeError) -> None:
            if not gpu.is_out_of_memory(error):
                raise error
            if len(windows) == 1:
                reason = f"out of memory on {self.device}: {str(error).splitlines()[0]}"
                failed[int(windows[0])] = reason
                return
            middle = len(windows) // 2
            to_run.extendleft((windows[middle:], windows[:middle]))

        while to_run or in_flight:
            # Values are fetched only once the device has all the work that it is given ahead.
            if not to_run or len(in_flight) == most_in_flight:
                windows, waits = in_flight.popleft()
                try:
                    values_of_heads = [wait_for_values() for wait_for_values in waits]
                except RuntimeError as error:
                    halve(windows, error)
                    continue
                for of_head, values in zip(collected, values_of_heads, strict=True):
                    of_head.put(windows, values)
                batches += 1
                if batch_is_done:
                    batch_is_done()
                continue
            windows = to_run.popleft()
            ids = input_ids[ranges(cu_seqlens, windows)]
            try:
                in_flight.append((windows, self._launch(heads, ids, lengths[windows])))
            except RuntimeError as error:
                halve(windows, error)
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

        Raises RuntimeError where it does not fit (`gpu.is_out_of_memory`).
        """
        # Heads and poolings are fp32; behind a half-precision encoder TF32 is more than it gives.
        precision: Callable[[], AbstractContextManager[None]] = nullcontext
        if self.device.type == "cuda":
            precision = partial(gpu.tf32_products, self.torch_dtype != torch.float32)

        def launch() -> list[Callable[[], np.ndarray]]:
            batch = PackedBatch.from_arrays(ids, lengths.tolist(), self.device)
            waits: list[Callable[[], np.ndarray]] = []
            for task, model in heads:
                with precision():
                    waits.append(self._download(task.forward(model, batch, ids)))
            return waits

        with self._launching:
            try:
                return launch()
            except RuntimeError as error:
                if self.device.type == "cpu" or not gpu.is_out_of_memory(error):
                    raise
            # The memory of all batches in flight is free once they have ended.
            torch.cuda.synchronize(self.device)
            return launch()

    def _download(self, values: Values) -> Callable[[], np.ndarray]:
        """Start the copy of values to the host and return what waits for them."""
        if self.device.type == "cpu":
            on_host = values if isinstance(values, torch.Tensor) else values()
            return on_host.float().numpy
        if isinstance(values, torch.Tensor):
            values = values.float()
        # The copies have a stream of their own, beside what is computed next.
        copies = self._copies
        copies.wait_stream(torch.cuda.current_stream(self.device))
        # A thread that waits for a blocking event leaves its core to others.
        done = torch.cuda.Event(blocking=True)
        if not isinstance(values, torch.Tensor):
            done.record(copies)
            return partial(self._fetch, values, done)
        outputs = values
        with torch.cuda.stream(copies):
            copied = torch.empty(outputs.shape, dtype=outputs.dtype, pin_memory=True)
            copied.copy_(outputs, non_blocking=True)
            outputs.record_stream(copies)
            done.record(copies)

        def wait() -> np.ndarray:
            done.synchronize()
            return copied.numpy()

        return wait

    def _fetch(
        self, count_values: Callable[[], torch.Tensor], done: torch.cuda.Event
    ) -> np.ndarray:
        """Return values of which the device knows how many there are, once it has computed them."""
        done.synchronize()
        with torch.cuda.stream(self._copies):
            return count_values().float().cpu().numpy()


def _windows_not_finite(values: np.ndarray, splits: np.ndarray) -> list[int]:
    """Return the windows of whose values (R, C) some are not finite numbers."""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    windows = np.searchsorted(splits, rows, side="right") - 1
    return [int(window) for window in np.unique(windows)]
