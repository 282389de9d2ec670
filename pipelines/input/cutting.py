"""How an input's files are cut into shards: long ones by size, small ones several to a shard."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.input.corpus import CUT
from pipelines.input.names import shard_name, shared_name
from pipelines.input.shards import DataFile, Scan

SHARD_BYTES = 128 << 20
"""The most bytes of values in a shard: several shards are in the memory of a node at a time."""
_WANTED_SHARDS = 32
"""So many shards keep the actors of a small corpus busy."""
_STRIDE_ROWS = 64
"""Shards of more rows have a multiple of so many."""
_MAX_FILES = 1024
"""The most files that share a shard."""
_FORMER_BYTES = 32 << 20
_UNIT = 32
"""The shards of a file that are read together where they do not follow its row groups."""


@dataclass(frozen=True)
class ShardSize:
    """The most that a shard holds."""

    rows: int
    text_bytes: int
    """Of texts, which the model's time depends on."""
    bytes: int = SHARD_BYTES
    """Of all columns that are read."""
    read_bytes: int | None = None
    """The bytes of a text that the model reads; None for all."""
    rows_per_file: int | None = None
    """The rows that the user wants in each part; None to choose them by the sizes of texts."""

    def weight(self, scan: Scan) -> float:
        """Return the bytes of a file's texts that the model reads."""
        text_bytes = float(scan.text_size or scan.size)
        if self.read_bytes is None:
            return text_bytes
        return min(text_bytes, scan.rows * self.read_bytes)

    def step(self, scan: Scan, share: float) -> int:
        """Return the rows of a file's shards.

        `share`: the bytes of texts with which all actors of a small corpus are busy.
        """
        rows = max(scan.rows, 1)
        by_memory = self.bytes * rows // max(scan.size, 1)
        if self.rows_per_file:
            return max(min(self.rows_per_file, by_memory), 1)
        bytes_per_row = max(self.weight(scan) / rows, 1e-9)
        by_time = int(self.text_bytes / bytes_per_row)
        by_share = max(math.ceil(share / bytes_per_row), _STRIDE_ROWS)
        step = max(min(self.rows, by_memory, by_time, by_share), 1)
        return step - step % _STRIDE_ROWS if step > _STRIDE_ROWS else step


def share_of_each(size: ShardSize, scans: Sequence[Scan]) -> float:
    """Return the bytes of texts in a shard with which files make about 32 shards."""
    return sum(size.weight(scan) for scan in scans) / _WANTED_SHARDS


def former_step(scan: Scan, shard_rows: int) -> int:
    """Return the rows of a file's shards in an output whose record has `shard_rows`."""
    rows_that_fit = _FORMER_BYTES * scan.rows // max(scan.size, 1)
    strides = max(rows_that_fit // _STRIDE_ROWS, 1)
    return min(shard_rows, strides * _STRIDE_ROWS)


def share_shards(
    size: ShardSize, files: Sequence[DataFile], share: float
) -> list[tuple[DataFile, ...]]:
    """Return which of the files share a shard: small ones that follow each other.

    Where there are few files, each has a part of its own.
    """
    if len(files) <= _WANTED_SHARDS:
        return []
    most_bytes = math.inf if size.rows_per_file else min(float(size.text_bytes), share)
    most_rows = size.rows_per_file or size.rows
    groups: list[tuple[DataFile, ...]] = []
    group: list[DataFile] = []
    text_bytes, stored_bytes, rows = 0.0, 0, 0
    for file in files:
        if not file.scan.rows:
            continue
        weight = size.weight(file.scan)
        is_small = file.scan.rows <= file.step / 2 and len(file.scan.parts) <= 1
        is_full = (
            text_bytes + weight > most_bytes
            or stored_bytes + file.scan.size > size.bytes
            or rows + file.scan.rows > most_rows
            or len(group) == _MAX_FILES
        )
        if group and (is_full or not is_small):
            groups.append(tuple(group))
            group = []
            text_bytes, stored_bytes, rows = 0.0, 0, 0
        if is_small:
            group.append(file)
            text_bytes += weight
            stored_bytes += file.scan.size
            rows += file.scan.rows
    groups.append(tuple(group))
    return [group for group in groups if len(group) > 1]


def name_of_group(files: Sequence[DataFile]) -> str:
    """Return the name of a shard that files share."""
    content = "\n".join(f"{file.name} {file.version}" for file in files)
    version = hashlib.sha256(content.encode()).hexdigest()[:8]
    rows = sum(file.scan.rows for file in files)
    return shard_name(shared_name(files[0].name, len(files)), version, 0, rows)


def cuts_of_file(number: int, scan: Scan, step: int, limit: int) -> np.ndarray:
    """Cut the first `limit` rows of a file into shards of at most `step` rows, as rows of `CUT`.

    `number`: the file's place among those of the input.
    """
    cuts: list[tuple[int, ...]] = []
    if not scan.parts:
        for start, stop, unit in _ranges_in_place(scan, step, min(scan.rows, limit)):
            cuts.append((number, start, stop - start, -1, 0, unit))
    first_row_of_part = 0  # counted from the start of the file
    for part, (_, part_rows) in enumerate(scan.parts):
        wanted_rows = min(part_rows, limit - first_row_of_part)
        for start in range(0, wanted_rows, step):
            rows = min(step, wanted_rows - start)
            cuts.append((number, first_row_of_part + start, rows, part, start, -1))
        first_row_of_part += part_rows
    return np.array(cuts, CUT)


def _ranges_in_place(scan: Scan, step: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield the row ranges [start, stop) of a file's shards, and the unit that each is read with,
    -1 where it is read alone.
    """
    group_rows = scan.group_rows
    if not group_rows:
        for number, start in enumerate(range(0, rows, step)):
            yield start, min(start + step, rows), number // _UNIT
    elif step >= group_rows:
        step -= step % group_rows
        for start in range(0, rows, step):
            yield start, min(start + step, rows), -1
    else:
        shards_in_group = math.ceil(group_rows / step)
        step = math.ceil(group_rows / shards_in_group)
        for group, first in enumerate(range(0, rows, group_rows)):
            group_stop = min(first + group_rows, rows)
            for start in range(first, group_stop, step):
                yield start, min(start + step, group_stop), group
