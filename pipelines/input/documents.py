"""Columns of texts to documents, with the rows set aside that hold none."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from modernbert.windows import Text

Reject = tuple[int, str]
"""(row of the column, reason)"""


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold documents: strings, and bytes that are to be UTF-8."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(check(kind) for check in (*checks, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null))


def valid_documents(
    columns: Sequence[pa.ChunkedArray], names: Sequence[str]
) -> tuple[list[Text], list[int], list[Reject]]:
    """The documents that `columns` hold side by side, their rows, and the rows with a text that is none.

    A document is a text, or a pair where there are two columns; `names` are what the texts are called.
    """
    documents: list[Text] = []
    rows, rejects = [], []
    parts = [_texts(column, name) for column, name in zip(columns, names, strict=True)]
    for row, cells in enumerate(zip(*parts, strict=True)):
        if reason := next((reason for _, reason in cells if reason), None):
            rejects.append((row, reason))
            continue
        texts = [text for text, _ in cells]
        documents.append((texts[0], texts[1]) if len(texts) > 1 else texts[0])
        rows.append(row)
    return documents, rows, rejects


def _texts(column: pa.ChunkedArray, name: str) -> list[tuple[str, str | None]]:
    """The text in each row of a column, and why there is none: null, empty or not valid UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return [_text(value, name) for value in column.cast(kind).cast(pa.large_binary()).to_pylist()]


def _text(value: bytes | None, name: str) -> tuple[str, str | None]:
    if value is None:
        return "", f"{name} is null"
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return "", f"{name} is not valid UTF-8"
    return text, f"{name} is empty" if not text or text.isspace() else None


def longest(document: Text) -> int:
    """The characters of a document's longest text."""
    return max(map(len, document)) if isinstance(document, tuple) else len(document)


def cut(document: Text, most: int) -> Text:
    """A document with no text longer than `most` characters."""
    return (document[0][:most], document[1][:most]) if isinstance(document, tuple) else document[:most]


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with U+FFFD for what is not valid UTF-8 in its strings, so that every reader opens it."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return column
    values = column.cast(pa.large_binary()).to_pylist()
    return pa.chunked_array([pa.array([v if v is None else v.decode("utf-8", "replace") for v in values], kind)])
