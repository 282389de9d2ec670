"""What the parts of benchmarks/gpu.py share: sizes, timing, inputs, and the lines that they write.

Shapes: T packed tokens, D hidden, F MLP width, N heads, H head dim.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.config import ModernBertConfig
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch

ROOT = Path(__file__).parents[2]
DRY = "TRITON_INTERPRET" in os.environ
"""Toy sizes on a CPU, with the kernels interpreted."""
DEVICE = torch.device("cpu" if DRY else "cuda")
HALF = torch.float32 if DRY else torch.bfloat16  # the interpreter cuts bits off where a GPU rounds
_TOY = ModernBertConfig(
    num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=2, vocab_size=512, pad_token_id=0
)  # fmt: skip
_LARGE = ModernBertConfig(
    hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
)
BASE = _TOY if DRY else ModernBertConfig()
SIZES = (("base", BASE),) if DRY else (("base", BASE), ("large", _LARGE))
BUDGETS = (256,) if DRY else (8192, 16384, 32768, 65536)
LENGTHS = (16, 64) if DRY else (128, 512, 2048, 8192)


def seconds_of(fn: Callable[[], Any], runs: int = 7, at_least_s: float = 0.0) -> float:
    """Return the median time of `fn` on the device, after two calls that are not counted; dry, of one call."""
    if DRY:
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start
    times: list[float] = []
    spent = -2
    while spent < runs or sum(times) < at_least_s:
        spent += 1
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        fn()
        end.record()
        end.synchronize()
        elapsed = begin.elapsed_time(end) / 1e3
        if spent > 0:
            times.append(elapsed)
    return statistics.median(times)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


def mixed_lengths(tokens: int) -> list[int]:
    """Return lengths of documents, log-normal with the median 180, that fill a batch; ascending."""
    lengths = (
        np.random.default_rng(0)
        .lognormal(np.log(180), 1.1, tokens // 4)
        .astype(int)
        .clip(4, max(LENGTHS))
    )
    lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), tokens, side="right")))]
    return sorted(min(int(n), tokens) for n in lengths)


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(5, 300, sum(lengths)).astype(np.int32)
    return PackedBatch.from_arrays(ids, lengths, DEVICE)


def wall_seconds(fn: Callable[[], Any], runs: int = 20) -> float:
    times = []
    for _ in range(2 if DRY else runs):
        start = time.perf_counter()
        fn()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def encoder_of(
    config: ModernBertConfig, attention: str = "auto", dtype: torch.dtype = HALF
) -> ModernBertModel:
    return with_weights(ModernBertModel, config, attention).to(dtype)


def with_weights(model_class: Any, config: ModernBertConfig, attention: str = "auto") -> Any:
    """Create a model on the device, where its weights are drawn: on the host that takes seconds."""
    with torch.device("meta"):
        model = model_class(config, attention)
    model = model.to_empty(device=DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if "norm" in name else 0.0)
    return model
