"""rerank: the relevance of a passage to a query, from a cross-encoder (a sequence classifier with
one output).

Shapes: W windows, D pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from modernbert.encoders.multi_vector_config import is_multi_vector
from modernbert.encoders.sentence_config import CrossEncoderConfig, SentenceConfig
from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.option_types import Merge
from pipelines.options import RerankOptions
from pipelines.tasks.base import (
    NOT_IN_FINGERPRINT,
    GoldTypes,
    Task,
    fingerprint_with,
    label_maps,
)
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import GRADES, compare_relevance, holds_grades
from pipelines.tasks.maxsim import MaxSim
from pipelines.tasks.multi_vector import MultiVector
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import activation_named, merged, sigmoid
from pipelines.tasks.resolve import resolve_prompt, resolve_windowing

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Rerank(Task):
    """A score per pair that grows with relevance, between 0 and 1 unless `raw_scores`."""

    merge: Merge
    """How the logits of a passage's windows become one."""
    raw_scores: bool
    """Whether the score is the logit itself, not its sigmoid."""
    tanh: bool = field(default=False, metadata=NOT_IN_FINGERPRINT)
    """Whether it is the logit's hyperbolic tangent; outputs without one keep their fingerprint."""
    prompt: str
    """What is put before each query."""
    lower_case: bool

    options_class = RerankOptions
    model_class = "modernbert.heads:ModernBertForSequenceClassification"
    columns = pa.schema([("score", pa.float32())])
    width = 1

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        if is_multi_vector(checkpoint.folder):
            MultiVector.check(checkpoint)
            return
        stored = CrossEncoderConfig.from_folder(checkpoint.folder, checkpoint.raw_config)
        if stored.stack and cls is not StackRerank:
            StackRerank.check(checkpoint)
            return
        super().check(checkpoint)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: RerankOptions) -> Task:
        if is_multi_vector(checkpoint.folder):
            return MaxSim.from_checkpoint(checkpoint, options)
        stored = CrossEncoderConfig.from_folder(checkpoint.folder, checkpoint.raw_config)
        labels = checkpoint.config.num_labels
        if stored.stack:
            cls = StackRerank
            labels = stored.stack.width(checkpoint.config.hidden_size)
        if labels != 1:
            raise ValueError(
                f"model {str(checkpoint.folder)!r} has {labels} labels: it fits classify; rerank"
                " runs a ModernBertForSequenceClassification with one output"
            )
        raw_scores = options.raw_scores
        tanh = False
        if raw_scores is None:
            # As the checkpoint says, else the sigmoid.
            named = activation_named(
                stored.activation, ("Sigmoid", "Identity", "Tanh"), "raw_scores"
            )
            raw_scores = named == "Identity"
            tanh = named == "Tanh"
        windowing = resolve_windowing(checkpoint, options, stored.max_length)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            merge=options.merge,
            raw_scores=raw_scores,
            tanh=tanh,
            prompt=resolve_prompt(options, stored),
            lower_case=stored.lower_case,
        )

    @property
    def settings(self) -> Json:
        return super().settings | ({"tanh": True} if self.tanh else {})

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        pairs = [(self.prompt + pair[0], pair[1]) for pair in documents]
        return super().encode(tokenizer.lowercased if self.lower_case else tokenizer, pairs)

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        return {"model_type": {"reranker": label_maps(["LABEL_0"])}}

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        scores = pa.array(self._scores(outputs), pa.float32())
        return pa.StructArray.from_arrays([scores], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[float]:
        scores: list[float] = self._scores(outputs).tolist()
        return scores

    def gold_types(self) -> GoldTypes:
        if self.raw_scores or self.tanh:
            raise ValueError("gold_column needs scores from 0 to 1: these are raw scores")
        return GoldTypes(GRADES, holds_grades)

    def compare(
        self,
        outputs: ModelOutputs,  # noqa: ARG002
        answered: np.ndarray,  # noqa: ARG002
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        return compare_relevance(gold, answers.field("score").to_numpy(zero_copy_only=False))

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.3f}"

    def _scores(self, outputs: ModelOutputs) -> np.ndarray:
        logits_D = merged(outputs.windows, outputs.values, self.merge)[:, 0]
        if self.tanh:
            scores_D: np.ndarray = np.tanh(logits_D)
            return scores_D
        return logits_D if self.raw_scores else sigmoid(logits_D)


class StackRerank(Rerank):
    """The score of an encoder with pooling and layers, as sentence-transformers stores a
    cross-encoder of modules.
    """

    model_class = "modernbert.model:ModernBertModel"

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from modernbert.encoders.sentence import SentenceEncoder

        return SentenceEncoder.load(_stack(checkpoint), device=device, dtype=dtype)

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        return fingerprint_with(checkpoint, _stack(checkpoint).files)


def _stack(checkpoint: Checkpoint) -> SentenceConfig:
    stack = CrossEncoderConfig.from_folder(checkpoint.folder, checkpoint.raw_config).stack
    assert stack is not None
    return stack
