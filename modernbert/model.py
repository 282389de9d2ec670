"""The packed ModernBERT encoder (Warner et al. 2024, arXiv:2412.13663): no padding between ids and hidden states.

Shapes: T packed tokens, B sequences, S padded length, D hidden, N heads, H head dim, F MLP width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modernbert.attention import resolve_backend, varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.linear import GatedLinear, Linear, by_rows
from modernbert.outputs import BaseModelOutput
from modernbert.packing import PackedBatch, pad, unpad
from modernbert.rope import apply_rope, pairs_side_by_side, rope_table, rotate_pairs_


class ModernBertEmbeddings(nn.Module):
    """Token embeddings and their norm."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = layer_norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids_T: Tensor) -> Tensor:
        """Ids (T,) to vectors (T, D)."""
        return self.drop(self.norm(self.tok_embeddings(input_ids_T)))


class ModernBertAttention(nn.Module):
    """The projections around `varlen_attention`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.qkv_shape = (3, config.num_attention_heads, config.head_dim)
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)
        self.side_by_side = False

    def project(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Queries, keys and values (T, 3, N, H), the first two rotated to their positions."""
        qkv = self.Wqkv(x_TD).unflatten(-1, self.qkv_shape)
        if self.side_by_side:
            rotate_pairs_(qkv[:, :2], cos_TH, sin_TH)
            return qkv
        qk, v = qkv.split((2, 1), dim=1)
        return torch.cat((apply_rope(qk, cos_TH, sin_TH), v), dim=1)

    def prepack(self) -> None:
        """In half precision, reorder queries and keys for the faster rotation; in fp32 it would cost the last bits."""
        if self.Wqkv.weight.dtype == torch.float32:
            return
        self.side_by_side = True
        for part in (self.Wqkv.weight, self.Wqkv.bias):
            if part is not None:
                q, k, v = part.data.chunk(3)
                part.data = torch.cat((*(pairs_side_by_side(x, self.qkv_shape[1]) for x in (q, k)), v))


class ModernBertMLP(nn.Module):
    """GeGLU (Shazeer 2020, arXiv:2002.05202) with the configured activation."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.Wi = GatedLinear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias, activation=config.hidden_activation
        )
        self.Wo = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.drop = nn.Dropout(config.mlp_dropout)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """`residual_TD + Wo(act(a) * b)` with `a, b` the halves of Wi's product."""
        return self.Wo(self.drop(self.Wi(x_TD)), residual_TD)


class ModernBertEncoderLayer(nn.Module):
    """One layer: rows into queries, keys and values; attention across rows; rows through the MLP."""

    def __init__(self, config: ModernBertConfig, index: int):
        super().__init__()
        self.attn_norm = layer_norm(config) if index else nn.Identity()  # the embeddings are normalised already
        self.attn = ModernBertAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = ModernBertMLP(config)
        self.window = config.window(index)
        self.attention_dropout = config.attention_dropout
        self.deterministic = config.deterministic_flash_attn

    def forward(self, x_TD: Tensor, rope: tuple[Tensor, Tensor], batch: PackedBatch, backend: str) -> Tensor:
        """Hidden states (T, D) of `batch` to the next (T, D)."""
        q_TNH, k_TNH, v_TNH = by_rows(self._into_heads, x_TD, *rope).unbind(dim=1)
        a_TNH = varlen_attention(
            q_TNH, k_TNH, v_TNH, batch.cu_seqlens, batch.max_seqlen, self.window, backend=backend,
            dropout=self.attention_dropout if self.training else 0.0, deterministic=self.deterministic,
        )  # fmt: skip
        return by_rows(self._out_of_heads, x_TD, a_TNH.flatten(1))

    def _into_heads(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        return self.attn.project(self.attn_norm(x_TD), cos_TH, sin_TH)

    def _out_of_heads(self, x_TD: Tensor, a_TD: Tensor) -> Tensor:
        if self.training and self.attention_dropout:
            x_TD = x_TD + self.attn.out_drop(self.attn.Wo(a_TD))
        else:
            x_TD = self.attn.Wo(a_TD, x_TD)
        return self.mlp(self.mlp_norm(x_TD), x_TD)


class ModernBertModel(nn.Module):
    """The encoder without a head."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        """`attention`: a backend of `varlen_attention`, or "auto" for the best one on the model's device."""
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertEncoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = layer_norm(config)
        self._rope_tables: dict[float, tuple[Tensor, Tensor]] = {}

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The last hidden states (T, D) of a packed batch on the model's device, in its order."""
        x_TD = self.embeddings(batch.input_ids)
        backend = resolve_backend(self.attention, x_TD.device, x_TD.dtype)
        positions_T = torch.cat([torch.arange(n) for n in batch.seqlens]).to(x_TD.device, non_blocking=True)
        rope = {
            theta: tuple(table[positions_T] for table in self._tables(theta, batch.max_seqlen, x_TD.device))
            for theta in {self.config.rope_theta(i) for i in range(len(self.layers))}
        }
        for i, layer in enumerate(self.layers):
            x_TD = layer(x_TD, rope[self.config.rope_theta(i)], batch, backend)
        return self.final_norm(x_TD)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """The last hidden states (B, S, D) of padded ids (B, S); zero where `attention_mask` (B, S) is 0."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        batch, indices = unpad(input_ids, mask)
        return BaseModelOutput(last_hidden_state=pad(self.forward_packed(batch), indices, *input_ids.shape))

    def _tables(self, theta: float, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self._rope_tables.get(theta)
        if table is None or len(table[0]) < positions or table[0].device != device:
            positions = max(positions, self.config.max_position_embeddings)
            self._rope_tables[theta] = table = rope_table(theta, self.config.head_dim, positions, device)
        return table


def layer_norm(config: ModernBertConfig) -> nn.LayerNorm:
    """The one norm ModernBERT uses everywhere."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


@torch.no_grad()
def init_weights(model: nn.Module, config: ModernBertConfig) -> None:
    """Fill `model` with the paper's truncated normal initialisation: smaller where a residual branch ends."""
    narrow = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    stds = {"Wo": narrow, "dense": narrow, "decoder": narrow, "classifier": config.hidden_size**-0.5}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = stds.get(name.rpartition(".")[2], config.initializer_range)
            cut = config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(module.weight, std=std, a=-cut, b=cut)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
