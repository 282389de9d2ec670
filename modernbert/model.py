"""The ModernBERT encoder (Warner et al. 2024, arXiv:2412.13663) on packed batches: padding is never
computed.

Shapes: T packed tokens, B sequences, S padded length, D hidden, N heads, H head dim, F MLP width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modernbert import gpu
from modernbert.attention import (
    Attention,
    attention_maps,
    length_classes,
    packed_attention,
    resolve_backend,
    visible_attention,
)
from modernbert.checkpoint import PreTrained, init_weights
from modernbert.config import ModernBertConfig
from modernbert.graphs import EncoderGraphs
from modernbert.linear import GatedLinear, Linear, map_row_chunks
from modernbert.outputs import BaseModelOutput, ModelOutput
from modernbert.packing import ModelInputs, PackedBatch, check_sliding_window_mask
from modernbert.rope import apply_rope, apply_rope_interleaved_, interleave_pairs, rope_table


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
        x_TD = (
            self.tok_embeddings(batch.input_ids)
            if batch.inputs_embeds is None
            else batch.inputs_embeds
        )
        return self.drop(self.norm(x_TD))


class ModernBertAttention(nn.Module):
    """Holds the projections before and after `varlen_attention`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.qkv_shape = (3, config.num_attention_heads, config.head_dim)
        self.Wqkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)
        self.interleaved = False

    def project(self, x_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Compute queries, keys and values (T, 3, N, H); queries and keys are rotated by RoPE.

        Args:
            x_TD: the normalised hidden states.
            cos_TH: cos at the tokens' positions, (T, H/2) fp32.
            sin_TH: sin at the tokens' positions, (T, H/2) fp32.
        """
        qkv = self.Wqkv(x_TD).unflatten(-1, self.qkv_shape)
        if self.interleaved:
            apply_rope_interleaved_(qkv[:, :2], cos_TH, sin_TH)
            return qkv
        qk, v = qkv.split((2, 1), dim=1)
        return torch.cat((apply_rope(qk, cos_TH, sin_TH), v), dim=1)

    def prepack(self) -> None:
        """Reorder queries and keys for `apply_rope_interleaved_`, except in fp32, whose last bits
        would change.
        """
        if self.Wqkv.weight.dtype == torch.float32:
            return
        self.interleaved = True
        for parameter in (self.Wqkv.weight, self.Wqkv.bias):
            if parameter is not None:
                q, k, v = parameter.data.chunk(3)
                parameter.data = torch.cat(
                    (*(interleave_pairs(x, self.qkv_shape[1]) for x in (q, k)), v)
                )


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
        return self.Wo(self.drop(self.Wi(x_TD)), residual_TD)


class ModernBertEncoderLayer(nn.Module):
    """One layer: attention and MLP, each after a norm and added to its input (pre-norm)."""

    def __init__(self, config: ModernBertConfig, index: int):
        super().__init__()
        self.attn_norm = (
            layer_norm(config) if index else nn.Identity()
        )  # the embeddings are normalised already
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
            qkv = self.attn.Wqkv(self.attn_norm(x_TD)).unflatten(-1, self.attn.qkv_shape)
            kernels.rotate_(qkv, *rope, batch.position_ids)
        else:
            qkv = map_row_chunks(self._project_qkv, x_TD, *rope)
        q_TNH, k_TNH, v_TNH = qkv.unbind(dim=1)
        dropout = self.attention_dropout if self.training else 0.0
        if maps is not None:
            maps.append(attention_maps(q_TNH, k_TNH, batch.seqlens, self.window, dropout))
            a_TNH = torch.cat(
                [
                    (weights_NLL @ v_LNH.transpose(0, 1)).transpose(0, 1)
                    for weights_NLL, v_LNH in zip(maps[-1], v_TNH.split(batch.seqlens), strict=True)
                ]
            )
        else:
            a_TNH = attention(
                q_TNH,
                k_TNH,
                v_TNH,
                window=self.window,
                dropout=dropout,
                deterministic=self.deterministic,
            )
        del qkv, q_TNH, k_TNH, v_TNH  # the memory is the MLP's now
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
    """The encoder without a head, with newly initialised weights; `from_pretrained` loads a
    checkpoint.

    Args:
        config: the configuration.
        attention: one of `modernbert.attention.BACKENDS`, or "auto" for the best one on the model's
            device.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> model = ModernBertModel.from_pretrained("answerdotai/ModernBERT-base")
        >>> inputs = tokenizer(["a text", "and a longer one"], padding=True, return_tensors="pt")
        >>> model(**inputs).last_hidden_state.shape
        torch.Size([2, 6, 768])
    """

    encoder_prefix = ""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(
            ModernBertEncoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.final_norm = layer_norm(config)
        self._rope_tables: dict[float, tuple[Tensor, Tensor]] = {}
        self._graphs: EncoderGraphs | None = None
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
        """Compute the last hidden states of a packed batch.

        Args:
            batch: the input, on the model's device.
            hidden_states: None, or a list to which the embeddings, the output of each layer but the
                last, and the output of the final norm are appended, (T, D) each.
            maps: None, or a list to which the attention weights of each layer are appended, (N, L,
                L) for each sequence.

        Returns:
            (T, D) in the model's dtype, in the order of the batch.

        Raises:
            ValueError: where the attention backend that the model was created with cannot run.

        Example:
            >>> input_ids = torch.tensor([50281, 7, 50282, 50281, 8, 9, 50282])
        >>> batch = PackedBatch.from_lengths(input_ids, (3, 4))
            >>> model.forward_packed(batch).shape
            torch.Size([7, 768])
        """
        if self._graphs is not None and hidden_states is None and maps is None:
            x_TD = self._graphs.run(batch)
            if x_TD is not None:
                return x_TD
        return self._encode(batch, hidden_states, maps)

    def enable_graphs(self) -> None:
        """Run small batches as CUDA graphs from now on, where the attention backend allows it.

        The result of a batch is then overwritten by the next one, and calls must not overlap.
        """
        weight = self.embeddings.tok_embeddings.weight
        if resolve_backend(
            self.attention, weight.device, weight.dtype, self.config.head_dim
        ) not in ("sdpa", "eager"):
            self._graphs = EncoderGraphs(
                self._encode
            )  # the other backends cut batches by the lengths on the host

    def _encode(
        self,
        batch: PackedBatch,
        hidden_states: list[Tensor] | None = None,
        maps: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        x_TD = self.embeddings(batch)
        training_dropout = self.training and self.config.attention_dropout > 0
        backend = resolve_backend(
            self.attention, x_TD.device, x_TD.dtype, self.config.head_dim, dropout=training_dropout
        )
        classes = length_classes(batch, self.config.num_attention_heads, backend)
        attention: Attention = partial(packed_attention, classes=classes, backend=backend)
        if batch.visible is not None:
            attention = partial(visible_attention, seqlens=batch.seqlens, visible=batch.visible)
        rope = {
            theta: self.rope(theta, batch)
            for theta in {self.config.rope_theta(i) for i in range(len(self.layers))}
        }
        for i, layer in enumerate(self.layers):
            if hidden_states is not None:  # layers on a GPU overwrite their input
                hidden_states.append(x_TD.clone() if gpu.kernels_for(x_TD) else x_TD)
            x_TD = layer(x_TD, rope[self.config.rope_theta(i)], batch, attention, maps)
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
        """Compute the last hidden states, with the arguments of transformers.

        Args:
            input_ids: token ids, padded (B, S), or packed (T,) together with `cu_seqlens`.
            attention_mask: (B, S), 1 at real tokens, which may be anywhere in a row; None: all
                tokens are real.
            sliding_window_mask: accepted if it is the mask of the window that the configuration
                has.
            position_ids: (B, S), (1, S) or (T,), positions in the rotary embeddings; by default
                real tokens count from 0 in each sequence. Windows depend on the order of tokens,
                not on positions.
            inputs_embeds: vectors (B, S, D) or (T, D) in place of `input_ids`.
            indices: (T,), positions of packed tokens in the flattened (B*S) layout. With
                `batch_size` and `seq_len` the outputs are (B, S, …); without these three they stay
                packed, (T, …).
            cu_seqlens: (B+1,), where each sequence of packed input starts, with T at the end.
            max_seqlen: not needed; if given, at least the length of the longest sequence.
            batch_size: B of the padded layout.
            seq_len: S of the padded layout.
            output_attentions: whether to return the attention weights, computed by the plain
                formula (S x S for each head); None: as the configuration says.
            output_hidden_states: whether to return all hidden states; None: as the configuration
                says.
            return_dict: whether to return an output object, not a tuple; None: as the configuration
                says.
            ignored: `token_type_ids`, which is accepted and not read.

        Returns:
            A `BaseModelOutput`, or a tuple of its values.

        Raises:
            ValueError: for arguments that contradict each other.
            TypeError: for any other argument.
        """
        inputs, x_TD, traces = self.encode(
            input_ids,
            attention_mask,
            sliding_window_mask,
            position_ids,
            inputs_embeds,
            indices,
            cu_seqlens,
            max_seqlen,
            batch_size,
            seq_len,
            output_attentions,
            output_hidden_states,
            ignored,
        )
        return to_output(
            BaseModelOutput(last_hidden_state=inputs.pad(x_TD), **traces), return_dict, self.config
        )

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
        """Pack the inputs and run the encoder: the first step of every `forward`, whose arguments
        it takes.

        Returns:
            The packed inputs, the last hidden states (T, D), and the fields `hidden_states` and
            `attentions` of the output, in the caller's layout, as far as they are to be returned.
        """
        if unknown := sorted(set(ignored) - {"token_type_ids"}):
            raise TypeError(f"forward has no argument {', '.join(unknown)}")
        shape = None if batch_size is None or seq_len is None else (batch_size, seq_len)
        if cu_seqlens is None:
            if indices is not None:
                raise ValueError("indices belong to unpadded input, which needs cu_seqlens too")
            inputs = ModelInputs.from_padded(input_ids, attention_mask, position_ids, inputs_embeds)
            if shape not in (None, inputs.shape):
                raise ValueError(f"batch_size and seq_len say {shape}, the input is {inputs.shape}")
        else:
            inputs = ModelInputs.from_packed(
                input_ids, cu_seqlens, position_ids, inputs_embeds, indices, shape
            )
            if (
                attention_mask is not None
                and int((attention_mask != 0).sum()) != inputs.batch.input_ids.numel()
            ):
                raise ValueError(
                    "attention_mask and cu_seqlens count different numbers of tokens; leave the "
                    "mask out"
                )
        if max_seqlen is not None and max_seqlen < inputs.batch.max_seqlen:
            raise ValueError(
                f"max_seqlen is {max_seqlen}, but a sequence has {inputs.batch.max_seqlen} tokens"
            )
        if sliding_window_mask is not None:
            real_tokens = inputs.pad(torch.ones_like(inputs.batch.input_ids, dtype=torch.bool))
            check_sliding_window_mask(
                sliding_window_mask, real_tokens, self.config.local_attention // 2
            )
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

    def rope(self, theta: float, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return cos and sin, fp32: of the batch's tokens (T, H/2), or of all positions where a
        kernel looks them up.

        The tables of positions are kept, and grow where a batch needs more.
        """
        device = batch.cu_seqlens.device
        tables = self._rope_tables.get(theta)
        if tables is None or len(tables[0]) < batch.num_positions or tables[0].device != device:
            positions = max(batch.num_positions, self.config.max_position_embeddings)
            self._rope_tables[theta] = tables = rope_table(
                theta, self.config.head_dim, positions, device
            )
        if gpu.kernels_for(batch.cu_seqlens):
            return tables
        cos_SH, sin_SH = tables
        return cos_SH[batch.position_ids], sin_SH[batch.position_ids]


def layer_norm(config: ModernBertConfig) -> nn.LayerNorm:
    """Create the norm that ModernBERT uses everywhere."""
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def to_output(output: ModelOutput, return_dict: bool | None, config: ModernBertConfig) -> Any:
    """Return `output`, or a tuple of its values if `return_dict` is False; None: as the
    configuration says.
    """
    return output if _default(return_dict, config.return_dict) else output.to_tuple()


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _padded_maps(inputs: ModelInputs, maps: tuple[Tensor, ...]) -> Tensor:
    """Put the weights (N, L, L) of each sequence into (B, N, S, S): at real tokens, or from the
    left if packed.
    """
    columns = torch.arange(len(inputs.batch.input_ids), device=maps[0].device)
    width = max(weights_NLL.shape[-1] for weights_NLL in maps)
    if inputs.indices is not None and inputs.shape is not None:
        width, columns = inputs.shape[1], inputs.indices % inputs.shape[1]
    else:
        columns = torch.cat([columns[: weights_NLL.shape[-1]] for weights_NLL in maps])
    out = maps[0].new_zeros(len(maps), maps[0].shape[0], width, width)
    for row, (weights_NLL, positions) in enumerate(
        zip(maps, columns.split(inputs.batch.seqlens), strict=True)
    ):
        out[row, :, positions[:, None], positions] = weights_NLL
    return out
