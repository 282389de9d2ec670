"""`_files.arrow`: the input files as the last run has planned them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.input.corpus import CUT, Corpus, Shards
from pipelines.input.shards import DataFile, Scan
from pipelines.output.shards_file import packed, unpacked
from pipelines.storage import Folder

FILES = "_files.arrow"
_STAGED_PARTS = pa.list_(pa.struct([("name", pa.string()), ("rows", pa.int64())]))


def read_files(folder: Folder) -> Corpus | None:
    """Read the input files as the last run planned them, without shards; None if there was none."""
    try:
        table = unpacked(folder.read(FILES))
        rows = table.to_pylist()
        files = [_file(row) for row in rows]
    except (OSError, pa.ArrowException, KeyError):  # it saves work, and no more
        return None
    metadata = table.schema.metadata
    format_ = metadata[b"format"].decode()
    is_gone = [row.get("gone", False) for row in rows]
    return Corpus(
        files=[file for file, gone in zip(files, is_gone, strict=True) if not gone],
        format=format_,
        schema=pa.ipc.read_schema(pa.py_buffer(metadata[b"schema"])),
        shards=Shards(format_, [], [], np.empty(0, CUT)),
        gone=[file for file, gone in zip(files, is_gone, strict=True) if gone],
    )


def _file(row: dict[str, Any]) -> DataFile:
    """Decode a file; outputs of version 0.2.0 and before lack some of the columns."""
    parts = tuple((part["name"], part["rows"]) for part in row["parts"])
    scan = Scan(
        row["rows"],
        row["size"],
        parts,
        text_size=row.get("text_size", 0),
        group_rows=row.get("group_rows", 0),
    )
    return DataFile(
        row["path"],
        row["version"],
        scan,
        name=row.get("name", ""),
        step=row.get("step", 0),
        group=row.get("group", ""),
    )


def write_files(folder: Folder, corpus: Corpus) -> None:
    """Write the input files as planned, for `read_files`."""
    files = [*corpus.files, *corpus.gone]
    is_gone = [False] * len(corpus.files) + [True] * len(corpus.gone)
    scans = [file.scan for file in files]
    columns = {
        "path": [file.path for file in files],
        "version": [file.version for file in files],
        "rows": pa.array([scan.rows for scan in scans], pa.int64()),
        "size": pa.array([scan.size for scan in scans], pa.int64()),
        "parts": pa.array([list(scan.parts) for scan in scans], _STAGED_PARTS),
        "text_size": pa.array([scan.text_size for scan in scans], pa.int64()),
        "group_rows": pa.array([scan.group_rows for scan in scans], pa.int64()),
        "name": [file.name for file in files],
        "step": pa.array([file.step for file in files], pa.int64()),
        "group": [file.group for file in files],
        "gone": is_gone,
    }
    metadata = {"format": corpus.format, "schema": corpus.schema.serialize().to_pybytes()}
    folder.write_atomic(FILES, packed(pa.table(columns).replace_schema_metadata(metadata)))
