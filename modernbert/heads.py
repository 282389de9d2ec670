"""The encoder with a head: one class for each task, with its loss.

Shapes: T packed tokens, B sequences, S padded length, D hidden, C labels or choices, V vocabulary,
P chosen tokens.

Each class has two methods: `forward`, with the arguments and outputs of transformers, and
`forward_packed`, which turns a packed batch into packed logits and is what the pipelines call.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.checkpoint import init_weights
from modernbert.config import ModernBertConfig
from modernbert.forward_arguments import ForwardArguments
from modernbert.head_parts import (
    EncoderWithClassifier,
    EncoderWithHead,
    ModernBertPredictionHead,
)
from modernbert.inputs import ModelInputs
from modernbert.linear import Linear, map_row_chunks
from modernbert.losses import classification_loss, position_loss
from modernbert.model import ModernBertModel, to_output
from modernbert.outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    OutputOrTuple,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Traces,
)
from modernbert.packing import PackedBatch
from modernbert.stored import ConfigError


class ModernBertForMaskedLM(EncoderWithHead):
    """Scores of all vocabulary tokens at each position (masked language modelling).

    `labels`: token ids (B, S) or (T,) int64, -100 where no loss is computed; labels at padding are
    not read. With `sparse_prediction`, only tokens whose label is not `sparse_pred_ignore_index`
    are decoded. The loss has a gradient; the logits beside it have one only with
    `repad_logits_with_grad` or `sparse_prediction`.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> model = ModernBertForMaskedLM.from_pretrained("answerdotai/ModernBERT-base")
        >>> inputs = tokenizer("The capital of France is [MASK].", return_tensors="pt")
        >>> position = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
        >>> tokenizer.token(model(**inputs).logits[0, position].argmax().item())
        'ĠParis'
    """

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.model = ModernBertModel(config, attention)
        self.head = ModernBertPredictionHead(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.tie_weights()
        init_weights(self)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def forward_packed(self, batch: PackedBatch, positions: Tensor | None = None) -> Tensor:
        """Compute the logits of a packed batch.

        Args:
            batch: the input, on the model's device.
            positions: (P,) int64, the tokens of the batch to decode; None: all.

        Returns:
            (P, V), or (T, V) for all tokens.
        """
        x_TD = self.model.forward_packed(batch)
        return self.decode(x_TD if positions is None else x_TD[positions])

    def decode(self, x_PD: Tensor) -> Tensor:
        """Compute the logits (P, V) of hidden states (P, D)."""
        return map_row_chunks(self._decode, x_PD)

    def _decode(self, x_PD: Tensor) -> Tensor:
        logits_PV: Tensor = self.decoder(self.head(x_PD))
        return logits_PV

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: Traces
    ) -> MaskedLMOutput:
        if labels is None:
            return MaskedLMOutput(logits=inputs.pad(self.decode(x_TD)), **traces)
        labels_T = inputs.unpad(labels)
        if self.config.sparse_prediction:
            labelled_T = labels_T != self.config.sparse_pred_ignore_index
            logits_PV = self.decode(x_TD[labelled_T])
            loss = F.cross_entropy(logits_PV.float(), labels_T[labelled_T])
            return MaskedLMOutput(loss=loss, logits=logits_PV, **traces)
        logits_TV = self.decode(x_TD)
        loss = F.cross_entropy(logits_TV.float(), labels_T)
        if not self.config.repad_logits_with_grad:
            logits_TV = logits_TV.detach()
        return MaskedLMOutput(loss=loss, logits=inputs.pad(logits_TV), **traces)


class ModernBertForSequenceClassification(EncoderWithClassifier):
    """A label, several labels or a number for each sequence.

    `labels`: (B,) int64 classes; (B,) numbers with one output (regression); or (B, C)
    floating-point targets (several labels). `problem_type` of the configuration selects the loss;
    None: derived from the labels' dtype.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> name = "answerdotai/ModernBERT-base"
        >>> model = ModernBertForSequenceClassification.from_pretrained(name, num_labels=3)
        >>> inputs = tokenizer(["a text", "and a longer one"], padding=True, return_tensors="pt")
        >>> model(**inputs).logits.shape
        torch.Size([2, 3])
        >>> loss = model(**inputs, labels=torch.tensor([0, 2])).loss
    """

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, config.num_labels)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """Compute the logits (B, C), in the order of the batch, which is on the model's device."""
        return self._classify_pooled(self.model.forward_packed(batch), batch)

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: Traces
    ) -> SequenceClassifierOutput:
        logits = self._classify_pooled(x_TD, inputs.batch)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits, **traces)


class ModernBertForTokenClassification(EncoderWithClassifier):
    """A label for each token.

    `labels`: (B, S) or (T,) int64 classes, -100 where no loss is computed; labels at padding are
    not read.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> name = "answerdotai/ModernBERT-base"
        >>> model = ModernBertForTokenClassification.from_pretrained(name, num_labels=5)
        >>> model(**tokenizer("a text", return_tensors="pt")).logits.shape
        torch.Size([1, 4, 5])
    """

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, config.num_labels)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """Compute the logits (T, C), in the order of the batch, which is on the model's device."""
        return map_row_chunks(self._classify, self.model.forward_packed(batch))

    def _compute_output(
        self, inputs: ModelInputs, x_TD: Tensor, labels: Tensor | None, traces: Traces
    ) -> TokenClassifierOutput:
        logits = map_row_chunks(self._classify, x_TD)
        loss = None if labels is None else F.cross_entropy(logits, inputs.unpad(labels))
        return TokenClassifierOutput(loss=loss, logits=inputs.pad(logits), **traces)


