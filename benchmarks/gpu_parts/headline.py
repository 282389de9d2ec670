"""The figures that are wanted most: tokens a second of both sizes, with fused products and without; and where time goes."""

from __future__ import annotations

import platform
import subprocess
import time
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_parts.common import (
    BASE,
    BUDGETS,
    DEVICE,
    DRY,
    HALF,
    LENGTHS,
    SIZES,
    batch_of,
    encoder_of,
    mixed_lengths,
    seconds_of,
    synchronize,
)  # fmt: skip
from benchmarks.gpu_parts.lines import Figures
from modernbert import fusions, gpu
from modernbert.attention_kernels import resolve_backend
from modernbert.model import ModernBertModel
from modernbert.tiles import Fusions

TOKENS = BUDGETS[-1]
_CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
_PASSES = 3 if DRY else 200


def headline(figures: Figures) -> None:
    """Base at 512 first; then where it runs, the other lengths, what is sustained, and large."""
    for size, config in SIZES:
        model = encoder_of(config)
        rate(
            figures,
            f"{size} {LENGTHS[1]}, each by itself",
            model,
            [LENGTHS[1]] * (TOKENS // LENGTHS[1]),
        )
        if size == "base":
            figures["where"] = where()
        chosen = Fusions() if DRY else fusions.fastest(model)
        fusions.use(model, chosen)
        figures[f"{size} products"] = str(chosen)
        lengths_of = {str(n): [n] * (TOKENS // n) for n in (LENGTHS[1], LENGTHS[0], *LENGTHS[2:])}
        lengths_of |= {"68": [68] * (TOKENS // 68), "mix": mixed_lengths(TOKENS)}
        for name, lengths in lengths_of.items():
            rate(figures, f"{size} {name}", model, lengths)
        figures[f"{size} sustained"] = sustained(model)


def rate(figures: Figures, name: str, model: ModernBertModel, lengths: list[int]) -> None:
    batch = batch_of(lengths)
    took = seconds_of(lambda: model.forward_packed(batch))
    figures[name] = {"m_tokens_s": sum(lengths) / took / 1e6, "ms": took * 1e3}


def where() -> dict[str, Any]:
    """What runs here, and how."""
    import triton

    found: dict[str, Any] = {
        "device": "dry run on a CPU" if DRY else torch.cuda.get_device_name(0),
        "python": platform.python_version(),
        "torch": torch.__version__, "triton": triton.__version__, "numpy": np.__version__,
        "kernels": gpu.kernels_for(torch.empty(1, device=DEVICE)) is not None,
        "attention": resolve_backend("auto", DEVICE, HALF, BASE.head_dim),
        "clocks": clocks("clocks.max.sm,power.limit,driver_version"),
    }  # fmt: skip
    return found


def clocks(what: str = _CLOCKS) -> str:
    if DRY:
        return ""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()


def sustained(model: ModernBertModel) -> dict[str, Any]:
    """Many passes end to end: clocks and power settle, and the host must keep up."""
    lengths = [LENGTHS[1]] * (TOKENS // LENGTHS[1])
    batches = [batch_of(lengths, seed) for seed in range(3)]
    synchronize()
    begun = time.perf_counter()
    for number in range(_PASSES):
        model.forward_packed(batches[number % 3])
    launched = time.perf_counter() - begun
    at_work = clocks()
    synchronize()
    took = time.perf_counter() - begun
    tokens = _PASSES * sum(lengths)
    return {
        "m_tokens_s": tokens / took / 1e6,
        "host_ms": launched / _PASSES * 1e3,
        "clocks": at_work,
    }


def profiled(figures: Figures) -> None:
    """The kernels of a pass that take longest: their number and microseconds; TFLOP/s of products by their part of it."""
    activities = [ProfilerActivity.CPU] if DRY else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for size, config in SIZES:
        model = encoder_of(config)
        if not DRY:
            fusions.use(model, fusions.fastest(model))
        for length in (LENGTHS[1], LENGTHS[-1])[: 2 if size == "base" else 1]:
            batch = batch_of([length] * (TOKENS // length))
            model.forward_packed(batch)
            with profile(activities=activities) as seen:
                model.forward_packed(batch)
                synchronize()
            times = [
                (getattr(each, "self_device_time_total", 0.0), each.count, each.key[:100])
                for each in seen.key_averages()
            ]
            longest = sorted(times, reverse=True)[:16]
            figures[f"{size} {length}"] = [each for each in longest if DRY or each[0] > 0]
