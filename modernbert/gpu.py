"""What a GPU can do: its compute capability, what fits into its memory, whether Triton runs on it.

`modernbert.kernels` needs Triton, which torch's wheels with CUDA bring along, and is imported here
alone.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from modernbert.config import ModernBertConfig

logger = logging.getLogger(__name__)


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


@cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU: (9, 0) for an H100."""
    return torch.cuda.get_device_capability(device)


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Import the kernels and run one; the slower path is not taken in silence where that fails."""
    try:
        from modernbert import kernels

        kernels.geglu(torch.zeros(1, 32, device=device))
    # No Triton, no C compiler for its launcher, a GPU that it does not support, and more.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(
            "Triton's kernels do not run on %s (%s: %s); the model runs without them, at about "
            "half the speed",
            device,
            type(error).__name__,
            reason,
        )
        return None
    return kernels
