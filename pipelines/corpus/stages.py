"""The stages of a corpus job as Ray Data runs them: read and tokenise, predict, commit.

A shard travels between them as one row (wire.py). Columns that are only passed through are read
again at the commit.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
import traceback
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from modernbert.stored import CheckpointChanged
from modernbert.text.windows import Text, Windows
from pipelines.corpus.nodes import check_lease
from pipelines.corpus.plan import Job, ModelRun, clashing
from pipelines.input.documents import cut, longest, readable, readable_columns, valid_documents
from pipelines.input.inspection import one_line
from pipelines.input.plan import read_shard
from pipelines.input.shards import Rows, Shard
from pipelines.output.folder import REJECTED_FIELDS, commit_shard
from pipelines.output.shard_stats import count_items, count_scores, count_windows
from pipelines.raydata import wire
from pipelines.raydata.wire import Committed
from pipelines.storage import redact
from pipelines.tasks.base import ModelOutputs, Task

START_PAUSES_S = (1.0, 3.0, 9.0, 27.0)
"""The pauses between attempts to start an actor; after the last one it is tried on while other
actors come up.
"""
MAX_STARTS = 20
"""How often the process of an actor may end while it starts, before it is started no more."""


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


class Predict:
    """The model actor: packed windows in, the model's values out.

    A shard that raises is no row's fault until the same actor answers the task's probe: an actor
    that does not ends its process, and Ray starts another in its place.
    """

    def __init__(self, job: ModelRun, watch: Any = None, round_number: int = 0):
        """Load the model on this actor's device, on one thread where that is a CPU.

        `watch` is the actor Watch of the job; without one, the first failure to start is final.
        """
        self.job, self.watch, self.round_number = job, watch, round_number
        self.reported = time.monotonic()
        self.unreported = [0, 0]
        self.predictor: Any = None
        self.has_answered = False
        self.lock = threading.Lock()  # of what calls share: a GPU's actor has two at a time
        self.time_limit = TimeLimit(job.batch_timeout_s)
        self.start_error = self._start()
        self.idle_since = time.perf_counter()
        self.calls = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the model's values to a shard, or the error and its cause."""
        if self.start_error:
            return wire.unpredicted_row(table, self.start_error, wire.START)
        with self.lock:
            idle_s = 0.0 if self.calls else time.perf_counter() - self.idle_since
            self.calls += 1
        try:
            return self._predict(table, idle_s)
        except RayError:  # what watches the actors is lost: the shard is run again
            raise
        except Exception as error:  # else Ray would lose the shard without a reason
            return wire.unpredicted_row(table, _with_traceback(error), wire.RAISED)
        finally:
            with self.lock:
                self.calls -= 1
                self.idle_since = time.perf_counter()

    def _predict(self, table: pa.Table, idle_s: float) -> pa.Table:
        shard, windows = wire.shard_of(table).name, wire.windows_of(table)
        self._note("begin", shard)
        try:
            with self.time_limit:
                predictions = self.predictor.predict(
                    windows.input_ids, windows.cu_seqlens, self._report
                )
        except Exception as error:  # whatever the model raises
            reason = _with_traceback(error)
            self._check_health(shard, reason)
            self._note("end", shard)
            return wire.unpredicted_row(table, reason, wire.RAISED)
        self._report(0, 0, now=True)
        rows, rejects = wire.array_of(table, "rows"), wire.rejects_of(table)
        failed: dict[int, str] = {}
        for window, reason in sorted(predictions.failed.items()):
            failed.setdefault(int(windows.document[window]), reason)
        rejects += [
            wire.reject(rows[document], reason, "predict") for document, reason in failed.items()
        ]
        if failed:
            self._check_health(shard, next(iter(failed.values())))
        self._note("end", shard)
        self.has_answered |= len(failed) < len(np.unique(windows.document))
        if failed and not self.has_answered:
            return wire.unpredicted_row(
                table, next(iter(failed.values())), wire.NONE_ANSWERED, rejects
            )
        return wire.predicted_row(
            table, predictions, rejects, idle_s, budget_tokens=self.predictor.budget_tokens
        )

    def _start(self) -> str | None:
        """Load the model and let it answer the probe, again and again where that fails.

        Returns the reason, with the traceback, where no other actor comes up either.
        """
        actor = ray.get_runtime_context().get_actor_id() if self.watch else None
        starts, failures = self._note("start", actor) or 1, 0
        while True:
            try:
                if starts > MAX_STARTS:
                    raise RuntimeError(
                        f"its process ended {MAX_STARTS} times in a row while it started"
                    )
                self._load()
                self._note("started", actor)
                return None
            except (
                CheckpointChanged
            ) as error:  # no later attempt finds the old files, and they must not be mixed
                return _with_traceback(error)
            except Exception as error:  # a slow or busy server or file system, a device
                reason, failures = _with_traceback(error), failures + 1
            if not self.watch or (
                failures >= len(START_PAUSES_S) and self._note("start_failed", actor)
            ):
                return reason
            time.sleep(START_PAUSES_S[min(failures, len(START_PAUSES_S)) - 1])

    def _load(self) -> None:
        from pipelines.inference.predictor import (
            Predictor,
        )  # with torch, which readers and committers go without

        job = self.job
        self.predictor = Predictor(
            job.model,
            job.task,
            device=job.device,
            dtype=job.dtype,
            budget_tokens=job.budget_tokens,
            threads=1,
        )
        self._answer_probe()

    def _answer_probe(self) -> None:
        """Raise an exception if the model does not answer the task's probe."""
        with self.time_limit:
            _, failed = self.predictor.answer([self.job.task.probe])
        if failed:
            raise RuntimeError(f"the text {self.job.task.probe!r} has no answer: {failed[0]}")

    def _check_health(self, shard: str, reason: str) -> None:
        """End this process if the model, which has no answer for a shard, has none for the probe
        either.
        """
        self._note("broke", shard, reason)  # first: the probe, too, may end the process
        try:
            self._answer_probe()
        except (
            Exception
        ):  # whatever it is: why the shard has no answer is noted, and another process is to try it
            os._exit(1)

    def _note(self, event: str, *arguments: Any) -> Any:
        """Call a method of Watch for this round, and wait for it: the process may end right
        after.
        """
        return (
            ray.get(self.watch.call.remote(self.round_number, event, *arguments))
            if self.watch
            else None
        )

    def _report(self, windows: int, tokens: int, now: bool = False) -> None:
        """Report a finished batch, at most once a second, and restart the time limit for the
        next.
        """
        if not now:
            self.time_limit.restart()
        if not self.watch:
            return
        with self.lock:
            self.unreported = [self.unreported[0] + windows, self.unreported[1] + tokens]
            if now or time.monotonic() - self.reported > 1:
                self.watch.add.remote(*self.unreported)
                self.unreported, self.reported = [0, 0], time.monotonic()


