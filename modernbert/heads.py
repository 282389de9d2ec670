"""The heads on the encoder, with their losses.

Shapes: T packed tokens, B sequences, S padded length, D hidden, C labels or choices, V vocabulary, P chosen tokens.

Each class has two ways in: `forward`, with the arguments and results of transformers, and `forward_packed`, which takes
a packed batch and gives packed logits: the one that pipelines run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.checkpoint import PreTrained, init_weights
from modernbert.config import ConfigError, ModernBertConfig, activation_function
from modernbert.linear import Linear, map_row_chunks
from modernbert.model import ModernBertModel, layer_norm, to_output
from modernbert.outputs import (
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from modernbert.packing import ModelInputs, PackedBatch


class ModernBertPredictionHead(nn.Module):
    """Dense, activation, norm: what stands between the encoder and a classifier or decoder."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = activation_function(config.classifier_activation)
        self.norm = layer_norm(config)
        if config.reference_compile:
            self.compile(dynamic=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return self.norm(self.act(self.dense(x_BD)))


class _Head(PreTrained):
    """An encoder with a head: the forward that all of them but question answering share."""

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
        **ignored: Any,
    ) -> Any:
        """The class's output, or a tuple with `return_dict=False`; with `labels`, the loss too.

        Every argument but `labels` is as in `ModernBertModel.forward`.
        """
        inputs, x_TD, traces = self.model.encode(
            input_ids, attention_mask, sliding_window_mask, position_ids, inputs_embeds, indices, cu_seqlens,
            max_seqlen, batch_size, seq_len, output_attentions, output_hidden_states, ignored,
        )  # fmt: skip
        return to_output(self._compute_output(inputs, x_TD, labels, traces), return_dict, self.config)

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: dict[str, Any]
    ) -> ModelOutput:
        raise NotImplementedError


class ModernBertForMaskedLM(_Head):
    """Scores of every vocabulary token at each place, by a decoder tied to the embeddings."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.model = ModernBertModel(config, attention)
        self.head = ModernBertPredictionHead(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.tie_weights()
        init_weights(self)

    def tie_weights(self) -> None:
        """Let the decoder use the embeddings' weight, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward_packed(self, batch: PackedBatch, positions: Tensor | None = None) -> Tensor:
        """The logits (P, V) of the tokens at `positions` (P,) of a packed batch, or of all of them (T, V)."""
        x_TD = self.model.forward_packed(batch)
        return map_row_chunks(self._decode, x_TD if positions is None else x_TD[positions])

    def _decode(self, x_PD: Tensor) -> Tensor:
        return self.decoder(self.head(x_PD))

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: dict[str, Any]
    ) -> MaskedLMOutput:
        """Labels (B, S) or (T,) are ids, -100 where no loss is wanted; labels at padding are never read.

        Under `sparse_prediction`, only tokens whose label is not `sparse_pred_ignore_index` are decoded. The padded
        copy of the logits carries a gradient beside a loss only with `repad_logits_with_grad`; the loss always does.
        """
        if labels is None:
            return MaskedLMOutput(logits=inputs.pad(map_row_chunks(self._decode, x_TD)), **traces)
        labels_T = inputs.unpad(labels)
        if self.config.sparse_prediction:
            labelled_T = labels_T != self.config.sparse_pred_ignore_index
            logits = map_row_chunks(self._decode, x_TD[labelled_T])
            return MaskedLMOutput(loss=F.cross_entropy(logits.float(), labels_T[labelled_T]), logits=logits, **traces)
        logits = map_row_chunks(self._decode, x_TD)
        loss = F.cross_entropy(logits.float(), labels_T)
        return MaskedLMOutput(
            loss=loss, logits=inputs.pad(logits if self.config.repad_logits_with_grad else logits.detach()), **traces
        )


class _Classifier(_Head):
    """A prediction head, dropout and a linear classifier of `num_outputs` numbers."""

    def __init__(self, config: ModernBertConfig, attention: str, num_outputs: int):
        super().__init__()
        self.config = config
        self.model = ModernBertModel(config, attention)
        self.head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = Linear(config.hidden_size, num_outputs)
        init_weights(self)

    def _classify(self, x_BD: Tensor) -> Tensor:
        return self.classifier(self.drop(self.head(x_BD)))

    def _classify_pooled(self, x_TD: Tensor, batch: PackedBatch) -> Tensor:
        return map_row_chunks(self._classify, pool(x_TD, batch, self.config.classifier_pooling))


class ModernBertForSequenceClassification(_Classifier):
    """A label, several labels or a number for each sequence."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, config.num_labels)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The logits (B, C) of a packed batch on the model's device, in its order."""
        return self._classify_pooled(self.model.forward_packed(batch), batch)

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: dict[str, Any]
    ) -> SequenceClassifierOutput:
        """Labels: (B,) classes or numbers, or (B, C) targets."""
        logits = self._classify_pooled(x_TD, inputs.batch)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits, **traces)


class ModernBertForTokenClassification(_Classifier):
    """A label for each token."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, config.num_labels)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The logits (T, C) of a packed batch on the model's device, in its order."""
        return map_row_chunks(self._classify, self.model.forward_packed(batch))

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: dict[str, Any]
    ) -> TokenClassifierOutput:
        """Labels (B, S) or (T,): a class each, -100 where no loss is wanted; labels at padding are never read."""
        logits = map_row_chunks(self._classify, x_TD)
        loss = None if labels is None else F.cross_entropy(logits, inputs.unpad(labels))
        return TokenClassifierOutput(loss=loss, logits=inputs.pad(logits), **traces)


