"""The stages of a corpus job as Ray Data runs them: read and tokenise, predict, commit.

A shard travels between them as one row (wire.py), and with it the columns that are passed through:
a file is read once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray

from modernbert.stored import CheckpointChanged
from modernbert.text.windows import Text
from pipelines.corpus.checking import check_answers
from pipelines.corpus.nodes import check_lease
from pipelines.corpus.plan import Job
from pipelines.inference.documents import accepted_documents, answer_columns, clashing, encode
from pipelines.inference.outputs import model_outputs
from pipelines.input.documents import readable, readable_columns
from pipelines.input.fields import column_of, take_field
from pipelines.input.reading import read_shard, read_unit
from pipelines.input.shards import Rows, Shard
from pipelines.output.committing import REJECTED_FIELDS, FileRows, commit_shard
from pipelines.output.shard_stats import Stats, count_items, count_scores, count_windows
from pipelines.raydata import wire
from pipelines.raydata.cluster import this_node
from pipelines.raydata.watch import WatchHandle
from pipelines.raydata.wire import Committed, Reject
from pipelines.storage import one_line
from pipelines.tasks.base import Task

_FIGURES = ("batches", "room", "predict_s", "tokenise_s", "waited_s")
"""What earlier stages have counted and timed, under the names of the stats."""


def read_and_tokenise(
    job: Job, table: pa.Table, watch: WatchHandle | None = None
) -> Iterator[pa.Table]:
    """Turn the texts of shards into packed windows, a shard at a time; rows that cannot be encoded
    are rejected.

    A shard that cannot be read carries its error on: it must not stop the others. Where `watch`
    tells that the job stops, nothing more is read.
    """
    shards = wire.unit_of(table)
    if watch is not None and ray.get(watch.is_stopping.remote()):
        return
    number = 0
    try:
        for row in _tokenised(job, shards):
            yield row
            number += 1
            if watch is not None and ray.get(watch.is_stopping.remote()):
                return
    except CheckpointChanged as error:
        for shard in shards[number:]:
            yield wire.failed_row(shard, one_line(error), wire.CHANGED)
    except Exception as error:  # whatever it is, it is these shards' alone
        for shard in shards[number:]:
            reason = f"cannot be read: {one_line(error)}"
            yield wire.failed_row(shard, reason, wire.UNREADABLE)


def _tokenised(job: Job, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    units = read_unit(job.source, job.folder, shards, job.schema, _read_columns(job))
    started = time.perf_counter()
    for shard, read in zip(shards, units, strict=True):
        documents, rows, rejected = _documents(job, read)
        windows = encode(job, documents, job.max_characters)
        rejects = [wire.reject(row, reason, "read", raw) for row, reason, raw in read.bad]
        rows = np.tile(rows, job.task.readings)
        rejects += wire.rejects_of_tokenising(rejected, windows, rows)
        tokenise_s = time.perf_counter() - started
        yield wire.tokenised_row(shard, windows, rows, rejects, tokenise_s, stored=read)
        started = time.perf_counter()


def _read_columns(job: Job) -> list[str]:
    """Return the columns that the job reads: those that it keeps, and the texts."""
    paths = [*job.text_columns, *([job.gold_column] if job.gold_column else [])]
    wanted = {*job.keep_columns, *(column_of(job.schema, path) for path in paths)}
    return [name for name in job.schema.names if name in wanted]


def reject_shard(job: Job, shard: Shard, rejects: list[Reject]) -> Committed:
    """Commit a shard with all its rows rejected, for the reasons in `rejects` (`wire.reject`)."""
    try:
        read = read_shard(job.source, job.folder, shard, job.schema, _read_columns(job))
    except Exception as error:  # whatever it is, it is this shard's alone
        return Committed(shard.name, error=f"cannot be read: {one_line(error)}")
    return _commit(job, wire.rejected_row(shard, rejects, read))


def commit(
    job: Job, table: pa.Table, watch: WatchHandle | None = None, round_number: int = 0
) -> pa.Table:
    """Write a shard's rows with their answers, and its rejected rows; report what was written, to
    `watch`, too, so that the actor of the shard may begin another.
    """
    name = wire.shard_of(table).name
    try:
        committed = _commit(job, table)
    except Exception as error:  # whatever it is, it is this shard's alone
        reason = f"cannot be committed: {one_line(error)}"
        committed = Committed(name, error=reason, node=this_node())
    if watch is not None:
        watch.committed.remote(round_number, name)
    return committed.to_table()


def _commit(job: Job, table: pa.Table) -> Committed:
    shard = wire.shard_of(table)
    error = table["error"][0].as_py()
    cause = table["cause"][0].as_py()
    if error:  # of an earlier stage: the driver decides what becomes of the shard
        rejects = json.dumps(wire.rejects_of(table)) if cause == wire.NONE_ANSWERED else None
        node = table["node"][0].as_py()
        return Committed(shard.name, error=error, cause=cause, node=node, rejects=rejects)
    try:
        stats, answered, rejected, files = _answers(job, shard, table)
    except CheckpointChanged as error:
        return Committed(shard.name, error=one_line(error), cause=wire.CHANGED, node=this_node())
    try:
        check_lease(job.folder, job.attempt_id)
    except OSError as error:  # which names the node
        return Committed(shard.name, error=one_line(error), stops=True)
    try:
        commit_shard(job.folder, job.parts, stats, answered, rejected, files)
    except OSError as error:  # of the output, which no other shard can be written to either
        return Committed(shard.name, error=one_line(error), stops=True, node=this_node())
    for name in _FIGURES:
        stats[name] = table[name][0].as_py()
    return Committed(shard.name, stats=json.dumps(stats))


def _answers(
    job: Job, shard: Shard, table: pa.Table
) -> tuple[Stats, pa.Table, pa.Table, list[FileRows]]:
    """Decode a shard: its stats, the table of its answered rows, that of its rejected rows, and
    what of them is of which file, where it has several.
    """
    task = job.task
    windows = wire.windows_of(table)
    rows_of_documents = wire.rows_of_documents(table, task.readings)
    rejects = wire.rejects_of(table)

    read = wire.stored_of(table)
    place_of_row = {int(row): place for place, row in enumerate(read.positions)}

    # Rows may have been rejected after they became documents.
    rejected_rows = [reject["row"] for reject in rejects]
    answered = np.flatnonzero(~np.isin(rows_of_documents, rejected_rows))

    documents = _documents(job, read)[0] if task.needs_documents else None
    splits = wire.array_of(table, "splits")
    values = wire.array_of(table, "values")
    outputs = model_outputs(task, job.model.tokenizer, documents, windows, values, splits)
    answers = answer_columns(task, outputs, pa.array(answered))

    answered_rows = rows_of_documents[answered].tolist()
    places = pa.array([place_of_row[row] for row in answered_rows], pa.int64())
    kept = {}
    for name in job.keep_columns:
        kept[job.stored_names.get(name, name)] = read.table[name].take(places)
    kept, replaced = readable_columns(kept)
    added = {job.prefix + name: values for name, values in answers.items()}
    truncated_KD = windows.truncated.reshape(task.readings, -1)
    truncated_D = np.logical_or.reduce(truncated_KD, axis=0)

    stats: Stats = {
        "name": shard.name,
        "rows": shard.count,
        "labelled": len(answered),
        "tokens": len(windows.input_ids),
        "truncated": int(truncated_D[answered].sum()),
        "replaced": replaced,
        "rejects": Counter(reject["reason"] for reject in rejects),
    }
    stats |= count_windows(windows.lengths)
    of_task = [answers[name] for name in task.columns.names]
    decoded = pa.StructArray.from_arrays(of_task, fields=list(task.columns))
    stats |= _stats_of_answers(task, decoded)
    stats |= check_answers(
        job,
        read.table,
        places,
        lambda place: shard.place(answered_rows[place]),
        outputs,
        answered,
        decoded,
    )
    rejected = _rejected(shard, read.table, place_of_row, rejects)
    files = _files(shard, rows_of_documents[answered]) if len(shard.pieces) > 1 else []
    return stats, pa.table(kept | added), rejected, files


def _files(shard: Shard, answered_rows: np.ndarray) -> list[FileRows]:
    """Count the answered rows of each file of a shard; `answered_rows`: their numbers in it."""
    files: list[FileRows] = []
    for piece, first in shard.inside():
        is_inside = (first <= answered_rows) & (answered_rows < first + piece.rows)
        labelled = int(np.count_nonzero(is_inside))
        files.append(
            FileRows(piece.file, piece.path, piece.version, piece.start, piece.rows, labelled)
        )
    return files


def _stats_of_answers(task: Task, decoded: pa.StructArray) -> Stats:
    """Count the scores, labels and items of answers."""
    scores = task.scores(decoded).to_numpy(zero_copy_only=False)
    stats: Stats = {
        "scores": count_scores(scores),
        "labels": task.label_counts(decoded),
    }
    if task.counted:
        column, _ = task.counted
        stats |= count_items(decoded.field(column))
    return stats


def _documents(job: Job, read: Rows) -> tuple[list[Text], np.ndarray, list[tuple[int, str]]]:
    """Return the documents of a shard, their rows, and the rows that hold none the task takes."""
    columns = [take_field(read.table, path) for path in job.text_columns]
    too_long = f"longer than --max-characters {job.max_characters}"
    documents, places, rejects = accepted_documents(job.task, columns, job.max_characters, too_long)
    rejected = [(int(read.positions[place]), reason) for place, reason in rejects]
    return documents, read.positions[places], rejected


def _rejected(
    shard: Shard, table: pa.Table, place_of_row: dict[int, int], rejects: list[Reject]
) -> pa.Table:
    """Make the table of rejected rows, in input order: why, and their columns.

    These are null where the row could not be read.
    """
    rejects = sorted(rejects, key=lambda reject: reject["row"])
    places = pa.array([place_of_row.get(reject["row"]) for reject in rejects], pa.int64())
    names = table.column_names if rejects else []
    # Rejected rows that are an input again have these columns already.
    clash = clashing(REJECTED_FIELDS.names, names)
    columns = {}
    for name in names:
        stored_name = f"{name}_of_input" if name in clash else name
        columns[stored_name] = readable(table[name].take(places))
    sources = [shard.place(reject["row"]) for reject in rejects]
    why = {
        "_reason": [reject["reason"] for reject in rejects],
        "_stage": [reject["stage"] for reject in rejects],
        "_shard": [shard.name] * len(rejects),
        "_file": [path for path, _ in sources],
        "_row": [row for _, row in sources],
        "_raw": [reject["raw"] for reject in rejects],
    }
    for field in REJECTED_FIELDS:
        columns[field.name] = pa.array(why[field.name], field.type)
    return pa.table(columns)
