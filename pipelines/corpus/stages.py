"""The stages of a corpus job as Ray Data runs them: read and tokenise, predict, commit.

Between stages a shard is one row of list columns: Ray can neither split nor merge it, and the lists are already the
packed layout that the model reads. Columns that are only passed through are read again at the commit.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from modernbert.windows import Text, Windows
from pipelines.corpus.plan import Job
from pipelines.input.documents import cut, longest, readable, valid_documents
from pipelines.input.plan import read_shard
from pipelines.input.shards import Rows, Shard
from pipelines.output import folder as output
from pipelines.output.shard_stats import count_scores, count_windows
from pipelines.predictor import Predictor
from pipelines.tasks.base import ModelOutputs

REJECT = pa.struct([("row", pa.int64()), ("reason", pa.string()), ("stage", pa.string()), ("raw", pa.string())])
WINDOWS = {
    "input_ids": pa.int32(), "cu_seqlens": pa.int64(), "document": pa.int64(), "start": pa.int64(),
    "n_tokens": pa.int32(), "truncated": pa.bool_(), "offsets": pa.int32(), "token_tags": pa.int8(),
}  # fmt: skip
"""The arrays of a shard's Windows, laid flat."""
TOKENISED = pa.schema(
    [
        ("shard", pa.string()),
        *((name, pa.large_list(kind)) for name, kind in WINDOWS.items()),
        ("rows", pa.large_list(pa.int64())),
        ("rejects", pa.large_list(REJECT)),
        ("tokenise_s", pa.float64()),
        ("error", pa.string()),
    ]
)
COMMITTED = pa.schema([("name", pa.string()), ("error", pa.string()), ("stops", pa.bool_()), ("stats", pa.string())])
"""What a commit says: the receipt (receipts.py) as JSON, or why there is none, and whether that stops the job."""


def shard_row(shard: Shard) -> dict[str, str]:
    """A shard as the row that enters the pipeline."""
    return {"shard": json.dumps(asdict(shard))}


def read_and_tokenise(job: Job, table: pa.Table) -> pa.Table:
    """A shard's texts to packed windows, with the rows set aside that cannot be encoded.

    A shard that cannot be read carries its error on instead: it must not stop the others.
    """
    started = time.perf_counter()
    row = _nothing(table["shard"][0].as_py())
    try:
        read = read_shard(job.source, _shard(row["shard"]), job.schema, list(dict.fromkeys(job.text_columns)))
        documents, rows, rejects = _documents(job, read)
        most = job.max_characters
        windows = job.task.encode(job.model.tokenizer, [cut(document, most) for document in documents])
        windows.truncated[:] |= np.array([longest(document) > most for document in documents], dtype=bool)
    except Exception as error:  # whatever it is, it is this shard's alone
        return _one_row(row | {"error": f"cannot be read: {_told(error)}"}, TOKENISED)
    aside = [{"row": at, "reason": reason, "stage": "read", "raw": raw} for at, reason, raw in read.bad]
    aside += [{"row": at, "reason": reason, "stage": "text", "raw": None} for at, reason in rejects]
    rejected = windows.rejected.items()
    aside += [{"row": int(rows[at]), "reason": reason, "stage": "encode", "raw": None} for at, reason in rejected]
    row |= {name: getattr(windows, name).ravel() for name in WINDOWS}
    row |= {"rows": rows, "rejects": aside, "tokenise_s": time.perf_counter() - started}
    return _one_row(row, TOKENISED)


