"""The encoder's layers in int8 by the library of modernbert/csrc, one pass for each product.

The norm and the rounding of rows before a product, and the scales, bias, RoPE, residual, GELU and
gate after it, are computed while a chunk of rows is in cache. int8.py computes the same by torch.

Shapes: T rows, D in, E out, F MLP width, N heads, H head dim.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert import native
from modernbert.layers import ModernBertEncoderLayer
from modernbert.native import address

_COLUMNS = 32  # of a product that are computed together
_LANES = 16  # floats in a register
_LEAST_ROWS = 192  # of a thread: the library computes so many at a time


class _Product(ctypes.Structure):
    _fields_ = (
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("bias", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", ctypes.c_float))


def why_unsupported(layer: ModernBertEncoderLayer) -> str | None:
    """Say why the library does not compute a layer here; None where it does."""
    if reason := native.why_missing():
        return f"the library of modernbert/csrc is not used: {reason}"
    width, mlp_width = layer.mlp.Wo.weight.shape
    head_dim = layer.attn.qkv_shape[-1]
    if width % _COLUMNS or mlp_width % _LANES or head_dim % _LANES:
        return (
            "the library of modernbert/csrc computes hidden sizes that are a multiple of "
            f"{_COLUMNS}, intermediate sizes and heads that are one of {_LANES}; "
            f"these are {width}, {mlp_width} and {head_dim}"
        )
    if layer.mlp.Wi.act is not F.gelu:
        return "the library of modernbert/csrc has no activation but GELU"
    return None


class NativeLayer(nn.Module):
    """What a layer computes before and after attention.

    Args:
        layer: a layer of which `int8.quantise` has made the products int8.
    """

    def __init__(self, layer: ModernBertEncoderLayer):
        super().__init__()
        self.heads_shape = layer.attn.qkv_shape[1:]
        self.attn_norm = layer.attn_norm
        self.mlp_norm = layer.mlp_norm
        self.qkv = _NativeProduct(layer.attn.Wqkv)
        self.attn_out = _NativeProduct(layer.attn.Wo)
        self.mlp_in = _NativeProduct(layer.mlp.Wi, gated=True)
        self.mlp_out = _NativeProduct(layer.mlp.Wo)

    def project_qkv(
        self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the norm, and queries, keys and values (T, N, H), the first two turned by RoPE.

        Args:
            x_TD: the hidden states, fp32.
            cos_TH: cos at the tokens' positions, (T, H/2) fp32.
            sin_TH: sin at the tokens' positions, (T, H/2) fp32.
        """
        functions = native.library()
        assert functions is not None
        tokens = len(x_TD)
        heads, head_dim = self.heads_shape
        q_NTH, k_NTH, v_NTH = (x_TD.new_empty(heads, tokens, head_dim) for _ in range(3))
        x_TD, cos_TH, sin_TH = x_TD.contiguous(), cos_TH.contiguous(), sin_TH.contiguous()
        norm, product = _norm(self.attn_norm), self.qkv.struct()

        def compute(start: int, stop: int) -> int:
            status: int = functions.project_qkv(
                address(x_TD),
                c_int64(start),
                c_int64(stop),
                c_int64(tokens),
                byref(norm),
                byref(product),
                address(cos_TH),
                address(sin_TH),
                c_int64(head_dim),
                address(q_NTH),
                address(k_NTH),
                address(v_NTH),
            )
            return status

        native.in_threads(tokens, _LEAST_ROWS, compute)
        return q_NTH.transpose(0, 1), k_NTH.transpose(0, 1), v_NTH.transpose(0, 1)

    def project_output(self, x_TD: Tensor, attended_TD: Tensor) -> Tensor:
        """Add the output projection of attention to `x_TD`, and the MLP to that: (T, D)."""
        functions = native.library()
        assert functions is not None
        x_TD, attended_TD = x_TD.contiguous(), attended_TD.contiguous()
        out_TD = torch.empty_like(x_TD)
        norm = _norm(self.mlp_norm)
        attn_out, mlp_in, mlp_out = (
            product.struct() for product in (self.attn_out, self.mlp_in, self.mlp_out)
        )

        def compute(start: int, stop: int) -> int:
            status: int = functions.project_output(
                address(x_TD),
                address(attended_TD),
                c_int64(start),
                c_int64(stop),
                byref(attn_out),
                byref(norm),
                byref(mlp_in),
                byref(mlp_out),
                address(out_TD),
            )
            return status

        native.in_threads(len(x_TD), _LEAST_ROWS, compute)
        return out_TD


class _NativeProduct(nn.Module):
    """A weight in int8 as the library reads it: by 32 outputs, and 4 inputs of each."""

    def __init__(self, linear: nn.Module, gated: bool = False):
        """`linear`: an int8.Int8Linear; `gated`: whether half of its outputs are gates."""
        super().__init__()
        stored = linear.state_dict()
        int8_ED: Tensor = stored["weight"]
        scales_E: Tensor = stored["scales"]
        bias_E: Tensor | None = stored.get("bias")
        if gated:
            int8_ED = _alternating(int8_ED)
            scales_E = _alternating(scales_E)
            bias_E = None if bias_E is None else _alternating(bias_E)
        self.out_features, self.in_features = int8_ED.shape

        # An instruction multiplies four values of a row with those of several columns.
        quads_EK4 = int8_ED.view(-1, _COLUMNS, self.in_features // 4, 4)
        self.panels = nn.Buffer(quads_EK4.transpose(1, 2).contiguous())
        # Activations are unsigned there: 128 more than they are.
        self.offsets = nn.Buffer((int8_ED.sum(dim=1) * 128).int())
        self.scales = nn.Buffer(scales_E.float().contiguous())
        self.bias = None if bias_E is None else nn.Buffer(bias_E.float().contiguous())

    def struct(self) -> _Product:
        tensors = (self.panels, self.scales, self.offsets, self.bias)
        return _Product(*map(address, tensors), self.in_features, self.out_features)


def _norm(norm: nn.Module) -> _Norm:
    """Return a norm as the library reads it; the first layer has none: no weight."""
    if not isinstance(norm, nn.LayerNorm):
        return _Norm(None, None, 0.0)
    return _Norm(address(norm.weight), address(norm.bias), norm.eps)


def _alternating(values_then_gates: Tensor) -> Tensor:
    """Reorder the outputs of a gated unit: 16 values, their 16 gates, and so on."""
    halves: Tensor = values_then_gates.unflatten(0, (2, -1, _LANES))
    return halves.transpose(0, 1).flatten(0, 2)
