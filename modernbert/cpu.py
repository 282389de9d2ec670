"""What this machine's processor is, and the fastest way to compute attention on it.

In fp32 nothing is timed, so that answers are equal to the last bit from one process to the next:
the library of modernbert/csrc is used where it was measured to win, on Intel, and torch's fused
kernel elsewhere. In half precision it depends on what the processor multiplies: the fused kernel
wins on Intel (1.3 to 1.8 times, with AMX and without), products with a softmax between them on AMD.
"""

from __future__ import annotations

import logging
import platform
import time
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert import native
from modernbert.torch_attention import FUSED, NATIVE, CpuWay, torch_attention

logger = logging.getLogger(__name__)
WAYS = (
    FUSED,
    CpuWay("sdpa", 64),
    CpuWay("sdpa_in_fp32", 32),
    CpuWay("matmul", 64),
    CpuWay("matmul", 128),
)
"""What is timed. The first is taken unless another one clearly wins: processes choose alike."""
_CLEARLY = 0.93
_SEQLENS = (64, 128, 320)
_ROUNDS = 2


@cache
def processor() -> str:
    """Name the processor, what it multiplies fast, and whether the library of modernbert/csrc is
    used on it: the same text on machines of one kind.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
                break
    features = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AVX512_VNNI": torch.cpu._is_vnni_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
        "native library": native.library() is not None,
    }
    present = [feature for feature, is_there in features.items() if is_there]
    return f"{name} ({', '.join(present)})" if present else name


@cache
def bfloat16_slowdown() -> float:
    """Return how many times as long as in float32 a product takes in bfloat16 on this CPU.

    Less than 1 with AMX, and on AMD with AVX512_BF16; about 1.7 on Intel with AVX512_BF16 alone.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(256, 768, dtype=dtype)
        weight = torch.ones(768, 768, dtype=dtype)
        times = []
        for _ in range(4):
            started = time.thread_time()
            F.linear(x, weight)
            times.append(time.thread_time() - started)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


@cache
def fastest_way(heads: int, head_dim: int, window: tuple[int, int], dtype: torch.dtype) -> CpuWay:
    """Return how attention in `dtype` is computed on this CPU: in half precision by the fastest of
    WAYS, which takes less than half a second.

    Args:
        heads: N, the heads of the model.
        head_dim: H, the width of a head.
        window: that of the layers with a sliding window, two of three.
        dtype: the dtype of queries, keys and values.
    """
    if dtype == torch.float32:
        has_library = native.library() is not None and not head_dim % native.HEAD_DIM_MULTIPLE
        return NATIVE if has_library and processor().startswith("Intel") else FUSED
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(_SEQLENS), heads, head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(dtype)
    seconds = dict.fromkeys(WAYS, float("inf"))
    with torch.inference_mode():
        for round_number in range(1 + _ROUNDS):
            for way in WAYS:
                took = _seconds(q, k, v, window, way)
                if round_number:  # the first one warms up
                    seconds[way] = min(seconds[way], took)
    fastest = min(WAYS, key=seconds.__getitem__)
    if seconds[fastest] >= _CLEARLY * seconds[FUSED]:
        fastest = FUSED
    logger.info(
        "attention in %s on %s: %s, tiles of %d", dtype, processor(), fastest.product, fastest.tile
    )
    return fastest


def _seconds(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], way: CpuWay) -> float:
    """Time a layer with global attention and two with a window, in CPU seconds of this thread:
    those that other processes take do not count.
    """
    started = time.thread_time()
    for layer_window in (None, window, window):
        torch_attention(q, k, v, _SEQLENS, layer_window, 0.0, plain=False, way=way)
    return time.thread_time() - started
