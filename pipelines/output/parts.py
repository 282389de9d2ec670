"""The parts of an output: their names, and which of them are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.input.names import split_shard_name
from pipelines.storage import Folder, is_temporary

ENDING = ".parquet"
_AT_ONCE = 1 << 16
"""The names that are Python strings at a time."""


class NameIndex:
    """Finds names in a list of millions.

    They are compared by digests of 16 bytes, a tenth of what a dictionary would take.
    """

    def __init__(self, names: Iterable[str]):
        digests = _digests(names)
        self._place_of = np.argsort(digests)
        self._digests = digests[self._place_of]

    def places(self, names: Iterable[str]) -> np.ndarray:
        """Return the place of each name in the list, -1 for one that is not there."""
        digests = _digests(names)
        nearest = np.searchsorted(self._digests, digests)
        is_there = nearest < len(self._digests)
        is_there[is_there] = self._digests[nearest[is_there]] == digests[is_there]
        places = np.full(len(digests), -1)
        places[is_there] = self._place_of[nearest[is_there]]
        return places

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.places([name])[0] >= 0)


def _digests(names: Iterable[str]) -> np.ndarray:
    digests = bytearray()  # to join them would make a list of them first
    for name in names:
        digests += blake2b(name.encode(), digest_size=16).digest()
    return np.frombuffer(digests, "S16")


@dataclass(frozen=True, eq=False)
class Listing(Collection[str]):
    """What is in the folder of an output's parts: a collection of their shards' names, sorted."""

    column: pa.Array = field(default_factory=lambda: pa.array([], pa.large_string()))
    """The names as a column, which takes half of the memory of strings."""
    foreign: list[str] = field(default_factory=list)
    """Data files beside the parts, sorted: whoever reads these reads them, too."""
    temporary: list[str] = field(default_factory=list)
    """What writes have left that had not ended."""

    @cached_property
    def index(self) -> NameIndex:
        """The places of the names."""
        return NameIndex(self)

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.column), _AT_ONCE):
            yield from self.column.slice(start, _AT_ONCE).to_pylist()

    def __contains__(self, name: object) -> bool:
        return name in self.index


def list_parts(folder: Folder, parts: str) -> Listing:
    """List the folder of the parts (RunRecord.parts) once; files of other kinds are passed over."""
    columns: list[pa.Array] = []
    recent: list[str] = []
    foreign: list[str] = []
    temporary: list[str] = []
    for file in folder.names(parts):
        if is_temporary(file):
            temporary.append(file)
        if not file.endswith(ENDING):
            continue
        name = file.removesuffix(ENDING)
        # The name of a part is ASCII: any other is not one, whatever it looks like.
        if name.isascii() and split_shard_name(name):
            recent.append(name)
        elif file[0] not in "._":
            foreign.append(file)
        if len(recent) == _AT_ONCE:
            columns.append(pa.array(recent, pa.large_string()))
            recent = []
    columns.append(pa.array(recent, pa.large_string()))
    column = pa.concat_arrays(columns)
    columns.clear()  # millions of names need not be there three times while they are sorted
    return Listing(column.take(pc.sort_indices(column)), sorted(foreign), temporary)


def part_path(parts: str, shard: str) -> str:
    """Return the path of a shard's part in an output; `parts` is the folder there (RunRecord)."""
    return f"{parts}/{shard}{ENDING}" if parts else f"{shard}{ENDING}"
