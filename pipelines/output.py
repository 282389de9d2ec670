"""The output folder: part files committed whole, rejected rows beside them, and the record of the run.

    OUTPUT/<shard>.parquet             labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, options and counts
    OUTPUT/_files.arrow                the input files as they were read, so that only new ones are read again
    OUTPUT/_lease.json                 who is writing now

Readers skip names that begin with an underscore, so the folder reads as one table.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import UserError
from pipelines.shards import Corpus, DataFile
from pipelines.text_files import Scan

RUN, FILES, LEASE, REJECTED = "_run.json", "_files.arrow", "_lease.json", "_rejected"
_RENEWED_S, _EXPIRES_S = 10.0, 60.0
REJECTED_FIELDS = pa.schema(
    [
        ("_reason", pa.string()),
        ("_stage", pa.string()),
        ("_file", pa.string()),
        ("_row", pa.int64()),
        ("_raw", pa.string()),
    ]
)


def open_output(folder: Path, fingerprint: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Check that `folder` can take this run, and return the record of the run that it continues, if any.

    Raises UserError where it holds something else, or answers of a run that differs in what `fingerprint` names.
    """
    record = read_run(folder)
    if record is None:
        if folder.exists() and (not folder.is_dir() or any(not _is_ours(entry) for entry in folder.iterdir())):
            raise UserError(
                f"output {str(folder)!r} holds something else than an output of this job; name another folder"
            )
        return None
    if overwrite:
        return None
    differing = [key for key in fingerprint if record["fingerprint"].get(key) != fingerprint[key]]
    if differing:
        shown = ", ".join(
            f"{k} {_short(record['fingerprint'].get(k))}, not {_short(fingerprint[k])}" for k in differing
        )
        raise UserError(
            f"output {str(folder)!r} was begun with {shown}; name another folder, or replace it with --overwrite"
        )
    return record


def begin_run(folder: Path, record: dict[str, Any], corpus: Corpus, overwrite: bool) -> set[str]:
    """Write what this run is about, and return the names of the shards that are done: one listing.

    With `overwrite`, an earlier output of ours is removed first; else what it has of files that have changed since.
    """
    try:
        if overwrite:
            for part in folder.glob("*.parquet"):
                part.unlink()
            shutil.rmtree(folder / REJECTED, ignore_errors=True)
        there, planned = committed(folder), {shard.name for shard in corpus.shards}
        split, pieces = _split_shards(there - planned, corpus)
        files = {_file_of(name) for name in planned}
        for name in sorted(there - planned - pieces):
            if _file_of(name) in files:
                (folder / f"{name}.parquet").unlink()
                (folder / REJECTED / f"{name}.parquet").unlink(missing_ok=True)
        write_run(folder, record)
        _put(folder / FILES, _files(corpus))
        return (there & planned) | split
    except OSError as error:
        raise UserError(f"output {str(folder)!r} cannot be written: {error.strerror}") from error


def _is_ours(entry: Path) -> bool:
    """Whether a run that has only just begun, or died then, leaves such a file."""
    return entry.name in (FILES, LEASE) or entry.name.startswith(".")