class Predict:
    """The model actor: packed windows to the model's answer."""

    def __init__(self, job: Job, progress: Any):
        """Load the model on this actor's device, on one thread where that is a CPU."""
        self.job, self.progress, self.reported = job, progress, time.monotonic()
        self.unreported = [0, 0]
        self.predictor = Predictor(
            job.model, job.task, device=job.device, dtype=job.dtype, budget_tokens=job.budget_tokens, threads=1
        )
        self.idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the model's answer to a shard."""
        waited = time.perf_counter() - self.idle_since
        windows = _windows(table)
        faulthandler.dump_traceback_later(self.job.batch_timeout_s, exit=True)
        made = self.predictor.predict(windows.input_ids, windows.cu_seqlens, self._report)
        faulthandler.cancel_dump_traceback_later()
        self._report(0, 0, now=True)
        rows, rejects = _values(table, "rows"), table["rejects"][0].as_py()
        failed: dict[int, str] = {}
        for window, reason in sorted(made.failed.items()):
            failed.setdefault(int(windows.document[window]), reason)
        for document, reason in failed.items():
            rejects.append({"row": int(rows[document]), "reason": reason, "stage": "predict", "raw": None})
        columns = {name: table[name] for name in TOKENISED.names} | {
            "values": _list(pa.array(made.values.ravel())),
            "splits": _list(pa.array(made.splits)),
            "rejects": _list(pa.array(rejects, REJECT)),
            "batches": [made.batches],
            "predict_s": [made.seconds],
            "waited_s": [waited],
        }
        self.idle_since = time.perf_counter()
        return pa.table(columns)

    def _report(self, windows: int, tokens: int, now: bool = False) -> None:
        """After a batch, tell the driver, at most once a second; the next batch has its time limit afresh."""
        faulthandler.dump_traceback_later(self.job.batch_timeout_s, exit=True)
        self.unreported = [self.unreported[0] + windows, self.unreported[1] + tokens]
        if now or time.monotonic() - self.reported > 1:
            self.progress.add.remote(*self.unreported)
            self.unreported, self.reported = [0, 0], time.monotonic()


def reject_shard(job: Job, shard: Shard, reason: str) -> pa.Table:
    """Commit a shard with all its rows set aside, without a look at its texts; the receipt."""
    first, stop = shard.row_range or (0, shard.rows)
    rejects = [{"row": row, "reason": reason, "stage": "predict", "raw": None} for row in range(first, stop)]
    row = _one_row(_nothing(json.dumps(asdict(shard))) | {"rejects": rejects}, TOKENISED)
    columns = {name: row[name] for name in row.column_names} | {"batches": [0], "predict_s": [0.0], "waited_s": [0.0]}
    columns |= {"values": _list(pa.array([], pa.float32())), "splits": _list(pa.array([0], pa.int64()))}
    return commit(job, pa.table(columns))


def commit(job: Job, table: pa.Table) -> pa.Table:
    """Write a shard's rows with their answers, and its rejects; the receipt says what was written."""
    shard, error = _shard(table["shard"][0].as_py()), table["error"][0].as_py()
    if error:
        return _committed(shard.name, error=error)
    windows, rows, rejects = _windows(table), _values(table, "rows"), table["rejects"][0].as_py()
    good = np.flatnonzero(~np.isin(rows, [reject["row"] for reject in rejects]))
    texts = job.text_columns if job.task.needs_details else []
    try:
        stored = [name for name in job.schema.names if name in job.keep_columns or name in texts or rejects]
        read = read_shard(job.source, shard, job.schema, stored)
        documents: list[Text] = _documents(job, read)[0] if texts else [""] * len(rows)
        splits, values = _values(table, "splits"), _values(table, "values")
        made = ModelOutputs(documents, windows, values.reshape(-1, job.task.width), splits, job.model.tokenizer)
        decoded = job.task.decode(made).take(pa.array(good))
        answers = {name: decoded.field(name) for name in job.task.columns.names}
        answers["n_tokens"] = pa.array(windows.n_tokens[good])
        answers["n_windows"] = pa.array(np.bincount(windows.document, minlength=len(rows))[good], pa.int32())
        answers["truncated"] = pa.array(windows.truncated[good])
        place = {int(position): i for i, position in enumerate(read.positions)}
        at = pa.array([place[row] for row in rows[good].tolist()], pa.int64())
        columns = {name: read.table[name].take(at) for name in job.keep_columns}
        columns |= {job.prefix + name: values for name, values in answers.items()}
        rejected = _rejected(shard, read.table, place, rejects)
        stats: dict[str, Any] = {
            "name": shard.name,
            "rows": shard.count,
            "labelled": len(good),
            "tokens": len(windows.input_ids),
            "truncated": int(windows.truncated[good].sum()),
            **count_windows(windows.lengths),
            "scores": count_scores(job.task.scores(decoded).to_numpy(zero_copy_only=False)),
            "labels": job.task.label_counts(decoded),
            "rejects": Counter(reject["reason"] for reject in rejects),
        }
    except Exception as error:  # whatever it is, it is this shard's alone
        return _committed(shard.name, error=f"cannot be committed: {_told(error)}")
    try:
        output.commit_shard(job.folder, stats, pa.table(columns), rejected)
    except OSError as error:
        return _committed(shard.name, error=_told(error), stops=True)
    stats |= {name: table[name][0].as_py() for name in ("batches", "predict_s", "tokenise_s", "waited_s")}
    stats["room"] = stats["batches"] * job.budget_tokens
    return _committed(shard.name, stats=json.dumps(stats | {"committed_at": time.time()}))


