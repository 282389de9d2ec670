"""The output folder: part files committed whole, rejected rows beside them, and the record of the runs.

    OUTPUT/<shard>.parquet             labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, counts, and each attempt
    OUTPUT/_report.html                the same, to look at
    OUTPUT/_shards.arrow               what is known of each shard (receipts.py)
    OUTPUT/_files.arrow                the input files as they were read, so that only new ones are read again
    OUTPUT/_lease.json                 who is writing now

Readers skip names that begin with an underscore, so the folder reads as one table.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.shards import Corpus, DataFile, Scan
from pipelines.output import shard_stats
from pipelines.output.lease import LEASE
from pipelines.storage import Folder

RUN, REPORT, SHARDS, FILES, REJECTED = "_run.json", "_report.html", "_shards.arrow", "_files.arrow", "_rejected"
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
_THREADS = 16


def open_output(folder: Folder, fingerprint: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Check that `folder` can take this run, and return the record of the run that it continues, if any.

    Raises UserError where it holds something else, or answers of a run that differs in what `fingerprint` names.
    """
    record = read_run(folder)
    if record is None:
        if (folder.is_local and Path(folder.location).is_file()) or any(not _is_ours(name) for name in folder.files()):
            raise UserError(f"output '{folder}' holds something else than an output of this job; name another folder")
        return None
    if overwrite:
        return None
    differing = [key for key in fingerprint if record["fingerprint"].get(key) != fingerprint[key]]
    if differing:
        shown = ", ".join(
            f"{k} {_short(record['fingerprint'].get(k))}, not {_short(fingerprint[k])}" for k in differing
        )
        raise UserError(
            f"output '{folder}' was begun with {shown}; name another folder, or replace it with --overwrite"
        )
    return record


def begin_run(folder: Folder, record: dict[str, Any], corpus: Corpus, overwrite: bool) -> set[str]:
    """Write what this run is about, and return the names of the shards that are done: one listing.

    With `overwrite`, an earlier output of ours is removed first; else what it has of files that have changed since.
    """
    try:
        there = set(committed(folder))
        if overwrite:
            _remove(folder, [REPORT, SHARDS, *(f"{name}.parquet" for name in there)])
            _remove(folder, [f"{REJECTED}/{name}" for name in folder.files(REJECTED)])
            there = set()
        planned = {shard.name for shard in corpus.shards}
        split, subshards = _split_shards(there - planned, corpus)
        files = {_file_of(name) for name in planned}
        stale = [f"{name}.parquet" for name in there - planned - subshards if _file_of(name) in files]
        _remove(folder, stale + [f"{REJECTED}/{name}" for name in stale])
        write_run(folder, record)
        folder.write_atomic(FILES, _files(corpus))
        return (there & planned) | split
    except OSError as error:
        raise UserError(f"output '{folder}' cannot be written: {error.strerror or error}") from error


