"""The types of columns: in an output, over files that differ, over nights, and what Parquet cannot
hold (README.md).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_Check = Callable[[pa.DataType], bool]
_LISTS: tuple[_Check, ...] = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
_EXACT_INTEGERS = {16: 11, 32: 24, 64: 53}
"""By the bits of a float: those of the whole numbers that it holds exactly."""


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type that holds the same values as `type_` and that every reader of Parquet knows.

    Views become the plain type, and so do dictionaries of other values than strings; run ends are
    decoded.
    """
    if pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    if pa.types.is_dictionary(type_):
        values = type_.value_type
        return type_ if _is_plain_string(values) else plain_type(values)
    return _with_children(type_, plain_type)


def stored_type(type_: pa.DataType) -> pa.DataType:
    """Return the type that a column has in an output: the plain one, and text where it has no value
    at all.

    A column without a value says nothing of its type: a later night may bring one, of any type.
    """
    if pa.types.is_null(type_):
        return pa.string()
    type_ = plain_type(type_)
    return _with_children(type_, stored_type) if pa.types.is_nested(type_) else type_


def _with_children(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a nested type with `change` applied to the types in it, views of lists as lists;
    others as they are.

    Whatever is in it may be null: a file may lack it.
    """
    if pa.types.is_struct(type_):
        return pa.struct(
            [field.with_type(change(field.type)).with_nullable(True) for field in type_]
        )
    if pa.types.is_map(type_):
        items = type_.item_field.with_type(change(type_.item_type)).with_nullable(True)
        return pa.map_(type_.key_field.with_type(change(type_.key_type)), items, type_.keys_sorted)
    if not is_list(type_):
        return type_
    items = type_.value_field.with_type(change(type_.value_type)).with_nullable(True)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(items, type_.list_size)
    return pa.large_list(items) if _is_large(type_) else pa.list_(items)


@cache
def why_not_stored(type_: pa.DataType) -> str | None:
    """Return why Parquet cannot hold a column of `type_`, None where it can: it is tried."""
    try:
        content = io.BytesIO()
        pq.write_table(pa.table({"x": pa.array([], type_)}), content)
        pq.read_schema(pa.BufferReader(content.getvalue()))
    except (pa.ArrowException, OSError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the type in which the values of both meet, None where there is none; both are plain
    types.

    Kinds of strings meet in string; whole numbers, floats, decimals and times in the wider one of
    their kind, whole numbers and floats in double; lists, maps and structs meet field by field;
    other plain types that do not meet become text, as Arrow writes it. `is_exact` says whether
    every value of a type has a place there, whatever it is.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = (each.value_type if pa.types.is_dictionary(each) else each for each in (a, b))
    if a == b:
        return a
    if is_stringlike(a) and is_stringlike(b):
        large = any(
            pa.types.is_large_string(each) or pa.types.is_large_binary(each) for each in (a, b)
        )
        if is_bytes(a) and is_bytes(b):
            return pa.large_binary() if large else pa.binary()
        return pa.large_string() if large else pa.string()
    if pa.types.is_nested(a) or pa.types.is_nested(b):
        return _common_nested(a, b)
    if _is_fixed_bytes(a) or _is_fixed_bytes(b):
        both_bytes = all(_is_fixed_bytes(each) or is_bytes(each) for each in (a, b))
        return pa.binary() if both_bytes else None
    if any(is_bytes(each) or isinstance(each, pa.BaseExtensionType) for each in (a, b)):
        return None  # no text form
    return wider(a, b) or pa.string()


def _common_nested(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if is_list(a) and is_list(b):
        items = common_type(a.value_type, b.value_type)
        if items is None:
            return None
        field = a.value_field.with_type(items).with_nullable(True)
        if (
            pa.types.is_fixed_size_list(a)
            and pa.types.is_fixed_size_list(b)
            and a.list_size == b.list_size
        ):
            return pa.list_(field, a.list_size)
        return pa.large_list(field) if _is_large(a) or _is_large(b) else pa.list_(field)
    if pa.types.is_map(a) and pa.types.is_map(b):
        keys, items = common_type(a.key_type, b.key_type), common_type(a.item_type, b.item_type)
        return pa.map_(keys, items) if keys is not None and items is not None else None
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _common_struct(a, b)
    return None


def _common_struct(a: pa.StructType, b: pa.StructType) -> pa.DataType | None:
    """Return the struct with the fields of both, those of the first one first."""
    types = dict[str, pa.DataType]()
    for struct in (a, b):
        if len(set(struct.names)) < struct.num_fields:
            return None  # two fields of one name: which would be which?
        for field in struct:
            common = common_type(types.get(field.name, field.type), field.type)
            if common is None:
                return None
            types[field.name] = common
    return pa.struct(list(types.items()))


def wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the wider of two plain types of one kind, None where they are of two kinds, or none
    holds both.
    """
    whole_and_float = {pa.types.is_integer, pa.types.is_floating}
    if {_kind(a), _kind(b)} == whole_and_float:
        return pa.float64()
    if _kind(a) is None or _kind(a) != _kind(b):
        return None
    if pa.types.is_timestamp(a) and a.tz != b.tz:
        return None
    try:
        schemas = [pa.schema([("", type_)]) for type_ in (a, b)]
        (field,) = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None
    if pa.types.is_integer(a) and not (is_exact(a, field.type) and is_exact(b, field.type)):
        return None
    return field.type


def _kind(type_: pa.DataType) -> _Check | None:
    """Return the check of the kind of values that a plain type holds; values of one kind can be
    compared.
    """
    kinds = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration),
    )
    return next((kind for kind in kinds if kind(type_)), None)


