"""The columns of an input: the type of each over all files, and the keys of folders among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.input.formats import FORMATS
from pipelines.input.inspection import Inspection
from pipelines.input.partitions import Partitions, hive_partitions
from pipelines.input.shapes import Shape
from pipelines.input.shards import Reading
from pipelines.input.types import (
    common_type,
    fits,
    is_exact,
    is_stringlike,
    plain_type,
    same_kind,
    stored_type,
    why_not_stored,
)

_SHOWN_CHARACTERS = 120


def partition(found: Inspection) -> Partitions:
    """Read the hive partitions of the input's files."""
    paths = [path for path in found.versions if path not in found.broken]
    earlier = found.earlier.schema if found.earlier else None
    return hive_partitions(found.found, paths, earlier, any_digits=found.has_former_names)


def check_keys(found: Inspection, types: dict[str, pa.DataType], keys: list[str]) -> None:
    """Raise UserError for a key of folders that is a column of files, too: which of the two values
    is right?
    """
    earlier = (
        set(found.earlier.schema.names) if found.earlier else set()
    )  # it has the keys among its columns
    columns = {name.casefold(): name for name in types if name not in earlier}
    for key in keys:
        column = columns.get(key.casefold())
        if column is not None and found.is_wanted(key):
            raise UserError(
                f"input has the column {column!r} and folders {key}=…, whose values may differ: "
                "rename one, or leave "
                f"{key} out with --keep-columns"
            )


def unify(found: Inspection) -> dict[str, pa.DataType]:
    """Return the columns of all known files; a file whose columns do not meet those of the files
    before it is broken.

    A column that the job neither reads nor keeps may have any type, in each file another.
    """
    earlier = {each.name: each.type for each in found.earlier.schema} if found.earlier else {}
    fixed = {name: type_ for name, type_ in earlier.items() if not pa.types.is_null(type_)}
    shapes: dict[str, Shape] = {}
    meeting = _Meeting(found, fixed, dict(fixed))
    for path, columns in found.columns.items():
        if path in found.broken or not found.scans[path].rows:
            continue
        misfit = (
            _misfit_shape(found, columns, fixed)
            if isinstance(columns, dict)
            else meeting.add(path, columns)
        )
        if misfit:
            found.broken[path] = misfit
        elif isinstance(columns, dict):
            for name, shape in columns.items():
                shapes[name] = shapes.get(name, Shape()).merge(shape)
    # A column that has had no value in this output yet, and has none now, keeps its type there.
    types = {
        name: type_ if type_ == earlier.get(name) else stored_type(type_)
        for name, type_ in meeting.types.items()
    }
    return types | {name: shape.type for name, shape in shapes.items() if name not in fixed}


def _misfit_shape(
    found: Inspection, columns: dict[str, Shape], fixed: dict[str, pa.DataType]
) -> str | None:
    for name, shape in columns.items():
        if name in fixed and found.is_wanted(name) and not shape.fits(fixed[name]):
            return (
                f"column {name!r} holds {_short(shape.type)}, where the output has "
                f"{_short(fixed[name])}"
            )
    return None


def _short(type_: pa.DataType) -> str:
    """Name a type, of which a struct may have hundreds of fields, in a message."""
    name = str(type_)
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"


@dataclass
class _Meeting:
    """The types in which the columns of files meet, one file after the other."""

    found: Inspection
    fixed: dict[str, pa.DataType]
    """The types of an output that was begun."""
    types: dict[str, pa.DataType]
    holders: dict[str, list[str]] = field(default_factory=dict)
    """By column, the files that have met."""

    def add(self, path: str, columns: pa.Schema) -> str | None:
        """Let the columns of a file meet those before it, or return why they do not."""
        names = columns.names
        met = dict[str, pa.DataType]()
        for each in columns:
            if not self.found.is_wanted(each.name):
                met[each.name] = self.types.get(each.name, plain_type(each.type))
                continue
            if names.count(each.name) > 1:
                return f"it has {names.count(each.name)} columns {each.name!r}"
            if reason := why_not_stored(stored_type(each.type)):
                held = f"column {each.name!r} holds {_short(each.type)}"
                return (
                    f"{held}, which Parquet cannot hold ({reason}); leave it out with "
                    "--keep-columns"
                )
            common = self._common(path, each)
            if common is None:
                others = "the output has" if each.name in self.fixed else "files before it have"
                return (
                    f"column {each.name!r} holds {_short(each.type)}, where {others} "
                    f"{_short(self.types[each.name])}"
                )
            met[each.name] = common
        self.types |= met
        for name in met:
            self.holders.setdefault(name, []).append(path)
        return None

    def _common(self, path: str, column: pa.Field) -> pa.DataType | None:
        """Return the type that holds each value of a column, in this file and in those before
        it.
        """
        type_ = plain_type(column.type)
        before = self.types.get(column.name, type_)
        common = common_type(before, type_)
        if column.name in self.fixed and common != before:
            common = before if same_kind(type_, before) else None
        if common is None:
            return None
        if self._holds_all(path, column.name, type_, before, common):
            return common
        # Bytes that are no UTF-8 make a column of strings one of bytes.
        bytes_ = pa.large_binary()
        is_free = column.name not in self.fixed and is_stringlike(common)
        return (
            bytes_
            if is_free and self._holds_all(path, column.name, type_, before, bytes_)
            else None
        )

    def _holds_all(
        self, path: str, name: str, type_: pa.DataType, before: pa.DataType, common: pa.DataType
    ) -> bool:
        """Tell whether `common` holds each value of a column, in a file and in those before it."""
        if not self._fits(path, name, type_, common):
            return False
        holders = [] if common == before else self.holders.get(name, [])
        return all(self._fits(holder, name, before, common) for holder in holders)

    def _fits(self, path: str, name: str, held: pa.DataType, type_: pa.DataType) -> bool:
        """Tell whether a type holds each value of a file's column, which is read where its own type
        does not tell.
        """
        key = (path, name, type_)
        if is_exact(held, type_) or key in self.found.fitting:
            return True
        if not all(fits(column, type_) for column in _read_column(self.found, path, name)):
            return False
        self.found.fitting.add(key)
        return True


def _read_column(found: Inspection, path: str, name: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column of a file: of one that is staged in blocks, else at once."""
    reader = FORMATS[found.format].read
    filesystem = found.found.filesystem
    if reader is not None and not found.scans[path].parts:
        yield reader(filesystem, path, 0, found.scans[path].rows, [name])[name]
        return
    for block in FORMATS[found.format].blocks(Reading(filesystem, path, found.options)):
        yield block.table[name]