class TimeLimit:
    """A context that ends the process, with the tracebacks of its threads, where it makes no
    progress for too long.

    Several threads may be in it at once: the progress of each counts for all, since they share a
    device.
    """

    def __init__(self, seconds: float):
        self._seconds, self._inside, self._lock = seconds, 0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                faulthandler.cancel_dump_traceback_later()

    def restart(self) -> None:
        """Give the next batch all the time."""
        with self._lock:
            if self._inside:
                faulthandler.dump_traceback_later(self._seconds, exit=True)


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
        check_lease(job)
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
    documents: list[Text] = _documents(job, read)[0] if texts else [""] * len(rows)
    splits, values = wire.array_of(table, "splits"), wire.array_of(table, "values")
    outputs = ModelOutputs(
        documents, windows, values.reshape(-1, job.task.width), splits, job.model.tokenizer
    )
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


def answer_columns(task: Task, outputs: ModelOutputs, documents: pa.Array) -> dict[str, pa.Array]:
    """Decode outputs into the columns of the task and those that all tasks add; `documents`: their
    numbers, or null.
    """
    windows = outputs.windows
    decoded = task.decode(outputs)
    counts = np.bincount(windows.document, minlength=len(windows.n_tokens))
    answers = {name: decoded.field(name) for name in task.columns.names}
    answers |= {"n_tokens": pa.array(windows.n_tokens), "n_windows": pa.array(counts, pa.int32())}
    answers["truncated"] = pa.array(windows.truncated)
    return {name: values.take(documents) for name, values in answers.items()}


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


def accepted_documents(
    task: Task, columns: list[pa.ChunkedArray], max_characters: int, too_long: str
) -> tuple[list[Text], list[int], list[tuple[int, str]]]:
    """Return the documents in `columns`, their rows, and the rows that hold none or that the task
    rejects.

    `too_long`: the reason for a document of more than `max_characters`, which is rejected where it
    is read in windows.
    """
    documents, rows, rejects = valid_documents(
        columns, task.options_class.input_names(len(columns))
    )
    most = max_characters if task.stride is not None else None
    long = [too_long if most and longest(document) > most else None for document in documents]
    reasons = [
        reason or task.reject(document) for reason, document in zip(long, documents, strict=True)
    ]
    rejects += [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    return [documents[i] for i in kept], [rows[i] for i in kept], rejects


def encode(run: ModelRun, documents: list[Text], max_characters: int) -> Windows:
    """Turn documents, cut to `max_characters`, into windows; what is cut counts as truncated."""
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # a task has a core, and there is a task for each core
    windows = run.task.encode(
        run.model.tokenizer, [cut(document, max_characters) for document in documents]
    )
    windows.truncated[:] |= np.array(
        [longest(document) > max_characters for document in documents], dtype=bool
    )
    return windows


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


def _with_traceback(error: Exception) -> str:
    """Give an error in one line, as `one_line` does, and its traceback in those that follow."""
    return redact("\n".join([one_line(error), *traceback.format_exception(error)]))
