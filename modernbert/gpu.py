"""What is asked of a GPU before a model runs on it: compute capability, memory, whether Triton's
kernels run.

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
    """Return `modernbert.kernels` where `x` is on a GPU in inference, else None: on CPUs, in
    training, compiled.
    """
    if x.device.type != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _kernels(x.device)


def upload(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    """Put int32 arrays on a device: a GPU gets them in one copy from pinned memory, which nothing
    waits for.
    """
    if device.type == "cpu":
        return tuple(torch.from_numpy(array) for array in arrays)
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return joined.to(device, non_blocking=device.type == "cuda").split(
        [len(array) for array in arrays]
    )


def bytes_per_token(config: ModernBertConfig, per_token: bool, dtype: torch.dtype) -> int:
    """Return the memory that a forward pass takes for a token, at its peak: in a layer, or in a
    head on each token.

    The MLP holds the hidden state, the result of attention, a norm, both halves of the gated layer
    and their product; attention the hidden state, queries, keys, values and the result; a head the
    hidden state and, in fp32, its input and two layers.
    """
    hidden, mlp = config.hidden_size, 3 * config.hidden_size + 3 * config.intermediate_size
    encoder = max(mlp, 5 * hidden) * dtype.itemsize
    return max(encoder, hidden * (dtype.itemsize + 3 * 4)) if per_token else encoder


@cache
def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU: (9, 0) for an H100."""
    return torch.cuda.get_device_capability(device)


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Import the kernels and run one; warn where that fails, so that the slower path is not taken
    in silence.
    """
    try:
        from modernbert import kernels

        kernels.geglu(torch.zeros(1, 32, device=device))
    except (
        Exception
    ) as error:  # no Triton, no C compiler for its launcher, a GPU that it does not support
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
