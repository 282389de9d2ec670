"""Fields of structs as texts."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from pipelines.input.fields import column_of, describe_missing, field_type, prefixes, take_field


def follow(value: object, path: str) -> tuple[bool, object]:
    """Look a path up in plain dicts, the longest name first: the oracle."""
    if not path:
        return True, value
    assert isinstance(value, dict)
    for name in prefixes(path):
        if name in value:
            rest = path[len(name) + 1 :]
            if not rest:
                return True, value[name]
            if isinstance(value[name], dict):
                found, result = follow(value[name], rest)
                if found:
                    return True, result
    return False, None


def random_value(source: random.Random, depth: int) -> object:
    if depth and source.random() < 0.7:
        names = source.sample(["a", "b", "a.b", "b.c", "c"], source.randint(1, 3))
        return {name: random_value(source, depth - 1) for name in names}
    return source.choice(["x", "y", "z"])


@pytest.mark.parametrize("seed", range(20))
def test_a_path_leads_where_a_walk_through_plain_values_leads(seed):
    source = random.Random(seed)
    row = {
        "a": random_value(source, 2),
        "b": random_value(source, 2),
        "a.b": random_value(source, 1),
    }
    table = pa.Table.from_pylist([row])
    for path in ("a", "b", "a.b", "a.b.c", "a.a.b", "b.c", "b.b.c", "b.a.b.c", "a.c", "d", "a.d"):
        found, value = follow(row, path)
        assert (field_type(table.schema, path) is not None) == found
        if found:
            assert take_field(table, path).to_pylist() == [value]
            assert column_of(table.schema, path) in table.column_names
        else:
            with pytest.raises(KeyError):
                take_field(table, path)


def test_a_field_of_a_null_is_null_in_slices_and_chunks_too():
    docs = [
        {"inner": {"text": "a"}},
        None,
        {"inner": None},
        {"inner": {"text": None}},
        {"inner": {"text": "b"}},
    ]
    column = pa.array(docs)
    table = pa.table(
        {"doc": pa.chunked_array([column.slice(1, 3), column.slice(4), column.slice(0, 2)])}
    )
    assert take_field(table, "doc.inner.text").to_pylist() == [None, None, None, "b", "a", None]
    assert take_field(table.slice(3, 2), "doc.inner.text").to_pylist() == ["b", "a"]
    assert take_field(table.slice(0, 0), "doc.inner.text").to_pylist() == []


def test_what_is_missing_of_a_path_is_named():
    schema = pa.schema(
        [
            ("id", pa.int64()),
            (
                "doc",
                pa.struct([("title", pa.string()), ("body", pa.struct([("text", pa.string())]))]),
            ),
        ]
    )
    assert describe_missing(schema, "text") == "input has no column 'text'; it has id, doc"
    assert (
        describe_missing(schema, "doc.text")
        == "column 'doc' has no field 'text'; it has title, body"
    )
    assert (
        describe_missing(schema, "doc.body.x") == "column 'doc.body' has no field 'x'; it has text"
    )
    assert describe_missing(schema, "id.text") == (
        "column 'id' holds int64, which has no fields: 'id.text' names one"
    )
