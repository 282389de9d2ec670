"""A GPU that computes nothing: models run on fake `cuda` tensors, on a build of torch without CUDA.

Shapes, dtypes and devices are checked as on a GPU; what would read the device raises DataDependentOutputException.
Copies and launches are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNEL = {  # views and allocations
    "view", "_unsafe_view", "unsqueeze", "slice", "select", "split", "split_with_sizes", "unbind", "t", "transpose",
    "alias", "expand", "permute", "detach", "as_strided", "squeeze", "empty", "empty_like", "new_empty",
    "empty_strided", "dropout", "flatten", "unflatten", "_pin_memory", "is_pinned", "_reshape_alias", "lift_fresh",
}  # fmt: skip


class FakeGpu(TorchDispatchMode):
    """What happens on the fake GPU while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        """Operations on `cuda` tensors that start a kernel, by name, and those of `kernels`."""
        self.uploads: list[tuple[bool, tuple[int, ...]]] = []
        """Whether each copy to the GPU is from pinned memory and not waited for, and its shape."""
        self.downloads: list[bool] = []
        """Whether each copy from the GPU is not waited for."""
        self.waits: list[int] = []
        """How many uploads there had been at each wait for the GPU."""
        self.peak_bytes = 0
        """The most memory that tensors on the GPU took at a time."""
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.kernels = SimpleNamespace(
            rotate_=lambda *_: self._launch("rotate"),
            geglu=lambda y: self._launch("geglu", y.new_empty(y.shape[0], y.shape[1] // 2)),
            pool_sequences=lambda x, starts, *_, **__: self._launch(
                "pool", x.new_empty(len(starts) - 1, x.shape[1], dtype=torch.float32)
            ),
            pool_stretches=lambda x, starts, *_: self._launch(
                "pool", x.new_empty(len(starts), x.shape[1], dtype=torch.float32)
            ),
            norm_float8=lambda x, *_: self._launch("norm_float8", _float8(x, x.shape[1])),
            geglu_float8=lambda y: self._launch("geglu_float8", _float8(y, y.shape[1] // 2)),
        )

    def _measure(self, out: Any) -> None:
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda":
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {
            key: value for key, value in self._storages.items() if not value[0].expired()
        }
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._storages.values()))

    def _launch(self, name: str, out: Any = None) -> Any:
        self.launches[name] += 1
        self._measure(out)
        return out

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        self._measure(out)
        sources, results = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), out)
        )
        waited_for = not (
            kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        )
        if results == {"cuda"} and "cpu" in sources:
            pinned = getattr(args[name == "copy_"], "pinned_here", False)
            self.uploads.append((pinned and not waited_for, tuple(args[0].shape)))
        elif results == {"cpu"} and "cuda" in sources:
            self.downloads.append(not waited_for)
        elif results == {"cuda"} and name not in NO_KERNEL:
            self.launches[name] += (
                2 if name == "_varlen_attn" else 1
            )  # it fills 16 bytes of state first
        return out


def _float8(x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.shape[0]
    return x.new_empty(rows, width, dtype=torch.float8_e4m3fn), x.new_empty(
        rows, 1, dtype=torch.float32
    )


class _Shims(TorchFunctionMode):
    """What a build without CUDA refuses on fake tensors: indexing and `.to` want a device guard, pinning a driver.

    What is read on the host at last is zeros.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.pinned_here = True
            return pinned
        if func is torch.empty and kwargs.pop("pin_memory", False):
            return torch.empty(*args, **kwargs)
        if func is torch.Tensor.numpy:
            return np.zeros(tuple(args[0].shape), np.float32)
        if func is torch.Tensor.to:
            device = next(
                (a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.device | str)),
                None,
            )
            dtype = next(
                (a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.dtype)), None
            )
            if device is not None and torch.device(device).type != args[0].device.type:
                return torch.ops.aten._to_copy(
                    args[0],
                    device=torch.device(device),
                    dtype=dtype,
                    non_blocking=kwargs.get("non_blocking", False),
                )
        if func is torch.Tensor.copy_ and args[0].device.type == args[1].device.type == "cuda":
            return torch.ops.aten.copy_(args[0], args[1])
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _index(*args)
        return func(*args, **kwargs)


def _index(x: torch.Tensor, index: Any) -> torch.Tensor:
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if part is None:
            x, dim = torch.ops.aten.unsqueeze(x, dim), dim + 1
        elif isinstance(part, int):
            x = torch.ops.aten.select(x, dim, part)
        elif isinstance(part, slice):
            x, dim = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1), dim + 1
        else:
            x, dim = torch.ops.aten.index(x, [None] * dim + [part]), dim + 1
    return x


@contextmanager
def fake_gpu(monkeypatch: Any, capability: tuple[int, int] = (9, 0)) -> Iterator[FakeGpu]:
    """A GPU of a compute capability, by default an H100's, for models in inference."""
    from modernbert import attention_kernels, fusions, gpu
    from modernbert.tiles import Fusions

    seen = FakeGpu()
    monkeypatch.setattr(fusions, "fastest", lambda _: Fusions())  # there is nothing to time
    monkeypatch.setattr(gpu, "compute_capability", lambda _: capability)
    monkeypatch.setattr(
        gpu, "kernels_for", lambda x: seen.kernels if x.device.type == "cuda" else None
    )
    stream = SimpleNamespace(wait_stream=lambda _: None)
    event = SimpleNamespace(
        record=lambda _: None, synchronize=lambda: seen.waits.append(len(seen.uploads))
    )
    for name, value in {
        "Stream": lambda _: stream,
        "current_stream": lambda _: stream,
        "stream": lambda _: nullcontext(),
        "Event": lambda **_: event,
        "synchronize": lambda _: seen.waits.append(len(seen.uploads)),
        "mem_get_info": lambda _: (80 << 30, 80 << 30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    attention_kernels.resolve_backend.cache_clear()
    attention_kernels._kernel.cache_clear()
    with FakeTensorMode(), torch.inference_mode(), _Shims(), seen:
        yield seen
    attention_kernels.resolve_backend.cache_clear()
    attention_kernels._kernel.cache_clear()


def put_on_gpu(model: torch.nn.Module, encoder: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """Give a model on the meta device fake weights: the encoder's in `encoder`, the head's in fp32, as `load` does."""
    for path, module in model.named_modules():
        dtype = (
            encoder
            if path.startswith(("model", "encoder", "embeddings", "layers", "final_norm"))
            else torch.float32
        )
        for name, weight in module.named_parameters(recurse=False):
            value = torch.empty(weight.shape, dtype=dtype, device="cuda")
            setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    return model.eval()
