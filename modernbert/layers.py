"""The layers of the encoder (Warner et al. 2024, arXiv:2412.13663) on packed batches.

Shapes: T packed tokens, L tokens of one sequence, D hidden, N heads, H head dim, F MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from modernbert import gpu
from modernbert.attention import Attention
from modernbert.config import ModernBertConfig
from modernbert.linear import GatedLinear, Linear, map_row_chunks
from modernbert.packing import PackedBatch
from modernbert.rope import apply_rope, apply_rope_interleaved_, interleave_pairs
from modernbert.torch_attention import attention_maps


class Norm(nn.LayerNorm):
    """A LayerNorm that a GPU in inference computes by a kernel of this package where that is faster
    (`fusions.use`).
    """

    by_kernel = False

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.by_kernel and (kernels := gpu.kernels_for(x_TD)):
            out_TD: Tensor = kernels.layer_norm(x_TD, self.weight, self.bias, self.eps)
            return out_TD
        return super().forward(x_TD)


class ModernBertEmbeddings(nn.Module):
    """Embeds token ids, or takes `inputs_embeds`, and normalises: a packed batch to (T, D)."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        # Not drawn here, as nn.Embedding's own start would be: on the meta device that loads
        # torch's compiler (1.5 s).
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.tok_embeddings = nn.Embedding.from_pretrained(
            weight, freeze=False, padding_idx=config.pad_token_id
        )
        self.norm = layer_norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        x_TD = batch.inputs_embeds
        if x_TD is None:
            x_TD = self.tok_embeddings(batch.input_ids)
        out_TD: Tensor = self.drop(self.norm(x_TD))
        return out_TD


class ModernBertAttention(nn.Module):
    """Holds the projections before and after `varlen_attention`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.qkv_shape = (3, config.num_attention_heads, config.head_dim)
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)
        self.interleaved = False
        self.product: Callable[..., Tensor] | None = None
        """Computes `project_on_gpu` in one kernel (`fusions.use`)."""

    def project(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Compute queries, keys and values (T, 3, N, H); queries and keys are rotated by RoPE.

        Args:
            x_TD: the normalised hidden states.
            cos_TH: cos at the tokens' positions, (T, H/2) fp32.
            sin_TH: sin at the tokens' positions, (T, H/2) fp32.
        """
        qkv_T3NH: Tensor = self.Wqkv(x_TD).unflatten(-1, self.qkv_shape)
        if self.interleaved:
            apply_rope_interleaved_(qkv_T3NH[:, :2], cos_TH, sin_TH)
            return qkv_T3NH
        qk_T2NH, v_T1NH = qkv_T3NH.split((2, 1), dim=1)
        rotated_T2NH = apply_rope(qk_T2NH, cos_TH, sin_TH)
        return torch.cat((rotated_T2NH, v_T1NH), dim=1)

    def project_on_gpu(
        self,
        x_TD: Tensor,
        tables_SH: tuple[Tensor, Tensor],
        positions_T: Tensor,
        kernels: ModuleType,
    ) -> Tensor:
        """Compute `project` in inference on a GPU, whose kernels look cos and sin up by
        position.
        """
        if self.product is not None:
            qkv_TE = self.product(x_TD, self.Wqkv.weight, *tables_SH, positions_T)
            rotated_T3NH: Tensor = qkv_TE.unflatten(-1, self.qkv_shape)
            return rotated_T3NH
        qkv_T3NH: Tensor = self.Wqkv(x_TD).unflatten(-1, self.qkv_shape)
        kernels.rotate_(qkv_T3NH, *tables_SH, positions_T)
        return qkv_T3NH

    def prepack(self) -> None:
        """Reorder queries and keys for `apply_rope_interleaved_`."""
        if self.interleaved:
            return
        self.interleaved = True
        heads = self.qkv_shape[1]
        for parameter in (self.Wqkv.weight, self.Wqkv.bias):
            if parameter is None:
                continue
            q, k, v = parameter.data.chunk(3)
            parameter.data = torch.cat((interleave_pairs(q, heads), interleave_pairs(k, heads), v))