def is_exact(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Tell whether `wide` holds every value of `narrow` unchanged; if not, the values have to be
    looked at (`fits`).
    """
    if narrow == wide or pa.types.is_null(narrow):
        return True
    if pa.types.is_dictionary(narrow) or pa.types.is_run_end_encoded(narrow):
        return is_exact(narrow.value_type, wide)
    if is_list(narrow) and is_list(wide):
        same_size = not pa.types.is_fixed_size_list(wide) or pa.types.is_fixed_size_list(narrow)
        return same_size and is_exact(narrow.value_type, wide.value_type)
    if pa.types.is_map(narrow) and pa.types.is_map(wide):
        return is_exact(narrow.key_type, wide.key_type) and is_exact(
            narrow.item_type, wide.item_type
        )
    if pa.types.is_struct(narrow) and pa.types.is_struct(wide):
        return all(
            field.name in wide.names and is_exact(field.type, wide.field(field.name).type)
            for field in narrow
        )
    if is_stringlike(wide):
        if is_stringlike(narrow):
            return is_bytes(wide) or not is_bytes(narrow)  # bytes may be no UTF-8
        return not is_bytes(wide) and not pa.types.is_nested(narrow)
    return _is_exact_plain(narrow, wide)


def _is_exact_plain(narrow: pa.DataType, wide: pa.DataType) -> bool:
    if pa.types.is_integer(narrow) and pa.types.is_integer(wide):
        if pa.types.is_signed_integer(wide) == pa.types.is_signed_integer(narrow):
            return wide.bit_width >= narrow.bit_width
        return pa.types.is_signed_integer(wide) and wide.bit_width > narrow.bit_width
    if pa.types.is_integer(narrow) and pa.types.is_floating(wide):
        return narrow.bit_width <= _EXACT_INTEGERS[wide.bit_width]
    if pa.types.is_floating(narrow) and pa.types.is_floating(wide):
        return wide.bit_width >= narrow.bit_width
    if pa.types.is_decimal(narrow) and pa.types.is_decimal(wide):
        whole_digits = wide.precision - wide.scale >= narrow.precision - narrow.scale
        return whole_digits and wide.scale >= narrow.scale
    # A day or a time of day has a place in every finer unit; a timestamp may be out of its range.
    plain_times = (pa.types.is_date, pa.types.is_time)
    return (
        any(kind(narrow) and kind(wide) for kind in plain_times)
        and wide.bit_width >= narrow.bit_width
    )


def _is_fixed_bytes(type_: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(type_)


def is_list(type_: pa.DataType) -> bool:
    """Tell whether a type holds lists: plain or large ones, of a fixed size, or views."""
    return any(check(type_) for check in _LISTS)


def _is_large(type_: pa.DataType) -> bool:
    return pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_)


def is_bytes(type_: pa.DataType) -> bool:
    """Tell whether a type holds bytes of any length."""
    return any(
        check(type_)
        for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def is_stringlike(type_: pa.DataType) -> bool:
    """Tell whether a type holds strings, or bytes, which may be UTF-8."""
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return is_bytes(type_) or any(check(type_) for check in strings)


def same_kind(a: pa.DataType, b: pa.DataType) -> bool:
    """Tell whether values of both types are of one kind, so that a value may fit either: no text
    among numbers.
    """
    common = common_type(a, b)
    if common is None:
        return False
    if is_list(common):
        return same_kind(a.value_type, b.value_type)
    if pa.types.is_map(common):
        return same_kind(a.key_type, b.key_type) and same_kind(a.item_type, b.item_type)
    if pa.types.is_struct(common):
        return all(
            same_kind(a.field(name).type, b.field(name).type) for name in a.names if name in b.names
        )
    a, b = (each.value_type if pa.types.is_dictionary(each) else each for each in (a, b))
    both_strings = is_stringlike(a) and is_stringlike(b)
    return a == b or both_strings or _is_fixed_bytes(a) or wider(a, b) is not None


def fits(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    """Tell whether a column of `type_` holds each value of `column` unchanged: it is converted
    there and back.
    """
    try:
        there = convert(column, type_)
        back = convert(there, stored_type(column.type))
        values = convert(column, stored_type(column.type))
    except (pa.ArrowException, ValueError):
        return False
    if _holds_bytes(values.type) and not _holds_bytes(there.type):
        try:
            there.validate(full=True)
        except pa.ArrowInvalid:  # bytes that are no UTF-8
            return False
    if back.equals(values):
        return True
    if pa.types.is_nested(values.type) or not pa.types.is_floating(values.type):
        return False
    both_nan = pc.and_(pc.is_nan(back), pc.is_nan(values))
    return pc.all(pc.or_(pc.equal(back, values), both_nan)).as_py() in (True, None)


def _holds_bytes(type_: pa.DataType) -> bool:
    return is_bytes(type_) or (pa.types.is_dictionary(type_) and is_bytes(type_.value_type))


def convert(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Convert a column to the type that it has over the whole input; that of a staged text file
    holds text.

    Raises:
        pa.ArrowException: where a value does not fit.
    """
    if column.type == type_ and not any(_has_null_values(chunk) for chunk in column.chunks):
        return column
    if pa.types.is_string(column.type) and not is_stringlike(type_):
        return _from_text(column, type_)
    chunks = [_plain(chunk) for chunk in column.chunks]
    safe = not (
        is_stringlike(column.type) and is_stringlike(type_)
    )  # bytes that are no UTF-8 stay as they are
    return pa.chunked_array([chunk.cast(type_, safe=safe) for chunk in chunks], type_)


def _from_text(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Read the values of a staged text file's column, in which numbers are written out and others
    are JSON.
    """
    if pa.types.is_nested(type_):
        values: list[Any] = [
            None if value is None else json.loads(value) for value in column.to_pylist()
        ]
        return pa.chunked_array([pa.array(values, type_)])
    empty = pc.equal(pc.binary_length(column), 0)
    return pc.if_else(empty, pa.scalar(None, pa.string()), column).cast(type_)


def _plain(array: pa.Array) -> pa.Array:
    """Return an array without run ends, views of lists and dictionaries of what is no string, which
    no cast takes.

    That of list views, where a list is null, gives other values (Arrow 26).
    """
    type_ = array.type
    if _has_null_values(array):
        return _plain(_decoded(array))
    if type_ == _plain_type(type_):
        return array
    if pa.types.is_run_end_encoded(type_):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_dictionary(type_):
        return _plain_strings(_plain(array.dictionary)).take(array.indices)
    if pa.types.is_struct(type_):
        fields = [_plain(array.field(i)) for i in range(type_.num_fields)]
        return pa.StructArray.from_arrays(
            fields, fields=list(_plain_type(type_)), mask=array.is_null()
        )
    if pa.types.is_map(type_):
        entries = array.cast(pa.list_(pa.struct([type_.key_field, type_.item_field])))
        plain = _plain_list(entries)
        keys, items = plain.values.flatten()
        return pa.MapArray.from_arrays(plain.offsets, keys, items, mask=array.is_null()).cast(
            _plain_type(type_)
        )
    return _plain_list(array)


def _plain_strings(array: pa.Array) -> pa.Array:
    """Return strings or bytes of a view as plain ones, unchecked."""
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string(), safe=False)
    return (
        array.cast(pa.large_binary(), safe=False) if pa.types.is_binary_view(array.type) else array
    )


def _has_null_values(array: Any) -> bool:
    """Tell whether a dictionary in an array has a null among its values, which Parquet does not
    take.
    """
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return array.dictionary.null_count > 0
    if pa.types.is_struct(type_):
        return any(_has_null_values(array.field(i)) for i in range(type_.num_fields))
    if pa.types.is_map(type_):
        return _has_null_values(array.keys) or _has_null_values(array.items)
    return is_list(type_) and _has_null_values(array.values)


def _decoded(array: Any) -> pa.Array:
    """Return an array with the values of its dictionaries in place."""
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return _plain_strings(_plain(array.dictionary)).take(array.indices)
    if pa.types.is_struct(type_):
        fields = [_decoded(array.field(i)) for i in range(type_.num_fields)]
        return pa.StructArray.from_arrays(fields, names=type_.names, mask=array.is_null())
    return array.cast(_undictionaried(type_))


def _undictionaried(type_: pa.DataType) -> pa.DataType:
    return (
        type_.value_type
        if pa.types.is_dictionary(type_)
        else _with_children(type_, _undictionaried)
    )


def _plain_list(array: Any) -> pa.Array:
    """Return lists of any kind as plain ones of plain values."""
    type_ = _plain_type(array.type)
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    starts = pc.if_else(array.is_valid(), pc.subtract(ends, lengths), pa.scalar(None, pa.int64()))
    last = ends[-1:] if len(ends) else pa.array([0], pa.int64())
    values = _plain(array.flatten())  # without those of null lists
    return pa.LargeListArray.from_arrays(pa.concat_arrays([starts, last]), values).cast(type_)


@cache
def _plain_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_run_end_encoded(type_):
        return _plain_type(type_.value_type)
    if pa.types.is_dictionary(type_):
        return type_ if _is_plain_string(type_.value_type) else _plain_type(type_.value_type)
    return _with_children(type_, _plain_type)


def _is_plain_string(type_: pa.DataType) -> bool:
    return is_stringlike(type_) and not (
        pa.types.is_string_view(type_) or pa.types.is_binary_view(type_)
    )
