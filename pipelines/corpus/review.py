"""`_review.parquet`: the answered rows of an output that are least sure, for people to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.plan import Job
from pipelines.output.folder import REVIEW
from pipelines.output.parts import part_path
from pipelines.storage import Folder

_THREADS = 16


def write_review(job: Job, parts: Sequence[str], rows: int) -> int:
    """Write the `rows` least sure rows of an output, the least sure first; return their number.

    Of each part one column is read, then all columns of those that hold such a row. `_doubt` says
    how unsure a row is, `_part` and `_row` where it is.
    """
    doubts = np.empty(0)
    places = np.empty((0, 2), dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, of_part in enumerate(pool.map(lambda name: _doubts(job, name), parts)):
            known = np.flatnonzero(~np.isnan(of_part))
            doubts = np.concatenate((doubts, of_part[known]))
            places = np.concatenate((places, np.stack((np.full(len(known), number), known), 1)))
            # The order is stable: of equals, those that come first.
            least_sure = np.argsort(-doubts, kind="stable")[:rows]
            doubts, places = doubts[least_sure], places[least_sure]
    tables = list(_rows(job, parts, doubts, places))
    if not tables:
        return 0
    review = pa.concat_tables(tables, promote_options="permissive")
    review = review.sort_by(
        [("_doubt", "descending"), ("_part", "ascending"), ("_row", "ascending")]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(review, sink, compression="zstd")
    job.folder.write_atomic(REVIEW, sink.getvalue())
    return len(review)


def _doubts(job: Job, name: str) -> np.ndarray:
    """Return how unsure each row of a part is."""
    columns = [job.prefix + column for column in job.task.doubt_columns]
    table = _part(job.folder, part_path(job.parts, name), columns)
    arrays = [table[column].combine_chunks() for column in columns]
    return job.task.doubt(pa.StructArray.from_arrays(arrays, names=list(job.task.doubt_columns)))


def _rows(
    job: Job, parts: Sequence[str], doubts: np.ndarray, places: np.ndarray
) -> Iterator[pa.Table]:
    for number in np.unique(places[:, 0]).tolist():
        is_here = places[:, 0] == number
        rows = places[is_here, 1]
        table = _part(job.folder, part_path(job.parts, parts[number])).take(pa.array(rows))
        table = table.append_column("_doubt", pa.array(doubts[is_here]))
        table = table.append_column("_part", pa.repeat(pa.scalar(parts[number]), len(rows)))
        yield table.append_column("_row", pa.array(rows))


def _part(folder: Folder, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    filesystem, root = folder.filesystem_and_path
    with filesystem.open_input_file(f"{root}/{path}") as file:
        return pq.ParquetFile(file).read(columns=columns)
