"""What the classes in heads.py share: `forward`, the prediction head, the classifier and pooling.

Shapes: T packed tokens, B sequences, D hidden, C labels or choices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modernbert import gpu
from modernbert.checkpoint import PreTrained, init_weights
from modernbert.config import ModernBertConfig
from modernbert.forward_arguments import ForwardArguments
from modernbert.inputs import ModelInputs
from modernbert.layers import layer_norm
from modernbert.linear import Linear, activation_function, map_row_chunks
from modernbert.model import ModernBertModel, to_output
from modernbert.outputs import ModelOutput, OutputOrTuple, Traces
from modernbert.packing import PackedBatch


class ModernBertPredictionHead(nn.Module):
    """Dense layer, activation and norm, between the encoder and a classifier or decoder: (B, D) to
    (B, D).
    """

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = activation_function(config.classifier_activation)
        self.norm = layer_norm(config)
        if config.reference_compile:
            self.compile(dynamic=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = x_BD.to(self.norm.weight.dtype)  # a head may be fp32 on a bf16 encoder
        out_BD: Tensor = self.norm(self.act(self.dense(x_BD)))
        return out_BD


class EncoderWithHead(PreTrained):
    """An encoder with a head; `forward` is shared by the heads that have `labels` in the layout of
    the input.
    """

    model: ModernBertModel

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sliding_window_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
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
        """Compute the logits, and the loss if `labels` are given.

        Args:
            labels: the targets, of the shape that the class states.

        The other arguments, and the errors, are those of `ModernBertModel.forward`.

        Returns:
            The output object of the class, or a tuple of its values with `return_dict=False`.
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
        inputs, x_TD, traces = self.model.run(arguments)
        output = self._compute_output(inputs, x_TD, labels, traces)
        return to_output(output, return_dict, self.config)

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: Traces
    ) -> ModelOutput:
        """Compute the output from the last hidden states; `traces` are its `hidden_states` and
        `attentions`.
        """
        raise NotImplementedError


class EncoderWithClassifier(EncoderWithHead):
    """An encoder with a prediction head, dropout and a linear classifier with `num_outputs`
    outputs.
    """

    def __init__(self, config: ModernBertConfig, attention: str, num_outputs: int):
        super().__init__()
        self.config = config
        self.model = ModernBertModel(config, attention)
        self.head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, num_outputs)
        init_weights(self)

    def _classify(self, x_BD: Tensor) -> Tensor:
        logits_BC: Tensor = self.classifier(self.drop(self.head(x_BD)))
        return logits_BC

    def _classify_pooled(self, x_TD: Tensor, batch: PackedBatch) -> Tensor:
        pooled_BD = pool(x_TD, batch, self.config.classifier_pooling)
        return map_row_chunks(self._classify, pooled_BD)


def pool(hidden_TD: Tensor, batch: PackedBatch, pooling: str) -> Tensor:
    """Compute a vector (B, D) for each sequence of a packed batch.

    Args:
        hidden_TD: the last hidden states (T, D).
        batch: where the sequences start.
        pooling: "cls" for the first token's hidden state, "mean" for the mean over all tokens.
    """
    if pooling == "cls":
        return hidden_TD[batch.cu_seqlens[:-1]]
    if kernels := gpu.kernels_for(hidden_TD):
        pooled_BD: Tensor = kernels.pool_sequences(hidden_TD, batch.cu_seqlens, pooling)
        return pooled_BD
    return torch.stack([x_LD.mean(dim=0) for x_LD in hidden_TD.split(batch.seqlens)])
