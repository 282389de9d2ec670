"""Columns to documents; rows without a valid text are rejected with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from modernbert.windows import Text
from pipelines.input.types import is_stringlike

Reject = tuple[int, str]
"""(row, reason)"""


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold documents: strings, or bytes, which must be UTF-8."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return is_stringlike(type_) or pa.types.is_null(type_)


def is_text_list(type_: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts, which are read as a text a line."""
    return (pa.types.is_list(type_) or pa.types.is_large_list(type_)) and is_text(type_.value_type)


def valid_documents(
    columns: Sequence[pa.ChunkedArray], names: Sequence[str]
) -> tuple[list[Text], list[int], list[Reject]]:
    """Return the documents in `columns`, their rows, and the rejected rows with the reason.

    A document is a text or, with two columns, a pair; `names` name the texts in reasons.
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
    """Return each row's text, and the reason if it is null, empty or not valid UTF-8."""
    if is_text_list(column.type):
        return [_lines(values, name) for values in column.to_pylist()]
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return [_text(value, name) for value in column.cast(type_).cast(pa.large_binary()).to_pylist()]


def _text(value: bytes | None, name: str) -> tuple[str, str | None]:
    if value is None:
        return "", f"{name} is null"
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return "", f"{name} is not valid UTF-8"
    return text, f"{name} is empty" if not text or text.isspace() else None


def _lines(values: list[str | None] | None, name: str) -> tuple[str, str | None]:
    if values is None or None in values:
        return "", f"{name} is null" if values is None else f"{name} holds a null"
    text = "".join(f"{value}\n" for value in values)
    return text, f"{name} is empty" if not text or text.isspace() else None


def longest(document: Text) -> int:
    """Return the number of characters of a document's longest text."""
    return max(map(len, document)) if isinstance(document, tuple) else len(document)


def cut(document: Text, most: int) -> Text:
    """Cut the texts of a document to `most` characters."""
    return (document[0][:most], document[1][:most]) if isinstance(document, tuple) else document[:most]


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace invalid UTF-8 in a column of strings by U+FFFD, so that every reader opens it."""
    type_ = column.type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)):
        return column
    values = column.cast(pa.large_binary()).to_pylist()
    return pa.chunked_array([pa.array([v if v is None else v.decode("utf-8", "replace") for v in values], type_)])
