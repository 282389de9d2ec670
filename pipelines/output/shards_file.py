"""`_shards.arrow`: the stats of each shard whose part is in an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.output import shard_stats
from pipelines.output.parts import committed, part_path
from pipelines.output.shard_stats import Stats
from pipelines.storage import Folder

SHARDS = "_shards.arrow"
FOOTER = "modernbert-ray"
"""The key of the stats in the footer of a part."""
_THREADS = 16


def write_shard_stats(
    folder: Folder, parts: str, new: pa.Table, run_of: Callable[[str, float], str | None]
) -> tuple[pa.Table, set[str]]:
    """Add the stats of a run's shards to those that are stored.

    Returns the stats of all parts in the folder, and the names of shards of the run that are not
    there, although their commits were reported. The stats of a run that was killed are read from
    the footers of its parts.

    Args:
        folder: the output.
        parts: the folder of the parts there (RunRecord.parts).
        new: the stats of the shards of this run.
        run_of: returns the run that has committed a shard, from its name and the time of its part.
    """
    present = committed(folder, parts)
    new_names = set(new["name"].to_pylist())
    tables = [new]
    with suppress(FileNotFoundError):
        earlier = unpacked(folder.read(SHARDS))
        is_other = [name not in new_names for name in earlier["name"].to_pylist()]
        tables.append(earlier.filter(pa.array(is_other, pa.bool_())))

    # What neither knows was committed by a run that was killed before it could report.
    known: set[str] = set()
    for table in tables:
        known.update(table["name"].to_pylist())
    unknown = {name: info for name, info in present.items() if name not in known}
    recovered = _recover(folder, parts, unknown)
    for shard in recovered:
        shard["run"] = run_of(shard["name"], shard["committed_at"])
    tables.append(shard_stats.table(recovered))

    stats = pa.concat_tables(tables, promote_options="default")
    is_present = [name in present for name in stats["name"].to_pylist()]
    stats = stats.filter(pa.array(is_present, pa.bool_()))
    stats = stats.sort_by("name")
    folder.write_atomic(SHARDS, packed(stats))
    return stats, new_names - present.keys()


def _recover(folder: Folder, parts: str, shards: dict[str, fs.FileInfo]) -> list[Stats]:
    """Return what the footers of parts keep of their shards' stats."""
    filesystem, path = folder.filesystem_and_path

    def recover(name: str) -> Stats:
        with filesystem.open_input_file(f"{path}/{part_path(parts, name)}") as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        footer: Stats = json.loads(metadata.get(FOOTER.encode(), b"{}"))
        written_at = shards[name].mtime_ns / 1e9
        return {"name": name, "committed_at": written_at} | footer

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(recover, sorted(shards)))


def packed(table: pa.Table) -> pa.Buffer:
    """Encode a table as Arrow IPC: duckdb and polars read any *.parquet as a part of the output."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()
