"""Products in int8 for inference on CPUs with VNNI or AMX: faster, and less exact, than fp32.

Weights have a scale for each output, activations one for each row, found as they come. The products
themselves are exact, so that a row's bits do not depend on those beside it. Attention, norms, the
embeddings, heads and all residual sums keep the model's dtype.

This is the way of torch. Without AMX, the library of modernbert/csrc computes whole layers
(int8_native.py) where it is there.

Shapes: T rows, D in, E out, F MLP width.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from modernbert import int8_native
from modernbert.cpu import processor
from modernbert.layers import ModernBertEncoderLayer
from modernbert.linear import GatedLinear, Linear

logger = logging.getLogger(__name__)
_LARGEST = 127
_LEAST_SCALE = 1e-12  # of a row or an output whose values are all zero


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, on input that is rounded to int8 row by row."""

    def __init__(self, linear: Linear):
        super().__init__()
        int8_ED, scales_E1 = _rows_in_int8(linear.weight.detach())
        self.weight = nn.Parameter(int8_ED, requires_grad=False)
        self.scales = nn.Parameter(scales_E1.squeeze(1), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x_TD: Tensor, residual_TE: Tensor | None = None) -> Tensor:
        """Compute `x W^T + b` (T, E), plus `residual_TE` if given."""
        values_TD, scales_T1 = _rows_in_int8(x_TD)
        sums_TE = torch._int_mm(values_TD, self.weight.t())
        # In place, in fp32: the sums have more bits than half precision.
        y_TE = sums_TE.float().mul_(self.scales).mul_(scales_T1)
        if self.bias is not None:
            y_TE += self.bias
        if residual_TE is not None:
            y_TE += residual_TE
        return y_TE.to(x_TD.dtype)


class Int8GatedLinear(Int8Linear):
    """A gated linear unit with int8 weights."""

    def __init__(self, linear: GatedLinear):
        super().__init__(linear)
        self.act = linear.act

    def forward(self, x_TD: Tensor) -> Tensor:  # type: ignore[override]
        a_TF, b_TF = super().forward(x_TD).chunk(2, dim=-1)
        return self.act(a_TF).mul_(b_TF)


def quantise(model: nn.Module) -> None:
    """Turn the products of a model's encoder into int8; afterwards the model can be neither trained
    nor saved. Warns where the library of modernbert/csrc, which is faster, does not compute them.

    Args:
        model: a model of this package on a CPU.

    Raises:
        ValueError: for a processor without instructions for it.
    """
    if reason := why_unsupported():
        raise ValueError(reason)
    for layer in model.modules():
        if not isinstance(layer, ModernBertEncoderLayer):
            continue
        layer.attn.prepack()
        layer.attn.Wqkv = Int8Linear(layer.attn.Wqkv)  # type: ignore[assignment]
        layer.attn.Wo = Int8Linear(layer.attn.Wo)  # type: ignore[assignment]
        layer.mlp.Wi = Int8GatedLinear(layer.mlp.Wi)  # type: ignore[assignment]
        layer.mlp.Wo = Int8Linear(layer.mlp.Wo)  # type: ignore[assignment]
    layers = [each for each in model.modules() if isinstance(each, ModernBertEncoderLayer)]
    if torch.cpu._is_amx_tile_supported() or not layers:  # torch uses AMX, the library does not
        return
    if reason := int8_native.why_unsupported(layers[0]):
        logger.warning("int8 is computed by torch, about 1.6 times slower: %s", reason)
        return
    for layer in layers:
        layer.native = int8_native.NativeLayer(layer)
        del layer.attn_norm, layer.attn, layer.mlp_norm, layer.mlp


def compute_dtype() -> torch.dtype:
    """Return the dtype of all but the products: bf16 is faster than fp32 where there is AMX."""
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def why_unsupported() -> str | None:
    """Say why int8 is no faster than float32 on this processor; None where it is."""
    if torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return (
        "dtype int8 needs a processor with AVX512_VNNI or AMX (Intel since 2019, AMD since Zen 4), "
        f"which this one has not: {processor()}; use dtype float32"
    )


def _rows_in_int8(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows to int8: the values (T, D), and the scales (T, 1) that give the rows again."""
    x_TD = x_TD.float()
    scales_T1 = x_TD.abs().amax(dim=1, keepdim=True).clamp_(min=_LEAST_SCALE) / _LARGEST
    values_TD = (x_TD * scales_T1.reciprocal()).round_().to(torch.int8)
    return values_TD, scales_T1
