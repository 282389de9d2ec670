"""The ModernBERT encoder (Warner et al. 2024, arXiv:2412.13663) on packed batches: padding is never
computed.

Shapes: T packed tokens, B sequences, L tokens of one sequence, S padded length, D hidden, N heads,
H head dim.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from modernbert import cpu, gpu
from modernbert.attention import Attention, length_classes, packed_attention
from modernbert.attention_kernels import FLASH_ATTN_2, resolve_backend
from modernbert.checkpoint import PreTrained, init_weights
from modernbert.config import ModernBertConfig
from modernbert.forward_arguments import ForwardArguments
from modernbert.graphs import EncoderGraphs
from modernbert.inputs import ModelInputs
from modernbert.layers import ModernBertEmbeddings, ModernBertEncoderLayer, layer_norm
from modernbert.outputs import BaseModelOutput, ModelOutput, OutputOrTuple, Traces
from modernbert.packing import PackedBatch
from modernbert.rope import rope_table
from modernbert.rope_scaling import RopeScaling
from modernbert.tiles import Fusions
from modernbert.torch_attention import FUSED

Rope = tuple[float, RopeScaling | None]
"""The theta of a rotary embedding, and how it is scaled."""


class HiddenStates(Protocol):
    """What takes the hidden states of a batch as they come, as a list does."""

    def append(self, x_TD: Tensor, /) -> None: ...


class ModernBertModel(PreTrained):
    """The encoder without a head, with newly initialised weights; `from_pretrained` loads a
    checkpoint.

    Args:
        config: the configuration.
        attention: one of `modernbert.attention_kernels.BACKENDS`, or "auto" for the best one on the
            model's device.

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
        self.cpu_way = FUSED
        self.fusions = Fusions()
        """How products run on a GPU (`modernbert.fusions`)."""
        self.is_shared = False
        """Whether several heads read the hidden states of a batch (`sharing.share_encoder`)."""
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(
            ModernBertEncoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.final_norm = layer_norm(config)
        self._rope_tables: dict[Rope, tuple[Tensor, Tensor]] = {}
        self._graphs: EncoderGraphs | None = None
        init_weights(self)
        if config.reference_compile:
            self.embeddings.compile(dynamic=True)
            for layer in self.layers:
                layer.mlp.compile(dynamic=True)  # type: ignore[union-attr]

    def prepack(self) -> None:
        """Find out how attention is computed fastest on this CPU (`linear.prepack` asks for it)."""
        half = self.config.local_attention // 2
        dtype = self.embeddings.tok_embeddings.weight.dtype
        heads, head_dim = self.config.num_attention_heads, self.config.head_dim
        self.cpu_way = cpu.fastest_way(heads, head_dim, (half, half), dtype)

    def forward_packed(
        self,
        batch: PackedBatch,
        hidden_states: HiddenStates | None = None,
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
        if hidden_states is not None or maps is not None:
            return self.run_layers(batch, hidden_states, maps)
        if self in batch.encoded:
            return batch.encoded[self]
        x_TD = self._graphs.run(batch) if self._graphs is not None else None
        if x_TD is None:
            x_TD = self.run_layers(batch)
        if self.is_shared:
            batch.encoded[self] = x_TD
        return x_TD

    def enable_graphs(self) -> None:
        """Run small batches as CUDA graphs from now on, where the attention backend allows it.

        The result of a batch is then overwritten by the next one, and calls must not overlap. Call
        this, and the model, in inference mode, and hold `gpu.LAUNCHING` where a process has several
        models.
        """
        weight = self.embeddings.tok_embeddings.weight
        backend = resolve_backend(self.attention, weight.device, weight.dtype, self.config.head_dim)
        # These two cut a batch by lengths that are known on the host alone.
        if backend not in ("sdpa", "eager"):
            heads = self.config.num_attention_heads if backend in FLASH_ATTN_2 else 0
            self._graphs = EncoderGraphs(self.run_layers, heads)
            self._graphs.capture_common(weight.device)

    def run_layers(
        self,
        batch: PackedBatch,
        hidden_states: HiddenStates | None = None,
        maps: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """Compute `forward_packed`, always without CUDA graphs."""
        x_TD: Tensor = self.embeddings(batch)
        attention = self._attention_of(batch, x_TD)
        # Layers share the table of their embedding: it is looked up once.
        config = self.config
        kinds = [(config.rope_theta(i), config.rope_scaling(i)) for i in range(len(self.layers))]
        ropes = {kind: self.rope(kind, batch) for kind in set(kinds)}
        for i, layer in enumerate(self.layers):
            if hidden_states is not None:
                # Layers on a GPU overwrite their input.
                hidden_states.append(x_TD.clone() if gpu.kernels_for(x_TD) else x_TD)
            x_TD = layer(x_TD, ropes[kinds[i]], batch, attention, maps)
        x_TD = self.final_norm(x_TD)
        if hidden_states is not None:
            hidden_states.append(x_TD)
        return x_TD

    def _attention_of(self, batch: PackedBatch, x_TD: Tensor) -> Attention:
        """Return the attention of all layers, with the sequences of a batch bound."""
        has_dropout = self.training and self.config.attention_dropout > 0
        backend = resolve_backend(
            self.attention, x_TD.device, x_TD.dtype, self.config.head_dim, dropout=has_dropout
        )
        classes = length_classes(batch, self.config.num_attention_heads, backend)
        return partial(packed_attention, classes=classes, backend=backend, way=self.cpu_way)

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
        **ignored: object,
    ) -> OutputOrTuple:
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
        arguments = ForwardArguments(
            input_ids=input_ids,
            attention_mask=attention_mask,
            sliding_window_mask=sliding_window_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            indices=indices,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            batch_size=batch_size,
            seq_len=seq_len,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            others=ignored,
        )
        inputs, x_TD, traces = self.run(arguments)
        output = BaseModelOutput(last_hidden_state=inputs.pad(x_TD), **traces)
        return to_output(output, return_dict, self.config)

    def run(self, arguments: ForwardArguments) -> tuple[ModelInputs, Tensor, Traces]:
        """Pack the inputs and run the encoder: the first step of every `forward`.

        Returns:
            The packed inputs, the last hidden states (T, D), and the fields `hidden_states` and
            `attentions` of the output, in the caller's layout, as far as they are to be returned.
        """
        inputs = arguments.pack(self.config)
        hidden_states: list[Tensor] | None = None
        if _default(arguments.output_hidden_states, self.config.output_hidden_states):
            hidden_states = []
        maps: list[tuple[Tensor, ...]] | None = None
        if _default(arguments.output_attentions, self.config.output_attentions):
            maps = []
        x_TD = self.forward_packed(inputs.batch, hidden_states, maps)
        traces: Traces = {}
        if hidden_states is not None:
            traces["hidden_states"] = tuple(inputs.pad(h_TD) for h_TD in hidden_states)
        if maps is not None:
            traces["attentions"] = tuple(_padded_maps(inputs, layer_maps) for layer_maps in maps)
        return inputs, x_TD, traces

    def rope(self, kind: Rope, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return cos and sin, fp32: of the batch's tokens (T, H/2), or of all positions where a
        kernel looks them up.

        The tables of positions are kept, and grow where a batch needs more. Raises ValueError for
        positions that a dynamic embedding does not have.
        """
        theta, scaling = kind
        most = self.config.max_position_embeddings
        if scaling and scaling.rope_type == "dynamic" and batch.num_positions > most:
            # From there on, the longest sequence of a batch would change the answers of all others.
            raise ValueError(
                f"the input has {batch.num_positions} positions; a model with a dynamic rotary "
                f"embedding reads at most its max_position_embeddings, {most}"
            )
        device = batch.cu_seqlens.device
        tables = self._rope_tables.get(kind)
        if tables is None or len(tables[0]) < batch.num_positions or tables[0].device != device:
            positions = max(batch.num_positions, self.config.max_position_embeddings)
            tables = rope_table(theta, self.config.head_dim, positions, device, scaling)
            self._rope_tables[kind] = tables
        if gpu.kernels_for(batch.cu_seqlens):
            return tables
        cos_SH, sin_SH = tables
        return cos_SH[batch.position_ids], sin_SH[batch.position_ids]


def to_output(
    output: ModelOutput, return_dict: bool | None, config: ModernBertConfig
) -> OutputOrTuple:
    """Return `output`, or without `return_dict` a tuple of its values; None: as configured."""
    return output if _default(return_dict, config.return_dict) else output.to_tuple()


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _padded_maps(inputs: ModelInputs, maps: tuple[Tensor, ...]) -> Tensor:
    """Put the weights (N, L, L) of each sequence into (B, N, S, S): at real tokens, or from the
    left if packed.
    """
    if inputs.indices is not None and inputs.shape is not None:
        width = inputs.shape[1]
        columns = (inputs.indices % width).split(inputs.batch.seqlens)
    else:
        width = max(inputs.batch.seqlens)
        from_left = torch.arange(width, device=maps[0].device)
        columns = tuple(from_left[:length] for length in inputs.batch.seqlens)
    heads = maps[0].shape[0]
    out_BNSS = maps[0].new_zeros(len(maps), heads, width, width)
    for row, (weights_NLL, columns_L) in enumerate(zip(maps, columns, strict=True)):
        out_BNSS[row, :, columns_L[:, None], columns_L] = weights_NLL
    return out_BNSS
