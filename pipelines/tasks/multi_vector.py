"""multi_vector: a vector for each token of a document, for late interaction (ColBERT).

Shapes: T tokens, W windows, D documents, V vectors of a document, E numbers a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from modernbert.encoders.multi_vector_config import Expansion, MultiVectorConfig
from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.option_types import Precision
from pipelines.options import MultiVectorOptions
from pipelines.tasks.base import Task, fingerprint_with
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import (
    check_packs,
    list_array,
    normalised,
    stored,
    vector_type,
)
from pipelines.tasks.resolve import resolve_prompt, resolve_windowing

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from modernbert.encoders.multi_vector import MultiVectorEncoder
    from modernbert.packing import PackedBatch

PROTECTED_TOKENS = 1
"""The first vectors of a document that are not pooled: that of [CLS]."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """How the texts of one side, queries or documents, become tokens and which of these have
    vectors.
    """

    prompt: str
    max_length: int
    least_length: int
    """Shorter texts are filled up with expansion tokens to so many tokens."""
    expansion_id: int
    attend: bool
    """Whether other tokens see the expansion tokens."""
    skipped_ids: tuple[int, ...]
    only_ids: tuple[int, ...] | None
    lower_case: bool

    @classmethod
    def resolve(
        cls,
        checkpoint: Checkpoint,
        stored: MultiVectorConfig,
        options: Any,
        *,
        query: bool,
        prompt: str,
    ) -> Self:
        """The side of a checkpoint; ValueError for what its tokenizer or its encoder does not
        have.
        """
        expansion = stored.expansion if query else None
        side = "query" if query else "document"
        # The side's own length counts before those of the encoder and of the tokenizer.
        length = resolve_windowing(checkpoint, options, stored.max_length).max_length
        own_length = stored.query_length if query else stored.document_length
        if options.max_length is None and own_length is not None:
            length = min(own_length, checkpoint.config.max_position_embeddings)
        if expansion and (expansion.cut or length < expansion.length):
            length = expansion.length
        skipped = stored.skipped if side in stored.skipped_in else ()
        skipped_ids = {checkpoint.tokenizer.token_id(word) for word in skipped}
        return cls(
            prompt=prompt,
            max_length=length,
            least_length=expansion.length if expansion else 0,
            expansion_id=_expansion_id(checkpoint, expansion) if expansion else -1,
            attend=expansion is not None and expansion.attend,
            skipped_ids=tuple(sorted(i for i in skipped_ids if i is not None)),
            only_ids=None if query else stored.only_ids,
            lower_case=stored.lower_case,
        )

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> Windows:
        """Tokenise texts, each into one window, filled up with expansion tokens where it is
        short.
        """
        tokenizer = tokenizer.lowercased if self.lower_case else tokenizer
        windows = tokenizer.encode([self.prompt + text for text in texts], self.max_length)
        missing_W = np.maximum(self.least_length - windows.lengths, 0)
        if not missing_W.any():
            return windows
        places = np.repeat(windows.cu_seqlens[1:], missing_W)
        ids = np.insert(windows.input_ids, places, self.expansion_id)
        added_before = np.concatenate(([0], np.cumsum(missing_W)))
        return windows.with_ids(ids, windows.cu_seqlens + added_before)

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Return which tokens have a vector, (T,) bool."""
        kept_T = ~np.isin(ids, self.skipped_ids)
        if self.only_ids is not None:
            kept_T &= np.isin(ids, self.only_ids)
        return kept_T

    def visible(self, ids: np.ndarray, lengths: Sequence[int]) -> list[int] | None:
        """Return how many tokens of each text are seen: all but the expansion at its end; None for
        all tokens.
        """
        if self.expansion_id < 0 or self.attend:
            return None
        end_B = np.cumsum(lengths, dtype=np.int64)
        start_B = end_B - lengths
        own_T = np.where(ids != self.expansion_id, np.arange(len(ids)), -1)
        last_own_B = np.maximum.reduceat(own_T, start_B)
        visible_B: list[int] = (last_own_B + 1 - start_B).tolist()
        return visible_B


