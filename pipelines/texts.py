"""A column of documents to Python strings, with the rows set aside that hold no text."""

from __future__ import annotations

import pyarrow as pa

Reject = tuple[int, str]
"""(row of the column, reason)"""


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold documents: strings, and bytes that are to be UTF-8."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(check(kind) for check in (*checks, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null))


def valid_texts(column: pa.ChunkedArray) -> tuple[list[str], list[int], list[Reject]]:
    """The texts of `column`, their rows, and the rows that are null, empty or not valid UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    encoded = column.cast(kind).cast(pa.large_binary()).to_pylist()
    texts, rows, rejects = [], [], []
    for row, value in enumerate(encoded):
        if value is None:
            rejects.append((row, "text is null"))
            continue
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            rejects.append((row, "text is not valid UTF-8"))
            continue
        if not text or text.isspace():
            rejects.append((row, "text is empty"))
            continue
        texts.append(text)
        rows.append(row)
    return texts, rows, rejects


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with U+FFFD for what is not valid UTF-8 in its strings, so that every reader opens it."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return column
    values = column.cast(pa.large_binary()).to_pylist()
    return pa.chunked_array([pa.array([v if v is None else v.decode("utf-8", "replace") for v in values], kind)])
