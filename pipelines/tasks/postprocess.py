"""From values per window to values per document: what tasks share when they decode.

Shapes: W windows, D documents, C numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from modernbert.text.windows import Windows
from pipelines.options import Precision

Merge = Literal["mean", "max"]
STORED_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}
"""The type of the numbers of a vector, by the precision in which it is stored."""


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
    starts, counts = per_document(windows)
    out = np.zeros((len(counts), values_WC.shape[1]), dtype=np.float32)
    single = counts == 1
    out[single] = values_WC[starts[single]]
    for document in np.flatnonzero(counts > 1):
        rows = slice(starts[document], starts[document] + counts[document])
        if how == "max":
            out[document] = values_WC[rows].max(axis=0)
        else:
            weights = None if weights_W is None else weights_W[rows]
            out[document] = np.average(values_WC[rows], axis=0, weights=weights)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in the array's dtype."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Sigmoid 1 / (1 + exp(-x)) without overflow, in the array's dtype."""
    return np.exp(-np.logaddexp(np.float32(0), -logits))


def list_array(counts: np.ndarray, values: pa.Array) -> pa.ListArray:
    """Cut `values` into lists of `counts` items."""
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32()), values
    )


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (D, E) to length 1; zeros stay zeros."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def stored(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Convert vectors (D, E) to a precision.

    int8: each vector is scaled so that its largest number is 127. binary: the signs, eight to a
    byte, as int8 (less 128, as in sentence-transformers), ubinary as uint8.
    """
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=1e-30)
        return np.round(vectors * (127 / largest)).astype(np.int8)
    if precision == "ubinary":
        return np.packbits(vectors > 0, axis=1)
    if precision == "binary":
        return (np.packbits(vectors > 0, axis=1).astype(np.int16) - 128).astype(np.int8)
    return vectors.astype(precision)


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
