"""Attention: each backend, and FlashAttention 3 without windows where its wheel is carried."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_parts.common import (
    BASE,
    BUDGETS,
    DEVICE,
    DRY,
    HALF,
    LENGTHS,
    batch_of,
    encoder_of,
    mixed_lengths,
    random,
    relative_error,
    seconds_of,
)  # fmt: skip
from benchmarks.gpu_parts.lines import Figures
from modernbert import attention as attention_module
from modernbert.attention import length_classes, packed_attention, varlen_attention
from modernbert.attention_kernels import BACKENDS, resolve_backend

CHECKED_LENGTHS = (
    (1, 2, 31, 64) if DRY else (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 300, 1024, 8192)
)
WINDOWS = {"global": None, "local": (64, 64)}


def attention(figures: Figures) -> None:
    """Each backend: error by length against fp64 of the same inputs, bits alone and in company, FLOP/s, classes."""
    heads, dim = BASE.num_attention_heads, BASE.head_dim
    for backend in BACKENDS[:-1]:
        try:
            resolve_backend(backend, DEVICE, HALF, dim)
        except ValueError as error:
            figures[backend] = str(error)
            continue
        if backend == "sdpa" and not DRY:
            figures[backend] = (
                "not measured: it builds masks on the host; it runs where no other backend can"
            )
            continue
        entry: dict[str, Any] = {}
        q, k, v = random(3, sum(CHECKED_LENGTHS), heads, dim, dtype=HALF)
        q, k = q * 1.5, k * 1.5
        starts = torch.tensor([0, *CHECKED_LENGTHS]).cumsum(0).int().to(DEVICE)
        for name, window in WINDOWS.items():
            out = varlen_attention(q, k, v, starts, CHECKED_LENGTHS, window, backend=backend)
            errors, changed = {}, []
            for start, n in zip(starts.tolist(), CHECKED_LENGTHS, strict=False):
                rows = slice(start, start + n)
                exact = exact_attention(q[rows], k[rows], v[rows], window)
                errors[n] = relative_error(out[rows], exact)
                one = torch.tensor([0, n], dtype=torch.int32, device=DEVICE)
                alone = varlen_attention(
                    *(x[rows].contiguous() for x in (q, k, v)), one, (n,), window, backend=backend
                )
                if not torch.equal(alone, out[rows]):
                    changed.append(n)
            entry[name] = {
                "errors": errors,
                "worst_error": max(errors.values()),
                "lengths_with_other_bits": changed,
            }
        tokens = BUDGETS[-1]
        q, k, v = random(tokens, 3, heads, dim, dtype=HALF).unbind(1)
        for n in LENGTHS:
            lengths = [n] * (tokens // n)
            starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
            for name, window in WINDOWS.items():
                keys = n if window is None else min(n, 129)
                took = seconds_of(
                    lambda s=starts, m=lengths, w=window: varlen_attention(
                        q, k, v, s, m, w, backend=backend
                    )
                )
                entry[name][f"tflops {n}"] = 4 * sum(lengths) * keys * heads * dim / took / 1e12
        mix = batch_of(mixed_lengths(tokens))
        rows = slice(0, sum(mix.seqlens))
        whole = length_classes(mix, heads, "flash_attn_3")
        cut = length_classes(mix, heads, "torch_varlen")
        for name, classes in (("mix in one call", whole), ("mix in classes", cut)):
            options: dict[str, Any] = {"classes": classes, "window": None, "backend": backend}
            entry[name] = {
                "calls": len(classes),
                "us": seconds_of(lambda o=options: packed_attention(q[rows], k[rows], v[rows], **o))
                * 1e6,
            }
        figures[backend] = entry


def exact_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int] | None
) -> torch.Tensor:
    """The plain formula in fp64, a head at a time."""
    index = torch.arange(len(q), device=q.device)
    hidden = (index[:, None] - index).abs() > window[0] if window else None
    out = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ k[:, head].double().t() * q.shape[-1] ** -0.5
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        out[:, head] = scores.softmax(-1) @ v[:, head].double()
    return out


def flash_attention_3(figures: Figures) -> None:
    """The wheel fa3-fwd, where it is carried: the forward pass alone, without windows. Its rate and its difference to torch's
    kernel, and the encoder with its global layers on it.
    """
    import fa3_fwd_interface

    heads, dim, tokens = BASE.num_attention_heads, BASE.head_dim, BUDGETS[-1]
    q, k, v = random(tokens, 3, heads, dim, dtype=HALF).unbind(1)
    by_torch = attention_module.varlen_attention

    def of_wheel(q: Any, k: Any, v: Any, starts: Any, longest: int) -> Any:
        out = fa3_fwd_interface.flash_attn_varlen_func(
            q, k, v, starts, starts, longest, longest, num_splits=1
        )
        return out[0] if isinstance(out, tuple) else out

    for n in LENGTHS:
        lengths = [n] * (tokens // n)
        starts = torch.arange(0, tokens + 1, n, dtype=torch.int32, device=DEVICE)
        want = by_torch(q, k, v, starts, lengths, backend="torch_varlen")
        took = seconds_of(lambda s=starts, n=n: of_wheel(q, k, v, s, n))
        figures[f"global {n}"] = {
            "tflops": 4 * tokens * n * heads * dim / took / 1e12,
            "differs": relative_error(of_wheel(q, k, v, starts, n), want),
        }

    def global_by_wheel(
        q: Any, k: Any, v: Any, starts: Any, seqlens: Any, window: Any = None, **options: Any
    ) -> Any:
        if window is not None:
            return by_torch(q, k, v, starts, seqlens, window, **options)
        return of_wheel(q, k, v, starts, max(seqlens))

    model = encoder_of(BASE, "torch_varlen")
    attention_module.varlen_attention = global_by_wheel  # type: ignore[assignment]
    try:
        for n in LENGTHS:
            batch = batch_of([n] * (tokens // n))
            took = seconds_of(lambda b=batch: model.forward_packed(b))
            figures[f"base {n}, global layers on it"] = {"m_tokens_s": tokens / took / 1e6}
    finally:
        attention_module.varlen_attention = by_torch
