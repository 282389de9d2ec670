"""The output folder: parts committed whole, rejected rows beside them, and the record of the runs.

    OUTPUT/data/<shard>.parquet        labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, counts, and each attempt (record.py)
    OUTPUT/_report.html                the same, to look at
    OUTPUT/_shards.arrow               what is known of each shard (shard_stats.py)
    OUTPUT/_files.arrow                the input files as planned; only new ones are read again
    OUTPUT/_staged/                    files that cannot be read by row (input/staging.py), until
                                       the run is complete
    OUTPUT/_lease.json                 who is writing now

OUTPUT/data reads as one table in every library: nothing else is in it. An output that was begun
before there was such a folder has its parts in OUTPUT itself, and goes on so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from modernbert.stored import Json
from pipelines.errors import JobError, UserError
from pipelines.input.names import split_shard_name
from pipelines.input.shards import Corpus, DataFile, Scan
from pipelines.input.staging import STAGED
from pipelines.output import shard_stats
from pipelines.output.lease import LEASE
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.output.shard_stats import Stats
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


def open_output(folder: Folder, fingerprint: Json, overwrite: bool) -> RunRecord | None:
    """Check that `folder` can take this run, and return the record that the run continues, if any.

    Raises UserError if it holds something else, or an output whose fingerprint differs.
    """
    record = read_record(folder)
    if record is None:
        if _holds_something_else(folder):
            raise UserError(
                f"output '{folder}' holds something else than an output of this job; name another "
                "folder"
            )
        return None
    if overwrite:
        return None
    differences: list[str] = []
    for key, value in fingerprint.items():
        earlier = record.fingerprint.get(key)
        if earlier != value:
            differences.append(f"{key} {_short(earlier)}, not {_short(value)}")
    if differences:
        raise UserError(
            f"output '{folder}' was begun with {', '.join(differences)}; name another folder, or "
            "replace it with --overwrite"
        )
    return record


def begin_run(folder: Folder, record: RunRecord, corpus: Corpus, overwrite: bool) -> set[str]:
    """Write the record of this run, and return the names of the shards that are done, from one
    listing.

    With `overwrite`, an earlier output is removed first; without, its parts of files that have
    changed since. Raises UserError if the output cannot be written.
    """
    try:
        return _begin_run(folder, record, corpus, overwrite)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output '{folder}' cannot be written: {reason}") from error


def _begin_run(folder: Folder, record: RunRecord, corpus: Corpus, overwrite: bool) -> set[str]:
    _remove_temporary(folder)
    if overwrite:
        _remove_output(folder)
    present = set(committed(folder, record.parts))
    planned = {shard.name for shard in corpus.shards}
    split, subshards = _split_shards(present - planned, corpus)

    # A part of a file of this corpus that is in nobody's plan is of an earlier version of it.
    file_names = {file.name for file in corpus.files}
    file_names |= {file.former for file in corpus.files if file.former}
    unplanned = present - planned - subshards
    stale = [name for name in unplanned if _file_of(name) in file_names]
    # The rejected rows first: without its part, nobody looks for them again.
    _remove(folder, [_rejected_path(name) for name in stale])
    _remove(folder, [part_path(record.parts, name) for name in stale])

    record.write(folder)
    folder.write_atomic(FILES, _encode_files(corpus))
    return (present & planned) | split


def part_path(parts: str, shard: str) -> str:
    """Return the path of a shard's part in an output; `parts` is the folder there (RunRecord)."""
    return f"{parts}/{shard}{_ENDING}" if parts else f"{shard}{_ENDING}"


def _rejected_path(shard: str) -> str:
    return f"{REJECTED}/{shard}{_ENDING}"


def _remove_output(folder: Folder) -> None:
    """Remove an earlier output, whichever folder its parts are in."""
    for parts in ("", PARTS):
        _remove(folder, [part_path(parts, name) for name in committed(folder, parts)])
    rejected = [f"{REJECTED}/{name}" for name in folder.files(REJECTED)]
    _remove(folder, [REPORT, SHARDS, *rejected])


def _remove_temporary(folder: Folder) -> None:
    """Remove what writes have left whose process ended; this run alone may write here now."""
    if not folder.is_local:
        return
    for below in ("", PARTS, REJECTED, STAGED):
        temporary = [name for name in folder.files(below) if is_temporary(name)]
        _remove(folder, [f"{below}/{name}".lstrip("/") for name in temporary])


