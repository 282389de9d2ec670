"""The row that travels between the Ray stages of a corpus job: its schema and codec.

A shard is ONE row of list columns. Ray can neither split nor merge it, and the lists are already
the packed layout that the model reads: `input_ids` and `cu_seqlens` are the values and offsets of
an Arrow list, taken without a copy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.windows import Windows
from pipelines.input.shards import Piece, Rows, Shard
from pipelines.raydata.cluster import this_node
from pipelines.tasks.outputs import Predictions


class Reject(TypedDict):
    """A rejected row of a shard."""

    row: int
    """Its number in the shard."""
    reason: str
    stage: str
    """The stage that has rejected it: read, text, encode or predict."""
    raw: str | None
    """Its raw text where it could not be parsed."""


REJECT = pa.struct(
    [("row", pa.int64()), ("reason", pa.string()), ("stage", pa.string()), ("raw", pa.string())]
)
"""The Arrow type of a Reject."""
WINDOWS = {
    "input_ids": pa.int32(),
    "cu_seqlens": pa.int64(),
    "document": pa.int64(),
    "start": pa.int64(),
    "n_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "offsets": pa.int32(),
    "token_tags": pa.int8(),
    "chunk_spans": pa.int32(),
}
"""The arrays of a shard's Windows, flattened."""
TOKENISED = pa.schema(
    [
        ("shard", pa.string()),
        *((name, pa.large_list(type_)) for name, type_ in WINDOWS.items()),
        ("rows", pa.large_list(pa.int64())),
        ("rejects", pa.large_list(REJECT)),
        ("positions", pa.large_list(pa.int64())),
        ("stored", pa.large_binary()),
        ("tokenise_s", pa.float64()),
        ("error", pa.string()),
        ("cause", pa.string()),
        ("node", pa.string()),
    ]
)
"""What reading and tokenising gives: `rows` are the row numbers of the documents; `stored` the
columns that were read, as a stream of Arrow, and `positions` the row numbers of these; `error`,
`cause` and `node` (cluster.this_node) if it failed.
"""
COMMITTED = pa.schema(
    [
        ("name", pa.string()),
        ("error", pa.string()),
        ("cause", pa.string()),
        ("node", pa.string()),
        ("stops", pa.bool_()),
        ("rejects", pa.string()),
        ("stats", pa.string()),
    ]
)
START, RAISED, NONE_ANSWERED, CHANGED = "start", "raised", "none answered", "changed"
UNREADABLE, STOPPED = "unreadable", "stopped"
"""Causes of an error that the driver decides on: no actor starts; the model raised, and answers
the probe; the model answers the probe, and none of the shard's rows; the model's files are others
than when the job began; a file of the shard cannot be read; the job stops, and begins no more
shards. The other errors are the shard's own, and final.
"""


def reject(row: int, reason: str, stage: str, raw: str | None = None) -> Reject:
    """Make a Reject; `row` may be numpy's."""
    return {"row": int(row), "reason": reason, "stage": stage, "raw": raw}


def rejects_of_tokenising(
    rejected: Sequence[tuple[int, str]], windows: Windows, rows: Sequence[int] | np.ndarray
) -> list[Reject]:
    """Return the rows without a document, with the reason, and those that cannot be encoded.

    `rejected`: the former; `rows`: the rows of the documents of `windows`.
    """
    rejects = [reject(row, reason, "text") for row, reason in rejected]
    not_encoded: dict[int, str] = {}
    for document, reason in windows.rejected.items():  # in more than one reading, it may be
        not_encoded.setdefault(int(rows[document]), reason)
    rejects += [reject(row, reason, "encode") for row, reason in not_encoded.items()]
    return rejects


def unit_row(shards: Sequence[Shard]) -> dict[str, str]:
    """Encode shards that are read together as the row that enters the pipeline."""
    return {"unit": json.dumps([asdict(shard) for shard in shards])}


def unit_of(table: pa.Table) -> list[Shard]:
    """Decode the shards of such a row."""
    return [_shard(raw) for raw in json.loads(table["unit"][0].as_py())]


def shard_of(table: pa.Table) -> Shard:
    """Decode the shard of a row."""
    return _shard(json.loads(table["shard"][0].as_py()))


def _shard(raw: Json) -> Shard:
    pieces = []
    for piece in raw.pop("pieces"):
        partition = tuple((key, value) for key, value in piece.pop("partition"))
        pieces.append(Piece(partition=partition, **piece))
    row_range = raw.pop("row_range")
    if row_range is not None:
        row_range = (row_range[0], row_range[1])
    return Shard(pieces=tuple(pieces), row_range=row_range, **raw)


def tokenised_row(
    shard: Shard,
    windows: Windows,
    rows: np.ndarray,
    rejects: Sequence[Reject],
    tokenise_s: float,
    stored: Rows | None = None,
) -> pa.Table:
    """Encode a tokenised shard.

    `stored`: its columns, for the commit.
    """
    row = _empty_row(shard)
    for name in WINDOWS:
        row[name] = getattr(windows, name).ravel()
    row["rows"] = rows
    row["rejects"] = rejects
    row["tokenise_s"] = tokenise_s
    if stored is not None:
        row["positions"] = stored.positions
        row["stored"] = _encoded(stored.table)
    return _table(row)


