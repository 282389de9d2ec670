"""The types of columns: in an output, over files that differ, and over nights (README.md)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache

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
_KINDS: tuple[_Check, ...] = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration),
)
_BYTES: tuple[_Check, ...] = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)
_STRINGS: tuple[_Check, ...] = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
)


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
    """Return the type that a column has in an output: the plain one, or text where it has no value.

    A column without a value says nothing of its type: a later night may bring one, of any type.
    """
    if pa.types.is_null(type_):
        return pa.string()
    type_ = plain_type(type_)
    if not pa.types.is_nested(type_):
        return type_
    return _with_children(type_, stored_type)


def _with_children(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a nested type with `change` applied to the types in it, with views of lists as lists.

    Other types stay as they are. Whatever is in it may be null: a file may lack it.
    """

    def changed(field: pa.Field) -> pa.Field:
        return field.with_type(change(field.type)).with_nullable(True)

    if pa.types.is_struct(type_):
        return pa.struct([changed(field) for field in type_])
    if pa.types.is_map(type_):
        keys = type_.key_field.with_type(change(type_.key_type))  # which are never null
        return pa.map_(keys, changed(type_.item_field), type_.keys_sorted)
    if not is_list(type_):
        return type_
    items = changed(type_.value_field)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(items, type_.list_size)
    return pa.large_list(items) if _is_large(type_) else pa.list_(items)


@cache
def why_not_stored(type_: pa.DataType) -> str | None:
    """Return why Parquet cannot hold a column of `type_`, None where it can: it is tried."""
    content = io.BytesIO()
    try:
        empty = pa.table({"x": pa.array([], type_)})
        pq.write_table(empty, content)
        pq.read_schema(pa.BufferReader(content.getvalue()))
    except (pa.ArrowException, OSError) as error:
        lines = str(error).splitlines()
        return lines[0] if lines else type(error).__name__
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
    a = _decoded_type(a)
    b = _decoded_type(b)
    if a == b:
        return a
    if is_stringlike(a) and is_stringlike(b):
        is_large = _is_large_string(a) or _is_large_string(b)
        if is_bytes(a) and is_bytes(b):
            return pa.large_binary() if is_large else pa.binary()
        return pa.large_string() if is_large else pa.string()
    if pa.types.is_nested(a) or pa.types.is_nested(b):
        return _common_nested(a, b)
    if _is_fixed_bytes(a) or _is_fixed_bytes(b):
        both_bytes = all(_is_fixed_bytes(each) or is_bytes(each) for each in (a, b))
        return pa.binary() if both_bytes else None
    if _has_no_text_form(a) or _has_no_text_form(b):
        return None
    return wider(a, b) or pa.string()


def _decoded_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_large_string(type_: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(type_) or pa.types.is_large_binary(type_))


def _has_no_text_form(type_: pa.DataType) -> bool:
    return is_bytes(type_) or isinstance(type_, pa.BaseExtensionType)


