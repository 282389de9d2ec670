"""The shape of a text file's column: which kinds of values it holds, over the whole file, and the
type that fits all.

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

EXACT_IN_FLOAT = 1 << 53
"""Whole numbers up to this are exact in a float64."""
MAX_DEPTH, MAX_FIELDS = 20, 256
"""Deeper objects and lists, and objects with more names, such as those that have ids for names, are
kept as JSON text: readers of Parquet refuse the one, and a column for each name is of no use to
any.
"""
_INT64, _UINT64 = 1 << 63, 1 << 64
INFERRED = {
    "csv:int64": pa.int64(),
    "csv:double": pa.float64(),
    "csv:bool": pa.bool_(),
    "csv:date32": pa.date32(),
}
"""What all values of a CSV column can be read as so that writing them again gives the same
characters.
"""


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
        """Add the kinds of values as json.loads gives them, floats as `Number`; `depth`: how often
        they are nested.
        """
        by_type: dict[type, list[Any]] = {}
        for value in values:
            by_type.setdefault(type(value), []).append(value)
        for type_, found in by_type.items():
            if type_ is int:
                self._observe_ints(min(found), max(found))
            elif issubclass(type_, float):
                overflow = any(math.isinf(value) for value in found) and type_ is Number
                self.kinds |= {"float", "huge"} if overflow else {"float"}
            elif type_ in (list, dict) and depth == MAX_DEPTH:
                self.kinds.add("deep")
            elif type_ is list:
                self.kinds.add("list")
                self.items = self.items or Shape()
                self.items.observe(chain.from_iterable(found), depth + 1)
            elif type_ is dict:
                self._observe_objects(found, depth)
            else:
                self.kinds.add({str: "string", bool: "bool", type(None): "null"}[type_])

    def _observe_objects(self, found: list[dict[str, Any]], depth: int) -> None:
        self.kinds.add("object")
        names = dict.fromkeys(chain(self.fields, *found))
        if len(names) > MAX_FIELDS:
            self.kinds.add("wide")
        if "wide" in self.kinds:
            self.fields = {}
            return
        for name in names:
            present = [value[name] for value in found if name in value]
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
        items = (
            self.items.merge(other.items)
            if self.items and other.items
            else self.items or other.items
        )
        names = dict.fromkeys([*self.fields, *other.fields])
        kinds = self.kinds | other.kinds
        if "wide" in kinds or len(names) > MAX_FIELDS:
            return Shape(kinds | {"wide"}, items)
        fields = {
            name: self.fields.get(name, Shape()).merge(other.fields.get(name, Shape()))
            for name in names
        }
        return Shape(kinds, items, fields)

    @property
    def type(self) -> pa.DataType:
        """The type of the column: the narrowest that holds each value unchanged; a string for mixed
        kinds.

        A string holds numbers as they were written, and lists and objects as JSON.
        """
        type_ = _type(self) or pa.string()
        return type_ if _leaves(type_) <= MAX_FIELDS else pa.string()

    def fits(self, type_: pa.DataType) -> bool:
        """Tell whether a column of `type_` holds each value unchanged."""
        if pa.types.is_string(type_) or not self.kinds - {"null"}:
            return True
        if self.kinds <= {"list", "null"} and pa.types.is_list(type_):
            return (self.items or Shape()).fits(type_.value_type)
        if self.kinds <= {"object", "null"} and pa.types.is_struct(type_):
            empty = {name for name, shape in self.fields.items() if not shape.kinds - {"null"}}
            return self.fields.keys() - empty <= set(type_.names) and all(
                shape.fits(type_.field(name).type)
                for name, shape in self.fields.items()
                if name in type_.names
            )
        return self.type == type_ or self.merge(_shape_of(type_)).type == type_

    def to_json(self) -> dict[str, Any]:
        """Encode it for a file."""
        found: dict[str, Any] = {"kinds": sorted(self.kinds)}
        if self.items:
            found["items"] = self.items.to_json()
        if self.fields:
            found["fields"] = {name: shape.to_json() for name, shape in self.fields.items()}
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Shape:
        """Decode what `to_json` has encoded."""
        items = cls.from_json(found["items"]) if "items" in found else None
        return cls(
            set(found["kinds"]),
            items,
            {name: cls.from_json(s) for name, s in found.get("fields", {}).items()},
        )


def _type(shape: Shape) -> pa.DataType | None:
    """Return the type, None for kinds that have none in common."""
    kinds = shape.kinds - {"null"}
    if not kinds:
        return pa.string()
    if len(kinds) == 1 and next(iter(kinds)) in INFERRED:
        return INFERRED[next(iter(kinds))]
    if kinds <= {"int", "long", "negative"}:
        return pa.int64()
    if kinds <= {"int", "long", "ulong"}:
        return pa.uint64()
    if kinds <= {"int", "negative", "float"}:
        return pa.float64()
    if kinds in ({"bool"}, {"string"}):
        return pa.bool_() if kinds == {"bool"} else pa.string()
    if kinds == {"list"}:
        items = _type(shape.items or Shape())
        return pa.list_(items) if items else None
    if kinds == {"object"} and shape.fields:
        types = {name: _type(each) for name, each in shape.fields.items()}
        return pa.struct(list(types.items())) if all(types.values()) else None
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
        return Shape({"object"}, None, {each.name: _shape_of(each.type) for each in type_})
    kinds = {
        pa.int64(): "long",
        pa.uint64(): "ulong",
        pa.float64(): "float",
        pa.bool_(): "bool",
        pa.string(): "string",
    }
    inferred = {known: name for name, known in INFERRED.items()}
    return Shape({kinds.get(type_) or inferred.get(type_, "huge")})
