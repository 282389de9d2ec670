"""Columns to documents; rows without a valid text are rejected with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from modernbert.text.windows import Text
from pipelines.input.types import is_stringlike
from pipelines.options import TASKS, LabelList, split_labels

Reject = tuple[int, str]
"""(row, reason)"""


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold documents: strings, or bytes, which must be UTF-8."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return is_stringlike(type_) or pa.types.is_null(type_)


def is_text_list(type_: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts."""
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
    takes_lists = any(name in task.list_inputs for task in TASKS.values())
    if is_text_list(column.type):
        if not takes_lists:
            raise ValueError(f"{name} is a column of {column.type}; it must hold texts")
        return _lists(column, name)
    texts = [_text(value, name) for value in _as_bytes(column)]
    return (
        [(LabelList.of(split_labels(text)), reason) for text, reason in texts]
        if takes_lists
        else texts
    )


def _text(value: bytes | None, name: str) -> tuple[str, str | None]:
    if value is None:
        return "", f"{name} is null"
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return "", f"{name} is not valid UTF-8"
    return text, f"{name} is empty" if not text or text.isspace() else None


def _lists(column: pa.ChunkedArray, name: str) -> list[tuple[str, str | None]]:
    """Return each row's list, and the reason if it is null or empty, or holds what is no text."""
    lengths = pc.list_value_length(column).to_pylist()
    values = iter(_as_bytes(pc.list_flatten(column)))
    return [
        _list(None if length is None else [next(values) for _ in range(length)], name)
        for length in lengths
    ]


def _list(values: list[bytes | None] | None, name: str) -> tuple[str, str | None]:
    if not values:
        return "", f"{name} is null" if values is None else f"{name} is empty"
    texts = []
    for value in values:
        if value is None:
            return "", f"{name} holds a null"
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError:
            return "", f"{name} holds a text that is not valid UTF-8"
    return LabelList.of(texts), None


def _as_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Return the bytes of each text of a column."""
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(type_).cast(pa.large_binary()).to_pylist()


def longest(document: Text) -> int:
    """Return the number of characters of a document's longest text; labels, which are never cut, do
    not count.
    """
    texts = document if isinstance(document, tuple) else (document,)
    return max(0 if isinstance(text, LabelList) else len(text) for text in texts)


def cut(document: Text, most: int) -> Text:
    """Cut the texts of a document to `most` characters; a label that is cut would be another
    one.
    """
    if isinstance(document, str):
        return document[:most]
    first, second = document
    return first[:most], second if isinstance(second, LabelList) else second[:most]


def readable_columns(columns: dict[str, pa.ChunkedArray]) -> tuple[dict[str, pa.ChunkedArray], int]:
    """Return columns with their invalid UTF-8 replaced (`readable`), and the number of values that
    this changed.

    A string that is not UTF-8 is against Arrow's and Parquet's own rules: polars, duckdb and Spark
    would refuse the whole output for one.
    """
    found = dict(columns)
    replaced = 0
    for name, column in columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            found[name] = readable(column)
            plain = (
                column.cast(column.type.value_type)
                if pa.types.is_dictionary(column.type)
                else column
            )
            pairs = zip(
                plain.cast(pa.large_binary()).to_pylist(), found[name].to_pylist(), strict=True
            )
            replaced += sum(raw is not None and raw != text.encode() for raw, text in pairs)
    return found, replaced


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace invalid UTF-8 in a column of strings by U+FFFD, so that every reader opens it.

    The strings may be in lists or in a dictionary.
    """
    type_ = column.type
    if pa.types.is_dictionary(type_) and _is_string(type_.value_type):
        chunks = []
        for chunk in column.chunks:
            words = readable(pa.chunked_array([chunk.dictionary])).combine_chunks()
            chunks.append(
                pa.DictionaryArray.from_arrays(chunk.indices, words, ordered=type_.ordered)
            )
        return pa.chunked_array(chunks, type_)
    if _is_string(type_):
        values = column.cast(pa.large_binary()).to_pylist()
        return pa.chunked_array([pa.array([_readable(value) for value in values], type_)])
    if is_text_list(type_) and _is_string(type_.value_type):
        lists = column.cast(pa.large_list(pa.large_binary())).to_pylist()
        texts = [
            None if values is None else [_readable(value) for value in values] for values in lists
        ]
        return pa.chunked_array([pa.array(texts, type_)])
    return column


def _is_string(type_: pa.DataType) -> bool:
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )


def _readable(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
