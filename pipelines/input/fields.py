"""Fields of structs as texts: `doc.text` is the field text of the column doc, unless a column has
that very name.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.input.types import convert


def prefixes(path: str) -> list[str]:
    """Return the names of all columns that may hold the field that a path names."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def column_of(schema: pa.Schema, path: str) -> str:
    """Return the column that holds a field; KeyError where there is none."""
    place = _place_in(schema, path)
    if place is None:
        raise KeyError(path)
    names, _ = place
    return names[0]


def field_type(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Return the type of a field, None where there is none."""
    place = _place_in(schema, path)
    if place is None:
        return None
    _, type_ = place
    return type_


def take_field(table: pa.Table, path: str, schema: pa.Schema | None = None) -> pa.ChunkedArray:
    """Return a field of a table as a column; it is null where the struct around it is.

    Args:
        table: the table.
        path: the name of a column, or those of a column and of fields in it, with dots between.
        schema: the types of columns that are to be converted first; KeyError for a missing field.
    """
    if path in table.column_names:
        return table[path]
    schema = schema or table.schema
    place = _place_in(schema, path)
    if place is None:
        raise KeyError(path)
    (name, *fields), _ = place
    if name not in table.column_names:
        raise KeyError(path)
    column = convert(table[name], schema.field(name).type)
    for field in fields:
        column = pc.struct_field(column, [column.type.get_field_index(field)])
    return column


def describe_missing(schema: pa.Schema, path: str) -> str:
    """Say what of a path is missing, and what there is instead."""
    for name in prefixes(path):
        if name not in schema.names:
            continue
        type_ = schema.field(name).type
        rest = path[len(name) + 1 :]
        place = name
        while pa.types.is_struct(type_):
            inside = next((each for each in prefixes(rest) if each in type_.names), None)
            if inside is None:
                fields = ", ".join(type_.names)
                return f"column {place!r} has no field {rest.split('.')[0]!r}; it has {fields}"
            type_ = type_.field(inside).type
            place = f"{place}.{inside}"
            rest = rest[len(inside) + 1 :]
        return f"column {place!r} holds {type_}, which has no fields: {path!r} names one"
    return f"input has no column {path!r}; it has {', '.join(schema.names)}"


_Place = tuple[list[str], pa.DataType]
"""The names on the way to a field, and its type."""


def _place_in(schema: pa.Schema, path: str) -> _Place | None:
    """Return where a field is in the columns of a table, None where there is none."""
    return _place(dict(zip(schema.names, schema.types, strict=True)), path)


def _place(types: dict[str, pa.DataType], path: str) -> _Place | None:
    """Return where a field is: behind the longest name that leads to it."""
    for name in prefixes(path):
        if name not in types:
            continue
        type_ = types[name]
        rest = path[len(name) + 1 :]
        if not rest or pa.types.is_null(type_):  # of a column without values, all fields are null
            return [name], type_
        if not pa.types.is_struct(type_):
            continue
        inside = _place({field.name: field.type for field in type_}, rest)
        if inside is not None:
            names, type_ = inside
            return [name, *names], type_
    return None
