"""The shape of a text file's column: the kinds of values in the whole file, and a type for all.

Shapes of files are merged before a type is chosen, so that no type is guessed from the first rows
and no value changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from modernbert.stored import Json

EXACT_IN_FLOAT = 1 << 53
"""Whole numbers up to this are exact in a float64."""
MAX_DEPTH, MAX_FIELDS = 20, 256
"""Deeper values, which readers of Parquet refuse, are kept as JSON text, and so are objects with
more names: of ids, for example, nobody wants a column each.
"""
_INT64, _UINT64 = 1 << 63, 1 << 64
_SIMPLE_KINDS = {str: "string", bool: "bool", type(None): "null"}
INFERRED = {
    "csv:int64": pa.int64(),
    "csv:double": pa.float64(),
    "csv:bool": pa.bool_(),
    "csv:date32": pa.date32(),
}
"""The types as which a CSV column may be read, where writing gives the same characters again."""


class Number(float):
    """A number of JSON with a fraction or an exponent, which remembers how it was written."""

    written: str

    def __new__(cls, written: str) -> Number:
        """Read the number."""
        number = super().__new__(cls, written)
        number.written = written
        return number


@dataclass
class Shape:
    """The kinds of values that a column holds.

    null, bool, string, list, object; of whole numbers int (exact in a float64), long (in 64 bits),
    ulong (in 64 bits without a sign), huge, and negative beside these; float, and huge for one that
    a float64 cannot hold; csv:* for what a CSV column can be read as; deep for what is nested more
    than MAX_DEPTH times, wide for over MAX_FIELDS names.
    """

    kinds: set[str] = field(default_factory=set)
    items: Shape | None = None
    """The shape of the elements of lists."""
    fields: dict[str, Shape] = field(default_factory=dict)
    """The shapes of the fields of objects."""

    def observe(self, values: Iterable[Any], depth: int = 0) -> None:
        """Add the kinds of values as json.loads gives them, floats as `Number`.

        `depth`: how often they are nested.
        """
        by_type: dict[type, list[Any]] = {}  # values of JSON
        for value in values:
            by_type.setdefault(type(value), []).append(value)
        for type_, group in by_type.items():
            if type_ is int:
                self._observe_ints(min(group), max(group))
            elif issubclass(type_, float):
                self.kinds.add("float")
                # NaN and Infinity of Python's JSON are floats, too; a Number is one with digits.
                if type_ is Number and any(math.isinf(value) for value in group):
                    self.kinds.add("huge")
            elif type_ in (list, dict) and depth == MAX_DEPTH:
                self.kinds.add("deep")
            elif type_ is list:
                self.kinds.add("list")
                if self.items is None:
                    self.items = Shape()
                self.items.observe(chain.from_iterable(group), depth + 1)
            elif type_ is dict:
                self._observe_objects(group, depth)
            else:
                self.kinds.add(_SIMPLE_KINDS[type_])

    def _observe_objects(self, objects: list[Json], depth: int) -> None:
        self.kinds.add("object")
        names = dict.fromkeys(chain(self.fields, *objects))
        if len(names) > MAX_FIELDS:
            self.kinds.add("wide")
        if "wide" in self.kinds:
            self.fields = {}
            return
        for name in names:
            present = [value[name] for value in objects if name in value]
            self.fields.setdefault(name, Shape()).observe(present, depth + 1)

    def _observe_ints(self, least: int, most: int) -> None:
        if least < 0:
            self.kinds.add("negative")
        for number in (least, most):
            if abs(number) <= EXACT_IN_FLOAT:
                self.kinds.add("int")
            elif -_INT64 <= number < _INT64:
                self.kinds.add("long")
            else:
                self.kinds.add("ulong" if 0 <= number < _UINT64 else "huge")

    def merge(self, other: Shape) -> Shape:
        """Return the shape of a column that holds the values of both."""
        items = self.items or other.items
        if self.items and other.items:
            items = self.items.merge(other.items)
        names = dict.fromkeys([*self.fields, *other.fields])
        kinds = self.kinds | other.kinds
        if "wide" in kinds or len(names) > MAX_FIELDS:
            return Shape(kinds | {"wide"}, items)
        fields: dict[str, Shape] = {}
        for name in names:
            own = self.fields.get(name, Shape())
            fields[name] = own.merge(other.fields.get(name, Shape()))
        return Shape(kinds, items, fields)

    @property
    def type(self) -> pa.DataType:
        """The type of the column: the narrowest that holds each value, a string for mixed kinds.

        A string holds numbers as they were written, and lists and objects as JSON.
        """
        type_ = _type(self)
        if type_ is None or _leaves(type_) > MAX_FIELDS:
            return pa.string()
        return type_

    def fits(self, type_: pa.DataType) -> bool:
        """Tell whether a column of `type_` holds each value unchanged."""
        if pa.types.is_string(type_) or not self._has_values:
            return True
        if self.kinds <= {"list", "null"} and pa.types.is_list(type_):
            items = self.items or Shape()
            return items.fits(type_.value_type)
        if self.kinds <= {"object", "null"} and pa.types.is_struct(type_):
            for name, shape in self.fields.items():
                if name in type_.names:
                    if not shape.fits(type_.field(name).type):
                        return False
                elif shape._has_values:  # of a field that the type lacks
                    return False
            return True
        if self.type == type_:
            return True
        with_type = self.merge(_shape_of(type_))
        return bool(with_type.type == type_)

    @property
    def _has_values(self) -> bool:
        return bool(self.kinds - {"null"})

    def to_json(self) -> Json:
        """Encode it for a file."""
        content: Json = {"kinds": sorted(self.kinds)}
        if self.items:
            content["items"] = self.items.to_json()
        if self.fields:
            content["fields"] = {name: shape.to_json() for name, shape in self.fields.items()}
        return content

    @classmethod
    def from_json(cls, content: Json) -> Shape:
        """Decode what `to_json` has encoded."""
        items = None
        if "items" in content:
            items = cls.from_json(content["items"])
        fields = content.get("fields", {})
        shapes = {name: cls.from_json(shape) for name, shape in fields.items()}
        return cls(set(content["kinds"]), items, shapes)


def _type(shape: Shape) -> pa.DataType | None:
    """Return the type, None for kinds that have none in common."""
    kinds = shape.kinds - {"null"}
    if not kinds:
        return pa.string()
    if len(kinds) == 1:
        (kind,) = kinds
        if kind in INFERRED:
            return INFERRED[kind]
    if kinds <= {"int", "long", "negative"}:
        return pa.int64()
    if kinds <= {"int", "long", "ulong"}:
        return pa.uint64()
    if kinds <= {"int", "negative", "float"}:
        return pa.float64()
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"string"}:
        return pa.string()
    if kinds == {"list"}:
        items = _type(shape.items or Shape())
        return None if items is None else pa.list_(items)
    if kinds == {"object"} and shape.fields:
        fields: list[tuple[str, pa.DataType]] = []
        for name, each in shape.fields.items():
            type_ = _type(each)
            if type_ is None:
                return None
            fields.append((name, type_))
        return pa.struct(fields)
    return None


def _leaves(type_: pa.DataType) -> int:
    """Count the columns that a type has in a Parquet file."""
    if not pa.types.is_nested(type_):
        return 1
    return sum(_leaves(type_.field(i).type) for i in range(type_.num_fields))


def _shape_of(type_: pa.DataType) -> Shape:
    """Return a shape whose values fill a column of one of the types that shapes have."""
    if pa.types.is_list(type_):
        return Shape({"list"}, _shape_of(type_.value_type))
    if pa.types.is_struct(type_):
        fields = {each.name: _shape_of(each.type) for each in type_}
        return Shape({"object"}, None, fields)
    kinds = {
        pa.int64(): "long",
        pa.uint64(): "ulong",
        pa.float64(): "float",
        pa.bool_(): "bool",
        pa.string(): "string",
    }
    if type_ in kinds:
        return Shape({kinds[type_]})
    inferred = {known: name for name, known in INFERRED.items()}
    return Shape({inferred.get(type_, "huge")})
