"""From values per window to values per document: what tasks share when they decode.

Shapes: W windows, D documents, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa

from modernbert.text.windows import Windows
from pipelines.option_types import Precision

Merge = Literal["mean", "max"]
_STORED_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}
"""The type of the numbers of a vector, by the precision in which it is stored."""
_PACKED = ("binary", "ubinary")


def per_document(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Return the first window of each document, (D,), and its number of windows, (D,)."""
    counts = np.bincount(windows.document, minlength=len(windows.n_tokens))
    return np.cumsum(counts) - counts, counts


def merged(
    windows: Windows, values_WC: np.ndarray, how: Merge, weights_W: np.ndarray | None = None
) -> np.ndarray:
    """Reduce windows to documents, (D, C), by the (weighted) mean or the maximum; zeros where there
    are none.
    """
    first_D, counts_D = per_document(windows)
    merged_DC = np.zeros((len(counts_D), values_WC.shape[1]), dtype=np.float32)
    # Most documents have one window, whose values are taken as they are.
    has_one = counts_D == 1
    merged_DC[has_one] = values_WC[first_D[has_one]]
    for document in np.flatnonzero(counts_D > 1):
        rows = slice(first_D[document], first_D[document] + counts_D[document])
        if how == "max":
            merged_DC[document] = values_WC[rows].max(axis=0)
        else:
            weights = None if weights_W is None else weights_W[rows]
            merged_DC[document] = np.average(values_WC[rows], axis=0, weights=weights)
    return merged_DC


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in the array's dtype."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Sigmoid 1 / (1 + exp(-x)) without overflow, in the array's dtype."""
    shares: np.ndarray = np.exp(-np.logaddexp(np.float32(0), -logits))
    return shares


def doubt_of(scores: pa.Array) -> np.ndarray:
    """Return what probabilities leave to one."""
    doubts: np.ndarray = 1 - scores.to_numpy(zero_copy_only=False).astype(np.float64)
    return doubts


def list_array(counts: np.ndarray, values: pa.Array) -> pa.ListArray:
    """Cut `values` into lists of `counts` items."""
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (D, E) to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / lengths.clip(min=1e-12)
    return scaled


def check_packs(precision: Precision, size: int) -> None:
    """Raise ValueError for vectors of `size` numbers that a precision cannot pack into bytes."""
    if precision in _PACKED and size % 8:
        raise ValueError(
            f"precision {precision} packs eight dimensions in a byte; {size} is not a multiple"
        )


def vector_type(size: int, precision: Precision) -> pa.DataType:
    """Return the type of a stored vector of `size` numbers."""
    width = size // 8 if precision in _PACKED else size
    return pa.list_(_STORED_TYPES[precision], width)


def stored(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Convert vectors (D, E) to a precision.

    int8: each vector is scaled so that its largest number is 127. binary: the signs, eight to a
    byte, as int8 (less 128, as in sentence-transformers), ubinary as uint8.
    """
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=1e-30)
        scaled: np.ndarray = np.round(vectors * (127 / largest))
        return scaled.astype(np.int8)
    if precision == "ubinary":
        return np.packbits(vectors > 0, axis=1)
    if precision == "binary":
        bits = np.packbits(vectors > 0, axis=1).astype(np.int16)
        signed: np.ndarray = bits - 128
        return signed.astype(np.int8)
    numbers: np.ndarray = vectors.astype(precision)
    return numbers


def activation_named(path: str | None, known: Sequence[str], option: str) -> str | None:
    """Return the name of a checkpoint's activation_fn ("torch.nn.modules.activation.Sigmoid"), None
    where it has none.

    Raises ValueError, which names the `option` that replaces it, for one that is not `known` or not
    torch's.
    """
    name = (path or "").rpartition(".")[2]
    if path and not (path.startswith("torch.nn.") and name in known):
        raise ValueError(
            f"activation_fn {path} of the checkpoint is not one of {', '.join(known)}; give "
            f"{option}"
        )
    return name or None


def keep_windows(windows: Windows, keep_W: np.ndarray) -> Windows:
    """Keep some of the windows; the counts of rejected documents become zero."""
    if keep_W.all():
        return windows
    keep_T = np.repeat(keep_W, windows.lengths)
    rejected = np.array(sorted(windows.rejected), dtype=np.int64)
    n_tokens = windows.n_tokens.copy()
    n_tokens[rejected] = 0
    truncated = windows.truncated.copy()
    truncated[rejected] = False
    return replace(
        windows,
        input_ids=windows.input_ids[keep_T],
        cu_seqlens=np.concatenate(([0], np.cumsum(windows.lengths[keep_W]))),
        document=windows.document[keep_W],
        start=windows.start[keep_W],
        n_tokens=n_tokens,
        truncated=truncated,
    )
