"""Linear layers for inference, and activations computed in chunks of rows that stay in a CPU's
cache.

On CPUs `prepack` reorders weights for oneDNN. On GPUs the residual is added in place, inside the
product. In training, `Linear` is nn.Linear. `map_row_chunks` is a single call on GPUs and in
training.

Shapes: T rows (packed tokens or sequences), D in, E out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert import gpu
from modernbert.config import ACTIVATIONS, Activation

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
}
_FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
CHUNK_ROWS = 512
"""Rows computed at a time, so that the activations of a layer stay in cache."""
ROW_MULTIPLE = 16
"""Chunks are padded to a multiple of this, so that the bits of a row do not depend on the rows
computed with it.
"""


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function called `activation`, or `activation` itself where it is one."""
    if isinstance(activation, str):
        return _FUNCTIONS[ACTIVATIONS[activation]]
    return activation


class Linear(nn.Linear):
    """An nn.Linear that `prepack` turns into an inference-only oneDNN layer, with the residual
    addition fused.
    """

    packed: Tensor | None = None

    def prepack(self) -> None:
        """Reorder the weight for oneDNN and free the plain one; afterwards the layer has no
        state_dict.
        """
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = None  # type: ignore[assignment]

    def forward(self, x_TD: Tensor, residual_TE: Tensor | None = None) -> Tensor:
        """Compute `x W^T + b`, (T, E), plus `residual_TE`, which a GPU in inference overwrites."""
        if self.packed is None and residual_TE is not None and gpu.kernels_for(x_TD):
            residual_TE.addmm_(x_TD, self.weight.t())
            return residual_TE if self.bias is None else residual_TE.add_(self.bias)
        if self.packed is None:
            y_TE = F.linear(x_TD, self.weight, self.bias)
            return y_TE if residual_TE is None else y_TE + residual_TE
        linear = torch.ops.mkldnn._linear_pointwise
        out_TE: Tensor
        if residual_TE is None:
            out_TE = linear(x_TD, self.packed, self.bias, "none", [], "")
        else:
            out_TE = linear.binary(x_TD, residual_TE, self.packed, self.bias, "add")
        return out_TE


class GatedLinear(Linear):
    """The gated linear unit `act(a) * b` with `[a, b] = x W^T + bias` (Shazeer 2020,
    arXiv:2002.05202).

    Prepacked, activation and gate are fused into two products.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: Activation):
        super().__init__(in_features, 2 * out_features, bias=bias)
        self.act = activation_function(activation)
        self.product: Callable[..., Tensor] | None = None
        """Computes all of it from rows and weight on a GPU (`fusions.use`)."""
        self.fused = _FUSED.get(ACTIVATIONS[activation]) if isinstance(activation, str) else None

    def prepack(self) -> None:
        if self.fused is None:
            return super().prepack()
        biases = (None, None) if self.bias is None else self.bias.chunk(2)
        weights = self.weight.detach().chunk(2)
        self.halves = []
        for weight, bias in zip(weights, biases, strict=True):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            self.halves.append((packed, bias))
        self.weight = None  # type: ignore[assignment]

    def forward(self, x_TD: Tensor) -> Tensor:  # type: ignore[override]
        out_TE: Tensor
        if self.weight is None and self.fused is not None:
            (value, value_bias), (gate, gate_bias) = self.halves
            linear = torch.ops.mkldnn._linear_pointwise
            name, variant = self.fused
            a_TE = linear(x_TD, value, value_bias, name, [], variant)
            out_TE = linear.binary(x_TD, a_TE, gate, gate_bias, "mul")
            return out_TE
        if self.product is not None and gpu.kernels_for(x_TD):
            return self.product(x_TD, self.weight)
        y_TF = super().forward(x_TD)
        if self.act is F.gelu and (kernels := gpu.kernels_for(x_TD)):
            out_TE = kernels.geglu(y_TF)
            return out_TE
        a_TE, b_TE = y_TF.chunk(2, dim=-1)
        return self.act(a_TE) * b_TE


def prepack(model: nn.Module) -> None:
    """Reorder the weights of a model for oneDNN, which makes inference on CPUs faster.

    Afterwards the model can be neither trained nor saved. A model on a GPU, of a dtype that oneDNN
    does not support here, or compiled in parts (`reference_compile`) stays as it is.

    Args:
        model: a model of this package, on its final device and in its final dtype.

    Example:
        >>> model = ModernBertModel.from_pretrained("answerdotai/ModernBERT-base", dtype="bfloat16")
        >>> prepack(model)
    """
    is_compiled = any(module._compiled_call_impl for module in model.modules())
    if is_compiled or not _prepackable(next(model.parameters())):
        return
    for module in model.modules():  # parents before children
        prepack_module = getattr(module, "prepack", None)
        if callable(prepack_module):
            prepack_module()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: page faults of activations cost about 5% of the time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def _prepackable(weight: Tensor) -> bool:
    """Return whether oneDNN supports the device and dtype of `weight`."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32


def map_row_chunks(fn: Callable[..., Tensor], *inputs_TX: Tensor) -> Tensor:
    """Compute `fn(*inputs_TX)`, in chunks of rows where that is inference on a CPU.

    Args:
        fn: a function that treats rows independently.
        inputs_TX: tensors with T rows each.

    Returns:
        The result of `fn`, with T rows.
    """
    rows = inputs_TX[0].shape[0]
    if not rows or torch.is_grad_enabled() or inputs_TX[0].device.type != "cpu":
        return fn(*inputs_TX)
    return compute_in_chunks(fn, inputs_TX, CHUNK_ROWS, ROW_MULTIPLE)


def compute_in_chunks(
    fn: Callable[..., Tensor], inputs_TX: Sequence[Tensor], chunk_rows: int, row_multiple: int
) -> Tensor:
    """Compute `fn(*inputs_TX)` in chunks, so that the bits of a row depend on that row alone.

    The bits of a matrix product may depend on its number of rows: the last chunk is padded.

    Args:
        fn: a function that treats rows independently.
        inputs_TX: tensors with T rows each, at least 1.
        chunk_rows: the rows of all chunks but the last.
        row_multiple: the rows of a chunk, with its padding, are a multiple of it.

    Returns:
        The result of `fn`, with T rows.
    """
    rows = inputs_TX[0].shape[0]
    out: Tensor | None = None
    for start in range(0, rows, chunk_rows):
        stop = min(start + chunk_rows, rows)
        chunk = [x[start:stop] for x in inputs_TX]
        if padding_rows := -(stop - start) % row_multiple:
            chunk = [_pad_rows(x, padding_rows) for x in chunk]
        y = fn(*chunk)
        if out is None:
            if stop == rows:
                return y[:rows]
            out = y.new_empty(rows, *y.shape[1:])
        out[start:stop] = y[: stop - start]
    assert out is not None
    return out


def _pad_rows(x: Tensor, padding_rows: int) -> Tensor:
    return torch.cat((x, x.new_zeros(padding_rows, *x.shape[1:])))
