"""Products in float8 (e4m3) for inference on GPUs from compute capability 8.9 on: faster, and less
exact, than bf16.

The norms before a product and the gated unit write float8 with a scale for each row; weights have
one for each output. Attention, its output projection, the embeddings, heads and all residual sums
keep their dtypes. So does the first layer's product for attention, whose input has no norm.

Shapes: T rows, D in, E out, F MLP width.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modernbert import gpu
from modernbert.layers import ModernBertEncoderLayer
from modernbert.linear import GatedLinear, Linear
from modernbert.model import ModernBertModel

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Float8Rows(NamedTuple):
    """A matrix in float8."""

    values: Tensor
    """(T, D) float8_e4m3fn"""
    scales: Tensor
    """(T, 1) fp32: a row is its values times its scale."""


class Float8Norm(nn.Module):
    """A LayerNorm whose output is in float8."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps

    def forward(self, x_TD: Tensor) -> Float8Rows:
        kernels = _kernels(x_TD)
        values, scales = kernels.norm_float8(x_TD, self.weight, self.bias, self.eps)
        return Float8Rows(values, scales)


class Float8Linear(nn.Module):
    """A linear layer with float8 weights, on float8 input."""

    def __init__(self, linear: Linear):
        super().__init__()
        weight_ED = linear.weight.detach().float()
        scales_E1 = weight_ED.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LARGEST
        float8_ED = (weight_ED / scales_E1).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(float8_ED, requires_grad=False)
        self.scales = nn.Parameter(scales_E1.t().contiguous(), requires_grad=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    def forward(self, x: Float8Rows, residual_TE: Tensor | None = None) -> Tensor:
        """Compute `x W^T + b` (T, E), plus `residual_TE` if given, which is overwritten."""
        y_TE = scaled_product(x, self.weight, self.scales, self.dtype)
        if self.bias is not None:
            y_TE += self.bias
        return y_TE if residual_TE is None else residual_TE.add_(y_TE)


class Float8GatedLinear(Float8Linear):
    """A gated linear unit with float8 weights, input and output."""

    def forward(self, x: Float8Rows) -> Float8Rows:  # type: ignore[override]
        y_TF = super().forward(x)
        values, scales = _kernels(y_TF).geglu_float8(y_TF)
        return Float8Rows(values, scales)


def quantise(model: nn.Module) -> None:
    """Turn the products of a model's encoder into float8; afterwards the model can be neither
    trained nor saved.

    Args:
        model: a model of this package on a GPU, in bfloat16 or float16.

    Raises:
        ValueError: for a device, a size or an activation that float8 is not available for.
    """
    layers = [module for module in model.modules() if isinstance(module, ModernBertEncoderLayer)]
    config = next(
        module.config for module in model.modules() if isinstance(module, ModernBertModel)
    )
    _check(next(model.parameters()), config.hidden_size, config.intermediate_size, layers[0].mlp.Wi)
    for i, layer in enumerate(layers):
        if i:  # the first layer has no norm before attention
            layer.attn_norm = Float8Norm(layer.attn_norm)  # type: ignore[assignment, arg-type]
            layer.attn.Wqkv = Float8Linear(layer.attn.Wqkv)  # type: ignore[assignment]
        layer.mlp_norm = Float8Norm(layer.mlp_norm)  # type: ignore[assignment]
        layer.mlp.drop = nn.Identity()  # type: ignore[assignment]
        layer.mlp.Wi = Float8GatedLinear(layer.mlp.Wi)  # type: ignore[assignment]
        layer.mlp.Wo = Float8Linear(layer.mlp.Wo)  # type: ignore[assignment]


def why_no_graphs(device: torch.device) -> str:
    """Return why products in float8 cannot be captured in CUDA graphs, or an empty text."""
    # On Ada, torch before 2.12 launches row-wise products on the default stream, whatever the
    # current one is (pytorch #177651).
    if gpu.compute_capability(device) == (8, 9) and torch.__version__ < "2.12":
        return (
            "float8 runs without CUDA graphs on a GPU of compute capability 8.9 with torch "
            f"{torch.__version__}, small batches take longer: torch 2.12 or newer has them"
        )
    return ""


def scaled_product(
    x: Float8Rows, weight_ED: Tensor, scales_1E: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute `x W^T` (T, E) in `dtype`; sums are fp32."""
    return torch._scaled_mm(
        x.values,
        weight_ED.t(),
        scale_a=x.scales,
        scale_b=scales_1E,
        out_dtype=dtype,
        use_fast_accum=True,
    )


def _check(weight: Tensor, hidden: int, intermediate: int, gated: GatedLinear) -> None:
    if weight.device.type != "cuda" or gpu.compute_capability(weight.device) < (8, 9):
        raise ValueError(
            "dtype float8 needs a GPU of compute capability 8.9 or above (Ada, Hopper, Blackwell)"
        )
    if hidden % 16 or intermediate % 16:
        raise ValueError(
            f"dtype float8 needs widths that are multiples of 16, not {hidden} and {intermediate}"
        )
    if gated.act is not torch.nn.functional.gelu:
        raise ValueError("dtype float8 is available for the activation gelu alone")
    _kernels(weight)


def _kernels(x: Tensor) -> ModuleType:
    with torch.inference_mode():
        kernels = gpu.kernels_for(x)
    if kernels is None:
        raise ValueError("dtype float8 needs Triton, which does not run here")
    return kernels
