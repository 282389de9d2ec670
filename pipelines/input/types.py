"""The columns of files that differ: the type that holds the values of all unchanged, and their conversion to it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return a type that holds the values of both unchanged, None where there is none.

    Kinds of strings meet in string; whole numbers, floats, decimals and times in the wider one of their kind; other
    plain types that do not meet become text, as Arrow writes it.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = (each.value_type if pa.types.is_dictionary(each) else each for each in (a, b))
    if a == b:
        return a
    if is_stringlike(a) and is_stringlike(b):
        large = any(pa.types.is_large_string(each) or pa.types.is_large_binary(each) for each in (a, b))
        return pa.large_string() if large else pa.string()
    if pa.types.is_nested(a) or pa.types.is_nested(b):
        return _common_nested(a, b)
    if any(_is_opaque(each) for each in (a, b)):
        return None
    return _wider(a, b) or pa.string()


def _common_nested(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_list(a) and pa.types.is_list(b):
        items = common_type(a.value_type, b.value_type)
        return pa.list_(items) if items else None
    if pa.types.is_struct(a) and pa.types.is_struct(b) and [f.name for f in a] == [f.name for f in b]:
        types = [common_type(x.type, y.type) for x, y in zip(a, b, strict=True)]
        return pa.struct([(f.name, t) for f, t in zip(a, types, strict=True)]) if all(types) else None
    return None


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the wider of two types of one kind, where it holds all values of both."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_date, pa.types.is_time)
    same_zone = pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and a.tz == b.tz
    if not same_zone and not any(kind(a) and kind(b) for kind in kinds):
        return None
    try:
        schemas = [pa.schema([("", type_)]) for type_ in (a, b)]
        (field,) = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None
    if pa.types.is_integer(a) and not (_holds(field.type, a) and _holds(field.type, b)):
        return None
    return field.type


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Tell whether a type holds all values of a type of whole numbers."""
    if not pa.types.is_integer(wide):
        return False
    signed = pa.types.is_signed_integer(wide)
    if signed == pa.types.is_signed_integer(narrow):
        return wide.bit_width >= narrow.bit_width
    return signed and wide.bit_width > narrow.bit_width


def _is_opaque(type_: pa.DataType) -> bool:
    """Tell whether values of a type have no text form."""
    return is_bytes(type_) or pa.types.is_fixed_size_binary(type_) or isinstance(type_, pa.BaseExtensionType)


def is_bytes(type_: pa.DataType) -> bool:
    """Tell whether a type holds bytes of any length."""
    return any(check(type_) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def is_stringlike(type_: pa.DataType) -> bool:
    """Tell whether a type holds strings, or bytes, which may be UTF-8."""
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return is_bytes(type_) or any(check(type_) for check in strings)


def convert(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Convert a column to the type that it has over the whole input; that of a staged text file holds text.

    Raises:
        pa.ArrowException: where a value does not fit.
    """
    if column.type == type_:
        return column
    if pa.types.is_dictionary(column.type):
        return convert(column.cast(column.type.value_type), type_)
    if is_stringlike(column.type) and is_stringlike(type_):
        return column.cast(type_, safe=False)  # bytes that are no UTF-8 stay as they are
    if pa.types.is_string(column.type) and pa.types.is_nested(type_):
        values: list[Any] = [None if value is None else json.loads(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, type_)])
    if pa.types.is_string(column.type):
        empty = pc.equal(pc.binary_length(column), 0)
        return pc.if_else(empty, pa.scalar(None, pa.string()), column).cast(type_)
    return column.cast(type_)
