"""Columns to documents; rows without a valid text are rejected with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modernbert.text.windows import Text
from pipelines.input.types import is_stringlike
from pipelines.labels import LabelList, split_labels
from pipelines.options import TASKS
from pipelines.text_lists import TextList, WordList

Reject = tuple[int, str]
"""(row, reason)"""


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold documents: strings, or bytes, which must be UTF-8."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return is_stringlike(type_) or pa.types.is_null(type_)


def is_text_list(type_: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return is_list and is_text(type_.value_type)


def wrong_type(type_: pa.DataType, *, reads_words: bool, takes_lists: bool) -> str | None:
    """Return what a column of this type does not hold as it must, or None.

    `reads_words`: whether it must hold lists of words; `takes_lists`: whether it may hold lists of
    texts.
    """
    if reads_words:
        return None if is_text_list(type_) or pa.types.is_null(type_) else "lists of words"
    is_fitting = is_text(type_) or (takes_lists and is_text_list(type_))
    return None if is_fitting else "text"


def valid_documents(
    columns: Sequence[pa.ChunkedArray], names: Sequence[str], *, reads_words: bool = False
) -> tuple[list[Text], list[int], list[Reject]]:
    """Return the documents in `columns`, their rows, and the rejected rows with the reason.

    A document is a text or, with two columns, a pair; where `reads_words`, a list of words. `names`
    name the texts in reasons.
    """
    documents: list[Text] = []
    rows: list[int] = []
    rejects: list[Reject] = []
    parts = []
    for column, name in zip(columns, names, strict=True):
        parts.append(_lists(column, name, WordList) if reads_words else _texts(column, name))
    for row, cells in enumerate(zip(*parts, strict=True)):
        reason = next((reason for _, reason in cells if reason), None)
        if reason:
            rejects.append((row, reason))
            continue
        texts = [text for text, _ in cells]
        documents.append((texts[0], texts[1]) if len(texts) > 1 else texts[0])
        rows.append(row)
    return documents, rows, rejects


def _texts(column: pa.ChunkedArray, name: str) -> list[tuple[str, str | None]]:
    """Return the text of each row, and the reason if there is none."""
    takes_lists = any(name in task.list_inputs for task in TASKS.values())
    if is_text_list(column.type):
        if not takes_lists:
            raise ValueError(f"{name} is a column of {column.type}; it must hold texts")
        return _lists(column, name, LabelList)
    texts = [_text(value, name) for value in _as_bytes(column)]
    if takes_lists:
        return [(LabelList.of(split_labels(text)), reason) for text, reason in texts]
    return texts


def _lists(
    column: pa.ChunkedArray, name: str, kind: type[TextList]
) -> list[tuple[str, str | None]]:
    """Return the list of each row, and the reason if there is none."""
    if pa.types.is_null(column.type):
        return [_list(None, name, kind)] * len(column)
    if not is_text_list(column.type):
        raise ValueError(f"{name} is a column of {column.type}; it must hold lists of texts")
    return [_list(items, name, kind) for items in _lists_of_bytes(column)]


def _text(cell: bytes | None, name: str) -> tuple[str, str | None]:
    """Return the text of a cell, and the reason if there is none."""
    if cell is None:
        return "", f"{name} is null"
    try:
        text = cell.decode("utf-8")
    except UnicodeDecodeError:
        return "", f"{name} is not valid UTF-8"
    is_empty = not text or text.isspace()
    return text, f"{name} is empty" if is_empty else None


def _list(
    cell: list[bytes | None] | None, name: str, kind: type[TextList]
) -> tuple[str, str | None]:
    """Return the texts of a list in one, and the reason if there is none."""
    if cell is None:
        return "", f"{name} is null"
    items: list[str] = []
    for item in cell:
        if item is None:
            return "", f"{name} holds a null"
        try:
            items.append(item.decode("utf-8"))
        except UnicodeDecodeError:
            return "", f"{name} holds a text that is not valid UTF-8"
    return kind.of(items), None if items else f"{name} is empty"


def _lists_of_bytes(column: pa.ChunkedArray) -> list[list[bytes | None] | None]:
    """Return the bytes of each text of each list of a column."""
    lengths: list[int | None] = pc.list_value_length(column).to_pylist()
    items = iter(_as_bytes(pc.list_flatten(column)))
    # A null has no items among the flat ones, whatever lies under it.
    return [None if length is None else [next(items) for _ in range(length)] for length in lengths]


def _as_bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    """Return the bytes of each text of a column."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def longest(document: Text) -> int:
    """Return the characters of a document's longest text, or of its words; labels, never cut, do
    not count.
    """
    if isinstance(document, WordList):
        return sum(map(len, document.texts))
    texts = document if isinstance(document, tuple) else (document,)
    return max(0 if isinstance(text, LabelList) else len(text) for text in texts)


def cut(document: Text, most: int) -> Text:
    """Cut the texts of a document to `most` characters, but no word and no label: it would be
    another one.
    """
    if isinstance(document, WordList):
        return document.cut(most)
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
    valid = dict(columns)
    total_changed = 0
    for name, column in columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            valid[name], changed = _replace(column)
            total_changed += changed
    return valid, total_changed


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace invalid UTF-8 in a column by U+FFFD, so that every reader opens it.

    The strings may be in a dictionary, in lists and in structs.
    """
    valid, _ = _replace(column)
    return valid


def _replace(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Return a column with its invalid UTF-8 replaced, and the number of strings that changed."""
    chunks = []
    total_changed = 0
    for chunk in column.chunks:
        valid, changed = _replace_in_array(chunk)
        chunks.append(valid)
        total_changed += changed
    return pa.chunked_array(chunks, column.type), total_changed


def _replace_in_array(array: pa.Array) -> tuple[pa.Array, int]:
    type_ = array.type
    if _is_string(type_):
        values = array.cast(pa.large_binary()).to_pylist()
        texts = [_readable(value) for value in values]
        pairs = zip(values, texts, strict=True)
        changed = sum(text is not None and value != text.encode() for value, text in pairs)
        return pa.array(texts, type_), changed
    if pa.types.is_dictionary(type_):
        return _replace_in_dictionary(array)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _replace_in_lists(array)
    if pa.types.is_struct(type_) and type_.num_fields:
        fields = [_replace_in_array(child) for child in array.flatten()]
        children = [child for child, _ in fields]
        valid = pa.StructArray.from_arrays(children, fields=list(type_), mask=array.is_null())
        return valid, sum(changed for _, changed in fields)
    return array, 0


def _replace_in_dictionary(array: pa.DictionaryArray) -> tuple[pa.Array, int]:
    words, changed_words = _replace_in_array(array.dictionary)
    if not changed_words:
        return array, 0
    valid = pa.DictionaryArray.from_arrays(array.indices, words, ordered=array.type.ordered)
    # A word counts as often as it stands in the column.
    _, changed = _replace_in_array(array.cast(array.type.value_type))
    return valid, changed


def _replace_in_lists(array: pa.ListArray) -> tuple[pa.Array, int]:
    # Flat items leave out those under a null and outside a slice: the offsets are others.
    items, changed = _replace_in_array(pc.list_flatten(array))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    is_null = np.append(array.is_null().to_numpy(zero_copy_only=False), False)
    offset_type = pa.int32() if pa.types.is_list(array.type) else pa.int64()
    offsets_or_null = pa.array(offsets, offset_type, mask=is_null)
    return type(array).from_arrays(offsets_or_null, items, type=array.type), changed


def _is_string(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(type_) for is_kind in kinds)


def _readable(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