def _committed(name: str, *, error: str | None = None, stops: bool = False, stats: str | None = None) -> pa.Table:
    return pa.table([[name], [error], [stops], [stats]], COMMITTED)


def _documents(job: Job, read: Rows) -> tuple[list[Text], np.ndarray, list[tuple[int, str]]]:
    """The documents of a shard, their rows in it, and the rows that hold none or that the task rejects."""
    columns = [read.table[name] for name in job.text_columns]
    documents, rows, rejects = valid_documents(columns, tuple(job.task.options_class.inputs))
    most = job.max_characters if job.task.stride is not None else None
    long = [f"longer than --max-characters {most}" if most and longest(d) > most else None for d in documents]
    reasons = [told or job.task.reject(document) for told, document in zip(long, documents, strict=True)]
    rejects += [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    positions = read.positions[[rows[i] for i in kept]]
    return [documents[i] for i in kept], positions, [(int(read.positions[row]), reason) for row, reason in rejects]


def _windows(table: pa.Table) -> Windows:
    """The Windows that a shard's row holds; who is unfit is among its rejects."""
    arrays = {name: _values(table, name) for name in WINDOWS}
    return Windows(**arrays | {"offsets": arrays["offsets"].reshape(-1, 2)}, rejected={})


def _values(table: pa.Table, name: str) -> np.ndarray:
    """The list that a shard's row holds, without a copy where it can be."""
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _rejected(shard: Shard, rows: pa.Table, place: dict[int, int], rejects: list[dict[str, Any]]) -> pa.Table:
    """The rows set aside, in input order: their columns (null where the row could not be read) and the reason."""
    rejects = sorted(rejects, key=lambda reject: reject["row"])
    at = pa.array([place.get(reject["row"]) for reject in rejects], pa.int64())
    names = [name for name in rows.column_names if name not in output.REJECTED_FIELDS.names] if rejects else []
    columns = {name: readable(rows[name].take(at)) for name in names}
    told = {
        "_reason": [reject["reason"] for reject in rejects],
        "_stage": [reject["stage"] for reject in rejects],
        "_shard": [shard.name] * len(rejects),
        "_file": [shard.path] * len(rejects),
        "_row": [shard.start + reject["row"] for reject in rejects],
        "_raw": [reject["raw"] for reject in rejects],
    }
    columns |= {field.name: pa.array(told[field.name], field.type) for field in output.REJECTED_FIELDS}
    return pa.table(columns)


def _nothing(shard: str) -> dict[str, Any]:
    """The row of a shard without windows."""
    empty: dict[str, Any] = {name: [] for name in TOKENISED.names}
    return empty | {"shard": shard, "cu_seqlens": [0], "tokenise_s": 0.0, "error": None}


def _told(error: Exception) -> str:
    """An error in one line, with its kind where that is not one that reading and writing usually have."""
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, pa.ArrowException | OSError) else f"{type(error).__name__}: {text}"


def _shard(encoded: str) -> Shard:
    raw = json.loads(encoded)
    listed = {"partition": tuple(map(tuple, raw["partition"])), "span": tuple(raw["span"])}
    return Shard(**raw | listed | {"row_range": raw["row_range"] and tuple(raw["row_range"])})


def _list(values: pa.Array) -> pa.Array:
    """`values` as a list column of one row, without a copy."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _one_row(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    columns = [
        _list(pa.array(row[f.name], f.type.value_type)) if pa.types.is_large_list(f.type) else [row[f.name]]
        for f in schema
    ]
    return pa.table(columns, schema=schema)


@ray.remote(num_cpus=0)
class Progress:
    """Counts of what the actors have done so far, for the driver to show."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def add(self, rows: int, tokens: int) -> None:
        """Count some more."""
        self.rows += rows
        self.tokens += tokens

    def read(self) -> tuple[int, int]:
        """(rows, tokens) so far."""
        return self.rows, self.tokens