def _remove(folder: Folder, names: list[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(folder.remove, names))


def _is_ours(name: str) -> bool:
    """Whether a run that has only just begun, or died then, leaves such a file."""
    return name in (FILES, LEASE) or name.startswith(".")


def read_files(folder: Folder) -> Corpus | None:
    """The input files as the last run read them, without shards; None where there was none."""
    try:
        table = _unpacked(folder.read(FILES))
        row_offsets = table["row_offsets"].combine_chunks()
    except (OSError, pa.ArrowException, KeyError):  # it saves work, and no more
        return None
    kind, schema = table.schema.metadata[b"format"].decode(), table.schema.metadata[b"schema"]
    files = [
        DataFile(path, version, Scan(rows, row_offsets[i].values.to_numpy(), end))
        for i, (path, version, rows, end) in enumerate(
            zip(*(table[name].to_pylist() for name in ("path", "version", "rows", "end")), strict=True)
        )
    ]
    return Corpus(files, kind, pa.ipc.read_schema(pa.py_buffer(schema)), [], 0)


def _split_shards(names: set[str], corpus: Corpus) -> tuple[set[str], set[str]]:
    """The shards whose rows lie in several parts, all of them, since they were split, and the names of these parts."""
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name in names:
        stem, start, stop = name.rsplit("-", 2)
        if start.isdigit() and stop.isdigit():
            parts.setdefault(stem, []).append((int(start), int(stop), name))
    whole, subshards = set(), set()
    for shard in corpus.shards if parts else []:
        first, last = shard.start, shard.start + shard.rows
        inside = [part for part in parts.get(shard.name.rsplit("-", 2)[0], []) if first <= part[0] and part[1] <= last]
        if sum(stop - start for start, stop, _ in inside) == shard.rows:
            whole.add(shard.name)
            subshards |= {name for _, _, name in inside}
    return whole, subshards


def _file_of(name: str) -> str:
    """What a shard's name begins with: its file, whatever the version."""
    return name.rsplit("-", 3)[0]


def _files(corpus: Corpus) -> pa.Buffer:
    columns = {
        "path": [file.path for file in corpus.files],
        "version": [file.version for file in corpus.files],
        "rows": pa.array([file.scan.rows for file in corpus.files], pa.int64()),
        "row_offsets": pa.array([file.scan.row_offsets for file in corpus.files], pa.large_list(pa.int64())),
        "end": pa.array([file.scan.end for file in corpus.files], pa.int64()),
    }
    described = {"format": corpus.format, "schema": corpus.schema.serialize().to_pybytes()}
    return _packed(pa.table(columns).replace_schema_metadata(described))


def _packed(table: pa.Table) -> pa.Buffer:
    """A table of ours as Arrow: users read OUTPUT/*.parquet, with duckdb and polars whatever a name begins with."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def read_run(folder: Folder) -> dict[str, Any] | None:
    """The record of the runs in `folder`; None where there is none."""
    try:
        return json.loads(folder.read(RUN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}/{RUN} cannot be read: {error}") from error


def write_run(folder: Folder, record: dict[str, Any]) -> None:
    """Replace the record of the runs."""
    folder.write_atomic(RUN, (json.dumps(record, indent=2) + "\n").encode())


def committed(folder: Folder) -> dict[str, fs.FileInfo]:
    """The shards whose output is in `folder`, by name: one listing."""
    files = folder.files()
    parts = {name: info for name, info in files.items() if name.endswith(".parquet") and name[0] not in "._"}
    return {name.removesuffix(".parquet"): info for name, info in parts.items()}


def commit_shard(folder: Folder, stats: dict[str, Any], labelled: pa.Table, rejected: pa.Table) -> None:
    """Write a shard's rejects, then its labelled rows, each file whole or not at all; a retry overwrites itself."""
    name = f"{stats['name']}.parquet"
    if len(rejected):
        folder.write_atomic(f"{REJECTED}/{name}", _parquet(rejected))
    folder.write_atomic(name, _parquet(labelled, {_FOOTER: shard_stats.footer(stats)}))


def write_shard_stats(folder: Folder, new: pa.Table) -> pa.Table:
    """Add the receipts `new` to those that are kept, and return those of all parts in the folder.

    Those of a run that was killed are read from the footers of its parts.
    """
    there, fresh, tables = committed(folder), set(new["name"].to_pylist()), [new]
    with suppress(FileNotFoundError):
        earlier = _unpacked(folder.read(SHARDS))
        tables.append(earlier.filter(pa.array([name not in fresh for name in earlier["name"].to_pylist()], pa.bool_())))
    known = {name for table in tables for name in table["name"].to_pylist()}
    lacking = sorted(there.keys() - known)
    with ThreadPoolExecutor(_THREADS) as pool:
        told = list(pool.map(partial(_recovered, folder), lacking, [there[name].mtime_ns / 1e9 for name in lacking]))
    every = pa.concat_tables([*tables, shard_stats.table(told)])
    every = every.filter(pa.array([name in there for name in every["name"].to_pylist()], pa.bool_())).sort_by("name")
    folder.write_atomic(SHARDS, _packed(every))
    return every


def _recovered(folder: Folder, name: str, written: float) -> dict[str, Any]:
    filesystem, path = folder.filesystem_and_path
    with filesystem.open_input_file(f"{path}/{name}.parquet") as stream:
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
