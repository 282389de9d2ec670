"""The stages of a corpus job as Ray Data runs them: read and tokenise, predict, commit.

A shard travels between them as one row (wire.py). Columns that are only passed through are read
again at the commit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from modernbert.stored import CheckpointChanged
from modernbert.text.windows import Text
from pipelines.corpus.nodes import check_lease
from pipelines.corpus.plan import Job
from pipelines.inference.documents import accepted_documents, answer_columns, clashing, encode
from pipelines.inference.outputs import model_outputs
from pipelines.input.documents import readable, readable_columns
from pipelines.input.inspection import one_line
from pipelines.input.plan import read_shard
from pipelines.input.shards import Rows, Shard
from pipelines.output.folder import REJECTED_FIELDS, commit_shard
from pipelines.output.shard_stats import count_items, count_scores, count_windows
from pipelines.raydata import wire
from pipelines.raydata.wire import Committed


def read_and_tokenise(job: Job, table: pa.Table) -> pa.Table:
    """Turn a shard's texts into packed windows; rows that cannot be encoded are rejected.

    A shard that cannot be read carries its error on: it must not stop the others.
    """
    started = time.perf_counter()
    shard = wire.shard_of(table)
    try:
        read = read_shard(
            job.source, job.folder, shard, job.schema, list(dict.fromkeys(job.text_columns))
        )
        documents, rows, rejected = _documents(job, read)
        windows = encode(job, documents, job.max_characters)
        rejects = [wire.reject(row, reason, "read", raw) for row, reason, raw in read.bad]
        rejects += [wire.reject(row, reason, "text") for row, reason in rejected]
        rejects += [
            wire.reject(rows[i], reason, "encode") for i, reason in windows.rejected.items()
        ]
        return wire.tokenised_row(shard, windows, rows, rejects, time.perf_counter() - started)
    except CheckpointChanged as error:
        return wire.failed_row(shard, one_line(error), wire.CHANGED)
    except Exception as error:  # whatever it is, it is this shard's alone
        return wire.failed_row(shard, f"cannot be read: {one_line(error)}")


def reject_shard(job: Job, shard: Shard, rejects: list[dict[str, Any]]) -> Committed:
    """Commit a shard with all its rows rejected, each for the reason in `rejects`
    (`wire.reject`).
    """
    return _commit(job, wire.rejected_row(shard, rejects))


def commit(job: Job, table: pa.Table) -> pa.Table:
    """Write a shard's rows with their answers, and its rejected rows; report what was written."""
    try:
        committed = _commit(job, table)
    except Exception as error:  # whatever it is, it is this shard's alone
        committed = Committed(
            wire.shard_of(table).name, error=f"cannot be committed: {one_line(error)}"
        )
    return committed.to_table()


def _commit(job: Job, table: pa.Table) -> Committed:
    shard, error, cause = wire.shard_of(table), table["error"][0].as_py(), table["cause"][0].as_py()
    if error:
        rejects = json.dumps(wire.rejects_of(table)) if cause == wire.NONE_ANSWERED else None
        return Committed(shard.name, error=error, cause=cause, rejects=rejects)
    try:
        stats, answered, rejected = _answers(job, shard, table)
    except CheckpointChanged as error:
        return Committed(shard.name, error=one_line(error), cause=wire.CHANGED)
    except OSError as error:  # of the input, which is this shard's alone
        return Committed(shard.name, error=f"cannot be committed: {one_line(error)}")
    try:
        check_lease(job.folder, job.run)
        commit_shard(job.folder, job.parts, stats, answered, rejected)
    except OSError as error:
        return Committed(shard.name, error=one_line(error), stops=True)
    stats |= {
        name: table[name][0].as_py()
        for name in ("batches", "room", "predict_s", "tokenise_s", "waited_s")
    }
    stats |= {"committed_at": time.time()}
    return Committed(shard.name, stats=json.dumps(stats))


def _answers(job: Job, shard: Shard, table: pa.Table) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Decode a shard: its stats, the table of its answered rows and that of its rejected rows."""
    windows, rows, rejects = (
        wire.windows_of(table),
        wire.array_of(table, "rows"),
        wire.rejects_of(table),
    )
    good = np.flatnonzero(~np.isin(rows, [reject["row"] for reject in rejects]))
    texts = job.text_columns if job.task.needs_documents else []
    wanted = {*job.keep_columns, *(job.text_columns if rejects else texts)}
    stored = [name for name in job.schema.names if name in wanted]
    read = read_shard(job.source, job.folder, shard, job.schema, stored)
    documents = _documents(job, read)[0] if texts else None
    splits, values = wire.array_of(table, "splits"), wire.array_of(table, "values")
    outputs = model_outputs(job.task, job.model.tokenizer, documents, windows, values, splits)
    answers = answer_columns(job.task, outputs, pa.array(good))
    decoded = pa.StructArray.from_arrays(
        [answers[name] for name in job.task.columns.names], fields=list(job.task.columns)
    )
    index = {int(position): i for i, position in enumerate(read.positions)}
    kept = pa.array([index[row] for row in rows[good].tolist()], pa.int64())
    columns, replaced = readable_columns(
        {name: read.table[name].take(kept) for name in job.keep_columns}
    )
    columns |= {job.prefix + name: values for name, values in answers.items()}
    stats: dict[str, Any] = {
        "name": shard.name,
        "rows": shard.count,
        "labelled": len(good),
        "tokens": len(windows.input_ids),
        "truncated": int(windows.truncated[good].sum()),
        "replaced": replaced,
        **count_windows(windows.lengths),
        "scores": count_scores(job.task.scores(decoded).to_numpy(zero_copy_only=False)),
        "labels": job.task.label_counts(decoded),
        "rejects": Counter(reject["reason"] for reject in rejects),
    }
    if job.task.counted:
        stats |= count_items(decoded.field(job.task.counted[0]))
    return stats, pa.table(columns), _rejected(shard, read.table, index, rejects)


def _documents(job: Job, read: Rows) -> tuple[list[Text], np.ndarray, list[tuple[int, str]]]:
    """Return the documents of a shard, their row numbers, and the rows that hold none or that the
    task rejects.
    """
    columns, most = [read.table[name] for name in job.text_columns], job.max_characters
    documents, rows, rejects = accepted_documents(
        job.task, columns, most, f"longer than --max-characters {most}"
    )
    return (
        documents,
        read.positions[rows],
        [(int(read.positions[row]), reason) for row, reason in rejects],
    )


def _rejected(
    shard: Shard, table: pa.Table, index: dict[int, int], rejects: list[dict[str, Any]]
) -> pa.Table:
    """Make the table of rejected rows, in input order: their columns, null if the row could not be
    read, and why.
    """
    rejects = sorted(rejects, key=lambda reject: reject["row"])
    rows = pa.array([index.get(reject["row"]) for reject in rejects], pa.int64())
    names = table.column_names if rejects else []
    clash = clashing(
        REJECTED_FIELDS.names, names
    )  # the user's own, of rejected rows that are an input again for one
    columns = {
        f"{name}_of_input" if name in clash else name: readable(table[name].take(rows))
        for name in names
    }
    fields = {
        "_reason": [reject["reason"] for reject in rejects],
        "_stage": [reject["stage"] for reject in rejects],
        "_shard": [shard.name] * len(rejects),
        "_file": [shard.path] * len(rejects),
        "_row": [shard.start + reject["row"] for reject in rejects],
        "_raw": [reject["raw"] for reject in rejects],
    }
    return pa.table(
        columns
        | {field.name: pa.array(fields[field.name], field.type) for field in REJECTED_FIELDS}
    )
