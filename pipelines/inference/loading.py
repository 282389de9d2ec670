"""How a model is run: on which device, in which dtype, with how many tokens in a packed batch.

These are decided here alone, for all faces. Readers and committers of a job know a ModelRun without
torch, so that torch is imported only where something is decided.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.model_options import ModelOptions
from pipelines.tasks.base import Task

if TYPE_CHECKING:
    import torch

    from modernbert.config import ModernBertConfig

logger = logging.getLogger(__name__)
CPU_TOKENS = 4096
"""Tokens in a packed batch on a CPU: larger ones are no faster."""
ONLINE_CPU_TOKENS = 1024
"""The same online: requests wait for the batch before theirs, and a CPU loses little by less."""
MOST_GPU_TOKENS = 65536
"""Tokens in a packed batch on a GPU that has the memory: larger ones are no faster."""
LEAST_GPU_TOKENS = 1024
"""The same on a GPU with next to no memory left: what does not fit is halved."""
_DTYPE_OF_DEVICE = {"cpu": "float32", "cuda": "bfloat16"}
_GPU_DTYPES = ("float16", "float8")
_FIRST_WITH_BFLOAT16 = (8, 0)  # the compute capability of an A100


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What an actor needs to know: a model, its task, and how it is run."""

    model: Checkpoint
    task: Task
    device: str
    dtype: str
    budget_tokens: int | None
    """The most tokens in a packed batch; None: as many as the memory of an actor's GPU allows."""
    batch_timeout_s: float
    """The seconds that a packed batch may take before its actor is ended and replaced."""


def resolve_run(
    options: ModelOptions, checkpoint: Checkpoint, task: Task, device: str, batch_timeout_s: float
) -> ModelRun:
    """Choose the dtype and the token budget of actors on `device`, "cpu" or "cuda".

    Raises UserError for a dtype that the device does not have.
    """
    if device == "cpu" and options.dtype in _GPU_DTYPES:
        raise UserError(f"dtype {options.dtype} is for GPUs; on CPUs use float32, bfloat16 or int8")
    return ModelRun(
        model=checkpoint,
        task=task,
        device=device,
        dtype=resolve_dtype(options.dtype, device),
        budget_tokens=options.budget_tokens or cpu_budget(device),
        batch_timeout_s=batch_timeout_s,
    )


def gpu_is_here() -> bool:
    """Tell whether torch sees a GPU on this machine."""
    import torch

    return torch.cuda.is_available()


def device_here(device: str) -> str:
    """Return the device of this machine, "cpu" or "cuda", that "cpu", "cuda" or "auto" stands for.

    "cuda" is taken at its word, also where there is none.
    """
    if device != "auto":
        return device
    return "cuda" if gpu_is_here() else "cpu"


def device_in_memory(device: int | str | torch.device | None) -> str:
    """Return torch's name of the device of this machine that an argument of `pipeline` stands for.

    `device`: a GPU's number, -1 for the CPU, a torch device or its name, None for a GPU where there
    is one. Raises ValueError for a device that is unknown or not there.
    """
    import torch

    if device is None:
        return device_here("auto")
    if isinstance(device, int):
        device = f"cuda:{device}" if device >= 0 else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: {str(error).splitlines()[0]}") from error
    if str(device).startswith("cuda") and not gpu_is_here():
        raise ValueError(f"device {device}: torch sees no GPU here")
    return str(device)


def resolve_dtype(
    dtype: str, device: str, capability: tuple[int, int] = _FIRST_WITH_BFLOAT16
) -> str:
    """Return `dtype`, or what "auto" stands for on `device`: float32 on CPUs, bfloat16 on GPUs, on
    those without it float16.

    `capability`: the compute capability of the GPU, as far as it is known. Warns of bfloat16 on a
    CPU that multiplies it more slowly than float32. Raises UserError for int8 on a GPU, and for
    bfloat16 on one that only emulates it.
    """
    if device != "cpu" and dtype == "int8":
        raise UserError("dtype int8 is for CPUs; on GPUs use bfloat16 or float8")
    has_bfloat16 = capability >= _FIRST_WITH_BFLOAT16
    if dtype == "auto":
        return _DTYPE_OF_DEVICE[device] if has_bfloat16 else "float16"
    if dtype == "bfloat16" and not has_bfloat16:
        major, minor = capability
        raise UserError(
            f"dtype bfloat16 is emulated on a GPU of compute capability {major}.{minor}, more "
            "slowly than float32; use dtype float16 there, or a GPU of 8.0 or above"
        )
    if device == "cpu" and dtype == "bfloat16":
        from modernbert.cpu import bfloat16_slowdown, processor

        if (slowdown := bfloat16_slowdown()) > 1:
            logger.warning(
                "a product in bfloat16 takes %.1f times as long as in float32 on this processor, "
                "%s; use dtype float32, or int8 where it has AVX512_VNNI",
                slowdown,
                processor(),
            )
    return dtype


def cpu_budget(device: str, *, online: bool = False) -> int | None:
    """Return the tokens of a packed batch on a CPU; None on a GPU, where its free memory says.

    `online`: whether requests wait for the batch before theirs.
    """
    if device != "cpu":
        return None
    return ONLINE_CPU_TOKENS if online else CPU_TOKENS


def gpu_budget(
    free_bytes: int, config: ModernBertConfig, per_token: bool, dtype: torch.dtype
) -> int:
    """Return the tokens of a packed batch that half of `free_bytes` of a GPU holds, in thousands.

    The other half is left to the batches whose values are copied, to fragments and to whoever else
    is on the GPU. `per_token`: whether the head runs on each token, and not on each sequence.
    """
    from modernbert.gpu import bytes_per_token

    tokens = free_bytes // 2 // bytes_per_token(config, per_token, dtype)
    thousands = tokens // 1024 * 1024
    return min(max(thousands, LEAST_GPU_TOKENS), MOST_GPU_TOKENS)