def _remove(folder: Folder, names: list[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(folder.remove, names))


def _holds_something_else(folder: Folder) -> bool:
    """Tell whether an output without a record is not what a run leaves that has only just begun."""
    if folder.is_local and Path(folder.uri).is_file():
        return True
    for name in folder.files():
        if name not in (FILES, LEASE, STAGED) and not name.startswith("."):
            return True
    return False


def read_files(folder: Folder) -> Corpus | None:
    """Read the input files as the last run planned them, without shards; None if there was none."""
    try:
        table = _unpacked(folder.read(FILES))
        columns = [table[name].to_pylist() for name in ("path", "version", "rows", "size", "parts")]
        # Version 0.2.0 did not write these.
        for name in ("group_rows", "text_size"):
            is_known = name in table.column_names
            columns.append(table[name].to_pylist() if is_known else [0] * len(table))
    except (OSError, pa.ArrowException, KeyError):  # it saves work, and no more
        return None
    files: list[DataFile] = []
    for path, version, rows, size, parts, group_rows, text_size in zip(*columns, strict=True):
        staged_parts = tuple((part["name"], part["rows"]) for part in parts)
        scan = Scan(rows, size, staged_parts, group_rows, text_size)
        files.append(DataFile(path, version, scan))
    metadata = table.schema.metadata
    schema = pa.ipc.read_schema(pa.py_buffer(metadata[b"schema"]))
    return Corpus(files, metadata[b"format"].decode(), schema, [], 0)


def _split_shards(names: set[str], corpus: Corpus) -> tuple[set[str], set[str]]:
    """Return the shards that were split and whose rows are all there, and the names of their parts.

    `names`: the parts of the output that no shard is named after.
    """
    parts_of_file: dict[str, list[tuple[int, int, str]]] = {}  # (start, stop, name), by version
    for name in names:
        shard_name = split_shard_name(name)
        if shard_name is not None:
            parts = parts_of_file.setdefault(name.rsplit("-", 2)[0], [])
            parts.append((shard_name.start, shard_name.stop, name))
    whole: set[str] = set()
    subshards: set[str] = set()
    if not parts_of_file:
        return whole, subshards

    for shard in corpus.shards:
        shard_stop = shard.start + shard.rows
        inside: list[str] = []
        rows_inside = 0
        for start, stop, name in parts_of_file.get(shard.name.rsplit("-", 2)[0], []):
            if shard.start <= start and stop <= shard_stop:
                inside.append(name)
                rows_inside += stop - start
        if rows_inside == shard.rows:
            whole.add(shard.name)
            subshards.update(inside)
    return whole, subshards


def _file_of(name: str) -> str:
    """Return the part of a shard's name that stands for its file, without the version."""
    return name.rsplit("-", 3)[0]


def _encode_files(corpus: Corpus) -> pa.Buffer:
    """Encode the input files as planned, for `read_files`."""
    files = corpus.files
    columns = {
        "path": [file.path for file in files],
        "version": [file.version for file in files],
        "rows": pa.array([file.scan.rows for file in files], pa.int64()),
        "size": pa.array([file.scan.size for file in files], pa.int64()),
        "parts": pa.array([list(file.scan.parts) for file in files], _STAGED_PARTS),
        "group_rows": pa.array([file.scan.group_rows for file in files], pa.int64()),
        "text_size": pa.array([file.scan.text_size for file in files], pa.int64()),
    }
    metadata = {"format": corpus.format, "schema": corpus.schema.serialize().to_pybytes()}
    return _packed(pa.table(columns).replace_schema_metadata(metadata))


def _packed(table: pa.Table) -> pa.Buffer:
    """Encode a table as Arrow IPC: duckdb and polars read any *.parquet as a part of the output."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def committed(folder: Folder, parts: str) -> dict[str, fs.FileInfo]:
    """Return the shards whose parts are in an output, by name, from one listing.

    Files whose names are not those of parts are passed over.
    """
    shards: dict[str, fs.FileInfo] = {}
    for file, info in folder.files(parts).items():
        name = file.removesuffix(_ENDING)
        if file.endswith(_ENDING) and split_shard_name(name):
            shards[name] = info
    return shards


def foreign_files(folder: Folder, parts: str) -> list[str]:
    """Return the names of data files beside the parts: whoever reads these reads them, too."""
    foreign: list[str] = []
    for file in folder.files(parts):
        is_read = file.endswith(_ENDING) and file[0] not in "._"
        if is_read and not split_shard_name(file.removesuffix(_ENDING)):
            foreign.append(file)
    return sorted(foreign)


def commit_shard(
    folder: Folder, parts: str, stats: Stats, answered: pa.Table, rejected: pa.Table
) -> None:
    """Write a shard's rejected rows, then its labelled ones, each file whole or not at all.

    A retry overwrites.

    Args:
        folder: the output.
        parts: the folder of the parts there (RunRecord.parts).
        stats: those of the shard (shard_stats.py), which the footer keeps.
        answered: the labelled rows, in input order.
        rejected: the rejected rows, in the columns of REJECTED_FIELDS.
    """
    name = stats["name"]
    if len(rejected):
        folder.write_atomic(_rejected_path(name), _parquet(rejected))
    footer = {_FOOTER: shard_stats.footer(stats)}
    folder.write_atomic(part_path(parts, name), _parquet(answered, footer))


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
        earlier = _unpacked(folder.read(SHARDS))
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
    folder.write_atomic(SHARDS, _packed(stats))
    return stats, new_names - present.keys()


def _recover(folder: Folder, parts: str, shards: dict[str, fs.FileInfo]) -> list[Stats]:
    """Return what the footers of parts keep of their shards' stats."""
    filesystem, path = folder.filesystem_and_path

    def recover(name: str) -> Stats:
        with filesystem.open_input_file(f"{path}/{part_path(parts, name)}") as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        footer: Stats = json.loads(metadata.get(_FOOTER.encode(), b"{}"))
        written_at = shards[name].mtime_ns / 1e9
        return {"name": name, "committed_at": written_at} | footer

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(recover, sorted(shards)))


def _parquet(table: pa.Table, footer: dict[str, str] | None = None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        if footer:
            writer.add_key_value_metadata(footer)
    return sink.getvalue()


def _short(value: object) -> str:
    """Return a value for a message; of a digest, the beginning."""
    text = str(value)
    is_digest = isinstance(value, str) and len(text) > 40
    return text[:12] if is_digest else text


def unwritable(folder: Folder, reason: str) -> JobError:
    """Make the error of an output that can no longer be written."""
    return JobError(f"output '{folder}' cannot be written: {reason}")
