"""A column of every type of Arrow."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa


def columns_of_every_type(rows: int) -> dict[str, pa.Array]:
    """Columns of `rows` rows by the name of their type, with a null where the type has one: in row 1."""
    numbers = [None if row == 1 else row for row in range(rows)]
    texts = [None if number is None else f"text {number}" for number in numbers]
    parity = pa.array([row % 2 for row in range(rows)], pa.int8())
    columns: dict[str, pa.Array] = {}

    def add(type_: pa.DataType, values: Any) -> None:
        columns[str(type_)] = pa.array(
            [None if value is None else value for value in values], type_
        )

    add(pa.null(), [None] * rows)
    add(pa.bool_(), [None if number is None else number % 2 == 0 for number in numbers])
    for integer in (
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint16(),
        pa.uint32(),
        pa.uint64(),
    ):
        add(integer, numbers)
    for real in (pa.float16(), pa.float32(), pa.float64()):
        columns[str(real)] = pa.array(numbers, pa.float64()).cast(real)
    for decimal in (
        pa.decimal32(5, 1),
        pa.decimal64(12, 1),
        pa.decimal128(20, 1),
        pa.decimal256(60, 1),
    ):
        add(decimal, [None if number is None else Decimal(number) for number in numbers])
    for string in (pa.string(), pa.large_string(), pa.string_view()):
        add(string, texts)
    for binary in (pa.binary(), pa.large_binary(), pa.binary_view()):
        add(binary, [None if text is None else text.encode() for text in texts])
    add(pa.binary(4), [None if text is None else text[:4].encode() for text in texts])
    for day in (pa.date32(), pa.date64()):
        add(day, [None if number is None else date(2024, 1, 1 + number) for number in numbers])
    for time in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        columns[str(time)] = pa.array(
            numbers, pa.int32() if time.bit_width == 32 else pa.int64()
        ).cast(time)
    for moment in (pa.timestamp("s"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("us")):
        columns[str(moment)] = pa.array(numbers, pa.int64()).cast(moment)
    interval = pa.month_day_nano_interval()
    add(
        interval,
        [None if number is None else pa.MonthDayNano([number, 1, 2]) for number in numbers],
    )
    lists = [None if number is None else [number] * (number % 3) for number in numbers]
    for make_list in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        add(make_list(pa.int32()), lists)
    add(
        pa.list_(pa.float32(), 2), [None if number is None else [number, 0.5] for number in numbers]
    )
    add(pa.list_(pa.string_view()), [None if text is None else [text, None] for text in texts])
    add(
        pa.map_(pa.string(), pa.int32()),
        [None if number is None else [("a", number)] for number in numbers],
    )
    add(pa.struct([]), [None if number is None else {} for number in numbers])
    nested = pa.struct([("a", pa.list_(pa.struct([("b", pa.int16())]))), ("c", pa.struct([]))])
    add(
        nested,
        [None if number is None else {"a": [{"b": number}, None], "c": {}} for number in numbers],
    )
    columns["dictionary"] = pa.array(texts).dictionary_encode()
    columns["dictionary of numbers"] = pa.array(numbers).dictionary_encode()
    columns["ordered dictionary"] = pa.DictionaryArray.from_arrays(
        parity, pa.array(["x", "y"]), ordered=True
    )
    columns["list of a dictionary"] = pa.ListArray.from_arrays(
        pa.array(range(rows + 1), pa.int32()), columns["dictionary"]
    )
    columns["run ends"] = pa.RunEndEncodedArray.from_arrays(
        pa.array([2, rows], pa.int32()), pa.array(["u", "v"])
    )
    children = [pa.array(numbers, pa.int32()), pa.array(texts)]
    columns["sparse union"] = pa.UnionArray.from_sparse(parity, children)
    offsets = pa.array(range(rows), pa.int32())
    columns["dense union"] = pa.UnionArray.from_dense(parity, offsets, children)
    columns["uuid"] = pa.array(
        [None if number is None else bytes([number] * 16) for number in numbers], pa.uuid()
    )
    storage = pa.array(numbers, pa.int8())
    columns["bool8"] = pa.ExtensionArray.from_storage(pa.bool8(), storage)
    columns["opaque"] = pa.ExtensionArray.from_storage(
        pa.opaque(pa.int8(), "kind", "vendor"), storage
    )
    columns["json"] = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"] * rows))
    pairs = pa.array([[row, row] for row in range(rows)], pa.list_(pa.int32(), 2))
    columns["tensor"] = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pairs
    )
    return columns
