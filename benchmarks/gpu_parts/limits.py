"""What a device does at most, and what the encoder's time and memory depend on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

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
    random,
    seconds_of,
    synchronize,
    with_weights,
)  # fmt: skip
from benchmarks.gpu_parts.lines import Figures
from modernbert import float8, gpu
from modernbert.attention_kernels import BACKENDS
from modernbert.heads import ModernBertForSequenceClassification, ModernBertForTokenClassification


def ceilings(figures: Figures) -> None:
    """What the device does at most: a large product and a copy over two seconds, and the products of the encoder."""
    size = 64 if DRY else 8192
    a, b = random(size, size, dtype=HALF), random(size, size, dtype=HALF, seed=1)
    figures["gemm_tflops"] = 2 * size**3 / seconds_of(lambda: a @ b, at_least_s=2.0) / 1e12
    source = torch.empty(1 << (12 if DRY else 30), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    figures["copy_tb_s"] = (
        2 * source.numel() / seconds_of(lambda: target.copy_(source), at_least_s=1.0) / 1e12
    )
    for size_name, config in SIZES:
        d, f = config.hidden_size, config.intermediate_size
        for tokens in BUDGETS:
            for name, (k, n) in {
                "Wqkv": (d, 3 * d),
                "Wo": (d, d),
                "Wi": (d, 2 * f),
                "mlp.Wo": (f, d),
            }.items():
                x, w, y = (
                    random(tokens, k, dtype=HALF),
                    random(n, k, dtype=HALF),
                    random(tokens, n, dtype=HALF),
                )
                flops = 2 * tokens * k * n / 1e12
                figures[f"{size_name} {name} {tokens}"] = {
                    "linear_tflops": flops / seconds_of(lambda x=x, w=w: F.linear(x, w)),
                    "addmm_tflops": flops / seconds_of(lambda x=x, w=w, y=y: y.addmm_(x, w.t())),
                }


def encoder(figures: Figures) -> None:
    """Tokens per second and peak memory of the encoder by size, length and budget; without kernels; in float8."""
    for size, config in SIZES:
        model = encoder_of(config)
        for budget in BUDGETS:
            shapes = {str(n): [n] * (budget // n) for n in LENGTHS if n <= budget} | {
                "mix": mixed_lengths(budget)
            }
            for name, lengths in shapes.items():
                batch = batch_of(lengths)
                if not DRY:
                    torch.cuda.reset_peak_memory_stats()
                rate = sum(lengths) / seconds_of(lambda m=model, b=batch: m.forward_packed(b))
                figures[f"{size} {name} {budget}"] = {
                    "tokens_s": rate,
                    "peak_bytes": 0 if DRY else torch.cuda.max_memory_allocated(),
                }
        batch = batch_of([LENGTHS[1]] * (BUDGETS[-1] // LENGTHS[1]))
        tokens = len(batch.input_ids)
        with kernels_off():
            figures[f"{size} without kernels"] = tokens / seconds_of(
                lambda m=model, b=batch: m.forward_packed(b), 3
            )
        for backend in BACKENDS[:-2]:
            try:
                other = encoder_of(config, backend)
                took = seconds_of(lambda m=other, b=batch: m.forward_packed(b), 3)
                figures[f"{size} {backend}"] = tokens / took
            except ValueError as error:
                figures[f"{size} {backend}"] = str(error)
        try:
            float8.quantise(model)
            figures[f"{size} float8"] = tokens / seconds_of(
                lambda m=model, b=batch: m.forward_packed(b)
            )
        except ValueError as error:
            figures[f"{size} float8"] = str(error)


@contextmanager
def kernels_off() -> Iterator[None]:
    """Run models without the Triton kernels: RoPE out of place, residuals and activations by themselves."""
    before, gpu.kernels_for = gpu.kernels_for, lambda _: None
    try:
        yield
    finally:
        gpu.kernels_for = before


def host(figures: Figures) -> None:
    """Host time of a forward pass: from its call to its return, while the device is still at work; and its waits."""
    for size, config in SIZES:
        model = encoder_of(config)
        for budget in BUDGETS[:2]:
            lengths = [LENGTHS[0]] * (budget // LENGTHS[0])
            times = []
            for i in range(3 if DRY else 12):
                synchronize()
                start = time.perf_counter()
                model.forward_packed(batch_of(lengths, seed=i))
                times.append(time.perf_counter() - start)
            figures[f"{size} {budget} us"] = statistics.median(times) * 1e6
        if not DRY:
            torch.cuda.set_sync_debug_mode("error")  # whatever waits for the device raises
            try:
                model.forward_packed(batch_of(lengths))
                figures[f"{size} waits"] = "none"
            except RuntimeError as error:
                figures[f"{size} waits"] = str(error).splitlines()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")


def memory(figures: Figures) -> None:
    """Bytes a token at the peak of a forward pass, measured and by the figure that the default budget follows."""
    for name, model_class in (
        ("classify", ModernBertForSequenceClassification), ("tag", ModernBertForTokenClassification)
    ):  # fmt: skip
        model = with_weights(model_class, BASE).to(HALF)
        batch = batch_of([LENGTHS[1]] * (BUDGETS[-1] // LENGTHS[1]))
        model.forward_packed(batch)
        before = 0 if DRY else torch.cuda.memory_allocated()
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        model.forward_packed(batch)
        peak = 0 if DRY else torch.cuda.max_memory_allocated() - before
        figures[name] = {
            "measured": peak / len(batch.input_ids),
            "figure": gpu.bytes_per_token(BASE, name == "tag", HALF),
        }