def stored_of(table: pa.Table) -> Rows:
    """Decode the columns of a row's shard, without a copy."""
    content = table["stored"].combine_chunks()[0].as_buffer()
    stored = pa.ipc.open_stream(content).read_all()
    return Rows(stored, array_of(table, "positions"), [])


def _encoded(table: pa.Table) -> pa.Array:
    """Encode a table as an array of one value, a stream of Arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def failed_row(shard: Shard, error: str, cause: str | None = None) -> pa.Table:
    """Encode a shard that was not read.

    `cause`: CHANGED, UNREADABLE, or None if the error is the shard's own.
    """
    return _table(_empty_row(shard) | {"error": error, "cause": cause, "node": this_node()})


def rejected_row(shard: Shard, rejects: Sequence[Reject], stored: Rows) -> pa.Table:
    """Encode a shard without windows, whose rows are all rejected, as if it had been predicted."""
    row = _empty_row(shard)
    row["positions"] = stored.positions
    row["stored"] = _encoded(stored.table)
    return predicted_row(_table(row), _NO_PREDICTIONS, rejects, 0.0)


def unpredicted_row(
    table: pa.Table, error: str, cause: str, rejects: Sequence[Reject] | None = None
) -> pa.Table:
    """Encode a tokenised shard that has no answers.

    `cause`: START, RAISED, NONE_ANSWERED or STOPPED; `rejects`: its rejected rows, None for those
    that the row has from reading, which keep their own reasons.
    """
    if rejects is None:
        rejects = rejects_of(table)
    for name, value in (("error", error), ("node", this_node())):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array([value], pa.string()))
    return predicted_row(table, _NO_PREDICTIONS, rejects, 0.0, cause)


def predicted_row(
    table: pa.Table,
    predictions: Predictions,
    rejects: Sequence[Reject],
    idle_s: float,
    cause: str | None = None,
    budget_tokens: int = 0,
) -> pa.Table:
    """Add predictions to a tokenised shard; its other columns are passed on without a copy.

    `idle_s`: the time that the actor had nothing to do before; `budget_tokens`: the most tokens in
    its batches.
    """
    columns = {name: table[name] for name in table.column_names}
    columns["values"] = _list(pa.array(predictions.values.ravel()))
    columns["splits"] = _list(pa.array(predictions.splits))
    columns["rejects"] = _list(pa.array(rejects, REJECT))
    columns["batches"] = pa.array([predictions.batches])
    columns["room"] = pa.array([predictions.batches * budget_tokens])
    columns["predict_s"] = pa.array([predictions.seconds])
    columns["waited_s"] = pa.array([idle_s])
    if cause is not None:
        columns["cause"] = pa.array([cause], pa.string())
    return pa.table(columns)


def windows_of(table: pa.Table) -> Windows:
    """Decode the Windows of a row; the documents that they reject are among the row's rejects."""
    arrays = {name: array_of(table, name) for name in WINDOWS}
    for name in ("offsets", "chunk_spans"):
        arrays[name] = arrays[name].reshape(-1, 2)
    return Windows(**arrays, rejected={})


def rejects_of(table: pa.Table) -> list[Reject]:
    """Decode the rejected rows of a shard."""
    rejects: list[Reject] = table["rejects"][0].as_py()
    return rejects


def rows_of_documents(table: pa.Table, readings: int) -> np.ndarray:
    """Decode the row of each document, which every one of its readings has."""
    rows = array_of(table, "rows")
    return rows[: len(rows) // readings]


def array_of(table: pa.Table, name: str) -> np.ndarray:
    """Decode a list column of a row, without a copy where the type allows it."""
    values: np.ndarray = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values


@dataclass(frozen=True)
class Committed:
    """What the commit of a shard reports: its stats, or the error instead."""

    name: str
    error: str | None = None
    """In one line; a traceback may follow."""
    cause: str | None = None
    """One of the causes above; None if the error is final."""
    node: str | None = None
    """Where the error was raised (cluster.this_node); None where that says nothing."""
    stops: bool = False
    """Whether the error stops the job: the output cannot be written."""
    rejects: str | None = None
    """The rejected rows of a shard of which none is answered, as JSON."""
    stats: str | None = None
    """The shard's stats (output/shard_stats.py) as JSON."""

    def to_table(self) -> pa.Table:
        """Encode it as a row."""
        return pa.Table.from_pylist([asdict(self)], COMMITTED)


_NO_PREDICTIONS = Predictions(np.empty(0, np.float32), np.zeros(1, np.int64), {}, 0, 0.0)


def _empty_row(shard: Shard) -> dict[str, object]:
    row: dict[str, object] = {name: [] for name in TOKENISED.names}
    row["shard"] = json.dumps(asdict(shard))
    row["stored"] = b""
    row["cu_seqlens"] = [0]
    row["tokenise_s"] = 0.0
    row["error"] = None
    row["cause"] = None
    row["node"] = None
    return row


def _table(row: dict[str, object]) -> pa.Table:
    columns = []
    for field in TOKENISED:
        value = row[field.name]
        if isinstance(value, pa.Array):
            columns.append(value)
        elif pa.types.is_large_list(field.type):
            columns.append(_list(pa.array(value, field.type.value_type)))
        else:
            columns.append(pa.array([value], field.type))
    return pa.table(columns, schema=TOKENISED)


def _list(values: pa.Array) -> pa.Array:
    """A list column of one row that holds `values`, without a copy."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
