"""Check the GPU attention backends against fp32, and time the encoder on each; needs torch, and no Ray.

    python benchmarks/gpu.py --save

Prints one JSON object; --save writes it to benchmarks/results/gpu.json. The exit code is 1 if a backend is
out of tolerance. Without a CUDA device, it prints so and exits with 0.

Shapes: T packed tokens, N heads, H head dim.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from modernbert.attention import BACKENDS, resolve_backend, varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch

LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 300, 1024, 8192)
WINDOWS = {"global": None, "local": (64, 64)}
TOLERANCE = 2e-2  # of a document's norm: inputs, weights and results are bf16, with 8 bits of mantissa
BATCH_TOKENS = 65_536
HEADS, HEAD_DIM = 12, 64


def available_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the backends that can run on `device`, without the plain formula."""
    backends = []
    for name in BACKENDS[:-1]:
        try:
            backends.append(resolve_backend(name, device, dtype))
        except ValueError as error:
            print(f"not checked: {error}", file=sys.stderr)
    return backends


@torch.inference_mode()
def check(backend: str, device: torch.device, dtype: torch.dtype, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """Measure the relative error of each document, and find documents whose bits depend on their neighbours.

    Returns {name of a window: its worst error, the error by length, lengths whose bits differ in a batch of one}.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, sum(lengths), HEADS, HEAD_DIM, generator=generator)
        * torch.tensor([1.5, 1.5, 1])[:, None, None, None]
    )
    starts = torch.tensor((0, *lengths)).cumsum(0).int()
    result = {}
    for name, window in WINDOWS.items():
        expected = varlen_attention(
            q.to(device), k.to(device), v.to(device), starts.to(device), max(lengths), window, backend="sdpa"
        )
        qkv_half = [x.to(device, dtype) for x in (q, k, v)]
        actual = varlen_attention(*qkv_half, starts.to(device), max(lengths), window, backend=backend)
        errors, changed = {}, []
        for start, n in zip(starts.tolist(), lengths, strict=False):
            rows = slice(start, start + n)
            errors[n] = ((actual[rows].float() - expected[rows]).norm() / expected[rows].norm()).item()
            single_starts = torch.tensor([0, n], dtype=torch.int32, device=device)
            single = varlen_attention(
                *(x[rows].contiguous() for x in qkv_half), single_starts, n, window, backend=backend
            )
            if not torch.equal(single, actual[rows]):
                changed.append(n)
        result[name] = {"worst_error": max(errors.values()), "errors": errors, "lengths_with_other_bits_alone": changed}
    return result


def batch_lengths(lengths: list[int]) -> list[int]:
    """Return as many of `lengths` as fit into a packed batch, sorted."""
    total = np.cumsum(lengths)
    return sorted(lengths[: int(np.searchsorted(total, BATCH_TOKENS, side="right"))])


@torch.inference_mode()
def time_encoder(backend: str, device: torch.device, runs: int = 5) -> dict[str, Any]:
    """Measure tokens per second (the median of `runs`) and peak memory of the base-size encoder in bf16, by length."""
    config = ModernBertConfig()
    model = ModernBertModel(config, attention=backend)
    model = model.to(device, torch.bfloat16).eval()
    mix = np.random.default_rng(0).lognormal(np.log(180), 1.1, 2000).astype(int).clip(4, 8192).tolist()
    length_sets = {str(n): [n] * (BATCH_TOKENS // n) for n in (128, 512, 2048, 8192)} | {
        "log-normal mix": batch_lengths(mix)
    }
    result: dict[str, Any] = {}
    for name, lengths in length_sets.items():
        batch = PackedBatch.from_lengths(torch.randint(0, 50_000, (sum(lengths),), device=device), tuple(lengths))
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for i in range(runs + 2):
            start_event, stop_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start_event.record()
            model.forward_packed(batch)
            stop_event.record()
            stop_event.synchronize()
            if i >= 2:
                seconds.append(start_event.elapsed_time(stop_event) / 1e3)
        rate = sum(lengths) / float(np.median(seconds))
        result[name] = {"tokens_per_second": round(rate), "peak_bytes": torch.cuda.max_memory_allocated()}
    return result


@torch.inference_mode()
def matmul_flops(device: torch.device, size: int = 8192) -> float:
    """Measure FLOP/s of a large bf16 matrix product: the ceiling of this GPU."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    start_event, stop_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(13):
        if i == 3:
            start_event.record()
        a @ b
    stop_event.record()
    stop_event.synchronize()
    return 10 * 2 * size**3 / (start_event.elapsed_time(stop_event) / 1e3)


def main() -> int:
    """Check, time and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    device = torch.device("cuda", 0)
    backends = available_backends(device, torch.bfloat16)
    checks = {backend: check(backend, device, torch.bfloat16) for backend in backends}
    result = {
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "matmul_tflops": round(matmul_flops(device) / 1e12, 1),
        "tolerance": TOLERANCE,
        "checks": checks,
        "encoder": {backend: time_encoder(backend, device) for backend in backends},
    }
    print(json.dumps(result, indent=2))
    if options.save:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    worst = max(window["worst_error"] for windows in checks.values() for window in windows.values())
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
