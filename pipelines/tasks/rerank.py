"""rerank: how well a passage answers a query, from a cross-encoder: a sequence classifier with one output.

Shapes: W windows, D pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from modernbert.heads import ModernBertForSequenceClassification
from pipelines.checkpoints import Checkpoint
from pipelines.tasks.base import LongDocuments, ModelOutputs, Task, resolve_windowing
from pipelines.tasks.postprocess import Merge, merged, sigmoid


@dataclass(frozen=True, kw_only=True)
class Rerank(Task):
    """How a logit becomes a score."""

    merge: Merge
    """How the logits of a long passage's windows become one."""
    raw_scores: bool
    """Give the logit itself, not its sigmoid."""

    name = "rerank"
    model_class = ModernBertForSequenceClassification
    inputs = ("query", "passage")
    columns = pa.schema([("score", pa.float32())])  # type: ignore[assignment]
    width = 1  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        max_length: int | None = None,
        long_documents: LongDocuments | None = None,
        stride: int | None = None,
        merge: Merge = "max",
        raw_scores: bool | None = None,
    ) -> Rerank:
        """`raw_scores` None: as sentence-transformers' setting in config.json says, else the sigmoid."""
        if checkpoint.config.num_labels != 1:
            raise ValueError(
                f"model {str(checkpoint.folder)!r} has {checkpoint.config.num_labels} labels: it fits classify; rerank"
                " runs a ModernBertForSequenceClassification with one output"
            )
        if raw_scores is None:
            configured = checkpoint.raw_config.get("sentence_transformers") or {}
            configured = configured.get("activation_fn") or checkpoint.raw_config.get(
                "sbert_ce_default_activation_function"
            )
            raw_scores = (configured or "").endswith("Identity")
        window_options = resolve_windowing(checkpoint, max_length, long_documents, stride, "truncate")
        return cls(**window_options, merge=merge, raw_scores=raw_scores)  # type: ignore[arg-type]

    def decode(self, made: ModelOutputs) -> pa.StructArray:
        """The score: a number that grows with relevance, between 0 and 1 unless raw."""
        scores = pa.array(self._scores(made), pa.float32())
        return pa.StructArray.from_arrays([scores], fields=list(self.columns))

    def results(self, made: ModelOutputs) -> list[float]:
        """A score for each pair."""
        return self._scores(made).tolist()

    def preview(self, answer: dict[str, Any]) -> str:
        """The score."""
        return f"{answer['score']:.3f}"

    def _scores(self, made: ModelOutputs) -> np.ndarray:
        logits_D = merged(made.windows, made.values, self.merge)[:, 0]
        return logits_D if self.raw_scores else sigmoid(logits_D)
