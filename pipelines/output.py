"""The output folder: part files committed whole, rejected rows beside them, and the record of the run.

    OUTPUT/<shard>.parquet             labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, options and counts

Readers skip names that begin with an underscore, so the folder reads as one table.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import UserError

RUN, REJECTED = "_run.json", "_rejected"
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
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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


def begin_run(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Make the folder and write `record` into it; with `overwrite`, an earlier output of ours is removed first."""
    try:
        if overwrite and read_run(folder) is not None:
            for part in folder.glob("*.parquet"):
                part.unlink()
            shutil.rmtree(folder / REJECTED, ignore_errors=True)
            (folder / RUN).unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, record)
    except OSError as error:
        raise UserError(f"output {str(folder)!r} cannot be written: {error.strerror}") from error


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
    return {entry.name.removesuffix(".parquet") for entry in os.scandir(folder) if entry.name.endswith(".parquet")}


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


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) and len(value) > 40 else str(value)
