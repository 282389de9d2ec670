"""The packed ModernBERT encoder (Warner et al. 2024, arXiv:2412.13663): no padding between ids and hidden states.

Shapes: T packed tokens, B sequences, S padded length, D hidden, N heads, H head dim, F MLP width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modernbert.attention import attention_maps, resolve_backend, varlen_attention
from modernbert.checkpoint import PreTrained, init_weights
from modernbert.config import ModernBertConfig
from modernbert.linear import GatedLinear, Linear, map_row_chunks
from modernbert.outputs import BaseModelOutput, ModelOutput
from modernbert.packing import ModelInputs, PackedBatch, check_sliding_window_mask
from modernbert.rope import apply_rope, apply_rope_interleaved_, interleave_pairs, rope_table


class ModernBertEmbeddings(nn.Module):
    """Token embeddings and their norm."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = layer_norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The vectors (T, D) of a batch's ids, or those it brings along."""
        x_TD = self.tok_embeddings(batch.input_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        return self.drop(self.norm(x_TD))


class ModernBertAttention(nn.Module):
    """The projections around `varlen_attention`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.qkv_shape = (3, config.num_attention_heads, config.head_dim)
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)
        self.interleaved = False

    def project(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Queries, keys and values (T, 3, N, H), the first two rotated to their positions."""
        qkv = self.Wqkv(x_TD).unflatten(-1, self.qkv_shape)
        if self.interleaved:
            apply_rope_interleaved_(qkv[:, :2], cos_TH, sin_TH)
            return qkv
        qk, v = qkv.split((2, 1), dim=1)
        return torch.cat((apply_rope(qk, cos_TH, sin_TH), v), dim=1)

    def prepack(self) -> None:
        """In half precision, reorder queries and keys for the faster rotation; in fp32 it would cost the last bits."""
        if self.Wqkv.weight.dtype == torch.float32:
            return
        self.interleaved = True
        for parameter in (self.Wqkv.weight, self.Wqkv.bias):
            if parameter is not None:
                q, k, v = parameter.data.chunk(3)
                parameter.data = torch.cat((*(interleave_pairs(x, self.qkv_shape[1]) for x in (q, k)), v))


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

    def forward(
        self,
        x_TD: Tensor,
        rope: tuple[Tensor, Tensor],
        batch: PackedBatch,
        backend: str,
        maps: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """Hidden states (T, D) of `batch` to the next (T, D); `maps` takes the attention weights of each sequence."""
        q_TNH, k_TNH, v_TNH = map_row_chunks(self._project_qkv, x_TD, *rope).unbind(dim=1)
        dropout = self.attention_dropout if self.training else 0.0
        if maps is not None:
            maps.append(attention_maps(q_TNH, k_TNH, batch.seqlens, self.window, dropout))
            a_TNH = torch.cat([
                (weights_NLL @ v_LNH.transpose(0, 1)).transpose(0, 1)
                for weights_NLL, v_LNH in zip(maps[-1], v_TNH.split(batch.seqlens), strict=True)
            ])  # fmt: skip
        else:
            a_TNH = varlen_attention(
                q_TNH, k_TNH, v_TNH, batch.cu_seqlens, batch.max_seqlen, self.window, backend=backend,
                dropout=dropout, deterministic=self.deterministic,
            )  # fmt: skip
        return map_row_chunks(self._project_output, x_TD, a_TNH.flatten(1))

    def _project_qkv(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        return self.attn.project(self.attn_norm(x_TD), cos_TH, sin_TH)

    def _project_output(self, x_TD: Tensor, a_TD: Tensor) -> Tensor:
        if self.training and self.attention_dropout:
            x_TD = x_TD + self.attn.out_drop(self.attn.Wo(a_TD))
        else:
            x_TD = self.attn.Wo(a_TD, x_TD)
        return self.mlp(self.mlp_norm(x_TD), x_TD)


class ModernBertModel(PreTrained):
    """The encoder without a head."""

    encoder_prefix = ""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        """`attention`: a backend of `varlen_attention`, or "auto" for the best one on the model's device."""
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(ModernBertEncoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = layer_norm(config)
        self._rope_tables: dict[float, tuple[Tensor, Tensor]] = {}
        init_weights(self)
        if config.reference_compile:
            self.embeddings.compile(dynamic=True)
            for layer in self.layers:
                layer.mlp.compile(dynamic=True)  # type: ignore[operator, union-attr]

    def forward_packed(
        self,
        batch: PackedBatch,
        hidden_states: list[Tensor] | None = None,
        maps: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """The last hidden states (T, D) of a packed batch on the model's device, in its order.

        `hidden_states` takes the embeddings, each layer's result but the last, and the last after the final norm;
        `maps` each layer's attention weights, (N, L, L) for each sequence.
        """
        x_TD = self.embeddings(batch)
        training_dropout = self.training and self.config.attention_dropout > 0
        backend = resolve_backend(self.attention, x_TD.device, x_TD.dtype, training_dropout)
        if batch.position_ids is None:
            positions_T, num_positions = torch.cat([torch.arange(n) for n in batch.seqlens]), batch.max_seqlen
        else:
            positions_T, num_positions = batch.position_ids, int(batch.position_ids.max()) + 1
        positions_T = positions_T.to(x_TD.device, non_blocking=True)
        rope = {
            theta: tuple(table[positions_T] for table in self._rope_table(theta, num_positions, x_TD.device))
            for theta in {self.config.rope_theta(i) for i in range(len(self.layers))}
        }
        for i, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x_TD)
            x_TD = layer(x_TD, rope[self.config.rope_theta(i)], batch, backend, maps)
        x_TD = self.final_norm(x_TD)
        if hidden_states is not None:
            hidden_states.append(x_TD)
        return x_TD

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sliding_window_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        indices: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        batch_size: int | None = None,
        seq_len: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """The last hidden states, as a BaseModelOutput, or a tuple with `return_dict=False`.

        Padded input: `input_ids` (B, S) or `inputs_embeds` (B, S, D), with `attention_mask` (B, S) 1 at real tokens,
        wherever in a row these lie; padding never takes part. `position_ids` (B, S) or (1, S) replace the count of
        real tokens from 0 in the rotary embeddings; windows go by order, not by position.

        Unpadded input: `input_ids` (T,) or `inputs_embeds` (T, D) with `cu_seqlens` (B+1,). With `indices` (T,),
        `batch_size` and `seq_len`, results are padded to (B, S, …); without these three they stay packed, (T, …).

        `output_hidden_states` and `output_attentions` (through the plain formula, L x L weights a head) fill the
        fields of those names; None means what the configuration says.

        Without a meaning of their own, and refused where ignoring them would change results: `sliding_window_mask`
        (windows come from `local_attention`; a mask of exactly that window is accepted), `max_seqlen` (known from
        `cu_seqlens`; at least the longest sequence), `attention_mask` beside `cu_seqlens`, `token_type_ids` (ModernBERT
        has none: accepted and not read). Any other keyword is a TypeError.
        """
        inputs, x_TD, traces = self.encode(
            input_ids, attention_mask, sliding_window_mask, position_ids, inputs_embeds, indices, cu_seqlens,
            max_seqlen, batch_size, seq_len, output_attentions, output_hidden_states, ignored,
        )  # fmt: skip
        return to_output(BaseModelOutput(last_hidden_state=inputs.pad(x_TD), **traces), return_dict, self.config)

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        sliding_window_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        indices: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        batch_size: int | None,
        seq_len: int | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        ignored: dict[str, Any],
    ) -> tuple[ModelInputs, Tensor, dict[str, Any]]:
        """What `forward` of the encoder and of every head begins with.

        Returns the packed inputs, the last hidden states (T, D), and the traces asked for in the caller's layout.
        """
        if unknown := sorted(set(ignored) - {"token_type_ids"}):
            raise TypeError(f"forward has no argument {', '.join(unknown)}")
        shape = None if batch_size is None or seq_len is None else (batch_size, seq_len)
        if cu_seqlens is None:
            if indices is not None:
                raise ValueError("indices are of unpadded input, which needs cu_seqlens too")
            inputs = ModelInputs.from_padded(input_ids, attention_mask, position_ids, inputs_embeds)
            if shape not in (None, inputs.shape):
                raise ValueError(f"batch_size and seq_len say {shape}, the input is {inputs.shape}")
        else:
            inputs = ModelInputs.from_packed(input_ids, cu_seqlens, position_ids, inputs_embeds, indices, shape)
            if attention_mask is not None and int((attention_mask != 0).sum()) != inputs.batch.input_ids.numel():
                raise ValueError("attention_mask and cu_seqlens count different numbers of tokens; leave the mask out")
        if max_seqlen is not None and max_seqlen < inputs.batch.max_seqlen:
            raise ValueError(f"max_seqlen is {max_seqlen}, but a sequence has {inputs.batch.max_seqlen} tokens")
        if sliding_window_mask is not None:
            real_tokens = inputs.pad(torch.ones_like(inputs.batch.input_ids, dtype=torch.bool))
            check_sliding_window_mask(sliding_window_mask, real_tokens, self.config.local_attention // 2)
        hidden_states: list[Tensor] | None = (
            [] if _default(output_hidden_states, self.config.output_hidden_states) else None
        )
        maps: list[tuple[Tensor, ...]] | None = (
            [] if _default(output_attentions, self.config.output_attentions) else None
        )
        x_TD = self.forward_packed(inputs.batch, hidden_states, maps)
        traces: dict[str, Any] = {}
        if hidden_states is not None:
            traces["hidden_states"] = tuple(inputs.pad(h_TD) for h_TD in hidden_states)
        if maps is not None:
            traces["attentions"] = tuple(_padded_maps(inputs, layer_maps) for layer_maps in maps)
        return inputs, x_TD, traces

    def _rope_table(self, theta: float, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self._rope_tables.get(theta)
        if table is None or len(table[0]) < positions or table[0].device != device:
            positions = max(positions, self.config.max_position_embeddings)
            self._rope_tables[theta] = table = rope_table(theta, self.config.head_dim, positions, device)
        return table


def layer_norm(config: ModernBertConfig) -> nn.LayerNorm:
    """The one norm ModernBERT uses everywhere."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def to_output(output: ModelOutput, return_dict: bool | None, config: ModernBertConfig) -> Any:
    """`output`, or its tuple where `return_dict`, or else the configuration, says so."""
    return output if _default(return_dict, config.return_dict) else output.to_tuple()


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _padded_maps(inputs: ModelInputs, maps: tuple[Tensor, ...]) -> Tensor:
    """The weights (N, L, L) of each sequence at their places in (B, N, S, S); packed ones from the left."""
    columns = torch.arange(len(inputs.batch.input_ids), device=maps[0].device)
    width = max(weights_NLL.shape[-1] for weights_NLL in maps)
    if inputs.indices is not None and inputs.shape is not None:
        width, columns = inputs.shape[1], inputs.indices % inputs.shape[1]
    else:
        columns = torch.cat([columns[: weights_NLL.shape[-1]] for weights_NLL in maps])
    out = maps[0].new_zeros(len(maps), maps[0].shape[0], width, width)
    for row, (weights_NLL, positions) in enumerate(zip(maps, columns.split(inputs.batch.seqlens), strict=True)):
        out[row, :, positions[:, None], positions] = weights_NLL
    return out
