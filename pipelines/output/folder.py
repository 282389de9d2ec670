"""The output folder: part files committed whole, rejected rows beside them, and the record of the
runs.

    OUTPUT/data/<shard>.parquet        labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, counts, and each attempt (record.py)
    OUTPUT/_report.html                the same, to look at
    OUTPUT/_shards.arrow               what is known of each shard (shard_stats.py)
    OUTPUT/_files.arrow                the input files as they were planned, so that only new ones
    are read again OUTPUT/_staged/                    files that cannot be read by row, until the
    run is complete (input/staging.py) OUTPUT/_lease.json                 who is writing now

OUTPUT/data reads as one table in every library: nothing else is in it. An output that was begun
before there was such a folder has its parts in OUTPUT itself, and goes on so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import JobError, UserError
from pipelines.input.names import split_shard_name
from pipelines.input.shards import Corpus, DataFile, Scan
from pipelines.input.staging import STAGED
from pipelines.output import shard_stats
from pipelines.output.lease import LEASE
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.storage import Folder, is_temporary

REPORT, SHARDS, FILES, REJECTED = "_report.html", "_shards.arrow", "_files.arrow", "_rejected"
_ENDING = ".parquet"
REJECTED_FIELDS = pa.schema(
    [
        ("_reason", pa.string()),
        ("_stage", pa.string()),
        ("_shard", pa.string()),
        ("_file", pa.string()),
        ("_row", pa.int64()),
        ("_raw", pa.string()),
    ]
)
_FOOTER = "modernbert-ray"
_STAGED_PARTS = pa.list_(pa.struct([("name", pa.string()), ("rows", pa.int64())]))
_THREADS = 16


def open_output(folder: Folder, fingerprint: dict[str, Any], overwrite: bool) -> RunRecord | None:
    """Check that `folder` can take this run, and return the record that the run continues, if any.

    Raises UserError if it holds something else, or answers whose fingerprint differs.
    """
    record = read_record(folder)
    if record is None:
        if (folder.is_local and Path(folder.uri).is_file()) or any(
            not _may_be_left(name) for name in folder.files()
        ):
            raise UserError(
                f"output '{folder}' holds something else than an output of this job; name another "
                "folder"
            )
        return None
    if overwrite:
        return None
    differing = [key for key in fingerprint if record.fingerprint.get(key) != fingerprint[key]]
    if differing:
        shown = ", ".join(
            f"{key} {_short(record.fingerprint.get(key))}, not {_short(fingerprint[key])}"
            for key in differing
        )
        raise UserError(
            f"output '{folder}' was begun with {shown}; name another folder, or replace it with "
            "--overwrite"
        )
    return record


def begin_run(folder: Folder, record: RunRecord, corpus: Corpus, overwrite: bool) -> set[str]:
    """Write the record of this run, and return the names of the shards that are done, from one
    listing.

    With `overwrite`, an earlier output is removed first; without, its parts of files that have
    changed since. Raises UserError if the output cannot be written.
    """
    try:
        _remove_temporary(folder)
        if overwrite:
            _remove_output(folder)
        present = set(committed(folder, record.parts))
        planned = {shard.name for shard in corpus.shards}
        split, subshards = _split_shards(present - planned, corpus)
        files = {file.name for file in corpus.files} | {
            file.former for file in corpus.files if file.former
        }
        stale = [name for name in present - planned - subshards if _file_of(name) in files]
        # The rejected rows first: without its part, nobody looks for them again.
        _remove(folder, [f"{REJECTED}/{name}.parquet" for name in stale])
        _remove(folder, [part_path(record.parts, name) for name in stale])
        record.write(folder)
        folder.write_atomic(FILES, _files(corpus))
        return (present & planned) | split
    except OSError as error:
        raise UserError(
            f"output '{folder}' cannot be written: {error.strerror or error}"
        ) from error


def part_path(parts: str, shard: str) -> str:
    """Return the path of a shard's part in an output; `parts`: the folder of the parts there
    (RunRecord.parts).
    """
    return f"{parts}/{shard}.parquet" if parts else f"{shard}.parquet"


def _remove_output(folder: Folder) -> None:
    """Remove an earlier output, whichever folder its parts are in."""
    for parts in ("", PARTS):
        _remove(folder, [part_path(parts, name) for name in committed(folder, parts)])
    _remove(folder, [REPORT, SHARDS, *(f"{REJECTED}/{name}" for name in folder.files(REJECTED))])


def _remove_temporary(folder: Folder) -> None:
    """Remove what writes have left whose process ended; this run alone may write here now."""
    if not folder.is_local:
        return
    for below in ("", PARTS, REJECTED, STAGED):
        _remove(
            folder,
            [f"{below}/{name}".lstrip("/") for name in folder.files(below) if is_temporary(name)],
        )


def _remove(folder: Folder, names: list[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(folder.remove, names))


def _may_be_left(name: str) -> bool:
    """Tell whether a run that has only just begun leaves a file of this name."""
    return name in (FILES, LEASE, STAGED) or name.startswith(".")


def read_files(folder: Folder) -> Corpus | None:
    """Read the input files as the last run planned them, without shards; None if there was none."""
    try:
        table = _unpacked(folder.read(FILES))
        columns = [table[name].to_pylist() for name in ("path", "version", "rows", "size", "parts")]
    except (OSError, pa.ArrowException, KeyError):  # it saves work, and no more
        return None
    name, schema = table.schema.metadata[b"format"].decode(), table.schema.metadata[b"schema"]
    files = [
        DataFile(
            path, version, Scan(rows, size, tuple((part["name"], part["rows"]) for part in parts))
        )
        for path, version, rows, size, parts in zip(*columns, strict=True)
    ]
    return Corpus(files, name, pa.ipc.read_schema(pa.py_buffer(schema)), [], 0)


def _split_shards(names: set[str], corpus: Corpus) -> tuple[set[str], set[str]]:
    """Return the shards that were split and whose rows are all there, and the names of their
    parts.
    """
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name in names:
        if found := split_shard_name(name):
            parts.setdefault(name.rsplit("-", 2)[0], []).append((found.start, found.stop, name))
    whole, subshards = set(), set()
    for shard in corpus.shards if parts else []:
        first, last = shard.start, shard.start + shard.rows
        inside = [
            part
            for part in parts.get(shard.name.rsplit("-", 2)[0], [])
            if first <= part[0] and part[1] <= last
        ]
        if sum(stop - start for start, stop, _ in inside) == shard.rows:
            whole.add(shard.name)
            subshards |= {name for _, _, name in inside}
    return whole, subshards


def _file_of(name: str) -> str:
    """Return the part of a shard's name that stands for its file, without the version."""
    return name.rsplit("-", 3)[0]