def read_files(folder: Path) -> Corpus | None:
    """The input files as the last run read them, without shards; None where there was none."""
    try:
        table = pa.ipc.open_file(pa.py_buffer((folder / FILES).read_bytes())).read_all()
    except (OSError, pa.ArrowException):  # it saves work, and no more
        return None
    kind, schema = table.schema.metadata[b"format"].decode(), table.schema.metadata[b"schema"]
    marks = table["marks"].combine_chunks()
    files = [
        DataFile(path, version, Scan(rows, marks[i].values.to_numpy(), end))
        for i, (path, version, rows, end) in enumerate(
            zip(*(table[name].to_pylist() for name in ("path", "version", "rows", "end")), strict=True)
        )
    ]
    return Corpus(files, kind, pa.ipc.read_schema(pa.py_buffer(schema)), [], 0)


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Hold the output for this process, so that no second run writes to it; UserError where another run holds it.

    The lease is a file that is touched every ten seconds: one that has not been for a minute, or whose process is gone
    from this machine, is a dead run's and is taken over.
    """
    file, me = folder / LEASE, {"host": socket.gethostname(), "process": os.getpid(), "processes": _processes()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (holder := _holder(file)) is not None:
            raise UserError(
                f"output {str(folder)!r} is being written by process {holder['process']} on {holder['host']}; wait for "
                f"it to end (a dead run's lease expires after {_EXPIRES_S:.0f} s), or name another folder"
            )
        with open(file, "x") as stream:
            json.dump(me, stream)
    except FileExistsError as error:
        raise UserError(f"output {str(folder)!r} is being written by a run that has just begun") from error
    except OSError as error:
        raise UserError(f"output {str(folder)!r} cannot be written: {error.strerror}") from error
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWED_S):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):
            file.unlink()


def _holder(file: Path) -> dict[str, Any] | None:
    """Who holds the lease; None where nobody does, or a dead run did, whose lease is removed."""
    try:
        told, age = json.loads(file.read_text()), _now(file.parent) - file.stat().st_mtime
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:  # a run that died while it wrote it, or one that is writing it now
        told, age = dict.fromkeys(("host", "process", "processes")), _now(file.parent) - file.stat().st_mtime
    if age < _EXPIRES_S and not (told["processes"] == _processes() and not _alive(told["process"])):
        return told
    dead = file.with_name(f".{file.name}.{uuid4().hex}")
    os.rename(file, dead)  # of two runs that find it dead, one succeeds
    dead.unlink()
    return None


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which may be another machine's."""
    probe = folder / f".clock.{uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _processes() -> str:
    """Which processes our numbers are of: those of this machine since it started, and in this container."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux: a dead run's lease has to expire
        return uuid4().hex


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _split_shards(names: set[str], corpus: Corpus) -> tuple[set[str], set[str]]:
    """The shards whose rows lie in several parts, all of them, since they were split, and the names of these parts."""
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name in names:
        stem, start, stop = name.rsplit("-", 2)
        if start.isdigit() and stop.isdigit():
            parts.setdefault(stem, []).append((int(start), int(stop), name))
    whole, pieces = set(), set()
    for shard in corpus.shards if parts else []:
        first, last = shard.start, shard.start + shard.rows
        inside = [part for part in parts.get(shard.name.rsplit("-", 2)[0], []) if first <= part[0] and part[1] <= last]
        if sum(stop - start for start, stop, _ in inside) == shard.rows:
            whole.add(shard.name)
            pieces |= {name for _, _, name in inside}
    return whole, pieces


def _file_of(name: str) -> str:
    """What a shard's name begins with: its file, whatever the version."""
    return name.rsplit("-", 3)[0]


def _files(corpus: Corpus) -> pa.Buffer:
    columns = {
        "path": [file.path for file in corpus.files],
        "version": [file.version for file in corpus.files],
        "rows": pa.array([file.scan.rows for file in corpus.files], pa.int64()),
        "marks": pa.array([file.scan.marks for file in corpus.files], pa.large_list(pa.int64())),
        "end": pa.array([file.scan.end for file in corpus.files], pa.int64()),
    }
    described = {"format": corpus.format, "schema": corpus.schema.serialize().to_pybytes()}
    table, sink = pa.table(columns).replace_schema_metadata(described), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record of the run in `folder`; None where there is none."""
    try:
        return json.loads((folder / RUN).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / RUN} cannot be read: {error}") from error


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Replace the record of the run."""
    _put(folder / RUN, (json.dumps(record, indent=2) + "\n").encode())


def committed(folder: Path) -> set[str]:
    """The names of the shards whose output is in `folder`: one listing."""
    names = (entry.name for entry in os.scandir(folder))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and name[0] not in "._"}


def commit_shard(folder: Path, name: str, labelled: pa.Table, rejected: pa.Table) -> None:
    """Write a shard's rejects, then its labelled rows, each file whole or not at all; a retry overwrites itself."""
    if len(rejected):
        (folder / REJECTED).mkdir(exist_ok=True)
        _put(folder / REJECTED / f"{name}.parquet", _parquet(rejected))
    _put(folder / f"{name}.parquet", _parquet(labelled))


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _put(path: Path, data: bytes | pa.Buffer) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) and len(value) > 40 else str(value)
