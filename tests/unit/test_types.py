"""Every Arrow type as a column of an input: alone, nested, beside every other type, and on a later night."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import hypothesis
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.tests.strategies as arrow
import pytest
from corpora import plan, read_all

from pipelines.input.types import (
    common_type,
    convert,
    fits,
    is_exact,
    plain_type,
    stored_type,
    why_not_stored,
)

DAY, TIME = datetime.date(2024, 5, 6), datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
PLAIN = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(20, 4), pa.decimal256(60, 2)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Paris")),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4)),
    *(
        pa.dictionary(pa.int8(), type_)
        for type_ in (pa.string(), pa.int64(), pa.string_view(), pa.timestamp("us"))
    ),
    *(pa.run_end_encoded(pa.int32(), pa.string()), pa.uuid(), pa.json_(), pa.bool8()),
]
NESTED = [
    *(
        pa.list_(pa.int32()),
        pa.list_(pa.int64()),
        pa.list_(pa.float64()),
        pa.list_(pa.string()),
        pa.list_(pa.null()),
    ),
    *(
        pa.large_list(pa.string_view()),
        pa.list_(pa.int8(), 2),
        pa.list_(pa.int16(), 2),
        pa.list_(pa.int8(), 3),
    ),
    *(pa.list_view(pa.int64()), pa.large_list_view(pa.string_view())),
    *(
        pa.map_(pa.string(), pa.int32()),
        pa.map_(pa.large_string(), pa.int64()),
        pa.map_(pa.string_view(), pa.null()),
    ),
    *(
        pa.struct({"a": pa.int32(), "b": pa.string()}),
        pa.struct({"b": pa.string_view(), "a": pa.int64()}),
    ),
    *(pa.struct({"a": pa.int64(), "c": pa.bool_()}), pa.struct({"a": pa.null()})),
    *(pa.list_(pa.list_view(pa.string_view())), pa.list_(pa.struct({"a": pa.list_(pa.int8(), 2)}))),
    *(
        pa.struct({"a": pa.map_(pa.string(), pa.list_view(pa.int8()))}),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ),
]
NOT_IN_PARQUET = [
    *(pa.dense_union([pa.field("a", pa.int8())]), pa.sparse_union([pa.field("a", pa.int8())])),
    *(pa.struct([]), pa.list_(pa.struct([])), pa.month_day_nano_interval()),
]


def value(type_: pa.DataType, number: int) -> Any:
    """A value of a type, another one for each number."""
    if pa.types.is_null(type_):
        return None
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return value(type_.value_type, number)
    if pa.types.is_struct(type_):
        return {field.name: value(field.type, number) for field in type_}
    if pa.types.is_map(type_):
        return [
            (value(type_.key_type, each), value(type_.item_type, each)) for each in range(number)
        ]
    if pa.types.is_nested(type_):
        count = type_.list_size if pa.types.is_fixed_size_list(type_) else number
        return [value(type_.value_type, each) for each in range(count)]
    if isinstance(type_, pa.UuidType):
        return uuid.UUID(int=number)
    if pa.types.is_decimal(type_):
        return decimal.Decimal(f"{number}.25")
    if pa.types.is_fixed_size_binary(type_):
        return f"{number:04}".encode()
    for check, made in (
        (pa.types.is_boolean, number % 2 == 0),
        (pa.types.is_integer, number),
        (pa.types.is_floating, number + 0.5),
        (pa.types.is_date, DAY + datetime.timedelta(days=number)),
        (pa.types.is_time, datetime.time(1, 2, number)),
        (pa.types.is_timestamp, TIME.replace(microsecond=0) + datetime.timedelta(seconds=number)),
        (pa.types.is_duration, datetime.timedelta(seconds=number)),
    ):
        if check(type_):
            return made
    if isinstance(type_, pa.Bool8Type):
        return number % 2 == 0
    binary = "binary" in str(type_)
    return f"{number}é".encode() if binary else f'"{number}é"'


def column(type_: pa.DataType) -> pa.ChunkedArray:
    """Values of a type and a null, in two chunks, the second one a slice."""
    rows = [value(type_, 1), None, value(type_, 3), value(type_, 2)]
    if isinstance(type_, pa.UuidType):
        storage = pa.array([row and row.bytes for row in rows], pa.binary(16))
        array = pa.ExtensionArray.from_storage(type_, storage)
    elif isinstance(type_, pa.BaseExtensionType):
        plain = pa.array(
            rows, pa.bool_() if isinstance(type_, pa.Bool8Type) else type_.storage_type
        )
        array = pa.ExtensionArray.from_storage(type_, plain.cast(type_.storage_type))
    elif pa.types.is_run_end_encoded(type_):
        array = pa.RunEndEncodedArray.from_arrays(
            pa.array([1, 2, 3, 4], pa.int32()), pa.array(rows, type_.value_type)
        )
    elif pa.types.is_dictionary(type_):
        array = pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 2], type_.index_type),
                                               pa.array([rows[0], rows[2], rows[3]], type_.value_type))  # fmt: skip
    else:
        array = pa.array(rows, type_)
    return pa.chunked_array([array.slice(0, 1), array.slice(1)])


@pytest.mark.parametrize("type_", [*PLAIN, *NESTED], ids=str)
def test_a_column_of_each_type_comes_out_as_it_went_in(tmp_path, type_):
    rows = column(type_)
    table = pa.table({"text": ["a", "b", "c", "d"], "x": rows})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    corpus = plan(tmp_path / "x.arrow", tmp_path / "out")
    assert corpus.broken == {}
    got, _ = read_all(corpus, tmp_path / "x.arrow", tmp_path / "out")
    assert got["x"].type == stored_type(type_)
    assert got["x"].to_pylist() == rows.to_pylist()
    pq.write_table(got.take(pa.array([3, 0, 1, 2])), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == [
        rows.to_pylist()[i] for i in (3, 0, 1, 2)
    ]
    if not isinstance(type_, pa.BaseExtensionType) and type_ != pa.decimal256(
        60, 2
    ):  # which polars does not read
        assert len(polars.read_parquet(tmp_path / "out.parquet")) == 4


@pytest.mark.parametrize("type_", NOT_IN_PARQUET, ids=str)
def test_what_parquet_cannot_hold_is_refused_when_the_plan_is_made_or_left_out(tmp_path, type_):
    table = pa.table({"text": ["a"], "x": pa.nulls(1, type_)})
    for name, writer in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        (tmp_path / name).mkdir()
        with writer(tmp_path / name / "x.arrow", table.schema) as file:
            file.write_table(table)
        with pytest.raises(
            ValueError, match=r"column 'x' holds .* which Parquet cannot hold .*--keep-columns"
        ):
            plan(tmp_path / name, tmp_path / "out")
        corpus = plan(tmp_path / name, tmp_path / "out", wanted=frozenset({"text"}))
        assert corpus.broken == {}
        assert read_all(corpus, tmp_path / name, tmp_path / "out", ["text"])[0].to_pylist() == [
            {"text": "a"}
        ]


def same_or_text(want: pa.ChunkedArray, got: pa.ChunkedArray) -> bool:
    """Whether values are still there: equal, with nulls in fields that they lack, or as the text that Arrow writes."""
    if pa.types.is_nested(want.type) or got.to_pylist() == want.to_pylist():
        return _still_there(want.to_pylist(), got.to_pylist())
    text = want.cast(pa.string()) if not isinstance(want.type, pa.BaseExtensionType) else want
    return got.to_pylist() == text.to_pylist()


def _still_there(want: Any, got: Any) -> bool:
    if isinstance(want, dict) and isinstance(got, dict):
        return (
            all(_still_there(want.get(name), got[name]) for name in got)
            and want.keys() <= got.keys()
        )
    if isinstance(want, list | tuple) and isinstance(got, list | tuple):
        return len(want) == len(got) and all(map(_still_there, want, got))
    return want == got or (
        got is not None and (str(want) == str(got) or str(want).lower() == str(got))
    )


@pytest.mark.parametrize("first", [*PLAIN, *NESTED], ids=str)
def test_two_types_meet_in_one_that_holds_each_value_or_in_none(first):
    for second in [*PLAIN, *NESTED]:
        a, b = plain_type(first), plain_type(second)
        common, other_way = common_type(a, b), common_type(b, a)
        assert (common is None) == (other_way is None), (first, second)
        if common is None:
            continue
        assert why_not_stored(stored_type(common)) is None, (first, second)
        for type_ in (first, second):
            rows = column(type_)
            target = stored_type(common)
            if not is_exact(plain_type(type_), target) and not fits(rows, target):
                continue  # the file with these values is named
            got = convert(rows, target)
            got.validate(full=True)
            assert got.type == target
            assert same_or_text(convert(rows, stored_type(type_)), got), (
                first,
                second,
                rows.to_pylist(),
                got.to_pylist(),
            )


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.null(), pa.int8(), pa.int8()),
        (pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.int32(), pa.uint32(), pa.int64()),
        (pa.int64(), pa.uint64(), pa.string()),
        (pa.list_(pa.string()), pa.large_list(pa.string()), pa.large_list(pa.string())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (
            pa.map_(pa.string(), pa.int8()),
            pa.map_(pa.string(), pa.int64()),
            pa.map_(pa.string(), pa.int64()),
        ),
        (
            pa.struct({"a": pa.int8(), "b": pa.string()}),
            pa.struct({"b": pa.large_string(), "c": pa.bool_()}),
            pa.struct({"a": pa.int8(), "b": pa.large_string(), "c": pa.bool_()}),
        ),
        (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.string()),
        (pa.binary(4), pa.binary(), pa.binary()),
        (pa.binary(4), pa.string(), None),
        (pa.list_(pa.int8()), pa.int8(), None),
    ],
    ids=str,
)
def test_where_types_meet(first, second, common):
    assert common_type(first, second) == common_type(second, first) == common or pa.types.is_struct(
        first
    )
    assert common_type(first, second) == common


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(arrow.all_types, arrow.all_types)
def test_all_types_of_arrows_own_generator_meet_or_do_not(first, second):
    stored = [stored_type(first), stored_type(second)]
    hypothesis.assume(all(why_not_stored(type_) is None for type_ in stored))
    assert [stored_type(type_) for type_ in stored] == stored
    common = common_type(plain_type(first), plain_type(second))
    if common is None:
        return
    assert why_not_stored(stored_type(common)) is None
    for type_ in (first, second):
        with contextlib.suppress(
            pa.ArrowInvalid
        ):  # a type that takes no null has no column of nulls
            rows = pa.chunked_array([pa.nulls(2, type_)])
            assert convert(rows, stored_type(common)).null_count == 2


NIGHTS = {
    "int64 then whole doubles": (pa.array([1, 2]), pa.array([3.0, 4.0]), [1, 2, 3, 4]),
    "int64 then a fraction": (pa.array([1, 2]), pa.array([3.5, 4.0]), None),
    "double then int64": (pa.array([0.5]), pa.array([2**53]), [0.5, 2.0**53]),
    "double then a long int64": (pa.array([0.5]), pa.array([2**53 + 1]), None),
    "nothing then text": (pa.nulls(1), pa.array(["a"]), [None, "a"]),
    "nothing then int64": (pa.nulls(1), pa.array([7]), [None, "7"]),
    "text then int64": (pa.array(["a"]), pa.array([7]), ["a", "7"]),
    "int64 then text": (pa.array([7]), pa.array(["8"]), None),
    "int32 then small int64": (pa.array([7], pa.int32()), pa.array([8]), [7, 8]),
    "int32 then large int64": (pa.array([7], pa.int32()), pa.array([2**40]), None),
    "float32 then 0.1": (pa.array([0.5], pa.float32()), pa.array([0.1]), None),
    "float32 then 0.25": (pa.array([0.5], pa.float32()), pa.array([0.25]), [0.5, 0.25]),
    "ms then us": (pa.array([TIME], pa.timestamp("ms")), pa.array([TIME], pa.timestamp("us")), None),
    "ns then year 9999": (pa.array([TIME], pa.timestamp("ns")),
                          pa.array([datetime.datetime(9999, 12, 31)], pa.timestamp("us")), None),
    "list then large_list": (pa.array([["a"]]), pa.array([["b"]], pa.large_list(pa.large_string())), [["a"], ["b"]]),
    "struct then fewer fields": (pa.array([{"a": 1, "b": "x"}]), pa.array([{"b": "y"}]),
                                 [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
    "struct then more fields": (pa.array([{"a": 1}]), pa.array([{"a": 2, "b": "y"}]), None),
    "string then view": (pa.array(["a"]), pa.array(["b"], pa.string_view()), ["a", "b"]),
    "dictionary then string": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), ["a", "b"]),
}  # fmt: skip


@pytest.mark.parametrize("night", NIGHTS)
def test_a_later_night_fits_the_output_exactly_or_its_file_is_named(tmp_path, night):
    first, second, want = NIGHTS[night]
    earlier = None
    for name, rows in (("a", first), ("b", second)):
        table = pa.table({"text": ["t"] * len(rows), "x": rows})
        with pa.ipc.new_file(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
        earlier = plan(tmp_path, tmp_path / "out", earlier=earlier)
    got, _ = read_all(earlier, tmp_path, tmp_path / "out")
    if want is None:
        assert list(earlier.broken) == [str(tmp_path / "b.arrow")]
        assert "column 'x' holds" in next(iter(earlier.broken.values()))
        assert got["x"].to_pylist() == first.to_pylist()
    else:
        assert earlier.broken == {}
        assert got["x"].to_pylist() == want


STRINGS = {
    "string": pa.array(["a", None]),
    "large": pa.array(["a", "é"], pa.large_string()),
    "bytes": pa.array([b"a", None]),
    "broken": pa.array([b"\xff\xfe", b"ok"]),
    "dictionary": pa.array([b"\xff", b"ok"]).dictionary_encode(),
    "lists": pa.array([["a"], None]),
    "broken lists": pa.array([[b"\xff"], None]),
    "structs": pa.array([{"x": "a"}, None]),
    "broken structs": pa.array([{"x": b"\xff"}, None]),
}


@pytest.mark.parametrize("first", STRINGS)
@pytest.mark.parametrize("second", STRINGS)
def test_bytes_that_are_no_utf8_never_become_strings(tmp_path, first, second):
    for name, rows in (("a", STRINGS[first]), ("b", STRINGS[second])):
        pq.write_table(pa.table({"text": ["t"] * 2, "x": rows}), tmp_path / f"{name}.parquet")
    corpus = plan(tmp_path, tmp_path / "out")
    got, _ = read_all(corpus, tmp_path, tmp_path / "out")
    got.validate(full=True)
    files = [STRINGS[first]] if corpus.broken else [STRINGS[first], STRINGS[second]]
    want = [cell for rows in files for cell in rows.to_pylist()]
    as_bytes = [cell.encode() if isinstance(cell, str) else cell for cell in want]
    found = got["x"].to_pylist()
    assert [
        cell.encode() if isinstance(cell, str) else cell for cell in found
    ] == as_bytes or found == want
    pq.write_table(got, tmp_path / "out.parquet")
    assert len(polars.read_parquet(tmp_path / "out.parquet")) == len(want)


@pytest.mark.parametrize("nested", ["plain", "list", "struct", "map"])
def test_a_dictionary_with_a_null_among_its_values_is_written(tmp_path, nested):
    rows = pa.array(["x", None, "y"]).dictionary_encode(null_encoding="encode")
    column = {
        "plain": rows,
        "list": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), rows),
        "struct": pa.StructArray.from_arrays([rows], names=["a"]),
        "map": pa.MapArray.from_arrays(
            pa.array([0, 1, 2, 3], pa.int32()), pa.array(["k"] * 3), rows
        ),
    }[nested]
    table = pa.table({"text": ["t"] * 3, "x": column})
    for name, writer in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        (tmp_path / name).mkdir()
        with writer(tmp_path / name / "x.arrow", table.schema) as file:
            file.write_table(table)
        got, _ = read_all(
            plan(tmp_path / name, tmp_path / "out"), tmp_path / name, tmp_path / "out"
        )
        assert got["x"].to_pylist() == column.to_pylist()
        pq.write_table(got, tmp_path / "out.parquet")
        assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == column.to_pylist()


INT96 = {
    "nothing": [None, None],
    "microseconds": [1_700_000_000_123_456_000, None],
    "nanoseconds": [1_700_000_000_123_456_789, -5],
    "far": [253_370_764_800_000_000_000, -62_135_596_800_000_000_000],  # the years 9999 and 1
}
"""Times of columns in INT96, in nanoseconds since 1970."""


def write_int96(path: Path, times: list[int | None]) -> None:
    fine = any(time is not None and time % 1000 for time in times)
    numbers = [time if time is None or fine else time // 1000 for time in times]
    rows = pa.array(numbers, pa.int64()).cast(pa.timestamp("ns" if fine else "us"))
    table = pa.table(
        {
            "text": ["t"] * len(times),
            "x": rows,
            "lists": pa.array([[row] for row in rows], pa.list_(rows.type)),
        }
    )
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize("first", INT96)
@pytest.mark.parametrize("second", INT96)
def test_times_of_int96_are_as_written_or_their_file_is_named(tmp_path, first, second):
    want: list[int | None] = []
    for name, times in (("a", INT96[first]), ("b", INT96[second])):
        write_int96(tmp_path / f"{name}.parquet", times)
        want += times
    corpus = plan(tmp_path, tmp_path / "out")
    assert bool(corpus.broken) == ({first, second} == {"nanoseconds", "far"})
    assert list(corpus.broken) in ([], [str(tmp_path / "b.parquet")])
    got, _ = read_all(corpus, tmp_path, tmp_path / "out")
    unit = {"us": 1000, "ns": 1}[got["x"].type.unit]
    for column in (got["x"], got["lists"].combine_chunks().flatten()):
        assert [
            time if time is None else time * unit for time in column.cast(pa.int64()).to_pylist()
        ] == (want[:2] if corpus.broken else want)
