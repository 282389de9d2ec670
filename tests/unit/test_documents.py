"""Strings that are not UTF-8 in columns that are passed on, whatever they are nested in."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.input.documents import readable_columns

BAD = pa.array([b"a", b"\xff", b"\xffb"], pa.binary()).view(pa.string())
GOOD = pa.array(["x", None, "z"])
ROWS = ["a", "\ufffd", "\ufffdb"]
STRUCTS = pa.StructArray.from_arrays([BAD, GOOD], ["bad", "good"])
DICTS = [{"bad": text, "good": good} for text, good in zip(ROWS, GOOD.to_pylist(), strict=True)]
NULL_STRUCT = pa.StructArray.from_arrays([BAD], ["bad"], mask=pa.array([False, True, False]))
COLUMNS = {
    "string": (BAD, ROWS, 2),
    "dictionary": (
        pa.DictionaryArray.from_arrays([0, 1, None, 1, 2], BAD),
        ["a", "\ufffd", None, "\ufffd", "\ufffdb"],
        3,
    ),
    "list": (pa.ListArray.from_arrays([0, 1, 3], BAD), [["a"], ROWS[1:]], 2),
    "large list": (pa.LargeListArray.from_arrays([0, 1, 3], BAD), [["a"], ROWS[1:]], 2),
    "slice of lists, one null": (
        pa.ListArray.from_arrays(pa.array([0, None, 1, 3]), BAD).slice(1),
        [None, ROWS[1:]],
        2,
    ),
    "struct": (STRUCTS, DICTS, 2),
    "null struct": (NULL_STRUCT, [{"bad": "a"}, None, {"bad": "\ufffdb"}], 1),
    "list of structs": (pa.ListArray.from_arrays([0, 1, 3], STRUCTS), [DICTS[:1], DICTS[1:]], 2),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_invalid_utf_8_is_replaced_and_counted(name):
    array, rows, changed = COLUMNS[name]
    valid, count = readable_columns({"a": pa.chunked_array([array]), "b": pa.chunked_array([GOOD])})
    valid["a"].validate(full=True)
    assert valid["a"].type == array.type
    assert valid["a"].to_pylist() == rows
    assert count == changed
    assert valid["b"].to_pylist() == GOOD.to_pylist()