def _files(corpus: Corpus) -> pa.Buffer:
    columns = {
        "path": [file.path for file in corpus.files],
        "version": [file.version for file in corpus.files],
        "rows": pa.array([file.scan.rows for file in corpus.files], pa.int64()),
        "size": pa.array([file.scan.size for file in corpus.files], pa.int64()),
        "parts": pa.array([list(file.scan.parts) for file in corpus.files], _STAGED_PARTS),
    }
    described = {"format": corpus.format, "schema": corpus.schema.serialize().to_pybytes()}
    return _packed(pa.table(columns).replace_schema_metadata(described))


def _packed(table: pa.Table) -> pa.Buffer:
    """Encode a table as Arrow IPC: OUTPUT/*.parquet is what users read, in duckdb and polars
    whatever the name.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def committed(folder: Folder, parts: str) -> dict[str, fs.FileInfo]:
    """Return the shards whose parts are in an output, by name, from one listing; other files there
    are none.
    """
    names = {
        name.removesuffix(_ENDING): info
        for name, info in folder.files(parts).items()
        if name.endswith(_ENDING)
    }
    return {name: info for name, info in names.items() if split_shard_name(name)}


def foreign_files(folder: Folder, parts: str) -> list[str]:
    """Return the names of data files among the parts that are no parts, which whoever reads these
    reads, too.
    """
    names = [name for name in folder.files(parts) if name.endswith(_ENDING) and name[0] not in "._"]
    return sorted(name for name in names if not split_shard_name(name.removesuffix(_ENDING)))


def commit_shard(
    folder: Folder, parts: str, stats: dict[str, Any], answered: pa.Table, rejected: pa.Table
) -> None:
    """Write a shard's rejected rows, then its answered ones, each file whole or not at all. A retry
    overwrites.
    """
    if len(rejected):
        folder.write_atomic(f"{REJECTED}/{stats['name']}.parquet", _parquet(rejected))
    folder.write_atomic(
        part_path(parts, stats["name"]), _parquet(answered, {_FOOTER: shard_stats.footer(stats)})
    )


def write_shard_stats(
    folder: Folder, parts: str, new: pa.Table, run_of: Callable[[str, float], str | None]
) -> tuple[pa.Table, set[str]]:
    """Add the stats of a run's shards to those that are stored.

    Returns the stats of all parts in the folder, and the names of shards of the run that are not
    there, although their commits were reported. The stats of a run that was killed are read from
    the footers of its parts.
    """
    present, names, tables = committed(folder, parts), set(new["name"].to_pylist()), [new]
    with suppress(FileNotFoundError):
        earlier = _unpacked(folder.read(SHARDS))
        tables.append(
            earlier.filter(
                pa.array([name not in names for name in earlier["name"].to_pylist()], pa.bool_())
            )
        )
    known = {name for table in tables for name in table["name"].to_pylist()}
    unknown = sorted(present.keys() - known)
    with ThreadPoolExecutor(_THREADS) as pool:
        times = [present[name].mtime_ns / 1e9 for name in unknown]
        paths = [part_path(parts, name) for name in unknown]
        recovered = list(pool.map(partial(_recovered, folder), unknown, paths, times))
    recovered = [
        stats | {"run": run_of(stats["name"], stats["committed_at"])} for stats in recovered
    ]
    stats = pa.concat_tables([*tables, shard_stats.table(recovered)], promote_options="default")
    stats = stats.filter(
        pa.array([name in present for name in stats["name"].to_pylist()], pa.bool_())
    ).sort_by("name")
    folder.write_atomic(SHARDS, _packed(stats))
    return stats, names - present.keys()


def _recovered(folder: Folder, name: str, part: str, written: float) -> dict[str, Any]:
    filesystem, path = folder.filesystem_and_path
    with filesystem.open_input_file(f"{path}/{part}") as stream:
        kept = (pq.read_metadata(stream).metadata or {}).get(_FOOTER.encode(), b"{}")
    return {"name": name, "committed_at": written} | json.loads(kept)


def _parquet(table: pa.Table, footer: dict[str, str] | None = None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        if footer:
            writer.add_key_value_metadata(footer)
    return sink.getvalue()


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) and len(value) > 40 else str(value)


def unwritable(folder: Folder, reason: str) -> JobError:
    """Make the error of an output that can no longer be written."""
    return JobError(f"output '{folder}' cannot be written: {reason}")
