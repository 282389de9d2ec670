"""The columns of an input: the type of each over all files, and the keys of folders among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.input.formats import format_of
from pipelines.input.inspection import Inspection
from pipelines.input.partitions import Partitions, hive_partitions
from pipelines.input.shapes import Shape
from pipelines.input.shards import BLOCK_ROWS, Reading
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


@dataclass(frozen=True)
class CorpusColumns:
    """The columns of all files of an input, and of their folders."""

    schema: pa.Schema
    """The columns of the files, then the keys of folders."""
    partitions: Partitions
    misfits: dict[str, str]
    """Files whose columns or keys do not meet those of the others, with the reason."""


def corpus_columns(inspection: Inspection) -> CorpusColumns:
    """Let the columns of all known files meet.

    Raises:
        UserError: for a key of folders that is a column of files, too.
    """
    types, misfits = _unify(inspection)
    no_rows_from = {*inspection.broken, *misfits}
    paths = [path for path in inspection.versions if path not in no_rows_from]
    earlier = inspection.earlier.schema if inspection.earlier else None
    partitions = hive_partitions(
        inspection.files, paths, earlier, any_digits=inspection.has_former_names
    )
    keys = {key.name: key.type for key in partitions.schema}
    if inspection.files.snapshot is None:  # the log of a table says which values count
        _check_keys(inspection, types, keys)
    own = {name: type_ for name, type_ in types.items() if name not in keys}
    schema = pa.schema([*own.items(), *keys.items()])
    return CorpusColumns(schema, partitions, misfits | partitions.misfits)


def _check_keys(inspection: Inspection, types: dict[str, pa.DataType], keys: Iterable[str]) -> None:
    """Raise UserError for a key that is a column of files, too: which of the values is right?"""
    # An earlier plan has the keys among its columns.
    earlier = set(inspection.earlier.schema.names) if inspection.earlier else set()
    columns = {name.casefold(): name for name in types if name not in earlier}
    for key in keys:
        column = columns.get(key.casefold())
        if column is not None and inspection.is_wanted(key):
            raise UserError(
                f"input has the column {column!r} and folders {key}=…, whose values may differ: "
                f"rename one, or leave {key} out with --keep-columns"
            )


def _unify(inspection: Inspection) -> tuple[dict[str, pa.DataType], dict[str, str]]:
    """Return the columns of all known files, and why files do not meet those before them.

    A column that the job neither reads nor keeps may have any type, in each file another.
    """
    earlier: dict[str, pa.DataType] = {}
    if inspection.earlier:
        earlier = {column.name: column.type for column in inspection.earlier.schema}
    fixed = {name: type_ for name, type_ in earlier.items() if not pa.types.is_null(type_)}
    if inspection.files.snapshot is not None:
        of_table = inspection.files.snapshot.schema
        fixed = {column.name: stored_type(column.type) for column in of_table} | fixed
    meeting = _Meeting(inspection, fixed, dict(fixed))
    shapes: dict[str, Shape] = {}
    misfits: dict[str, str] = {}
    for path, columns in inspection.columns.items():
        if path in inspection.broken or not inspection.scans[path].rows:
            continue
        if isinstance(columns, dict):  # of a text file
            misfit = _misfit_shape(inspection, columns, fixed)
        else:
            misfit = meeting.add(path, columns)
        if misfit:
            misfits[path] = misfit
        elif isinstance(columns, dict):
            for name, shape in columns.items():
                shapes[name] = shapes.get(name, Shape()).merge(shape)
    types: dict[str, pa.DataType] = {}
    for name, type_ in meeting.types.items():
        # A column that has had no value in this output yet, and has none now, keeps its type there.
        types[name] = type_ if type_ == earlier.get(name) else stored_type(type_)
    for name, shape in shapes.items():
        if name not in fixed:
            types[name] = shape.type
    return types, misfits


def _misfit_shape(
    inspection: Inspection, columns: dict[str, Shape], fixed: dict[str, pa.DataType]
) -> str | None:
    """Return why the columns of a text file do not fit an output that was begun."""
    for name, shape in columns.items():
        if name not in fixed or not inspection.is_wanted(name):
            continue
        if not shape.fits(fixed[name]):
            held, expected = _short(shape.type), _short(fixed[name])
            return f"column {name!r} holds {held}, where the output has {expected}"
    return None


def _short(type_: pa.DataType) -> str:
    """Name a type, of which a struct may have hundreds of fields, in a message."""
    name = str(type_)
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"


@dataclass
class _Meeting:
    """The types in which the columns of files meet, one file after the other."""

    inspection: Inspection
    fixed: dict[str, pa.DataType]
    """The types of an output that was begun."""
    types: dict[str, pa.DataType]
    holders: dict[str, list[str]] = field(default_factory=dict)
    """By column, the files that have met."""

    def add(self, path: str, columns: pa.Schema) -> str | None:
        """Let the columns of a file meet those before it, or return why they do not."""
        counts = Counter(columns.names)
        met: dict[str, pa.DataType] = {}
        for column in columns:
            name = column.name
            if not self.inspection.is_wanted(name):
                met[name] = self.types.get(name, plain_type(column.type))
                continue
            if counts[name] > 1:
                return f"it has {counts[name]} columns {name!r}"
            held = f"column {name!r} holds {_short(column.type)}"
            if reason := why_not_stored(stored_type(column.type)):
                return (
                    f"{held}, which Parquet cannot hold ({reason}); leave it out with "
                    "--keep-columns"
                )
            common = self._common(path, column)
            if common is None:
                others = "the output has" if name in self.fixed else "files before it have"
                return f"{held}, where {others} {_short(self.types[name])}"
            met[name] = common
        self.types |= met
        for name in met:
            self.holders.setdefault(name, []).append(path)
        return None

    def _common(self, path: str, column: pa.Field) -> pa.DataType | None:
        """Return the type that holds each value of a column, in this file and in those before."""
        name = column.name
        type_ = plain_type(column.type)
        before = self.types.get(name, type_)
        is_fixed = name in self.fixed
        common = common_type(before, type_)
        if is_fixed and common != before:
            # The output keeps its type; values of the same kind may still fit, one by one.
            common = before if same_kind(type_, before) else None
        if common is None:
            return None
        if self._holds_all(path, name, type_, before, common):
            return common
        if is_fixed or not is_stringlike(common):
            return None
        # Bytes that are not UTF-8 make a column of strings one of bytes.
        as_bytes = pa.large_binary()
        return as_bytes if self._holds_all(path, name, type_, before, as_bytes) else None

    def _holds_all(
        self, path: str, name: str, type_: pa.DataType, before: pa.DataType, common: pa.DataType
    ) -> bool:
        """Tell whether `common` holds each value of a column, in a file and in those before it."""
        if not self._fits(path, name, type_, common):
            return False
        if common == before:
            return True
        holders = self.holders.get(name, [])
        return all(self._fits(holder, name, before, common) for holder in holders)

    def _fits(self, path: str, name: str, held: pa.DataType, type_: pa.DataType) -> bool:
        """Tell whether a type holds each value of a file's column.

        The values are read only where the column's own type does not tell.
        """
        known_fits = self.inspection.known_fits
        if is_exact(held, type_) or (path, name, type_) in known_fits:
            return True
        if not all(fits(column, type_) for column in _read_column(self.inspection, path, name)):
            return False
        known_fits.add((path, name, type_))
        return True


def _read_column(inspection: Inspection, path: str, name: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column of a file, some rows after the other."""
    format_ = format_of(inspection.source, inspection.format)
    filesystem = inspection.files.filesystem
    scan = inspection.scans[path]
    if format_.read is not None and not scan.parts:
        starts = range(0, scan.rows, BLOCK_ROWS)
        ranges = [(start, min(BLOCK_ROWS, scan.rows - start)) for start in starts]
        for table in format_.read(filesystem, path, ranges, [name]):
            yield table[name]
        return
    assert format_.blocks is not None  # its files are staged
    for block in format_.blocks(Reading(filesystem, path, inspection.options)):
        yield block.table[name]
