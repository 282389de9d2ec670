"""features: a vector per token, the encoder's last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from pipelines.checkpoints import Checkpoint
from pipelines.options import FeaturesOptions
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array
from pipelines.tasks.resolve import resolve_windowing


@dataclass(frozen=True, kw_only=True)
class Features(Task):
    """The encoder's last hidden state of each token, special tokens included."""

    hidden_size: int

    options_class = FeaturesOptions
    model_class = "modernbert.model:ModernBertModel"

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: FeaturesOptions) -> Features:
        if options.long_documents == "windows":
            raise ValueError(
                "long_documents must be truncate: a token's vector depends on the whole window"
            )
        windowing = resolve_windowing(checkpoint, options)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            hidden_size=checkpoint.config.hidden_size,
        )

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("vectors", pa.list_(pa.list_(pa.float32(), self.hidden_size)))])

    @property
    def width(self) -> int:
        return self.hidden_size

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        flat = pa.array(outputs.values.ravel(), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.hidden_size)
        lists = list_array(np.diff(outputs.splits), vectors)
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[list[list[float]]]]:
        if not outputs.documents:
            return []
        # A batch of one for each document, as transformers gives it.
        return [[rows.tolist()] for rows in np.split(outputs.values, outputs.splits[1:-1])]

    def preview(self, answer: Json) -> str:
        return f"{len(answer['vectors'])} vectors"
