"""embed: a vector for each document, from any encoder or a sentence-transformers checkpoint.

Shapes: T tokens, W windows, D documents, C chunks, E numbers a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from modernbert.encoders.sentence_config import SentenceConfig
from modernbert.stored import Json
from modernbert.text.chunks import (
    ID_BITS,
    encode_chunks,
    encode_late_chunks,
    late_chunks,
)
from modernbert.text.sentences import Chunking
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.option_types import Precision
from pipelines.options import EmbedOptions
from pipelines.tasks.base import Task, fingerprint_with
from pipelines.tasks.outputs import ModelOutputs, Results
from pipelines.tasks.postprocess import (
    check_packs,
    list_array,
    merged,
    normalised,
    stored,
    vector_type,
)
from pipelines.tasks.resolve import (
    check_route,
    resolve_chunk_windowing,
    resolve_chunking,
    resolve_prompt,
    resolve_windowing,
    unused_passage_prompt,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from modernbert.encoders.sentence import SentenceEncoder
    from modernbert.packing import PackedBatch

Chunks: TypeAlias = tuple[np.ndarray, np.ndarray]
"""The characters of the chunks of a text, (C, 2) int32, and their vectors, (C, E)."""


@dataclass(frozen=True, kw_only=True)
class Embed(Task):
    """A vector per document from the vectors of its tokens."""

    pooling: tuple[str, ...]
    size: int
    """The numbers in a vector of the model."""
    normalize_first: bool
    """Whether the checkpoint normalises its vectors."""
    dimensions: int
    """How many of the first numbers are kept (Matryoshka)."""
    normalize: bool
    """Whether the kept part is normalised."""
    precision: Precision
    """float32, float16; int8: each vector scaled so that its largest number is 127; binary: the
    signs, eight to a byte, as int8 (less 128, as in sentence-transformers), ubinary as uint8.
    """
    prompt: str
    prompt_tokens: int
    """Tokens of the prompt, which the pooling leaves out."""
    lower_case: bool

    options_class = EmbedOptions
    model_class = "modernbert.model:ModernBertModel"

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: EmbedOptions) -> Embed:
        # What a sentence-transformers checkpoint says counts, unless the options say otherwise;
        # without either it is mean pooling and no more.
        stored = SentenceConfig.from_folder(checkpoint.folder, options.route)
        check_route(
            stored.route, SentenceConfig.from_folder(checkpoint.folder, checkpoint.route).route
        )
        if options.pooling is not None:
            stored = replace(stored, pooling=(options.pooling,))
        size = stored.width(checkpoint.config.hidden_size)
        dimensions = options.dimensions or min(stored.truncate_dim or size, size)
        if dimensions > size:
            raise ValueError(f"dimensions {dimensions} must be from 1 to the model's {size}")
        check_packs(options.precision, dimensions)
        has_own_prompt = options.prompt is not None or options.prompt_name is not None
        unused = unused_passage_prompt(stored)
        if options.as_query is False and unused and not has_own_prompt:
            raise ValueError(
                "prompt_name or prompt is needed for documents: this model has no prompt 'document'"
                f", and sentence-transformers passes over its {unused!r}"
            )
        prompt = resolve_prompt(options, stored, as_query=options.as_query)
        chunking = resolve_chunking(options, stored.pooling, prompt)
        prompt_tokens = 0
        if prompt and not stored.include_prompt:
            tokenizer = checkpoint.tokenizer
            tokenizer = tokenizer.lowercased if stored.lower_case else tokenizer
            # With [CLS], which is left out, too, but without [SEP].
            prompt_tokens = int(tokenizer.encode([prompt]).n_tokens[0]) - 1
            if options.long_documents == "windows" and chunking is None:
                raise ValueError(
                    "long_documents must be truncate: this model pools without its prompt"
                )
        if chunking is None:
            windowing = resolve_windowing(checkpoint, options, stored.max_length)
        else:
            tokenizer = checkpoint.tokenizer
            tokenizer = tokenizer.lowercased if stored.lower_case else tokenizer
            around = int(tokenizer.encode([prompt]).n_tokens[0])
            windowing = resolve_chunk_windowing(
                checkpoint, options, stored.max_length, chunking, around
            )
        if prompt_tokens >= windowing.max_length:
            raise ValueError(
                f"prompt {prompt!r} has {prompt_tokens} tokens, which this model leaves out: "
                f"max_length {windowing.max_length} leaves nothing to pool"
            )
        task = cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            pooling=stored.pooling,
            size=size,
            normalize_first=stored.normalize,
            dimensions=dimensions,
            normalize=options.normalize,
            precision=options.precision,
            prompt=prompt,
            prompt_tokens=prompt_tokens,
            lower_case=stored.lower_case,
        )
        if chunking is None:
            return task
        return ChunkVectors(**task._values, chunking=chunking, late=options.late)

    def info(self, checkpoint: Checkpoint) -> Json:
        stored = SentenceConfig.from_folder(checkpoint.folder, checkpoint.route)
        pooling = "+".join(self.pooling)
        # text-embeddings-inference has another name for one of them.
        model_type = {"pooling": "last_token" if pooling == "lasttoken" else pooling}
        return {
            "dimensions": self.dimensions,
            "pooling": pooling,
            "prompts": dict(stored.prompts),
            "similarity": stored.similarity,
            "model_type": {"embedding": model_type},
        }

    @property
    def reading(self) -> tuple[object, ...] | None:
        if self.prompt or self.lower_case or type(self) is not Embed:
            return None
        return self.max_length, self.stride

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("embedding", vector_type(self.dimensions, self.precision))])

    @property
    def width(self) -> int:
        return self.size

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from modernbert.encoders.sentence import SentenceEncoder

        stored = SentenceConfig.from_folder(checkpoint.folder, checkpoint.route)
        return SentenceEncoder.load(stored, device=device, dtype=dtype)

    def forward(self, model: SentenceEncoder, batch: PackedBatch, ids: np.ndarray) -> Tensor:  # noqa: ARG002
        return model.forward_packed(batch, self.pooling, self.prompt_tokens)

    @property
    def forward_options(self) -> tuple[object, ...]:
        return self.pooling, self.prompt_tokens

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        return fingerprint_with(
            checkpoint, SentenceConfig.from_folder(checkpoint.folder, checkpoint.route).files
        )

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        texts = [self.prompt + str(document) for document in documents]
        tokenizer = tokenizer.lowercased if self.lower_case else tokenizer
        return super().encode(tokenizer, texts)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        type_ = self.columns.field("embedding").type
        flat = pa.array(self.vectors(outputs).ravel(), type_.value_type)
        lists = pa.FixedSizeListArray.from_arrays(flat, type_.list_size)
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[float]]:
        vectors: list[list[float]] = self.vectors(outputs).tolist()
        return vectors

    def response(self, outputs: ModelOutputs) -> np.ndarray:
        return self.vectors(outputs)

    def for_tokens(self, checkpoint: Checkpoint) -> TokenVectors:
        stored = SentenceConfig.from_folder(checkpoint.folder, checkpoint.route)
        if stored.token_layers or stored.layer_weights:
            raise ValueError(
                "token vectors of a model with Dense or WeightedLayerPooling before its Pooling "
                "are not given"
            )
        values = self._values
        values["size"] = checkpoint.config.hidden_size
        values["stride"] = None
        return TokenVectors(**values)

    def preview(self, answer: Json) -> str:
        numbers = ", ".join(f"{float(x):.3g}" for x in answer["embedding"][:4])
        return f"[{numbers}, …]"

    def vectors(self, outputs: ModelOutputs) -> np.ndarray:
        """Return the vectors (D, E) in `precision`: the mean over a document's windows, weighted by
        tokens.
        """
        return self._finished(
            merged(outputs.windows, outputs.values, "mean", outputs.windows.lengths)
        )

    def _finished(self, vectors_DE: np.ndarray) -> np.ndarray:
        """Return the model's vectors (D, E) as they are given, in `precision`."""
        if self.normalize_first:
            vectors_DE = normalised(vectors_DE)
        vectors_DE = vectors_DE[:, : self.dimensions]
        if self.normalize:
            vectors_DE = normalised(vectors_DE)
        return stored(vectors_DE, self.precision)

    @property
    def _values(self) -> dict[str, Any]:
        """The fields of the task, for one of another class."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class ChunkVectors(Embed):
    """A vector per chunk of a document in place of one per document."""

    chunking: Chunking
    late: bool
    """Whether the vector of a chunk is pooled from its tokens in the whole text."""

    counted = ("chunks", "chunks")

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("chunks", pa.list_(self._chunk))])

    @property
    def _chunk(self) -> pa.StructType:
        vector = vector_type(self.dimensions, self.precision)
        return pa.struct([("start", pa.int32()), ("end", pa.int32()), ("embedding", vector)])

    @property
    def tokens_per_row(self) -> float:
        # Two chunks that follow each other have more tokens together than one may have, of which
        # an overlap may have been read before.
        return max(self.chunking.tokens / 4, 1)

    @property
    def forward_options(self) -> tuple[object, ...]:
        return ("late", self.pooling) if self.late else super().forward_options

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        tokenizer = tokenizer.lowercased if self.lower_case else tokenizer
        texts = [str(document) for document in documents]
        if not self.late:
            return encode_chunks(tokenizer, texts, self.chunking, self.max_length)
        assert self.stride is not None
        return encode_late_chunks(tokenizer, texts, self.chunking, self.max_length, self.stride)

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray | None:
        if not self.late:
            return super().rows(input_ids, cu_seqlens)
        first_C = late_chunks(input_ids)[:, 0]
        return np.diff(np.searchsorted(first_C, cu_seqlens))

    def most_results(self, windows: Windows) -> int:
        return len(windows.chunk_spans)

    def count_results(self, response: Sequence[Chunks | None] | np.ndarray) -> int:
        return sum(len(chunks[0]) for chunks in response if chunks is not None)

    def forward(self, model: SentenceEncoder, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        if not self.late:
            return super().forward(model, batch, ids)
        plain = replace(batch, input_ids=batch.input_ids & ID_BITS)
        return model.forward_chunks(plain, late_chunks(ids).tolist(), self.pooling)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        start_C, end_C = outputs.windows.chunk_spans.T
        vectors_CE = self._finished(outputs.values)
        vector = self._chunk.field("embedding").type
        flat = pa.array(vectors_CE.ravel(), vector.value_type)
        embeddings = pa.FixedSizeListArray.from_arrays(flat, vector.list_size)
        columns = [pa.array(start_C), pa.array(end_C), embeddings]
        chunks = pa.StructArray.from_arrays(columns, fields=list(self._chunk))
        lists = list_array(_rows_per_document(outputs), chunks)
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> Results:
        by_document: list[list[Json]] = []
        for spans, vectors in self.response(outputs):
            chunks: list[Json] = []
            for (start, end), vector in zip(spans.tolist(), vectors.tolist(), strict=True):
                chunks.append({"start": start, "end": end, "embedding": vector})
            by_document.append(chunks)
        return by_document

    def response(self, outputs: ModelOutputs) -> list[Chunks]:  # type: ignore[override]
        vectors_CE = self._finished(outputs.values)
        stops = np.cumsum(_rows_per_document(outputs)).tolist()
        chunks: list[Chunks] = []
        start = 0
        for stop in stops:
            chunks.append((outputs.windows.chunk_spans[start:stop], vectors_CE[start:stop]))
            start = stop
        return chunks

    def preview(self, answer: Json) -> str:
        return f"{len(answer['chunks'])} chunks"


class TokenVectors(Embed):
    """A vector per token, special tokens included, in place of one per document; `size` is the
    hidden size.
    """

    gives_token_vectors = True

    @property
    def forward_options(self) -> tuple[object, ...]:
        return ("token_vectors",)

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def forward(self, model: Any, batch: Any, ids: np.ndarray) -> Tensor:  # noqa: ARG002
        vectors_TE: Tensor = model.encoder.forward_packed(batch)
        return vectors_TE

    def results(self, outputs: ModelOutputs) -> Results:
        if not outputs.documents:
            return []
        return np.split(outputs.values, outputs.splits[1:-1])

    def response(self, outputs: ModelOutputs) -> Results:  # type: ignore[override]
        return self.results(outputs)


def _rows_per_document(outputs: ModelOutputs) -> np.ndarray:
    """Return the rows of values of each document, (D,) int64."""
    counts_D = np.zeros(len(outputs.windows.n_tokens), dtype=np.int64)
    np.add.at(counts_D, outputs.windows.document, np.diff(outputs.splits))
    return counts_D
