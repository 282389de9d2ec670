"""A shard's commit: its labelled and its rejected rows, each file whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.output import shard_stats
from pipelines.output.parts import ENDING, part_path
from pipelines.output.shard_stats import Stats
from pipelines.output.shards_file import FOOTER
from pipelines.storage import Folder

REJECTED = "_rejected"
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
_FILES_FOOTER = f"{FOOTER}:files"
"""The key of the files of a part that several share, in its footer."""


@dataclass(frozen=True)
class FileRows:
    """Rows of one file in a part that others share: they follow those of the file before it."""

    file: str
    """The name of the file in the names of parts."""
    path: str
    version: str
    start: int
    """Where they begin in the file."""
    rows: int
    labelled: int


def rejected_path(shard: str) -> str:
    """Return the path of a shard's rejected rows in an output."""
    return f"{REJECTED}/{shard}{ENDING}"


def commit_shard(
    folder: Folder,
    parts: str,
    stats: Stats,
    answered: pa.Table,
    rejected: pa.Table,
    files: Sequence[FileRows] = (),
) -> None:
    """Write a shard's rejected rows, then its labelled ones, each file whole or not at all.

    A retry overwrites.

    Args:
        folder: the output.
        parts: the folder of the parts there (RunRecord.parts).
        stats: those of the shard (shard_stats.py), which the footer keeps.
        answered: the labelled rows, in input order.
        rejected: the rejected rows, in the columns of REJECTED_FIELDS.
        files: for a shard of several files, what of it is of which; the footer keeps it, too.
    """
    name = stats["name"]
    if len(rejected):
        folder.write_atomic(rejected_path(name), _parquet(rejected))
    footer = {FOOTER: shard_stats.footer(stats)}
    if files:
        footer[_FILES_FOOTER] = json.dumps([asdict(file) for file in files])
    folder.write_atomic(part_path(parts, name), _parquet(answered, footer))


def _parquet(table: pa.Table, footer: dict[str, str] | None = None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        if footer:
            writer.add_key_value_metadata(footer)
    return sink.getvalue()


def files_of_part(part: pq.ParquetFile) -> list[FileRows]:
    """Return what of a part is of which file, where several share it; else an empty list."""
    stored = (part.metadata.metadata or {}).get(_FILES_FOOTER.encode())
    return [FileRows(**each) for each in json.loads(stored)] if stored else []
