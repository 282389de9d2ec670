"""What a shard's answers are worth: counts against gold, and the rows to look at first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from pipelines.corpus.plan import Job
from pipelines.input.documents import readable
from pipelines.input.fields import column_of, field_type, take_field
from pipelines.output.shard_stats import EXAMPLES, Stats
from pipelines.tasks.checks import best_thresholds, figures
from pipelines.tasks.outputs import ModelOutputs

_SHOWN_TEXT, _SHOWN_ANSWER = 120, 60  # characters


def check_answers(
    job: Job,
    table: pa.Table,
    places: pa.Array,
    source_of: Callable[[int], tuple[str, int]],
    outputs: ModelOutputs,
    answered: np.ndarray,
    answers: pa.StructArray,
) -> Stats:
    """Return `checks` and `examples` of a shard's answered rows.

    Examples are the rows that are furthest from gold, or without gold those that are least sure.

    Args:
        job: the job.
        table: the columns that the job reads.
        places: (D,), the answered rows in it.
        source_of: returns the file of a row, by its place among them, and its number there.
        outputs: what was decoded.
        answered: the documents of the rows.
        answers: the columns of the task.
    """
    stats: Stats = {}
    gold: pa.Array | None = None
    if job.gold_column is None:
        doubt = job.task.doubt(answers)
    else:
        gold = readable(take_field(table, job.gold_column).take(places)).combine_chunks()
        comparison = job.task.compare(outputs, answered, answers, gold)
        stats["checks"] = comparison.counts
        doubt = comparison.disagreement
    known = np.flatnonzero(~np.isnan(doubt))
    # The order is stable: of equals, those that come first.
    first = known[np.argsort(-doubt[known], kind="stable")][:EXAMPLES]
    texts = _texts(job, table, places.take(pa.array(first)))
    examples: list[str] = []
    for place, text in zip(first.tolist(), texts, strict=True):
        file, row = source_of(place)
        shown_file = _below(str(job.source), file)
        example: Json = {"doubt": round(float(doubt[place]), 6), "file": shown_file, "row": row}
        example["answer"] = job.task.preview(answers[place].as_py())[:_SHOWN_ANSWER]
        if gold is not None:
            example["gold"] = str(gold[place].as_py())[:_SHOWN_ANSWER]
        if text is not None:
            example["text"] = text
        examples.append(json.dumps(example, ensure_ascii=False))
    return stats | {"examples": examples}


def _below(source: str, file: str) -> str:
    """Return the path of a file below the input: parts are the same wherever that lies."""
    root = source.rpartition("://")[2].partition("?")[0]
    return file.removeprefix(root).lstrip("/") or file.rpartition("/")[2]


def _texts(job: Job, table: pa.Table, places: pa.Array) -> list[str | None]:
    """Return the beginnings of the texts of rows; None where the output does not keep the texts,
    as its record then does not.
    """
    if not {column_of(job.schema, path) for path in job.text_columns} <= set(job.keep_columns):
        return [None] * len(places)
    columns = [take_field(table, path).take(places) for path in job.text_columns]
    beginnings: list[str | None] = []
    for texts in zip(*(readable(column).to_pylist() for column in columns), strict=True):
        shown = " | ".join(" ".join(str(text).split()) for text in texts)
        beginnings.append(shown[:_SHOWN_TEXT])
    return beginnings


def check_figures(job: Job, counts: Mapping[str, int]) -> Json | None:
    """Return the figures of a job's answers against gold, and thresholds that it finds on it; None
    where nothing was compared.
    """
    if not counts:
        return None
    result = figures(counts)
    labels = job.task.labels_without_threshold
    if labels:
        result["thresholds"] = best_thresholds(counts, labels)
    return result


def gold_notes(job: Job) -> list[str]:
    """Say how the column of gold is read and kept, where that is not as it stands in the input."""
    notes = [f"column {name!r} is kept as {kept!r}" for name, kept in job.stored_names.items()]
    if job.gold_column is None:
        return notes
    types = job.task.gold_types()
    gold = field_type(job.schema, job.gold_column)
    assert gold is not None
    if pa.types.is_list(gold) or pa.types.is_large_list(gold):
        gold = gold.value_type
    if types.integers and pa.types.is_integer(gold):
        notes.append(types.integers)
    return notes