class ModernBertForMultipleChoice(_Classifier):
    """A number for each of several choices, a sequence each."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, num_outputs=1)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The logits (B, 1) of a packed batch on the model's device, in its order."""
        return self._classify_pooled(self.model.forward_packed(batch), batch)

    def forward(  # type: ignore[override]
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
        **ignored: Any,
    ) -> Any:
        """As `ModernBertModel.forward`, with a dimension for the choices: ids (B, C, S), vectors (B, C, S, D).

        `labels` (B,): the right choice. Of packed input, `batch_size` counts the questions (default: one), whose
        choices follow each other.
        """
        source = inputs_embeds if input_ids is None else input_ids
        if source is None or (cu_seqlens is None and source.dim() < 3):
            raise ValueError("multiple choice reads input of the shape (batch, choices, sequence)")
        if cu_seqlens is None:
            questions, sequences = source.shape[0], source.shape[0] * source.shape[1]
            input_ids, attention_mask, position_ids, inputs_embeds, sliding_window_mask = (
                x if x is None or x.dim() != dims else x.flatten(0, 1)
                for x, dims in zip(
                    (input_ids, attention_mask, position_ids, inputs_embeds, sliding_window_mask),
                    (3, 3, 3, 4, 3),
                    strict=True,
                )
            )
        else:
            questions, sequences = batch_size or 1, len(cu_seqlens) - 1
        if batch_size not in (None, questions) or sequences % questions:
            raise ValueError(f"batch_size {batch_size} does not fit {sequences} choices, of {questions} questions")
        batch_size = batch_size and sequences
        inputs, x_TD, traces = self.model.encode(
            input_ids, attention_mask, sliding_window_mask, position_ids, inputs_embeds, indices, cu_seqlens,
            max_seqlen, batch_size, seq_len, output_attentions, output_hidden_states, ignored,
        )  # fmt: skip
        logits = self._classify_pooled(x_TD, inputs.batch).view(questions, -1)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return to_output(MultipleChoiceModelOutput(loss=loss, logits=logits, **traces), return_dict, self.config)


class ModernBertForQuestionAnswering(_Classifier):
    """Scores of each token as the start and as the end of an answer."""

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        if config.num_labels != 2:
            raise ConfigError(f"question answering has two outputs, start and end; id2label names {config.num_labels}")
        super().__init__(config, attention, num_outputs=2)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """The start and end logits (T, 2) of a packed batch on the model's device, in its order."""
        return map_row_chunks(self._classify, self.model.forward_packed(batch))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sliding_window_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        indices: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        batch_size: int | None = None,
        seq_len: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        **ignored: Any,
    ) -> Any:
        """As `ModernBertModel.forward`; with `start_positions` and `end_positions` (B,), the loss too.

        Positions are places in the caller's layout, or in a sequence where the input was packed without `indices`.
        Padding takes no part in the loss, and a position beyond the end is left out of it.
        """
        inputs, x_TD, traces = self.model.encode(
            input_ids, attention_mask, sliding_window_mask, position_ids, inputs_embeds, indices, cu_seqlens,
            max_seqlen, batch_size, seq_len, output_attentions, output_hidden_states, ignored,
        )  # fmt: skip
        start_T, end_T = map_row_chunks(self._classify, x_TD).unbind(-1)
        minimum = torch.finfo(start_T.dtype).min
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss(inputs, start_T, start_positions, minimum)
            loss = (start_loss + _position_loss(inputs, end_T, end_positions, minimum)) / 2
        start, end = inputs.pad(start_T, minimum), inputs.pad(end_T, minimum)
        result = QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end, **traces)
        return to_output(result, return_dict, self.config)


def _position_loss(inputs: ModelInputs, logits_T: Tensor, positions_B: Tensor, minimum: float) -> Tensor:
    """Cross-entropy over the tokens of each sequence; a position beyond the end is left out."""
    if inputs.shape is None:
        rows = nn.utils.rnn.pad_sequence(
            list(logits_T.split(inputs.batch.seqlens)), batch_first=True, padding_value=minimum
        )
    else:
        rows = inputs.pad(logits_T, minimum)
    ignore_index = rows.shape[1]
    positions_B = positions_B.to(rows.device).view(-1).clamp(0, ignore_index)
    return F.cross_entropy(rows, positions_B, ignore_index=ignore_index)


def pool(hidden_TD: Tensor, batch: PackedBatch, pooling: str) -> Tensor:
    """One vector a sequence, (B, D): its first token's ("cls") or the mean over its tokens ("mean")."""
    if pooling == "cls":
        return hidden_TD[batch.cu_seqlens[:-1].long()]
    return torch.stack([x_LD.mean(dim=0) for x_LD in hidden_TD.split(batch.seqlens)])


def classification_loss(logits_BC: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss for `problem_type`, which is told from the labels' kind where it is None."""
    if problem_type is None:
        integer_labels = not labels.is_floating_point()
        single = "single_label_classification" if integer_labels else "multi_label_classification"
        problem_type = "regression" if logits_BC.shape[-1] == 1 else single
    if problem_type == "regression":
        return F.mse_loss(logits_BC.squeeze(), labels.squeeze().to(logits_BC.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits_BC.view(-1, logits_BC.shape[-1]), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))