class ModernBertMLP(nn.Module):
    """GeGLU (Shazeer 2020, arXiv:2002.05202) with the activation of the configuration."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.Wi = GatedLinear(
            config.hidden_size,
            config.intermediate_size,
            bias=config.mlp_bias,
            activation=config.hidden_activation,
        )
        self.Wo = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.drop = nn.Dropout(config.mlp_dropout)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Compute `residual_TD + Wo(act(a) * b)` with `[a, b] = Wi(x_TD)`."""
        gated_TF = self.drop(self.Wi(x_TD))
        out_TD: Tensor = self.Wo(gated_TF, residual_TD)
        return out_TD


class NativeRows(Protocol):
    """What a layer computes row by row, before and after attention, in one call each."""

    def project_qkv(
        self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def project_output(self, x_TD: Tensor, attended_TD: Tensor) -> Tensor: ...


class ModernBertEncoderLayer(nn.Module):
    """One layer: attention and MLP, each after a norm and added to its input (pre-norm)."""

    def __init__(self, config: ModernBertConfig, index: int):
        super().__init__()
        # The embeddings, which are the input of the first layer, are normalised already.
        self.attn_norm = layer_norm(config) if index else nn.Identity()
        self.attn = ModernBertAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = ModernBertMLP(config)
        self.window = config.window(index)
        self.attention_dropout = config.attention_dropout
        self.deterministic = config.deterministic_flash_attn
        self.native: NativeRows | None = None

    def forward(
        self,
        x_TD: Tensor,
        rope: tuple[Tensor, Tensor],
        batch: PackedBatch,
        attention: Attention,
        maps: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """Compute the hidden states (T, D) after this layer.

        Args:
            x_TD: the hidden states before it; a GPU in inference overwrites them.
            rope: cos and sin of the layer's theta, as `ModernBertModel.rope` gives them.
            batch: where sequences start.
            attention: `packed_attention` with the batch's sequences and the backend bound.
            maps: None, or a list to which the attention weights (N, L, L) of each sequence are
                appended.
        """
        if kernels := gpu.kernels_for(x_TD):
            qkv_T3NH = self.attn.project_on_gpu(
                self.attn_norm(x_TD), rope, batch.position_ids, kernels
            )
            q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(dim=1)
            del qkv_T3NH
        elif self.native is not None:
            q_TNH, k_TNH, v_TNH = self.native.project_qkv(x_TD, *rope)
        else:
            qkv_T3NH = map_row_chunks(self._project_qkv, x_TD, *rope)
            q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(dim=1)
            del qkv_T3NH
        dropout = self.attention_dropout if self.training else 0.0
        if maps is not None:
            weights = attention_maps(q_TNH, k_TNH, batch.seqlens, self.window, dropout)
            maps.append(weights)
            a_TNH = _weighted_values(weights, v_TNH.split(batch.seqlens))
        else:
            a_TNH = attention(
                q_TNH,
                k_TNH,
                v_TNH,
                window=self.window,
                dropout=dropout,
                deterministic=self.deterministic,
            )
        del q_TNH, k_TNH, v_TNH  # the memory is the MLP's now
        if self.native is not None:
            return self.native.project_output(x_TD, a_TNH.flatten(1))
        return map_row_chunks(self._project_output, x_TD, a_TNH.flatten(1))

    def _project_qkv(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        return self.attn.project(self.attn_norm(x_TD), cos_TH, sin_TH)

    def _project_output(self, x_TD: Tensor, a_TD: Tensor) -> Tensor:
        if self.training and self.attention_dropout:
            x_TD = x_TD + self.attn.out_drop(self.attn.Wo(a_TD))
        else:
            x_TD = self.attn.Wo(a_TD, x_TD)
        out_TD: Tensor = self.mlp(self.mlp_norm(x_TD), x_TD)
        return out_TD


def _weighted_values(weights: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Tensor:
    """Sum values (L, N, H) by the attention weights (N, L, L) of each sequence: (T, N, H)."""
    out = []
    for weights_NLL, v_LNH in zip(weights, values, strict=True):
        a_NLH = weights_NLL @ v_LNH.transpose(0, 1)
        out.append(a_NLH.transpose(0, 1))
    return torch.cat(out)


def layer_norm(config: ModernBertConfig) -> Norm:
    """Create the norm that ModernBERT uses everywhere."""
    return Norm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
