"""Hive partitions: what folders named key=value say of the files below them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from pipelines.input.files import InputFiles
from pipelines.input.shards import Partition
from pipelines.input.snapshots import Snapshot
from pipelines.input.types import stored_type

_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
"""A number that is written again as it was read, which 007 is not."""
_DIGITS = re.compile(r"-?\d{1,18}")
_SPLIT = "split"
"""The key of the folders of a DatasetDict."""


@dataclass(frozen=True)
class Partitions:
    """The partitions of an input's files."""

    of: dict[str, Partition]
    """The partition of each file."""
    schema: pa.Schema
    """The types of the keys: int64 where all values of the input are whole numbers, else string."""
    misfits: dict[str, str]
    """Files whose values do not have the type that the key has in the output, with the reason."""


def hive_partitions(
    files: InputFiles,
    paths: list[str],
    earlier: pa.Schema | None = None,
    *,
    any_digits: bool = False,
) -> Partitions:
    """Read the partition of each file from its folders.

    Args:
        files: the input.
        paths: its files that can be read.
        earlier: the columns of an output that was begun, whose types stay.
        any_digits: whether digits with zeros before them fit a key of numbers, as they did in
            earlier versions.
    """
    if files.snapshot is not None:
        return _of_table(files.snapshot, paths)
    texts = {path: _texts(files, path) for path in paths}
    number = _DIGITS if any_digits else _WHOLE_NUMBER
    types = _types_of_keys(list(texts.values()), earlier)
    partitions: dict[str, Partition] = {}
    misfits: dict[str, str] = {}
    for path, by_name in texts.items():
        typed: list[tuple[str, str | int | None]] = []
        for name, value in by_name.items():
            if value is None or not pa.types.is_integer(types[name]):
                typed.append((name, value))
            elif number.fullmatch(value):
                typed.append((name, int(value)))
            else:
                misfits[path] = (
                    f"its folder has {name}={value!r}, where the output has {types[name]}"
                )
        partitions[path] = tuple(typed)
    return Partitions(partitions, pa.schema(list(types.items())), misfits)


def _of_table(snapshot: Snapshot, paths: list[str]) -> Partitions:
    """Return the values that the log of a table has, in the types of its columns."""
    of = {path: snapshot.partitions.get(path, ()) for path in paths}
    names = dict.fromkeys(name for partition in of.values() for name, _ in partition)
    types = [(name, stored_type(snapshot.schema.field(name).type)) for name in names]
    return Partitions(of, pa.schema(types), {})


def _types_of_keys(
    texts: list[dict[str, str | None]], earlier: pa.Schema | None
) -> dict[str, pa.DataType]:
    """Return the type of each key, decided over all files; that of an output stays."""
    types: dict[str, pa.DataType] = {}
    for name in sorted({name for by_name in texts for name in by_name}):
        if earlier is not None and name in earlier.names:
            types[name] = earlier.field(name).type
            continue
        values = [by_name[name] for by_name in texts if by_name.get(name) is not None]
        are_numbers = bool(values) and all(_WHOLE_NUMBER.fullmatch(str(value)) for value in values)
        types[name] = pa.int64() if are_numbers else pa.string()
    return types


def _texts(files: InputFiles, path: str) -> dict[str, str | None]:
    folders = files.name(path).split("/")[:-1]
    texts: dict[str, str | None] = {}
    if folders and folders[0] in files.splits:
        texts[_SPLIT] = folders[0]
    for folder in folders:
        key, equals, value = folder.partition("=")
        if equals:
            texts[unquote(key)] = None if value == _NULL else unquote(value)
    return texts
