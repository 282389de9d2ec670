"""What a GPU can do: its compute capability, what fits into its memory, whether Triton runs on it;
and what the models of a process share on it.

`modernbert.kernels` needs Triton, which torch's wheels with CUDA bring along, and is imported here
alone.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from modernbert.config import ModernBertConfig

logger = logging.getLogger(__name__)
LAUNCHING = threading.Lock()
"""Held by whoever launches work on GPUs or captures a CUDA graph: torch captures one at a time in a
process, and no device may be waited for meanwhile. Launches are Python, so that threads take turns
in any case.
"""
NO_KERNELS = "without Triton's kernels, at about half the speed"
# What errors of libraries say that do not have torch's type for it.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",  # of pinned memory of the host, too
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def kernels_for(x: Tensor) -> ModuleType | None:
    """Return `modernbert.kernels` where `x` is on a GPU, in inference and not being compiled."""
    if x.device.type != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _kernels(x.device)


def upload(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Put int32 arrays on a device: on a GPU in one copy from pinned memory, without a wait."""
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    joined = torch.from_numpy(np.concatenate(arrays))
    is_gpu = device.type == "cuda"
    if is_gpu:
        joined = joined.pin_memory()
    on_device = joined.to(device, non_blocking=is_gpu)
    parts: tuple[Tensor, ...] = on_device.split([len(array) for array in arrays])
    return parts


def bytes_per_token(config: ModernBertConfig, per_token: bool, dtype: torch.dtype) -> int:
    """Return the memory in bytes that a forward pass takes for a token, at its peak.

    Args:
        config: the model's configuration.
        per_token: whether there is a head that runs on each token.
        dtype: the dtype of the encoder.
    """
    hidden = config.hidden_size
    # The hidden state, queries, keys, values and the result of attention.
    attention = 5 * hidden
    # The hidden state, the result of attention, a norm; both gated halves and their product.
    mlp = 3 * hidden + 3 * config.intermediate_size
    encoder_bytes = max(mlp, attention) * dtype.itemsize
    if not per_token:
        return encoder_bytes
    # The hidden state and, in fp32, the head's input and its two layers.
    head_bytes = hidden * (dtype.itemsize + 3 * 4)
    return max(encoder_bytes, head_bytes)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that a GPU, or pinned memory beside it, is full."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Compute products of fp32 matrices on GPUs in TF32, or in fp32, meanwhile.

    The setting is the process's: hold LAUNCHING.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU: (9, 0) for an H100."""
    return torch.cuda.get_device_capability(device)


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Import the kernels and run one; the slower path is not taken in silence where that fails."""
    _find_cache()
    try:
        from modernbert import kernels

        kernels.geglu(torch.zeros(1, 32, device=device))
    # No Triton, no C compiler for its launcher, a GPU that it does not support, and more.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(
            "Triton's kernels do not run on %s (%s: %s); the model runs %s",
            device,
            type(error).__name__,
            reason,
            NO_KERNELS,
        )
        return None
    return kernels


def _find_cache() -> None:
    """Let Triton keep what it compiles in a temporary folder of this process where it cannot write
    to its own.
    """
    if "TRITON_CACHE_DIR" in os.environ:
        return
    try:
        home = os.environ.get("TRITON_HOME") or Path.home()
        folder = Path(home, ".triton", "cache")
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no folder can be made, or there is no home
        writable = False
    if not writable:
        temporary = tempfile.mkdtemp(prefix="triton-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["TRITON_CACHE_DIR"] = temporary