def _common_nested(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if is_list(a) and is_list(b):
        return _common_list(a, b)
    if pa.types.is_map(a) and pa.types.is_map(b):
        keys = common_type(a.key_type, b.key_type)
        items = common_type(a.item_type, b.item_type)
        if keys is None or items is None:
            return None
        return pa.map_(keys, items)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _common_struct(a, b)
    return None


def _common_list(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    items = common_type(a.value_type, b.value_type)
    if items is None:
        return None
    field = a.value_field.with_type(items).with_nullable(True)
    both_fixed = pa.types.is_fixed_size_list(a) and pa.types.is_fixed_size_list(b)
    if both_fixed and a.list_size == b.list_size:
        return pa.list_(field, a.list_size)
    if _is_large(a) or _is_large(b):
        return pa.large_list(field)
    return pa.list_(field)


def _common_struct(a: pa.StructType, b: pa.StructType) -> pa.DataType | None:
    """Return the struct with the fields of both, those of the first one first."""
    types: dict[str, pa.DataType] = {}
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
    """Return the wider of two plain types of one kind, None where neither holds both."""
    kind = _kind(a)
    other_kind = _kind(b)
    if {kind, other_kind} == {pa.types.is_integer, pa.types.is_floating}:
        return pa.float64()
    if kind is None or kind != other_kind:
        return None
    if pa.types.is_timestamp(a) and a.tz != b.tz:
        return None
    schemas = [pa.schema([("", type_)]) for type_ in (a, b)]
    try:
        (field,) = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None
    # Arrow takes uint64 for int64 beside uint64, which has no place for what is below 0.
    if pa.types.is_integer(a) and not (is_exact(a, field.type) and is_exact(b, field.type)):
        return None
    return field.type


def _kind(type_: pa.DataType) -> _Check | None:
    """Return the check of the kind of a plain type's values; those of one kind can be compared."""
    for kind in _KINDS:
        if kind(type_):
            return kind
    return None


def is_exact(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Tell whether `wide` holds every value of `narrow` unchanged.

    If not, the values have to be looked at (`fits`).
    """
    if narrow == wide or pa.types.is_null(narrow):
        return True
    if pa.types.is_dictionary(narrow) or pa.types.is_run_end_encoded(narrow):
        return is_exact(narrow.value_type, wide)
    if is_list(narrow) and is_list(wide):
        if pa.types.is_fixed_size_list(wide) and not pa.types.is_fixed_size_list(narrow):
            return False
        return is_exact(narrow.value_type, wide.value_type)
    if pa.types.is_map(narrow) and pa.types.is_map(wide):
        if not is_exact(narrow.key_type, wide.key_type):
            return False
        return is_exact(narrow.item_type, wide.item_type)
    if pa.types.is_struct(narrow) and pa.types.is_struct(wide):
        for field in narrow:
            if field.name not in wide.names:
                return False
            if not is_exact(field.type, wide.field(field.name).type):
                return False
        return True
    if is_stringlike(wide):
        if is_stringlike(narrow):
            return is_bytes(wide) or not is_bytes(narrow)  # bytes may not be UTF-8
        return not is_bytes(wide) and not pa.types.is_nested(narrow)
    return _is_exact_plain(narrow, wide)


def _is_exact_plain(narrow: pa.DataType, wide: pa.DataType) -> bool:
    kind = _kind(narrow)
    wide_kind = _kind(wide)
    if kind is pa.types.is_integer and wide_kind is pa.types.is_floating:
        exact_bits = _EXACT_INTEGERS[wide.bit_width]
        return bool(narrow.bit_width <= exact_bits)
    if kind != wide_kind:
        return False
    if kind is pa.types.is_integer:
        if pa.types.is_signed_integer(wide) == pa.types.is_signed_integer(narrow):
            return bool(wide.bit_width >= narrow.bit_width)
        # Of two that differ in their sign, a wider signed one holds all.
        return bool(pa.types.is_signed_integer(wide) and wide.bit_width > narrow.bit_width)
    if kind is pa.types.is_decimal:
        whole_digits = narrow.precision - narrow.scale
        wide_whole_digits = wide.precision - wide.scale
        return bool(wide_whole_digits >= whole_digits and wide.scale >= narrow.scale)
    # A day or a time of day has a place in every finer unit; a timestamp may be out of its range.
    if kind in (pa.types.is_floating, pa.types.is_date, pa.types.is_time):
        return bool(wide.bit_width >= narrow.bit_width)
    return False


def _is_fixed_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_binary(type_))


def is_list(type_: pa.DataType) -> bool:
    """Tell whether a type holds lists: plain or large ones, of a fixed size, or views."""
    return any(check(type_) for check in _LISTS)


def _is_large(type_: pa.DataType) -> bool:
    return bool(pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_))


def is_bytes(type_: pa.DataType) -> bool:
    """Tell whether a type holds bytes of any length."""
    return any(check(type_) for check in _BYTES)


def is_stringlike(type_: pa.DataType) -> bool:
    """Tell whether a type holds strings, or bytes, which may be UTF-8."""
    return is_bytes(type_) or any(check(type_) for check in _STRINGS)


def same_kind(a: pa.DataType, b: pa.DataType) -> bool:
    """Tell whether values of both types are of one kind: a text among numbers is not.

    A value may then fit either type.
    """
    common = common_type(a, b)
    if common is None:
        return False
    if is_list(common):
        return same_kind(a.value_type, b.value_type)
    if pa.types.is_map(common):
        if not same_kind(a.key_type, b.key_type):
            return False
        return same_kind(a.item_type, b.item_type)
    if pa.types.is_struct(common):
        for name in a.names:
            if name in b.names and not same_kind(a.field(name).type, b.field(name).type):
                return False
        return True
    a = _decoded_type(a)
    b = _decoded_type(b)
    if a == b or _is_fixed_bytes(a):
        return True
    if is_stringlike(a) and is_stringlike(b):
        return True
    return wider(a, b) is not None


def fits(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    """Tell whether a column of `type_` holds each value of `column` unchanged.

    It is converted there and back.
    """
    plain = stored_type(column.type)
    try:
        there = convert(column, type_)
        back = convert(there, plain)
        values = convert(column, plain)
    except (pa.ArrowException, ValueError):
        return False
    if _holds_bytes(values.type) and not _holds_bytes(there.type):
        try:
            there.validate(full=True)
        except pa.ArrowInvalid:  # bytes that are not UTF-8
            return False
    if back.equals(values):
        return True
    # NaN is not equal to itself.
    if pa.types.is_nested(values.type) or not pa.types.is_floating(values.type):
        return False
    both_nan = pc.and_(pc.is_nan(back), pc.is_nan(values))
    are_same = pc.all(pc.or_(pc.equal(back, values), both_nan)).as_py()
    return are_same is not False  # None: all are null


def _holds_bytes(type_: pa.DataType) -> bool:
    return is_bytes(type_) or (pa.types.is_dictionary(type_) and is_bytes(type_.value_type))


def convert(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Convert a column, of a staged text file one of texts, to its type over the whole input.

    Raises:
        pa.ArrowException: where a value does not fit.
    """
    if column.type == type_ and not any(_has_null_values(chunk) for chunk in column.chunks):
        return column
    if pa.types.is_string(column.type) and not is_stringlike(type_):
        return _from_text(column, type_)
    chunks = [_plain(chunk) for chunk in column.chunks]
    # Among strings and bytes, what is not UTF-8 stays as it is.
    is_checked = not (is_stringlike(column.type) and is_stringlike(type_))
    return pa.chunked_array([chunk.cast(type_, safe=is_checked) for chunk in chunks], type_)


def _from_text(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Read the texts of a staged file: numbers as they are written, lists and objects as JSON."""
    if pa.types.is_nested(type_):
        texts = column.to_pylist()
        values = [None if text is None else json.loads(text) for text in texts]
        return pa.chunked_array([pa.array(values, type_)])
    is_empty = pc.equal(pc.binary_length(column), 0)
    texts_or_null = pc.if_else(is_empty, pa.scalar(None, pa.string()), column)
    return texts_or_null.cast(type_)


def _plain(array: pa.Array) -> pa.Array:
    """Return an array without run ends, views of lists, and dictionaries of other than strings.

    No cast takes these, and that of list views gives other values where a list is null (Arrow 26).
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
        children = [_plain(array.field(i)) for i in range(type_.num_fields)]
        fields = list(_plain_type(type_))
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if pa.types.is_map(type_):
        entry = pa.struct([type_.key_field, type_.item_field])
        entries = _plain_list(array.cast(pa.list_(entry)))
        keys, items = entries.values.flatten()
        plain = pa.MapArray.from_arrays(entries.offsets, keys, items, mask=array.is_null())
        return plain.cast(_plain_type(type_))
    return _plain_list(array)


def _plain_strings(array: pa.Array) -> pa.Array:
    """Return strings or bytes of a view as plain ones, unchecked."""
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string(), safe=False)
    if pa.types.is_binary_view(array.type):
        return array.cast(pa.large_binary(), safe=False)
    return array


def _has_null_values(array: pa.Array) -> bool:
    """Tell whether a dictionary in an array has a null among its values: Parquet takes none."""
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return bool(array.dictionary.null_count > 0)
    if pa.types.is_struct(type_):
        return any(_has_null_values(array.field(i)) for i in range(type_.num_fields))
    if pa.types.is_map(type_):
        return _has_null_values(array.keys) or _has_null_values(array.items)
    return is_list(type_) and _has_null_values(array.values)


def _decoded(array: pa.Array) -> pa.Array:
    """Return an array with the values of its dictionaries in place."""
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return _plain_strings(_plain(array.dictionary)).take(array.indices)
    if pa.types.is_struct(type_):
        fields = [_decoded(array.field(i)) for i in range(type_.num_fields)]
        return pa.StructArray.from_arrays(fields, names=type_.names, mask=array.is_null())
    return array.cast(_undictionaried(type_))


def _undictionaried(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return type_.value_type
    return _with_children(type_, _undictionaried)


def _plain_list(array: pa.Array) -> pa.Array:
    """Return lists of any kind as plain ones of plain values."""
    values = _plain(array.flatten())  # without those of null lists
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    # Of a null list, the offset is null.
    starts = pc.subtract(ends, lengths)
    starts = pc.if_else(array.is_valid(), starts, pa.scalar(None, pa.int64()))
    last = ends[-1:] if len(ends) else pa.array([0], pa.int64())
    offsets = pa.concat_arrays([starts, last])
    return pa.LargeListArray.from_arrays(offsets, values).cast(_plain_type(array.type))


@cache
def _plain_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_run_end_encoded(type_):
        return _plain_type(type_.value_type)
    if pa.types.is_dictionary(type_):
        values = type_.value_type
        return type_ if _is_plain_string(values) else _plain_type(values)
    return _with_children(type_, _plain_type)


def _is_plain_string(type_: pa.DataType) -> bool:
    is_view = pa.types.is_string_view(type_) or pa.types.is_binary_view(type_)
    return is_stringlike(type_) and not is_view
