"""How linear layers run on a CPU: weights reordered once for oneDNN, activations in row chunks that stay in cache.

Everywhere else (GPU, training) a Linear is nn.Linear and by_rows is one call.

Shapes: T rows (packed tokens or sequences), D in, E out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_ROWS = 512
"""Rows computed at a time: few enough that a layer's activations stay in cache."""
ROW_MULTIPLE = 16
"""Chunks are filled up to a multiple of this, so that no row's bits depend on how many rows share its product."""


class Linear(nn.Linear):
    """nn.Linear that `prepack` turns into an inference-only oneDNN layer with the addition of a residual fused in."""

    packed: Tensor | None = None

    def prepack(self) -> None:
        """Reorder the weight for oneDNN and let go of the plain one: afterwards there is no state_dict."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = None  # type: ignore[assignment]

    def forward(self, x_TD: Tensor, residual_TE: Tensor | None = None) -> Tensor:
        """`x W^T + b`, plus `residual_TE` where one is given: (T, E)."""
        if self.packed is None:
            y_TE = F.linear(x_TD, self.weight, self.bias)
            return y_TE if residual_TE is None else y_TE + residual_TE
        linear = torch.ops.mkldnn._linear_pointwise
        if residual_TE is None:
            return linear(x_TD, self.packed, self.bias, "none", [], "")
        return linear.binary(x_TD, residual_TE, self.packed, self.bias, "add")


def prepack(model: nn.Module) -> None:
    """Reorder every Linear of `model` for oneDNN, where torch has it for the model's dtype; inference only."""
    for module in model.modules():
        if isinstance(module, Linear) and module.packed is None and _prepackable(module.weight):
            module.prepack()


def _prepackable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32


def by_rows(fn: Callable[..., Tensor], *inputs_TX: Tensor) -> Tensor:
    """`fn(*inputs_TX)` for an `fn` that treats rows independently, in chunks of rows when that is CPU inference."""
    rows = inputs_TX[0].shape[0]
    if torch.is_grad_enabled() or inputs_TX[0].device.type != "cpu":
        return fn(*inputs_TX)
    out: Tensor | None = None
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        chunk = [x[start:stop] for x in inputs_TX]
        if missing := -(stop - start) % ROW_MULTIPLE:
            chunk = [torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) for x in chunk]
        y = fn(*chunk)
        if out is None:
            if stop == rows:
                return y[:rows]
            out = y.new_empty(rows, *y.shape[1:])
        out[start:stop] = y[: stop - start]
    assert out is not None
    return out