@dataclass(frozen=True, kw_only=True)
class MultiVector(Task):
    """The vectors of the tokens of each document."""

    side: Side
    size: int
    """The numbers in a vector."""
    pool_factor: float
    """How many tokens share a vector; 1 for none."""
    precision: Precision

    options_class = MultiVectorOptions
    model_class = "modernbert.model:ModernBertModel"
    gives_token_vectors = True
    counted = ("vectors", "vectors")

    @classmethod
    def check(cls, checkpoint: Checkpoint) -> None:
        check_prefixes(checkpoint)
        super().check(checkpoint)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: MultiVectorOptions) -> MultiVector:
        if options.long_documents == "windows":
            raise ValueError(
                "long_documents must be truncate: a token's vector depends on the whole window"
            )
        if options.as_query and options.pool_factor > 1:
            raise ValueError(
                f"pool_factor {options.pool_factor:g} is for documents; queries keep all their "
                "vectors"
            )
        config = MultiVectorConfig.from_folder(checkpoint.folder)
        size = config.width(checkpoint.config.hidden_size)
        check_packs(options.precision, size)
        prompt = resolve_prompt(options, config, as_query=options.as_query)
        side = Side.resolve(checkpoint, config, options, query=options.as_query, prompt=prompt)
        return cls(
            max_length=side.max_length,
            stride=None,
            side=side,
            size=size,
            pool_factor=options.pool_factor,
            precision=options.precision,
        )

    def load(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return load_encoder(checkpoint, device, dtype)

    def fingerprint(self, checkpoint: Checkpoint) -> str:
        return encoder_fingerprint(checkpoint)

    def info(self, checkpoint: Checkpoint) -> Json:
        prompts = dict(MultiVectorConfig.from_folder(checkpoint.folder).prompts)
        return {
            "dimensions": self.size,
            "prompts": prompts,
            "model_type": {"embedding": {"pooling": "none"}},
        }

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([("vectors", pa.list_(vector_type(self.size, self.precision)))])

    @property
    def width(self) -> int:
        return self.size

    @property
    def forward_options(self) -> tuple[object, ...]:
        return (self.side,)

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        return self.side.encode(tokenizer, [str(document) for document in documents])

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        kept = np.concatenate(([0], np.cumsum(self.side.kept(input_ids))))
        return np.diff(kept[cu_seqlens])

    def most_results(self, windows: Windows) -> int:
        return len(windows.input_ids)

    def forward(self, model: MultiVectorEncoder, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        from modernbert.gpu import upload

        kept_P = np.flatnonzero(self.side.kept(ids)).astype(np.int32)
        (kept,) = upload(batch.input_ids.device, kept_P)
        return model.forward_packed(batch, kept, self.side.visible(ids, batch.seqlens))

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        vectors = self.vectors(outputs)
        type_ = self.columns.field("vectors").type.value_type
        numbers = np.concatenate([each.ravel() for each in vectors]) if vectors else np.empty(0)
        flat = pa.array(numbers, type_.value_type)
        lists = pa.FixedSizeListArray.from_arrays(flat, type_.list_size)
        counts_D = np.array([len(each) for each in vectors], dtype=np.int64)
        column = list_array(counts_D, lists)
        return pa.StructArray.from_arrays([column], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[np.ndarray]:
        return self.vectors(outputs)

    def preview(self, answer: Json) -> str:
        return f"{len(answer['vectors'])} vectors"

    def vectors(self, outputs: ModelOutputs) -> list[np.ndarray]:
        """Return the vectors (V, E) of each document in `precision`; none for one without a
        window.
        """
        # A document has one window, or none.
        documents = np.arange(len(outputs.documents))
        first_D = np.searchsorted(outputs.windows.document, documents)
        stop_D = np.searchsorted(outputs.windows.document, documents, side="right")
        vectors = []
        for first, stop in zip(outputs.splits[first_D], outputs.splits[stop_D], strict=True):
            of_document = outputs.values[first:stop]
            if self.pool_factor > 1:
                of_document = pooled(of_document, self.pool_factor)
            vectors.append(stored(of_document, self.precision))
        return vectors


def _expansion_id(checkpoint: Checkpoint, expansion: Expansion) -> int:
    """Return the token that fills queries up; ValueError for what the model cannot do with it."""
    tokenizer = checkpoint.tokenizer
    filler = tokenizer.mask_token_id
    if expansion.token is not None:
        filler = tokenizer.token_id(expansion.token)
    is_embedded = filler is not None and filler < checkpoint.config.vocab_size
    if filler is None or not is_embedded or filler in tokenizer.ending_ids:
        raise ValueError(
            f"model {str(checkpoint.folder)!r} expands queries with "
            f"{expansion.token or 'the mask token'}, which its tokenizer does not have, which "
            "has no embedding, or which ends every text"
        )
    # Where no token sees the expansion, this must see a token of the query: by local attention.
    seen = checkpoint.config.local_attention // 2
    if not expansion.attend and expansion.length > seen + 2:
        raise ValueError(
            f"model {str(checkpoint.folder)!r} expands queries to {expansion.length} tokens, of "
            f"which the last see no token of the query within {seen}; at most {seen + 2} can be run"
        )
    return filler


def check_prefixes(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a prefix that PyLate inserts as a token, and that the tokenizer does not
    read as one.
    """
    tokenizer = checkpoint.tokenizer
    for prefix in MultiVectorConfig.from_folder(checkpoint.folder).prefixes:
        candidates = (prefix, *prefix.split()[:1])
        tokens = (each for each in candidates if tokenizer.token_id(each) is not None)
        token = next(tokens, None)
        if token and tokenizer.token_id(token) not in tokenizer.encode([token]).input_ids:
            raise ValueError(
                f"model {str(checkpoint.folder)!r} has the prefix {prefix!r}, a token that its "
                "tokenizer does not read as one: add it to the special tokens of tokenizer.json"
            )


def load_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Load a multi-vector encoder."""
    from modernbert.encoders.multi_vector import MultiVectorEncoder

    return MultiVectorEncoder.load(
        MultiVectorConfig.from_folder(checkpoint.folder), device=device, dtype=dtype
    )


def encoder_fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest of the files that vectors depend on."""
    return fingerprint_with(checkpoint, MultiVectorConfig.from_folder(checkpoint.folder).files)


def pooled(vectors_VE: np.ndarray, factor: float) -> np.ndarray:
    """Return the means of clusters of a document's vectors, of length 1, one for `factor` of them.

    The clusters are Ward's on cosine distances; the first vector, that of [CLS], stays by itself
    (Clavié et al. 2024, arXiv:2409.14683).
    """
    try:
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise ValueError("pool_factor above 1 needs scipy: pip install scipy") from error
    first_VE = vectors_VE[:PROTECTED_TOKENS]
    rest_VE = vectors_VE[PROTECTED_TOKENS:]
    clusters = max(int(len(rest_VE) // factor), 1)
    if clusters < len(rest_VE):
        distances = np.clip(1 - rest_VE @ rest_VE.T, 0, 2)
        tree = hierarchy.linkage(squareform(distances, checks=False), method="ward")
        numbers_V = hierarchy.fcluster(tree, t=clusters, criterion="maxclust")
        # Numbers of clusters may have gaps: places do not.
        _, cluster_V = np.unique(numbers_V, return_inverse=True)
        sums_VE = np.zeros((cluster_V.max() + 1, rest_VE.shape[1]), dtype=np.float32)
        np.add.at(sums_VE, cluster_V, rest_VE)
        counts_V = np.bincount(cluster_V).astype(np.float32)
        rest_VE = sums_VE / counts_V[:, None]
    return normalised(np.concatenate((first_VE, rest_VE)))
