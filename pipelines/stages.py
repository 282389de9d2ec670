"""The stages of a corpus job as Ray Data runs them: read and tokenise, predict, commit.

Between stages a shard is one row of list columns: Ray can neither split nor merge it, and the lists are already the
packed layout that the model reads. Columns that are only passed through are read again at the commit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from modernbert.tokenizer import Tokenizer
from pipelines import output
from pipelines.job import Job
from pipelines.predictor import Predictor
from pipelines.shards import Shard, read_shard
from pipelines.texts import readable, valid_texts

REJECT = pa.struct([("row", pa.int64()), ("reason", pa.string()), ("stage", pa.string()), ("raw", pa.string())])
TOKENISED = pa.schema(
    [
        ("shard", pa.string()),
        ("input_ids", pa.large_list(pa.int32())),
        ("cu_seqlens", pa.large_list(pa.int64())),
        ("rows", pa.large_list(pa.int64())),
        ("truncated", pa.large_list(pa.bool_())),
        ("rejects", pa.large_list(REJECT)),
        ("tokenise_s", pa.float64()),
        ("error", pa.string()),
    ]
)
RECEIPT = pa.schema(
    [
        ("name", pa.string()),
        ("error", pa.string()),
        *((name, pa.int64()) for name in ("rows", "labelled", "tokens", "truncated", "batches")),
        *((name, pa.float64()) for name in ("tokenise_s", "predict_s")),
        *((name, pa.string()) for name in ("labels", "rejects")),
    ]
)


def shard_row(shard: Shard) -> dict[str, str]:
    """A shard as the row that enters the pipeline."""
    return {"shard": json.dumps(asdict(shard))}


def read_and_tokenise(job: Job, table: pa.Table) -> pa.Table:
    """A shard's texts to packed windows, with the rows set aside that hold no text.

    A shard that cannot be read carries its error on instead: it must not stop the others.
    """
    started = time.perf_counter()
    row: dict[str, Any] = {"shard": table["shard"][0].as_py(), "error": None}
    try:
        read = read_shard(job.source, _shard(row["shard"]), job.schema, [job.text_column])
        texts, rows, rejects = valid_texts(read.table[job.text_column])
        encoded = _tokenizer(job.model).encode(texts, job.max_length)
    except (pa.ArrowException, OSError) as error:
        empty: dict[str, list] = {name: [] for name in ("input_ids", "rows", "truncated", "rejects")}
        row |= empty | {"cu_seqlens": [0], "error": f"cannot be read: {str(error).splitlines()[0]}", "tokenise_s": 0.0}
        return _one_row(row, TOKENISED)
    aside = [{"row": at, "reason": reason, "stage": "read", "raw": raw} for at, reason, raw in read.bad]
    aside += [{"row": int(read.positions[at]), "reason": why, "stage": "text", "raw": None} for at, why in rejects]
    row |= {"input_ids": encoded.input_ids, "cu_seqlens": encoded.cu_seqlens, "truncated": encoded.truncated}
    row |= {"rows": read.positions[rows], "rejects": aside, "tokenise_s": time.perf_counter() - started}
    return _one_row(row, TOKENISED)


class Predict:
    """The model actor: packed windows to the task's columns."""

    def __init__(self, job: Job, progress: Any):
        """Load the model on this actor's device, on one thread where that is a CPU."""
        self.job, self.progress, self.reported = job, progress, time.monotonic()
        self.unreported = [0, 0]
        self.predictor = Predictor(
            job.model, job.task, device=job.device, dtype=job.dtype, budget_tokens=job.budget_tokens, threads=1
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace a shard's tokens by their predictions."""
        values = {name: table[name].combine_chunks().flatten() for name in ("input_ids", "cu_seqlens", "rows")}
        cu_seqlens = values["cu_seqlens"].to_numpy()
        made = self.predictor.predict(values["input_ids"].to_numpy(), cu_seqlens, self._report)
        self._report(0, 0, now=True)
        rejects = table["rejects"][0].as_py()
        for window, reason in sorted(made.failed.items()):
            rejects.append({"row": values["rows"][window].as_py(), "reason": reason, "stage": "predict", "raw": None})
        columns = {
            "shard": table["shard"],
            "rows": table["rows"],
            "truncated": table["truncated"],
            "n_tokens": _list(pa.array(np.diff(cu_seqlens), pa.int32())),
            "predictions": _list(self.job.task.decode(made.values)),
            "rejects": _list(pa.array(rejects, REJECT)),
            "batches": [made.batches],
            "predict_s": [made.seconds],
            "tokenise_s": table["tokenise_s"],
            "error": table["error"],
        }
        return pa.table(columns)

    def _report(self, rows: int, tokens: int, now: bool = False) -> None:
        """Tell the driver at most once a second."""
        self.unreported = [self.unreported[0] + rows, self.unreported[1] + tokens]
        if now or time.monotonic() - self.reported > 1:
            self.progress.add.remote(*self.unreported)
            self.unreported, self.reported = [0, 0], time.monotonic()


def commit(job: Job, table: pa.Table) -> pa.Table:
    """Write a shard's rows with their predictions, and its rejects; the receipt says what was written."""
    shard = _shard(table["shard"][0].as_py())
    receipt: dict[str, Any] = dict.fromkeys(RECEIPT.names, 0)
    receipt |= {"name": shard.name, "error": table["error"][0].as_py(), "labels": "{}", "rejects": "{}"}
    if receipt["error"]:
        return pa.Table.from_pylist([receipt], RECEIPT)
    lists = {name: table[name].combine_chunks().flatten() for name in ("rows", "truncated", "n_tokens", "predictions")}
    rejects = table["rejects"][0].as_py()
    rejected = {reject["row"] for reject in rejects}
    good = [i for i, row in enumerate(lists["rows"].to_pylist()) if row not in rejected]
    answers = {name: lists["predictions"].field(name) for name in job.task.columns.names}
    answers |= {"n_tokens": lists["n_tokens"], "truncated": lists["truncated"]}
    answers = {name: values.take(pa.array(good, pa.int64())) for name, values in answers.items()}
    try:
        stored = [name for name in job.schema.names if name in job.keep_columns or rejects]
        read = read_shard(job.source, shard, job.schema, stored)
        place = {int(position): i for i, position in enumerate(read.positions)}
        at = pa.array([place[lists["rows"][i].as_py()] for i in good], pa.int64())
        columns = {name: read.table[name].take(at) for name in job.keep_columns}
        columns |= {job.prefix + name: values for name, values in answers.items()}
        output.commit_shard(job.folder, shard.name, pa.table(columns), _rejected(shard, read.table, place, rejects))
    except (pa.ArrowException, OSError) as error:
        receipt["error"] = f"cannot be committed: {str(error).splitlines()[0]}"
        return pa.Table.from_pylist([receipt], RECEIPT)
    receipt |= {
        "rows": shard.rows,
        "labelled": len(good),
        "tokens": int(np.sum(lists["n_tokens"].to_numpy())),
        "truncated": sum(lists["truncated"].to_pylist()),
        "labels": json.dumps(Counter(answers["label"].to_pylist())),
        "rejects": json.dumps(Counter(reject["reason"] for reject in rejects)),
    }
    receipt |= {name: table[name][0].as_py() for name in ("batches", "predict_s", "tokenise_s")}
    return pa.Table.from_pylist([receipt], RECEIPT)


def _rejected(shard: Shard, rows: pa.Table, place: dict[int, int], rejects: list[dict[str, Any]]) -> pa.Table:
    """The rows set aside, in input order: their columns (null where the row could not be read) and the reason."""
    rejects = sorted(rejects, key=lambda reject: reject["row"])
    at = pa.array([place.get(reject["row"]) for reject in rejects], pa.int64())
    names = [name for name in rows.column_names if name not in output.REJECTED_FIELDS.names] if rejects else []
    columns = {name: readable(rows[name].take(at)) for name in names}
    told = {
        "_reason": [reject["reason"] for reject in rejects],
        "_stage": [reject["stage"] for reject in rejects],
        "_file": [shard.path] * len(rejects),
        "_row": [shard.start + reject["row"] for reject in rejects],
        "_raw": [reject["raw"] for reject in rejects],
    }
    columns |= {field.name: pa.array(told[field.name], field.type) for field in output.REJECTED_FIELDS}
    return pa.table(columns)


def _shard(encoded: str) -> Shard:
    raw = json.loads(encoded)
    return Shard(**raw | {"partition": tuple(map(tuple, raw["partition"])), "span": tuple(raw["span"])})


def _list(values: pa.Array) -> pa.Array:
    """`values` as a list column of one row, without a copy."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _one_row(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    columns = [
        _list(pa.array(row[f.name], f.type.value_type)) if pa.types.is_large_list(f.type) else [row[f.name]]
        for f in schema
    ]
    return pa.table(columns, schema=schema)


@cache
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


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