class ModernBertForMultipleChoice(EncoderWithClassifier):
    """A score for each of several choices, each of which is a sequence.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> model = ModernBertForMultipleChoice.from_pretrained("answerdotai/ModernBERT-base")
        >>> choices = ["I get wet.", "I stay dry."]
        >>> inputs = tokenizer(["It rains."] * 2, choices, padding=True, return_tensors="pt")
        >>> one_question = {name: ids[None] for name, ids in inputs.items()}
        >>> model(**one_question).logits.shape
        torch.Size([1, 2])
    """

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        super().__init__(config, attention, num_outputs=1)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """Compute the logits (B, 1), one for each choice, in the order of the batch, on the model's
        device.
        """
        return self._classify_pooled(self.model.forward_packed(batch), batch)

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
        """Compute a score for each choice, and the loss if `labels` are given.

        Args:
            input_ids: token ids (B, C, S), with a dimension for the choices; or packed (T,) with
                `cu_seqlens`, the choices of a question one after the other.
            inputs_embeds: vectors (B, C, S, D) or (T, D) in place of `input_ids`.
            labels: (B,) int64, the correct choice.
            batch_size: for packed input, the number of questions; default: 1.

        The other arguments, and the errors, are those of `ModernBertModel.forward`, with (B, C, S)
        in place of (B, S).

        Returns:
            A `MultipleChoiceModelOutput`, or a tuple of its values with `return_dict=False`.
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
        arguments, questions = _choices_as_sequences(arguments)
        inputs, x_TD, traces = self.model.run(arguments)
        logits = self._classify_pooled(x_TD, inputs.batch).view(questions, -1)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = MultipleChoiceModelOutput(loss=loss, logits=logits, **traces)
        return to_output(output, return_dict, self.config)


class ModernBertForQuestionAnswering(EncoderWithClassifier):
    """Scores of each token as the start and as the end of an answer (extractive question
    answering).

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("my-org/modernbert-squad")
        >>> model = ModernBertForQuestionAnswering.from_pretrained("my-org/modernbert-squad")
        >>> context = "Jim Henson was a nice puppet"
        >>> inputs = tokenizer("Who was Jim Henson?", context, return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> start, end = outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item()
        >>> answer = tokenizer.decode(inputs.input_ids[0, start : end + 1].tolist())
    """

    def __init__(self, config: ModernBertConfig, attention: str = "auto"):
        if config.num_labels != 2:
            raise ConfigError(
                "question answering has two outputs, start and end; id2label names "
                f"{config.num_labels}"
            )
        super().__init__(config, attention, num_outputs=2)

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """Compute start and end logits (T, 2), in the order of the batch, which is on the model's
        device.
        """
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
        **ignored: object,
    ) -> OutputOrTuple:
        """Compute start and end logits, and the loss if both positions are given.

        Args:
            start_positions: (B,) int64, the first token of each answer: its position in the padded
                row, or in the sequence if the input is packed without `indices`. Positions beyond
                the end do not count in the loss.
            end_positions: (B,) int64, the last token of each answer.

        The other arguments, and the errors, are those of `ModernBertModel.forward`.

        Returns:
            A `QuestionAnsweringModelOutput`, or a tuple of its values with `return_dict=False`.
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
        start_T, end_T = map_row_chunks(self._classify, x_TD).unbind(-1)
        minimum = torch.finfo(start_T.dtype).min
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = position_loss(inputs, start_T, start_positions, minimum)
            end_loss = position_loss(inputs, end_T, end_positions, minimum)
            loss = (start_loss + end_loss) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=inputs.pad(start_T, minimum),
            end_logits=inputs.pad(end_T, minimum),
            **traces,
        )
        return to_output(output, return_dict, self.config)


def _choices_as_sequences(arguments: ForwardArguments) -> tuple[ForwardArguments, int]:
    """Make each choice a sequence of the encoder's input; return that, and the number of questions.

    Raises ValueError for input without a dimension for the choices, and for a `batch_size` that
    does not fit.
    """
    source = arguments.inputs_embeds if arguments.input_ids is None else arguments.input_ids
    cu_seqlens = arguments.cu_seqlens
    batch_size = arguments.batch_size
    if source is None or (cu_seqlens is None and source.dim() < 3):
        raise ValueError("multiple choice needs input of the shape (batch, choices, sequence)")
    if cu_seqlens is None:
        questions = source.shape[0]
        sequences = questions * source.shape[1]
        arguments = replace(
            arguments,
            input_ids=_flat_choices(arguments.input_ids, 3),
            attention_mask=_flat_choices(arguments.attention_mask, 3),
            position_ids=_flat_choices(arguments.position_ids, 3),
            inputs_embeds=_flat_choices(arguments.inputs_embeds, 4),
            sliding_window_mask=_flat_choices(arguments.sliding_window_mask, 3),
        )
    else:
        questions = batch_size or 1
        sequences = len(cu_seqlens) - 1
    if batch_size not in (None, questions) or sequences % questions:
        raise ValueError(
            f"batch_size {batch_size} does not fit {sequences} choices of {questions} questions"
        )
    return replace(arguments, batch_size=batch_size and sequences), questions


def _flat_choices(x: Tensor | None, dims: int) -> Tensor | None:
    """Return an argument of `dims` dimensions, which begin (B, C), as (B * C, …); others as they
    are.
    """
    return x if x is None or x.dim() != dims else x.flatten(0, 1)
