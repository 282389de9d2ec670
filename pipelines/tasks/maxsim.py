"""maxsim: the relevance of a passage to a query by late interaction, for rerank with a multi-vector
encoder (ColBERT).

A window holds both texts, with SEPARATOR between their tokens: what the model reads as two
sequences is computed, and scored, in one packed batch, so that no vectors leave the device.

Shapes: T tokens, W windows, D pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from modernbert.encoders.multi_vector_config import MultiVectorConfig
from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import RerankOptions
from pipelines.tasks.base import Task, label_maps
from pipelines.tasks.multi_vector import Side, encoder_fingerprint, load_encoder
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import keep_windows, merged
from pipelines.tasks.resolve import resolve_prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from modernbert.encoders.multi_vector import MultiVectorEncoder
    from modernbert.packing import PackedBatch

SEPARATOR = -1
"""What stands between the tokens of a query and those of its passage; no token has this id."""


@dataclass(frozen=True, kw_only=True)
class MaxSim(Task):
    """For each token of a query the largest product with a token of the passage, added up."""

    query: Side
    passage: Side
    mean: bool
    """Whether the sum is divided by the tokens of the query."""

    options_class = RerankOptions
    model_class = "modernbert.model:ModernBertModel"
    columns = pa.schema([("score", pa.float32())])
    width = 1

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: RerankOptions) -> MaxSim:
        if options.long_documents == "windows":
            raise ValueError(
                "long_documents must be truncate: a multi-vector encoder reads a passage at once"
            )
        config = MultiVectorConfig.from_folder(checkpoint.folder)
        prompt = resolve_prompt(options, config, as_query=True)
        # The prompt of the options is for queries: passages have the model's own.
        without_prompt = options.model_copy(update={"prompt": None, "prompt_name": None})
        passage_prompt = resolve_prompt(without_prompt, config, as_query=False)
        query = Side.resolve(checkpoint, config, options, query=True, prompt=prompt)
        passage = Side.resolve(checkpoint, config, options, query=False, prompt=passage_prompt)
        return cls(
            max_length=passage.max_length,
            stride=None,
            query=query,
            passage=passage,
            mean=config.mean,
        )

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return load_encoder(checkpoint, device, dtype)

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        return encoder_fingerprint(checkpoint)

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        return {"model_type": {"reranker": label_maps(["LABEL_0"])}}

    @property
    def forward_options(self) -> tuple[object, ...]:
        return self.query, self.passage

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        queries = self.query.encode(tokenizer, [pair[0] for pair in documents])
        passages = self.passage.encode(tokenizer, [pair[1] for pair in documents])
        # A pair is left out where either of its texts cannot be read.
        rejected = queries.rejected | passages.rejected
        if rejected:
            queries = _without(queries, rejected)
            passages = _without(passages, rejected)
        # Each query gets its separator, and behind it the tokens of its passage.
        ids = np.insert(queries.input_ids, queries.cu_seqlens[1:], SEPARATOR)
        ends = queries.cu_seqlens + np.arange(len(queries.cu_seqlens))
        ids = np.insert(ids, np.repeat(ends[1:], passages.lengths), passages.input_ids)
        pairs = queries.with_ids(ids, ends + passages.cu_seqlens)
        return replace(
            pairs,
            n_tokens=queries.n_tokens + passages.n_tokens,
            truncated=queries.truncated | passages.truncated,
        )

    def forward(self, model: MultiVectorEncoder, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        from modernbert.encoders.multi_vector import max_similarity
        from modernbert.gpu import upload
        from modernbert.packing import PackedBatch

        texts = _texts_of_pairs(ids, batch.seqlens)
        is_query = np.arange(len(texts)) % 2 == 0
        # Passages are not expanded: a mask at the end of one is a token of its own.
        lengths = np.array([len(text) for text in texts])
        visible = self.query.visible(np.concatenate(texts), lengths.tolist())
        seen = lengths if visible is None else np.where(is_query, visible, lengths)

        # Expanded queries side by side, then all else by length: so they are in few calls.
        order = np.lexsort((lengths, seen == lengths))
        own_ids = np.concatenate([texts[i] for i in order])
        # Which tokens have vectors depends on the side.
        is_query_T = np.repeat(is_query[order], lengths[order])
        kept_T = np.where(is_query_T, self.query.kept(own_ids), self.passage.kept(own_ids))
        device = batch.input_ids.device
        (kept,) = upload(device, np.flatnonzero(kept_T).astype(np.int32))
        sequences = PackedBatch.from_arrays(own_ids, lengths[order].tolist(), device)
        seen_in_order = None if visible is None else seen[order].tolist()
        vectors = model.forward_packed(sequences, kept, seen_in_order)

        # Where the vectors of each text are, back in the order of the pairs.
        kept_before = np.concatenate(([0], np.cumsum(kept_T)))
        ends = kept_before[np.cumsum(lengths[order])]
        stops, counts = np.empty_like(ends), np.empty_like(ends)
        stops[order] = ends
        counts[order] = np.diff(ends, prepend=0)
        starts_B2, counts_B2 = (stops - counts).reshape(-1, 2), counts.reshape(-1, 2)
        return max_similarity(vectors, starts_B2, counts_B2, self.mean)[:, None]

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        scores = pa.array(self._scores(outputs))
        return pa.StructArray.from_arrays([scores], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[float]:
        scores: list[float] = self._scores(outputs).tolist()
        return scores

    def preview(self, answer: Json) -> str:
        return f"{answer['score']:.3f}"

    def _scores(self, outputs: ModelOutputs) -> np.ndarray:
        return merged(outputs.windows, outputs.values, "max")[:, 0]


def _texts_of_pairs(ids: np.ndarray, seqlens: Sequence[int]) -> list[np.ndarray]:
    """Return the ids of each query and then of its passage, without separators."""
    end_W = np.cumsum(seqlens, dtype=np.int64)
    start_W = np.concatenate(([0], end_W[:-1]))
    separator_W = np.flatnonzero(ids == SEPARATOR)
    texts = []
    for start, separator, end in zip(start_W, separator_W, end_W, strict=True):
        texts += [ids[start:separator], ids[separator + 1 : end]]
    return texts


def _without(windows: Windows, rejected: dict[int, str]) -> Windows:
    """Return the windows, which `rejected` documents do not have."""
    keep_W = ~np.isin(windows.document, list(rejected))
    return keep_windows(replace(windows, rejected=rejected), keep_W)
