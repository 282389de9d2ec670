"""sparse: weights of tokens for each document, from a masked language model trained for them
(SPLADE).

Shapes: W windows, D documents, R weights that are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from modernbert.encoders.sparse_config import SparseConfig
from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import SparseOptions
from pipelines.tasks.base import Task, fingerprint_with
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, per_document
from pipelines.tasks.resolve import check_route, resolve_prompt, resolve_windowing

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from modernbert.encoders.sparse import SparseEncoder
    from modernbert.packing import PackedBatch

_WEIGHT = pa.struct([("token_id", pa.int32()), ("token", pa.string()), ("weight", pa.float32())])
Weights = tuple[np.ndarray, np.ndarray]
"""The ids of tokens and their weights, the heaviest first."""


@dataclass(frozen=True, kw_only=True)
class Sparse(Task):
    """Tokens and weights of documents, in rows (token id, weight) of the model's values."""

    strategy: str
    activation: str
    static: bool
    """Whether weights are looked up for the tokens of a text, without inference."""
    top_k: int | None
    min_weight: float
    prompt: str
    lower_case: bool

    options_class = SparseOptions
    model_class = "modernbert.heads:ModernBertForMaskedLM"
    columns = pa.schema([("sparse", pa.list_(_WEIGHT))])
    width = 2
    counted = ("sparse", "weights")

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        stored = SparseConfig.from_folder(checkpoint.folder, checkpoint.route)
        super().check(checkpoint)
        if not stored.static:
            return
        # Queries and documents are compared by the ids of their tokens.
        vocabulary = Tokenizer.from_folder(stored.static).vocabulary
        if vocabulary != checkpoint.tokenizer.vocabulary:
            raise ValueError(
                f"{stored.static} has another vocabulary than {stored.encoder}: one is needed for "
                "both"
            )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: SparseOptions) -> Sparse:
        stored = SparseConfig.from_folder(checkpoint.folder, options.route)
        check_route(
            stored.route, SparseConfig.from_folder(checkpoint.folder, checkpoint.route).route
        )
        static = options.as_query and stored.static is not None
        if options.long_documents == "windows" and (stored.strategy == "sum" or static):
            raise ValueError(
                "long_documents must be truncate: this model adds weights up, which windows would "
                "repeat"
            )
        windowing = resolve_windowing(checkpoint, options, stored.max_length)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            strategy=stored.strategy,
            activation=stored.activation,
            static=static,
            top_k=options.top_k or stored.max_active_dims,
            min_weight=options.min_weight,
            prompt=resolve_prompt(options, stored, as_query=options.as_query),
            lower_case=stored.lower_case and not static,
        )

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from modernbert.encoders.sparse import SparseEncoder

        return SparseEncoder.load(
            SparseConfig.from_folder(checkpoint.folder, checkpoint.route),
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        model: SparseEncoder,
        batch: PackedBatch,
        ids: np.ndarray,  # noqa: ARG002
    ) -> Callable[[], Tensor]:
        return model.launch(batch, self.static)

    @property
    def forward_options(self) -> tuple[object, ...]:
        return (self.static,)

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        stored = SparseConfig.from_folder(checkpoint.folder, checkpoint.route)
        file = stored.static_weights
        return fingerprint_with(checkpoint, [file] if file else stored.other_files)

    def info(self, checkpoint: Checkpoint) -> Json:
        prompts = dict(SparseConfig.from_folder(checkpoint.folder, checkpoint.route).prompts)
        return {"prompts": prompts, "model_type": {"embedding": {"pooling": "splade"}}}

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        texts = [self.prompt + str(document) for document in documents]
        tokenizer = tokenizer.lowercased if self.lower_case else tokenizer
        if not self.static:
            return super().encode(tokenizer, texts)
        # A text without tokens has no window, and no weights.
        windows = super().encode(tokenizer.without_special_tokens, texts)
        has_tokens_W = windows.lengths > 0
        return replace(
            windows,
            cu_seqlens=np.append(0, windows.cu_seqlens[1:][has_tokens_W]),
            document=windows.document[has_tokens_W],
            start=windows.start[has_tokens_W],
        )

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray | None:  # noqa: ARG002
        return None

    def most_results(self, windows: Windows) -> None:  # noqa: ARG002
        # A text may have a weight for each token of the vocabulary, and has some hundred.
        return None

    def count_results(self, response: Sequence[Weights | None] | np.ndarray) -> int:
        return sum(len(weights[0]) for weights in response if weights is not None)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        # Arrays of no weights come first, since there may be no documents.
        all_ids = [np.empty(0, np.int32)]
        all_values = [np.empty(0, np.float32)]
        counts = []
        for ids, values in self.weights(outputs):
            all_ids.append(ids)
            all_values.append(values)
            counts.append(len(ids))
        ids_R = np.concatenate(all_ids)
        # A token is spelt once, however many documents have it.
        distinct, place_R = np.unique(ids_R, return_inverse=True)
        names = pa.array([outputs.tokenizer.token(i) for i in distinct.tolist()], pa.string())
        fields = [
            pa.array(ids_R),
            names.take(pa.array(place_R)),
            pa.array(np.concatenate(all_values)),
        ]
        structs = pa.StructArray.from_arrays(fields, fields=list(_WEIGHT))
        lists = list_array(np.array(counts, dtype=np.int64), structs)
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[Json]]:
        token = outputs.tokenizer.token
        results = []
        for ids, values in self.weights(outputs):
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            results.append([{"token_id": i, "token": token(i), "weight": w} for i, w in pairs])
        return results

    def response(self, outputs: ModelOutputs) -> list[Weights]:
        return self.weights(outputs)

    def preview(self, answer: Json) -> str:
        weights = answer["sparse"]
        shown = " ".join(f"{each['token']}:{each['weight']:.2f}" for each in weights[:4])
        return f"{len(weights)} tokens: {shown}"

    def weights(self, outputs: ModelOutputs) -> list[Weights]:
        """Return the weights of each document: of its windows the largest of each token."""
        first_D, counts_D = per_document(outputs.windows)
        weights = []
        for first, count in zip(first_D.tolist(), counts_D.tolist(), strict=True):
            rows = outputs.values[outputs.splits[first] : outputs.splits[first + count]]
            ids = rows[:, 0].astype(np.int32)
            values = rows[:, 1]
            if count > 1:
                ids, place = np.unique(ids, return_inverse=True)
                values = np.zeros(len(ids), np.float32)
                np.maximum.at(values, place, rows[:, 1])
            heaviest = np.argsort(-values, kind="stable")[: self.top_k]
            kept = heaviest[values[heaviest] >= self.min_weight]
            weights.append((ids[kept], values[kept]))
        return weights
