"""`_shards.arrow`: the stats of each shard whose part is in an output.

    OUTPUT/_shards/<run>-<number>.arrow   of some shards, written while the run goes on
    OUTPUT/_shards.arrow                  of all shards, sorted by name, written when it ends

No process holds the stats of all shards: the memory of what is done here grows by the names of the
parts alone. A run that is killed leaves its segments to the next one, and its parts keep most of
their stats themselves (shard_stats.KEPT).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.output import shard_stats
from pipelines.output.parts import Listing, part_path
from pipelines.output.shard_stats import SHARD_STATS, Stats, Totals
from pipelines.storage import Folder

SHARDS, SEGMENTS = "_shards.arrow", "_shards"
FOOTER = "modernbert-ray"
"""The key of the stats in the footer of a part."""
_SEGMENT_SHARDS, _SEGMENT_S = 1024, 60.0
"""A segment is written once it has so many shards, or is so old."""
_BATCH_SHARDS = 1 << 14
"""The shards in a record batch of `_shards.arrow`, whose stats are in memory at a time."""
_THREADS = 16
_SOURCE_THREADS = 4
"""What reads sources at once: each thread holds the stats of one, and Arrow keeps memory for it."""


class SegmentWriter:
    """Writes the stats of a run's shards to segments while it goes on, and adds them up."""

    def __init__(self, folder: Folder, run: str):
        self._folder = folder
        self._run = run
        self._segments = 0
        self._recent: list[Stats] = []
        self._began = time.monotonic()
        self._totals = Totals()

    def add(self, stats: Stats) -> None:
        """Add the stats of a shard; raises OSError if a segment cannot be written."""
        self._recent.append(stats)
        age_s = time.monotonic() - self._began
        if len(self._recent) >= _SEGMENT_SHARDS or age_s >= _SEGMENT_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not in a segment yet."""
        if self._recent:
            table = shard_stats.table(self._recent)
            name = f"{SEGMENTS}/{self._run}-{self._segments:06d}.arrow"
            self._folder.write_atomic(name, packed(table))
            self._totals.add(table)
            self._segments += 1
            self._recent = []
        self._began = time.monotonic()

    def totals(self) -> Stats:
        """Return the sums over all shards so far."""
        totals = deepcopy(self._totals)
        totals.add(shard_stats.table(self._recent))
        return totals.result()


class _Index:
    """Where the stats of each part are: in which source, and in which row there.

    A source reads a table of stats.
    """

    def __init__(self, listing: Listing):
        self._names = listing.index
        self._sources: list[Callable[[], pa.Table]] = []
        self._source_of = np.full(len(listing), -1, np.int32)
        self._row_of = np.zeros(len(listing), np.int32)

    def add(self, names: Sequence[str], source: Callable[[], pa.Table]) -> list[str]:
        """Note where the stats of shards are, which replaces what was noted for them before.

        `names`: those of the rows of the source. Returns those whose parts are not there.
        """
        places = self._names.places(names)
        is_there = places >= 0
        places = places[is_there]
        self._source_of[places] = len(self._sources)
        self._row_of[places] = np.flatnonzero(is_there)
        self._sources.append(source)
        return [names[row] for row in np.flatnonzero(~is_there).tolist()]

    def unknown(self) -> np.ndarray:
        """Return the places in the listing of the parts that no source knows."""
        return np.flatnonzero(self._source_of < 0)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the stats of all parts in the order of the listing, a batch at a time."""
        with ThreadPoolExecutor(_SOURCE_THREADS) as pool:
            for start in range(0, len(self._source_of), _BATCH_SHARDS):
                sources = self._source_of[start : start + _BATCH_SHARDS]
                rows = self._row_of[start : start + _BATCH_SHARDS]
                used = np.unique(sources).tolist()
                places = [np.flatnonzero(sources == number) for number in used]
                tables = pool.map(
                    _take, [self._sources[number] for number in used], [rows[p] for p in places]
                )
                batch = pa.concat_tables(tables)
                in_order = np.argsort(np.concatenate(places))
                yield batch.take(pa.array(in_order)).combine_chunks()


def _take(source: Callable[[], pa.Table], rows: np.ndarray) -> pa.Table:
    """Return rows of a source in all columns of SHARD_STATS; other versions lack some."""
    table = source().take(pa.array(rows))
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in SHARD_STATS:
        is_there = field.name in table.column_names
        columns.append(table[field.name] if is_there else pa.nulls(len(table), field.type))
    return pa.table(columns, SHARD_STATS)


