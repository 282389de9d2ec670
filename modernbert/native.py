"""The library that is built from modernbert/csrc, for x86 processors with AVX512_VNNI: attention in
fp32, and what int8_native.py calls. Without it torch computes the same.

Shapes: T packed tokens, N heads, H head dim.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

HEAD_DIM_MULTIPLE = 32
_INTERFACE_VERSION = 1
_WHOLE_SEQUENCE = (1 << 40, 1 << 40)


@cache
def library() -> ctypes.CDLL | None:
    """Load the library; None where it was not built, or the processor does not run it."""
    return None if why_missing() else _load()


@cache
def why_missing() -> str | None:
    """Say why the library of modernbert/csrc is not used on this machine; None where it is."""
    if not torch.cpu._is_vnni_supported():
        return "the processor has no AVX512_VNNI"
    functions = _load()
    if functions is None:
        return "it was not built: install the package where there is a C compiler"
    if ctypes.c_int.in_dll(functions, "interface_version").value != _INTERFACE_VERSION:
        return "it was built from other sources: install the package again"
    return None


@cache
def _load() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.is_file():
            return ctypes.CDLL(str(path))
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, seqlens: Sequence[int], window: tuple[int, int] | None
) -> Tensor:
    """Compute `attention.varlen_attention` in fp32 by the library, which must be there.

    Args:
        q: queries (T, N, H), fp32; H is a multiple of HEAD_DIM_MULTIPLE.
        k: keys, likewise.
        v: values, likewise.
        seqlens: the tokens in each sequence.
        window: keys that a query sees to its left and right; None: its whole sequence.

    Returns:
        (T, N, H).
    """
    if not q.stride() == k.stride() == v.stride() or q.stride(2) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty(q.shape)
    _, heads, head_dim = q.shape
    lengths = (c_int64 * len(seqlens))(*seqlens)
    left, right = window or _WHOLE_SEQUENCE
    functions = library()
    assert functions is not None

    def compute(first: int, last: int) -> int:
        status: int = functions.attention(
            address(q),
            address(k),
            address(v),
            c_int64(q.stride(0)),
            c_int64(q.stride(1)),
            address(out),
            c_int64(out.stride(0)),
            lengths,
            c_int64(len(seqlens)),
            c_int64(max(seqlens)),
            c_int64(first),
            c_int64(last),
            c_int64(head_dim),
            c_int64(left),
            c_int64(right),
        )
        return status

    in_threads(heads, 1, compute)
    return out


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where the library finds the values of a tensor; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def in_threads(count: int, least: int, compute: Callable[[int, int], int]) -> None:
    """Call `compute(first, stop)` for parts of `count`, one for each thread that torch may use.

    Args:
        count: rows or heads, at least 1.
        least: how many make it worth a thread.
        compute: a function of the library, which returns 0, or 1 where there is no memory.

    Raises:
        torch.OutOfMemoryError: where there is no memory for its buffers.
    """
    threads = max(1, min(torch.get_num_threads(), count // least))
    bounds = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        statuses = [compute(0, count)]
    else:
        parts = list(pairwise(bounds))
        statuses = list(_pool(threads, os.getpid()).map(lambda part: compute(*part), parts))
    if any(statuses):
        raise torch.OutOfMemoryError("no memory for what a layer computes")


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Return the threads of this process: those of another one do not survive a fork."""
    return ThreadPoolExecutor(threads, "modernbert")