def write_shard_stats(
    folder: Folder,
    parts: str,
    listing: Listing,
    run: str,
    run_of: Callable[[str, float], str | None],
    see: Callable[[pa.Table], None],
) -> set[str]:
    """Write `_shards.arrow` anew, from what it holds, the segments and the footers of parts.

    Returns the names of shards of this run whose parts are not there, although their commits were
    reported.

    Args:
        folder: the output.
        parts: the folder of the parts there (RunRecord.parts).
        listing: the parts that are there.
        run: the run that ends; its segments are all written.
        run_of: returns the run that has committed a shard, from its name and the time of its part.
        see: called with the stats of all parts, a table after the other.
    """
    index = _Index(listing)
    missing: set[str] = set()
    with folder.on_disk(SHARDS) as earlier:
        if earlier is not None:
            for number in range(_batches(earlier)):
                names = _batch(earlier, number, ["name"])["name"].to_pylist()
                index.add(names, partial(_batch, earlier, number))
        segments = _segments(folder)
        # Those of this run last: what they say replaces what other runs have said.
        segments.sort(key=lambda name: name.startswith(f"{SEGMENTS}/{run}-"))
        for name in segments:
            names = _segment(folder, name)["name"].to_pylist()
            not_there = index.add(names, partial(_segment, folder, name))
            if name.startswith(f"{SEGMENTS}/{run}-"):
                missing.update(not_there)
        # What nobody knows was committed by a run that was killed before it could report.
        unknown = listing.column.take(pa.array(index.unknown()))
        for start in range(0, len(unknown), _SEGMENT_SHARDS):
            recovered = _recover(
                folder, parts, unknown.slice(start, _SEGMENT_SHARDS).to_pylist(), run_of
            )
            name = f"{SEGMENTS}/{run}-recovered-{start:09d}.arrow"
            folder.write_atomic(name, packed(recovered))
            index.add(recovered["name"].to_pylist(), partial(_segment, folder, name))

        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            folder.writing(SHARDS) as file,
            pa.ipc.new_file(file, SHARD_STATS, options=options) as writer,
        ):
            for table in index.tables():
                writer.write_table(table)
                see(table)
    if segments or len(unknown):
        folder.remove_folder(SEGMENTS)
    return missing


def _segments(folder: Folder) -> list[str]:
    """List the segments, the earliest first."""
    files = folder.files(SEGMENTS)
    names = [name for name in files if name.endswith(".arrow")]
    names.sort(key=lambda name: (files[name].mtime_ns, name))
    return [f"{SEGMENTS}/{name}" for name in names]


def _segment(folder: Folder, name: str) -> pa.Table:
    return unpacked(folder.read(name))


def _batches(path: Path) -> int:
    """Count the record batches of a file."""
    with pa.OSFile(str(path)) as file:
        batches: int = pa.ipc.open_file(file).num_record_batches
    return batches


def _batch(path: Path, number: int, columns: list[str] | None = None) -> pa.Table:
    """Read a record batch of a file, or some columns of it."""
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        if columns:
            fields = [reader.schema.get_field_index(name) for name in columns]
            only = pa.ipc.IpcReadOptions(included_fields=fields)
            reader = pa.ipc.open_file(file, options=only)
        return pa.Table.from_batches([reader.get_batch(number)])


def _recover(
    folder: Folder, parts: str, names: list[str], run_of: Callable[[str, float], str | None]
) -> pa.Table:
    """Return what the footers of parts keep of their shards' stats."""
    filesystem, path = folder.filesystem_and_path

    def recover(name: str) -> Stats:
        part = f"{path}/{part_path(parts, name)}"
        with filesystem.open_input_file(part) as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        footer: Stats = json.loads(metadata.get(FOOTER.encode(), b"{}"))
        written_at = filesystem.get_file_info(part).mtime_ns / 1e9
        run = run_of(name, written_at)
        return {"name": name, "committed_at": written_at} | footer | {"run": run}

    with ThreadPoolExecutor(_THREADS) as pool:
        return shard_stats.table(list(pool.map(recover, names)))


def packed(table: pa.Table) -> pa.Buffer:
    """Encode a table as Arrow IPC: duckdb and polars read any *.parquet as a part of the output."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpacked(data: bytes) -> pa.Table:
    """Decode what `packed` has encoded."""
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()
